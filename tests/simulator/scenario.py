"""A whole simulation from one seed: a cluster, programs, faults, then healing, then quiet, each with its checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from simulator.checkers import Always, check_quiet, nothing_is_left_of_jobs
from simulator.cluster import Cluster, MemoryFile
from simulator.faults import PLANS, Faults
from simulator.network import SimClusterSockets
from simulator.node import Node
from simulator.seams import replaced
from simulator.workload import Ledger, Program
from simulator.world import Failed, World

#: simulated seconds that nodes have to find one another, that programs have once nothing goes wrong any more, and that
#: all has to settle: more than the longest time that the product waits for anything
JOIN: Final = 30.0
CONVERGE: Final = 300.0
SETTLE: Final = 20.0


@dataclass(frozen=True)
class Size:
    """How much happens in a scenario."""

    nodes: int = 4  #: at most, at first
    drivers: int = 2
    steps: int = 12  #: of each program, at most
    faults: float = 4.0  #: simulated seconds, at most
    check_every: int = 1


SHORT: Final = Size()
LONG: Final = Size(nodes=6, drivers=3, steps=150, faults=40.0, check_every=7)


@dataclass
class Outcome:
    """What became of a scenario."""

    seed: int
    plan: str
    trace: int
    events: int
    simulated: float
    gets: int
    lost: int
    faults: list[str] = field(default_factory=list)


def run(seed: int, size: Size = SHORT, plan: str = "") -> Outcome:
    """One scenario; Failed, with the line that runs it again, where something does not hold.

    `plan`: one of faults.PLANS; chosen by the seed where it is left out.
    """
    scenario = Scenario(seed, size, plan)
    try:
        return scenario.run()
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        again = f"PYTHONPATH=tests python -m simulator {seed}"
        again += f" --plan {plan}" if plan else ""
        again += " --long" if size == LONG else ""
        faults = "".join(f"\n    {line}" for line in scenario.faults_done())
        raise Failed(
            f"{error}\n  run it again: {again}\n  what had gone wrong:{faults or ' nothing'}"
        ) from error


class Scenario:
    """One run of one seed."""

    def __init__(self, seed: int, size: Size, plan: str) -> None:
        self.world = World(seed)
        random = self.world.random
        self.plan = plan or random.choice(list(PLANS))
        self._size = size
        self._faults: Faults | None = None
        self.log: list[str] = []

    def faults_done(self) -> list[str]:
        return [] if self._faults is None else self._faults.done[-20:]

    def run(self) -> Outcome:
        world = self.world
        with replaced(world, SimClusterSockets) as alarms:
            try:
                return self._run()
            finally:
                self.log = list(alarms.lines)
                world.close()

    def _run(self) -> Outcome:
        world, random, plan = self.world, self.world.random, PLANS[self.plan]
        cluster = Cluster(world)
        ledger = world.ledger = Ledger(lossy=plan.lossy)
        if plan.restart_head and random.random() < 0.7:
            cluster.state = MemoryFile()
            ledger.head_returns = True
        cluster.on_step = Always(cluster, self._size.check_every).after
        resources: dict[str, Any] = {"CPU": random.randrange(1, 4)}
        nodes = [cluster.add_node(resources) for _ in range(random.randrange(1, self._size.nodes + 1))]
        if plan.restart_head:
            nodes.append(cluster.add_node(resources))
        self._until(cluster.joined, JOIN, "the nodes do not find one another")
        seconds = random.uniform(0.3, 1.0) * self._size.faults
        home = nodes[-1 if plan.restart_head else 0]
        self._start_drivers(cluster, home, random, ledger, seconds)
        faults = self._faults = Faults(cluster, plan, {home}, resources)
        faults.doomed_drivers = set(cluster.drivers[1:])
        faults.begin()
        world.run_for(seconds)
        faults.heal()
        self._until(lambda: _programs_have_ended(cluster), CONVERGE, "")
        world.run_for(SETTLE)
        check_quiet(cluster, ledger)
        for driver in cluster.drivers:
            if driver.alive:
                driver.leave()
        world.run_for(SETTLE)
        nothing_is_left_of_jobs(cluster)
        return Outcome(
            world.seed,
            self.plan,
            world.trace,
            world.steps,
            world.elapsed,
            ledger.begun,
            ledger.lost,
            faults.done,
        )

    def _start_drivers(
        self, cluster: Cluster, first: Node, random: Random, ledger: Ledger, seconds: float
    ) -> None:
        """The first is never killed; the others are anywhere."""
        number = random.randrange(1, self._size.drivers + 1)
        for index in range(number):
            node = first if not index else random.choice(cluster.living())
            steps = random.randrange(self._size.steps // 2, self._size.steps + 1)
            node.start_driver(Program(random.getrandbits(32), ledger, steps, seconds))
        self._until(lambda: len(cluster.drivers) == number, 1.0, "a driver does not start")

    def _until(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        if not self.world.run_until(done, self.world.now + seconds) and what:
            raise Failed(f"{what} within {seconds:g} s")


def _programs_have_ended(cluster: Cluster) -> bool:
    return all(driver.finished or not driver.alive for driver in cluster.drivers)
