"""Choices among nodes that come, go and change, against looking at all of them each time, as the rules say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from skate._c.resources import UNITS_PER_ONE as ONE
from skate.core.labels import EXISTS, IN, NOT_IN, Expressions, matches
from skate.core.node_table import ORDERS, Kind, NodeTable, NodeView
from skate.core.policies import DEFAULT, LABELS, NODE, SPREAD, Knobs, NodeChooser, Where, may_run
from skate.core.resources import ResourceSet
from skate.ids import NodeId

IDS = [NodeId(bytes([0, 0, 0, number])) for number in range(1, 13)]
SELECTORS: list[Expressions] = [
    (("zone", IN, ("a",)),),
    (("zone", NOT_IN, ("a", "b")),),
    (("disk", EXISTS, ()), ("zone", IN, ("b", "c"))),
]
amounts = st.fixed_dictionaries(
    {}, optional={"CPU": st.integers(1, 4), "GPU": st.just(1), "x": st.integers(1, 2)}
)
demands = amounts.map(lambda wanted: ResourceSet({name: number * ONE for name, number in wanted.items()}))
#: `spill` needs `soft`, as in NodeAffinitySchedulingStrategy
wheres = st.builds(
    Where,
    kind=st.sampled_from([DEFAULT, DEFAULT, SPREAD, NODE, LABELS]),
    node=st.sampled_from([*(node.hex() for node in IDS), "ab", "0000 0001", "nonsense"]),
    soft=st.booleans(),
    spill=st.booleans(),
    fail=st.booleans(),
    hard=st.sampled_from([(), *SELECTORS]),
    preferred=st.sampled_from([(), *SELECTORS]),
    selectors=st.sampled_from([(), (), (), tuple(SELECTORS[:1]), tuple(SELECTORS)]),
).map(lambda where: where._replace(spill=where.spill and where.soft))
locals_ = st.sampled_from([None, *IDS])
Answer = tuple[NodeId | None, bool, bool]


class Slow:
    """The rules, by looking at all nodes each time. A choice is (node, available, whether it can never be)."""

    def __init__(self, knobs: Knobs) -> None:
        self.knobs = knobs
        self.last = NodeId(b"")

    def choose(self, views: list[NodeView], demand: ResourceSet, where: Where, **options: Any) -> Answer:
        found = []
        for selector in where.selectors or ((),):
            matching = [view for view in views if matches(view.labels, selector)]
            found.append(self.one(matching, demand, where, **options))
            if found[-1][1]:
                return found[-1]
        return next((choice for choice in found if choice[0] is not None), found[0])

    def one(
        self,
        views: list[NodeView],
        demand: ResourceSet,
        where: Where,
        local: NodeId | None,
        chance: float,
        local_bytes: Mapping[NodeId, int],
        roams: bool,
    ) -> Answer:
        views = sorted((view for view in views if view.alive), key=lambda view: view.id)
        fits = [view for view in views if self.has(view.available, demand)]
        feasible = [view for view in views if self.has(view.total, demand)]
        if where.kind == SPREAD:
            ring = fits or feasible
            if not ring:
                return None, False, False
            self.last = next((view.id for view in ring if view.id > self.last), ring[0].id)
            return self.last, bool(fits), False
        if where.kind == LABELS:
            hard = [view for view in feasible if matches(view.labels, where.hard)]
            both = [view for view in hard if where.preferred and matches(view.labels, where.preferred)]
            for some in (both, hard):
                if free := [view for view in some if view in fits]:
                    return free[int(chance * len(free))].id, True, False
            some = both or hard
            return (some[int(chance * len(some))].id if some else None), False, False
        if where.kind == NODE:
            named = [view for view in feasible if view.id.hex() == where.node]
            if not named and not where.soft:
                return None, False, True
            if named:
                if named[0] in fits or (not where.fail and not where.spill):
                    return named[0].id, named[0] in fits, False
                if where.fail:
                    return None, False, True
                elsewhere = self.default(views, fits, feasible, demand, local, chance)
                return elsewhere if elsewhere[1] else (named[0].id, False, False)
        elif roams:
            some = fits or feasible
            return (some[int(chance * len(some))].id if some else None), bool(fits), False
        else:
            near = [view for view in fits if local_bytes.get(view.id)]
            if near:
                best = max(near, key=lambda view: (local_bytes[view.id], view.id == local, view.id))
                return best.id, True, False
        return self.default(views, fits, feasible, demand, local, chance)

    def default(
        self,
        views: list[NodeView],
        fits: list[NodeView],
        feasible: list[NodeView],
        demand: ResourceSet,
        local: NodeId | None,
        chance: float,
    ) -> Answer:
        candidates = fits or feasible
        if fits and self.knobs.avoid_gpu_nodes and not demand.get("GPU"):
            candidates = [view for view in fits if not view.total.get("GPU")] or fits
        if not candidates:
            return None, False, False
        scores = sorted((self.score(view), view.id) for view in candidates)
        if any(node == local and score == scores[0][0] for score, node in scores):
            return local, bool(fits), False
        k = max(1, self.knobs.top_k_absolute, int(len(views) * self.knobs.top_k_fraction))
        return scores[int(chance * min(k, len(scores)))][1], bool(fits), False

    def score(self, view: NodeView) -> float:
        counted = [name for name in ("CPU", "memory", "object_store_memory") if view.total.get(name)]
        used = max((1 - view.available.get(name, 0) / view.total[name] for name in counted), default=0.0)
        return used if used >= self.knobs.spread_threshold else 0.0

    @staticmethod
    def has(available: Mapping[str, int], demand: ResourceSet) -> bool:
        return all(available.get(name, 0) >= units for name, units in demand.items())


class Choices(RuleBasedStateMachine):
    """Nodes join, die, report, and are taken from; in between some of all that is chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.table = NodeTable()
        self.taken: list[tuple[NodeView, ResourceSet, int]] = []
        self.choosers: dict[Knobs, tuple[NodeChooser, Slow]] = {}

    @rule(
        node=st.sampled_from(IDS),
        cpus=st.integers(0, 8),
        free=st.integers(0, 8),
        gpus=st.sampled_from([0, 0, 0, 2]),
        x=st.integers(0, 2),
        zone=st.sampled_from("abc"),
        disk=st.booleans(),
        alive=st.integers(0, 7).map(bool),
    )
    def is_known(
        self, node: NodeId, cpus: int, free: int, gpus: int, x: int, zone: str, disk: bool, alive: bool
    ) -> None:
        total = {"CPU": cpus * ONE, "memory": 8 * ONE, "GPU": gpus * ONE, "x": x * ONE}
        available = total | {"CPU": min(free, cpus) * ONE, "memory": min(free + 2, 8) * ONE}
        labels = {"zone": zone} | ({"disk": ""} if disk else {})
        self.table.put(NodeView(node, total, available, labels, alive=alive))

    @rule(node=st.sampled_from(IDS))
    def dies(self, node: NodeId) -> None:
        self.table.drop(node)

    @precondition(lambda self: len(self.table))
    @rule(data=st.data(), demand=demands, times=st.integers(1, 2))
    def is_taken_from(self, data: Any, demand: ResourceSet, times: int) -> None:
        view = self.table[data.draw(st.sampled_from(sorted(self.table)))]
        if view.fits(ResourceSet({name: times * units for name, units in demand.items()})):
            view.take(demand, times)
            self.taken.append((view, demand, times))

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def is_given_back(self, data: Any) -> None:
        """Also to a view that is in no table any more."""
        view, *what = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        view.give_back(*what)

    @precondition(lambda self: len(self.table))
    @rule(data=st.data(), name=st.sampled_from(["x", "y"]), number=st.integers(0, 3))
    def offers(self, data: Any, name: str, number: int) -> None:
        self.table[data.draw(st.sampled_from(sorted(self.table)))].offer(name, number * ONE)

    @rule(
        demand=demands,
        where=wheres,
        knobs=st.builds(
            Knobs, st.sampled_from([0.0, 0.5]), st.sampled_from([0.0, 0.4]), st.integers(1, 3), st.booleans()
        ),
        local=locals_,
        chance=st.floats(0, 1, exclude_max=True),
        local_bytes=st.dictionaries(st.sampled_from(IDS), st.integers(0, 3), max_size=3),
        roams=st.booleans(),
    )
    def is_chosen(self, demand: ResourceSet, where: Where, knobs: Knobs, **options: Any) -> None:
        quick, slow = self.choosers.setdefault(knobs, (NodeChooser(knobs), Slow(knobs)))
        choice = quick.choose(self.table, demand, where, **options)
        assert (choice.node, choice.available, bool(choice.never)) == slow.choose(
            list(self.table.values()), demand, where, **options
        )

    @precondition(lambda self: len(self.table))
    @rule(data=st.data(), demand=demands, where=wheres)
    def may_run(self, data: Any, demand: ResourceSet, where: Where) -> None:
        view = self.table[data.draw(st.sampled_from(sorted(self.table)))]
        options = {"local": None, "chance": 0.0, "local_bytes": {}, "roams": False}
        beside = [view]
        if where.kind == NODE and not where.spill:  # the node that was named is waited for, if it is there
            beside += [
                each for each in self.table.values() if each.id.hex() == where.node and each is not view
            ]
        chosen = [
            Slow(Knobs()).choose(beside, demand, where._replace(selectors=selectors), **options)[0]
            for selectors in [(each,) for each in where.selectors] or [()]
        ]
        assert may_run(self.table, view, demand, where) is (view.id in chosen)

    @invariant()
    def orders_are_right(self) -> None:
        self.table.check()


TestChoices = Choices.TestCase


def test_a_view_leaves_alone_what_it_was_made_from() -> None:
    total, free = {"CPU": 4 * ONE}, {"CPU": 2 * ONE}
    view = NodeView(IDS[0], total, free)
    view.take(ResourceSet({"CPU": ONE}), 2)
    view.offer("x", ONE)
    assert (view.available, view.total) == ({"CPU": 0, "x": ONE}, {"CPU": 4 * ONE, "x": ONE})
    assert (total, free) == ({"CPU": 4 * ONE}, {"CPU": 2 * ONE})
    assert view.utilization() == 1.0
    view.set_all_free(free)
    assert view.utilization() == 0.5


def test_the_order_asked_for_longest_ago_is_forgotten() -> None:
    table = NodeTable([NodeView(IDS[0], {"CPU": 100 * ONE})])
    kinds = [Kind(ResourceSet({"CPU": number * ONE})) for number in range(ORDERS + 1)]
    first, second = (table.order(kind) for kind in kinds[:2])
    for kind in (*kinds[2:-1], kinds[0], kinds[-1]):
        table.order(kind)
    assert table.order(kinds[0]) is first
    assert table.order(kinds[1]) is not second


@pytest.mark.parametrize("nodes", [100, 10_000])
def test_one_that_has_changed_is_all_that_is_looked_at(nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many nodes there are."""
    table = NodeTable(NodeView(NodeId(n.to_bytes(4, "big")), {"CPU": 2 * ONE}) for n in range(nodes))
    chooser, cpu = NodeChooser(Knobs(top_k_fraction=0.0)), ResourceSet({"CPU": ONE})
    looked_at = []
    fits = NodeView.fits
    monkeypatch.setattr(NodeView, "fits", lambda view, demand: looked_at.append(view) or fits(view, demand))
    for step in range(5):
        choice = chooser.choose(table, cpu)
        assert choice.available
        table[choice.node].take(cpu)  # type: ignore[index]
        assert len(looked_at) == (nodes if not step else 1)
        looked_at.clear()
