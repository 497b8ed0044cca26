"""The page's examples of placement groups, each with nothing changed but the import and what would take seconds."""

from __future__ import annotations

import re
import time
from pprint import pformat

import pytest
import skate as ray

# Import Placement group APIs.
from skate.util.placement_group import (
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from .rendezvous import eventually


class TestCreating:
    def test_create_use_and_remove(self, skate_start) -> None:
        # Create a single node Ray cluster with 2 CPUs and 2 GPUs.
        skate_start(num_cpus=2, num_gpus=2)

        # Reserve a Placement group of 1 bundle that reserves 1 CPU and 1 GPU.
        pg = placement_group([{"CPU": 1, "GPU": 1}])

        # Wait until Placement group is created.
        ray.get(pg.ready(), timeout=10)

        # You can also use ray.wait.
        ready, unready = ray.wait([pg.ready()], timeout=10)
        assert (len(ready), unready) == (1, [])

        # You can look at Placement group states using this API.
        table = placement_group_table(pg)
        assert table["state"] == "CREATED"
        assert table["bundles"] == {0: {"CPU": 1.0, "GPU": 1.0}}
        assert ray.available_resources()["GPU"] == 1

        # Cannot create this Placement group because we
        # cannot create a {"GPU": 2} bundle.
        pending_pg = placement_group([{"CPU": 1}, {"GPU": 2}])
        # This raises the timeout exception!
        with pytest.raises(ray.exceptions.GetTimeoutError):
            ray.get(pending_pg.ready(), timeout=0.2)  # the page waits for 5 s
        assert placement_group_table(pending_pg)["state"] == "PENDING"

        @ray.remote(num_cpus=1)
        class Actor:
            def __init__(self):
                pass

            def ready(self):
                pass

        # Create an actor to a Placement group.
        actor = Actor.options(
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement_group=pg,
            )
        ).remote()

        # Verify the actor is scheduled.
        ray.get(actor.ready.remote(), timeout=10)

        @ray.remote(num_cpus=0, num_gpus=1)
        class Actor:
            def __init__(self):
                pass

            def ready(self):
                pass

        # Create a GPU actor on the first bundle of index 0.
        actor2 = Actor.options(
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement_group=pg,
                placement_group_bundle_index=0,
            )
        ).remote()

        # Verify that the GPU actor is scheduled.
        ray.get(actor2.ready.remote(), timeout=10)

        # 1.0/2.0 CPU (1.0 used of 1.0 reserved in Placement groups)
        # 1.0/2.0 GPU (1.0 used of 1.0 reserved in Placement groups)
        report = ray.util.state.resource_report()
        assert "1.0/2.0 CPU (1.0 used of 1.0 reserved in placement groups)" in report
        assert "1.0/2.0 GPU (1.0 used of 1.0 reserved in placement groups)" in report
        assert "{'CPU': 1.0} * 1, {'GPU': 2.0} * 1 (PACK): 1+ pending placement groups" in report

        # This API is asynchronous.
        remove_placement_group(pg)

        # Check that the Placement group has died. (The page waits for 1 s first.)
        eventually(lambda: placement_group_table(pg)["state"] == "REMOVED")
        shown = pformat(placement_group_table(pg))
        assert re.search(r"'placement_group_id': '[0-9a-f]{32}'", shown)
        assert "'strategy': 'PACK'" in shown
        with pytest.raises(ray.exceptions.ActorDiedError):
            ray.get(actor.ready.remote(), timeout=10)

    def test_pack(self, skate_start) -> None:
        skate_start(num_cpus=2, num_gpus=2)
        # Reserve a Placement group of 2 bundles
        # that have to be packed on the same node.
        pg = placement_group([{"CPU": 1}, {"GPU": 1}], strategy="PACK")
        assert ray.get(pg.ready(), timeout=10) == pg


class TestChildren:
    def test_captured(self, skate_start) -> None:
        skate_start(num_cpus=2)

        # Create a Placement group.
        pg = placement_group([{"CPU": 2}])
        ray.get(pg.ready())

        @ray.remote(num_cpus=1)
        def child():
            import time

            time.sleep(0.1)  # the page sleeps for 5 s

        @ray.remote(num_cpus=1)
        def parent():
            # The child task is scheduled to the same Placement group as its parent,
            # although it didn't specify the PlacementGroupSchedulingStrategy.
            ray.get(child.remote())

        # Since the child and parent use 1 CPU each, the Placement group
        # bundle {"CPU": 2} is fully occupied.
        ray.get(
            parent.options(
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=pg, placement_group_capture_child_tasks=True
                )
            ).remote()
        )

        @ray.remote
        def parent():
            # In this case, the child task isn't
            # scheduled with the parent's Placement group.
            ray.get(
                child.options(
                    scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None)
                ).remote()
            )

        # This times out because we cannot schedule the child task.
        # The cluster has {"CPU": 2}, and both of them are reserved by
        # the Placement group with a bundle {"CPU": 2}. Since the child shouldn't
        # be scheduled within this Placement group, it cannot be scheduled because
        # there's no available CPU resources.
        with pytest.raises(ray.exceptions.GetTimeoutError):
            ray.get(
                parent.options(
                    scheduling_strategy=PlacementGroupSchedulingStrategy(
                        placement_group=pg, placement_group_capture_child_tasks=True
                    )
                ).remote(),
                timeout=0.5,  # the page waits for 5 s
            )


def test_names(skate_start) -> None:
    skate_start()
    # first_driver.py
    # Create a Placement group with a global name.
    pg = placement_group([{"CPU": 1}], name="global_name")
    ray.get(pg.ready())

    # second_driver.py
    # Retrieve a Placement group with a global name.
    pg = ray.util.get_placement_group("global_name")
    assert pg.bundle_specs == [{"CPU": 1.0}]


def test_detached(skate_start) -> None:
    skate_start()
    # driver_1.py
    # Create a detached Placement group that survives even after
    # the job terminates. (tests/process/test_group_lifetimes.py ends the job.)
    pg = placement_group([{"CPU": 1}], lifetime="detached", name="global_name")
    ray.get(pg.ready())
    start = time.monotonic()
    assert ray.util.placement_group([{"CPU": 1}]).wait(10)
    assert time.monotonic() - start < 5
