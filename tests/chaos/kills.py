"""What goes wrong in a run: workers are killed, node managers killed and replaced, nodes stopped for a while.

Each has a thread of its own, and random numbers of its own. The node of the driver is left alone, for the driver ends
with it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from random import Random
from typing import Any, Final

from skate.cluster_utils import Cluster, ClusterNode

from chaos import processes

#: seconds between two kills of a worker, at least and at most
WORKER_PAUSE: Final = (0.15, 0.3)
#: seconds between two kills of a node
NODE_PAUSE: Final = 5.0
#: seconds for which a node stands still, at least and at most: past about 6 it is taken for dead
STOP: Final = (1.0, 10.0)


class Culprit:
    """A thread that does some harm again and again, until it is told to end."""

    def __init__(self, seed: int, mark: bytes) -> None:
        self.random = Random(f"{seed} {type(self).__name__}")
        self.mark = mark
        self.done = 0
        self.failure = ""
        self.ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Blocks until it does no more harm."""
        self.ending.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self.harm()
        except Exception:
            self.failure = traceback.format_exc()

    def harm(self) -> None:
        raise NotImplementedError


class WorkerKiller(Culprit):
    """Kills a worker every 0.15 to 0.3 s."""

    def harm(self) -> None:
        due = time.monotonic()
        while True:
            due += self.random.uniform(*WORKER_PAUSE)
            if self.ending.wait(max(0.0, due - time.monotonic())):
                return
            due = max(
                due, time.monotonic() - 2 * WORKER_PAUSE[1]
            )  # makes up for a slow turn, not for a long sleep
            workers = processes.workers(self.mark)
            if workers and processes.send_signal(self.random.choice(workers), signal.SIGKILL, self.mark):
                self.done += 1


class Nodes:
    """The nodes of a run beside the head. Those that ended (killed, or taken for dead while they stood still) are
    replaced; the logs of all outlive them.
    """

    def __init__(self, cluster: Cluster, number: int, arguments: dict[str, Any], folder: str) -> None:
        self._cluster = cluster
        self._arguments = arguments
        self._folder = folder
        self._lock = threading.Lock()
        self._number = number
        #: those to which somebody does something
        self._harmed: set[ClusterNode] = set()
        for _ in range(number):
            self.add()

    def add(self) -> None:
        node = self._cluster.add_node(wait=False, **self._arguments)
        keep_log(node.session_dir, self._folder, node.node_id)

    def take(self, random: Random) -> ClusterNode | None:
        """A living node that nobody else harms at the moment; `give_back` it."""
        with self._lock:
            living = [node for node in self._cluster.worker_nodes if node.any_processes_alive()]
            free = sorted({*living} - self._harmed, key=lambda node: node.pid)
            if not free:
                return None
            node = random.choice(free)
            self._harmed.add(node)
            return node

    def give_back(self, node: ClusterNode) -> None:
        with self._lock:
            self._harmed.discard(node)

    def kill(self, node: ClusterNode) -> None:
        self._cluster.remove_node(node, allow_graceful=False)

    def living(self) -> list[ClusterNode]:
        """Those that live. Clears up after the others."""
        for node in list(self._cluster.worker_nodes):
            if not node.any_processes_alive():
                self._cluster.remove_node(node, allow_graceful=False)
        return self._cluster.list_all_nodes()[1:]

    def replace_the_dead(self) -> None:
        """As many nodes as there were at first."""
        for _ in range(self._number - len(self.living())):
            self.add()


class NodeKiller(Culprit):
    """Kills a node manager every 5 s; another joins."""

    def __init__(self, seed: int, mark: bytes, nodes: Nodes) -> None:
        super().__init__(seed, mark)
        self._nodes = nodes

    def harm(self) -> None:
        due = time.monotonic() + NODE_PAUSE / 2
        while not self.ending.wait(max(0.0, due - time.monotonic())):
            due += NODE_PAUSE
            node = self._nodes.take(self.random)
            if node is not None:
                self._nodes.kill(node)
                self._nodes.give_back(node)
                self.done += 1
            self._nodes.replace_the_dead()


class NodeStopper(Culprit):
    """Stops a node for 1 to 10 s: its manager alone, or all of its processes, as a machine that stands still."""

    def __init__(self, seed: int, mark: bytes, nodes: Nodes) -> None:
        super().__init__(seed, mark)
        self._nodes = nodes

    def harm(self) -> None:
        while not self.ending.wait(self.random.uniform(0.5, 3)):
            node = self._nodes.take(self.random)
            if node is None:
                continue
            pids = [node.pid]
            if self.random.random() < 0.5:
                zygotes = processes.children(node.pid)
                pids += zygotes + [pid for zygote in zygotes for pid in processes.children(zygote)]
            try:
                for pid in pids:
                    processes.send_signal(pid, signal.SIGSTOP, self.mark)
                self.done += 1
                self.ending.wait(self.random.uniform(*STOP))
            finally:
                for pid in pids:
                    processes.send_signal(pid, signal.SIGCONT, self.mark)
                self._nodes.give_back(node)


def keep_log(session_folder: str, folder: str, node: str) -> None:
    """A second name for the node's log, which its session's end does not remove."""
    os.link(os.path.join(session_folder, "node.log"), os.path.join(folder, f"node-{node}.log"))
