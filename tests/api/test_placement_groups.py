"""Placement groups through the API: made, waited for, used, removed; what bad ones are told."""

from __future__ import annotations

import copy
import os
import pickle
import time
from typing import Any

import pytest
import skate
from skate.exceptions import (
    ActorDiedError,
    ActorUnschedulableError,
    GetTimeoutError,
    SkateSystemError,
    TaskPlacementGroupRemoved,
    WorkerCrashedError,
)
from skate.util.placement_group import (
    PlacementGroup,
    PlacementGroupID,
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy as InGroup

from .rendezvous import Gate, Tally, eventually

pytestmark = pytest.mark.usefixtures("cpu2")


@pytest.fixture(autouse=True)
def _groups_end() -> Any:
    yield
    for group_id, facts in placement_group_table().items():
        if facts["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group_id)))


@skate.remote(num_cpus=1)
def held() -> dict[str, float]:
    return skate.get_runtime_context().get_assigned_resources()


@skate.remote(num_cpus=1, max_retries=0)
def waits(gate: Gate, begun: Tally | None = None) -> None:
    if begun is not None:
        begun.add()
    gate.wait()


@skate.remote(num_cpus=1)
class Actor:
    def group(self) -> str | None:
        return skate.get_runtime_context().get_placement_group_id()

    def pid(self) -> int:
        return os.getpid()


def state(group: PlacementGroup) -> str:
    return str(placement_group_table(group)["state"])


def cpus() -> float:
    return skate.available_resources().get("CPU", 0.0)


class TestLife:
    def test_reserves_and_gives_back(self) -> None:
        group = placement_group([{"CPU": 1}])
        assert group.wait(10) is True
        assert cpus() == 1
        remove_placement_group(group)
        eventually(lambda: cpus() == 2)
        assert state(group) == "REMOVED"
        assert not [name for name in skate.available_resources() if "_group_" in name]

    def test_ready_is_a_ref_of_the_handle(self) -> None:
        group = placement_group([{"CPU": 1}])
        assert skate.get(group.ready(), timeout=10) == group
        ready, rest = skate.wait([group.ready()], timeout=10)
        assert (len(ready), rest) == (1, [])
        assert skate.get([group.ready(), group.ready()]) == [group, group]

    def test_all_or_nothing(self) -> None:
        group = placement_group([{"CPU": 1}, {"CPU": 2}])
        assert group.wait(0.05) is False
        with pytest.raises(GetTimeoutError):
            skate.get(group.ready(), timeout=0.05)
        assert cpus() == 2
        assert state(group) == "PENDING"
        assert placement_group_table(group)["stats"]["scheduling_state"] == "INFEASIBLE"

    def test_the_next_in_line_is_placed_when_there_is_room(self) -> None:
        first, second = placement_group([{"CPU": 2}]), placement_group([{"CPU": 1}])
        assert first.wait(10)
        assert not second.wait(0.05)
        ready = second.ready()
        remove_placement_group(first)
        assert skate.get(ready, timeout=10) == second

    def test_idle_leases_and_running_tasks_make_room(self, gate: Gate) -> None:
        running = waits.remote(gate)
        skate.get(held.remote())
        group = placement_group([{"CPU": 2}])
        assert not group.wait(0.05)
        gate.open()
        assert group.wait(10)
        skate.get(running)

    def test_tasks_that_keep_coming_do_not_starve_a_group(self) -> None:
        @skate.remote(num_cpus=1)
        def short() -> None:
            time.sleep(0.02)

        running = [short.remote() for _ in range(400)]
        group = placement_group([{"CPU": 2}])
        assert group.wait(5), "8 s of tasks are in its way"
        remove_placement_group(group)
        skate.get(running)

    def test_removing_twice_or_what_is_unknown_does_nothing(self) -> None:
        group = placement_group([{"CPU": 1}])
        for _ in range(2):
            remove_placement_group(group)
        remove_placement_group(PlacementGroup.empty())
        with pytest.raises(TypeError, match="takes a PlacementGroup, got None"):
            remove_placement_group(None)  # type: ignore[arg-type]

    def test_waiting_for_a_removed_one(self) -> None:
        group = placement_group([{"CPU": 5}])
        ready = group.ready()
        remove_placement_group(group)
        for ref in (ready, group.ready()):
            with pytest.raises(TaskPlacementGroupRemoved, match=group.id.hex()):
                skate.get(ref, timeout=10)
        with pytest.raises(TaskPlacementGroupRemoved):
            group.wait(10)

    def test_many(self) -> None:
        groups = [placement_group([{"CPU": 0.01}]) for _ in range(100)]
        assert all(group.wait(10) for group in groups)
        for group in groups:
            remove_placement_group(group)
        eventually(lambda: cpus() == 2)


class TestHandles:
    def test_equal_after_copying_pickling_and_travelling(self) -> None:
        group = placement_group([{"CPU": 1}])

        @skate.remote(num_cpus=0)
        def there(other: PlacementGroup) -> tuple[PlacementGroup, bool, list[dict[str, float]]]:
            return other, other.wait(10), other.bundle_specs

        back, ready, bundles = skate.get(there.remote(group))
        assert ready
        assert bundles == [{"CPU": 1.0}]
        for other in (back, copy.copy(group), copy.deepcopy(group), pickle.loads(pickle.dumps(group))):
            assert other == group
            assert hash(other) == hash(group)
            assert other.id.hex() == group.id.hex()
        assert group != placement_group([{"CPU": 1}])

    def test_bundles(self) -> None:
        group = placement_group([{"CPU": 0.5}, {"CPU": 1, "GPU": 0}])
        assert group.bundle_specs == [{"CPU": 0.5}, {"CPU": 1.0}]
        assert group.bundle_count == 2
        group.bundle_cache = None
        assert group.bundle_specs == [{"CPU": 0.5}, {"CPU": 1.0}], "asked of the node"

    def test_empty(self) -> None:
        group = PlacementGroup.empty()
        assert group.is_empty
        assert group.bundle_count == 0
        assert skate.get(group.ready()) == group
        assert group.wait(0) is False
        assert not placement_group([{"CPU": 1}]).is_empty

    def test_a_task_can_make_one_and_pass_it_on(self) -> None:
        @skate.remote(num_cpus=0)
        def make() -> PlacementGroup:
            made = placement_group([{"CPU": 1}], name="made by a task")
            skate.get(made.ready())
            return made

        group = skate.get(make.remote())
        assert group.wait(10)
        assert get_placement_group("made by a task") == group
        assert skate.get(held.options(scheduling_strategy=InGroup(group)).remote()) == {"CPU": 1.0}

    def test_a_task_can_remove_it(self) -> None:
        group = placement_group([{"CPU": 1}])
        assert group.wait(10)

        @skate.remote(num_cpus=0)
        def remove(other: PlacementGroup) -> None:
            remove_placement_group(other)

        skate.get(remove.remote(group))
        eventually(lambda: state(group) == "REMOVED")
        with pytest.raises(TaskPlacementGroupRemoved):
            skate.get(group.ready(), timeout=10)


class TestNames:
    def test_found_by_name(self) -> None:
        group = placement_group([{"CPU": 1}], name="a name")
        found = get_placement_group("a name")
        assert found == group
        assert found.bundle_specs == [{"CPU": 1.0}]
        with pytest.raises(ValueError, match="Failed to look up placement group with name: another"):
            get_placement_group("another")
        for bad in ("", None, 3):
            with pytest.raises(ValueError, match="takes a name"):
                get_placement_group(bad)  # type: ignore[arg-type]

    def test_a_name_is_taken_until_its_group_is_removed(self) -> None:
        group = placement_group([{"CPU": 1}], name="taken")
        with pytest.raises(SkateSystemError, match="'taken' already exists"):
            placement_group([{"CPU": 1}], name="taken")
        remove_placement_group(group)
        with pytest.raises(ValueError, match="Failed to look up"):
            get_placement_group("taken")
        assert placement_group([{"CPU": 1}], name="taken").wait(10)

    def test_tables(self) -> None:
        group = placement_group([{"CPU": 1}, {"CPU": 0.5}], name="listed", strategy="SPREAD")
        assert group.wait(10)
        facts = placement_group_table(group)
        assert facts["placement_group_id"] == group.id.hex()
        assert facts["bundles"] == {0: {"CPU": 1.0}, 1: {"CPU": 0.5}}
        node = skate.get_runtime_context().get_node_id()
        assert facts["bundles_to_node_id"] == {0: node, 1: node}
        assert (facts["name"], facts["strategy"], facts["state"]) == ("listed", "SPREAD", "CREATED")
        assert facts["stats"]["scheduling_state"] == "FINISHED"
        assert facts["stats"]["scheduling_attempt"] == 1
        assert placement_group_table()[group.id.hex()] == facts
        assert placement_group_table(PlacementGroup.empty()) == {}


class TestUse:
    def test_tasks_and_actors_run_in_it(self) -> None:
        group = placement_group([{"CPU": 2}])
        inside = InGroup(group)
        assert skate.get(held.options(scheduling_strategy=inside).remote()) == {"CPU": 1.0}
        actor = Actor.options(scheduling_strategy=inside).remote()
        assert skate.get(actor.group.remote()) == group.id.hex()
        assert skate.get(held.options(scheduling_strategy=InGroup(group, 0)).remote()) == {"CPU": 1.0}
        assert skate.get(held.options(placement_group=group).remote()) == {"CPU": 1.0}

    def test_what_waits_for_a_group_begins_with_it(self) -> None:
        before = placement_group([{"CPU": 2}])
        group = placement_group([{"CPU": 1}])
        task = held.options(scheduling_strategy=InGroup(group)).remote()
        actor = Actor.options(scheduling_strategy=InGroup(group)).remote()
        assert skate.wait([task], timeout=0.1)[0] == []
        remove_placement_group(before)
        assert skate.get(task, timeout=10) == {"CPU": 1.0}
        assert skate.get(actor.group.remote(), timeout=10) == group.id.hex()

    def test_the_rest_of_the_node_is_for_others(self, gate: Gate) -> None:
        group = placement_group([{"CPU": 1}])
        assert group.wait(10)
        outside = waits.remote(gate)
        eventually(lambda: cpus() == 0)
        inside = held.options(scheduling_strategy=InGroup(group)).remote()
        assert skate.get(inside, timeout=10) == {"CPU": 1.0}
        second = waits.remote(gate)
        assert skate.wait([second], timeout=0.1)[0] == [], "no task takes the group's CPU"
        gate.open()
        skate.get([outside, second])

    def test_a_blocked_task_lends_its_cpu_inside_the_group(self) -> None:
        group = placement_group([{"CPU": 1}])

        @skate.remote(num_cpus=1)
        def chain(depth: int) -> int:
            return 0 if depth == 0 else 1 + skate.get(chain.remote(depth - 1))

        strategy = InGroup(group, placement_group_capture_child_tasks=True)
        assert skate.get(chain.options(scheduling_strategy=strategy).remote(5), timeout=30) == 5

    def test_default_actors_need_a_cpu_and_hold_none(self) -> None:
        group = placement_group([{"CPU": 1}])

        @skate.remote
        class Plain:
            def held(self) -> dict[str, float]:
                return skate.get_runtime_context().get_assigned_resources()

        actors = [Plain.options(scheduling_strategy=InGroup(group)).remote() for _ in range(3)]
        assert skate.get([actor.held.remote() for actor in actors], timeout=30) == [{}] * 3
        with pytest.raises(ValueError, match=r"requires 1\.0 CPU for creation"):
            Plain.options(scheduling_strategy=InGroup(placement_group([{"x": 1}]))).remote()

    def test_without_resources_too(self) -> None:
        group = placement_group([{"CPU": 1}])
        task = held.options(num_cpus=0, scheduling_strategy=InGroup(group, 0))
        assert skate.get(task.remote(), timeout=10) == {}

    def test_what_fits_no_bundle(self) -> None:
        group = placement_group([{"CPU": 1}, {"CPU": 0.5}])
        with pytest.raises(ValueError, match=r"resource request \{'CPU': 1.5\} cannot fit into any bundles"):
            held.options(num_cpus=1.5, scheduling_strategy=InGroup(group)).remote()
        with pytest.raises(ValueError, match="cannot fit into any bundles"):
            held.options(scheduling_strategy=InGroup(group, 1)).remote()

    @pytest.mark.parametrize("index", [1, 7, -2])
    def test_bundles_that_there_are_not(self, index: int) -> None:
        group = placement_group([{"CPU": 1}])
        for remote in (held, Actor):
            with pytest.raises(ValueError, match=f"bundle index {index} is invalid. The group has 1 bundles"):
                remote.options(scheduling_strategy=InGroup(group, index)).remote()
        with pytest.raises(ValueError, match="must be -1, got 1"):
            held.options(scheduling_strategy=InGroup(None, 1)).remote()


class TestRemoval:
    def test_what_runs_is_killed(self, gate: Gate, tally: Tally) -> None:
        group = placement_group([{"CPU": 2}])
        inside = InGroup(group)
        task = waits.options(scheduling_strategy=inside).remote(gate, tally)
        actor = Actor.options(scheduling_strategy=inside, max_restarts=5).remote()
        skate.get(actor.group.remote())
        eventually(lambda: tally.count)
        remove_placement_group(group)
        with pytest.raises(WorkerCrashedError, match=r"its placement group [0-9a-f]+ was removed"):
            skate.get(task, timeout=10)
        with pytest.raises(ActorDiedError, match="its placement group was removed"):
            skate.get(actor.group.remote(), timeout=10)
        eventually(lambda: cpus() == 2)

    def test_what_waits_fails(self, gate: Gate, tally: Tally) -> None:
        group = placement_group([{"CPU": 1}])
        inside = InGroup(group)
        running = waits.options(scheduling_strategy=inside).remote(gate, tally)
        eventually(lambda: tally.count)
        task = held.options(scheduling_strategy=inside).remote()
        actor = Actor.options(scheduling_strategy=inside).remote()
        pid = actor.pid.remote()
        remove_placement_group(group)
        with pytest.raises(TaskPlacementGroupRemoved, match="was removed"):
            skate.get(task, timeout=10)
        with pytest.raises(ActorUnschedulableError, match="was removed"):
            skate.get(pid, timeout=10)
        with pytest.raises(WorkerCrashedError):
            skate.get(running, timeout=10)

    def test_a_retry_finds_no_group(self, gate: Gate, tally: Tally) -> None:
        group = placement_group([{"CPU": 1}])
        task = waits.options(scheduling_strategy=InGroup(group), max_retries=3).remote(gate, tally)
        eventually(lambda: tally.count)
        remove_placement_group(group)
        with pytest.raises(TaskPlacementGroupRemoved):
            skate.get(task, timeout=10)

    def test_what_comes_later_fails_at_once(self) -> None:
        group = placement_group([{"CPU": 1}])
        remove_placement_group(group)
        inside = InGroup(group)
        with pytest.raises(TaskPlacementGroupRemoved):
            skate.get(held.options(scheduling_strategy=inside).remote(), timeout=10)
        with pytest.raises(ActorUnschedulableError):
            skate.get(Actor.options(scheduling_strategy=inside).remote().pid.remote(), timeout=10)

    def test_pending_ones_too(self) -> None:
        group = placement_group([{"CPU": 9}])
        task = held.options(scheduling_strategy=InGroup(group)).remote()
        assert skate.wait([task], timeout=0.1)[0] == []
        remove_placement_group(group)
        with pytest.raises(TaskPlacementGroupRemoved):
            skate.get(task, timeout=10)


class TestChildren:
    def test_none_in_drivers(self) -> None:
        assert get_current_placement_group() is None
        assert skate.get_runtime_context().get_placement_group_id() is None

    def test_captured_only_if_asked_for(self) -> None:
        group = placement_group([{"CPU": 1}])

        @skate.remote(num_cpus=0)
        def child() -> PlacementGroup | None:
            return get_current_placement_group()

        @skate.remote(num_cpus=0)
        def parent(strategy: Any) -> list[PlacementGroup | None]:
            own = get_current_placement_group()
            return [own, skate.get(child.options(scheduling_strategy=strategy).remote())]

        def run(capture: bool | None, strategy: Any = None) -> list[PlacementGroup | None]:
            inside = InGroup(group, placement_group_capture_child_tasks=capture)
            return skate.get(parent.options(scheduling_strategy=inside).remote(strategy), timeout=30)

        assert run(None) == [group, None]
        assert run(False) == [group, None]
        assert run(True) == [group, group]
        assert run(True, "DEFAULT") == [group, None]
        assert run(True, "SPREAD") == [group, None]
        assert run(True, InGroup(None)) == [group, None]
        assert run(False, InGroup(group)) == [group, group]

    def test_grandchildren_and_actors(self) -> None:
        group = placement_group([{"CPU": 1}])

        @skate.remote(num_cpus=0)
        class Leaf:
            def group(self) -> PlacementGroup | None:
                return get_current_placement_group()

        @skate.remote(num_cpus=0)
        def grandchild() -> PlacementGroup | None:
            return skate.get(Leaf.remote().group.remote())

        @skate.remote(num_cpus=0)
        def parent() -> PlacementGroup | None:
            @skate.remote(num_cpus=0)
            def child() -> PlacementGroup | None:
                return skate.get(grandchild.remote())

            return skate.get(child.remote())

        inside = InGroup(group, placement_group_capture_child_tasks=True)
        assert skate.get(parent.options(scheduling_strategy=inside).remote(), timeout=30) == group

    def test_an_actor_captures_what_its_methods_start(self) -> None:
        group = placement_group([{"CPU": 1}])

        @skate.remote(num_cpus=0)
        class Parent:
            def run(self) -> tuple[PlacementGroup | None, dict[str, float]]:
                return get_current_placement_group(), skate.get(held.remote())

        inside = InGroup(group, placement_group_capture_child_tasks=True)
        parent = Parent.options(scheduling_strategy=inside).remote()
        blocker = placement_group([{"CPU": 1}])  # nothing is left outside
        assert blocker.wait(10)
        assert skate.get(parent.run.remote(), timeout=10) == (group, {"CPU": 1.0})

    def test_one_worker_serves_tasks_in_and_out_of_groups(self) -> None:
        """The same function, in the same process, called under one group, then another, then none."""
        groups = [placement_group([{"CPU": 0.1}]) for _ in range(2)]

        @skate.remote(num_cpus=0)
        def child() -> PlacementGroup | None:
            return get_current_placement_group()

        @skate.remote(num_cpus=0)
        def parent() -> PlacementGroup | None:
            return skate.get(child.remote())

        for group in (*groups, None, *groups):
            inside = InGroup(group, placement_group_capture_child_tasks=True)
            assert skate.get(parent.options(scheduling_strategy=inside).remote(), timeout=30) == group


class TestBadOnes:
    @pytest.mark.parametrize(
        ("bundles", "message"),
        [
            ([], "non-empty list"),
            ({"CPU": 1}, "must be a list"),
            ("CPU", "must be a list"),
            (None, "must be a list"),
            ([{}], "cannot be an empty dictionary or resources with only 0 values"),
            ([{"CPU": 1}, {"CPU": 0}], "cannot be an empty dictionary or resources with only 0 values"),
            ([{"CPU": -1}], "'CPU' cannot be negative"),
            ([{"CPU": float("nan")}], "'CPU'"),
            ([{"CPU": "1"}], "resource dictionaries.*got '1' of 'CPU'"),
            ([{1: 1}], "resource dictionaries"),
            (["CPU"], "resource dictionaries"),
            ([{"CPU_group_" + "a" * 32: 1}], "another group"),
            ([{"CPU": 1}, {"bundle": 1}], "'bundle' cannot be the name of a resource"),
        ],
    )
    def test_bundles(self, bundles: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            placement_group(bundles)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"strategy": "PACKED"}, "Invalid placement group strategy 'PACKED'.*STRICT_PACK"),
            ({"lifetime": "for ever"}, "`lifetime` must be None or 'detached', got 'for ever'"),
            ({"name": 3}, "must be a str, got 3"),
            ({"bundle_label_selector": [{}, {}]}, "as many label selectors as there are bundles"),
            ({"bundle_label_selector": [{"a": "b c"}]}, "bundle_label_selector"),
            ({"bundle_label_selector": [{"a": 3}]}, "str -> str"),
            ({"_soft_target_node_id": "aa"}, "only works with STRICT_PACK"),
            ({"_soft_target_node_id": "zz", "strategy": "STRICT_PACK"}, "hexadecimal, got 'zz'"),
        ],
    )
    def test_the_rest(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            placement_group([{"CPU": 1}], **arguments)

    def test_all_strategies_on_one_node(self) -> None:
        node = skate.get_runtime_context().get_node_id()
        for strategy in ("PACK", "SPREAD", "STRICT_PACK", None):
            assert placement_group([{"CPU": 0.1}] * 2, strategy=strategy).wait(10)
        assert not placement_group([{"CPU": 0.1}] * 2, strategy="STRICT_SPREAD").wait(0.05)
        assert placement_group([{"CPU": 0.1}], strategy="STRICT_PACK", _soft_target_node_id=node).wait(10)
        labels = [{"ray.io/node-id": node}]
        assert placement_group([{"CPU": 0.1}], bundle_label_selector=labels).wait(10)
        other = [{"ray.io/node-id": "elsewhere"}]
        assert not placement_group([{"CPU": 0.1}], bundle_label_selector=other).wait(0.05)
