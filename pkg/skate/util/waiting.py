"""Waiting for whichever of many refs comes next, and calling something when a ref has come.

State: of Arrivals, the refs that are on their way, and those that have come. Callers: the other modules of skate.util.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from skate._c.refs import ObjectRef, Waiter, Watch
from skate._c.steps import section
from skate.api.session import require_runtime
from skate.runtime.latch import block
from skate.runtime.runtime import Runtime

__all__ = ["Arrivals", "when_done"]


class _Arrived:
    """The numbers of refs that have got their values. (It is known to what waits for refs, and knows none of them.)"""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.numbers: deque[int] = deque()
        #: what waits for some of them
        self.waiter: Waiter | None = None

    def add(self, number: int, _: Waiter) -> None:
        """One more is there. Under the runtime's lock."""
        self.numbers.append(number)
        waiter = self.waiter
        if waiter is not None:
            waiter.missing -= 1
            if waiter.missing <= 0:
                self.waiter = None
                self._runtime.finish(waiter)


class Arrivals:
    """Refs in the order in which they get their values. Each is watched once: what that costs does not grow with them.

    For one thread. Dropping it is enough: nothing of it waits any more then.
    """

    def __init__(self) -> None:
        self._runtime = require_runtime()
        #: by number, counted from the first that was added: what `take` has not given yet, and the watch on it
        self._refs: dict[int, tuple[ObjectRef, Watch | None]] = {}
        self._arrived = _Arrived(self._runtime)
        self._added = 0

    def __len__(self) -> int:
        """How many are still to be taken."""
        return len(self._refs)

    def add(self, ref: ObjectRef) -> None:
        """Watches one more ref. Does not block."""
        number = self._added
        self._added += 1
        watch = None
        runtime = self._runtime
        with runtime.lock:
            waiter = runtime.objects.when_ready([ref.entry], partial(self._arrived.add, number))
            if waiter is None:
                self._arrived.numbers.append(number)
            else:
                watch = Watch(waiter, [ref.entry])
                if not ref.entry.owned:
                    runtime.mailbox.flush()  # its owner was asked for it
            self._refs[number] = ref, watch

    def take(self, most: int, timeout: float | None = None) -> list[ObjectRef]:
        """The next refs to be there, as many as `most`, in the order in which they were added. Blocks until they are.

        After `timeout` seconds fewer will do, but one there must be. `[]` where none are left.
        """
        most = min(most, len(self._refs))
        if not most:
            return []
        if not self._wait_for(most, timeout):
            self._wait_for(1, None)
        arrived = self._arrived.numbers
        numbers = sorted([arrived.popleft() for _ in range(min(most, len(arrived)))])
        return [self._refs.pop(number)[0] for number in numbers]

    def _wait_for(self, number: int, timeout: float | None) -> bool:
        runtime = self._runtime
        waiter = Waiter()
        with section:
            with runtime.lock:
                waiter.missing = number - len(self._arrived.numbers)
                if waiter.missing <= 0:
                    return True
                self._arrived.waiter = waiter
            try:
                return block(runtime, waiter, timeout)
            finally:
                self._arrived.waiter = None


def when_done(ref: ObjectRef, call: Callable[[], Any]) -> None:
    """Calls `call()` once the ref has its value or error: now where it has, else from the thread that reads the inbox.

    So `call` must neither block nor take long: all that comes to this process waits for it.
    """
    runtime: Runtime = ref.entry.home
    with runtime.lock:
        if runtime.objects.when_ready([ref.entry], lambda _: runtime.later(call)) is None:
            runtime.later(call)
        elif not ref.entry.owned:
            runtime.mailbox.flush()
