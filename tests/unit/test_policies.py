"""Which node is chosen: each policy against a slow statement of its rule, and by example."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skate._c.resources import UNITS_PER_ONE as ONE
from skate.config import scheduler_knobs
from skate.core.labels import DOES_NOT_EXIST, EXISTS, IN, NOT_IN, matches, parse_selector
from skate.core.node_table import NodeTable, NodeView
from skate.core.policies import (
    LABELS,
    NODE,
    SPREAD,
    Knobs,
    NodeChooser,
    Where,
    where_from,
)
from skate.core.resources import ResourceSet
from skate.ids import NodeId

IDS = [NodeId(bytes([0, 0, 0, number])) for number in range(1, 6)]


@st.composite
def node_views(draw: st.DrawFn, node: NodeId) -> NodeView:
    total = {
        "CPU": draw(st.integers(0, 4)) * ONE,
        "GPU": draw(st.sampled_from([0, 0, 2])) * ONE,
        "memory": 8 * ONE,
        "x": draw(st.integers(0, 2)) * ONE,
    }
    available = {name: draw(st.integers(0, units // ONE)) * ONE for name, units in total.items()}
    labels = {"zone": draw(st.sampled_from("abc"))} if draw(st.booleans()) else {}
    return NodeView(node, total, available, labels, alive=draw(st.integers(0, 5)) > 0)


@st.composite
def clusters(draw: st.DrawFn) -> list[NodeView]:
    return [draw(node_views(node)) for node in IDS[: draw(st.integers(0, 5))]]


demands = st.fixed_dictionaries(
    {"CPU": st.integers(0, 4)}, optional={"GPU": st.integers(0, 2), "x": st.integers(0, 3)}
).map(lambda amounts: ResourceSet({name: amount * ONE for name, amount in amounts.items()}))
chances = st.floats(0, 1, exclude_max=True)
locals_ = st.sampled_from([None, *IDS])


def has(amounts: dict[str, int], demand: ResourceSet) -> bool:
    return all(amounts.get(name, 0) >= units for name, units in demand.items())


def feasible(nodes: list[NodeView], demand: ResourceSet) -> set[NodeId]:
    return {node.id for node in nodes if node.alive and has(node.total, demand)}


def available(nodes: list[NodeView], demand: ResourceSet) -> set[NodeId]:
    return {node.id for node in nodes if node.alive and has(node.available, demand)}


def score(node: NodeView, threshold: float) -> float:
    used = [1 - node.available[name] / node.total[name] for name in ("CPU", "memory") if node.total.get(name)]
    return max(used) if max(used) >= threshold else 0.0


@given(clusters(), demands, locals_, chances, st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 6))
def test_default_takes_one_of_the_k_best(
    nodes: list[NodeView],
    demand: ResourceSet,
    local: NodeId | None,
    chance: float,
    threshold: float,
    k: int,
) -> None:
    knobs = Knobs(threshold, top_k_fraction=0.0, top_k_absolute=k, avoid_gpu_nodes=False)
    choice = NodeChooser(knobs).choose(NodeTable(nodes), demand, local=local, chance=chance)
    candidates = available(nodes, demand) or feasible(nodes, demand)
    assert choice.available is bool(available(nodes, demand))
    assert not choice.never
    if not candidates:
        assert choice.node is None
        return
    scores = {node.id: score(node, threshold) for node in nodes if node.id in candidates}
    if local in candidates and scores[local] == min(scores.values()):
        assert choice.node == local
    else:
        assert choice.node in sorted(candidates, key=lambda node: (scores[node], node))[:k]


@given(clusters(), demands, locals_, chances)
def test_what_needs_no_gpu_avoids_nodes_that_have_some(
    nodes: list[NodeView], demand: ResourceSet, local: NodeId | None, chance: float
) -> None:
    choice = NodeChooser().choose(NodeTable(nodes), demand, local=local, chance=chance)
    gpus = {node.id for node in nodes if node.total["GPU"]}
    if not demand.get("GPU") and available(nodes, demand) - gpus:
        assert choice.node in available(nodes, demand) - gpus


@given(clusters(), demands, chances)
def test_no_policy_chooses_what_is_not_feasible(
    nodes: list[NodeView], demand: ResourceSet, chance: float
) -> None:
    wheres = [Where(), Where(SPREAD), Where(NODE, IDS[0].hex(), soft=True), Where(LABELS, preferred=ZONE_A)]
    for where in wheres:
        choice = NodeChooser().choose(NodeTable(nodes), demand, where, local=IDS[0], chance=chance)
        if choice.node is None:
            assert not feasible(nodes, demand)
        else:
            assert choice.node in (available if choice.available else feasible)(nodes, demand)


def node(number: int, cpus: float, free: float | None = None, **labels: str) -> NodeView:
    return NodeView(
        IDS[number], {"CPU": int(cpus * ONE)}, {"CPU": int((cpus if free is None else free) * ONE)}, labels
    )


CPU = ResourceSet({"CPU": ONE})
ZONE_A = (("zone", IN, ("a",)),)


def test_packs_up_to_the_threshold_then_takes_the_least_used() -> None:
    chooser = NodeChooser()
    here, there = node(0, 10, 6), node(1, 10, 10)
    assert (
        chooser.choose(NodeTable([here, there]), CPU, local=IDS[0]).node == IDS[0]
    )  # 40% used: counts as idle
    here = node(0, 10, 5)
    assert chooser.choose(NodeTable([here, there]), CPU, local=IDS[0]).node == IDS[1]
    assert chooser.choose(NodeTable([here, node(1, 10, 4)]), CPU, local=IDS[1]).node == IDS[0]


def test_k_is_a_share_of_all_nodes_or_a_number() -> None:
    nodes = [node(number, 10) for number in range(5)]
    chances_ = [number / 100 for number in range(100)]

    def chosen(knobs: Knobs) -> set[NodeId]:
        return {NodeChooser(knobs).choose(NodeTable(nodes), CPU, chance=chance).node for chance in chances_}

    assert chosen(Knobs()) == {IDS[0]}  # 20% of five
    assert chosen(Knobs(top_k_fraction=0.6)) == set(IDS[:3])
    assert chosen(Knobs(top_k_fraction=0.6, top_k_absolute=4)) == set(IDS[:4])
    assert chosen(Knobs(top_k_absolute=9)) == set(IDS)


def test_nodes_with_room_go_before_better_ones_without() -> None:
    choice = NodeChooser().choose(NodeTable([node(0, 1, 0), node(1, 10, 1)]), CPU, local=IDS[0])
    assert choice == (IDS[1], True, "")
    full = [node(0, 1, 0), node(1, 2, 0)]
    assert NodeChooser().choose(NodeTable(full), CPU, local=IDS[1]) == (IDS[1], False, "")
    assert NodeChooser().choose(NodeTable(full), ResourceSet({"CPU": 3 * ONE}), local=IDS[1]).node is None


@given(clusters(), demands, st.integers(1, 12))
def test_spread_takes_turns(nodes: list[NodeView], demand: ResourceSet, rounds: int) -> None:
    chooser = NodeChooser()
    candidates = available(nodes, demand) or feasible(nodes, demand)
    chosen = Counter(chooser.choose(NodeTable(nodes), demand, Where(SPREAD)).node for _ in range(rounds))
    if not candidates:
        assert set(chosen) == {None}
        return
    counts = [chosen[node] for node in candidates]
    assert sum(counts) == rounds
    assert max(counts) - min(counts) <= 1


def test_affinity() -> None:
    chooser = NodeChooser()
    nodes = [node(0, 4), node(1, 4, 0)]
    there = Where(NODE, IDS[1].hex())
    assert chooser.choose(NodeTable(nodes), CPU, there) == (IDS[1], False, ""), "it waits for its node"
    assert chooser.choose(NodeTable(nodes), CPU, there._replace(soft=True)) == (IDS[1], False, "")
    assert chooser.choose(NodeTable(nodes), CPU, there._replace(soft=True, spill=True)) == (IDS[0], True, "")
    assert "has no room" in chooser.choose(NodeTable(nodes), CPU, there._replace(fail=True)).never
    gone = Where(NODE, IDS[2].hex())
    assert "doesn't exist any more" in chooser.choose(NodeTable(nodes), CPU, gone).never
    assert chooser.choose(NodeTable(nodes), CPU, gone._replace(soft=True)).node == IDS[0]
    nodes[1].alive = False
    assert chooser.choose(NodeTable(nodes), CPU, there).never
    too_much = ResourceSet({"CPU": 5 * ONE})
    assert chooser.choose(NodeTable(nodes), too_much, Where(NODE, IDS[0].hex())).never
    assert chooser.choose(NodeTable(nodes), too_much, Where(NODE, IDS[0].hex(), soft=True)) == (
        None,
        False,
        "",
    )


def test_labels() -> None:
    chooser = NodeChooser()
    nodes = [node(0, 4, zone="a"), node(1, 4, 0, zone="a", gpu="yes"), node(2, 4, zone="b")]
    where = Where(LABELS, hard=ZONE_A)
    assert chooser.choose(NodeTable(nodes), CPU, where).node == IDS[0]
    assert chooser.choose(NodeTable(nodes), CPU, where._replace(preferred=(("gpu", EXISTS, ()),))) == (
        IDS[0],
        True,
        "",
    )
    nodes[0].set_free("CPU", 0)
    assert chooser.choose(NodeTable(nodes), CPU, where._replace(preferred=(("gpu", EXISTS, ()),))) == (
        IDS[1],
        False,
        "",
    )
    assert chooser.choose(NodeTable(nodes), CPU, Where(LABELS, hard=(("zone", IN, ("c",)),))) == (
        None,
        False,
        "",
    )


def test_selectors_are_tried_in_turn() -> None:
    chooser = NodeChooser()
    nodes = [node(0, 4, 0, zone="a"), node(1, 4, zone="b"), node(2, 4, zone="c")]
    select = [parse_selector({"zone": wanted}) for wanted in ("a", "b", "nowhere")]
    assert chooser.choose(NodeTable(nodes), CPU, Where(selectors=(select[0],))) == (IDS[0], False, "")
    assert chooser.choose(NodeTable(nodes), CPU, Where(selectors=(select[0], select[1]))) == (
        IDS[1],
        True,
        "",
    )
    assert chooser.choose(NodeTable(nodes), CPU, Where(selectors=(select[2], select[0]))) == (
        IDS[0],
        False,
        "",
    )
    assert chooser.choose(NodeTable(nodes), CPU, Where(selectors=(select[2],))) == (None, False, "")
    assert Where(selectors=(select[0],)).chooses
    assert not Where(SPREAD).chooses


@given(clusters(), demands, st.dictionaries(st.sampled_from(IDS), st.integers(0, 5)))
def test_locality_goes_by_bytes(
    nodes: list[NodeView], demand: ResourceSet, local_bytes: dict[NodeId, int]
) -> None:
    choice = NodeChooser().choose(NodeTable(nodes), demand, local_bytes=local_bytes)
    near = {node for node in available(nodes, demand) if local_bytes.get(node)}
    if near:
        assert choice.available
        assert local_bytes[choice.node] == max(local_bytes[node] for node in near)
    else:
        assert choice == NodeChooser().choose(NodeTable(nodes), demand)


def test_actors_that_hold_nothing_go_anywhere() -> None:
    nodes = [node(number, 4, 0) for number in range(4)]
    nodes[3].alive = False
    nothing = ResourceSet()
    chosen = {
        NodeChooser().choose(NodeTable(nodes), nothing, local=IDS[0], chance=n / 30, roams=True).node
        for n in range(30)
    }
    assert chosen == set(IDS[:3])
    assert NodeChooser().choose(NodeTable(nodes), nothing, local=IDS[1], chance=0.9).node == IDS[1]
    waits = [
        NodeChooser().choose(
            NodeTable(nodes), ResourceSet({"CPU": 10_000}), local=IDS[0], chance=n / 30, roams=True
        )
        for n in range(30)
    ]
    assert {(choice.node, choice.available) for choice in waits} == {(name, False) for name in IDS[:3]}


@pytest.mark.parametrize(
    ("wanted", "labels", "holds"),
    [
        ("a", {"zone": "a"}, True),
        ("a", {"zone": "b"}, False),
        ("a", {}, False),
        ("!a", {"zone": "b"}, True),
        ("!a", {"zone": "a"}, False),
        ("!a", {}, True),
        ("in(a, b)", {"zone": "b"}, True),
        ("in(a,b)", {"zone": "c"}, False),
        ("!in(a,b)", {"zone": "c"}, True),
        ("!in(a,b)", {}, True),
        ("!in(a, b)", {"zone": "b"}, False),
        ("", {"zone": ""}, True),
        ("", {}, False),
    ],
)
def test_selectors(wanted: str, labels: dict[str, str], holds: bool) -> None:
    assert matches(labels, parse_selector({"zone": wanted})) is holds


def test_operators() -> None:
    assert matches({"a": "1"}, [("a", EXISTS, ()), ("b", DOES_NOT_EXIST, ()), ("b", NOT_IN, ("1",))])
    assert not matches({"a": "1"}, [("a", DOES_NOT_EXIST, ())])
    assert not matches({}, [("a", EXISTS, ())])
    with pytest.raises(ValueError, match="'like'"):
        matches({}, [("a", "like", ())])


def test_where_travels_as_a_tuple() -> None:
    where = Where(LABELS, hard=ZONE_A, selectors=(ZONE_A,), captures=True)
    assert where_from(tuple(where)) == where
    assert where_from(None) == Where()


def test_the_knobs_in_the_environment() -> None:
    assert Knobs(**scheduler_knobs({})) == Knobs(0.5, 0.2, 1, True)
    environ = {
        "SKATE_scheduler_spread_threshold": "0.7",
        "RAY_scheduler_spread_threshold": "0.1",
        "RAY_scheduler_top_k_absolute": "3",
        "SKATE_scheduler_avoid_gpu_nodes": "0",
    }
    assert Knobs(**scheduler_knobs(environ)) == Knobs(0.7, 0.2, 3, False)
    with pytest.raises(ValueError, match="SKATE_scheduler_top_k_fraction must be a number, got 'most'"):
        scheduler_knobs({"SKATE_scheduler_top_k_fraction": "most"})
