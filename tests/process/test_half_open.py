"""Connections to a node's port that prove nothing, more than it has descriptors: it lets others in."""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from api.rendezvous import eventually
from skate.wire.cluster import parse_address

from .commands import command, run

pytestmark = pytest.mark.timeout(90)

DESCRIPTORS = 256
PROGRAM = (
    "import skate; skate.init(address='auto'); print(skate.get(skate.remote(lambda: 7).remote(), timeout=20))"
)
#: half a greeting of ZeroMQ, and a whole one of somebody who says nothing more
HALF = b"\xff\0\0\0"
WHOLE = b"\xff" + bytes(8) + b"\x7f\x03\0CURVE".ljust(55, b"\0")


@pytest.fixture
def head() -> Iterator[dict]:
    """One that may open few descriptors, and cannot change that."""
    start = [
        sys.executable,
        "-m",
        "skate",
        "start",
        "--head",
        "--num-cpus",
        "1",
        "--node-ip-address",
        "127.0.0.1",
    ]
    limited = ["bash", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "bash", *start]
    started = subprocess.run(limited, capture_output=True, text=True, timeout=60)
    assert started.returncode == 0, started.stderr
    (facts,) = json.loads(command("nodes", "--json").stdout)
    yield facts
    assert command("stop").returncode == 0


@contextmanager
def crowd(address: str, size: int, words: bytes) -> Iterator[None]:
    """Keeps that many connections, each of which says `words`, and connects again when it was sent away."""
    ended = threading.Event()

    def hold() -> None:
        with selectors.DefaultSelector() as held:
            while not ended.is_set():
                try:
                    while len(held.get_map()) < size:
                        one = socket.create_connection(parse_address(address), 1)
                        held.register(one, selectors.EVENT_READ)
                        one.sendall(words)
                        one.setblocking(False)
                except OSError:
                    pass
                for key, _ in held.select(0.02):
                    try:
                        if key.fileobj.recv(1000):
                            continue
                    except OSError:
                        pass
                    held.unregister(key.fileobj)
                    key.fileobj.close()
            for key in list(held.get_map().values()):
                key.fileobj.close()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("words", [b"", HALF, WHOLE], ids=["silent", "half", "whole"])
def test_a_crowd_that_proves_nothing(head: dict, words: bytes) -> None:
    opened = Path(f"/proc/{head['pid']}/fd")
    with crowd(head["address"], 2 * DESCRIPTORS, words):
        assert run(PROGRAM) == "7"
        joined = command(
            "start", "--address", head["address"], "--node-ip-address", "127.0.0.1", "--num-cpus", "1",
            "--object-store-memory", "50000000", SKATE_CLUSTER_KEY_FILE=head.get("key_file") or "",
        )  # fmt: skip
        assert joined.returncode == 0, joined.stderr
        assert run(PROGRAM) == "7"
        assert len(list(opened.iterdir())) < DESCRIPTORS - 30
    if words:
        log = Path(head["folder"], "node.log")
        eventually(lambda: "knocked" in log.read_text())
