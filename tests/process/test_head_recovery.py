"""The head dies, or is stopped, and comes back: what the others notice of it, and what is still there."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import skate
from api.rendezvous import eventually
from budgets import HEAD_KILLS
from skate.cluster_utils import Cluster
from skate.config import SESSIONS_FOLDER
from skate.core.membership import RETURN_SECONDS
from skate.driver.nodes import CannotJoin
from skate.node.sessions import standing
from skate.util import list_named_actors

from .clusters import Heads, come_in, living, log_of, rows

pytestmark = pytest.mark.timeout(120)

BOX = """
@skate.remote(max_restarts=3, num_cpus=0)
class Box:
    def __init__(self, kept):
        self.kept = kept
    def add(self):
        self.kept += 1
        return self.kept
    def pid(self):
        return os.getpid()
    def leave(self):
        skate.actor.exit_actor()
    def raises(self):
        raise ValueError("on purpose")
"""


def called(handle: Any, seconds: float = 20) -> Any:
    """What its next call gives, once it can be called."""

    def answer() -> Any:
        try:
            return skate.get(handle.add.remote(), timeout=20)
        except skate.exceptions.ActorUnavailableError:
            return None

    return eventually(answer, seconds)


def find(name: str) -> Any:
    """The actor of that name; None where there is none."""
    try:
        return skate.get_actor(name)
    except ValueError:
        return None


def test_what_was_made_on_the_head_s_node_and_outlives_it(heads: Heads, program: Callable) -> None:
    there = heads.node("there")
    maker = program(
        heads.head,
        BOX + "far = Box.options(name='far', lifetime='detached', resources={'there': 1}).remote(10)\n"
        "lost = Box.options(name='lost', lifetime='detached', max_restarts=0, resources={'head': 1}).remote(20)\n"
        "here = skate.util.scheduling_strategies.NodeAffinitySchedulingStrategy(\n"
        "    skate.get_runtime_context().get_node_id(), soft=False)\n"
        "near = Box.options(name='near', lifetime='detached', scheduling_strategy=here).remote(30)\n"
        "mortal = Box.options(name='mortal', resources={'there': 1}).remote(40)\n"
        "nameless = Box.options(lifetime='detached', resources={'there': 1}).remote(50)\n"
        "give('nameless', nameless)\n"
        "say(skate.get([each.add.remote() for each in (far, lost, near, mortal, nameless)]))\n"
        "input()",
    )
    assert maker.line() == "[11, 21, 31, 41, 51]"
    come_in(there)
    far, lost, near, mortal = (skate.get_actor(name) for name in ("far", "lost", "near", "mortal"))
    assert skate.get([each.add.remote() for each in (far, lost, near, mortal)]) == [12, 22, 32, 42]
    pid = skate.get(far.pid.remote())
    address = heads.head.address
    heads.kill()
    maker.kill()
    assert skate.get(far.add.remote()) == 13, "calls do not notice"
    heads.back()
    assert heads.head.address == address
    heads.wait_until_all_are_back()
    assert skate.get(far.add.remote()) == 14
    assert skate.get(skate.get_actor("far").pid.remote()) == pid, "it lives on"
    assert called(near) == 31, "it was made again, as it began"
    assert called(skate.get_actor("near")) == 32
    with pytest.raises(
        skate.exceptions.ActorDiedError, match="Its process ended with the node of the cluster's head"
    ):
        skate.get(lost.add.remote(), timeout=20)
    with pytest.raises(skate.exceptions.ActorDiedError, match="The process that made it is gone"):
        skate.get(mortal.add.remote(), timeout=20)
    assert sorted(list_named_actors()) == ["far", "near"]
    taken = skate.remote(Again).options(name="lost", lifetime="detached").remote()
    assert skate.get(taken.one.remote()) == 1, "the name is free"
    other = program(
        heads.head, BOX + "nameless = take('nameless')\nsay(skate.get(nameless.add.remote()))\ninput()"
    )
    assert other.line() == "52", "a program of the new head's node calls an actor of the old one's"
    skate.kill(far)
    eventually(lambda: find("far") is None)
    eventually(lambda: rows(heads.head)[there.node_id]["available"].get("there") == 99 * 10_000)
    restarted = skate.get(near.pid.remote())
    os.kill(restarted, signal.SIGKILL)
    eventually(lambda: called(near) in (31, 32))
    assert skate.get(near.pid.remote()) != restarted, "the head that came back starts it again"


class Again:
    def one(self) -> int:
        return 1


def test_tasks_and_calls_between_the_others_do_not_notice(
    heads: Heads, program: Callable, tmp_path: Path
) -> None:
    here, there = heads.node("here"), heads.node("there")
    busy = program(
        here,
        BOX + "box = Box.options(resources={'there': 1}, max_restarts=0).remote(0)\n"
        "@skate.remote(resources={'there': 1}, max_retries=0)\n"
        "def wait(path):\n"
        "    while not os.path.exists(path):\n"
        "        time.sleep(0.01)\n"
        "    return os.getpid()\n"
        "@skate.remote(resources={'there': 1}, max_retries=0)\n"
        "def twice(x):\n"
        "    return 2 * x\n"
        "long = wait.remote(exchange + '/end')\n"
        "begun = skate.get(box.add.remote())\n"
        "say('begun')\n"
        "rounds = 0\n"
        "while not os.path.exists(exchange + '/end'):\n"
        "    rounds += 1\n"
        "    give('rounds', rounds)\n"
        "    assert skate.get([twice.remote(n) for n in range(20)]) == [2 * n for n in range(20)]\n"
        "    assert skate.get([box.add.remote() for _ in range(20)])[-1] == 1 + 20 * rounds\n"
        "say(rounds > 0, skate.get(long) > 0)\n"
        "input()",
    )
    assert busy.line() == "begun"

    def goes_on() -> None:
        before = rounds()
        eventually(lambda: rounds() > before + 2)

    def rounds() -> int:
        return pickle.loads(
            eventually(lambda: (tmp_path / "rounds").exists()) and (tmp_path / "rounds").read_bytes()
        )

    goes_on()
    heads.kill()
    goes_on()
    heads.back()
    heads.wait_until_all_are_back()
    goes_on()
    (tmp_path / "end").touch()
    assert busy.line() == "True True"
    assert {row["alive"] for row in rows(there).values() if row["node"] in (here.node_id, there.node_id)} == {
        True
    }


def test_names_of_the_others_are_told_again(heads: Heads, program: Callable) -> None:
    here, there = heads.node("here"), heads.node("there")
    come_in(here)
    box = skate.remote(resources={"here": 0.1})(Again)
    kept = box.options(name="kept").remote()
    ended = box.options(name="ended").remote()
    assert skate.get([kept.one.remote(), ended.one.remote()]) == [1, 1]
    heads.kill()
    skate.kill(ended)
    asker = program(there, "say('asks')\nsay(skate.get(skate.get_actor('kept').one.remote()))\ninput()")
    claimer = program(
        there,
        BOX + "say('claims')\nbox = Box.options(name='late').remote(1)\nsay(skate.get(box.add.remote()))\n"
        "try: Box.options(name='kept').remote(1)\n"
        "except ValueError as error: say('taken')\ninput()",
    )
    assert [asker.line(), claimer.line()] == ["asks", "claims"]
    heads.back()
    assert asker.line() == "1", "what was asked while there was no head is answered"
    assert [claimer.line(), claimer.line()] == ["2", "taken"]
    heads.wait_until_all_are_back()
    eventually(lambda: sorted(list_named_actors()) == ["kept", "late"])


def test_what_died_while_the_head_was_away(heads: Heads, program: Callable) -> None:
    here, there, gone = heads.node("here"), heads.node("there"), heads.node("gone")
    maker = program(
        heads.head,
        BOX
        + "def make(name, **options):\n"
        "    return Box.options(name=name, lifetime='detached', **options).remote(0)\n"
        "boxes = [make('killed', resources={'there': 1}), make('left', resources={'there': 1}),\n"
        "         make('ended', resources={'there': 1}), make('moved', num_cpus=1, scheduling_strategy=\n"
        "         skate.util.scheduling_strategies.NodeAffinitySchedulingStrategy(take('gone'), soft=True))]\n"
        "say(skate.get([box.add.remote() for box in boxes]))\ninput()".replace(
            "take('gone')", repr(gone.node_id)
        ),
    )
    assert maker.line() == "[1, 1, 1, 1]"
    come_in(here)
    killed, left, ended, moved = (skate.get_actor(name) for name in ("killed", "left", "ended", "moved"))
    pids = skate.get([each.pid.remote() for each in (killed, moved, left, ended)])
    heads.kill()
    maker.kill()
    heads.cluster.remove_node(gone, allow_graceful=False)
    os.kill(pids[0], signal.SIGKILL)
    leaving = left.leave.remote()
    skate.kill(ended)
    with pytest.raises(skate.exceptions.ActorDiedError):
        skate.get(ended.add.remote(), timeout=5)
    heads.back()
    assert called(killed) == 1, "it was started again"
    with pytest.raises(skate.exceptions.ActorDiedError, match="exit_actor"):
        skate.get([leaving, left.add.remote()], timeout=20)
    eventually(lambda: sorted(list_named_actors()) == ["killed", "moved"])
    assert called(moved, RETURN_SECONDS + 20) == 1, (
        "its node did not come back: it was started on another one"
    )
    assert living(heads.head) == {node.node_id for node in (heads.head, here, there)}
    assert "did not find this one in time" in rows(here)[gone.node_id]["cause"]


def test_the_head_dies_again_and_again(heads: Heads, program: Callable) -> None:
    """What the first head had is still there under the third, though each has an id of its own."""
    there = heads.node("there")
    maker = program(
        heads.head,
        BOX + "far = Box.options(name='far', lifetime='detached', resources={'there': 1}).remote(0)\n"
        "say(skate.get(far.add.remote()))\ninput()",
    )
    assert maker.line() == "1"
    come_in(there)
    far = skate.get_actor("far")
    assert skate.get(far.add.remote()) == 2
    seen = {heads.head.node_id}
    for number in range(3):
        heads.kill()
        if number == 1:
            os.kill(skate.get(far.pid.remote()), signal.SIGKILL)
        heads.back()
        seen.add(heads.head.node_id)
        heads.wait_until_all_are_back()
        assert [called(skate.get_actor("far")), called(far)] == [[3, 4], [1, 2], [3, 4]][number]
    assert len(seen) == 4


def test_a_head_that_was_stopped_and_comes_back(heads: Heads, program: Callable) -> None:
    """A file that its user has named stays when the head is stopped, and the others know that it may come back."""
    there = heads.node("there")
    maker = program(
        heads.head,
        BOX + "far = Box.options(name='far', lifetime='detached', resources={'there': 1}).remote(0)\n"
        "say(skate.get(far.add.remote()))\ninput()",
    )
    assert maker.line() == "1"
    come_in(there)
    far = skate.get_actor("far")
    assert skate.get(far.add.remote()) == 2
    heads.stop()
    assert sorted(path.name for path in heads.state.parent.iterdir()) == ["head.sqlite"]
    eventually(lambda: len(living(there)) == 1)
    assert skate.get(far.add.remote()) == 3
    heads.back()
    heads.wait_until_all_are_back()
    assert skate.get(skate.get_actor("far").add.remote()) == 4


@pytest.mark.parametrize("fresh", [False, True])
def test_a_head_that_does_not_come_back(tmp_path: Path, program: Callable, fresh: bool) -> None:
    """It wrote nothing down, or what it wrote is dropped: its detached actors end when another one comes."""
    heads = Heads(tmp_path)
    try:
        if not fresh:
            heads.stop()
            heads.state.unlink()
            heads.cluster.add_node(num_cpus=1)
        there = heads.node("there")
        maker = program(
            heads.head,
            BOX + "far = Box.options(name='far', lifetime='detached', resources={'there': 1}).remote(0)\n"
            "say(skate.get(far.pid.remote()))\ninput()",
        )
        pid = int(maker.line())
        come_in(there)
        far = skate.get_actor("far")
        port = int(heads.head.address.rpartition(":")[2])
        heads.kill()
        if fresh:
            heads.state.unlink()
        heads.cluster.add_node(num_cpus=1, port=port, state_file=tmp_path / "another.sqlite")
        with pytest.raises(skate.exceptions.ActorDiedError):
            skate.get(far.add.remote(), timeout=20)
        eventually(lambda: not Path(f"/proc/{pid}").exists())
        heads.wait_until_all_are_back()
        assert list_named_actors() == []
    finally:
        skate.shutdown()
        heads.cluster.shutdown()


def test_an_actor_whose_arguments_never_came(heads: Heads, program: Callable) -> None:
    """The program that was to give them died with the head."""
    there = heads.node("there")
    maker = program(
        heads.head,
        BOX + "@skate.remote(resources={'there': 1})\n"
        "def never():\n"
        "    time.sleep(3600)\n"
        "box = Box.options(name='box', lifetime='detached').remote(never.remote())\nsay('made')\ninput()",
    )
    assert maker.line() == "made"
    come_in(there)
    box = skate.get_actor("box")
    waits = box.add.remote()
    heads.kill()
    maker.kill()
    heads.back()
    with pytest.raises(
        skate.exceptions.ActorDiedError, match="head died before the arguments of its constructor were there"
    ):
        skate.get(waits, timeout=20)
    eventually(lambda: list_named_actors() == [])


def test_a_state_file_that_cannot_be_used(heads: Heads, tmp_path: Path) -> None:
    with pytest.raises(CannotJoin, match="a head that runs has the state file"):
        Cluster(head_node_args={"state_file": heads.state}, initialize_head=True)
    heads.kill()
    with pytest.raises(CannotJoin, match="is of a cluster with another key"):
        Cluster(head_node_args={"state_file": heads.state}, initialize_head=True)
    damaged = tmp_path / "damaged.sqlite"
    sound = heads.state.read_bytes()
    damaged.write_bytes(sound[:100] + bytes(len(sound) - 100))
    damaged.chmod(0o600)
    with pytest.raises(CannotJoin, match=r"is damaged: .*--fresh"):
        heads.back(state_file=damaged)
    heads.back()


def test_a_disk_that_is_full(heads: Heads, program: Callable) -> None:
    """The cluster goes on, the user hears of it, and nobody comes back to what is old."""
    maker = program(
        heads.head,
        "LARGE = bytes(3_000_000)\n"
        "@skate.remote(num_cpus=0)\n"
        "class Large:\n"
        "    def size(self):\n"
        "        return len(LARGE)\n"
        "input()\n"
        "box = Large.options(name='box', lifetime='detached').remote()\n"
        "say(skate.get(box.size.remote()) == 3_000_000)\ninput()",
    )
    resource.prlimit(heads.head.pid, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    maker.go_on()
    assert maker.line() == "True"
    assert "cannot be written" in log_of(heads.head)
    eventually(lambda: list(heads.state.parent.iterdir()) == [])


# ------------------------------------------------------------------------------------------------------- the command

LOCAL = ("--node-ip-address", "127.0.0.1", "--num-cpus", "2", "--object-store-memory", "100000000")


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "skate", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def state_files() -> list[str]:
    return [name for name in os.listdir(SESSIONS_FOLDER) if "sqlite" in name]


def test_start_again_after_a_crash(program: Callable) -> None:
    """Nothing has to be named: address, key and what was known are those of the head that crashed."""
    try:
        first = command("start", "--head", *LOCAL)
        head = standing()[-1]
        command("start", "--address", head["address"], *LOCAL)
        other = standing()[-1]
        skate.init(address=head["folder"], namespace="shared")
        far = skate.remote(Again).options(
            name="far",
            lifetime="detached",
            scheduling_strategy=skate.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                other["node"], False
            ),
        )
        assert skate.get(far.remote().one.remote()) == 1
        os.kill(head["pid"], signal.SIGKILL)
        skate.shutdown()
        assert "It takes up the cluster" not in first
        again = command("start", "--head", *LOCAL[2:])
        assert re.search(rf"It takes up the cluster of {SESSIONS_FOLDER}/head\S*\.sqlite", again), again
        back = standing()[-1]
        assert (back["address"], back["key_file"]) == (head["address"], head["key_file"])
        skate.init(address=other["folder"], namespace="shared")
        eventually(lambda: sum(row["Alive"] for row in skate.nodes()) == 2, 20)
        assert skate.get(skate.get_actor("far").one.remote()) == 1
        skate.shutdown()
        command("stop")
        assert state_files() == []
        command("start", "--head", *LOCAL)
        assert not standing()[-1]["takes_up"], "a stop is the end of a cluster"
        os.kill(standing()[-1]["pid"], signal.SIGKILL)
        eventually(lambda: standing() == [])
        assert state_files()
        command("start", "--head", "--fresh", *LOCAL)
        assert not standing()[-1]["takes_up"]
    finally:
        skate.shutdown()
        command("stop")
        assert state_files() == []


def test_a_head_that_does_not_start_leaves_nothing() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = subprocess.run(
            [sys.executable, "-m", "skate", "start", "--head", *LOCAL, "--port", str(taken.getsockname()[1])],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert "cannot be bound" in done.stderr
    assert state_files() == []


def test_a_head_whose_zygote_dies_has_crashed() -> None:
    try:
        command("start", "--head", *LOCAL)
        head = standing()[-1]
        os.kill(head["zygote_pid"], signal.SIGKILL)
        eventually(lambda: standing() == [])
        command("start", "--head", *LOCAL)
        assert standing()[-1]["takes_up"]
        assert standing()[-1]["address"] == head["address"]
    finally:
        command("stop")


def test_stop_forgets_what_a_crash_has_left() -> None:
    command("start", "--head", *LOCAL)
    os.kill(standing()[-1]["pid"], signal.SIGKILL)
    eventually(lambda: standing() == [])
    assert "1 head that had crashed" in command("stop")
    assert state_files() == []


def test_a_node_that_init_starts_writes_nothing() -> None:
    skate.init(num_cpus=1, namespace="shared")
    try:
        assert (
            skate.get(skate.remote(Again).options(name="a", lifetime="detached").remote().one.remote()) == 1
        )
        assert state_files() == []
        [folder] = [name for name in os.listdir(SESSIONS_FOLDER) if not name.startswith("head")]
        assert not [name for name in os.listdir(os.path.join(SESSIONS_FOLDER, folder)) if "sqlite" in name]
    finally:
        skate.shutdown()


# -------------------------------------------------------------------------------------------------------- under load


@pytest.mark.timeout(60 + 10 * HEAD_KILLS)
def test_kills_while_actors_are_made(heads: Heads, program: Callable) -> None:
    """What a program was told of is there when the head is back, with one owner a name; and nothing is left over."""
    there = heads.node("there")
    come_in(there)
    chance = random.Random(HEAD_KILLS)
    known: dict[str, Any] = {}
    for number in range(HEAD_KILLS):
        maker = program(
            heads.head,
            BOX + "number = 0\n"
            "while True:\n"
            "    number += 1\n"
            f"    name = '{number}-%d' % number\n"
            "    where = {'resources': {'there': 1}} if number % 3 else {'resources': {'head': 1}}\n"
            "    box = Box.options(name=name, lifetime='detached', max_restarts=-1, **where).remote(0)\n"
            "    say(name)\n"
            "    if number % 4 == 0:\n"
            "        skate.kill(box)\n"
            "        say('-' + name)\n",
        )
        told = [maker.line() for _ in range(chance.randrange(1, 6))]
        time.sleep(chance.random() * 0.05)
        os.kill(heads.head.pid, signal.SIGKILL)
        assert maker.process.stdout is not None
        told += [
            line for line in maker.process.stdout.read().split("\n")[:-1] if re.fullmatch(r"-?\d+-\d+", line)
        ]
        maker.kill()
        heads.kill()
        heads.back()
        claimed = {name for name in told if not name.startswith("-")}
        killed = {name[1:] for name in told if name.startswith("-")}
        last = max(claimed, key=lambda name: int(name.rpartition("-")[2]))
        heads.wait_until_all_are_back()
        names = set(list_named_actors())
        # A kill is not answered: one that was asked for just before may be lost with the head.
        assert names >= {*claimed - killed - {last}, *known}, (names, told)
        assert len(names - claimed - known.keys()) <= 1, "the one that nobody was told of, at most"
        boxes = {name: skate.get_actor(name) for name in names}
        assert all(called(box) >= 1 for box in boxes.values())
        for name, box in boxes.items():
            if chance.random() < 0.8:
                skate.kill(box)
                known.pop(name, None)
            else:
                known[name] = box
        eventually(lambda: set(list_named_actors()) == known.keys())
    for box in known.values():
        skate.kill(box)
    eventually(lambda: list_named_actors() == [])
    eventually(lambda: rows(there)[there.node_id]["available"]["there"] == 100 * 10_000)
    eventually(lambda: "actor" not in json.dumps(rows(there)[there.node_id]["demands"]))
