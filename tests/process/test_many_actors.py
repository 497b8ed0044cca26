"""Many actors: more than the limits that a process begins with, and none of them costs more than its calls."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import skate

pytestmark = pytest.mark.timeout(60)

PROGRAM = """
import resource, skate
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
skate.init(num_cpus=2)

@skate.remote
class Small:
    def answer(self):
        return 1

    def slow_ways(self):
        return slow_ways()

def slow_ways():
    from skate.api.session import require_runtime
    links = require_runtime().mailbox._links.values()
    return sum(link.lane is None or link.socket is not None for link in links)

actors = [Small.remote() for _ in range(80)]
print(sum(skate.get([actor.answer.remote() for actor in actors])))
print(sum(skate.get([actor.slow_ways.remote() for actor in actors])) + slow_ways())
del actors
skate.shutdown()
"""


@pytest.mark.lanes
def test_the_limit_of_open_descriptors_grows() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.stdout == "80\n0\n", done.stderr


@skate.remote
class Idle:
    def pump(self) -> str:
        """Where the kernel tells of the thread that reads this process's mail when nobody else does."""
        (pump,) = (thread for thread in threading.enumerate() if thread.name == "skate-pump")
        return f"/proc/self/task/{pump.native_id}/status"

    def wakes_of(self, path: str) -> int:
        lines = Path(path).read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))


def test_a_call_of_an_idle_actor_wakes_no_second_thread() -> None:
    """Where it did, again and again, calls in turn over many actors cost several times as much as those over few.

    (A call that takes longer than a millisecond, as one may on a crowded machine, has the second thread look.)
    """
    calls = 40
    skate.init(num_cpus=1)
    try:
        idle = Idle.remote()
        pump = skate.get(idle.pump.remote())
        before = skate.get(idle.wakes_of.remote(pump))
        for _ in range(calls):
            time.sleep(0.008)  # it has gone to sleep
            after = skate.get(idle.wakes_of.remote(pump))
        assert after - before < 3 * calls
    finally:
        skate.shutdown()
