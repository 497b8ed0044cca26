"""`SkateExecutor.map` without a chunk size: as many items travel together as take about CHUNK_SECONDS.

State, a map: its items, how many of them were submitted, in which chunks; what an item took, as far as chunks that have
come tell. Chunks are submitted as others come, AHEAD for each that runs at once, so a map goes on though nobody takes
its results. Each item ends on its own: one that raises stops none behind it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from skate._c.clock import monotonic
from skate._c.steps import Steps
from skate.exceptions import SerializationError, TaskError
from skate.runtime import current
from skate.runtime.latch import Latch

if TYPE_CHECKING:
    from skate.util.executor import SkateExecutor, SkateFuture

#: seconds that the items of a chunk are to take
CHUNK_SECONDS = 0.002
#: a chunk has at most so many times the items of the largest before it
GROWTH = 8
#: chunks under way, for each that can run at once
AHEAD = 2

Item = tuple[Any, ...]
#: of a chunk: values, by index the errors of items that failed, seconds that each took in the mean
Outcomes = tuple[list[Any], dict[int, TaskError], float]


class Chunk(NamedTuple):
    future: SkateFuture
    #: None: it is one item, and its future gives the value itself
    items: list[Item] | None


class ChunkedMap:
    """A map whose items are submitted from now on."""

    def __init__(self, executor: SkateExecutor, fn: Callable[..., Any], items: list[Item]) -> None:
        self._executor = executor
        self._fn = fn
        self._run = executor.runner_of(fn)
        self._items = items
        self._began = monotonic()
        self._submitted = 0
        self._under_way = 0
        self._feeds = False
        #: items of the largest chunk
        self._largest = 1
        #: seconds that an item took to run, a running mean, and those that the last ones took to submit
        self._ran: float | None = None
        self._sent = 0.0
        #: chunks whose results were not taken
        self._chunks: deque[Chunk] = deque()
        #: opened by the next chunk, where somebody waits for one
        self._more: Latch | None = None
        self._lock = Steps()
        #: open once all items were submitted
        self.fed = Latch(executor.runtime)
        executor.maps.add(self)
        self._feed()

    def results(self, timeout: float | None) -> Iterator[Any]:
        """The values in order; raises what an item raised in its place, and ends. TimeoutError: see Executor.map."""
        return self._results(None if timeout is None else self._began + timeout)

    def _results(self, deadline: float | None) -> Iterator[Any]:
        """(A generator: leaving it gives up what has not begun.)"""
        try:
            while (chunk := self._next_to_take(deadline)) is not None:
                outcomes = self._outcomes(chunk, deadline)
                if outcomes is None:
                    continue
                values, errors, _ = outcomes
                values.reverse()
                for index in range(len(values)):
                    if index in errors:
                        raise errors.pop(index).as_instanceof_cause()
                    yield values.pop()
        finally:
            self.stop()

    def _next_to_take(self, deadline: float | None) -> Chunk | None:
        """The chunk whose results are next; None at the end."""
        while True:
            with self._lock:
                if self._chunks:
                    return self._chunks.popleft()
                if self._submitted == len(self._items) and not self._feeds:
                    return None
                more = self._more = Latch(self._executor.runtime)
            if not more.wait(_left(deadline)):
                raise TimeoutError()

    def _outcomes(self, chunk: Chunk, deadline: float | None) -> Outcomes | None:
        """What a chunk gave. None: it could not be submitted, and its items are the next chunks."""
        try:
            result = chunk.future.result(_left(deadline))
        except SerializationError:
            if chunk.items is None or chunk.future.has_begun():
                raise
            alone = [Chunk(self._executor.submit_late(self._fn, item), None) for item in chunk.items]
            with self._lock:
                self._chunks.extendleft(reversed(alone))
            return None
        return ([result], {}, 0.0) if chunk.items is None else result

    def stop(self) -> None:
        """Gives up what has not begun."""
        with self._lock:
            self._submitted = len(self._items)
            chunks = list(self._chunks)
        self._note_fed()
        for chunk in chunks:
            chunk.future.cancel()

    # ---------------------------------------------------------------------------------------------------- feeding

    def _feed(self) -> None:
        """Submits chunks until enough are under way. One thread at a time, for items go in order."""
        while (items := self._next_items()) is not None:
            began = monotonic()
            future = self._executor.submit_late(self._run, (items,))
            with self._lock:
                self._chunks.append(Chunk(future, items))
                self._feeds = False
                self._sent = (monotonic() - began) / len(items)
                more, self._more = self._more, None
            if more is not None:
                more.open()
            future.add_done_callback(self._on_done)
        self._note_fed()

    def _next_items(self) -> list[Item] | None:
        with self._lock:
            left = len(self._items) - self._submitted
            if self._feeds or not left or self._under_way >= AHEAD * self._executor.at_once:
                return None
            self._feeds = True
            self._under_way += 1
            size = self._size(left)
            self._submitted += size
            return self._items[self._submitted - size : self._submitted]

    def _size(self, left: int) -> int:
        """How many items go next: no more than leave a share of the rest to each that runs."""
        if self._ran is None:
            return 1
        share = ceil(left / (AHEAD * self._executor.at_once))
        fitting = int(CHUNK_SECONDS / max(self._ran, self._sent, 1e-9))
        size = max(1, min(share, GROWTH * self._largest, fitting))
        self._largest = max(self._largest, size)
        return size

    def _on_done(self, future: Future[Any]) -> None:
        """A chunk has come. By the thread that reads the inbox."""
        with self._lock:
            self._under_way -= 1
        if not future.cancelled() and future.exception() is None:
            _, _, seconds = future.result()
            self._measured(seconds)
        self._feed()

    def _measured(self, seconds: float) -> None:
        self._ran = seconds if self._ran is None else self._ran + 0.5 * (seconds - self._ran)

    def _note_fed(self) -> None:
        with self._lock:
            if self._feeds or self._submitted < len(self._items):
                return
        self._executor.maps.discard(self)
        self.fed.open()


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - monotonic())


def runner(fn: Callable[..., Any]) -> Callable[[list[Item]], Outcomes]:
    """What calls `fn` in a worker, with each of a chunk's items."""

    def run(items: list[Item]) -> Outcomes:
        return _run(fn, items)

    return run


def _run(fn: Callable[..., Any], items: list[Item]) -> Outcomes:
    values: list[Any] = []
    errors: dict[int, TaskError] = {}
    began = monotonic()
    for index, item in enumerate(items):
        try:
            values.append(fn(*item))
        except Exception as error:
            values.append(None)
            assert current.facts is not None
            name = getattr(fn, "__name__", type(fn).__name__)
            errors[index] = TaskError.from_exception(error, name, os.getpid(), current.facts.node.hex()[:8])
    return values, errors, (monotonic() - began) / len(items)
