"""What goes wrong, and when. State: what the seed has decided shall go wrong in this world; until when.

Each fault is one method, drawn at random while the time of faults lasts. `heal` ends it: links are mended, and nothing
new goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from skate.net.cluster import SILENCE_MS

from simulator.cluster import Cluster
from simulator.node import Node


class Plan(NamedTuple):
    """Weights of what may go wrong; 0: it does not. `pause`: simulated seconds between two faults, on average."""

    pause: float
    reset: int = 0
    clog: int = 0
    cut: int = 0
    kill_worker: int = 0
    kill_node: int = 0
    add_node: int = 0
    kill_driver: int = 0
    restart_head: int = 0
    fork_failures: int = 0

    @property
    def lossy(self) -> bool:
        """Whether calls may fail: something is killed, or taken for dead."""
        kills = (
            self.cut,
            self.kill_worker,
            self.kill_node,
            self.kill_driver,
            self.restart_head,
            self.fork_failures,
        )
        return any(kills)


PLANS: Final[Mapping[str, Plan]] = {
    "calm": Plan(pause=1.0),
    "links": Plan(pause=0.05, reset=3, clog=3),
    "workers": Plan(pause=0.2, kill_worker=4, kill_driver=1, fork_failures=1),
    "nodes": Plan(pause=0.7, kill_node=2, add_node=3, kill_worker=1, clog=1),
    "cuts": Plan(pause=1.0, cut=3, reset=2, clog=2, add_node=1),
    "head": Plan(pause=3.0, restart_head=2, reset=1, kill_worker=1, kill_node=1, add_node=2),
    "everything": Plan(
        pause=0.3,
        reset=3,
        clog=3,
        cut=1,
        kill_worker=3,
        kill_node=1,
        add_node=2,
        kill_driver=1,
        fork_failures=1,
    ),
}


class Faults:
    """Does what a plan says to a cluster. The head, and the nodes in `spared`, are not killed, nor cut off."""

    def __init__(
        self, cluster: Cluster, plan: Plan, spared: set[Node], resources: Mapping[str, float]
    ) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._random = cluster.world.random
        self._plan = plan
        self._spared = spared
        self._resources = resources
        self._over = False
        #: drivers that may be killed
        self.doomed_drivers: set[object] = set()
        #: what was done, for who reads a failure
        self.done: list[str] = []
        self._kinds: list[Callable[[], str]] = [
            getattr(self, f"_{name}") for name in plan._fields[1:] for _ in range(getattr(plan, name))
        ]

    def begin(self) -> None:
        if self._kinds:
            self._next()

    def heal(self) -> None:
        """Nothing goes wrong any more, and links are mended."""
        self._over = True
        self._cluster.network.heal()
        self._cluster.fork_failures = 0.0

    def _next(self) -> None:
        self._world.after(self._random.expovariate(1 / self._plan.pause), self._strike)

    def _strike(self) -> None:
        if self._over:
            return
        what = self._random.choice(self._kinds)()
        if what:
            self.done.append(f"{self._world.elapsed:.6f} {what}")
        self._next()

    def _two(self) -> tuple[Node, Node] | None:
        living = self._cluster.living()
        if len(living) < 2:
            return None
        a, b = self._random.sample(living, 2)
        return a, b

    # ----------------------------------------------------------------------------------------------------- the kinds

    def _reset(self) -> str:
        pair = self._two()
        if pair is None:
            return ""
        self._cluster.network.reset(pair[0].id, pair[1].id)
        return f"connections between {pair[0]} and {pair[1]} end"

    def _clog(self) -> str:
        pair = self._two()
        if pair is None:
            return ""
        seconds = self._random.uniform(0.01, SILENCE_MS / 1000 * 0.9)
        self._cluster.network.clog(pair[0].id, pair[1].id, seconds)
        return f"{pair[0]} to {pair[1]} is clogged for {seconds:.3f} s"

    def _cut(self) -> str:
        pair = self._two()
        if pair is None:
            return ""
        seconds = self._random.uniform(3.0, 12.0)
        self._cluster.network.cut(pair[0].id, pair[1].id, seconds)
        return f"{pair[0]} and {pair[1]} are cut off from each other for {seconds:.3f} s"

    def _kill_worker(self) -> str:
        workers = [process for process in self._cluster.owners() if process.kind == "worker"]
        if not workers:
            return ""
        worker = self._random.choice(workers)
        worker.kill()
        return f"worker {worker.id.hex()} is killed"

    def _kill_driver(self) -> str:
        drivers = [
            driver for driver in self._cluster.drivers if driver.alive and driver in self.doomed_drivers
        ]
        if not drivers:
            return ""
        driver = self._random.choice(drivers)
        driver.kill()
        return f"driver {driver.id.hex()} is killed"

    def _kill_node(self) -> str:
        nodes = [
            node
            for node in self._cluster.living()
            if node not in self._spared and node is not self._cluster.head
        ]
        if not nodes:
            return ""
        node = self._random.choice(nodes)
        silent = self._random.random() < 0.3
        node.kill(noticed_after=SILENCE_MS / 1000 if silent else 0.001)
        return f"{node} is killed"

    def _add_node(self) -> str:
        if len(self._cluster.living()) >= 8:
            return ""
        dead = [
            node
            for node in self._cluster.nodes.values()
            if not node.alive and node.address not in self._taken()
        ]
        address = self._random.choice(dead).address if dead and self._random.random() < 0.5 else ""
        return f"{self._cluster.add_node(self._resources, address=address)} is started"

    def _taken(self) -> set[str]:
        return {node.address for node in self._cluster.living()}

    def _restart_head(self) -> str:
        head = self._cluster.head
        if head is None or head in self._spared:
            return ""
        head.kill(noticed_after=0.001)
        self._world.after(self._random.uniform(0.1, 3.0), self._head_returns)
        return f"the head, {head}, is killed"

    def _head_returns(self) -> None:
        if self._cluster.head is None:
            self._cluster.add_node(self._resources, address=self._cluster.head_address)

    def _fork_failures(self) -> str:
        cluster = self._cluster
        cluster.fork_failures = 0.0 if cluster.fork_failures else 0.4
        return f"forks fail, {cluster.fork_failures:g} of them"
