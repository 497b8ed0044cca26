"""Tasks and actors that run on other nodes than the one that their program came in through."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import skate
from api.rendezvous import eventually
from skate.cluster_utils import Cluster, ClusterNode
from skate.exceptions import ActorDiedError, WorkerCrashedError
from skate.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .clusters import Program
from .drivers import lives

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Its head has one CPU, and this process is in it."""
    made = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 1})
    yield made
    made.shutdown()


@pytest.fixture
def second(cluster: Cluster) -> ClusterNode:
    """A second node, with two CPUs and a resource that the head has not."""
    return add(cluster, num_cpus=2, resources={"special": 2})


def add(cluster: Cluster, **arguments: Any) -> ClusterNode:
    """One more node, which this process's node knows of."""
    node = cluster.add_node(**arguments)
    eventually(lambda: any(row["NodeID"] == node.node_id and row["Alive"] for row in skate.nodes()))
    return node


def here() -> str:
    """Where it runs."""
    return skate.get_runtime_context().get_node_id()


def head(cluster: Cluster) -> str:
    assert cluster.head_node is not None
    return cluster.head_node.node_id


where = skate.remote(here)


def test_a_task_goes_to_the_node_that_has_what_it_needs(cluster: Cluster, second: ClusterNode) -> None:
    special = where.options(resources={"special": 1})
    assert set(skate.get([special.remote() for _ in range(20)])) == {second.node_id}
    assert skate.get(where.remote()) == head(cluster)


def test_arguments_and_results_travel(second: ClusterNode) -> None:
    @skate.remote(resources={"special": 1})
    def join(words: list[str], last: str) -> str:
        return " ".join([*words, last])

    assert skate.get(join.remote(["a", "b"], skate.put("c"))) == "a b c"


def test_what_the_head_has_no_room_for_spills_over(
    cluster: Cluster, second: ClusterNode, tmp_path: Path
) -> None:
    """Three tasks that wait for one another, on three CPUs of two nodes."""

    @skate.remote
    def meet(number: int) -> str:
        (tmp_path / str(number)).touch()
        while len(list(tmp_path.iterdir())) < 3:
            time.sleep(0.01)
        return here()

    nodes = skate.get([meet.remote(number) for number in range(3)], timeout=60)
    assert sorted(nodes) == sorted([head(cluster), second.node_id, second.node_id])


def test_many_tasks_use_all_nodes(cluster: Cluster, second: ClusterNode) -> None:
    @skate.remote
    def work() -> str:
        time.sleep(0.02)
        return here()

    assert set(skate.get([work.remote() for _ in range(200)])) == {head(cluster), second.node_id}


def test_spread_spreads(cluster: Cluster, second: ClusterNode) -> None:
    @skate.remote(num_cpus=0.25, scheduling_strategy="SPREAD")
    def slow() -> str:
        time.sleep(0.2)
        return here()

    assert set(skate.get([slow.remote() for _ in range(4)])) == {head(cluster), second.node_id}


def test_node_affinity(cluster: Cluster, second: ClusterNode) -> None:
    for node in (head(cluster), second.node_id):
        at = NodeAffinitySchedulingStrategy(node, soft=False)
        assert skate.get(where.options(scheduling_strategy=at).remote()) == node


def test_labels(cluster: Cluster) -> None:
    node = add(cluster, labels={"zone": "far"})
    assert skate.get(where.options(label_selector={"zone": "far"}).remote()) == node.node_id
    assert skate.get(where.options(label_selector={"zone": "!far"}).remote()) == head(cluster)


def test_tasks_of_tasks(cluster: Cluster, second: ClusterNode) -> None:
    """From the head to the second node, and from there back: it has not what the inner one needs."""
    add(cluster, resources={"third": 1})

    @skate.remote(resources={"special": 1})
    def outer() -> tuple[str, str]:
        return here(), skate.get(where.options(resources={"third": 1}).remote())

    outside, inside = skate.get(outer.remote())
    assert outside == second.node_id
    assert inside not in (second.node_id, head(cluster))


def test_tasks_of_tasks_that_block_on_another_node(cluster: Cluster, second: ClusterNode) -> None:
    @skate.remote(resources={"special": 0.01})
    def depth(left: int) -> int:
        return 0 if not left else 1 + skate.get(depth.remote(left - 1))

    assert skate.get(depth.remote(8), timeout=60) == 8


def test_what_no_node_can_run_waits_until_one_joins(cluster: Cluster, second: ClusterNode) -> None:
    waits = where.options(resources={"new": 1}).remote()
    assert skate.wait([waits], timeout=0.3) == ([], [waits])
    node = add(cluster, resources={"new": 1})
    assert skate.get(waits, timeout=30) == node.node_id


def test_what_waits_here_goes_to_a_node_that_joins(cluster: Cluster, tmp_path: Path) -> None:
    @skate.remote
    def hold() -> str:
        while not (tmp_path / "end").exists():
            time.sleep(0.01)
        return here()

    @skate.remote(max_retries=0)
    def end() -> str:
        (tmp_path / "end").touch()
        return here()

    held = hold.remote()
    ends = end.remote()
    node = add(cluster)
    assert skate.get(ends, timeout=30) == node.node_id
    assert skate.get(held) == head(cluster)


def test_a_node_dies_and_its_tasks_run_elsewhere(
    cluster: Cluster, second: ClusterNode, tmp_path: Path
) -> None:
    @skate.remote(resources={"special": 1}, max_retries=2)
    def hold(number: int) -> str:
        (tmp_path / f"{number} {here()}").touch()
        while not (tmp_path / "end").exists():
            time.sleep(0.01)
        return here()

    held = [hold.remote(number) for number in range(2)]
    eventually(lambda: len(list(tmp_path.iterdir())) == 2)
    third = add(cluster, num_cpus=2, resources={"special": 2})
    second.kill_node_manager()
    eventually(lambda: len(list(tmp_path.iterdir())) == 4, 30)
    (tmp_path / "end").touch()
    assert skate.get(held, timeout=30) == [third.node_id] * 2


def test_a_worker_of_another_node_dies(second: ClusterNode) -> None:
    @skate.remote(resources={"special": 1}, max_retries=0)
    def dies() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerCrashedError, match="SIGKILL"):
        skate.get(dies.remote(), timeout=30)
    assert skate.get(where.options(resources={"special": 1}).remote(), timeout=30) == second.node_id


def test_leases_go_back(cluster: Cluster, second: ClusterNode) -> None:
    skate.get([where.options(resources={"special": 1}).remote() for _ in range(4)])
    eventually(lambda: skate.available_resources().get("special") == 2, 10)


def test_what_is_printed_elsewhere_is_shown_here(second: ClusterNode, captured: Callable[[], str]) -> None:
    @skate.remote(resources={"special": 1})
    def speak() -> None:
        print("good morning")

    skate.get(speak.remote())
    eventually(lambda: "good morning" in captured())


# ------------------------------------------------------------------------------------------------------------ actors


@skate.remote
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count

    def where(self) -> tuple[str, int]:
        return here(), os.getpid()


def test_an_actor_on_another_node(second: ClusterNode) -> None:
    counter = Counter.options(resources={"special": 1}).remote()
    assert skate.get([counter.add.remote() for _ in range(3)]) == [1, 2, 3]
    assert skate.get(counter.where.remote())[0] == second.node_id
    skate.kill(counter)
    with pytest.raises(ActorDiedError):
        skate.get(counter.add.remote())
    other = Counter.options(resources={"special": 2}).remote()  # what the first one had is free
    assert skate.get(other.add.remote(), timeout=30) == 1


def test_an_actor_ends_with_its_last_handle(second: ClusterNode) -> None:
    counter = Counter.options(resources={"special": 2}).remote()
    assert skate.get(counter.add.remote()) == 1
    del counter
    assert skate.get(where.options(resources={"special": 2}).remote(), timeout=30) == second.node_id


def test_an_actor_restarts_on_another_node(cluster: Cluster, second: ClusterNode) -> None:
    counter = Counter.options(resources={"special": 1}, max_restarts=2, max_task_retries=2).remote()
    node, pid = skate.get(counter.where.remote())
    os.kill(pid, signal.SIGKILL)
    assert skate.get(counter.where.remote(), timeout=30)[1] != pid
    third = add(cluster, resources={"special": 1})
    second.kill_node_manager()
    assert skate.get(counter.where.remote(), timeout=30)[0] == third.node_id
    assert node == second.node_id


def test_spread_spreads_what_comes_one_at_a_time(second: ClusterNode) -> None:
    spread = where.options(scheduling_strategy="SPREAD", num_cpus=0.5)
    nodes = [skate.get(spread.remote()) for _ in range(6)]
    assert all(one != next_one for one, next_one in pairwise(nodes))


def test_default_actors_go_to_any_node(cluster: Cluster) -> None:
    """They need a CPU for a moment, and hold none. So all would fit on this node."""
    for _ in range(2):
        add(cluster, num_cpus=1)
    actors = [Counter.remote() for _ in range(30)]
    counts = Counts(node for node, _ in skate.get([actor.where.remote() for actor in actors], timeout=60))
    assert len(counts) == 3
    assert min(counts.values()) >= 3


def test_actors_without_resources_go_to_any_node(cluster: Cluster, second: ClusterNode) -> None:
    actors = [Counter.options(num_cpus=0).remote() for _ in range(16)]
    nodes = {node for node, _ in skate.get([actor.where.remote() for actor in actors], timeout=60)}
    assert nodes == {head(cluster), second.node_id}


def test_names_are_the_whole_cluster_s(cluster: Cluster, second: ClusterNode) -> None:
    """A task on the second node makes, finds and lists actors; the head's table says who has which name."""

    @skate.remote(resources={"special": 1})
    def there() -> tuple[str, int, list[str], int]:
        mine = Counter.options(name="theirs", lifetime="detached").remote()
        taken = ""
        try:
            Counter.options(name="ours").remote()
        except ValueError as error:
            taken = str(error)
        ours = Counter.options(name="ours", get_if_exists=True).remote()
        names = sorted(skate.util.list_named_actors())
        return taken, skate.get(ours.add.remote()), names, skate.get(mine.add.remote())

    ours = Counter.options(name="ours").remote()
    assert skate.get(ours.add.remote()) == 1
    taken, count, names, theirs = skate.get(there.remote(), timeout=30)
    assert "ours" in taken
    assert (count, names, theirs) == (2, ["ours", "theirs"], 1)
    found = skate.get_actor("theirs")
    assert skate.get(found.add.remote(), timeout=30) == 2
    with pytest.raises(ValueError, match="theirs"):
        Counter.options(name="theirs").remote()
    skate.kill(found)
    eventually(lambda: skate.util.list_named_actors() == ["ours"])


def test_the_names_of_a_dead_node_are_free(cluster: Cluster, second: ClusterNode) -> None:
    @skate.remote(resources={"special": 1})
    def there() -> None:
        skate.get(Counter.options(name="gone", lifetime="detached").remote().add.remote())

    skate.get(there.remote(), timeout=30)
    assert skate.util.list_named_actors() == ["gone"]
    second.kill_node_manager()
    eventually(lambda: not skate.util.list_named_actors(), 30)
    assert skate.get(Counter.options(name="gone").remote().add.remote(), timeout=30) == 1


def test_one_of_many_that_ask_for_a_name_at_once_makes_the_actor(
    cluster: Cluster, second: ClusterNode
) -> None:
    @skate.remote(num_cpus=0, scheduling_strategy="SPREAD", max_retries=0)
    def ask() -> tuple[int, str]:
        actor = Counter.options(name="one", get_if_exists=True, lifetime="detached", num_cpus=0).remote()
        return skate.get(actor.where.remote())[1], here()

    answers = skate.get([ask.remote() for _ in range(8)], timeout=60)
    assert len({pid for pid, _ in answers}) == 1
    assert {node for _, node in answers} == {head(cluster), second.node_id}


def test_workers_of_a_program_that_has_left_end_on_all_nodes(
    cluster: Cluster, second: ClusterNode, tmp_path: Path
) -> None:
    program = Program(
        second,
        tmp_path,
        """
@skate.remote(resources={"only": 1})
def where():
    return os.getpid()
print(skate.get(where.remote()), flush=True)
sys.stdin.readline()
""",
    )
    try:
        third = add(cluster, resources={"only": 1})
        pid = int(program.line())
        assert lives(pid)
        assert any(row["NodeID"] == third.node_id for row in skate.nodes())
    finally:
        program.kill()
    eventually(lambda: not lives(pid), 30)
