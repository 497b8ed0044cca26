"""On which nodes the bytes of stored objects are, as their owner knows it, and who reads which copy.

Pure. State: for each object of this process whose bytes are, or are asked for, on another node: its copies, who is
pulling one from where, who waits for a turn. Of all other objects the bytes are on the owner's own node, or nowhere.

A node manager that lacks an object asks for a copy (`on_asked`), and is told one node to pull from. So many may pull
from one copy at a time; others wait until one of them is done, and may then pull from the new copy, too: a broadcast
spreads as a tree. Who asks again says which nodes have failed him: nobody is sent there any more. But what is there is
dropped with the rest when the object is freed, and so is what an attempt of its task made whose answer did not count.

Invariants (`check`): a copy's readers are those that were told it; nobody waits while a copy has a turn free, or while
no copy is left; nobody waits and reads at once; no copy is counted as stale.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from skate.core.machine import Machine
from skate.ids import NodeId

#: nodes that pull from one copy at a time
MOST_READERS: Final = 2


class TellCopy(NamedTuple):
    """Effect: tell the manager of node `to` where a copy is. No `source`: nowhere, and why."""

    to: NodeId
    object: bytes
    pull: int
    source: NodeId | None
    why: str


class Placed:
    """An object, and the nodes that have to do with its bytes."""

    __slots__ = ("copies", "readers", "stale", "waiting", "why")

    def __init__(self, *nodes: NodeId) -> None:
        #: node with a copy -> how many others pull from it
        self.copies: dict[NodeId, int] = dict.fromkeys(nodes, 0)
        #: nodes that may have one which nobody is to read
        self.stale: set[NodeId] = set()
        #: node -> the copy that it pulls from; None: that is gone, and the node has not said so yet
        self.readers: dict[NodeId, NodeId | None] = {}
        #: node -> its number for the pull; first come, first served
        self.waiting: dict[NodeId, int] = {}
        #: how the last copy was lost
        self.why = ""


class Copies(Machine):
    """The copies of one process's objects."""

    def __init__(self, home: NodeId, effects: list[Any] | None = None) -> None:
        super().__init__(effects)
        self._home = home
        self.placed: dict[bytes, Placed] = {}

    def nodes_of(self, object_id: bytes) -> Iterable[NodeId]:
        """The nodes that have a copy, or, if the object was never elsewhere, should have one."""
        placed = self.placed.get(object_id)
        return (self._home,) if placed is None else placed.copies

    def on_made(self, object_id: bytes, node: NodeId) -> None:
        """A process of that node has put the object into its store."""
        placed = self.placed.get(object_id)
        if placed is not None:
            self._add(object_id, placed, node)
        elif node != self._home:
            self.placed[object_id] = Placed(node)

    def on_made_in_vain(self, object_id: bytes, node: NodeId) -> None:
        """A process of that node has made the object, which another is to make again: perhaps there, too."""
        placed = self.placed.setdefault(object_id, Placed())
        if node not in placed.copies:
            placed.stale.add(node)

    def on_asked(
        self, object_id: bytes, node: NodeId, pull: int, missed: Iterable[tuple[NodeId, str]] = ()
    ) -> None:
        """A node has no copy, and wants one; `missed` are those that it was told of and did not get, and why."""
        placed = self.placed.get(object_id)
        if placed is None:
            placed = self.placed[object_id] = Placed(self._home)
        self._end_reading(placed, node)
        self._lose(placed, node, "it was dropped there")
        for other, why in missed:
            if self._lose(placed, other, why):
                placed.stale.add(other)
        placed.waiting[node] = pull
        self._serve(object_id, placed)

    def on_copied(self, object_id: bytes, node: NodeId) -> bool:
        """A node has its copy. False: nobody wants it, the object is freed."""
        placed = self.placed.get(object_id)
        if placed is None:
            return False
        self._end_reading(placed, node)
        self._add(object_id, placed, node)
        return True

    def on_gave_up(self, object_id: bytes, node: NodeId) -> None:
        """A node that asked for a copy does not want it any more, or has no room for it."""
        placed = self.placed.get(object_id)
        if placed is not None:
            self._end_reading(placed, node)
            self._serve(object_id, placed)

    def on_node_died(self, node: NodeId, why: str) -> list[bytes]:
        """A node is gone: gives the objects that had no other copy."""
        lost = []
        for object_id, placed in self.placed.items():
            self._end_reading(placed, node)
            placed.stale.discard(node)
            if self._lose(placed, node, why) and not placed.copies:
                lost.append(object_id)
            self._serve(object_id, placed)
        return lost

    def on_freed(self, object_id: bytes) -> dict[NodeId, bool]:
        """The object is freed: the nodes that have a copy, or may have one (False), or are about to (True)."""
        placed = self.placed.pop(object_id, None)
        if placed is None:
            return {self._home: False}
        there = (*placed.copies, *placed.stale)
        return dict.fromkeys(there, False) | dict.fromkeys((*placed.readers, *placed.waiting), True)

    def _add(self, object_id: bytes, placed: Placed, node: NodeId) -> None:
        placed.stale.discard(node)
        placed.copies.setdefault(node, 0)
        self._serve(object_id, placed)

    @staticmethod
    def _lose(placed: Placed, node: NodeId, why: str) -> bool:
        if placed.copies.pop(node, None) is None:
            return False
        for reader, source in placed.readers.items():
            if source == node:
                placed.readers[reader] = None
        placed.why = f"its last copy was on node {node.hex()}: {why}"
        return True

    @staticmethod
    def _end_reading(placed: Placed, node: NodeId) -> None:
        placed.waiting.pop(node, None)
        source = placed.readers.pop(node, None)
        if source is not None:
            placed.copies[source] -= 1

    def _serve(self, object_id: bytes, placed: Placed) -> None:
        """Whoever waits is told a copy that has a turn free."""
        while placed.waiting:
            source = min(placed.copies, key=lambda node: (placed.copies[node], node), default=None)
            if source is not None and placed.copies[source] >= MOST_READERS:
                return
            node = next(iter(placed.waiting))
            pull = placed.waiting.pop(node)
            if source is not None:
                placed.copies[source] += 1
                placed.readers[node] = source
            self._effects.append(
                TellCopy(node, object_id, pull, source, "" if source is not None else placed.why)
            )

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        for object_id, placed in self.placed.items():
            name = object_id.hex()
            for node, readers in placed.copies.items():
                told = sum(source == node for source in placed.readers.values())
                if readers != told or readers > MOST_READERS:
                    raise AssertionError(
                        f"{readers} read the copy of {name} on {node.hex()}, {told} were told of it"
                    )
                if placed.waiting and readers < MOST_READERS:
                    raise AssertionError(
                        f"{len(placed.waiting)} wait for {name}, and {node.hex()} has a turn"
                    )
            if placed.waiting and not placed.copies:
                raise AssertionError(f"{len(placed.waiting)} wait for {name}, which has no copy")
            if placed.stale & placed.copies.keys():
                raise AssertionError(f"{name} has a copy that is stale, and is not")
            if placed.waiting.keys() & placed.readers.keys():
                raise AssertionError(f"somebody waits for {name}, and reads it")
