"""One run, in a process of its own: `python -m chaos.run SPECIFICATION`, as JSON. Writes result.json to its folder.

The folder is the run's TMPDIR, too, so all that the run leaves lies in it, or in processes that name it.
"""

from __future__ import annotations

import leftovers  # first: it says where sessions lie # isort: skip

import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import skate
from skate.cluster_utils import Cluster

from chaos import aftermath, examined, kills, processes
from chaos.load import GET_SECONDS, Load
from chaos.loads import LOADS

#: seconds that a load may take to end once it is told to, or a step of it in all: several calls, one after another
END_SECONDS: Final = 2 * GET_SECONDS
#: seconds between two looks at how it goes
LOOK: Final = 0.5
#: worker kills a second, at least: fewer are no chaos
KILL_RATE: Final = 80 / 30
#: seconds that processes may take to end after `shutdown`
LEAVE_SECONDS: Final = 15.0


@dataclass(frozen=True)
class Specification:
    seed: int
    nodes: int
    seconds: float
    store_megabytes: int
    loads: list[str]
    folder: str


@dataclass
class Result:
    """How a run went. It has passed if it has no failures."""

    calls: dict[str, int] = field(default_factory=dict)
    workers_killed: int = 0
    nodes_killed: int = 0
    nodes_stopped: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    peak_bytes: int = 0
    settled_after: float = 0.0
    failures: list[str] = field(default_factory=list)


class Run:
    """Starts skate and the loads, does harm, and looks what is left."""

    def __init__(self, specification: Specification) -> None:
        self.given = specification
        self.folder = Path(specification.folder)
        self.mark = f"SKATE_TMPDIR={leftovers.TEMPORARY}".encode()
        self.result = Result()
        self.cluster: Cluster | None = None
        self.nodes: kills.Nodes | None = None
        self.culprits: list[kills.Culprit] = []
        self.loads: list[Load] = []

    def __call__(self) -> Result:
        descriptors = len(os.listdir("/proc/self/fd"))
        self.start()
        try:
            self.have_chaos()
            self.look_at_the_rest()
        except Exception:
            self.fail("the run itself", traceback.format_exc(chain=False))
        finally:
            skate.shutdown()
            if self.cluster is not None:
                self.cluster.shutdown()
        try:
            leftovers.wait_for_nothing_left(seconds=LEAVE_SECONDS)
        except AssertionError as error:
            self.fail("after shutdown", str(error))
        more = len(os.listdir("/proc/self/fd")) - descriptors
        if more > 0:
            self.fail("after shutdown", f"{more} descriptors more than before")
        for mishap in aftermath.mishaps(self.folder):
            self.fail("in a log", mishap)
        return self.result

    def fail(self, where: str, text: str) -> None:
        self.result.failures.append(f"{where}: {text}")

    # ------------------------------------------------------------------------------------------------------- start

    def start(self) -> None:
        given = self.given
        examined.prepare()
        arguments: dict[str, Any] = {"object_store_memory": given.store_megabytes << 20}
        if given.nodes == 1:
            info = skate.init(address="local", num_cpus=4, **arguments)
            self.head = (info["pid"], info["folder"])
            kills.keep_log(info["folder"], given.folder, info["node_id"])
        else:
            arguments["num_cpus"] = 2
            self.cluster = Cluster(initialize_head=True, head_node_args=arguments)
            head = self.cluster.head_node
            assert head is not None
            kills.keep_log(head.session_dir, given.folder, head.node_id)
            self.head = (head.pid, head.session_dir)
            skate.init(address=head.session_dir)
            self.nodes = kills.Nodes(self.cluster, given.nodes - 1, arguments, given.folder)
            self.culprits += [
                kills.NodeKiller(given.seed, self.mark, self.nodes),
                kills.NodeStopper(given.seed, self.mark, self.nodes),
            ]
        self.culprits.append(kills.WorkerKiller(given.seed, self.mark))
        names = given.loads or [load.name for load in LOADS]
        self.loads = [load(given.seed, given.store_megabytes << 20) for load in LOADS if load.name in names]

    def living(self) -> list[tuple[int, str]]:
        """(pid, session's folder) of each node manager."""
        if self.nodes is None:
            return [self.head]
        return [self.head, *((node.pid, node.session_dir) for node in self.nodes.living())]

    # ------------------------------------------------------------------------------------------------------- chaos

    def have_chaos(self) -> None:
        threads = [threading.Thread(target=load.run, name=load.name, daemon=True) for load in self.loads]
        for each in [*threads, *self.culprits]:
            each.start()
        began = time.monotonic()
        while time.monotonic() < began + self.given.seconds and not self.has_failed():
            time.sleep(LOOK)
            self.sample()
        lasted = time.monotonic() - began
        for culprit in self.culprits:
            culprit.end()
            if culprit.failure:
                self.fail(type(culprit).__name__, culprit.failure)
        for load in self.loads:
            load.ending.set()
        deadline = time.monotonic() + END_SECONDS
        for thread in threads:
            while thread.is_alive() and time.monotonic() < deadline and not self.has_failed():
                thread.join(LOOK)
        if self.has_failed():
            self.tell_where_all_are()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.count(lasted)

    def has_failed(self) -> bool:
        """Whether a load has failed, or takes too long over a step."""
        now = time.monotonic()
        for load in self.loads:
            if load.failure:
                return True
            if load.step_began is not None and now - load.step_began > END_SECONDS:
                return True
        return any(culprit.failure for culprit in self.culprits)

    def sample(self) -> None:
        pids = list(processes.marked(self.mark))
        self.result.peak_bytes = max(self.result.peak_bytes, processes.private_bytes(pids))

    def count(self, lasted: float) -> None:
        result = self.result
        for load in self.loads:
            result.calls[load.name] = load.calls
            for kind, number in load.errors.items():
                result.errors[kind] = result.errors.get(kind, 0) + number
            if load.failure:
                self.fail(load.name, load.failure)
            elif load.step_began is not None:
                self.fail(load.name, "it does not end; where it is stands in run.log")
        done = {type(culprit): culprit.done for culprit in self.culprits}
        result.workers_killed = done[kills.WorkerKiller]
        result.nodes_killed = done.get(kills.NodeKiller, 0)
        result.nodes_stopped = done.get(kills.NodeStopper, 0)
        if result.workers_killed < int(lasted * KILL_RATE):
            self.fail("kills", f"only {result.workers_killed} workers were killed in {lasted:.0f} s")
        if self.nodes is not None and result.nodes_killed < int(lasted / 10):
            self.fail("kills", f"only {result.nodes_killed} nodes were killed in {lasted:.0f} s")

    def tell_where_all_are(self) -> None:
        """Where each thread of each process is, into run.log; what node managers have, into a file beside it."""
        print(f"\n{aftermath.LOAD_FAILED} The driver's threads:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        for pid in processes.marked(self.mark):
            if pid != os.getpid():
                processes.send_signal(pid, signal.SIGUSR2, self.mark)
        for pid in processes.workers(self.mark):
            processes.send_signal(pid, signal.SIGUSR1, self.mark)
        examined.print_what_is_awaited()
        answers = aftermath.ask_managers(self.living(), self.mark)
        (self.folder / "managers.json").write_text(json.dumps(answers, indent=1))
        (self.folder / "driver.txt").write_text("\n".join(aftermath.known_to_the_driver()))

    # -------------------------------------------------------------------------------------------------- the rest

    def look_at_the_rest(self) -> None:
        result = self.result
        result.settled_after, left = aftermath.settle(self.living, self.mark)
        for each in left:
            self.fail(f"left after {result.settled_after:.0f} s", each)


def main() -> int:
    specification = Specification(**json.loads(sys.argv[1]))
    faulthandler.enable()
    run = Run(specification)
    try:
        run()
    except BaseException:
        run.fail("the run itself", traceback.format_exc())
    path = Path(specification.folder, "result.json")
    path.with_suffix(".new").write_text(json.dumps(asdict(run.result)))
    path.with_suffix(".new").rename(path)
    return 1 if run.result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
