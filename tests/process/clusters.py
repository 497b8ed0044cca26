"""Clusters for tests: nodes on this machine, programs that come in through one of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import skate
import zmq
from api.rendezvous import eventually
from skate._c import frames
from skate.cluster_utils import Cluster, ClusterNode
from skate.driver.nodes import ask_nodes
from skate.ids import NodeId, ProcessId, process_id
from skate.net.cluster_key import Keys

HEAD = """
import os, pickle, sys, time
import skate
from skate.runtime import current
skate.init(address=sys.argv[1], namespace="shared", log_to_driver=False)
exchange = sys.argv[2]

def give(name, what):
    with open(os.path.join(exchange, name + ".new"), "wb") as file:
        pickle.dump(what, file)
    os.rename(file.name, os.path.join(exchange, name))

def take(name):
    while not os.path.exists(os.path.join(exchange, name)):
        time.sleep(0.005)
    with open(os.path.join(exchange, name), "rb") as file:
        return pickle.load(file)

def say(*words):
    print(*words, flush=True)
"""


class Program:
    """A driver that came in through a node. What it prints is read line by line; it ends when the test does."""

    def __init__(self, node: ClusterNode, exchange: Path, text: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HEAD + text, node.session_dir, str(exchange)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """The next line that it prints; blocks."""
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        assert text, f"the program ended with {self.process.wait()}"
        return text.rstrip("\n")

    def go_on(self) -> None:
        """Lets it read a line."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """kill -9; harmless when repeated."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


def rows(node: ClusterNode) -> dict[str, dict[str, Any]]:
    """The table of nodes as this one knows it, by id."""
    return {row["node"]: row for row in ask_nodes(node.session_dir)}


def living(node: ClusterNode) -> set[str]:
    return {name for name, row in rows(node).items() if row["alive"]}


def log_of(node: ClusterNode) -> str:
    return Path(node.session_dir, "node.log").read_text(errors="replace")


def wait_for_log(node: ClusterNode, *words: str, timeout: float = 10) -> str:
    """A line of the node's log with all these words."""

    def found() -> str:
        return next((line for line in log_of(node).split("\n") if all(word in line for word in words)), "")

    return eventually(found, timeout)


class Peer:
    """Somebody who may have the key, and speaks to node managers as he pleases. He listens, too."""

    def __init__(self, keys: Keys | None, node: bytes = b"peer") -> None:
        self.keys = keys
        self.me: ProcessId = process_id(NodeId(node), 0)
        self.context = zmq.Context()
        self.inbox = self.context.socket(zmq.ROUTER)
        if keys is not None:
            self.inbox.set(zmq.CURVE_SERVER, 1)
            self.inbox.set(zmq.CURVE_SECRETKEY, keys.server.secret)
        self.inbox.set(zmq.ROUTER_HANDOVER, 1)
        self.inbox.set(zmq.LINGER, 0)
        self.inbox.bind("tcp://127.0.0.1:0")
        self.address: str = self.inbox.get_string(zmq.LAST_ENDPOINT).removeprefix("tcp://")
        self.links: list[zmq.Socket[bytes]] = []
        self.monitor: zmq.Socket[bytes]

    def link(self, address: str, name: bytes | None = None, monitored: bool = False) -> zmq.Socket[bytes]:
        """A socket to the node manager at the address. `monitored`: `monitor` tells how its handshakes end."""
        link = self.context.socket(zmq.DEALER)
        link.set(zmq.ROUTING_ID, self.me if name is None else name)
        link.set(zmq.LINGER, 0)
        if self.keys is not None:
            link.set(zmq.CURVE_SERVERKEY, self.keys.server.public)
            link.set(zmq.CURVE_PUBLICKEY, self.keys.client.public)
            link.set(zmq.CURVE_SECRETKEY, self.keys.client.secret)
        self.links.append(link)
        if monitored:
            self.monitor = link.get_monitor_socket(  # before anything can happen
                zmq.EVENT_HANDSHAKE_SUCCEEDED
                | zmq.EVENT_HANDSHAKE_FAILED_AUTH
                | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
                | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            )
        link.connect(f"tcp://{address}")
        return link

    def heard(self, wanted: Callable[[list[bytes]], bool], timeout_ms: int = 10_000) -> list[bytes]:
        """The next message to this peer that is wanted, without the sender."""
        while True:
            assert self.inbox.poll(timeout_ms), "nothing came"
            _, *parts = self.inbox.recv_multipart()
            if wanted(parts):
                return parts

    def close(self) -> None:
        self.context.destroy(0)


def frame_of(*records: bytes) -> bytes:
    return frames.frame(list(records))


class Heads:
    """A cluster whose head can be killed and come back."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state" / "head.sqlite"
        self.cluster = Cluster()
        self.back()

    @property
    def head(self) -> ClusterNode:
        assert self.cluster.head_node is not None
        return self.cluster.head_node

    def back(self, **arguments: Any) -> None:
        """A head starts, with what the last one has left."""
        self.cluster.add_node(
            **({"num_cpus": 4, "resources": {"head": 100}, "state_file": self.state} | arguments)
        )

    def kill(self) -> None:
        self.cluster.remove_node(self.head, allow_graceful=False)

    def stop(self) -> None:
        self.cluster.remove_node(self.head)

    def node(self, name: str) -> ClusterNode:
        """One more, with a resource of this name."""
        return self.cluster.add_node(num_cpus=2, resources={name: 100})

    def wait_until_all_are_back(self) -> None:
        everybody = {node.node_id for node in self.cluster.list_all_nodes()}
        for node in self.cluster.list_all_nodes():
            eventually(lambda node=node: living(node) == everybody, 20)


def come_in(node: ClusterNode) -> None:
    skate.init(address=node.session_dir, namespace="shared", log_to_driver=False)
