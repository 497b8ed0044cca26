"""`SkateExecutor`: tasks behind the interface of concurrent.futures, for programs and libraries that speak it.

State, an executor: the calls that have not been submitted as tasks yet (the backlog), how many have and are not done,
a thread that submits while there is a backlog.

Why a backlog: a Future can be cancelled until its call begins, and what was handed to the runtime may begin at any
moment. So no more is handed over than keeps the workers busy, and the rest can be cancelled, all of it, at once.
Invariants: a call is in the backlog, in flight, or its future is done; calls are submitted in the order given.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from functools import partial
from itertools import chain, islice
from types import FunctionType
from typing import Any, NamedTuple

from skate._c.clock import monotonic
from skate._c.steps import Steps
from skate.api.context import cluster_resources
from skate.api.remote_function import RemoteFunction
from skate.api.session import require_runtime
from skate.options import validate_task_options
from skate.runtime import current
from skate.runtime.latch import Latch, LatchedFuture
from skate.untouched import SimpleQueue
from skate.util.checks import check_count

__all__ = ["SkateExecutor", "SkateFuture"]

#: seconds of work that are in flight, as far as the last calls tell how long they take
AHEAD_SECONDS = 0.05
#: seconds between two measurements of that
MEASURE_SECONDS = 0.02
#: calls in flight at most
MOST_IN_FLIGHT = 10_000
#: functions whose pickled form is kept
FUNCTIONS_KEPT = 128


class SkateFuture(LatchedFuture):
    """A Future whose `result` and `exception` wait as `skate.get` does: in a task they lend its CPUs.

    (`concurrent.futures.wait` and `as_completed` wait in their own way, and lend nothing: in a task, prefer `result`.)
    """

    def __init__(self) -> None:
        super().__init__(require_runtime())


class _Call(NamedTuple):
    future: SkateFuture
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class SkateExecutor(Executor):
    """Runs calls as skate tasks: `with SkateExecutor() as pool: list(pool.map(f, items))`.

    max_workers: calls in flight at most. By default twice what the cluster's CPUs can run, and more where calls are
    short, so that workers do not wait for them.
    options: of the tasks, as in `@skate.remote(...)`: num_cpus, num_gpus, resources, max_retries, runtime_env, …

    A function is pickled when it is first submitted, with what it refers to, and sent to each worker once. An argument
    that is an ObjectRef arrives as its value. A call whose worker dies runs again, as any task does: `max_retries=0`
    turns that off. `cancel()` of a future succeeds as long as its call was not handed to skate, which happens shortly
    before it runs; then it is "running". Callbacks of futures run in the thread that reads skate's messages: they may
    submit, but must not block. What is not done when the program ends is dropped: use `with`, or `shutdown()`.
    """

    def __init__(self, max_workers: int | None = None, **options: Any) -> None:
        max_workers = check_count("SkateExecutor", "max_workers", max_workers)
        if options.get("num_returns") not in (None, 1):
            raise ValueError(
                "SkateExecutor() takes no num_returns: a future has one value; let the call return a tuple"
            )
        checked = validate_task_options(**options)
        self._max_workers = max_workers
        self._options = checked
        self._runtime = require_runtime()
        self._pace = _Pace(max_workers, checked.num_cpus)
        #: (what comes in between, the handler of a signal or a finalizer, may submit, too)
        self._lock = Steps()
        #: the backlog's thread waits for room, or for an end
        self._room: SimpleQueue[None] = SimpleQueue()
        self._backlog: deque[_Call] = deque()
        self._in_flight = 0
        self._feeder: threading.Thread | None = None
        self._closed = False
        self._finished = Latch(self._runtime)
        #: functions as tasks, the one used longest ago first
        self._functions: dict[FunctionType, RemoteFunction] = {}
        self._apply = RemoteFunction(_apply, checked)

    # ------------------------------------------------------------------------------------------------------ calls

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> SkateFuture:
        """Runs `fn(*args, **kwargs)` in a worker and gives a Future of what it returns. Does not block.

        What cannot be pickled is an error of the future. Raises RuntimeError after `shutdown()`.
        """
        if not callable(fn):
            raise TypeError(f"submit() takes a function and its arguments, got {fn!r:.100}")
        self._check_session()
        call = _Call(SkateFuture(), fn, args, kwargs)
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown() of the executor")
            if self._feeder is not None or self._in_flight >= self._pace.size:
                self._backlog.append(call)
                if self._feeder is None:
                    self._feeder = threading.Thread(target=self._feed, name="skate-executor", daemon=True)
                    self._feeder.start()
                return call.future
            self._in_flight += 1
        self._begin(call)
        return call.future

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **later: Any,
    ) -> Iterator[Any]:
        """As `Executor.map`: results in order; all calls are submitted at once, `chunksize` items in one task.

        `next()` raises TimeoutError `timeout` seconds after the call of `map`, and what a call raised.
        """
        if chunksize < 1:
            raise ValueError(f"map(): chunksize must be 1 or more, got {chunksize!r}")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout, **later)

        def run(chunk: list[tuple[Any, ...]]) -> list[Any]:
            return [fn(*arguments) for arguments in chunk]

        chunks = _chunks(zip(*iterables, strict=False), chunksize)
        return chain.from_iterable(super().map(run, chunks, timeout=timeout, **later))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No more calls are taken. With `wait`, blocks until those that were are done.

        With `cancel_futures`, those that have not begun (see the class) are cancelled. The workers stay with skate.
        """
        with self._lock:
            self._closed = True
            cancelled = list(self._backlog) if cancel_futures else []
            if cancel_futures:
                self._backlog.clear()
            self._room.put(None)
        for call in cancelled:
            call.future.cancel()
            call.future.set_running_or_notify_cancel()  # concurrent.futures.wait() hears of it by this
        self._note_end()
        if wait and current.runtime is self._runtime:  # else nothing comes any more
            self._finished.wait()

    # -------------------------------------------------------------------------------------------------- in flight

    def _feed(self) -> None:
        """Submits the backlog as fast as it is worked off, and ends with it. A thread's whole life."""
        while True:
            call = None
            with self._lock:
                if not self._backlog:
                    self._feeder = None
                    break
                if self._in_flight < self._pace.size:
                    call = self._backlog.popleft()
                    self._in_flight += 1
            if call is None:
                self._room.get()
            else:
                self._begin(call)
        self._note_end()

    def _begin(self, call: _Call) -> None:
        """Submits a call that counts as in flight already, unless it was cancelled."""
        future = call.future
        if not future.set_running_or_notify_cancel():
            self._one_less()
            return
        try:
            self._check_session()  # or .remote() would start another
            if type(call.fn) is FunctionType:
                ref = self._task_of(call.fn).remote(*call.args, **call.kwargs)
            else:
                ref = self._apply.remote(call.fn, call.args, call.kwargs)
        except Exception as error:
            future.set_exception(error)
            self._one_less()
            return
        ref.future().add_done_callback(partial(self._end, future))

    def _task_of(self, fn: FunctionType) -> RemoteFunction:
        task = self._functions.pop(fn, None) or RemoteFunction(fn, self._options)
        self._functions[fn] = task
        if len(self._functions) > FUNCTIONS_KEPT:
            self._functions.pop(next(iter(self._functions)), None)
        return task

    def _end(self, future: SkateFuture, answer: Future[Any]) -> None:
        """The answer is there. By the thread that reads the inbox."""
        error = answer.exception()
        if error is None:
            future.set_result(answer.result())
        else:
            future.set_exception(error)
        self._one_less()

    def _one_less(self) -> None:
        with self._lock:
            self._in_flight -= 1
            if self._backlog:
                self._pace.on_done(monotonic())
                if self._in_flight < self._pace.refill_below:
                    self._room.put(None)
                return
            if not self._closed or self._in_flight:
                return
        self._finished.open()

    def _note_end(self) -> None:
        with self._lock:
            if not self._closed or self._in_flight or self._backlog:
                return
        self._finished.open()

    def _check_session(self) -> None:
        if current.runtime is not self._runtime:
            raise RuntimeError(
                "the session that this executor was made in was shut down: make another executor"
            )


class _Pace:
    """How many calls may be in flight: a number that was given, or as many as the measured pace works off shortly."""

    def __init__(self, given: int | None, num_cpus: float | None) -> None:
        self._given = given is not None
        self._least = given or _run_at_once(1.0 if num_cpus is None else num_cpus) * 2
        self.size = self._least
        self._since = 0.0
        self._done = 0

    @property
    def refill_below(self) -> int:
        """With fewer in flight the next are submitted: a few at a time where calls are short."""
        return self.size - self.size // 16

    def on_done(self, now: float) -> None:
        """One of many is done: measures."""
        if self._given:
            return
        self._done += 1
        elapsed = now - self._since
        if elapsed >= MEASURE_SECONDS:
            self.size = max(self._least, min(MOST_IN_FLIGHT, int(self._done / elapsed * AHEAD_SECONDS)))
            self._since, self._done = now, 0


def _run_at_once(num_cpus: float) -> int:
    """Tasks of so many CPUs that the cluster can run at the same time; at least 1."""
    if num_cpus <= 0:
        return MOST_IN_FLIGHT // 2
    return max(1, min(MOST_IN_FLIGHT // 2, int(cluster_resources().get("CPU", 1) / num_cpus)))


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _apply(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls what is no plain function: a method, a partial, an object, something written in C."""
    return fn(*args, **kwargs)
