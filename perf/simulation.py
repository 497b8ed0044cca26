"""How scheduling grows with the number of nodes: `python -m perf.simulation`, in the simulator of tests/simulator.

The product's own node managers, owners and workers run on a simulated clock and network, in one thread of this process
(which wants greenlet: pip install skate[test]). A driver has a task on each node (on 1,000 of them, where there are
more), and each of these has tasks of its own, so there are as many owners as nodes; the load is uneven, so that owners
with much to do need other nodes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

sys.path[:0] = [str(Path(__file__).parent.parent / "tests")]  # the simulator is with the tests

from simulator.cluster import Cluster
from simulator.network import SimClusterSockets
from simulator.seams import replaced
from simulator.workload import Ledger, spread_work
from simulator.world import World

from perf import facts
from perf.table import number

#: what is measured where nobody says otherwise
NODES = "1,10,100,1000,10000"
#: seconds that a task takes, on average
TASK_SECONDS = 0.001
CPUS = 4
#: owners, at most
OWNERS = 1000
#: seconds that a process which sleeps takes to wake up
WAKE_UP = 50e-6
#: simulated seconds in which nodes must find one another
JOIN = 30.0
#: simulated seconds in which all must be done
LIMIT = 10_000.0


@dataclass
class Report:
    """One run."""

    nodes: int
    tasks: int
    #: leases granted, and nodes chosen for what was asked for
    decisions: int
    #: decisions a second that node managers spent on deciding, of the CPU's time
    decisions_per_second: float
    #: all messages between processes, and those between nodes, a task
    messages_per_task: float
    remote_per_task: float
    #: the most work that a node did, over the mean
    imbalance: float
    #: how long the program took on the simulated clock, and the least that so many CPUs could need
    simulated_seconds: float
    ideal_seconds: float
    #: what the whole run took
    real_seconds: float


class Decisions:
    """Counts what node managers decide, and how long that takes of the CPU's time: others may use this machine."""

    def __init__(self) -> None:
        self.number = 0
        self.seconds = 0.0

    def watch(self, manager: Any) -> None:
        """Stands between a manager and what decides for it."""
        admission, scheduling = manager.admission, manager.scheduling
        decide, act, choose = admission.decide, scheduling.act, scheduling.shares._chooser.choose

        def timed_decide(now: float) -> Any:
            began, before = thread_time(), admission._next_lease
            effects = decide(now)
            self.seconds += thread_time() - began
            self.number += admission._next_lease - before
            return effects

        def timed_act() -> bool:
            began = thread_time()
            acted = act()
            self.seconds += thread_time() - began
            return bool(acted)

        def counted_choose(*args: Any, **options: Any) -> Any:
            self.number += 1
            return choose(*args, **options)

        admission.decide, scheduling.act = timed_decide, timed_act
        scheduling.shares._chooser.choose = counted_choose


def measure(nodes: int, tasks: int, seed: int = 1) -> Report:
    """One run with so many nodes and tasks."""
    began = perf_counter()
    world = World(seed, traced=False)
    with replaced(world, SimClusterSockets):
        try:
            report = _run(world, nodes, tasks)
        finally:
            world.close()
    report.real_seconds = perf_counter() - began
    return report


def _run(world: World, nodes: int, tasks: int) -> Report:
    cluster = Cluster(world)
    book = world.ledger = Ledger(lossy=False)
    cluster.wake_up = WAKE_UP
    decisions = Decisions()
    for _ in range(nodes):
        decisions.watch(cluster.add_node({"CPU": CPUS}).manager)
    world.run_for(JOIN)
    if not cluster.joined():
        raise RuntimeError(f"{nodes} nodes do not find one another within {JOIN:g} simulated seconds")
    done: list[tuple[int, float]] = []
    began, messages = world.now, (cluster.network.local, cluster.network.remote)
    next(iter(cluster.nodes.values())).start_driver(
        lambda: done.append((spread_work(world.seed, min(nodes, OWNERS), tasks, TASK_SECONDS), world.now))
    )
    if not world.run_until(lambda: bool(done), world.now + LIMIT, every=1000):
        raise RuntimeError(f"{tasks} tasks are not done within {LIMIT:g} simulated seconds")
    (number_done, ended), *_ = done
    if number_done != tasks:
        raise RuntimeError(f"{number_done} tasks are done, of {tasks}")
    local, remote = cluster.network.local - messages[0], cluster.network.remote - messages[1]
    work = [book.work.get(node.id, 0.0) for node in cluster.nodes.values()]
    return Report(
        nodes=nodes,
        tasks=tasks,
        decisions=decisions.number,
        decisions_per_second=decisions.number / decisions.seconds,
        messages_per_task=(local + remote) / tasks,
        remote_per_task=remote / tasks,
        imbalance=max(work) / (sum(work) / nodes),
        simulated_seconds=ended - began,
        ideal_seconds=sum(work) / (nodes * CPUS),
        real_seconds=0.0,
    )


_COLUMNS = (
    ("nodes", "nodes"),
    ("tasks", "tasks"),
    ("decisions", "decisions"),
    ("decisions/s", "decisions_per_second"),
    ("messages a task", "messages_per_task"),
    ("between nodes", "remote_per_task"),
    ("imbalance", "imbalance"),
    ("simulated s", "simulated_seconds"),
    ("ideal s", "ideal_seconds"),
    ("real s", "real_seconds"),
)


def table(reports: Sequence[Report], markdown: bool) -> str:
    lines = [[title for title, _ in _COLUMNS]]
    for report in reports:
        values = [getattr(report, name) for _, name in _COLUMNS]
        lines.append([f"{value:,}" if isinstance(value, int) else number(value) for value in values])
    if markdown:
        head, *body = ["| " + " | ".join(line) + " |" for line in lines]
        return "\n".join([head, "|" + "---:|" * len(_COLUMNS), *body])
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        prog="python -m perf.simulation", description=str(__doc__).split("\n")[0]
    )
    add = options.add_argument
    add("--nodes", metavar="NUMBERS", default=NODES, help=f"with commas ({NODES}; the last wants 6 GB)")
    add(
        "--tasks",
        type=int,
        metavar="N",
        help="in all, for each number of nodes (1,000 a node; from 1,000 nodes on fewer)",
    )
    add("--json", metavar="PATH", help="write what was measured")
    add("--markdown", action="store_true", help="print the table as Markdown")
    chosen = options.parse_args(arguments)
    reports = []
    for nodes in map(int, chosen.nodes.split(",")):
        reports.append(measure(nodes, chosen.tasks or min(1000 * nodes, 10**8 // nodes)))
        print(f"{nodes} nodes: {reports[-1]}", file=sys.stderr, flush=True)
    if chosen.json:
        fields = {"machine": facts.gather(), "reports": [asdict(report) for report in reports]}
        Path(chosen.json).write_text(json.dumps(fields, indent=1))
    print(table(reports, chosen.markdown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
