"""Objects that a node manager brings from other nodes into its own store, in chunks.

Pure. State: the pulls under way: who waits for each, where its bytes come from, which chunks are asked for. Events:
on_wanted, on_source, on_allocated, on_no_room, on_present, on_chunk, on_missing, on_node_died, on_owner_died, on_freed,
on_process_left, on_unwanted. What is to be done comes out through `take_effects`.

A pull's life, from the first process that wants the object to the answer that all of them get:

    ASKING --told a source--> MAKING_ROOM --room--> FETCHING --last chunk--> (sealed: THERE)
       ^  `--there is none--> (FAILED)  `--none--> (FULL)  |
       `--------------- the source is gone ----------------'     freed, or nobody waits any more --> (aborted)

Rules:

* The object's owner says where to pull from, one node at a time (core.copies). A source that is gone, or has not got
  the object, is named when the owner is asked again; the chunks that came stay.
* No more than SOURCE_BYTES are asked of one node and not here yet, and ALL_BYTES of all: the rest waits, older pulls go
  first. So what else is said between the two nodes never waits long behind chunks.
* A pull that finds no room waits while another one is under way, which makes it an object that can be spilled.

Invariants (`check`): the bytes under way are those of the chunks that were asked for, within both bounds; a chunk is
still to be asked for, under way, or here; nothing waits that could be asked for.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, NamedTuple

from skate.core.machine import Machine
from skate.core.spilling import FAILED, GONE, THERE, Answer
from skate.ids import NodeId, ObjectId, ProcessId

#: bytes of one chunk
CHUNK_BYTES: Final = 1 << 20
#: bytes that are asked of one node, and of all, and have not come
SOURCE_BYTES: Final = 32 << 20
ALL_BYTES: Final = 64 << 20

ASKING: Final = "ASKING"
MAKING_ROOM: Final = "MAKING_ROOM"
#: it found no room, and waits for another pull to end
NO_ROOM: Final = "NO_ROOM"
FETCHING: Final = "FETCHING"


class AskOwner(NamedTuple):
    """Effect: ask the object's owner for a copy; `on_source` follows."""

    object: ObjectId
    pull: int
    missed: list[tuple[NodeId, str]]


class Allocate(NamedTuple):
    """Effect: find a place in the store; on_allocated, on_no_room or on_present follows."""

    object: ObjectId
    pull: int
    size: int


class AskChunk(NamedTuple):
    """Effect: ask a node for these bytes of the object; on_chunk or on_missing follows, or the node dies."""

    node: NodeId
    object: ObjectId
    pull: int
    offset: int
    size: int


class Seal(NamedTuple):
    """Effect: the object is whole; its owner is to hear of the copy."""

    object: ObjectId
    pull: int


class Abort(NamedTuple):
    """Effect: give the place back."""

    pull: int


class TellGivenUp(NamedTuple):
    """Effect: tell the owner that no copy is being made here any more."""

    object: ObjectId


Effect = AskOwner | Allocate | AskChunk | Seal | Abort | TellGivenUp | Answer


class Pull:
    """An object on its way here."""

    __slots__ = (
        "allocated",
        "left",
        "number",
        "object",
        "size",
        "source",
        "state",
        "to_ask",
        "under_way",
        "waiters",
    )

    def __init__(self, number: int, object_id: ObjectId) -> None:
        self.number = number
        self.object = object_id
        self.state = ASKING
        #: (process, token) of those to be answered
        self.waiters: list[tuple[ProcessId, int]] = []
        #: bytes; 0 until the owner has said it
        self.size = 0
        self.source: NodeId | None = None
        self.allocated = False
        #: offsets of chunks to be asked for, and of those that were
        self.to_ask: deque[int] = deque()
        self.under_way: set[int] = set()
        #: chunks that are not here
        self.left = 0

    def bytes_at(self, offset: int) -> int:
        """How long the chunk is that begins there."""
        return min(CHUNK_BYTES, self.size - offset)

    def __repr__(self) -> str:
        return f"<Pull {self.number} of {self.object.hex()} {self.state}, {self.left} chunks left>"


class Pulls(Machine):
    """The pulls of one node."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = 0
        #: by number, which is the order they began in
        self.pulls: dict[int, Pull] = {}
        self._by_object: dict[bytes, Pull] = {}
        #: bytes under way from each node
        self._from: dict[NodeId, int] = {}
        self.bytes_under_way = 0

    def take_effects(self) -> Any:
        self._ask_chunks()
        return super().take_effects()

    # --------------------------------------------------------------------------------------------------- wanting

    def on_wanted(self, object_id: ObjectId, process: ProcessId, token: int) -> None:
        """A process did not find the object in this node's store, nor is it on its disk."""
        pull = self._by_object.get(object_id)
        if pull is None:
            self._numbers += 1
            pull = self.pulls[self._numbers] = self._by_object[object_id] = Pull(self._numbers, object_id)
            self._effects.append(AskOwner(object_id, pull.number, []))
        pull.waiters.append((process, token))

    def on_source(self, number: int, size: int, source: NodeId | None, why: str) -> None:
        """The owner says which node has a copy of so many bytes, or why none has."""
        pull = self.pulls.get(number)
        if pull is None or pull.state != ASKING:
            return
        if source is None:
            self._end(pull, (FAILED, why), tell=False)
            return
        if (
            pull.allocated and size != pull.size
        ):  # a new attempt of its task has made it again, as something else
            self._effects.append(Abort(number))
            pull.allocated = False
            self._try_again()
        pull.source = source
        pull.size = size
        if pull.allocated:
            pull.state = FETCHING
        else:
            self._allocate(pull)

    def _allocate(self, pull: Pull) -> None:
        pull.state = MAKING_ROOM
        self._effects.append(Allocate(pull.object, pull.number, pull.size))

    def needs_room(self, number: int) -> bool:
        """Whether a place is still to be found for it."""
        pull = self.pulls.get(number)
        return pull is not None and pull.state == MAKING_ROOM

    def on_allocated(self, number: int) -> None:
        """There is a place for it, which it needs."""
        pull = self.pulls[number]
        pull.allocated = True
        pull.to_ask = deque(range(0, pull.size, CHUNK_BYTES))
        pull.left = len(pull.to_ask)
        pull.state = FETCHING

    def on_no_room(self, number: int, answer: tuple[Any, ...]) -> None:
        """There is none for it, and `answer` says why: it fails with that, unless another pull is under way."""
        pull = self.pulls[number]
        if any(each.allocated for each in self.pulls.values()):
            pull.state = NO_ROOM
        else:
            self._end(pull, answer)

    def on_present(self, number: int) -> None:
        """It is in the store, by another way."""
        pull = self.pulls.get(number)
        if pull is not None:
            self._end(pull, (THERE,))

    # -------------------------------------------------------------------------------------------------- fetching

    def _ask_chunks(self) -> None:
        """Asks for as much as may be under way."""
        for pull in self.pulls.values():
            if pull.state != FETCHING:
                continue
            source = pull.source
            assert source is not None
            while pull.to_ask:
                offset = pull.to_ask[0]
                size = pull.bytes_at(offset)
                if self.bytes_under_way + size > ALL_BYTES:
                    return
                if self._from.get(source, 0) + size > SOURCE_BYTES:
                    break
                pull.to_ask.popleft()
                pull.under_way.add(offset)
                self._count(source, size)
                self._effects.append(AskChunk(source, pull.object, pull.number, offset, size))

    def _count(self, source: NodeId, nbytes: int) -> None:
        self.bytes_under_way += nbytes
        total = self._from.get(source, 0) + nbytes
        if total:
            self._from[source] = total
        else:
            del self._from[source]

    def expects(self, number: int, source: NodeId, offset: int, nbytes: int) -> bool:
        """Whether this chunk was asked of that node, and is to be written to its place before `on_chunk`."""
        pull = self.pulls.get(number)
        return (
            pull is not None
            and pull.source == source
            and offset in pull.under_way
            and pull.bytes_at(offset) == nbytes
        )

    def on_chunk(self, number: int, offset: int) -> None:
        """A chunk that was expected is in its place."""
        pull = self.pulls[number]
        assert pull.source is not None
        pull.under_way.discard(offset)
        self._count(pull.source, -pull.bytes_at(offset))
        pull.left -= 1
        if not pull.left:
            self._effects.append(Seal(pull.object, number))
            pull.allocated = False
            self._end(pull, (THERE,), tell=False)

    # ---------------------------------------------------------------------------------------------------- losing

    def on_missing(self, number: int, source: NodeId, why: str) -> None:
        """The source has no copy after all, or cannot read it."""
        pull = self.pulls.get(number)
        if pull is not None and pull.source == source:
            self._lose_source(pull, why)

    def on_node_died(self, node: NodeId, why: str) -> None:
        for pull in list(self.pulls.values()):
            if pull.source == node:
                self._lose_source(pull, why)

    def _lose_source(self, pull: Pull, why: str) -> None:
        source = pull.source
        assert source is not None
        self._forget_chunks(pull)
        pull.source = None
        pull.state = ASKING
        self._effects.append(AskOwner(pull.object, pull.number, [(source, why)]))

    def _forget_chunks(self, pull: Pull) -> None:
        """What was asked of the source is to be asked of another."""
        for offset in sorted(pull.under_way, reverse=True):
            assert pull.source is not None
            self._count(pull.source, -pull.bytes_at(offset))
            pull.to_ask.appendleft(offset)
        pull.under_way.clear()

    def on_owner_died(self, gone: bytes, why: str) -> None:
        """A process is dead, or a node with all of its: what they owned cannot be had."""
        for pull in list(self.pulls.values()):
            if pull.object.startswith(gone):
                self._end(pull, (FAILED, why), tell=False)

    def on_freed(self, object_id: bytes) -> None:
        """The owner has freed the object."""
        pull = self._by_object.get(object_id)
        if pull is not None:
            self._end(pull, (GONE,), tell=False)

    def on_process_left(self, process: ProcessId) -> None:
        """It waits for nothing any more."""
        for pull in list(self.pulls.values()):
            self._take_off(pull, [waiter for waiter in pull.waiters if waiter[0] == process])

    def on_unwanted(self, object_id: bytes, process: ProcessId, token: int) -> None:
        """A process does not wait for the object any more, and hears no answer."""
        pull = self._by_object.get(object_id)
        if pull is not None:
            self._take_off(pull, [(process, token)])

    def _take_off(self, pull: Pull, waiters: list[tuple[ProcessId, int]]) -> None:
        pull.waiters = [waiter for waiter in pull.waiters if waiter not in waiters]
        if not pull.waiters:
            self._end(pull, (GONE,))

    def _end(self, pull: Pull, answer: tuple[Any, ...], tell: bool = True) -> None:
        """It is over; `tell` the owner, who has told us a source and would wait for the copy."""
        self._forget_chunks(pull)
        del self.pulls[pull.number], self._by_object[pull.object]
        if pull.allocated:
            self._effects.append(Abort(pull.number))
        if tell:
            self._effects.append(TellGivenUp(pull.object))
        self._effects.extend(Answer(process, token, answer) for process, token in pull.waiters)
        self._try_again()

    def _try_again(self) -> None:
        for pull in self.pulls.values():
            if pull.state == NO_ROOM:
                self._allocate(pull)

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        counted: dict[NodeId, int] = {}
        for number, pull in self.pulls.items():
            if pull.number != number or self._by_object.get(pull.object) is not pull:
                raise AssertionError(f"{pull} stands under {number}")
            if not pull.waiters:
                raise AssertionError(f"nobody waits for {pull}")
            if (pull.state == ASKING) != (pull.source is None):
                raise AssertionError(f"{pull} has the source {pull.source!r}")
            if (pull.under_way or pull.state == FETCHING) and not (
                pull.allocated and pull.state == FETCHING and pull.left
            ):
                raise AssertionError(f"{pull} fetches chunks, and has no place for them")
            if pull.allocated and len(pull.under_way) + len(pull.to_ask) != pull.left:
                raise AssertionError(
                    f"{pull} has asked for {len(pull.under_way)}, and will for {len(pull.to_ask)}"
                )
            for offset in pull.under_way:
                assert pull.source is not None
                counted[pull.source] = counted.get(pull.source, 0) + pull.bytes_at(offset)
        if counted != self._from or self.bytes_under_way != sum(counted.values()):
            raise AssertionError(f"{self._from} bytes are counted under way, {counted} are")
        if self.bytes_under_way > ALL_BYTES or max(counted.values(), default=0) > SOURCE_BYTES:
            raise AssertionError(f"{counted} bytes are under way")
        waiting = [pull for pull in self.pulls.values() if pull.state == NO_ROOM]
        if waiting and not any(pull.allocated for pull in self.pulls.values()):
            raise AssertionError(f"{waiting[0]} waits for room, and nothing makes any")
