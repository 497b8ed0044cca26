"""How fast do objects get from one node to another, how fast do tasks run over four of them, how soon does one join?

The nodes are of this machine, by cluster_utils. So what is encrypted, copied and put into a store is measured, and what
a wire would take is not; both ends share the machine's cores.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np

from perf.contenders.base import Contender
from perf.model import Row, measure
from perf.netns import Machines
from perf.pace import Pace

GB, MB = 1e9, 1_000_000
OBJECT_BYTES = 200 * MB
STORE_BYTES = 500 * MB
CHUNK_BYTES = 1 << 20
TASKS = 1000


def make() -> np.ndarray:
    return np.ones(OBJECT_BYTES, dtype=np.uint8)


def nothing() -> bytes:
    return b"ok"


def _rate_of_gets(module: Any, pace: Pace) -> float:
    """GB a second in which this process reads what tasks on the node with `other` have made."""
    made_there = module.remote(make).options(resources={"other": 1})
    moved, elapsed = 0, -pace.warm_s
    while elapsed < pace.run_s or not moved:
        ref = made_there.remote()
        module.wait([ref], fetch_local=False)
        start = perf_counter()
        array = module.get(ref)
        took = perf_counter() - start
        if array.nbytes != OBJECT_BYTES or not array[:: 1 << 16].all():
            raise ValueError("it did not come whole")
        del array, ref  # before the next one needs room
        if elapsed >= 0:
            moved += OBJECT_BYTES
            elapsed += took
        else:
            elapsed = min(0.0, elapsed + took)
    return moved / GB / elapsed


@measure(
    Row("a 200 MB array, from node to node", "GB/s", limit="nodes.socket_copy"),
    needs={"cluster"},
    group="transfer",
    num_cpus=0,
)
def transfer(contender: Contender, pace: Pace) -> float:
    return _from_node_to_node(contender, pace, encrypted=True)


@measure(
    Row("… not encrypted (Ray's never is)", "GB/s", limit="nodes.socket_copy"),
    needs={"cluster"},
    group="transfer_open",
    num_cpus=0,
)
def transfer_open(contender: Contender, pace: Pace) -> float:
    return _from_node_to_node(contender, pace, encrypted=False)


def _from_node_to_node(contender: Contender, pace: Pace, *, encrypted: bool) -> float:
    arguments = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    with closing_cluster(contender, encrypted=encrypted, **arguments) as cluster:
        cluster.add_node(resources={"other": 1}, **arguments)
        return _rate_of_gets(contender.module, pace)  # type: ignore[attr-defined]


@contextmanager
def closing_cluster(contender: Contender, *, encrypted: bool = True, **head_node_args: Any) -> Iterator[Any]:
    """A cluster that this process is connected to, and leaves before that ends."""
    cluster = contender.cluster(encrypted=encrypted, **head_node_args)
    try:
        yield cluster
    finally:
        contender.stop()
        cluster.shutdown()


def _between_namespaces(pace: Pace, *, insecure: bool) -> float:
    import skate
    from skate.cluster_utils import Cluster

    with Machines() as machines, Cluster(insecure=insecure) as cluster:
        with machines.inside(0) as address:
            cluster.add_node(node_ip_address=address, object_store_memory=STORE_BYTES)
        with machines.inside(1) as address:
            cluster.add_node(node_ip_address=address, resources={"other": 1}, object_store_memory=STORE_BYTES)
        cluster.connect()
        return _rate_of_gets(skate, pace)


@measure(
    Row("the same between two network namespaces", "GB/s", limit="nodes.socket_between_namespaces"),
    needs={"nodes"},
    group="namespaces",
    num_cpus=0,
)
def between_namespaces(contender: Contender, pace: Pace) -> float:
    return _between_namespaces(pace, insecure=False)


@measure(
    Row("… with --insecure: not encrypted", "GB/s", limit="nodes.socket_between_namespaces"),
    needs={"nodes"},
    group="namespaces_open",
    num_cpus=0,
)
def between_namespaces_open(contender: Contender, pace: Pace) -> float:
    return _between_namespaces(pace, insecure=True)


@measure(
    Row("limit: 200 MB over a TCP socket into touched pages", "GB/s"), needs={"machine"}, group="transfer"
)
def socket_copy(contender: Contender, pace: Pace) -> float:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return _socket_copy(server, pace, lambda: None)


@measure(Row("limit: that between two network namespaces", "GB/s"), needs={"machine"}, group="namespaces")
def socket_between_namespaces(contender: Contender, pace: Pace) -> float:
    with Machines() as machines:
        with machines.inside(0) as address:
            server = socket.create_server((address, 0))
        moved = machines.inside(1)
        with server:
            return _socket_copy(server, pace, moved.__enter__)


def _socket_copy(server: socket.socket, pace: Pace, go_there: Callable[[], object]) -> float:
    """GB a second that a child process sends here, from wherever it goes first."""
    target = np.zeros(OBJECT_BYTES, dtype=np.uint8)
    child = os.fork()
    if not child:
        try:
            go_there()
            _send_for_ever(server.getsockname())
        finally:
            os._exit(0)
    connection, _ = server.accept()
    with connection, memoryview(target) as room:

        def copy() -> None:
            at = 0
            while at < OBJECT_BYTES:
                count = connection.recv_into(room[at : at + CHUNK_BYTES])
                if not count:
                    raise ConnectionError("the sender has ended")
                at += count

        rate = pace.rate(copy, OBJECT_BYTES / GB)
    os.waitpid(child, 0)
    return rate


def _send_for_ever(address: tuple[str, int]) -> None:
    source = memoryview(np.ones(OBJECT_BYTES, dtype=np.uint8))
    with socket.create_connection(address) as connection:
        try:
            while True:
                connection.sendall(source)
        except OSError:
            pass  # the reader has enough


@measure(Row("tasks over 4 nodes, 1,000 in flight", "tasks/s"), needs={"cluster"}, group="four", num_cpus=0)
def tasks_over_four(contender: Contender, pace: Pace) -> float:
    with closing_cluster(contender, num_cpus=1) as cluster:
        for _ in range(3):
            cluster.add_node(num_cpus=1)
        submit = contender.task(nothing)
        get = contender.module.get  # type: ignore[attr-defined]
        return pace.rate(lambda: get([submit() for _ in range(TASKS)]), TASKS)


@measure(
    Row("a node joins: to its first task's result", "s", "lower"),
    needs={"cluster"},
    group="join",
    num_cpus=0,
)
def join(contender: Contender, pace: Pace) -> float:
    module = contender.module  # type: ignore[attr-defined]
    with closing_cluster(contender, num_cpus=1) as cluster:
        task = module.remote(nothing)
        module.get(task.remote())
        times = []
        for number in range(3):
            name = f"node{number}"
            start = perf_counter()
            cluster.add_node(num_cpus=1, resources={name: 1})
            module.get(task.options(resources={name: 1}).remote())
            times.append(perf_counter() - start)
        return sorted(times)[1]
