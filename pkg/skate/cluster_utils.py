"""Many nodes on one machine, for tests of programs that are to run on many: `Cluster`, as Ray's.

State: the node managers' processes. Each node has a session, a store and workers of its own, and they talk to one
another over TCP on the loopback interface, with a key, as nodes on many machines do. All of it ends with `shutdown`,
and with the process that made it, however that ends.

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    cluster.add_node(num_cpus=4, resources={"special": 1})
    skate.init(address=cluster.address)
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

from skate._c.clock import monotonic, sleep
from skate.api import session
from skate.api.session import init, node_config, shutdown
from skate.driver import nodes
from skate.driver.joining import cluster_config
from skate.net.cluster_key import make_key, write_key

__all__ = ["Cluster", "ClusterNode"]

#: as Ray's: small, so that many fit on one machine
DEFAULT_CPUS = 1
DEFAULT_STORE_BYTES = 150 << 20
#: seconds that a node may take to end, before it is killed
END_SECONDS = 10.0
#: arguments of Ray's add_node that mean nothing here
_IGNORED = frozenset({"dashboard_port", "include_dashboard", "redis_port", "env_vars"})


class ClusterNode:
    """A node of a `Cluster`."""

    def __init__(self, process: subprocess.Popen[bytes], facts: dict[str, Any]) -> None:
        self._process = process
        self._facts = facts

    @property
    def node_id(self) -> str:
        """As `nodes()` shows it."""
        return str(self._facts["node"])

    unique_id = node_id

    @property
    def address(self) -> str:
        """HOST:PORT at which other nodes reach it."""
        return str(self._facts["address"])

    @property
    def session_dir(self) -> str:
        """The folder of its session; `init(address=…)` with this comes in through this node."""
        return str(self._facts["folder"])

    @property
    def pid(self) -> int:
        """Of its node manager."""
        return self._process.pid

    def any_processes_alive(self) -> bool:
        return self._process.poll() is None

    def kill_node_manager(self) -> None:
        """kill -9; its workers go with it."""
        self._process.kill()
        self._end()

    kill_raylet = kill_node_manager

    def stop(self, allow_graceful: bool = True) -> None:
        """Ends it; blocks until nothing is left of it."""
        if allow_graceful and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            nodes.wait_for_end(self._process, END_SECONDS)
        self._process.kill()
        self._end()

    def _end(self) -> None:
        self._process.wait()
        # Where it was killed, its zygote ends the workers and clears up.
        _wait_until(lambda: not os.path.exists(self.session_dir), END_SECONDS)

    def __repr__(self) -> str:
        return f"<ClusterNode {self.node_id} at {self.address}>"


class Cluster:
    """Nodes on this machine. A context manager, too."""

    def __init__(
        self,
        initialize_head: bool = False,
        connect: bool = False,
        head_node_args: dict[str, Any] | None = None,
        shutdown_at_exit: bool = True,
        insecure: bool = False,
    ) -> None:
        """Starts the head with `head_node_args` if `initialize_head`; with `connect`, this process comes to it.

        `insecure`: as `skate start --insecure`, without a key and without encryption.
        """
        if connect and not initialize_head:
            raise RuntimeError(
                "Cluster(connect=True) needs initialize_head=True: there is nothing to connect to yet"
            )
        self.head_node: ClusterNode | None = None
        self.worker_nodes: set[ClusterNode] = set()
        self.connected = False
        self._folder = tempfile.TemporaryDirectory(prefix="skate-cluster-")
        self._key_file = os.path.join(self._folder.name, "cluster.key")
        self._insecure = insecure
        if not insecure:
            write_key(self._key_file, make_key())
        if shutdown_at_exit:
            atexit.register(self.shutdown)
        if initialize_head:
            self.add_node(**(head_node_args or {}))
            if connect:
                self.connect()

    @property
    def address(self) -> str | None:
        """HOST:PORT of the head; None without one."""
        return None if self.head_node is None else self.head_node.address

    gcs_address = address

    def connect(self, namespace: str | None = None) -> None:
        """Has this process come in through the head's node."""
        if self.head_node is None:
            raise RuntimeError("the cluster has no head: add_node() first")
        init(address=self.head_node.session_dir, namespace=namespace, ignore_reinit_error=True)
        self.connected = True

    def add_node(self, wait: bool = True, **node_args: Any) -> ClusterNode:
        """Starts a node: the head, if there is none. Arguments as `skate start` has them: num_cpus (1), num_gpus (0),
        resources, labels, memory, object_store_memory (150 MiB), object_spilling_directory; of the head state_file,
        with which another head comes back to its nodes.

        Blocks until it runs and, with `wait`, until the head lists it. RuntimeError where it does not start.
        """
        arguments: dict[str, Any] = {
            "num_cpus": DEFAULT_CPUS,
            "num_gpus": 0,
            "object_store_memory": DEFAULT_STORE_BYTES,
        }
        arguments |= {name: value for name, value in node_args.items() if name not in _IGNORED}
        state_file = arguments.pop("state_file", None)
        cluster = cluster_config(
            head=self.address,
            state=None if state_file is None else {"path": state_file, "fresh": False},
            node_ip=arguments.pop("node_ip_address", "127.0.0.1"),
            port=arguments.pop("port", 0),
            key_file=None if self._insecure else self._key_file,
            insecure=self._insecure,
        )
        node = ClusterNode(*nodes.start(node_config(**arguments, cluster=cluster, lives_with="starter")))
        if self.head_node is None:
            self.head_node = node
        else:
            self.worker_nodes.add(node)
            if wait:
                self._wait(lambda: node.node_id in self._living(), 30, f"{node} is not listed by the head")
        return node

    def remove_node(self, node: ClusterNode, allow_graceful: bool = True) -> None:
        """Ends a node; blocks until it is gone. ValueError for the one that this process has come in through."""
        if session.session_folder() == node.session_dir:
            shutdown()
            raise ValueError(
                f"{node} is the node that this process came in through; it has been shut down here. Remove another one."
            )
        node.stop(allow_graceful)
        if node is self.head_node:
            self.head_node = None
        else:
            self.worker_nodes.discard(node)

    def wait_for_nodes(self, timeout: float = 30) -> None:
        """Blocks until as many nodes live as were added and not removed. TimeoutError after so many seconds."""
        self._wait(
            lambda: len(self._living()) == len(self.list_all_nodes()),
            timeout,
            "not as many nodes as were added",
        )

    def list_all_nodes(self) -> list[ClusterNode]:
        """The head, then the others."""
        return ([] if self.head_node is None else [self.head_node]) + sorted(
            self.worker_nodes, key=lambda node: node.node_id
        )

    def remaining_processes_alive(self) -> bool:
        return all(node.any_processes_alive() for node in self.list_all_nodes())

    def shutdown(self) -> None:
        """Ends all nodes; and skate in this process, where it came in through one of them. Harmless when repeated."""
        atexit.unregister(self.shutdown)
        if session.session_folder() in [node.session_dir for node in self.list_all_nodes()]:
            shutdown()
        self.connected = False
        for node in [*self.worker_nodes, *([self.head_node] if self.head_node else [])]:
            self.remove_node(node)
        self._folder.cleanup()

    def _living(self) -> set[str]:
        """Ids of the nodes that live, as the head says."""
        if self.head_node is None:
            return set()
        try:
            return {row["node"] for row in nodes.ask_nodes(self.head_node.session_dir) if row["alive"]}
        except OSError:
            return set()  # it is dead

    def _wait(self, holds: Callable[[], bool], timeout: float, what: str) -> None:
        if not _wait_until(holds, timeout):
            raise TimeoutError(f"{what}, after {timeout} s: {self.list_all_nodes()}")

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


def _wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = monotonic() + seconds
    while not holds():
        if monotonic() > deadline:
            return False
        sleep(0.01)
    return True
