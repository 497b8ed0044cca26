"""Garbage in the inboxes of a running skate: each process says so in a log, lives on, and works."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import skate
import zmq
from skate._c import frames
from skate.ids import ProcessId, TaskId, owner_of, process_id
from skate.runtime import current
from skate.wire import messages as m
from skate.wire.messages import encode

from .forgeries import forgeries

pytestmark = pytest.mark.transport

HEADER = frames.frame([])


@skate.remote
def double(number: int) -> int:
    return 2 * number


@skate.remote
def whoami() -> tuple[int, bytes]:
    runtime = current.runtime
    assert runtime is not None
    return os.getpid(), runtime.me


class Attacker:
    """Somebody of the same user who found the sockets."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.context = zmq.Context()

    def throw(self, at: ProcessId, messages: list[list[bytes]], identity: bytes | None = None) -> None:
        """Sends each message in its parts, and returns when all have left."""
        socket = self.context.socket(zmq.DEALER)
        if identity is not None:
            socket.set(zmq.ROUTING_ID, identity)
        socket.set(zmq.LINGER, 5000)
        socket.connect(f"ipc://{self.folder}/{at.hex()}")
        for parts in messages:
            socket.send_multipart(parts)
        socket.close()

    def close(self) -> None:
        self.context.term()  # waits until what was sent has left


@pytest.fixture
def session(skate_start: Callable[..., Any]) -> Iterator[tuple[Any, Attacker]]:
    skate_start(num_cpus=2)
    runtime = current.runtime
    assert runtime is not None
    attacker = Attacker(runtime.mailbox._folder)
    yield runtime, attacker
    attacker.close()


def noise(seed: int) -> list[bytes]:
    """Frames that are none: random, truncated, oversized, nested without end, of another protocol, of unknown kinds."""
    chance = random.Random(seed)
    whole = frames.frame([encode(m.Register("driver", 1, {"a": [1, 2.0, None]})), encode(m.ReturnLease(7))])
    deep = (b"\7\1\0\0\0") * 50_000 + b"\0"
    found = [b"", b"\0", b"sk", HEADER[:3], HEADER, HEADER + b"\1\xff\xff\xff\xff", HEADER + bytes(100)]
    found += [whole[:length] for length in range(len(whole))]
    found += [chance.randbytes(chance.randrange(200)) for _ in range(50)]
    found += [HEADER + chance.randbytes(chance.randrange(60)) for _ in range(100)]
    found += [HEADER + bytes([m.StateReply.code]) + len(deep).to_bytes(4, "little") + deep]  # type: ignore[attr-defined]
    found += [b"sk\x63\0" + whole[4:], chance.randbytes(3_000_000)]
    return found


def works() -> None:
    assert skate.get([double.remote(number) for number in range(50)], timeout=30) == [
        2 * n for n in range(50)
    ]
    assert skate.get(skate.put({"a": 1}), timeout=30) == {"a": 1}


def log_of_the_node(folder: str) -> str:
    """All that processes of the session have logged into its folder."""
    return "\n".join(path.read_text(errors="replace") for path in Path(folder).rglob("*.log"))


def eventually(holds: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_driver_refuses_noise_says_so_and_goes_on(
    session: tuple[Any, Attacker], caplog: pytest.LogCaptureFixture
) -> None:
    runtime, attacker = session
    works()
    with caplog.at_level(logging.WARNING, "skate.net"):
        attacker.throw(runtime.me, [[frame] for frame in noise(1)], identity=b"stranger")
        eventually(lambda: sum("refused" in record.message for record in caplog.records) > 50)
    works()


def test_a_node_manager_refuses_noise_says_so_and_goes_on(session: tuple[Any, Attacker]) -> None:
    runtime, attacker = session
    works()
    attacker.throw(runtime.node, [[frame] for frame in noise(2)], identity=b"stranger")
    eventually(lambda: "refused" in log_of_the_node(attacker.folder))
    works()


def test_a_worker_refuses_noise_and_goes_on(session: tuple[Any, Attacker]) -> None:
    _, attacker = session
    pid, worker = skate.get(whoami.remote())
    attacker.throw(ProcessId(worker), [[frame] for frame in noise(3)], identity=b"stranger")
    attacker.throw(ProcessId(worker), [[b"a", b"b", b"c"], [b"", b""]])
    works()
    assert alive(pid)


def test_wrong_senders_and_wrong_numbers_of_parts_are_refused(
    session: tuple[Any, Attacker], caplog: pytest.LogCaptureFixture
) -> None:
    runtime, attacker = session
    works()
    hello = frames.frame([encode(m.ReturnLease(1))])
    for target in (runtime.node, runtime.me):
        for identity in (None, b"x", b"nobody..", b"x" * 200):
            attacker.throw(target, [[hello], [b"", hello], [hello] * 5, [b""] * 100], identity)
    eventually(lambda: any("parts" in record.message for record in caplog.records))
    eventually(lambda: "parts" in log_of_the_node(attacker.folder))
    eventually(lambda: "not of this session" in log_of_the_node(attacker.folder))
    works()


def whole_messages(runtime: Any) -> list[bytes]:
    """Messages that are well formed and make no sense: unknown ids, wrong kinds of process, wrong values inside."""
    stranger = process_id(runtime.me[:4], 4_000_000)
    task, thing = bytes(runtime.me) + bytes(8), bytes(runtime.me) + bytes(12)
    odd: list[Any] = [
        None,
        -1,
        2**62,
        "text",
        b"bytes",
        [],
        {},
        {"CPU": "many"},
        [[1, 2], 3],
        {"a": {"b": None}},
    ]
    found: list[Any] = [
        m.RemoveGroup(0, task),
        m.WatchGroup(task),
        m.GroupState(task, 99),
        m.FindGroup(-1, "", ""),
        m.Unschedulable(99, True, ""),
        m.StateQuery(-1, "group nonsense"),
    ]
    for value in odd:
        found += [
            m.Registered(value),
            m.RequestLeases(1, value, -5, -5, value, value, value),
            m.RequestLeases(2, {"CPU": 10_000}, 0, 1, None, value, None),
            m.CreateGroup(-1, task, value),
            m.CreateGroup(0, TaskId(bytes(stranger) + bytes(8)), value),
            m.LeaseGranted(99, 99, stranger, value),
            m.StateReply(12345, value),
            m.PushTask(task, task, b"junk", value, -3, -1, "", -1),
            m.TaskDone(task, -1, value, value),
            m.TasksReturned(99, value),
            m.ObjectReady(thing, 99, value, None),
            m.ReleaseBorrow(thing, -7, value),
        ]
    found += [
        m.ReturnLease(-1),
        m.Blocked(99),
        m.Unblocked(99),
        m.Resume(99),
        m.ReclaimLease(-2),
        m.StateQuery(1, "everything"),
        m.StillUsed(""),
        m.RecallTasks(99),
        m.AskObject(thing),
        m.AddBorrower(thing, stranger, b"not an id"),
        m.ProcessDied(stranger, "no json", b"x", 0),
    ]
    return [encode(message) for message in found]


def test_whole_messages_that_make_no_sense_do_not_end_a_node_manager(session: tuple[Any, Attacker]) -> None:
    """From a stranger: they are not of this session. (Whoever has a process's name is trusted as that process.)"""
    runtime, attacker = session
    works()
    stranger = process_id(runtime.me[:4], 4_000_000)
    attacker.throw(
        runtime.node, [[frames.frame([record])] for record in whole_messages(runtime)], identity=stranger
    )
    eventually(lambda: "not of this session" in log_of_the_node(attacker.folder))
    works()


def test_whole_messages_that_make_no_sense_do_not_end_a_driver(session: tuple[Any, Attacker]) -> None:
    runtime, attacker = session
    works()
    stranger = process_id(runtime.me[:4], 4_000_000)
    attacker.throw(
        runtime.me, [[frames.frame([record])] for record in whole_messages(runtime)], identity=stranger
    )
    works()
    ref = skate.put(1)
    assert owner_of(ref.binary()) == runtime.me
    works()


@skate.remote(num_cpus=0)
class Forger:
    """A worker of this session that sends what it should not."""

    def forge(self, at: bytes) -> None:
        send_forgeries(current.runtime, ProcessId(at))

    def who(self) -> tuple[int, bytes]:
        runtime = current.runtime
        assert runtime is not None
        return os.getpid(), runtime.me


def send_forgeries(runtime: Any, at: ProcessId, skip: tuple[type[Any], ...] = ()) -> None:
    """In the name of this process, and by its own mailbox."""
    for number, message in enumerate(forgeries(runtime.me, skip)):
        with runtime.lock:
            runtime.post(at, message)
            if number % 50 == 0:
                runtime.mailbox.flush()


def test_every_message_with_every_field_wrong_to_a_node_manager(session: tuple[Any, Attacker]) -> None:
    runtime, attacker = session
    works()
    send_forgeries(runtime, runtime.node, (m.Leave,))
    works()
    assert "Traceback" not in log_of_the_node(attacker.folder)


def test_every_message_with_every_field_wrong_to_a_driver(session: tuple[Any, Attacker]) -> None:
    runtime, _ = session
    works()
    skate.get(Forger.remote().forge.remote(bytes(runtime.me)), timeout=30)
    works()


def test_every_message_with_every_field_wrong_to_an_actor(session: tuple[Any, Attacker]) -> None:
    runtime, _ = session
    actor = Forger.remote()
    pid, process = skate.get(actor.who.remote())
    send_forgeries(runtime, ProcessId(process))
    assert skate.get(actor.who.remote(), timeout=30) == (pid, process)
    works()
