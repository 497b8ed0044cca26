"""A node manager's tables hold what there is, not what there has been: of actors, names, groups, functions, classes,
environments and programs that are gone nothing is left, but for a few memories that have a limit."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import skate
from api.rendezvous import eventually
from skate.cluster_utils import Cluster
from skate.runtime import current
from skate.util.placement_group import placement_group, remove_placement_group

pytestmark = pytest.mark.timeout(60)

#: the last ones are remembered, about 1,000 of each
MEMORIES = {
    "ActorDirectory._causes",
    "GroupDirectory.removed_groups",
    "GroupDirectory._ends",
    "Settling._acquaintances",
}
#: there are as many as there are workers, some of which start and end as the node sees fit
OF_WORKERS = {
    "Admission._idle",
    "Admission.workers",
    "NodeMailbox._links",
    "NodeMailbox._watched",
    "NodeManager._by_pid",
    "NodeManager._processes",
    "Settlements._processes",
    "Zygotes._others",
}


class Kept:
    def ping(self) -> int:
        return 1

    def leave(self) -> None:
        skate.actor.exit_actor()


def use_everything(number: int) -> None:
    """Makes some of everything, lets go of it in every way, and waits for that."""
    Actor = skate.remote(num_cpus=0)(Kept)
    for index in range(3):
        label = f"{number} {index}"
        actor = Actor.options(name=f"held {label}").remote()
        assert skate.get(actor.ping.remote()) == 1
        if index == 1:
            skate.kill(actor)
        elif index == 2:
            with pytest.raises(skate.exceptions.ActorDiedError):
                skate.get(actor.leave.remote())
        detached = Actor.options(name=f"detached {label}", lifetime="detached").remote()
        skate.kill(detached)
        with pytest.raises(ValueError, match="detached"):
            skate.get_actor(f"detached {label}")
        assert skate.get(skate.remote(lambda index=index: (number, index)).remote()) == (number, index)
    environment = {"env_vars": {"NUMBER": str(number)}}
    assert skate.get(skate.remote(lambda: 1).options(runtime_env=environment).remote()) == 1
    group = placement_group([{"CPU": 1}], name=f"group {number}")
    skate.get(group.ready())
    remove_placement_group(group)


def settled() -> dict[str, int]:
    """How many entries each table has, once nothing is under way."""
    before: dict[str, int] = {}

    def quiet() -> bool:
        nonlocal before
        last, before = before, current.runtime.query("tables")
        passing = ("Admission.leases", "Admission._starting", "ActorDirectory.actors", "NodeManager._leaving")
        return before == last and not any(before[table] for table in passing)

    eventually(quiet)
    return {table: size for table, size in before.items() if table not in MEMORIES | OF_WORKERS}


def test_of_what_a_program_had_nothing_is_left(skate_start) -> None:
    skate_start(num_cpus=2)
    use_everything(0)
    first = settled()
    for number in (1, 2):
        use_everything(number)
    last = settled()
    assert {table: size for table, size in last.items() if size > first[table]} == {}
    runtime = current.runtime
    assert not runtime.actors._made
    assert not runtime.objects.when_freed


def test_of_programs_that_have_left_nothing_is_left(start_driver) -> None:
    """Nor of what they had on other nodes, at the head and at theirs."""
    program = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        import skate
        from process.test_tables import Kept
        skate.init(address=sys.argv[1])
        far = skate.remote(resources={{"far": 1}}, num_cpus=0)
        actor = far(Kept).options(name=sys.argv[2]).remote()
        assert skate.get(actor.ping.remote()) == 1
        assert skate.get(far(lambda: 1).remote()) == 1
        print("done", flush=True)
        """
    )
    with Cluster() as cluster:
        head = cluster.add_node(num_cpus=2)
        cluster.add_node(num_cpus=2, resources={"far": 2})
        sizes = []
        for number in (1, 2):
            driver = start_driver(program, head.session_dir, f"name {number}")
            driver.line("done")
            eventually(lambda driver=driver: not driver.running)
            skate.init(address=head.session_dir)
            try:
                eventually(lambda: current.runtime.query("tables")["NodeManager._jobs"] == 1)
                sizes.append(settled())
            finally:
                skate.shutdown()
        assert {table: size for table, size in sizes[1].items() if size > sizes[0][table]} == {}
