"""How soon is the first result there, and what does a session cost that does nothing?

This script must import nothing heavy: what it loads would be missing from the import that it times.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from perf import procs
from perf.contenders.base import Contender
from perf.model import Row, measure
from perf.pace import Pace

SETTLE_S, IDLE_S = 2.0, 5.0
_IMPORTS = """
import time
start = time.perf_counter()
import numpy, zmq, cloudpickle
print(time.perf_counter() - start)
"""
MB = 1e6


def small_value() -> bytes:
    return b"ok"


@measure(
    Row("init to first result", "s", "lower", key="first_result"),
    Row(
        "import, init to first result", "s", "lower", limit="session.imports", key="first_result_with_import"
    ),
    needs={"session", "tasks"},
    group="first",
    num_cpus=0,
)
def first_result(contender: Contender, pace: Pace) -> tuple[float, float]:
    start = time.perf_counter()
    contender.version()  # imports it
    imported = time.perf_counter()
    contender.start(2)
    contender.get(contender.task(small_value)())
    done = time.perf_counter()
    return done - imported, done - start


@measure(Row("limit: import numpy, zmq, cloudpickle", "s", "lower"), needs={"machine"}, group="first")
def imports(contender: Contender, pace: Pace) -> float:
    result = subprocess.run([sys.executable, "-c", _IMPORTS], capture_output=True, text=True)
    if result.returncode:
        raise NotImplementedError(result.stderr.strip().splitlines()[-1])
    return float(result.stdout)


@measure(
    Row("at rest: memory (PSS), driver included", "MB", "lower", key="rest_memory"),
    Row("at rest: processes, driver included", "", "lower", key="rest_processes"),
    Row("at rest: CPU, of one core", "%", "lower", key="rest_cpu"),
    needs={"session", "tasks"},
    group="rest",
)
def rest(contender: Contender, pace: Pace) -> tuple[float, float, float]:
    contender.get(contender.task(small_value)())
    time.sleep(SETTLE_S)
    # Our parent, the warden, adopts what daemonizes; so everything of this session is below it.
    before = {pid: procs.cpu_s(pid) for pid in procs.descendants(os.getppid())}
    time.sleep(IDLE_S)
    used = sum(procs.cpu_s(pid) - cpu_s for pid, cpu_s in before.items() if procs.name(pid) != "?")
    pids = procs.descendants(os.getppid())
    return sum(procs.pss_bytes(pid) for pid in pids) / MB, len(pids), 100 * used / IDLE_S
