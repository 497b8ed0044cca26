"""Waiting for what is no single ref, the way threads wait for refs: who waits reads the inbox, and lends its CPUs.

A `threading.Event` would do neither. A task that blocked on one would keep its CPU from the very work that it waits
for, and each answer would have to wake two threads. State, a Latch: whether it is open, and who waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skate._c.clock import monotonic
from skate._c.refs import Waiter
from skate._c.steps import section

if TYPE_CHECKING:
    from skate.runtime.runtime import Runtime


class Latch:
    """Shut, until somebody opens it for good; any number of threads may wait for that."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._waiting: list[Waiter] = []
        self.is_open = False

    def open(self, *_: object) -> None:
        """Lets everybody through, now and later. From any thread, any number of times. Does not block."""
        runtime = self._runtime
        with runtime.lock:
            self.is_open = True
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                runtime.finish(waiter)

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until the latch is open (True), or for `timeout` seconds (then False)."""
        if self.is_open:
            return True
        waiter = Waiter()
        waiter.missing = 1
        runtime = self._runtime
        with section:
            with runtime.lock:
                if self.is_open:
                    return True
                self._waiting.append(waiter)
            try:
                return block(runtime, waiter, timeout)
            finally:
                if not waiter.done:  # the time is over, or Ctrl-C was pressed
                    self._forget(waiter)

    def _forget(self, waiter: Waiter) -> None:
        with self._runtime.lock:
            if waiter in self._waiting:
                self._waiting.remove(waiter)


def block(runtime: Runtime, waiter: Waiter, timeout: float | None) -> bool:
    """As `get` blocks: reads the inbox meanwhile, and in a task lends its CPUs. False where the time is over."""
    if runtime.objects.before_blocking is not None:
        runtime.objects.before_blocking("wait")
    if timeout is not None and timeout <= 0:
        runtime.before_sleep()
        runtime.pump.glance(monotonic(), 0.0)
        return waiter.done
    return runtime.objects.wait_for(waiter, None if timeout is None else monotonic() + timeout)
