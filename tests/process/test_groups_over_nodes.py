"""Placement groups whose bundles are on several nodes, on nodes that come and go, made and used from any of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import skate
from api.rendezvous import eventually
from skate.cluster_utils import Cluster, ClusterNode
from skate.exceptions import (
    ActorDiedError,
    ActorUnschedulableError,
    GetTimeoutError,
    TaskPlacementGroupRemoved,
    WorkerCrashedError,
)
from skate.net.cluster_key import make_key, write_key
from skate.node.sessions import standing
from skate.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from .clusters import Program
from .commands import command

pytestmark = pytest.mark.timeout(120)

CPU = {"CPU": 1}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Its head has one CPU, and this process is in it."""
    made = Cluster(
        initialize_head=True, connect=True, head_node_args={"num_cpus": 1, "resources": {"head": 1}}
    )
    yield made
    made.shutdown()


@pytest.fixture
def second(cluster: Cluster) -> ClusterNode:
    return add(cluster, num_cpus=2, resources={"second": 1})


@pytest.fixture
def third(cluster: Cluster, second: ClusterNode) -> ClusterNode:
    return add(cluster, num_cpus=2, resources={"third": 1})


def add(cluster: Cluster, **arguments: Any) -> ClusterNode:
    """One more node, which this process's node knows of."""
    node = cluster.add_node(**arguments)
    eventually(lambda: any(row["NodeID"] == node.node_id and row["Alive"] for row in skate.nodes()))
    return node


def head(cluster: Cluster) -> str:
    assert cluster.head_node is not None
    return cluster.head_node.node_id


def here() -> str:
    """Where it runs."""
    return skate.get_runtime_context().get_node_id()


where = skate.remote(here)


@skate.remote
class Actor:
    def where(self) -> tuple[str, int]:
        return here(), os.getpid()

    def group(self) -> PlacementGroup | None:
        return get_current_placement_group()


def ready(*bundles: dict[str, float], strategy: str = "PACK", **more: Any) -> PlacementGroup:
    """A group, once it is there."""
    group = placement_group(list(bundles), strategy=strategy, **more)
    assert group.wait(30)
    return group


def inside(group: PlacementGroup, index: int = -1, capture: bool = False) -> dict[str, Any]:
    """Options of what runs in the group."""
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, index, capture)}


def nodes_of(group: PlacementGroup) -> list[str]:
    """The node of each bundle, as the table shows it."""
    return list(placement_group_table(group)["bundles_to_node_id"].values())


def state_of(group: PlacementGroup) -> str:
    return str(placement_group_table(group)["state"])


def nothing_is_held(nodes: list[ClusterNode]) -> None:
    """All that the nodes have is free again, and nothing of groups is there."""

    def free() -> bool:
        total, available = skate.cluster_resources(), skate.available_resources()
        assert len([row for row in skate.nodes() if row["Alive"]]) == len(nodes)
        return total["CPU"] == available["CPU"] and not any(
            "_group_" in name for name in (*total, *available)
        )

    eventually(free, 20)


def used(*resources: str) -> None:
    """The nodes that have these resources have had groups, so whoever places groups knows them."""
    group = ready(*({name: 1} for name in resources))
    remove_placement_group(group)
    eventually(lambda: all(skate.available_resources().get(name) == 1 for name in resources))


class Stopped:
    """A node manager that is stopped, as one that is too busy, or behind a link that is cut."""

    def __init__(self, node: ClusterNode) -> None:
        self.pid = node.pid
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


@pytest.fixture
def stop() -> Iterator[Callable[[ClusterNode], Stopped]]:
    """Stops node managers; after the test all go on."""
    made: list[Stopped] = []

    def stopped(node: ClusterNode) -> Stopped:
        made.append(Stopped(node))
        return made[-1]

    yield stopped
    for each in made:
        try:
            each.go_on()
        except ProcessLookupError:
            pass  # the test has killed it


# ------------------------------------------------------------------------------------------------------- strategies


def test_strict_spread_and_what_runs_in_each_bundle(
    cluster: Cluster, second: ClusterNode, third: ClusterNode
) -> None:
    group = ready(CPU, CPU, CPU, strategy="STRICT_SPREAD")
    nodes = nodes_of(group)
    assert set(nodes) == {head(cluster), second.node_id, third.node_id}
    for index, node in enumerate(nodes):
        assert (
            skate.get([where.options(**inside(group, index)).remote() for _ in range(3)], timeout=30)
            == [node] * 3
        )
    table = placement_group_table(group)
    assert table["state"] == "CREATED"
    assert table["bundles"] == {0: {"CPU": 1.0}, 1: {"CPU": 1.0}, 2: {"CPU": 1.0}}
    remove_placement_group(group)
    nothing_is_held(cluster.list_all_nodes())


def test_strict_spread_waits_for_enough_nodes(cluster: Cluster, second: ClusterNode) -> None:
    group = placement_group([CPU] * 3, strategy="STRICT_SPREAD")
    with pytest.raises(GetTimeoutError):
        skate.get(group.ready(), timeout=0.3)
    assert state_of(group) == "PENDING"
    assert nodes_of(group) == ["", "", ""], "whole or absent"
    assert skate.available_resources()["CPU"] == 3
    waits = where.options(**inside(group, 2)).remote()
    third = add(cluster)
    assert group.wait(30)
    assert third.node_id in nodes_of(group)
    assert skate.get(waits, timeout=30) == nodes_of(group)[2]


def test_strict_pack(cluster: Cluster, second: ClusterNode) -> None:
    group = ready(CPU, CPU, strategy="STRICT_PACK")
    assert nodes_of(group) == [second.node_id] * 2, "the head has one CPU"
    larger = placement_group([CPU, CPU, CPU], strategy="STRICT_PACK")
    assert not larger.wait(0.2)
    remove_placement_group(group)
    third = add(cluster, num_cpus=3)
    assert larger.wait(30)
    assert nodes_of(larger) == [third.node_id] * 3


def test_pack_splits_only_where_it_must(cluster: Cluster, second: ClusterNode) -> None:
    assert nodes_of(ready(CPU, CPU)) == [second.node_id] * 2
    third = add(cluster, num_cpus=2)
    assert sorted(nodes_of(ready(CPU, CPU, CPU))) == sorted([head(cluster), third.node_id, third.node_id])


def test_spread_takes_turns(cluster: Cluster, second: ClusterNode) -> None:
    nodes = nodes_of(ready(CPU, CPU, CPU, strategy="SPREAD"))
    assert sorted(nodes) == sorted([head(cluster), second.node_id, second.node_id])


def test_custom_resources_and_labels_say_where(cluster: Cluster, second: ClusterNode) -> None:
    labelled = add(cluster, labels={"zone": "far"})
    group = ready({"second": 0.5}, CPU, bundle_label_selector=[{}, {"zone": "far"}])
    assert nodes_of(group) == [second.node_id, labelled.node_id]


# ----------------------------------------------------------------------------------------------- tasks and actors


def test_any_bundle(cluster: Cluster, second: ClusterNode, tmp_path: Path) -> None:
    """Three tasks that wait for one another, in three bundles of two nodes; a fourth waits for one of them."""
    group = ready(CPU, CPU, CPU, strategy="SPREAD")

    @skate.remote
    def meet(number: int) -> str:
        (tmp_path / str(number)).touch()
        while len(list(tmp_path.iterdir())) < 3:
            time.sleep(0.01)
        return here()

    met = [meet.options(**inside(group)).remote(number) for number in range(3)]
    fourth = where.options(**inside(group)).remote()
    assert sorted(skate.get(met, timeout=60)) == sorted(nodes_of(group))
    assert skate.get(fourth, timeout=30) in nodes_of(group)


def test_a_task_takes_no_more_than_its_bundle_has_and_others_nothing_of_it(
    cluster: Cluster, second: ClusterNode
) -> None:
    group = ready({"CPU": 1, "second": 1})
    outside = where.options(resources={"second": 0.1}).remote()
    assert (
        skate.get(where.options(resources={"second": 1}, **inside(group)).remote(), timeout=30)
        == second.node_id
    )
    assert skate.wait([outside], timeout=0.3) == ([], [outside])
    remove_placement_group(group)
    assert skate.get(outside, timeout=30) == second.node_id


def test_actors(cluster: Cluster, second: ClusterNode, third: ClusterNode) -> None:
    group = ready(CPU, CPU, CPU, strategy="STRICT_SPREAD")
    actors = [Actor.options(num_cpus=1, **inside(group, index)).remote() for index in range(3)]
    found = skate.get([actor.where.remote() for actor in actors], timeout=60)
    assert [node for node, _ in found] == nodes_of(group)
    assert skate.get([actor.group.remote() for actor in actors]) == [group] * 3
    fourth = Actor.options(num_cpus=1, **inside(group)).remote()
    assert skate.wait([fourth.where.remote()], timeout=0.3)[0] == []
    skate.kill(actors[1])
    assert skate.get(fourth.where.remote(), timeout=30)[0] == nodes_of(group)[1]


def test_children_are_captured_on_all_nodes(cluster: Cluster, second: ClusterNode) -> None:
    """A task on the second node has another one run in its group: back on the head, where the other bundle is."""
    group = ready(CPU, {"second": 1}, strategy="STRICT_SPREAD")
    assert nodes_of(group) == [head(cluster), second.node_id]

    @skate.remote(num_cpus=0, resources={"second": 1})
    def parent() -> tuple[str, str, bool]:
        return here(), skate.get(where.remote()), get_current_placement_group() == group

    answer = skate.get(parent.options(**inside(group, capture=True)).remote(), timeout=60)
    assert answer == (second.node_id, head(cluster), True)


def test_groups_are_made_and_used_from_any_node(
    cluster: Cluster, second: ClusterNode, third: ClusterNode
) -> None:
    """A task on one node makes a group, another one on a second uses and removes it."""

    @skate.remote(num_cpus=0, resources={"second": 1})
    def make() -> tuple[PlacementGroup, dict[str, Any]]:
        group = placement_group([CPU, CPU], strategy="STRICT_SPREAD", name="theirs")
        assert skate.get(group.ready(), timeout=30) == group
        return group, placement_group_table(group)

    @skate.remote(num_cpus=0, resources={"third": 1})
    def use(group: PlacementGroup) -> tuple[list[str], bool, list[dict[str, float]]]:
        assert group.wait(30)
        found = get_placement_group("theirs")
        places = skate.get([where.options(**inside(group, index)).remote() for index in (0, 1)], timeout=30)
        remove_placement_group(group)
        with pytest.raises(TaskPlacementGroupRemoved):
            skate.get(where.options(**inside(group)).remote(), timeout=30)
        return places, found == group, PlacementGroup(group.id).bundle_specs

    group, table = skate.get(make.remote(), timeout=60)
    assert table == placement_group_table(group)
    assert get_placement_group("theirs") == group
    with pytest.raises(skate.exceptions.SkateSystemError, match="already exists"):
        placement_group([CPU], name="theirs")
    places = list(table["bundles_to_node_id"].values())
    assert skate.get(use.remote(group), timeout=60) == (places, True, [{"CPU": 1.0}] * 2)
    eventually(lambda: state_of(group) == "REMOVED")
    with pytest.raises(ValueError, match="theirs"):
        get_placement_group("theirs")
    nothing_is_held(cluster.list_all_nodes())


def test_what_waits_for_a_group_on_another_node_hears_of_its_end(
    cluster: Cluster, second: ClusterNode
) -> None:
    @skate.remote(num_cpus=0, resources={"second": 1})
    def wait(group: PlacementGroup, path: str) -> str:
        ref = group.ready()
        Path(path).touch()
        try:
            skate.get(ref, timeout=30)
        except TaskPlacementGroupRemoved:
            return "removed"
        return "ready"

    for end, expected in (
        (lambda group: remove_placement_group(group), "removed"),
        (lambda group: None, "ready"),
    ):
        group = placement_group([{"CPU": 1, "later": 1}])
        path = Path(cluster._folder.name, expected)
        waits = wait.remote(group, str(path))
        eventually(path.exists, 30)
        end(group)
        if expected == "ready":
            add(cluster, resources={"later": 1})
        assert skate.get(waits, timeout=60) == expected


# --------------------------------------------------------------------------------------------------------- removal


def test_removal_ends_users_on_all_nodes(cluster: Cluster, second: ClusterNode, tmp_path: Path) -> None:
    group = ready({"CPU": 1}, {"CPU": 2}, strategy="STRICT_SPREAD")
    assert nodes_of(group) == [head(cluster), second.node_id]

    @skate.remote
    def hold(number: int) -> None:
        (tmp_path / str(number)).touch()
        time.sleep(60)

    once = hold.options(max_retries=0, **inside(group, 1)).remote(0)
    eventually(lambda: (tmp_path / "0").exists(), 30)
    retried = hold.options(max_retries=3, **inside(group, 0)).remote(1)
    eventually(lambda: (tmp_path / "1").exists(), 30)
    actor = Actor.options(num_cpus=1, max_restarts=-1, **inside(group, 1)).remote()
    _, pid = skate.get(actor.where.remote(), timeout=30)
    waiting_task = where.options(**inside(group, 1)).remote()
    waiting_actor = Actor.options(num_cpus=1, **inside(group, 1)).remote()
    asked = waiting_actor.where.remote()
    assert skate.wait([waiting_task, asked], timeout=0.5)[0] == []
    remove_placement_group(group)
    with pytest.raises(WorkerCrashedError, match=r"placement group .* was removed"):
        skate.get(once, timeout=30)
    for ref in (retried, waiting_task):
        with pytest.raises(TaskPlacementGroupRemoved):
            skate.get(ref, timeout=30)
    with pytest.raises(ActorDiedError, match="placement group was removed"):
        skate.get(actor.where.remote(), timeout=30)
    with pytest.raises(ActorUnschedulableError):
        skate.get(asked, timeout=30)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), 20)
    with pytest.raises(TaskPlacementGroupRemoved):
        skate.get(where.options(**inside(group)).remote(), timeout=30)
    nothing_is_held(cluster.list_all_nodes())


def test_what_was_removed_before_it_was_placed(cluster: Cluster, second: ClusterNode) -> None:
    group = placement_group([CPU] * 9, strategy="SPREAD")
    waits = where.options(**inside(group)).remote()
    remove_placement_group(group)
    with pytest.raises(TaskPlacementGroupRemoved):
        skate.get(waits, timeout=30)
    nothing_is_held(cluster.list_all_nodes())


def test_many_groups_come_and_go(cluster: Cluster, second: ClusterNode, third: ClusterNode) -> None:
    """From several nodes at once, more than there is room for."""

    @skate.remote(num_cpus=0, scheduling_strategy="SPREAD")
    def churn() -> int:
        for number in range(15):
            group = placement_group([CPU, CPU], strategy=("PACK", "SPREAD", "STRICT_SPREAD")[number % 3])
            assert group.wait(60)
            if number % 2:
                found = [where.options(**inside(group, index)).remote() for index in (0, 1)]
                assert skate.get(found, timeout=60) == nodes_of(group)
            remove_placement_group(group)
        return 15

    assert skate.get([churn.remote() for _ in range(4)], timeout=110) == [15] * 4
    nothing_is_held(cluster.list_all_nodes())


# ---------------------------------------------------------------------------------------------------------- deaths


def test_bundles_of_a_dead_node_are_placed_again_before_other_groups(
    cluster: Cluster, second: ClusterNode, third: ClusterNode
) -> None:
    group = ready({"CPU": 1, "head": 1}, {"CPU": 2}, strategy="STRICT_SPREAD")
    (stays, lost) = nodes_of(group)
    assert stays == head(cluster)
    dies, other = (second, third) if lost == second.node_id else (third, second)
    actor = Actor.options(num_cpus=1, max_restarts=2, max_task_retries=-1, **inside(group, 1)).remote()
    fragile = Actor.options(num_cpus=1, **inside(group, 1)).remote()
    kept = Actor.options(num_cpus=1, **inside(group, 0)).remote()
    assert skate.get([each.where.remote() for each in (actor, fragile)], timeout=30)[0][0] == lost
    life = skate.get(kept.where.remote(), timeout=30)
    blocker = ready({"CPU": 2})
    assert nodes_of(blocker) == [other.node_id]
    newer = placement_group([{"CPU": 2}])
    dies.kill_node_manager()
    eventually(lambda: state_of(group) == "RESCHEDULING", 30)
    assert nodes_of(group) == [stays, ""]
    waits = where.options(num_cpus=0, **inside(group, 1)).remote()
    assert not group.wait(0.2)
    assert skate.get(kept.where.remote()) == life, "what is elsewhere does not notice"
    remove_placement_group(blocker)
    assert group.wait(30)
    assert nodes_of(group) == [stays, other.node_id]
    assert skate.get(waits, timeout=30) == other.node_id
    assert skate.get(actor.where.remote(), timeout=30)[0] == other.node_id
    with pytest.raises(ActorDiedError):
        skate.get(fragile.where.remote(), timeout=30)
    assert state_of(newer) == "PENDING"
    add(cluster, num_cpus=2)
    assert newer.wait(30)


def test_tasks_of_a_dead_node_run_where_its_bundle_comes_to_be(
    cluster: Cluster, second: ClusterNode, tmp_path: Path
) -> None:
    group = ready({"CPU": 2})

    @skate.remote(max_retries=2)
    def hold(number: int) -> str:
        (tmp_path / f"{number} {here()}").touch()
        while not (tmp_path / "end").exists():
            time.sleep(0.01)
        return here()

    held = [hold.options(**inside(group)).remote(number) for number in range(4)]
    eventually(lambda: len(list(tmp_path.iterdir())) == 2, 30)
    third = add(cluster, num_cpus=2)
    second.kill_node_manager()
    eventually(lambda: len(list(tmp_path.iterdir())) == 4, 30)
    (tmp_path / "end").touch()
    assert skate.get(held, timeout=30) == [third.node_id] * 4
    assert nodes_of(group) == [third.node_id]


def test_a_node_dies_before_it_has_prepared(
    cluster: Cluster, second: ClusterNode, third: ClusterNode, stop: Callable[[ClusterNode], Stopped]
) -> None:
    """One node has taken its bundle, another one is stopped, and then killed: nothing is kept for the group."""
    used("second", "third")
    stop(third)
    group = placement_group([{"second": 1}, {"third": 1}], strategy="STRICT_SPREAD")
    eventually(lambda: skate.available_resources().get("second", 0) == 0, 20)
    assert state_of(group) == "PENDING"
    third.kill_node_manager()
    eventually(lambda: skate.available_resources().get("second") == 1, 30)
    assert state_of(group) == "PENDING"
    fourth = add(cluster, resources={"third": 1})
    assert group.wait(30)
    assert nodes_of(group) == [second.node_id, fourth.node_id]


def test_a_node_dies_between_prepare_and_commit(
    cluster: Cluster, second: ClusterNode, third: ClusterNode, stop: Callable[[ClusterNode], Stopped]
) -> None:
    """It has prepared; another one has not yet, when it is killed. Its bundle alone is placed again."""
    used("second", "third")
    stopped = stop(third)
    group = placement_group([{"second": 1}, {"third": 1}, {"head": 1}], strategy="STRICT_SPREAD")
    eventually(lambda: skate.available_resources().get("second", 0) == 0, 20)
    second.kill_node_manager()
    stopped.go_on()  # it prepares; the order to commit finds nobody on the second node
    eventually(lambda: state_of(group) == "RESCHEDULING", 30)
    assert nodes_of(group) == ["", third.node_id, head(cluster)]
    waits = where.options(num_cpus=0, **inside(group, 0)).remote()
    fourth = add(cluster, resources={"second": 1})
    assert group.wait(30)
    assert nodes_of(group) == [fourth.node_id, third.node_id, head(cluster)]
    assert skate.get(waits, timeout=30) == fourth.node_id
    remove_placement_group(group)
    nothing_is_held([node for node in cluster.list_all_nodes() if node is not second])


@pytest.mark.parametrize("pause", [0, 0.002, 0.01, 0.03])
def test_a_node_dies_while_groups_are_made(cluster: Cluster, second: ClusterNode, pause: float) -> None:
    """At any moment: all groups that fit are there in the end, and all that the nodes have is accounted for."""
    third = add(cluster, num_cpus=8)
    fourth = add(cluster, num_cpus=8)
    groups = [placement_group([CPU, CPU], strategy="STRICT_SPREAD") for _ in range(3)]
    refs = [where.options(**inside(group, 1)).remote() for group in groups]
    time.sleep(pause)
    third.kill_node_manager()
    eventually(lambda: third.node_id not in {row["NodeID"] for row in skate.nodes() if row["Alive"]}, 30)
    for group in groups:
        assert group.wait(30)
        assert set(nodes_of(group)) <= {head(cluster), second.node_id, fourth.node_id}
    skate.get(refs, timeout=30)
    for group in groups:
        remove_placement_group(group)
    nothing_is_held([cluster.head_node, second, fourth])  # type: ignore[list-item]


def test_room_is_cleared_on_other_nodes(cluster: Cluster, second: ClusterNode, tmp_path: Path) -> None:
    """Short tasks keep all nodes full; a group that needs two CPUs of one gets its turn."""

    @skate.remote
    def short() -> None:
        time.sleep(0.01)

    @skate.remote(num_cpus=0)
    def keep_busy() -> int:
        number = 0
        running = [short.remote() for _ in range(20)]
        while not (tmp_path / "end").exists():
            done, running = skate.wait(running)
            number += len(done)
            running += [short.remote() for _ in done]
        skate.get(running)
        return number

    busy = keep_busy.remote()
    eventually(lambda: skate.available_resources().get("CPU", 0) == 0, 20)
    group = placement_group([{"CPU": 2}, {"CPU": 1}], strategy="STRICT_SPREAD")
    placed = group.wait(30)
    remove_placement_group(group)
    (tmp_path / "end").touch()
    assert placed
    assert skate.get(busy, timeout=60) > 0


# -------------------------------------------------------------------------------------------------------- lifetimes


def test_groups_end_with_their_program_on_all_nodes_and_detached_ones_do_not(
    cluster: Cluster, second: ClusterNode, third: ClusterNode, tmp_path: Path
) -> None:
    """The program comes in through the second node; one of its groups is made by a worker on the third."""
    program = Program(
        second,
        tmp_path,
        """
from skate.util.placement_group import placement_group
goes = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD", name="goes")
stays = placement_group([{"CPU": 1}], lifetime="detached", name="stays")
assert goes.wait(30) and stays.wait(30)
@skate.remote(num_cpus=0, resources={"third": 1})
def make():
    return placement_group([{"CPU": 1}], name="goes too").wait(30)
assert skate.get(make.remote())
say("made")
sys.stdin.readline()
""",
    )
    try:
        assert program.line() == "made"

        def states() -> dict[str, str]:
            return {facts["name"]: facts["state"] for facts in placement_group_table().values()}

        assert states() == dict.fromkeys(("goes", "stays", "goes too"), "CREATED")
    finally:
        program.kill()
    eventually(lambda: states() == {"goes": "REMOVED", "goes too": "REMOVED", "stays": "CREATED"}, 20)
    skate.shutdown()
    assert cluster.head_node is not None
    skate.init(address=cluster.head_node.session_dir, namespace="shared", log_to_driver=False)
    group = get_placement_group("stays")
    assert skate.get(where.options(**inside(group)).remote(), timeout=30) == nodes_of(group)[0]
    remove_placement_group(group)
    nothing_is_held(cluster.list_all_nodes())


def test_groups_end_with_the_node_of_their_driver(
    cluster: Cluster, second: ClusterNode, third: ClusterNode, tmp_path: Path
) -> None:
    program = Program(
        second,
        tmp_path,
        """
from skate.util.placement_group import placement_group
assert placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD", name="goes").wait(30)
assert placement_group([{"third": 1}], lifetime="detached", name="stays").wait(30)
say("made")
sys.stdin.readline()
""",
    )
    try:
        assert program.line() == "made"
        second.kill_node_manager()
    finally:
        program.kill()
    table = placement_group_table
    eventually(
        lambda: {f["name"]: f["state"] for f in table().values()} == {"goes": "REMOVED", "stays": "CREATED"},
        30,
    )
    eventually(lambda: skate.available_resources()["CPU"] == 3, 20)
    assert skate.available_resources().get("third", 0) == 0


def test_a_detached_actor_s_group_lasts_as_long_as_the_actor(cluster: Cluster, second: ClusterNode) -> None:
    """It lives on another node than where it was made, and its maker is gone."""

    @skate.remote(num_cpus=0, resources={"second": 1})
    class Maker:
        def make(self) -> bool:
            return placement_group([CPU], name="of the actor").wait(30)

    maker = Maker.options(name="maker", lifetime="detached").remote()
    assert skate.get(maker.make.remote(), timeout=30)
    skate.shutdown()
    assert cluster.head_node is not None
    skate.init(address=second.session_dir, log_to_driver=False)
    (facts,) = placement_group_table().values()
    assert (facts["name"], facts["state"]) == ("of the actor", "CREATED")
    namespace = skate.util.list_named_actors(all_namespaces=True)[0]["namespace"]
    skate.kill(skate.get_actor("maker", namespace))
    eventually(lambda: [each["state"] for each in placement_group_table().values()] == ["REMOVED"], 20)


# ----------------------------------------------------------------------------------------------------------- shown


def test_resources_are_shown_node_by_node(cluster: Cluster, second: ClusterNode) -> None:
    group = ready(CPU, CPU, strategy="STRICT_SPREAD")
    name = group.id.hex()
    index = nodes_of(group).index(second.node_id)

    def shown() -> bool:
        row = next(row for row in skate.nodes() if row["NodeID"] == second.node_id)
        resources = row["Resources"]
        return (
            resources["CPU"] == 2
            and resources.get(f"CPU_group_{name}") == 1
            and resources.get(f"CPU_group_{index}_{name}") == 1
            and f"CPU_group_{1 - index}_{name}" not in resources
        )

    eventually(shown, 20)
    eventually(lambda: skate.cluster_resources()[f"CPU_group_{name}"] == 2)
    eventually(lambda: skate.available_resources()["CPU"] == 1)
    assert skate.cluster_resources()["CPU"] == 3
    remove_placement_group(group)
    nothing_is_held(cluster.list_all_nodes())


def test_a_group_too_large_for_the_cluster_is_warned_of_where_it_was_made(
    cluster: Cluster, second: ClusterNode, tmp_path: Path
) -> None:
    program = Program(
        second,
        tmp_path,
        """
from skate.util.placement_group import placement_group
sys.stderr = sys.stdout
group = placement_group([{"CPU": 64}])
group.wait(5)
""",
    )
    try:
        line = program.line()
        assert "There is no room for the placement group" in line
        assert "1 other nodes are in the cluster" in line
    finally:
        program.kill()


# ------------------------------------------------------------------------------------------------------ another head


def test_a_fresh_head_knows_of_no_groups(tmp_path: Path) -> None:
    """While there is none, a group is used where it is; it ends when one comes that does not take up what the last one
    has left. What waited is asked for again."""
    key_file = str(tmp_path / "key")
    write_key(key_file, make_key())

    def start(*arguments: str) -> dict[str, Any]:
        done = command(
            "start", *arguments, "--node-ip-address", "127.0.0.1", "--cluster-key-file", key_file,
            "--num-cpus", "1", "--object-store-memory", "100000000",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return standing()[-1]

    try:
        old = start("--head")
        first, second = (start("--address", old["address"]) for _ in range(2))
        skate.init(address=first["folder"], log_to_driver=False)
        eventually(lambda: skate.cluster_resources().get("CPU") == 3)
        group = ready(CPU, CPU, CPU, strategy="STRICT_SPREAD")
        waits = placement_group([CPU] * 3, strategy="SPREAD", name="waits")
        places = nodes_of(group)
        index = places.index(second["node"])
        assert skate.get(where.options(**inside(group, index)).remote(), timeout=30) == second["node"]
        os.kill(old["pid"], signal.SIGKILL)
        eventually(
            lambda: not [row for row in skate.nodes() if row["NodeID"] == old["node"] and row["Alive"]], 30
        )
        assert skate.get(where.options(**inside(group, index)).remote(), timeout=30) == second["node"]
        stuck = where.options(**inside(group, places.index(old["node"]))).remote()
        start("--head", "--fresh", "--port", old["address"].rpartition(":")[2])
        with pytest.raises(TaskPlacementGroupRemoved):
            skate.get(stuck, timeout=30)
        with pytest.raises(TaskPlacementGroupRemoved):
            skate.get(where.options(**inside(group, index)).remote(), timeout=30)
        assert waits.wait(30)
        assert get_placement_group("waits") == waits
        assert len(set(nodes_of(waits))) == 3
        assert [facts["name"] for facts in placement_group_table().values()] == ["waits"]
    finally:
        skate.shutdown()
        assert command("stop").returncode == 0
