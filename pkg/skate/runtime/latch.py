"""Waiting for what is no single ref, the way threads wait for refs: who waits reads the inbox, and lends its CPUs.

A `threading.Event` would do neither. A task that blocked on one would keep its CPU from the very work that it waits
for, and each answer would have to wake two threads. State: of a Latch, whether it is open, and who waits; of a
LatchedFuture, its latch, once somebody waits.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

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


class LatchedFuture(Future[Any]):
    """A Future whose `result` and `exception` wait as `skate.get` does: in a task they lend its CPUs.

    And the handler of a signal that comes in between may be what finishes it: concurrent.futures would not notice.
    """

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self._runtime = runtime
        self._latch: Latch | None = None

    def result(self, timeout: float | None = None) -> Any:
        """What the call returned. Blocks; raises what the call raised, TimeoutError, or CancelledError."""
        try:
            return super().result(self._wait(timeout))
        finally:
            del self  # the traceback of what is raised leads here, and the future has what is raised: a cycle

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, or None. Blocks; raises TimeoutError or CancelledError."""
        return super().exception(self._wait(timeout))

    def _wait(self, timeout: float | None) -> float | None:
        """Blocks until the future is done; how much of the timeout is left."""
        if self.done():
            return timeout
        deadline = None if timeout is None else monotonic() + timeout
        with section:
            if self._latch is None:
                self._latch = Latch(self._runtime)
                super().add_done_callback(self._latch.open)
        self._latch.wait(timeout)
        return None if deadline is None else max(0.0, deadline - monotonic())


def block(runtime: Runtime, waiter: Waiter, timeout: float | None) -> bool:
    """As `get` blocks: reads the inbox meanwhile, and in a task lends its CPUs. False where the time is over."""
    if runtime.objects.before_blocking is not None:
        runtime.objects.before_blocking("wait")
    if timeout is not None and timeout <= 0:
        runtime.before_sleep()
        runtime.pump.glance(monotonic(), 0.0)
        return waiter.done
    return runtime.objects.wait_for(waiter, None if timeout is None else monotonic() + timeout)
