"""Placement groups outlive the head's node: it is killed, and comes back, and what was in them goes on."""

from __future__ import annotations

import os
import pickle
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import skate
from api.rendezvous import eventually
from budgets import HEAD_KILLS_AMONG_GROUPS
from skate.core.membership import RETURN_SECONDS
from skate.exceptions import ActorDiedError, GetTimeoutError, TaskPlacementGroupRemoved
from skate.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from .clusters import Heads, come_in, rows

pytestmark = pytest.mark.timeout(120)

#: kills of the head, while groups are made

HERE, THERE, HEAD = {"CPU": 1, "here": 1}, {"CPU": 1, "there": 1}, {"CPU": 1, "head": 1}

#: for programs
GROUPS = """
from skate.util.placement_group import *
from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy as InGroup
"""


@skate.remote
class Box:
    def __init__(self) -> None:
        self.kept = 0

    def add(self) -> tuple[int, int]:
        self.kept += 1
        return self.kept, os.getpid()


@skate.remote
def where() -> str:
    return skate.get_runtime_context().get_node_id()


@skate.remote(max_retries=0)
def wait_for(path: str) -> int:
    eventually(lambda: os.path.exists(path), 60)
    return os.getpid()


def inside(group: PlacementGroup, index: int) -> dict[str, Any]:
    """Options of what runs in a bundle of the group."""
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, index)}


def ready(*bundles: dict[str, float], **more: Any) -> PlacementGroup:
    group = placement_group(list(bundles), strategy="SPREAD", **more)
    assert group.wait(30)
    return group


def facts(group: PlacementGroup) -> dict[str, Any]:
    """The table's row of the group, but for when it was made."""
    return {name: value for name, value in placement_group_table(group).items() if name != "stats"}


def nodes_of(group: PlacementGroup) -> list[str]:
    return list(facts(group)["bundles_to_node_id"].values())


def states() -> dict[str, str]:
    return {row["name"]: row["state"] for row in placement_group_table().values()}


def nothing_is_held(heads: Heads) -> None:
    """All that the nodes have is free again, and nothing of groups is there."""
    for node in heads.cluster.list_all_nodes():

        def free(node: Any = node) -> bool:
            row = rows(heads.head)[node.node_id]
            names = row["total"].keys() - {"object_store_memory"}
            return all(
                "_group_" not in name and row["available"].get(name) == row["total"][name] for name in names
            )

        eventually(free, 20)


def test_what_is_in_a_group_does_not_notice(heads: Heads, tmp_path: Path) -> None:
    here, there = heads.node("here"), heads.node("there")
    come_in(here)
    group = ready(HERE, THERE, name="kept")
    before = facts(group)
    assert list(before["bundles_to_node_id"].values()) == [here.node_id, there.node_id]
    box = Box.options(**inside(group, 1)).remote()
    count, pid = skate.get(box.add.remote())
    assert count == 1
    long = wait_for.options(**inside(group, 0)).remote(str(tmp_path / "end"))
    heads.kill()
    assert skate.get(box.add.remote()) == (2, pid)
    heads.back()
    heads.wait_until_all_are_back()
    assert facts(group) == before
    assert get_placement_group("kept") == group
    assert skate.get(box.add.remote()) == (3, pid)
    (tmp_path / "end").touch()
    assert skate.get(long, timeout=20) > 0
    assert skate.get(where.options(**inside(group, 0)).remote(), timeout=20) == here.node_id
    skate.kill(box)
    assert skate.get(where.options(**inside(group, 1)).remote(), timeout=20) == there.node_id
    again = Box.options(**inside(group, 1)).remote()
    assert skate.get(again.add.remote(), timeout=20)[0] == 1
    remove_placement_group(group)
    with pytest.raises(ActorDiedError, match="placement group was removed"):
        skate.get(again.add.remote(), timeout=20)
    nothing_is_held(heads)


def test_bundles_on_nodes_that_died_are_placed_again(heads: Heads) -> None:
    """Those of the head's own node when it is back, those of another that does not come back when that is dead."""
    here, there, gone = heads.node("here"), heads.node("there"), heads.node("gone")
    come_in(here)
    group = ready(HEAD, THERE)
    lost = ready({"CPU": 1, "gone": 1}, THERE)
    waits = placement_group([{"CPU": 1, "late": 1}], name="waits")
    box = Box.options(**inside(group, 1)).remote()
    assert skate.get(box.add.remote())[0] == 1
    heads.kill()
    heads.cluster.remove_node(gone, allow_graceful=False)
    stuck = where.options(**inside(group, 0)).remote()
    with pytest.raises(GetTimeoutError):
        skate.get(stuck, timeout=0.5)
    heads.back()
    assert skate.get(stuck, timeout=20) == heads.head.node_id
    eventually(lambda: facts(group)["state"] == "CREATED")
    assert nodes_of(group) == [heads.head.node_id, there.node_id]
    assert skate.get(box.add.remote())[0] == 2
    eventually(lambda: facts(lost)["state"] == "RESCHEDULING", RETURN_SECONDS + 10)
    assert nodes_of(lost) == ["", there.node_id]
    other = heads.node("gone")
    eventually(lambda: facts(lost)["state"] == "CREATED")
    assert nodes_of(lost) == [other.node_id, there.node_id]
    assert states()["waits"] == "PENDING"
    heads.node("late")
    assert waits.wait(20)
    for each in (group, lost, waits):
        remove_placement_group(each)
    nothing_is_held(heads)


def test_what_is_said_while_the_head_is_away(heads: Heads, program: Callable) -> None:
    """It is done, in order, when the head is back; whatever waits for it waits so long."""
    here, there = heads.node("here"), heads.node("there")
    come_in(here)
    group = ready(HERE, THERE, name="name")
    asked = program(
        there,
        GROUPS + "group = placement_group([{'there': 1}], name='asked', lifetime='detached')\n"
        "say(group.wait(30))\nsay('leaves')\n",
    )
    assert [asked.line(), asked.line()] == ["True", "leaves"]
    leaves = program(
        there,
        GROUPS + "say(placement_group([{'CPU': 0.5, 'there': 1}], name='of a program').wait(30))\ninput()",
    )
    assert leaves.line() == "True"
    heads.kill()
    leaves.kill()
    assert skate.get(where.options(**inside(group, 1)).remote(), timeout=20) == there.node_id
    remove_placement_group(group)
    remove_placement_group(placement_group([HERE]))
    made = placement_group([HERE, THERE], strategy="STRICT_SPREAD")
    whole = made.ready()
    named = program(
        here,
        GROUPS + "say('asks')\ngroup = placement_group([{'CPU': 0.5}], name='name')\nsay(group.wait(30))\n"
        "remove_placement_group(get_placement_group('asked'))\nsay('removed')\ninput()",
    )
    assert named.line() == "asks"
    assert not made.wait(0.3)
    heads.back()
    assert skate.get(whole, timeout=30) == made
    assert [named.line(), named.line()] == ["True", "removed"]
    eventually(lambda: states()["asked"] == "REMOVED")
    assert {name for name, state in states().items() if state == "CREATED"} == {"name", ""}
    with pytest.raises(TaskPlacementGroupRemoved):
        skate.get(where.options(**inside(group, 1)).remote(), timeout=20)
    remove_placement_group(made)
    named.kill()
    nothing_is_held(heads)


def test_detached_groups_and_those_of_programs_on_the_head_s_node(heads: Heads, program: Callable) -> None:
    there = heads.node("there")
    maker = program(
        heads.head,
        GROUPS
        + "kept = placement_group([{'CPU': 0.5, 'there': 1}, {'head': 1}], name='kept', lifetime='detached')\n"
        "goes = placement_group([{'CPU': 0.5, 'there': 1}], name='goes')\n"
        "say(kept.wait(30), goes.wait(30))\n"
        "@skate.remote(num_cpus=0, max_restarts=-1)\n"
        "class Box:\n"
        "    def pid(self):\n"
        "        return os.getpid()\n"
        "def box(name, group):\n"
        "    chosen = InGroup(group, 0)\n"
        "    made = Box.options(name=name, lifetime='detached', scheduling_strategy=chosen).remote()\n"
        "    return skate.get(made.pid.remote())\n"
        "say(box('in kept', kept), box('in goes', goes))\n"
        "input()",
    )
    assert maker.line() == "True True"
    pids = [int(pid) for pid in maker.line().split()]
    come_in(there)
    box, mortal = skate.get_actor("in kept"), skate.get_actor("in goes")
    assert skate.get([box.pid.remote(), mortal.pid.remote()]) == pids
    for _ in range(2):
        heads.kill()
        maker.kill()
        heads.back()
        heads.wait_until_all_are_back()
        assert skate.get(box.pid.remote(), timeout=20) == pids[0], "it lives on"
        group = get_placement_group("kept")
        eventually(lambda group=group: facts(group)["state"] == "CREATED")
        assert nodes_of(group) == [there.node_id, heads.head.node_id]
        with pytest.raises(ActorDiedError):
            skate.get(mortal.pid.remote(), timeout=20)
        with pytest.raises(ValueError, match="goes"):
            get_placement_group("goes")
    eventually(lambda: not os.path.exists(f"/proc/{pids[1]}"))
    assert skate.get(where.options(num_cpus=0.5, **inside(group, 0)).remote(), timeout=20) == there.node_id
    remove_placement_group(group)
    eventually(lambda: not os.path.exists(f"/proc/{pids[0]}"))
    with pytest.raises(ActorDiedError, match="placement group was removed"):
        skate.get(box.pid.remote(), timeout=20)
    nothing_is_held(heads)


@pytest.mark.timeout(60 + 15 * HEAD_KILLS_AMONG_GROUPS)
def test_kills_while_groups_are_made(heads: Heads, program: Callable, tmp_path: Path) -> None:
    """Each group that a program has made and not removed is there after each kill, whole; at the end nothing is."""
    here, there = heads.node("here"), heads.node("there")
    come_in(here)
    chance = random.Random(HEAD_KILLS_AMONG_GROUPS)
    maker = program(
        there,
        GROUPS + "import random\n"
        "chance, kept, number = random.Random(7), [], 0\n"
        "def one():\n"
        "    return 1\n"
        "while not os.path.exists(exchange + '/end'):\n"
        "    number += 1\n"
        "    bundles = [{name: 1} for name in chance.choices(['here', 'there', 'head'], k=chance.randrange(1, 4))]\n"
        "    name = f'name{number}' if number % 3 else ''\n"
        "    kept.append(placement_group(bundles, strategy='SPREAD', name=name))\n"
        "    if number % 2:\n"
        "        assert kept[-1].wait(60)\n"
        "    if number % 7 == 0:\n"
        "        chosen = InGroup(kept[-1], 0)\n"
        "        task = skate.remote(num_cpus=0, resources={}, scheduling_strategy=chosen, max_retries=-1)(one)\n"
        "        assert skate.get(task.remote(), timeout=60) == 1\n"
        "    if len(kept) > 10:\n"
        "        remove_placement_group(kept.pop(chance.randrange(len(kept))))\n"
        "    give('made', number)\n"
        "states = [placement_group_table(group)['state'] for group in kept if group.wait(60)]\n"
        "give('states', states)\n"
        "for group in kept:\n"
        "    remove_placement_group(group)\n"
        "give('over', 1)\n"
        "input()",
    )

    def made() -> int:
        return int(taken("made"))

    def taken(name: str) -> Any:
        eventually(lambda: (tmp_path / name).exists(), 60)
        return pickle.loads((tmp_path / name).read_bytes())

    for _ in range(HEAD_KILLS_AMONG_GROUPS):
        before = made()
        eventually(lambda before=before: made() > before + 10, 60)
        time.sleep(chance.random() * 0.05)
        heads.kill()
        time.sleep(chance.random() * 0.5)
        heads.back()
    heads.wait_until_all_are_back()
    (tmp_path / "end").touch()
    assert maker.process.poll() is None
    assert set(taken("states")) == {"CREATED"}
    taken("over")
    nothing_is_held(heads)
    eventually(lambda: {row["state"] for row in placement_group_table().values()} <= {"REMOVED"})
