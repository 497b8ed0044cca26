"""scheduling_strategy and label_selector on a cluster of one node."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import skate
from skate.exceptions import ActorUnschedulableError, TaskUnschedulableError
from skate.util.placement_group import placement_group
from skate.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)

UNKNOWN = "ab" * 28


@pytest.fixture(scope="module", autouse=True)
def _labelled() -> Any:
    skate.init(num_cpus=2, labels={"zone": "eu", "example.com/kind": "spot"})
    yield
    skate.shutdown()


@skate.remote
def where() -> str:
    return skate.get_runtime_context().get_node_id()


@skate.remote(num_cpus=1)
class Actor:
    def where(self) -> str:
        return skate.get_runtime_context().get_node_id()


def here() -> str:
    return skate.get_runtime_context().get_node_id()


def both(**options: Any) -> list[Any]:
    """A task and an actor with these options."""
    return [where.options(**options).remote(), Actor.options(**options).remote().where.remote()]


class TestThatRun:
    @pytest.mark.parametrize(
        "options",
        [
            {"scheduling_strategy": "DEFAULT"},
            {"scheduling_strategy": "SPREAD"},
            {"scheduling_strategy": None},
            {"scheduling_strategy": NodeAffinitySchedulingStrategy(UNKNOWN, soft=True)},
            {"scheduling_strategy": NodeLabelSchedulingStrategy({"zone": In("eu", "us")})},
            {"scheduling_strategy": NodeLabelSchedulingStrategy({"zone": NotIn("us")})},
            {"scheduling_strategy": NodeLabelSchedulingStrategy({"zone": Exists(), "gpu": DoesNotExist()})},
            {"scheduling_strategy": NodeLabelSchedulingStrategy({}, soft={"zone": In("mars")})},
            {"label_selector": {"zone": "eu"}},
            {"label_selector": {"zone": "!us", "example.com/kind": "in(spot, cheap)"}},
            {"label_selector": {"zone": "!in(us, asia)"}},
            {"label_selector": {"zone": "us"}, "fallback_strategy": [{"label_selector": {"zone": "eu"}}]},
            {"scheduling_strategy": PlacementGroupSchedulingStrategy(None)},
            {"scheduling_strategy": PlacementGroupSchedulingStrategy("default", -1, True)},
        ],
    )
    def test_here(self, options: dict[str, Any]) -> None:
        assert skate.get(both(**options), timeout=30) == [here()] * 2

    @pytest.mark.parametrize("soft", [False, True])
    def test_affinity_to_this_node(self, soft: bool) -> None:
        strategy = NodeAffinitySchedulingStrategy(node_id=here(), soft=soft)
        assert skate.get(both(scheduling_strategy=strategy), timeout=30) == [here()] * 2
        (node,) = skate.nodes()
        assert node["Labels"]["ray.io/node-id"] == node["NodeID"] == here()
        assert node["Labels"]["zone"] == "eu"

    def test_it_waits_for_its_node(self) -> None:
        group = placement_group([{"CPU": 2}])
        assert group.wait(10)
        waiting = both(scheduling_strategy=NodeAffinitySchedulingStrategy(here(), False))
        assert skate.wait(waiting, num_returns=1, timeout=0.1)[0] == []
        skate.util.remove_placement_group(group)
        assert skate.get(waiting, timeout=30) == [here()] * 2


class TestThatCannot:
    @pytest.mark.parametrize("soft", [False, True])
    def test_unknown_and_too_small_nodes(self, soft: bool) -> None:
        strategies = [
            (UNKNOWN, {}, {}),
            (here(), {"resources": {"nothing has this": 1}}, {}),
        ]
        for node, options, _ in strategies:
            strategy = NodeAffinitySchedulingStrategy(node, soft)
            task, actor = both(scheduling_strategy=strategy, **options)
            if soft:
                if not options:
                    assert skate.get([task, actor], timeout=30) == [here()] * 2
                continue
            with pytest.raises(TaskUnschedulableError, match="doesn't exist any more or is infeasible"):
                skate.get(task, timeout=30)
            with pytest.raises(ActorUnschedulableError, match="soft=True lets it run elsewhere"):
                skate.get(actor, timeout=30)

    def test_all_that_wait_fail(self) -> None:
        task = where.options(scheduling_strategy=NodeAffinitySchedulingStrategy(UNKNOWN, False))
        for ref in [task.remote() for _ in range(20)]:
            with pytest.raises(TaskUnschedulableError):
                skate.get(ref, timeout=30)

    def test_fail_on_unavailable(self) -> None:
        group = placement_group([{"CPU": 2}])
        assert group.wait(10)
        strategy = NodeAffinitySchedulingStrategy(here(), False, _fail_on_unavailable=True)
        with pytest.raises(TaskUnschedulableError, match="has no room for it now"):
            skate.get(where.options(scheduling_strategy=strategy).remote(), timeout=30)
        skate.util.remove_placement_group(group)

    @pytest.mark.parametrize(
        "options",
        [
            {"scheduling_strategy": NodeLabelSchedulingStrategy({"zone": In("us")})},
            {"label_selector": {"zone": "us"}},
        ],
    )
    def test_labels_that_no_node_has_are_waited_for_with_a_warning(
        self, options: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        task = where.options(name=str(options), **options).remote()
        assert skate.wait([task], timeout=0.3)[0] == []
        assert "labels" in caplog.text
        assert "'zone': 'eu'" in caplog.text


class TestBadOnes:
    @pytest.mark.parametrize("node", ["zz", "", "abc", "00" * 4, b""])
    def test_node_ids(self, node: Any) -> None:
        with pytest.raises(ValueError, match="Invalid node_id"):
            NodeAffinitySchedulingStrategy(node, soft=False)

    def test_affinity_flags(self) -> None:
        with pytest.raises(ValueError, match="needs soft=True"):
            NodeAffinitySchedulingStrategy(UNKNOWN, False, _spill_on_unavailable=True)
        with pytest.raises(ValueError, match="needs soft=False"):
            NodeAffinitySchedulingStrategy(UNKNOWN, True, _fail_on_unavailable=True)
        assert NodeAffinitySchedulingStrategy(b"\x01\x02\x03\x04", True).node_id == "01020304"  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("hard", "soft", "message"),
        [
            ({}, None, "cannot both be empty"),
            (None, {}, "cannot both be empty"),
            ("zone", None, "hard must be a dict"),
            ({1: In("a")}, None, "a label in hard must be a str, got 1"),
            ({"zone": "eu"}, None, r"hard\['zone'\] must be an In, NotIn, Exists or DoesNotExist, got 'eu'"),
            ({"zone": In("eu")}, {"a": 3}, r"soft\['a'\]"),
        ],
    )
    def test_labels(self, hard: Any, soft: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            NodeLabelSchedulingStrategy(hard, soft=soft)

    def test_values(self) -> None:
        for operator in (In, NotIn):
            with pytest.raises(ValueError, match=f"{operator.__name__} takes at least one value"):
                operator()
            with pytest.raises(ValueError, match=f"the values of {operator.__name__} must be str, got 3"):
                operator("a", 3)

    def test_no_group(self) -> None:
        with pytest.raises(
            TypeError, match="placement_group must be a PlacementGroup, \"default\" or None, got 'pg'"
        ):
            PlacementGroupSchedulingStrategy("pg")  # type: ignore[arg-type]

    def test_labels_of_a_node(self) -> None:
        for bad in ({"zone": "a b"}, {"z z": "a"}, {"zone": "in(a)"}, {"zone": "!a"}):
            with pytest.raises(ValueError, match="label"):
                skate.options.check_labels(bad)


def test_strategies_compare_and_travel() -> None:
    for strategy in (
        NodeAffinitySchedulingStrategy(UNKNOWN, True),
        NodeLabelSchedulingStrategy({"zone": In("eu")}, soft={"gpu": Exists()}),
        PlacementGroupSchedulingStrategy(None),
    ):
        again = pickle.loads(pickle.dumps(strategy))
        assert again == strategy
        assert hash(again) == hash(strategy)
        assert type(strategy).__name__ in repr(strategy)
    assert In("a") != In("b")
    assert In("a") != NotIn("a")


def test_modules_are_found_as_in_ray() -> None:
    assert skate.util.scheduling_strategies.NodeAffinitySchedulingStrategy is NodeAffinitySchedulingStrategy
    assert callable(skate.util.placement_group)
    for name in ("get_placement_group", "placement_group_table", "remove_placement_group"):
        assert callable(getattr(skate.util, name))
