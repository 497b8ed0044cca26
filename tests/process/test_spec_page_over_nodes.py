"""The page's examples of placement groups, as tests/api has them, where the driver's node has nothing to reserve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import skate as ray
from api.rendezvous import eventually
from api.test_spec_page_groups import TestChildren, test_detached, test_names  # noqa: F401 (run here)
from skate.cluster_utils import Cluster
from skate.util.placement_group import placement_group, placement_group_table, remove_placement_group
from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def skate_start() -> Iterator[Callable[..., Any]]:
    """Starts a cluster in which two other nodes have what the page's one node has, each all of it."""
    made: list[Cluster] = []

    def start(num_cpus: int = 2, num_gpus: int = 0) -> None:
        cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 0})
        made.append(cluster)
        for _ in range(2):
            cluster.add_node(num_cpus=num_cpus, num_gpus=num_gpus)
        eventually(lambda: ray.cluster_resources().get("CPU") == 2 * num_cpus)

    yield start
    for cluster in made:
        cluster.shutdown()


class TestChildrenOnAFullCluster(TestChildren):
    """On the page nothing is left for a child that is to run outside the group: so both nodes are reserved."""

    @pytest.fixture
    def skate_start(self, skate_start: Callable[..., Any]) -> Callable[..., Any]:
        def start(num_cpus: int) -> None:
            skate_start(num_cpus=num_cpus)
            assert placement_group([{"CPU": num_cpus}]).wait(30)

        return start


del TestChildren  # with a free node its last example would not time out


def test_create_use_and_remove(skate_start: Callable[..., Any]) -> None:
    skate_start(num_cpus=2, num_gpus=2)
    pg = placement_group([{"CPU": 1, "GPU": 1}] * 2, strategy="STRICT_SPREAD")
    ray.get(pg.ready(), timeout=30)
    ready, unready = ray.wait([pg.ready()], timeout=10)
    assert (len(ready), unready) == (1, [])
    table = placement_group_table(pg)
    assert table["state"] == "CREATED"
    assert table["bundles"] == {0: {"CPU": 1.0, "GPU": 1.0}, 1: {"CPU": 1.0, "GPU": 1.0}}
    assert len(set(table["bundles_to_node_id"].values())) == 2
    eventually(lambda: ray.available_resources()["GPU"] == 2)

    # Cannot create this Placement group because we
    # cannot create a {"GPU": 3} bundle.
    pending_pg = placement_group([{"CPU": 1}, {"GPU": 3}])
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get(pending_pg.ready(), timeout=0.2)  # the page waits for 5 s
    assert placement_group_table(pending_pg)["state"] == "PENDING"

    @ray.remote(num_cpus=1)
    class Actor:
        def ready(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    actor = Actor.options(scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=pg)).remote()
    assert ray.get(actor.ready.remote(), timeout=30) in table["bundles_to_node_id"].values()

    @ray.remote(num_cpus=0, num_gpus=1)
    class Trainer:
        def ready(self) -> tuple[str, list[int]]:
            return ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()

    # Create GPU actors on the bundles, by their indexes.
    for index in (0, 1):
        trainer = Trainer.options(
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement_group=pg, placement_group_bundle_index=index
            )
        ).remote()
        node, gpus = ray.get(trainer.ready.remote(), timeout=30)
        assert node == table["bundles_to_node_id"][index]
        assert len(gpus) == 1
        if index == 0:
            last = trainer

    def shown() -> bool:
        report = ray.util.state.resource_report()
        return (
            "1.0/4.0 CPU (1.0 used of 2.0 reserved in placement groups)" in report
            and "{'CPU': 1.0} * 1, {'GPU': 3.0} * 1 (PACK): 1+ pending placement groups" in report
            and "/4.0 GPU (" in report
        )

    eventually(shown)

    # This API is asynchronous.
    remove_placement_group(pg)
    eventually(lambda: placement_group_table(pg)["state"] == "REMOVED")
    for user in (actor, last):
        with pytest.raises(ray.exceptions.ActorDiedError):
            ray.get(user.ready.remote(), timeout=30)
