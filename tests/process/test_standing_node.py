"""Nodes that outlive programs: `skate start`, drivers that come and go, detached actors, `skate stop`."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from api.rendezvous import Gate, eventually, gone

from .commands import command, run, standing_node

pytestmark = pytest.mark.timeout(60)

HEAD = """
import os, sys, time, skate
skate.init(namespace="here", log_to_driver=False)

@skate.remote
class Counter:
    def __init__(self):
        self.count = 0
    def add(self):
        self.count += 1
        return self.count
    def pid(self):
        return os.getpid()
    def die(self):
        os._exit(1)
"""


def program(text: str) -> str:
    return run(HEAD + text)


@pytest.fixture
def node() -> Iterator[dict]:
    with standing_node(2) as facts:
        yield facts


def test_a_detached_actor_is_found_by_the_next_driver_and_dies_by_kill(node: dict) -> None:
    first = program(
        "a = Counter.options(name='kept', lifetime='detached').remote()\n"
        "b = Counter.options(name='lost').remote()\n"
        "print(skate.get(a.add.remote()), skate.get(b.add.remote()))"
    )
    assert first == "1 1"
    second = program(
        "from skate.util import list_named_actors\n"
        "print(list_named_actors())\n"
        "a = skate.get_actor('kept')\n"
        "print(skate.get(a.add.remote()))\n"
        "skate.kill(a)\n"
        "while list_named_actors(): pass"
    )
    assert second == "['kept']\n2"
    assert program("print(skate.util.list_named_actors())") == "[]"


def test_a_detached_actor_starts_again_without_its_driver(node: dict) -> None:
    program(
        "a = Counter.options(name='kept', lifetime='detached', max_restarts=-1).remote()\n"
        "print(skate.get(a.add.remote()))"
    )
    text = program(
        "a = skate.get_actor('kept')\n"
        "add = a.add.options(max_task_retries=-1)\n"
        "before = skate.get(a.pid.remote())\n"
        "a.die.remote()\n"
        "print(skate.get(add.remote()), skate.get(a.pid.remote()) != before)"
    )
    assert text == "1 True"


def test_workers_of_a_driver_that_left_end_with_their_work(node: dict, tmp_path: Path) -> None:
    """Those that its detached actors keep busy, too."""
    started, gate = Gate(tmp_path / "started"), Gate(tmp_path / "gate")
    program(
        "@skate.remote\n"
        "def work():\n"
        f"    open({str(started.path)!r}, 'w').close()\n"
        f"    while not os.path.exists({str(gate.path)!r}): time.sleep(0.01)\n"
        "@skate.remote\n"
        "class Boss:\n"
        "    def delegate(self): skate.get(work.remote())\n"
        "boss = Boss.options(name='kept', lifetime='detached').remote()\n"
        "boss.delegate.remote()\n"
        f"while not os.path.exists({str(started.path)!r}): time.sleep(0.01)"
    )
    zygote = psutil.Process(node["zygote_pid"])
    eventually(lambda: len(zygote.children()) == 2)  # the actor, and the worker of its task
    gate.open()
    eventually(lambda: len(zygote.children()) == 1)
    assert "nothing is left of job" not in Path(node["folder"], "node.log").read_text()
    text = program(
        "a = skate.get_actor('kept')\nskate.get(a.delegate.remote())\nskate.kill(a)\nprint('worked')"
    )
    assert text == "worked"
    eventually(lambda: not zygote.children())
    log = Path(node["folder"], "node.log")
    eventually(lambda: log.read_text().count("nothing is left of job") == 2)


def test_drivers_do_not_see_each_other_s_names_and_prints(node: dict) -> None:
    text = program(
        "a = Counter.options(name='kept', lifetime='detached', namespace='other').remote()\n"
        "try: skate.get_actor('kept')\n"
        "except ValueError as error: print('not here')\n"
        "print(skate.get(skate.get_actor('kept', 'other').add.remote()))"
    )
    assert text == "not here\n1"


def test_a_killed_driver_leaves_only_the_node(node: dict) -> None:
    driver = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HEAD + "a = Counter.remote()\n"
            "pid = skate.get(a.pid.remote())\n"
            "refs = [skate.remote(time.sleep).remote(1000) for _ in range(4)]\n"
            "print(pid, flush=True)\n"
            "skate.get(refs)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    pid = int(driver.stdout.readline())
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    eventually(lambda: gone(pid))
    text = program(
        "while skate.available_resources().get('CPU') != 2: pass\nprint(skate.get(Counter.remote().add.remote()))"
    )
    assert text == "1"


def test_what_init_says_of_addresses(node: dict) -> None:
    text = program(
        "skate.shutdown()\n"
        "for address in ('10.0.0.1', '10.0.0.1:6379', '/nowhere'):\n"
        "    try: skate.init(address=address)\n"
        "    except (ValueError, ConnectionError) as error: print(type(error).__name__)\n"
        "try: skate.init(num_cpus=3)\n"
        "except ValueError as error: print('num_cpus' in str(error))\n"
        f"with skate.init(address={node['folder']!r}): print(skate.cluster_resources()['CPU'])\n"
        "with skate.init(address='local', num_cpus=1): print(skate.cluster_resources()['CPU'])"
    )
    assert text == "ValueError\nConnectionError\nConnectionError\nTrue\n2.0\n1.0"


def test_auto_without_a_node() -> None:
    text = subprocess.run(
        [sys.executable, "-c", "import skate; skate.init(address='auto')"],
        capture_output=True,
        text=True,
        check=False,
        timeout=40,
    ).stderr
    assert "ConnectionError" in text
    assert "skate start --head" in text


def test_the_command_s_errors() -> None:
    assert command("start", "--head", "--num-cpus", "-1").returncode == 1
    assert command("start").returncode == 2
    assert command("stop").stdout == "0 of 0 nodes were ended.\n"


def test_a_driver_that_calls_on_while_it_leaves(node: dict) -> None:
    """It counts as dead as soon as it has taken leave, while its other threads, which call a detached actor, run on for
    a moment. What they say comes once, or not at all, and harms nobody.
    """
    log = """
@skate.remote(num_cpus=0)
class Log:
    def __init__(self):
        self.notes = []
    def note(self, who, number):
        self.notes.append((who, number))
    def read(self):
        return self.notes
"""
    program(log + "skate.get(Log.options(name='log', lifetime='detached').remote().read.remote())")
    for who in range(2):
        program(
            "from skate.driver.session import Session\n"
            "log = skate.get_actor('log')\n"
            "def call(numbers):\n"
            "    for number in numbers:\n"
            f"        ref = log.note.remote({who}, number)\n"
            "    return ref\n"
            "def close(self, *how):\n"
            "    for first in range(500, 2500, 100):\n"
            "        call(range(first, first + 100))\n"
            "        time.sleep(0.01)  # for the actor to hear that it is gone\n"
            "    closed(self, *how)\n"
            "closed, Session._close = Session._close, close\n"
            "skate.get(call(range(500)))\n"
        )
    text = program("print(skate.get(skate.get_actor('log').read.remote()))")
    notes = ast.literal_eval(text)
    assert len(set(notes)) == len(notes)
    assert {(who, number) for who in range(2) for number in range(500)} <= set(notes)
