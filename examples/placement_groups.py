"""Reserving resources together: a placement group, what runs in it, and what happens when it is removed.

Run it:  python examples/placement_groups.py
"""

import skate
from skate.util.placement_group import get_current_placement_group, placement_group, remove_placement_group
from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy


@skate.remote(num_cpus=1)
def where():
    return "outside" if get_current_placement_group() is None else "in the group"


@skate.remote(num_cpus=1)
class Trainer:
    def helper_runs(self):
        return skate.get(where.remote())


def main() -> None:
    skate.init(num_cpus=3)

    # Two bundles, reserved both or none. Nobody else gets these CPUs.
    group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="PACK")
    skate.get(group.ready())
    print("left for others:", skate.available_resources()["CPU"])

    inside = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    print("a task runs", skate.get(where.options(scheduling_strategy=inside).remote()))
    print("another runs", skate.get(where.remote()))

    # An actor whose tasks go where it is.
    with_children = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    trainer = Trainer.options(scheduling_strategy=with_children).remote()
    print("the actor's helper runs", skate.get(trainer.helper_runs.remote()))

    # More than there is waits, and holds nothing meanwhile.
    too_large = placement_group([{"CPU": 1}, {"CPU": 2}])
    print("ready within half a second:", too_large.wait(0.5))
    print(skate.util.state.resource_report())

    # What uses a group ends with it; what waited for its CPUs goes on.
    remove_placement_group(group)
    try:
        skate.get(trainer.helper_runs.remote())
    except (skate.exceptions.ActorDiedError, skate.exceptions.TaskPlacementGroupRemoved) as error:
        print("the actor:", str(error).splitlines()[-1])
    print("and now there is room:", too_large.wait(10))

    skate.shutdown()


if __name__ == "__main__":
    main()
