"""Machines stood in for by network namespaces: join, wrong key, a link that is cut, one that heals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api.rendezvous import eventually
from skate.core.membership import GRACE_SECONDS
from skate.driver.nodes import ask_nodes
from skate.net.cluster import SILENCE_MS
from skate.net.cluster_key import make_key, write_key

from .clusters import HEAD
from .drivers import lives

pytestmark = pytest.mark.timeout(120)


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


def why_not() -> str:
    """Why there can be no namespaces here; empty where there can."""
    if os.geteuid():
        return "only root makes network namespaces"
    name = f"skate-probe-{os.getpid()}"
    try:
        made = ip("netns", "add", name)
        if made.returncode:
            return f"no network namespaces here: {made.stderr.strip()}"
        pair = ip("-n", name, "link", "add", "name", "one", "type", "veth", "peer", "name", "two")
        ip("netns", "delete", name)
    except FileNotFoundError:
        return "there is no command `ip` here"
    return f"no veth pairs here: {pair.stderr.strip()}" if pair.returncode else ""


REASON = why_not()
if REASON:
    pytest.skip(REASON, allow_module_level=True)


class Machine:
    """A network namespace with one address."""

    def __init__(self, name: str, address: str, store_bytes: int = 100_000_000) -> None:
        self.name = name
        self.address = address
        self.store_bytes = store_bytes
        self.nodes: list[dict[str, Any]] = []
        self.programs: list[subprocess.Popen[str]] = []

    def program(self, *command: str) -> subprocess.Popen[str]:
        """Runs a program there; it is gone after the test."""
        whole = ["ip", "netns", "exec", self.name, sys.executable, "-c", *command]
        started = subprocess.Popen(whole, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.programs.append(started)
        return started

    def start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "skate",
            "start",
            "--num-cpus",
            "1",
            "--object-store-memory",
            str(self.store_bytes),
        ]
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *command, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def node(self, *arguments: str) -> dict[str, Any]:
        """Starts a node: its facts."""
        done = self.start(*arguments)
        assert done.returncode == 0, done.stderr
        folder = re.search(r"address='([^']+)'", done.stdout)
        assert folder is not None
        facts: dict[str, Any] = json.loads(Path(folder[1], "facts.json").read_text())
        self.nodes.append(facts)
        return facts

    def link(self, state: str) -> None:
        """ "up" or "down": pulls the cable out, or puts it in."""
        assert ip("-n", self.name, "link", "set", "eth", state).returncode == 0


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    one, two = (Machine(f"skate-{os.getpid()}-{number}", f"10.99.7.{number}") for number in (1, 2))
    for machine in (one, two):
        assert ip("netns", "add", machine.name).returncode == 0
    ip("-n", one.name, "link", "add", "name", "eth", "type", "veth", "peer", "name", "eth", "netns", two.name)
    for machine in (one, two):
        ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", "eth")
        ip("-n", machine.name, "link", "set", "lo", "up")
        machine.link("up")
    yield one, two
    end(one, two)


def end(*machines: Machine) -> None:
    """Nothing is left of them."""
    for program in [program for machine in machines for program in machine.programs]:
        program.kill()
        program.wait()
        for stream in (program.stdin, program.stdout):
            assert stream is not None
            stream.close()
    nodes = [facts for machine in machines for facts in machine.nodes]
    for facts in nodes:
        if lives(facts["pid"]):
            os.kill(facts["pid"], signal.SIGTERM)
    for facts in nodes:
        eventually(lambda facts=facts: not lives(facts["pid"]))
    for machine in machines:
        ip("netns", "delete", machine.name)


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = str(tmp_path / "key")
    write_key(path, make_key())
    return path


def living(facts: dict[str, Any]) -> set[str]:
    return {row["node"] for row in ask_nodes(facts["folder"]) if row["alive"]}


def both(machines: tuple[Machine, Machine], key_file: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A head on the first machine and a node on the second, which know each other."""
    one, two = machines
    head = one.node("--head", "--cluster-key-file", key_file)
    other = two.node("--address", head["address"], "--cluster-key-file", key_file)
    for facts in (head, other):
        eventually(lambda facts=facts: living(facts) == {head["node"], other["node"]})
    return head, other


def test_machines_find_their_own_addresses(machines: tuple[Machine, Machine], key_file: str) -> None:
    head, other = both(machines, key_file)
    assert head["address"].startswith("10.99.7.1:")
    assert other["address"].startswith("10.99.7.2:")


def test_a_machine_with_another_key(machines: tuple[Machine, Machine], key_file: str, tmp_path: Path) -> None:
    one, two = machines
    head = one.node("--head", "--cluster-key-file", key_file)
    write_key(str(tmp_path / "other"), make_key())
    refused = two.start("--address", head["address"], "--cluster-key-file", str(tmp_path / "other"))
    assert refused.returncode == 1
    assert "another cluster key" in refused.stderr
    log = Path(head["folder"], "node.log")
    eventually(lambda: re.search(r"WARNING 10\.99\.7\.2:\d+ knocked", log.read_text()))
    assert living(head) == {head["node"]}


def test_a_cut_link_is_noticed_and_the_node_that_was_taken_for_dead_ends(
    machines: tuple[Machine, Machine], key_file: str
) -> None:
    head, other = both(machines, key_file)
    machines[1].link("down")
    eventually(lambda: living(head) == {head["node"]}, SILENCE_MS / 1000 + GRACE_SECONDS + 5)
    assert lives(other["pid"])
    machines[1].link("up")
    eventually(lambda: not lives(other["pid"]), 20)
    again = machines[1].node("--address", head["address"], "--cluster-key-file", key_file)
    assert living(head) == {head["node"], again["node"]}


CALLER = """
box = take("box")
say(skate.get(box.add.remote(0)))
sys.stdin.readline()
refs = [box.add.remote(n) for n in range(1, 3000)]
say("asked")
say(skate.get(refs) == list(range(2, 3001)), skate.get(box.numbers.remote()) == list(range(3000)))
"""
MAKER = """
@skate.remote
class Box:
    def __init__(self): self.kept = []
    def add(self, what): self.kept.append(what); time.sleep(0.001); return len(self.kept)
    def numbers(self): return self.kept
box = Box.remote()
give("box", box)
sys.stdin.readline()
"""


def test_a_link_that_is_cut_for_a_moment_loses_nothing(
    machines: tuple[Machine, Machine], key_file: str, tmp_path: Path
) -> None:
    """What was on its way when connections broke arrives once, and in order."""
    head, other = both(machines, key_file)
    maker = machines[0].program(HEAD + MAKER, head["folder"], str(tmp_path))
    caller = machines[1].program(HEAD + CALLER, other["folder"], str(tmp_path))
    assert caller.stdout is not None
    assert caller.stdin is not None
    assert caller.stdout.readline() == "1\n"
    log = Path(head["folder"], "node.log")
    machines[1].link("down")
    caller.stdin.write("\n")
    caller.stdin.flush()
    assert caller.stdout.readline() == "asked\n"
    eventually(lambda: "link to" in log.read_text())  # the connections are gone, and what they carried
    machines[1].link("up")
    assert caller.stdout.readline() == "True True\n"
    assert living(head) == {head["node"], other["node"]}
    assert caller.wait(20) == 0
    assert maker.stdin is not None
    maker.stdin.close()
    assert maker.wait(20) == 0


def free_bytes() -> int:
    """Memory that is to be had, for stores too."""
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    shared = os.statvfs("/dev/shm")
    return min(available, shared.f_bavail * shared.f_frsize)


#: what is broadcast, to four nodes
GIGABYTE = 1_000_000_000
BROADCAST_BYTES = GIGABYTE if free_bytes() > 8 * GIGABYTE else GIGABYTE // 10


@pytest.fixture
def five() -> Iterator[list[Machine]]:
    """Machines on one switch."""
    switch = f"skate-{os.getpid()}-switch"
    names = [f"skate-{os.getpid()}-{number}" for number in range(1, 6)]
    made = [
        Machine(name, f"10.99.7.{number}", BROADCAST_BYTES + 100_000_000)
        for number, name in enumerate(names, 1)
    ]
    for name in (switch, *names):
        assert ip("netns", "add", name).returncode == 0
    ip("-n", switch, "link", "add", "bridge", "type", "bridge")
    ip("-n", switch, "link", "set", "bridge", "up")
    for number, machine in enumerate(made, 1):
        port = f"port{number}"
        pair = ("link", "add", "name", "eth", "type", "veth", "peer", "name", port, "netns", switch)
        ip("-n", machine.name, *pair)
        ip("-n", switch, "link", "set", port, "master", "bridge")
        ip("-n", switch, "link", "set", port, "up")
        ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", "eth")
        ip("-n", machine.name, "link", "set", "lo", "up")
        machine.link("up")
    yield made
    end(*made)
    ip("netns", "delete", switch)


GIVER = """
import numpy as np
ref = skate.put(np.arange(int(sys.argv[3]), dtype=np.uint8))
give("ref", ref)
say("put")
sys.stdin.readline()
"""
TAKER = """
ref = take("ref")
array = skate.get(ref)
say(array.nbytes, int(array[:: 4099].sum()), int(array[-1]))
sys.stdin.readline()
"""


def sent_by(machine: Machine) -> int:
    """Bytes that have left the machine."""
    shown = subprocess.run(
        ["ip", "netns", "exec", machine.name, "cat", "/proc/net/dev"],
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(line for line in shown.stdout.split("\n") if line.strip().startswith("eth:"))
    return int(line.split(":")[1].split()[8])


@pytest.mark.timeout(300)
def test_a_broadcast_to_four_nodes_spreads_as_a_tree(
    five: list[Machine], key_file: str, tmp_path: Path
) -> None:
    head = five[0].node("--head", "--cluster-key-file", key_file)
    nodes = [head]
    nodes += [each.node("--address", head["address"], "--cluster-key-file", key_file) for each in five[1:]]
    for facts in nodes:
        eventually(lambda facts=facts: living(facts) == {each["node"] for each in nodes})
    giver = five[0].program(HEAD + GIVER, head["folder"], str(tmp_path), str(BROADCAST_BYTES))
    assert giver.stdout is not None
    assert giver.stdout.readline() == "put\n"
    takers = [
        machine.program(HEAD + TAKER, facts["folder"], str(tmp_path))
        for machine, facts in zip(five[1:], nodes[1:], strict=True)
    ]
    sampled = sum(at % 256 for at in range(0, BROADCAST_BYTES, 4099))
    expected = f"{BROADCAST_BYTES} {sampled} {(BROADCAST_BYTES - 1) % 256}\n"
    for taker in takers:
        assert taker.stdout is not None
        assert taker.stdout.readline() == expected
    # It sends two at a time; by then others have copies to give away.
    assert BROADCAST_BYTES < sent_by(five[0]) < 3.5 * BROADCAST_BYTES
