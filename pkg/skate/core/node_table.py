"""The nodes as whoever schedules knows them, and in which order what asks for nodes looks at them.

Pure. State: a view a node, and an `Order` for each kind of request that was asked about lately. An order is made when
it is asked for, and mended where views have changed since: so a choice among thousands of nodes costs a look at those
that have changed, not at all.

Invariant (`check`): an order, once mended, is what one that is made anew would be.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from skate.core.labels import Expressions, matches
from skate.core.resources import ResourceSet
from skate.ids import NodeId

#: orders that are kept; the one that was asked for longest ago goes first
ORDERS: Final = 16
#: nodes that are moved in an order; where more have changed, and more than this part of all, it is made anew
MOVES: Final = 4
ANEW: Final = 1 / 8
#: what a node's score is made of
_SCORED: Final = ("CPU", "memory", "object_store_memory")

#: where a node stands in an order
FITS: Final = 0
SHUNNED: Final = 1
FEASIBLE: Final = 2
OUT: Final = 3


class NodeView:
    """A node as whoever schedules knows it: amounts in units, by name; placement groups' names among them.

    What it has and has free changes by its methods alone.
    """

    __slots__ = ("_own", "_table", "_used", "alive", "available", "id", "labels", "source", "total")

    def __init__(
        self,
        node: NodeId,
        total: Mapping[str, int],
        available: Mapping[str, int] | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        alive: bool = True,
    ) -> None:
        """`available` None: all of it. The mappings stay their owner's, who must not change them; nor does the view."""
        self.id = node
        self.total = total
        self.available = total if available is None else available
        self.labels: Mapping[str, str] = labels or {}
        self.alive = alive
        #: what it was made from, for whoever made it; opaque here
        self.source: Any = None
        #: `available` is a copy
        self._own = False
        #: what `utilization` gives; below 0: not known
        self._used = -1.0
        self._table: NodeTable | None = None

    def feasible(self, demand: ResourceSet) -> bool:
        total = self.total
        if not self.alive:
            return False
        for name, units in demand.items():  # noqa: SIM110 (a generator costs twice as much)
            if total.get(name, 0) < units:
                return False
        return True

    def fits(self, demand: ResourceSet) -> bool:
        available = self.available
        if not self.alive:
            return False
        for name, units in demand.items():  # noqa: SIM110
            if available.get(name, 0) < units:
                return False
        return True

    def utilization(self) -> float:
        """The used share of the scarcest resource that counts, 0.0 to 1.0."""
        used = self._used
        if used < 0:
            used = 0.0
            for name in _SCORED:
                total = self.total.get(name)
                if total:
                    used = max(used, 1 - self.available.get(name, 0) / total)
            self._used = used
        return used

    def take(self, demand: ResourceSet, times: int = 1) -> None:
        """So many requests are to run there; each name is one that the node has."""
        free = self._to_change()
        for name, units in demand.items():
            free[name] -= units * times

    def give_back(self, demand: ResourceSet, times: int) -> None:
        """So many of them do not run there any more."""
        free = self._to_change()
        for name, units in demand.items():
            free[name] += units * times

    def set_free(self, name: str, units: int) -> None:
        self._to_change()[name] = units

    def set_all_free(self, available: Mapping[str, int]) -> None:
        """`available`: as in the constructor."""
        self._note_change()
        self.available, self._own = available, False

    def offer(self, name: str, units: int) -> None:
        """It has so much of it, whatever it had; what is more, or less, is so much more, or less, that is free."""
        more = units - self.total.get(name, 0)
        self.total = {**self.total, name: units}
        self.set_free(name, max(0, self.available.get(name, 0) + more))

    def _note_change(self) -> None:
        self._used = -1.0
        if self._table is not None:
            self._table.changed(self.id)

    def _to_change(self) -> dict[str, int]:
        self._note_change()
        if not self._own:
            self.available, self._own = dict(self.available), True
        return self.available  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"<NodeView {self.id.hex()}{'' if self.alive else ' (dead)'} {self.available} of {self.total}>"


class Kind(NamedTuple):
    """What an order is for."""

    demand: ResourceSet
    #: nodes' labels must meet these
    selector: Expressions = ()
    #: nodes of which less is used are all the same; None: they all are
    threshold: float | None = None
    #: nodes with GPUs are apart
    shuns_gpus: bool = False


class Order:
    """The living nodes that meet a selector, by how they stand to a demand, each list by score and id."""

    __slots__ = ("_at", "_kind", "_lists", "stale")

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._at: dict[NodeId, tuple[int, tuple[float, NodeId]]] = {}
        self._lists: tuple[list[tuple[float, NodeId]], ...] = ([], [], [])
        #: nodes to be looked at again; None: all
        self.stale: dict[NodeId, None] | None = None

    @property
    def members(self) -> int:
        """The living nodes that meet the selector."""
        return len(self._at)

    @property
    def fits(self) -> list[tuple[float, NodeId]]:
        """(score, node) of those that have room now; without those that are shunned."""
        return self._lists[FITS]

    @property
    def shunned(self) -> list[tuple[float, NodeId]]:
        """Those that have room, and are shunned."""
        return self._lists[SHUNNED]

    @property
    def feasible(self) -> list[tuple[float, NodeId]]:
        """Those that would have room, were they idle."""
        return self._lists[FEASIBLE]

    def score(self, node: NodeId, among: list[tuple[float, NodeId]]) -> float | None:
        """Its score, if it is in that list."""
        at = self._at.get(node)
        return at[1][0] if at is not None and at[0] < OUT and self._lists[at[0]] is among else None

    def _place(self, view: NodeView) -> tuple[int, tuple[float, NodeId]] | None:
        demand, selector, threshold, shuns_gpus = self._kind
        if not view.alive or (selector and not matches(view.labels, selector)):
            return None
        if view.fits(demand):
            where = SHUNNED if shuns_gpus and view.total.get("GPU") else FITS
        else:
            where = FEASIBLE if view.feasible(demand) else OUT
        score = 0.0
        if threshold is not None:
            used = view.utilization()
            score = used if used >= threshold else 0.0
        return where, (score, view.id)

    def mend(self, views: Mapping[NodeId, NodeView]) -> None:
        """Looks at what has changed."""
        stale = self.stale
        if stale is None or len(stale) > max(MOVES, ANEW * len(views)):
            self._make(views)
        else:
            for node in stale:
                self._move(node, views.get(node))
        self.stale = {}

    def _make(self, views: Mapping[NodeId, NodeView]) -> None:
        self._at.clear()
        for each in self._lists:
            each.clear()
        for node, view in views.items():
            at = self._place(view)
            if at is not None:
                self._at[node] = at
                if at[0] != OUT:
                    self._lists[at[0]].append(at[1])
        for each in self._lists:
            each.sort()

    def _move(self, node: NodeId, view: NodeView | None) -> None:
        before = self._at.pop(node, None)
        after = None if view is None else self._place(view)
        if after is not None:
            self._at[node] = after
        if before == after:
            return
        if before is not None and before[0] != OUT:
            among = self._lists[before[0]]
            del among[bisect_left(among, before[1])]
        if after is not None and after[0] != OUT:
            insort(self._lists[after[0]], after[1])

    def facts(self) -> Any:
        """All there is in it, for comparison."""
        return self._at, self._lists


class NodeTable(Mapping[NodeId, NodeView]):
    """The views of nodes, by id. A view is in one table at a time."""

    def __init__(self, views: Iterable[NodeView] = ()) -> None:
        self._views: dict[NodeId, NodeView] = {}
        self._orders: dict[Kind, Order] = {}
        for view in views:
            self.put(view)

    def __getitem__(self, node: NodeId) -> NodeView:
        return self._views[node]

    def __iter__(self) -> Iterator[NodeId]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def find(self, node: NodeId | None) -> NodeView | None:
        return self._views.get(node)  # type: ignore[arg-type]

    def put(self, view: NodeView) -> None:
        """A node is known, or is known better: another view of it counts no more."""
        self.drop(view.id)
        view._table = self
        self._views[view.id] = view

    def drop(self, node: NodeId) -> None:
        """The node is no more, or not known."""
        view = self._views.pop(node, None)
        if view is not None:
            view._table = None
        self.changed(node)

    def changed(self, node: NodeId) -> None:
        """By a view of this table."""
        for order in self._orders.values():
            if order.stale is not None:
                order.stale[node] = None

    def order(self, kind: Kind) -> Order:
        """The nodes in the order for such requests, as they are now. It is not to be kept."""
        order = self._orders.pop(kind, None)
        if order is None:
            order = Order(kind)
            if len(self._orders) >= ORDERS:
                del self._orders[next(iter(self._orders))]
        self._orders[kind] = order
        if order.stale is None or order.stale:
            order.mend(self._views)
        return order

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        for node, view in self._views.items():
            if view.id != node or view._table is not self:
                raise AssertionError(f"{view} stands under {node.hex()}, in {view._table}")
        for kind in list(self._orders):
            anew = Order(kind)
            anew.mend(self._views)
            if self.order(kind).facts() != anew.facts():
                raise AssertionError(f"{kind}: {self.order(kind).facts()}, not {anew.facts()}")
