"""On which nodes the bundles of a placement group go: all of them, or none. No state.

As in Ray the bundles that are hardest to place go first (GPUs, custom resources, memory, CPUs), each to the node of
which it leaves the largest share. Where that ends in a corner, a search goes through the other ways, up to SEARCH_STEPS
of them, so a small group that fits is always placed. What the strategies mean:

* STRICT_PACK: one node takes all. STRICT_SPREAD: no node takes two.
* PACK: one node if one can take all; else few, not necessarily the fewest.
* SPREAD: a node each as far as there are enough; else the nodes take turns.

Bundles that a group has already (of a node that died, others are to be placed again) count: PACK prefers their nodes,
STRICT_PACK insists on them, SPREAD avoids them, STRICT_SPREAD shuns them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from skate._c.resources import MAX_UNITS, PREDEFINED
from skate.core.labels import Expressions, matches
from skate.core.node_table import NodeView
from skate.core.resources import ResourceSet
from skate.ids import NodeId

PACK: Final = "PACK"
SPREAD: Final = "SPREAD"
STRICT_PACK: Final = "STRICT_PACK"
STRICT_SPREAD: Final = "STRICT_SPREAD"
STRATEGIES: Final = (PACK, SPREAD, STRICT_PACK, STRICT_SPREAD)

#: partial placements that a search looks at before it gives up
SEARCH_STEPS: Final = 5_000


class WantedBundle(NamedTuple):
    """One bundle to be placed."""

    number: int
    demand: ResourceSet
    selector: Expressions = ()  #: what its node's labels must meet


class _Room:
    """What is left of a node while bundles are tried on it."""

    __slots__ = ("free", "id", "labels")

    def __init__(self, node: NodeView) -> None:
        self.id = node.id
        self.labels = node.labels
        self.free = dict(node.available)

    def takes(self, bundle: WantedBundle) -> bool:
        free = self.free
        return all(free.get(name, 0) >= units for name, units in bundle.demand.items()) and (
            not bundle.selector or matches(self.labels, bundle.selector)
        )

    def take(self, bundle: WantedBundle) -> None:
        for name, units in bundle.demand.items():
            self.free[name] -= units

    def give(self, bundle: WantedBundle) -> None:
        for name, units in bundle.demand.items():
            self.free[name] += units

    def score(self, bundle: WantedBundle) -> float:
        """The sum of the shares of its resources that the bundle would leave."""
        return sum((self.free[name] - units) / self.free[name] for name, units in bundle.demand.items())


def place(
    bundles: Sequence[WantedBundle],
    strategy: str,
    nodes: Sequence[NodeView],
    *,
    held: Collection[NodeId] = (),
    target: NodeId | None = None,
) -> dict[int, NodeId] | None:
    """Bundle -> node, for all bundles; None where they do not fit now.

    `held`: nodes that have other bundles of the group. `target`: the node that STRICT_PACK tries first.
    """
    rooms = [_Room(node) for node in sorted(nodes, key=lambda node: node.id) if node.alive]
    wanted = sorted(bundles, key=lambda bundle: _hardness(bundle.demand), reverse=True)
    if strategy == STRICT_PACK:
        if held:
            rooms = [room for room in rooms if room.id in held]
        return _on_one_node(wanted, rooms, prefer={target} if target is not None else ())
    if strategy == STRICT_SPREAD:
        return _on_different_nodes(wanted, [room for room in rooms if room.id not in held])
    if strategy == SPREAD:
        fresh = [room for room in rooms if room.id not in held]
        return _on_different_nodes(wanted, fresh) or _in_turns(wanted, rooms, held) or _search(wanted, rooms)
    return (
        _on_one_node(wanted, rooms, prefer=held) or _greedily(wanted, rooms, held) or _search(wanted, rooms)
    )


def _hardness(demand: ResourceSet) -> tuple[object, ...]:
    custom = sorted((name, units) for name, units in demand.items() if name not in PREDEFINED)
    plain = (demand.get("object_store_memory"), demand.get("memory"), demand.get("CPU"))
    return demand.get("GPU"), len(custom), custom, *plain


def _on_one_node(
    wanted: list[WantedBundle], rooms: list[_Room], prefer: Collection[NodeId | None]
) -> dict[int, NodeId] | None:
    """The node that can take all, of several the one that keeps most."""
    total: dict[str, int] = {}
    for bundle in wanted:
        for name, units in bundle.demand.items():
            total[name] = total.get(name, 0) + units
    if max(total.values(), default=0) > MAX_UNITS:
        return None  # no node has so much
    together = WantedBundle(0, ResourceSet(total))
    fits = [
        room
        for room in rooms
        if room.takes(together) and all(matches(room.labels, bundle.selector) for bundle in wanted)
    ]
    if not fits:
        return None
    best = max(fits, key=lambda room: (room.id in prefer, room.score(together)))
    return {bundle.number: best.id for bundle in wanted}


def _on_different_nodes(wanted: list[WantedBundle], rooms: list[_Room]) -> dict[int, NodeId] | None:
    """A node for each bundle, by augmenting paths: found wherever there is one."""
    if len(rooms) < len(wanted):
        return None
    takers: dict[NodeId, int] = {}  #: node -> which of `wanted` it takes

    def seat(number: int, tried: set[NodeId]) -> bool:
        bundle = wanted[number]
        fits = [room for room in rooms if room.id not in tried and room.takes(bundle)]
        fits.sort(key=lambda room: (room.id not in takers, room.score(bundle)), reverse=True)
        for room in fits:
            if room.id in tried:
                continue  # a bundle that was asked to move has tried it meanwhile
            tried.add(room.id)
            if room.id not in takers or seat(takers[room.id], tried):
                takers[room.id] = number
                return True
        return False

    if not all(seat(number, set()) for number in range(len(wanted))):
        return None
    return {wanted[number].number: node for node, number in takers.items()}


def _greedily(
    wanted: list[WantedBundle], rooms: list[_Room], held: Collection[NodeId]
) -> dict[int, NodeId] | None:
    """Fills one node after the other; the rooms are as before afterwards."""
    placed: list[tuple[WantedBundle, _Room]] = []
    waiting, open_rooms = list(wanted), list(rooms)
    while waiting:
        fits = [room for room in open_rooms if room.takes(waiting[0])]
        if not fits:
            break
        best = max(fits, key=lambda room: (room.id in held, room.score(waiting[0])))
        open_rooms.remove(best)
        left = []
        for bundle in waiting:
            if best.takes(bundle):
                best.take(bundle)
                placed.append((bundle, best))
            else:
                left.append(bundle)
        waiting = left
    for bundle, room in placed:
        room.give(bundle)
    return None if waiting else {bundle.number: room.id for bundle, room in placed}


def _in_turns(
    wanted: list[WantedBundle], rooms: list[_Room], held: Collection[NodeId]
) -> dict[int, NodeId] | None:
    """Each bundle to a node that has fewest of the group's; the rooms are as before afterwards."""
    count = {room.id: int(room.id in held) for room in rooms}
    placed: list[tuple[WantedBundle, _Room]] = []
    for bundle in wanted:
        fits = [room for room in rooms if room.takes(bundle)]
        if not fits:
            break
        best = max(fits, key=lambda room: (-count[room.id], room.score(bundle)))
        best.take(bundle)
        count[best.id] += 1
        placed.append((bundle, best))
    for bundle, room in placed:
        room.give(bundle)
    return None if len(placed) < len(wanted) else {bundle.number: room.id for bundle, room in placed}


def _search(wanted: list[WantedBundle], rooms: list[_Room]) -> dict[int, NodeId] | None:
    """Any placement at all, by going through them."""
    placed: dict[int, NodeId] = {}
    steps = SEARCH_STEPS

    def descend(number: int) -> bool:
        nonlocal steps
        if number == len(wanted):
            return True
        bundle = wanted[number]
        for room in rooms:
            steps -= 1
            if steps < 0:
                return False
            if room.takes(bundle):
                room.take(bundle)
                placed[bundle.number] = room.id
                if descend(number + 1):
                    return True
                room.give(bundle)
        return False

    return placed if descend(0) else None
