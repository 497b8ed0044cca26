"""CPU time of a call, on both sides: a pace that counts what its own process and the others use meanwhile.

Wall time tells little on a machine that others use too; CPU time changes less with what else runs there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from perf import procs
from perf.pace import Pace


@dataclass(frozen=True)
class Meter(Pace):
    """After `rate`, `microseconds` has the CPU time of one operation: of this process, and of all others it started."""

    microseconds: dict[str, float] = field(default_factory=dict)

    def rate(self, call: Callable[[], object], operations: float = 1) -> float:
        a_tick = max(1, int(self.repeat(call, self.warm_s, 1) * self.tick_s))
        # Our parent, the warden, adopts what daemonizes; so everything of this session is below it.
        others = [pid for pid in procs.descendants(os.getppid()) if pid != os.getpid()]
        others_before = {pid: procs.thread_seconds(pid) for pid in others}
        start, before = time.perf_counter(), time.process_time()
        rate = self.repeat(call, self.run_s, a_tick)
        caller_s, elapsed_s = time.process_time() - before, time.perf_counter() - start
        used_s = sum(
            used - before_s.get(thread, 0.0)
            for pid, before_s in others_before.items()
            for thread, used in procs.thread_seconds(pid).items()
        )
        done = rate * elapsed_s * operations
        self.microseconds.update(caller=caller_s / done * 1e6, others=used_s / done * 1e6)
        return rate * operations
