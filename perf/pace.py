"""How long a measurement warms up and runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True)
class Pace:
    """Warm up for `warm_s`, then repeat for at least `run_s`."""

    warm_s: float = 1.0
    run_s: float = 1.0
    #: The clock is read about this often, so that reading it costs nothing against calls of a microsecond.
    tick_s: float = 0.01

    def rate(self, call: Callable[[], object], operations: float = 1) -> float:
        """Operations a second over repeated calls, each worth `operations`. Calls at least twice."""
        a_tick = max(1, int(self.repeat(call, self.warm_s, 1) * self.tick_s))
        return operations * self.repeat(call, self.run_s, a_tick)

    def repeat(self, call: Callable[[], object], seconds: float, calls_a_tick: int) -> float:
        """Calls a second."""
        calls = 0
        start = perf_counter()
        while True:
            for _ in range(calls_a_tick):
                call()
            calls += calls_a_tick
            elapsed = perf_counter() - start
            if elapsed >= seconds:
                return calls / elapsed


FULL = Pace()
QUICK = Pace(warm_s=0.2, run_s=0.3)
