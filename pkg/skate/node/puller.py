"""The node manager's part in bringing objects from other nodes, and in giving them away.

State: core.pulls's machine, and the place in the store of each object that is on its way here. What is asked of this
node is answered at once, a chunk from the store or from the file that the object was spilled to, and leaves no state.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from skate._c.arena import Arena, ArenaFull, NotMaking, ObjectExists, Writable
from skate.core.leases import Lacks, LeaseRequest
from skate.core.pulls import (
    CHUNK_BYTES,
    Abort,
    Allocate,
    AskChunk,
    AskOwner,
    Effect,
    Pulls,
    Seal,
    TellGivenUp,
)
from skate.core.spilling import FULL, MADE, Answer
from skate.ids import NodeId, ObjectId, ProcessId, manager_of, owner_of
from skate.store.spill import read_bytes
from skate.wire import messages as m

if TYPE_CHECKING:
    from skate.node.spiller import Spiller

log = logging.getLogger("skate.node")

#: the part of a store that arguments may take which are fetched for tasks that have no room to run in yet
FETCH_SHARE = 4


class Puller:
    """Brings objects here, for the processes of this node; and gives chunks of those that are here."""

    def __init__(self, me: ProcessId, folder: str, arena: Arena, spiller: Spiller) -> None:
        """`spiller` makes room, and knows what is on disk."""
        self._me = me
        self._folder = folder
        self._arena = arena
        self._spiller = spiller
        self._post: Callable[[ProcessId, Any], None]
        self._post_bulk: Callable[[ProcessId, bytes, memoryview], None]
        self.machine = Pulls()
        #: number of a pull -> its place
        self._places: dict[int, Writable] = {}
        #: question for room -> (number of the pull, how often it was told that there is room)
        self._rooms: dict[int, tuple[int, int]] = {}
        self._next_token = itertools.count(1).__next__
        #: (owner, class) of a request -> what is brought here for its tasks: token -> object
        self._fetches: dict[tuple[ProcessId, int], dict[int, ObjectId]] = {}
        self._fetched: Callable[[ProcessId, int], None]
        #: what owners say, processes of this node or of others
        self.from_owners: dict[int, Callable[..., None]] = {
            m.CopyAt.code: self._copy_at,  # type: ignore[attr-defined]
            m.DropCopy.code: self._drop_copy,  # type: ignore[attr-defined]
        }
        #: what other node managers say
        self.from_managers: dict[int, Callable[..., None]] = {
            m.FetchChunk.code: self._fetch_chunk,  # type: ignore[attr-defined]
            m.Chunk.code: self._chunk,  # type: ignore[attr-defined]
            m.ChunkMissing.code: self._chunk_missing,  # type: ignore[attr-defined]
        }

    def join(
        self,
        post: Callable[[ProcessId, Any], None],
        post_bulk: Callable[[ProcessId, bytes, memoryview], None],
        fetched: Callable[[ProcessId, int], None],
        in_cluster: bool,
    ) -> None:
        """What is said leaves by `post`, and bytes of objects, with a record before them, by `post_bulk`.

        A node that is in no cluster never asks for anything.

        `fetched(owner, class)`: what a request lacked is here, or cannot be had.
        """
        self._post = post
        self._post_bulk = post_bulk
        self._fetched = fetched
        if in_cluster:
            self._spiller.ask_others(self._want, self._room_answered)

    # --------------------------------------------------------------------------------------------------- wanting

    def _want(self, process: ProcessId, token: int, object_id: ObjectId) -> None:
        """A process wants an object that is neither in the store nor on disk."""
        self.machine.on_wanted(object_id, process, token)
        self._act()

    def lacks(self, arguments: Lacks) -> Lacks:
        """Those of the objects that are neither in the store nor on disk."""
        on_disk = self._spiller.machine.objects
        return tuple(
            [each for each in arguments if not (self._arena.contains(each[0]) or each[0] in on_disk)]
        )

    def fetch(self, request: LeaseRequest) -> None:
        """Brings here what the request lacks; `fetched` is called once that is over."""
        key = request.owner, request.class_id
        wanted = self._fetches[key] = {self._next_token(): name for name, _ in request.lacks}
        for token, object_id in wanted.items():
            self.machine.on_wanted(object_id, self._me, token)
        self._act()

    def stop(self, request: LeaseRequest) -> None:
        """Nobody needs it any more; `fetched` is not called."""
        for token, object_id in self._fetches.pop((request.owner, request.class_id), {}).items():
            self.machine.on_unwanted(object_id, self._me, token)
        self._act()

    def _answered(self, token: int) -> None:
        key, wanted = next(item for item in self._fetches.items() if token in item[1])
        del wanted[token]
        if not wanted:
            del self._fetches[key]
            self._fetched(*key)

    def _copy_at(self, owner: Any, pull: int, size: int, source: NodeId, why: str) -> None:
        known = self.machine.pulls.get(pull)
        if known is not None and owner_of(known.object) == owner.id:
            self.machine.on_source(pull, size, source or None, why)
            self._act()

    def _room_answered(self, token: int, answer: tuple[Any, ...]) -> None:
        pull, attempt = self._rooms.pop(token)
        if self.machine.needs_room(pull):
            if answer[0] == MADE:
                self._allocate(pull, attempt + 1)
            else:
                self.machine.on_no_room(pull, (*answer, self.machine.pulls[pull].size))
            self._act()

    def _allocate(self, number: int, attempt: int) -> None:
        pull = self.machine.pulls[number]
        try:
            self._places[number] = self._arena.allocate(pull.object, pull.size, owner_of(pull.object))
        except ArenaFull as full:
            if pull.size > full.capacity:
                why = f"the object has {pull.size:,} bytes, and the store of this node {full.capacity:,}"
                self.machine.on_no_room(number, (FULL, why, pull.size))
            else:
                token = self._next_token()
                self._rooms[token] = number, attempt
                self._spiller.machine.room_requested(self._me, token, pull.size, attempt)
        except ObjectExists:
            if self._arena.contains(pull.object):
                self.machine.on_present(number)
            else:  # half made, by an attempt of its task that does not count: the owner has told of another's
                self._arena.delete(pull.object)
                self._allocate(number, attempt)
        else:
            self.machine.on_allocated(number)

    # ----------------------------------------------------------------------------------------------- chunks come

    def _chunk(self, node: NodeId, pull: int, offset: int, data: memoryview | None = None) -> None:
        if data is None:
            raise ValueError("a chunk without bytes")
        if not self.machine.expects(pull, node, offset, len(data)):
            return  # of a pull that is over, or from a node that was given up
        with memoryview(self._places[pull]) as room:
            room[offset : offset + len(data)] = data
        self.machine.on_chunk(pull, offset)
        self._act()

    def _chunk_missing(self, node: NodeId, pull: int, why: str) -> None:
        self.machine.on_missing(pull, node, why)
        self._act()

    # ------------------------------------------------------------------------------------------------- chunks go

    def _fetch_chunk(self, node: NodeId, object_id: ObjectId, pull: int, offset: int, size: int) -> None:
        try:
            data = self._bytes_of(object_id, offset, size)
        except (OSError, LookupError, ValueError) as error:
            self._post(manager_of(node), m.ChunkMissing(pull, str(error)))
        else:
            self._post_bulk(manager_of(node), m.encode(m.Chunk(pull, offset)), data)

    def _bytes_of(self, object_id: ObjectId, offset: int, size: int) -> memoryview:
        """Some bytes of an object, which is pinned for as long as they are looked at.

        LookupError where it is not here, OSError where its file cannot be read.
        """
        if not 0 < size <= CHUNK_BYTES or offset < 0:
            raise ValueError(f"{size} bytes from {offset} are no chunk")
        pinned = self._arena.get(object_id)
        if pinned is not None:
            if offset + size > pinned.nbytes:
                raise ValueError(f"it has {pinned.nbytes} bytes, not {offset + size}")
            return memoryview(pinned)[offset : offset + size]
        spilled = self._spiller.machine.objects.get(object_id)
        if spilled is None:
            raise LookupError("it is not there any more")
        if offset + size > spilled.span.size:
            raise ValueError(f"it has {spilled.span.size} bytes, not {offset + size}")
        data = read_bytes(self._folder, spilled.file.number, spilled.span.offset + offset, size)
        return memoryview(data)

    # ----------------------------------------------------------------------------------------------------- ends

    def _drop_copy(self, owner: Any, object_id: ObjectId) -> None:
        if owner_of(object_id) != owner.id:
            raise ValueError(f"object {object_id.hex()} is another process's")
        self.machine.on_freed(object_id)
        self._act()
        if not self._arena.delete(object_id):
            self._spiller.machine.forget_requested(object_id)

    def process_left(self, process: ProcessId) -> None:
        """A process of this node is dead: it waits for nothing, and what it owned cannot be had."""
        self.machine.on_process_left(process)
        self.owner_died(process, "its owner is dead.")

    def owner_died(self, gone: bytes, why: str) -> None:
        """A process of any node, or a node, is dead."""
        self.machine.on_owner_died(gone, why)
        self._act()

    def node_died(self, node: NodeId, why: str) -> None:
        self.machine.on_node_died(node, f"the node died ({why})")
        self.owner_died(node, f"its owner died with node {node.hex()} ({why}).")

    # -------------------------------------------------------------------------------------------------- decisions

    def _act(self) -> None:
        while effects := self.machine.take_effects():
            for effect in effects:
                self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        if type(effect) is AskChunk:
            self._post(
                manager_of(effect.node),
                m.FetchChunk(effect.object, effect.pull, effect.offset, effect.size),
            )
        elif type(effect) is AskOwner:
            self._post(owner_of(effect.object), m.FindCopy(effect.object, effect.pull, effect.missed))
        elif type(effect) is Allocate:
            if self.machine.needs_room(effect.pull):
                self._allocate(effect.pull, 0)
        elif type(effect) is Seal:
            self._seal(effect)
        elif type(effect) is Abort:
            place = self._places.pop(effect.pull)
            try:
                place.abort()
            except NotMaking:
                pass  # a process of this node has made the object again meanwhile
        elif type(effect) is TellGivenUp:
            self._post(owner_of(effect.object), m.PullEnded(effect.object))
        else:
            assert type(effect) is Answer
            if effect.process == self._me:
                self._answered(effect.token)
            else:
                self._post(effect.process, m.StoreReply(effect.token, effect.value))

    def _seal(self, effect: Seal) -> None:
        try:
            self._places.pop(effect.pull).seal()
        except NotMaking:  # a process of this node has made the object again: it is here, or will be
            self._post(owner_of(effect.object), m.PullEnded(effect.object))
        else:
            self._post(owner_of(effect.object), m.CopyMade(effect.object))
