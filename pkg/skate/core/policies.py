"""On which node a task or actor is to run.

Pure. State: whose turn it is among nodes that work is spread over. Everything else comes in: the nodes as they are
known (`NodeView`), what is asked for, where it may run (`Where`), and chance, as a number from 0 to 1.

A node is *feasible* if it could run the request were it idle, *available* if it can run it now. Rules, all Ray's:

* DEFAULT: each feasible node has a score: the used share of its scarcest resource among CPU, memory and store, which
  counts as 0 below the spread threshold. Available nodes are preferred to the others. Among them the one where the
  request comes from is taken if none has a lower score; else one of the k lowest by chance, k being the greater of a
  share of all nodes and a fixed number. Requests without GPUs take nodes with GPUs only when no other is available.
* DEFAULT with large arguments: the available node that has most bytes of them, whatever its score.
* An actor that asks for nothing goes to any node, by chance.
* SPREAD: the next available node in turn, else the next feasible one.
* NODE: that node, if it lives and is feasible. Else, if `soft`, as DEFAULT; if not, the request can never run.
* LABELS: any node that meets `hard`; first those that meet `preferred` and are available, then the available ones.
* `selectors` narrow the nodes down before all that; the first one that has an available node counts, else the first
  that has a feasible one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from skate.core.labels import Expressions, matches
from skate.core.resources import ResourceSet
from skate.ids import NodeId

DEFAULT: Final = "DEFAULT"
SPREAD: Final = "SPREAD"
NODE: Final = "NODE"
LABELS: Final = "LABELS"

#: what a node's score is made of
_SCORED: Final = ("CPU", "memory", "object_store_memory")
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


class NodeView:
    """A node as whoever schedules knows it: amounts in units, by name; placement groups' names among them."""

    __slots__ = ("alive", "available", "id", "labels", "total")

    def __init__(
        self,
        node: NodeId,
        total: Mapping[str, int],
        available: Mapping[str, int] | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        alive: bool = True,
    ) -> None:
        """`available` None: all of it."""
        self.id = node
        self.total = dict(total)
        self.available = dict(total if available is None else available)
        self.labels = dict(labels or {})
        self.alive = alive

    def feasible(self, demand: ResourceSet) -> bool:
        total = self.total
        return self.alive and all(total.get(name, 0) >= units for name, units in demand.items())

    def fits(self, demand: ResourceSet) -> bool:
        available = self.available
        return self.alive and all(available.get(name, 0) >= units for name, units in demand.items())

    def utilization(self) -> float:
        """The used share of the scarcest resource that counts, 0.0 to 1.0."""
        shares = [
            1 - self.available.get(name, 0) / self.total[name] for name in _SCORED if self.total.get(name)
        ]
        return max(shares, default=0.0)

    def __repr__(self) -> str:
        return f"<NodeView {self.id.hex()}{'' if self.alive else ' (dead)'} {self.available} of {self.total}>"


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
        #: where the next round of SPREAD begins
        self._turn = 0

    def choose(
        self,
        nodes: Sequence[NodeView],
        demand: ResourceSet,
        where: Where = Where(),  # noqa: B008 (immutable)
        *,
        local: NodeId | None = None,
        chance: float = 0.0,
        local_bytes: Mapping[NodeId, int] | None = None,
        for_actor: bool = False,
    ) -> Choice:
        """The node for one request. `local` is where it comes from, 0 <= `chance` < 1.

        `local_bytes`: of a task's large arguments, node -> bytes that it has.
        """
        if not where.selectors:
            return self._choose(nodes, demand, where, local, chance, local_bytes, for_actor)
        choices = []
        for selector in where.selectors:
            narrowed = [node for node in nodes if matches(node.labels, selector)]
            choice = self._choose(narrowed, demand, where, local, chance, local_bytes, for_actor)
            if choice.available:
                return choice
            choices.append(choice)
        return next((choice for choice in choices if choice.node is not None), choices[0])

    def _choose(
        self,
        nodes: Sequence[NodeView],
        demand: ResourceSet,
        where: Where,
        local: NodeId | None,
        chance: float,
        local_bytes: Mapping[NodeId, int] | None,
        for_actor: bool,
    ) -> Choice:
        if where.kind == SPREAD:
            return self._spread(nodes, demand)
        if where.kind == NODE:
            return self._affinity(nodes, demand, where, local, chance)
        if where.kind == LABELS:
            return _by_labels(nodes, demand, where, chance)
        if for_actor and not demand:
            return _any_of([node for node in nodes if node.alive], chance, True)
        if local_bytes:
            near = [node for node in nodes if local_bytes.get(node.id) and node.fits(demand)]
            if near:
                best = max(near, key=lambda node: (local_bytes[node.id], node.id == local, node.id))
                return Choice(best.id, True)
        return self._hybrid(nodes, demand, local, chance)

    def _hybrid(
        self, nodes: Sequence[NodeView], demand: ResourceSet, local: NodeId | None, chance: float
    ) -> Choice:
        here = next((node for node in nodes if node.id == local), None)
        if here is not None and here.fits(demand) and not self._score(here) and not self._shuns(here, demand):
            return Choice(local, True)  # none is better, so there is no need to look at them
        fits = [node for node in nodes if node.fits(demand)]
        if not fits:
            return self._best(nodes, [n for n in nodes if n.feasible(demand)], local, chance, False)
        fits = [node for node in fits if not self._shuns(node, demand)] or fits
        return self._best(nodes, fits, local, chance, True)

    def _shuns(self, node: NodeView, demand: ResourceSet) -> bool:
        """Whether the node's GPUs are to be left to others."""
        return self._knobs.avoid_gpu_nodes and bool(node.total.get("GPU")) and not demand.asks_of("GPU")

    def _best(
        self,
        nodes: Sequence[NodeView],
        candidates: list[NodeView],
        local: NodeId | None,
        chance: float,
        available: bool,
    ) -> Choice:
        if not candidates:
            return INFEASIBLE
        scored = sorted((self._score(node), node.id) for node in candidates)
        if any(node == local and score <= scored[0][0] for score, node in scored):
            return Choice(local, available)
        alive = sum(node.alive for node in nodes)
        k = max(1, self._knobs.top_k_absolute, int(alive * self._knobs.top_k_fraction))
        return Choice(scored[int(chance * min(k, len(scored)))][1], available)

    def _score(self, node: NodeView) -> float:
        used = node.utilization()
        return used if used >= self._knobs.spread_threshold else 0.0

    def _spread(self, nodes: Sequence[NodeView], demand: ResourceSet) -> Choice:
        ring = sorted(nodes, key=lambda node: node.id)
        tests: tuple[tuple[Callable[[NodeView], bool], bool], ...] = (
            (lambda node: node.fits(demand), True),
            (lambda node: node.feasible(demand), False),
        )
        for test, available in tests:
            for step in range(len(ring)):
                at = (self._turn + step) % len(ring)
                if test(ring[at]):
                    self._turn = at + 1
                    return Choice(ring[at].id, available)
        return INFEASIBLE

    def _affinity(
        self,
        nodes: Sequence[NodeView],
        demand: ResourceSet,
        where: Where,
        local: NodeId | None,
        chance: float,
    ) -> Choice:
        for node in nodes:
            if node.id.hex() == where.node and node.feasible(demand):
                fits = node.fits(demand)
                if where.fail and not fits:
                    return Choice(None, never=_NOT_NOW)
                if fits or not where.spill:
                    return Choice(node.id, fits)
                elsewhere = self._hybrid(nodes, demand, local, chance)
                return elsewhere if elsewhere.available else Choice(node.id)
        if where.soft:
            return self._hybrid(nodes, demand, local, chance)
        return Choice(None, never=_NEVER)


def _by_labels(nodes: Sequence[NodeView], demand: ResourceSet, where: Where, chance: float) -> Choice:
    hard = [node for node in nodes if node.feasible(demand) and matches(node.labels, where.hard)]
    both = [node for node in hard if where.preferred and matches(node.labels, where.preferred)]
    for candidates in (both, hard):
        fits = [node for node in candidates if node.fits(demand)]
        if fits:
            return _any_of(fits, chance, True)
    return _any_of(both or hard, chance, False)


def _any_of(nodes: list[NodeView], chance: float, available: bool) -> Choice:
    if not nodes:
        return INFEASIBLE
    ring = sorted(nodes, key=lambda node: node.id)
    return Choice(ring[int(chance * len(ring))].id, available)


def where_from(fields: Any) -> Where:
    """A `Where` as it came in a message; None stands for the default."""
    return Where() if fields is None else Where(*fields)
