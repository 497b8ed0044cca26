"""Who knocks at a node's door: silent visitors, nonsense, and drivers that want into another program's node."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import skate
from api.rendezvous import eventually
from skate.node.door import DOOR

from .drivers import no_descriptors


def knock(folder: str) -> socket.socket:
    visitor = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    visitor.settimeout(20)
    visitor.connect(os.path.join(folder, DOOR))
    return visitor


def is_still_there(visitor: socket.socket) -> bool:
    """The node has neither answered this visitor nor sent it away."""
    return not select.select([visitor], [], [], 0)[0]


def test_a_silent_visitor_holds_up_nobody_and_is_sent_away(skate_start: Callable[..., Any]) -> None:
    folder = skate_start()["folder"]

    def served_meanwhile() -> bool:
        """One that blocks on its visitors serves nobody before it has sent them away."""
        visitors = [knock(folder) for _ in range(3)]
        for _ in range(5):
            assert skate.cluster_resources()["CPU"] == 2
        waiting = all(is_still_there(visitor) for visitor in visitors)
        for visitor in visitors:
            assert "said nothing" in json.loads(visitor.recv(1 << 16))["refused"]
            assert visitor.recv(1) == b""
            visitor.close()
        return waiting

    eventually(served_meanwhile)  # the first time, unless the machine is very busy


@pytest.mark.parametrize(
    "said", [b"", b"not json", b"[]", b"1", b"{}", b'{"job": 1}', b'{"job": {"id": "x"}}']
)
def test_nonsense_is_refused(skate_start: Callable[..., Any], said: bytes) -> None:
    folder = skate_start(num_cpus=1)["folder"]
    with knock(folder) as visitor:
        visitor.send(said)
        if said:
            assert json.loads(visitor.recv(1 << 16))["refused"]
    assert skate.cluster_resources()["CPU"] == 1


def test_one_that_knocks_and_goes_is_forgotten(skate_start: Callable[..., Any]) -> None:
    facts = skate_start()
    descriptors = f"/proc/{facts['pid']}/fd"
    before = len(os.listdir(descriptors))
    for _ in range(100):
        knock(facts["folder"]).close()
    eventually(lambda: len(os.listdir(descriptors)) < before + 50)  # its workers come meanwhile
    assert skate.cluster_resources()["CPU"] == 2


def test_another_program_is_refused_by_a_node_that_init_started(skate_start: Callable[..., Any]) -> None:
    facts = skate_start()
    done = subprocess.run(
        [sys.executable, "-c", f"import skate; skate.init(address={facts['folder']!r})"],
        capture_output=True,
        text=True,
        check=False,
        timeout=40,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "ConnectionError" in last
    assert f"process {os.getpid()}" in last
    assert "skate start --head" in last
    assert skate.get(skate.remote(os.getppid).remote()) == facts["zygote_pid"], "the first one's node goes on"


def test_a_door_without_descriptors_opens_again(skate_start: Callable[..., Any]) -> None:
    facts = skate_start(num_cpus=1)
    skate.get(skate.remote(os.getpid).remote())  # its one worker is there
    log = Path(facts["folder"], "node.log")
    with no_descriptors(facts["pid"]):
        visitor = knock(facts["folder"])
        visitor.send(b"{}")
        eventually(lambda: "nobody can be let in" in log.read_text())
        assert skate.cluster_resources()["CPU"] == 1
    assert "refused" in json.loads(visitor.recv(1 << 16))
    visitor.close()
