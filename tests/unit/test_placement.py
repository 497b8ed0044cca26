"""Where bundles go: never over what is free, by the strategy's rule, and found wherever there is a way at all."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skate._c.resources import MAX_UNITS
from skate._c.resources import UNITS_PER_ONE as ONE
from skate.core.labels import matches, parse_selector
from skate.core.node_table import NodeView
from skate.core.placement import (
    PACK,
    SPREAD,
    STRATEGIES,
    STRICT_PACK,
    STRICT_SPREAD,
    WantedBundle,
    place,
)
from skate.core.resources import ResourceSet
from skate.ids import NodeId

IDS = [NodeId(bytes([0, 0, 0, number])) for number in range(1, 5)]
amounts = st.fixed_dictionaries(
    {}, optional={"CPU": st.integers(1, 3), "GPU": st.integers(1, 2), "x": st.integers(1, 2)}
)


@st.composite
def clusters(draw: st.DrawFn) -> list[NodeView]:
    return [
        NodeView(
            node,
            {
                "CPU": draw(st.integers(0, 4)),
                "GPU": draw(st.integers(0, 2)),
                "x": draw(st.integers(0, 2)),
            },
            labels={"zone": draw(st.sampled_from("ab"))},
            alive=draw(st.integers(0, 6)) > 0,
        )
        for node in IDS[: draw(st.integers(1, 4))]
    ]


@st.composite
def groups(draw: st.DrawFn) -> list[WantedBundle]:
    demands = draw(st.lists(amounts.filter(bool), min_size=1, max_size=4))
    selectors = st.sampled_from([(), (), parse_selector({"zone": "a"})])
    return [WantedBundle(n, ResourceSet(demand), draw(selectors)) for n, demand in enumerate(demands)]


def is_good(
    bundles: list[WantedBundle], strategy: str, nodes: list[NodeView], held: list[NodeId], way: list[NodeId]
) -> bool:
    """Whether a placement keeps to capacity, labels and the strict strategies."""
    by_id = {node.id: node for node in nodes if node.alive}
    if any(node not in by_id for node in way):
        return False
    used: dict[NodeId, Counter[str]] = {node: Counter() for node in by_id}
    for bundle, node in zip(bundles, way, strict=True):
        used[node].update(bundle.demand.units())
        if not matches(by_id[node].labels, bundle.selector):
            return False
    if any(units > by_id[node].available[name] for node in used for name, units in used[node].items()):
        return False
    if strategy == STRICT_PACK:
        return len({*way, *held}) == 1
    if strategy == STRICT_SPREAD:
        return len({*way, *held}) == len(way) + len(held)
    return True


@settings(max_examples=400)
@given(clusters(), groups(), st.sampled_from(STRATEGIES), st.sets(st.sampled_from(IDS), max_size=2))
def test_found_when_brute_force_finds_one(
    nodes: list[NodeView], bundles: list[WantedBundle], strategy: str, holds: set[NodeId]
) -> None:
    held = sorted(holds)[: 1 if strategy == STRICT_PACK else 2]
    before = [dict(node.available) for node in nodes]
    found = place(bundles, strategy, nodes, held=held)
    assert [node.available for node in nodes] == before
    ways = [
        list(way)
        for way in product([node.id for node in nodes], repeat=len(bundles))
        if is_good(bundles, strategy, nodes, held, list(way))
    ]
    if not ways:
        assert found is None
        return
    assert found is not None
    way = [found[bundle.number] for bundle in bundles]
    assert is_good(bundles, strategy, nodes, held, way)
    if strategy == PACK and any(len({*other, *held}) == 1 for other in ways):
        assert len(set(way)) == 1
    if strategy == SPREAD and any(len({*other, *held}) == len(bundles) + len(held) for other in ways):
        assert len({*way, *held}) == len(bundles) + len(held)


def cluster(*cpus: int) -> list[NodeView]:
    return [
        NodeView(node, {"CPU": count * ONE, "memory": 8 * ONE})
        for node, count in zip(IDS, cpus, strict=False)
    ]


def bundles_of(*cpus: int) -> list[WantedBundle]:
    return [WantedBundle(n, ResourceSet({"CPU": count * ONE})) for n, count in enumerate(cpus)]


def test_pack_uses_one_node_if_it_can() -> None:
    assert place(bundles_of(2, 2), PACK, cluster(2, 3, 4)) == {0: IDS[2], 1: IDS[2]}
    assert place(bundles_of(2, 2), PACK, cluster(2, 3)) is not None
    assert place(bundles_of(2, 2), STRICT_PACK, cluster(2, 3)) is None


def test_strict_pack_tries_its_target_first() -> None:
    nodes = cluster(4, 9, 4)
    assert place(bundles_of(2), STRICT_PACK, nodes) == {0: IDS[1]}, "the one that keeps most"
    assert place(bundles_of(2), STRICT_PACK, nodes, target=IDS[2]) == {0: IDS[2]}
    assert place(bundles_of(5), STRICT_PACK, nodes, target=IDS[2]) == {0: IDS[1]}


def test_spread_goes_round_where_nodes_are_few() -> None:
    found = place(bundles_of(1, 1, 1, 1), SPREAD, cluster(4, 4))
    assert found is not None
    assert sorted(Counter(found.values()).values()) == [2, 2]
    assert place(bundles_of(1, 1, 1), STRICT_SPREAD, cluster(4, 4)) is None


def test_bundles_that_come_again_know_of_the_others() -> None:
    nodes = cluster(4, 4, 4)
    assert place(bundles_of(1), PACK, nodes, held=[IDS[1]]) == {0: IDS[1]}
    assert place(bundles_of(1), SPREAD, nodes, held=[IDS[0]]) != {0: IDS[0]}
    assert place(bundles_of(1, 1), STRICT_SPREAD, nodes, held=[IDS[1]]) is not None
    assert place(bundles_of(1, 1, 1), STRICT_SPREAD, nodes, held=[IDS[1]]) is None


def test_the_hardest_goes_first() -> None:
    """By the bundles' order alone, the small one would sit on the only node that can take the large one."""
    nodes = cluster(1, 4)
    nodes[0].set_free("GPU", ONE)
    large_last = [
        WantedBundle(0, ResourceSet({"CPU": ONE})),
        WantedBundle(1, ResourceSet({"CPU": 4 * ONE})),
    ]
    assert place(large_last, PACK, nodes) == {0: IDS[0], 1: IDS[1]}


def test_a_corner_that_only_a_search_gets_out_of() -> None:
    nodes = cluster(6, 5)
    found = place(bundles_of(4, 3, 2, 2), PACK, nodes)
    assert found is not None
    assert is_good(bundles_of(4, 3, 2, 2), PACK, nodes, [], [found[n] for n in range(4)])


def test_a_large_group_that_does_not_fit_is_given_up() -> None:
    assert place(bundles_of(*[3] * 40), PACK, [*cluster(4, 4, 4, 4)]) is None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_without_nodes_there_is_no_place(strategy: str) -> None:
    assert place(bundles_of(1), strategy, []) is None


def test_amounts_beyond_all_bounds() -> None:
    huge = [WantedBundle(n, ResourceSet({"x": MAX_UNITS})) for n in range(2)]
    node = NodeView(IDS[0], {"x": MAX_UNITS})
    assert place(huge, PACK, [node]) is None
    assert place(huge[:1], PACK, [node]) == {0: IDS[0]}
