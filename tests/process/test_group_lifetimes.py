"""How long placement groups last: as long as their program, their detached actor, or until they are removed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .commands import run, standing_node

pytestmark = pytest.mark.timeout(60)

HEAD = """
import os, skate
from skate.util.placement_group import *
from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy as InGroup
skate.init(namespace="here", log_to_driver=False)

def states():
    return {facts["name"]: facts["state"] for facts in placement_group_table().values()}

@skate.remote(num_cpus=0)
class Maker:
    def make(self, name):
        group = placement_group([{"CPU": 1}], name=name)
        return group.wait(10)
    def group(self):
        return get_current_placement_group()
    def die(self):
        os._exit(1)
"""


def program(text: str) -> str:
    return run(HEAD + text)


@pytest.fixture(autouse=True)
def node() -> Iterator[dict]:
    with standing_node(3) as facts:
        yield facts


def test_a_group_ends_with_its_program_and_a_detached_one_does_not() -> None:
    program(
        "for name, lifetime in (('stays', 'detached'), ('goes', None)):\n"
        "    assert placement_group([{'CPU': 1}], name=name, lifetime=lifetime).wait(10)\n"
        "maker = Maker.remote()\n"
        "assert skate.get(maker.make.remote('goes too'))"
    )
    text = program(
        "while skate.available_resources()['CPU'] != 2: pass\n"
        "print(sorted(states().items()))\n"
        "group = get_placement_group('stays')\n"
        "print(group.bundle_specs, group.wait(10))\n"
        "maker = Maker.options(scheduling_strategy=InGroup(group)).remote()\n"
        "print(skate.get(maker.group.remote()) == group)\n"
        "remove_placement_group(group)\n"
        "while skate.available_resources()['CPU'] != 3: pass\n"
        "print(states()['stays'])"
    )
    assert text.splitlines() == [
        "[('goes', 'REMOVED'), ('goes too', 'REMOVED'), ('stays', 'CREATED')]",
        "[{'CPU': 1.0}] True",
        "True",
        "REMOVED",
    ]


def test_a_killed_program_s_groups_end() -> None:
    text = program(
        "import signal, subprocess, sys\n"
        "code = 'import os, signal, skate; skate.init(); ' + \\\n"
        '    \'skate.util.placement_group([{"CPU": 3}], name="lost").wait(10); os.kill(os.getpid(), signal.SIGKILL)\'\n'
        "assert subprocess.run([sys.executable, '-c', code]).returncode == -signal.SIGKILL\n"
        "print(placement_group([{'CPU': 3}]).wait(10), states()['lost'])"
    )
    assert text == "True REMOVED"


def test_a_detached_actor_s_group_lasts_as_long_as_the_actor() -> None:
    program(
        "maker = Maker.options(name='maker', lifetime='detached', max_restarts=1).remote()\n"
        "assert skate.get(maker.make.remote('of the actor'))"
    )
    text = program(
        "print(states())\n"
        "maker = skate.get_actor('maker')\n"
        "maker.die.remote()\n"
        "print(skate.get(maker.group.options(max_task_retries=-1).remote()), states())\n"
        "skate.kill(maker)\n"
        "while states()['of the actor'] != 'REMOVED': pass\n"
        "print(skate.available_resources()['CPU'])"
    )
    assert text.splitlines() == [
        "{'of the actor': 'CREATED'}",
        "None {'of the actor': 'CREATED'}",
        "3.0",
    ]


def test_a_detached_actor_in_a_group_ends_with_the_group() -> None:
    text = program(
        "group = placement_group([{'CPU': 1}], lifetime='detached')\n"
        "maker = Maker.options(name='inside', lifetime='detached', max_restarts=-1,\n"
        "                      scheduling_strategy=InGroup(group)).remote()\n"
        "assert skate.get(maker.group.remote()) == group\n"
        "remove_placement_group(group)\n"
        "while skate.util.list_named_actors(): pass\n"
        "try: skate.get(maker.group.remote())\n"
        "except skate.exceptions.ActorDiedError as error: print('placement group was removed' in str(error))"
    )
    assert text == "True"


MAKES = """
import skate, sys, time
from skate.util.placement_group import placement_group
skate.init(namespace=sys.argv[1] or None)
group = placement_group([{"CPU": 1}], name=sys.argv[2])
assert group.wait(10)
print("made", group.id.hex())
time.sleep(60)
"""
FINDS = """
import skate, sys
from skate.util.placement_group import get_placement_group
skate.init(namespace=sys.argv[1] or None)
for name in sys.argv[2:]:
    try:
        print(name, get_placement_group(name).id.hex())
    except ValueError:
        print(name, "nothing")
"""


def test_a_name_of_a_program_without_a_namespace_is_the_whole_cluster_s(start_driver) -> None:
    """Another program finds the group, whether it has a namespace or none; but not one that was named in a namespace.

    The programs that have made them still run.
    """
    (everybodys,) = start_driver(MAKES, "", "everybodys").line("made")
    (theirs,) = start_driver(MAKES, "theirs", "theirs").line("made")
    (hidden,) = start_driver(MAKES, "theirs", "everybodys").line("made")
    for namespace, found in (
        ("", [everybodys, "nothing"]),
        ("mine", [everybodys, "nothing"]),
        ("theirs", [hidden, theirs]),
    ):
        finds = start_driver(FINDS, namespace, "everybodys", "theirs")
        assert [*finds.line("everybodys"), *finds.line("theirs")] == found
