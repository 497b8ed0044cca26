"""On which node a task or actor is to run.

Pure. State: whose turn it is among nodes that work is spread over. Everything else comes in: the nodes as they are
known (core.node_table), what is asked for, where it may run (`Where`), and chance, as a number from 0 to 1.

A node is *feasible* if it could run the request were it idle, *available* if it can run it now. Rules, all Ray's:

* DEFAULT: each feasible node has a score: the used share of its scarcest resource among CPU, memory and store, which
  counts as 0 below the spread threshold. Available nodes are preferred to the others. Among them the one where the
  request comes from is taken if none has a lower score; else one of the k lowest by chance, k being the greater of a
  share of all nodes and a fixed number. Requests without GPUs take nodes with GPUs only when no other is available.
* DEFAULT with large arguments: the available node that has most bytes of them, whatever its score.
* An actor that holds nothing once it lives goes to any node, by chance, also where it is to wait: what it holds no part
  of tells nothing of where the others are.
* SPREAD: the next available node in turn, else the next feasible one.
* NODE: that node, if it lives and is feasible. Else, if `soft`, as DEFAULT; if not, the request can never run.
* LABELS: any node that meets `hard`; first those that meet `preferred` and are available, then the available ones.
* `selectors` narrow the nodes down before all that; the first one that has an available node counts, else the first
  that has a feasible one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from skate.core.labels import Expressions, matches
from skate.core.node_table import Kind, NodeTable, NodeView, Order
from skate.core.resources import ResourceSet
from skate.ids import NodeId

DEFAULT: Final = "DEFAULT"
SPREAD: Final = "SPREAD"
NODE: Final = "NODE"
LABELS: Final = "LABELS"

_NEVER: Final = (
    "The node specified via NodeAffinitySchedulingStrategy doesn't exist any more or is infeasible, and soft=False was "
    "specified. skate.nodes() lists the nodes; soft=True lets it run elsewhere."
)
_NOT_NOW: Final = (
    "The node specified via NodeAffinitySchedulingStrategy has no room for it now, and _fail_on_unavailable=True was "
    "specified."
)


class Where(NamedTuple):
    """On which nodes something may run, and how one is chosen. Plain values, so it travels as a tuple."""

    kind: str = DEFAULT
    #: of NODE: the node's id in hexadecimal
    node: str = ""
    soft: bool = False
    #: of NODE: do not wait for it where it is full, but run elsewhere (`soft`), or fail
    spill: bool = False
    fail: bool = False
    #: of LABELS
    hard: Expressions = ()
    preferred: Expressions = ()
    #: to be tried in turn; none: all nodes will do
    selectors: tuple[Expressions, ...] = ()
    #: what runs there has its own tasks run in its placement group
    captures: bool = False

    @property
    def chooses(self) -> bool:
        """Whether any node may be refused."""
        return self.kind in (NODE, LABELS) or bool(self.selectors)


class Knobs(NamedTuple):
    """What may be set from outside; see config.scheduler_knobs."""

    spread_threshold: float = 0.5
    top_k_fraction: float = 0.2
    top_k_absolute: int = 1
    avoid_gpu_nodes: bool = True


class Choice(NamedTuple):
    """A node, or why there is none."""

    node: NodeId | None
    #: it can run there now; else it waits there
    available: bool = False
    #: it can never run; empty: some day a node may join that fits
    never: str = ""


INFEASIBLE: Final = Choice(None)


class NodeChooser:
    """Chooses among nodes for one process that schedules."""

    def __init__(self, knobs: Knobs = Knobs()) -> None:  # noqa: B008 (immutable)
        self._knobs = knobs
        #: whose turn it was last in SPREAD
        self._last = NodeId(b"")

    def choose(
        self,
        nodes: NodeTable,
        demand: ResourceSet,
        where: Where = Where(),  # noqa: B008 (immutable)
        *,
        local: NodeId | None = None,
        chance: float = 0.0,
        local_bytes: Mapping[NodeId, int] | None = None,
        roams: bool = False,
    ) -> Choice:
        """The node for one request. `local` is where it comes from, 0 <= `chance` < 1.

        `local_bytes`: of a task's large arguments, node -> bytes that it has. `roams`: of an actor that holds nothing.
        """
        if not where.selectors:
            return self._choose(nodes, demand, where, (), local, chance, local_bytes, roams)
        choices = []
        for selector in where.selectors:
            choice = self._choose(nodes, demand, where, selector, local, chance, local_bytes, roams)
            if choice.available:
                return choice
            choices.append(choice)
        return next((choice for choice in choices if choice.node is not None), choices[0])

    def _choose(
        self,
        nodes: NodeTable,
        demand: ResourceSet,
        where: Where,
        selector: Expressions,
        local: NodeId | None,
        chance: float,
        local_bytes: Mapping[NodeId, int] | None,
        roams: bool,
    ) -> Choice:
        if where.kind == SPREAD:
            return self._spread(nodes.order(Kind(demand, selector)))
        if where.kind == NODE:
            return self._affinity(nodes, demand, where, selector, local, chance)
        if where.kind == LABELS:
            return _by_labels(nodes, demand, where, selector, chance)
        if roams:
            order = nodes.order(Kind(demand, selector))
            return _any_of(order.fits or order.feasible, chance, bool(order.fits))
        if local_bytes:
            near = [view for view in map(nodes.find, local_bytes) if view and local_bytes[view.id]]
            near = [view for view in near if view.fits(demand) and matches(view.labels, selector)]
            if near:
                best = max(near, key=lambda view: (local_bytes[view.id], view.id == local, view.id))
                return Choice(best.id, True)
        return self._hybrid(nodes, demand, selector, local, chance)

    def _hybrid(
        self,
        nodes: NodeTable,
        demand: ResourceSet,
        selector: Expressions,
        local: NodeId | None,
        chance: float,
    ) -> Choice:
        threshold = self._knobs.spread_threshold
        shuns = self._knobs.avoid_gpu_nodes and not demand.asks_of("GPU")
        here = nodes.find(local)
        if here is not None and here.fits(demand) and matches(here.labels, selector):
            used = here.utilization()
            if not (used and used >= threshold) and not (shuns and here.total.get("GPU")):
                return Choice(local, True)  # none is better, so there is no need to look at them
        order = nodes.order(Kind(demand, selector, threshold, shuns))
        candidates = order.fits or order.shunned or order.feasible
        if not candidates:
            return INFEASIBLE
        available = candidates is not order.feasible
        if local is not None:
            score = order.score(local, candidates)
            if score is not None and score <= candidates[0][0]:
                return Choice(local, available)
        k = max(1, self._knobs.top_k_absolute, int(order.members * self._knobs.top_k_fraction))
        return Choice(candidates[int(chance * min(k, len(candidates)))][1], available)

    def _spread(self, order: Order) -> Choice:
        ring = order.fits or order.feasible
        if not ring:
            return INFEASIBLE
        at = bisect_right(ring, (0.0, self._last))
        self._last = ring[at if at < len(ring) else 0][1]
        return Choice(self._last, ring is order.fits)

    def _affinity(
        self,
        nodes: NodeTable,
        demand: ResourceSet,
        where: Where,
        selector: Expressions,
        local: NodeId | None,
        chance: float,
    ) -> Choice:
        view = nodes.find(_node_named(where.node))
        if view is not None and view.feasible(demand) and matches(view.labels, selector):
            fits = view.fits(demand)
            if where.fail and not fits:
                return Choice(None, never=_NOT_NOW)
            if fits or not where.spill:
                return Choice(view.id, fits)
            elsewhere = self._hybrid(nodes, demand, selector, local, chance)
            return elsewhere if elsewhere.available else Choice(view.id)
        if where.soft:
            return self._hybrid(nodes, demand, selector, local, chance)
        return Choice(None, never=_NEVER)


def _node_named(text: str) -> NodeId | None:
    """None where the text is no node's id: no node has it."""
    try:
        node = NodeId(bytes.fromhex(text))
    except ValueError:
        return None
    return node if node.hex() == text else None


def _by_labels(
    nodes: NodeTable, demand: ResourceSet, where: Where, selector: Expressions, chance: float
) -> Choice:
    orders = [nodes.order(Kind(demand, selector + where.hard))]
    if where.preferred:
        orders.insert(0, nodes.order(Kind(demand, selector + where.hard + where.preferred)))
    for order in orders:
        if order.fits:
            return _any_of(order.fits, chance, True)
    return _any_of(next((order.feasible for order in orders if order.feasible), []), chance, False)


def _any_of(ring: list[tuple[float, NodeId]], chance: float, available: bool) -> Choice:
    return Choice(ring[int(chance * len(ring))][1], available) if ring else INFEASIBLE


def may_run(nodes: NodeTable, view: NodeView, demand: ResourceSet, where: Where) -> bool:
    """Whether the node may be chosen, as nodes are known now, or waited for."""
    return view.feasible(demand) and any(
        _may_run(nodes, view, demand, where, selector) for selector in where.selectors or ((),)
    )


def _may_run(
    nodes: NodeTable, view: NodeView, demand: ResourceSet, where: Where, selector: Expressions
) -> bool:
    if not matches(view.labels, selector):
        return False
    if where.kind == NODE:
        named = nodes.find(_node_named(where.node))
        if named is view:
            return not where.fail or view.fits(demand)
        if named is not None and named.feasible(demand) and matches(named.labels, selector):
            return where.spill  # else it waits for the node that was named, however full that is
        return where.soft
    return where.kind != LABELS or matches(view.labels, where.hard)


def where_from(fields: Any) -> Where:
    """A `Where` as it came in a message; None stands for the default. ValueError where it is none."""
    if fields is None:
        return Where()
    if not isinstance(fields, list | tuple) or len(fields) != len(Where._fields):
        raise ValueError(f"nodes to choose from are no {fields!r:.60}")
    where = Where(*fields)
    flags = (where.soft, where.spill, where.fail, where.captures)
    if (
        not isinstance(where.kind, str)
        or not isinstance(where.node, str)
        or not all(type(flag) is bool for flag in flags)
    ):
        raise ValueError(f"nodes to choose from are no {fields!r:.60}")
    return where
