"""What could this machine do? Reference rows, each the bare core of something a runtime does."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from perf.contenders.base import Contender
from perf.model import Row, measure
from perf.pace import Pace

CALLS = 1_000


@contextlib.contextmanager
def _helper(target: Callable[[str], None]) -> Iterator[str]:
    """A second process, and the path of a Unix socket for the two to meet on."""
    with tempfile.TemporaryDirectory(prefix="limit-") as folder:
        path = os.path.join(folder, "socket")
        process = multiprocessing.get_context("spawn").Process(target=target, args=(path,), daemon=True)
        process.start()
        try:
            yield path
        finally:
            process.kill()
            process.join()


def _echo(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        while peer.connect_ex(path):  # the other side may not listen yet
            time.sleep(0.001)
        while message := peer.recv(64):
            peer.sendall(message)


@measure(Row("limit: Unix-socket ping-pong, two processes", "trips/s"), needs={"machine"})
def socket_ping_pong(contender: Contender, pace: Pace) -> float:
    with _helper(_echo) as path, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        peer, _ = listener.accept()

        def ping() -> None:
            peer.sendall(b"ping")
            peer.recv(64)

        with peer:
            return pace.rate(ping)


def _zmq() -> Any:
    try:
        import zmq
    except ImportError:
        raise NotImplementedError("pyzmq is not installed")
    return zmq


def _answer_calls(path: str) -> None:
    """Unpickle batches of (function, arguments), pickle batches of results."""
    peer = _zmq().Context().socket(_zmq().PAIR)
    peer.connect(f"ipc://{path}")
    while True:
        results = [function(*args) for function, args in pickle.loads(peer.recv())]
        peer.send(pickle.dumps(results, 5))


def _zmq_calls(pace: Pace, calls_a_message: int) -> float:
    """Batches of pickled calls over one pair of sockets, 1,000 calls in flight, no bookkeeping."""
    zmq = _zmq()
    batch = [(abs, (-1,))] * calls_a_message
    messages = CALLS // calls_a_message
    with _helper(_answer_calls) as path, zmq.Context() as context, context.socket(zmq.PAIR) as peer:
        peer.linger = 0
        peer.bind(f"ipc://{path}")

        def calls() -> None:
            for _ in range(messages):
                peer.send(pickle.dumps(batch, 5))
            for _ in range(messages):
                pickle.loads(peer.recv())

        return pace.rate(calls, messages * calls_a_message)


@measure(Row("limit: pickled calls over a pyzmq pair, 1 a message", "calls/s"), needs={"machine"})
def zmq_calls_1(contender: Contender, pace: Pace) -> float:
    return _zmq_calls(pace, 1)


@measure(Row("limit: pickled calls over a pyzmq pair, 16 a message", "calls/s"), needs={"machine"})
def zmq_calls_16(contender: Contender, pace: Pace) -> float:
    return _zmq_calls(pace, 16)


@measure(Row("limit: dictionary look-up", "look-ups/s"), needs={"machine"})
def dict_look_up(contender: Contender, pace: Pace) -> float:
    key = os.urandom(28)
    table = {key: 0}

    def look_up() -> None:
        for _ in range(CALLS):
            table[key]

    return pace.rate(look_up, CALLS)


@measure(Row("limit: dictionary insert and delete", "inserts/s"), needs={"machine"})
def dict_insert(contender: Contender, pace: Pace) -> float:
    key = os.urandom(28)
    table: dict[bytes, int] = {}

    def insert() -> None:
        for _ in range(CALLS):
            table[key] = 0
            del table[key]

    return pace.rate(insert, CALLS)
