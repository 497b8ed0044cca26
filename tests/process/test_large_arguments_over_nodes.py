"""Tasks with large arguments in a cluster: they run where these are, or these are brought to them first."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import skate
from api.rendezvous import eventually
from skate.cluster_utils import Cluster, ClusterNode
from skate.exceptions import ObjectLostError, TaskPlacementGroupRemoved
from skate.runtime import current
from skate.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from .clusters import rows

pytestmark = pytest.mark.timeout(120)

MB = 1 << 20


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "object_store_memory": 300 * MB})
    made.connect()
    yield made
    made.shutdown()


@contextmanager
def stopped(node: ClusterNode) -> Iterator[None]:
    """Nothing comes from the node meanwhile."""
    os.kill(node.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node.pid, signal.SIGCONT)


@skate.remote
def make(nbytes: int) -> np.ndarray:
    return np.ones(nbytes, dtype=np.uint8)


@skate.remote
def where(*arrays: np.ndarray) -> str:
    assert all(array[:: 1 << 16].all() for array in arrays)
    return skate.get_runtime_context().get_node_id()


@skate.remote
def use(array: np.ndarray) -> int:
    return int(array[:: 1 << 20].sum())


@skate.remote(num_cpus=1)
class Holder:
    def ready(self) -> None:
        pass


@skate.remote(num_cpus=0)
class Looker:
    def at(self, objects: list[bytes]) -> bool:
        """Whether all are in the store of this actor's node."""
        assert current.runtime is not None
        return all(map(current.runtime.store.contains, objects))


def in_group(group: PlacementGroup, bundle: int = -1) -> PlacementGroupSchedulingStrategy:
    skate.get(group.ready())
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)


def made_on(cluster: Cluster, node: ClusterNode, *sizes: int) -> list[skate.ObjectRef]:
    """Objects of this program, whose bytes are on that node."""
    there = skate.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    refs = [make.options(scheduling_strategy=there).remote(nbytes) for nbytes in sizes]
    skate.wait(refs, num_returns=len(refs), fetch_local=False)
    eventually(lambda: used(node, node, "CPU") == 0)  # the leases have gone back,
    eventually(lambda: used(cluster.head_node, node, "CPU") == 0)  # and the head knows it
    return refs


def used(asked: ClusterNode, node: ClusterNode, resource: str) -> float:
    """What is in use on the node, as another knows it, or as it knows itself."""
    row = rows(asked)[node.node_id]
    return (row["total"][resource] - row["available"].get(resource, 0)) / 10_000


def test_a_task_runs_where_its_large_argument_is(cluster: Cluster) -> None:
    """The owner is on the head, and the head is idle."""
    other = cluster.add_node(num_cpus=8)  # leases that go back are known to be back a moment later
    (ref,) = made_on(cluster, other, 50 * MB)
    here = skate.get_runtime_context().get_node_id()
    for _ in range(5):
        assert skate.get(where.remote(ref)) == other.node_id
        assert skate.get(where.remote()) == here
        assert skate.get(where.remote(np.ones(MB))) == here


def test_the_node_with_most_bytes_is_taken(cluster: Cluster) -> None:
    one, two = cluster.add_node(num_cpus=8), cluster.add_node(num_cpus=8)
    small, large = made_on(cluster, one, 2 * MB, 20 * MB)
    (middle,) = made_on(cluster, two, 10 * MB)
    assert skate.get(where.remote(small, middle)) == two.node_id
    assert skate.get(where.remote(small, middle, large)) == one.node_id


def test_a_full_node_s_tasks_run_elsewhere(cluster: Cluster) -> None:
    """Where the argument is there is one CPU, and it is taken."""
    other = cluster.add_node(num_cpus=1)
    (ref,) = made_on(cluster, other, 10 * MB)
    there = skate.util.scheduling_strategies.NodeAffinitySchedulingStrategy(other.node_id, soft=False)
    holder = Holder.options(scheduling_strategy=there).remote()
    skate.get(holder.ready.remote())
    assert skate.get(where.remote(ref)) == skate.get_runtime_context().get_node_id()


def test_many_tasks_with_one_argument_and_with_many(cluster: Cluster) -> None:
    other = cluster.add_node(num_cpus=2, object_store_memory=200 * MB)
    refs = made_on(cluster, other, *[2 * MB] * 20)
    assert skate.get([use.remote(refs[0]) for _ in range(300)]) == [2] * 300
    assert skate.get([use.remote(ref) for ref in refs * 5]) == [2] * 100
    assert skate.get([use.remote(np.ones(2 * MB, dtype=np.uint8)) for _ in range(20)]) == [2] * 20


@pytest.mark.parametrize("grouped", [False, True])
def test_an_argument_is_fetched_before_its_task_takes_the_only_cpu(cluster: Cluster, grouped: bool) -> None:
    """Of the node, or of a bundle there."""
    source = cluster.add_node(num_cpus=1)
    (ref,) = made_on(cluster, source, 30 * MB)
    target = cluster.add_node(num_cpus=1, resources={"target": 1}, object_store_memory=100 * MB)
    there: dict[str, Any] = {"resources": {"target": 1}}
    if grouped:
        there = {"scheduling_strategy": in_group(placement_group([{"CPU": 1, "target": 1}]), 0)}
    with stopped(source):
        waits = use.options(**there).remote(ref)
        for _ in range(3):
            assert skate.get(where.options(**there).remote(), timeout=2) == target.node_id
        assert skate.wait([waits], timeout=0) == ([], [waits])
    assert skate.get(waits) == 30


def test_what_comes_next_is_fetched_while_the_cpu_is_taken(cluster: Cluster) -> None:
    source = cluster.add_node(num_cpus=1)
    refs = made_on(cluster, source, 10 * MB, 10 * MB)
    cluster.add_node(num_cpus=1, resources={"target": 10}, object_store_memory=100 * MB)
    there = {"target": 1}
    holder = Holder.options(resources=there).remote()
    skate.get(holder.ready.remote())
    waiting = [use.options(resources=there).remote(ref) for ref in refs]
    looks = Looker.options(resources=there).remote()
    eventually(lambda: skate.get(looks.at.remote([ref.binary() for ref in refs])))
    assert skate.wait(waiting, num_returns=2, timeout=0)[0] == []
    with stopped(source):  # nothing need come from there any more
        skate.kill(holder)
        assert skate.get(waiting, timeout=2) == [10, 10]


def test_more_than_the_store_holds(cluster: Cluster) -> None:
    """Each task's argument fits, all of them do not: what was fetched early is spilled, and nobody waits for ever."""
    source = cluster.add_node(num_cpus=1, object_store_memory=400 * MB)
    refs = made_on(cluster, source, *[20 * MB] * 15)
    cluster.add_node(num_cpus=2, resources={"target": 100}, object_store_memory=80 * MB)
    waiting = [use.options(resources={"target": 1}).remote(ref) for ref in refs]
    assert skate.get(waiting) == [20] * 15


def test_an_argument_that_is_lost_fails_its_task(cluster: Cluster) -> None:
    source = cluster.add_node(num_cpus=1)
    refs = made_on(cluster, source, 30 * MB, 30 * MB)
    cluster.add_node(num_cpus=1, resources={"target": 10}, object_store_memory=100 * MB)
    os.kill(source.pid, signal.SIGSTOP)
    waiting = [use.options(resources={"target": 1}, max_retries=0).remote(ref) for ref in refs]
    assert skate.get(where.options(resources={"target": 1}).remote(), timeout=2)
    source.kill_node_manager()
    cluster.worker_nodes.discard(source)
    for task in waiting:
        with pytest.raises(ObjectLostError):
            skate.get(task)
    assert skate.get(where.options(resources={"target": 1}).remote(), timeout=10)


def test_in_a_placement_group_the_bundle_near_the_argument_is_taken(cluster: Cluster) -> None:
    others = [cluster.add_node(num_cpus=3) for _ in range(2)]
    refs = [made_on(cluster, node, 20 * MB)[0] for node in others]
    group = placement_group([{"CPU": 2}] * 3, strategy="STRICT_SPREAD")
    there = in_group(group)
    for _ in range(3):
        for node, ref in zip(others, refs, strict=True):
            assert skate.get(where.options(scheduling_strategy=there).remote(ref)) == node.node_id


def test_a_group_ends_while_an_argument_is_fetched_for_it(cluster: Cluster) -> None:
    source = cluster.add_node(num_cpus=1)
    (ref,) = made_on(cluster, source, 30 * MB)
    cluster.add_node(num_cpus=1, resources={"target": 1}, object_store_memory=100 * MB)
    group = placement_group([{"CPU": 1, "target": 1}])
    there = in_group(group)
    with stopped(source):
        waits = use.options(scheduling_strategy=there).remote(ref)
        assert skate.get(where.options(scheduling_strategy=there).remote(), timeout=2)
        remove_placement_group(group)
        with pytest.raises(TaskPlacementGroupRemoved):
            skate.get(waits)
        with pytest.raises(TaskPlacementGroupRemoved):
            skate.get(use.options(scheduling_strategy=there).remote(ref))
    assert skate.get(use.options(resources={"target": 1}).remote(ref)) == 30


@skate.remote
def outer(nbytes: int) -> int:
    refs = [use.remote(np.ones(nbytes, dtype=np.uint8)) for _ in range(4)]
    return sum(skate.get(refs))


def test_nested_tasks_with_large_arguments(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1, object_store_memory=100 * MB)
    assert skate.get([outer.remote(5 * MB) for _ in range(6)]) == [20] * 6
