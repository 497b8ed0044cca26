"""The command `skate` on many nodes: what it prints, and its exit status."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import skate
from api.rendezvous import eventually
from skate import cli_tables
from skate.core.group_names import of_bundle

from .commands import command

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def stops() -> Iterator[None]:
    yield
    assert command("stop").returncode == 0
    assert json.loads(command("nodes", "--json").stdout) == []


def table() -> list[dict]:
    return json.loads(command("nodes", "--json").stdout)


PROGRAM = "import skate; skate.init(); print(skate.cluster_resources()['CPU'], len(skate.nodes()))"
LOCAL = ("--node-ip-address", "127.0.0.1", "--num-cpus", "1", "--object-store-memory", "100000000")


def test_start_join_status_nodes_stop(stops: None) -> None:
    head = command("start", "--head", *LOCAL, "--labels", '{"zone": "a"}')
    assert head.returncode == 0, head.stderr
    join = re.search(r"skate start --address (\S+) --cluster-key-file FILE\n.* copy of (\S+),", head.stdout)
    assert join is not None, head.stdout
    address, key_file = join.groups()
    assert stat.S_IMODE(os.stat(key_file).st_mode) == 0o600
    # Of the same user on the head's machine, a node finds the key itself; elsewhere it is given.
    assert command("start", "--address", address, *LOCAL, "--resources", '{"x": 2}').returncode == 0
    for given in ({"SKATE_CLUSTER_KEY_FILE": key_file}, {"SKATE_CLUSTER_KEY": Path(key_file).read_text()}):
        done = command("start", "--address", address.replace("127.0.0.1", "localhost"), *LOCAL, **given)
        assert done.returncode == 0, done.stderr
    eventually(lambda: len(table()) == 4)
    status = command("status", "--address", address)
    assert status.returncode == 0
    assert re.search(r"Usage:\n 0\.0/4\.0 CPU\n", status.stdout)
    assert " 0B/381.47MiB object_store_memory" in status.stdout
    assert " 0.0/2.0 x" in status.stdout
    assert " (no resource demands)" in status.stdout
    assert status.stdout.count("Node: ") == 4
    shown = command("nodes")
    assert len(shown.stdout.splitlines()) == 5
    assert "ALIVE (head)" in shown.stdout
    assert "zone=a" in shown.stdout
    # Programs: by the head's address, by variables, by "auto".
    for given in ({"RAY_ADDRESS": address}, {"SKATE_ADDRESS": "auto"}, {}):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            capture_output=True, text=True, check=False, timeout=40, env=os.environ | given,
        )  # fmt: skip
        assert done.stdout == "4.0 4\n", done.stderr
    assert skate.init(address=address)["head"] == address
    skate.shutdown()


def test_any_node_tells_what_waits_as_long_as_there_is_a_head(stops: None) -> None:
    head = command("start", "--head", "--insecure", *LOCAL).stdout
    address = re.search(r"--address (\S+)", head).group(1)
    assert command("start", "--address", address, "--insecure", *LOCAL).returncode == 0
    (other,) = [row["folder"] for row in table() if not row["head"]]
    skate.init(address=other)
    try:
        skate.util.placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_PACK")
        skate.util.placement_group([{"CPU": 1}] * 3)
        waiting = " {'CPU': 1.0} * 3 (PACK): 1+ pending placement groups (the cluster is too small)\n"
        eventually(lambda: waiting in command("status", "--address", other).stdout)
        shown = json.loads(command("status", "--address", other, "--json").stdout)
        assert len(shown["nodes"]) == 2
        assert [group["strategy"] for group in shown["pending_placement_groups"]] == ["STRICT_PACK", "PACK"]
        (killed,) = [row["pid"] for row in table() if row["head"]]
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: "The head of the cluster is away" in command("status", "--address", other).stderr)
        assert re.search(r"Recent failures:\n [0-9a-f]{8} ", command("status", "--address", other).stdout)
    finally:
        skate.shutdown()


def test_a_cluster_without_a_key_must_be_asked_for(stops: None) -> None:
    head = command("start", "--head", "--insecure", *LOCAL)
    assert head.returncode == 0, head.stderr
    assert "has no key" in head.stdout
    address = re.search(r"--address (\S+) --insecure", head.stdout)[1]  # type: ignore[index]
    secured = command("start", "--address", address, *LOCAL)
    assert secured.returncode == 1
    assert "--cluster-key-file" in secured.stderr
    wrong = command("start", "--address", address, *LOCAL, SKATE_CLUSTER_KEY="ab" * 32)
    assert wrong.returncode == 1
    assert "--insecure" in wrong.stderr
    assert command("start", "--address", address, "--insecure", *LOCAL).returncode == 0
    assert len(table()) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--head", "--port", "70000"), "port"),
        (("--address", "nowhere"), "HOST:PORT"),
        (("--address", "127.0.0.1:1"), "--cluster-key-file"),
        (("--head", "--insecure", "--cluster-key-file", "x"), "exclude"),
        (("--address", "127.0.0.1:1", "--cluster-key-file", "/nowhere/key"), "/nowhere/key"),
        (("--head", "--node-ip-address", "192.0.2.1"), "cannot be bound"),
        (("--head", "--labels", '{"a": 1}'), "labels"),
        (("--address", "127.0.0.1:1", "--state-file", "x"), "for the head"),
        (("--address", "127.0.0.1:1", "--fresh"), "for the head"),
    ],
)
def test_what_start_refuses(arguments: tuple[str, ...], words: str) -> None:
    done = command("start", *arguments, SKATE_CLUSTER_KEY="", SKATE_CLUSTER_KEY_FILE="")
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("start",),
        ("start", "--head", "--address", "a:1"),
        ("start", "--head", "--labels", "[]"),
        ("start", "--head", "--port", "x"),
        ("go",),
        (),
    ],
)  # fmt: skip
def test_what_there_is_not(arguments: tuple[str, ...]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert "usage: skate" in done.stderr


def test_help_says_what_things_are_for() -> None:
    for words in ((), ("start",), ("status",), ("nodes",), ("stop",)):
        done = command(*words, "--help")
        assert done.returncode == 0
    start = command("start", "--help").stdout
    assert "who has not the key" in " ".join(start.split())


def test_status_and_nodes_where_nothing_runs() -> None:
    status = command("status")
    assert status.returncode == 1
    assert "skate start --head" in status.stderr
    assert command("nodes").stdout == "No node runs here that `skate start` started.\n"
    assert command("status", "--address", "127.0.0.1:1").returncode == 1
    assert command("nodes", "--address", "nonsense").returncode == 1


def test_what_waits_is_summed_up() -> None:
    row = {
        "node": "00000001", "alive": True, "address": "", "hostname": "here", "head": False, "pid": 7,
        "labels": {}, "cause": "",
        "total": of_bundle("ab" * 16, 0, {"CPU": 10_000}) | {"CPU": 20_000, "memory": 3 * 1024**3 * 10_000},
        "available": {"CPU": 5_000},
        "demands": [({"CPU": 4.0}, 2, False), ({"CPU": 1.0}, 1, True)],
    }  # fmt: skip
    shown = cli_tables.status(
        [row, row | {"node": "00000002"}, row | {"node": "00000003", "alive": False, "cause": "it ended"}],
        [([{"CPU": 1.0}, {"CPU": 1.0}], "PACK", True)],
    )
    assert " 3.0/4.0 CPU (2.0 used of 2.0 reserved in placement groups)\n 6.00GiB/6.00GiB memory\n" in shown
    assert " {'CPU': 4.0}: 4+ pending tasks/actors (no node is large enough)\n" in shown
    assert " {'CPU': 1.0}: 2+ pending tasks/actors\n" in shown
    assert " {'CPU': 1.0} * 2 (PACK): 1+ pending placement groups\n" in shown
    assert " 00000003 (here): it ended" in shown
