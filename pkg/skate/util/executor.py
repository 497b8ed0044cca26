"""`SkateExecutor`: tasks behind the interface of concurrent.futures, for programs and libraries that speak it.

State, an executor: the calls that have not been submitted as tasks yet (the backlog), those that have and are not known
to be done. Nothing waits for these but where a call is in the backlog: one waiter then, for as many as make room. Who
waits for a result submits what there is room for; the pump's thread leaves that to another.

Why a backlog: a Future can be cancelled until its call begins, and what was handed to the runtime may begin at any
moment. So no more is handed over than keeps the workers busy, and the rest can be cancelled, all of it, at once.
Invariants: a call is in the backlog, in flight, or its future is done; calls are submitted in the order given.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor
from contextlib import suppress
from itertools import chain, islice
from types import FunctionType
from typing import Any, NamedTuple

from skate._c import refs
from skate._c.clock import monotonic
from skate._c.refs import PENDING, ObjectEntry, ObjectRef, Waiter
from skate._c.steps import Steps, let_in, section
from skate.api.context import cluster_resources
from skate.api.remote_function import RemoteFunction
from skate.api.session import require_runtime
from skate.options import validate_task_options
from skate.runtime import current
from skate.runtime.futures import LazyFuture
from skate.runtime.latch import Latch, block
from skate.runtime.runtime import Runtime
from skate.util.checks import check_count
from skate.util.chunked_map import ChunkedMap, runner

__all__ = ["SkateExecutor", "SkateFuture"]

#: seconds of work that are in flight, as far as the last calls tell how long they take
AHEAD_SECONDS = 0.05
#: seconds between two measurements of that
MEASURE_SECONDS = 0.02
#: calls in flight at most
MOST_IN_FLIGHT = 10_000
#: functions whose pickled form is kept
FUNCTIONS_KEPT = 128


class SkateFuture(LazyFuture):
    """A Future whose `result` and `exception` wait as `skate.get` does: in a task they lend its CPUs.

    (`concurrent.futures.wait` and `as_completed` wait in their own way, and lend nothing: in a task, prefer `result`.)
    """

    def __init__(self, runtime: Runtime, ref: ObjectRef | None = None) -> None:
        super().__init__(runtime, ref)
        if ref is not None:
            self._begun = True


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
        self.runtime = self._runtime = require_runtime()
        #: calls that can run at once
        self.at_once = max_workers or _run_at_once(1.0 if checked.num_cpus is None else checked.num_cpus)
        self._pace = _Pace(max_workers, self.at_once)
        #: (what comes in between, the handler of a signal or a finalizer, may submit, too)
        self._lock = Steps()
        self._backlog: deque[_Call] = deque()
        #: what calls will return that have begun; in front of them none that are known to be done
        self._in_flight: deque[ObjectEntry] = deque()
        #: how many these are, with those that begin just now
        self._number = 0
        #: what waits for room, and the entries that it waits for
        self._watch: tuple[Waiter, list[ObjectEntry]] | None = None
        #: a thread takes calls from the backlog; opened when it leaves off
        self._fed: Latch | None = None
        #: a thread that feeds, and waits for room, until the backlog is empty
        self._feeder: threading.Thread | None = None
        self._closed = False
        #: maps some of whose items are to be submitted yet
        self.maps: set[ChunkedMap] = set()
        #: functions as tasks, the one used longest ago first
        self._functions: dict[FunctionType, RemoteFunction] = {}
        self._runners: dict[FunctionType, Callable[[list[Any]], Any]] = {}
        self._latest: tuple[Any, RemoteFunction | None] = None, None
        self._apply = RemoteFunction(_apply, checked)

    # ------------------------------------------------------------------------------------------------------ calls

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> SkateFuture:
        """Runs `fn(*args, **kwargs)` in a worker and gives a Future of what it returns. Does not block.

        What cannot be pickled is an error of the future. Raises RuntimeError after `shutdown()`.
        """
        if not callable(fn):
            raise TypeError(f"submit() takes a function and its arguments, got {fn!r:.100}")
        self._check_open()
        return self._submit(fn, args, kwargs)

    def submit_late(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> SkateFuture:
        """As `submit`, of a map that was begun before `shutdown`."""
        if current.runtime is self._runtime:
            return self._submit(fn, args, {})
        future = SkateFuture(self._runtime)
        future.fail(RuntimeError("the session of the executor was shut down before this was begun"))
        return future

    def runner_of(self, fn: Callable[..., Any]) -> Callable[[list[Any]], Any]:
        """What runs `fn` for each item of a list; the same one for the same function, as workers keep it."""
        if type(fn) is not FunctionType:
            return runner(fn)
        if fn not in self._runners:
            if len(self._runners) >= FUNCTIONS_KEPT:
                del self._runners[next(iter(self._runners))]
            self._runners[fn] = runner(fn)
        return self._runners[fn]

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        **later: Any,
    ) -> Iterator[Any]:
        """As `Executor.map`: results in order; all items are taken at once, `chunksize` of them run in one task.

        Without `chunksize` so many of them do as take about 2 ms, as far as those tell that have run. `next()` raises
        TimeoutError `timeout` seconds after the call of `map`, and what a call raised.
        """
        if chunksize is None and not later:
            items = list(zip(*iterables, strict=False))
            if len(items) > 1 and not any(type(value) is ObjectRef for item in items for value in item):
                self._check_open()
                return ChunkedMap(self, fn, items).results(timeout)
            iterables = tuple(zip(*items, strict=True)) or ((),)  # refs arrive as values: each is an argument
        if chunksize is not None and chunksize < 1:
            raise ValueError(f"map(): chunksize must be 1 or more, got {chunksize!r}")
        if chunksize is None or chunksize == 1:
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
            maps = list(self.maps)
            if cancel_futures:
                self._backlog.clear()
        for call in cancelled:
            call.future.cancel()
            call.future.set_running_or_notify_cancel()  # concurrent.futures.wait() hears of it by this
        if cancel_futures:
            for each in maps:
                each.stop()
        if wait and current.runtime is self._runtime:  # else nothing comes any more
            for each in maps:
                each.fed.wait()
            while self._wait_for_some() or self._wait_for_last():
                pass

    # -------------------------------------------------------------------------------------------------- in flight

    def _submit(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> SkateFuture:
        with self._lock:
            waits = self._backlog or self._fed is not None or not self._has_room()
            if waits:
                future = SkateFuture(self._runtime)
                self._backlog.append(_Call(future, fn, args, kwargs))
                if len(self._backlog) == 1:
                    self._pace.begin(monotonic())
            else:
                self._number += 1
        if waits:
            self._look_for_room()
            self._runtime.glance(monotonic())
            return future
        try:
            ref = self._remote(fn, args, kwargs)
        except BaseException as error:
            self._one_less()
            if not isinstance(error, Exception):
                raise
            future = SkateFuture(self._runtime)
            future.fail(error)
            return future
        self._in_flight.append(ref.entry)
        if self._backlog:
            self._look_for_room()
        return SkateFuture(self._runtime, ref)

    def _has_room(self) -> bool:
        """Under the lock."""
        in_flight = self._in_flight
        while self._number >= self._pace.size and in_flight and in_flight[0].state != PENDING:
            in_flight.popleft()
            self._number -= 1
        return self._number < self._pace.size

    def _one_less(self) -> None:
        with self._lock:
            self._number -= 1

    def _remote(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> ObjectRef:
        if type(fn) is FunctionType:
            return self._task_of(fn).remote(*args, **kwargs)  # type: ignore[no-any-return]
        return self._apply.remote(fn, *args, **kwargs)  # type: ignore[no-any-return]

    def _look_for_room(self) -> None:
        """Has the backlog fed: now where there is room, else once there is. Not under the lock."""
        while not self._waits_for_room():
            self._feed()

    def _waits_for_room(self) -> bool:
        """False where there is room, and nobody makes use of it."""
        with self._lock:
            if not self._backlog or self._fed or self._watch or self._feeder:
                return True
            entries = list(self._in_flight)
            if not entries:  # (those that begin just now look for room afterwards)
                return self._number >= self._pace.size
            waiter = Waiter(self._on_room)
            if not refs.watch_some(entries, waiter, min(len(entries), self._pace.at_a_time)):
                return False
            self._watch = waiter, entries
            return True

    def _on_room(self, _: Waiter) -> None:
        """Under the runtime's lock."""
        self._runtime.later(self._feed_here)

    def _feed_here(self) -> None:
        """Whoever waits feeds: it has nothing better to do. The pump's thread has, so it has another do it."""
        if self._runtime.pump.runs_here():
            self._have_fed()
        else:
            self._feed()
            self._look_for_room()

    def _have_fed(self) -> None:
        with self._lock:
            if self._feeder is not None:
                return
            self._feeder = threading.Thread(target=self._feed_all, name="skate-executor", daemon=True)
        self._feeder.start()

    def _feed_all(self) -> None:
        """Feeds until the backlog is empty. A thread's whole life."""
        while self._backlog and self._wait_for_some():
            pass
        with self._lock:
            self._feeder = None
        self._look_for_room()

    def _feed(self) -> None:
        """Submits calls of the backlog for as long as there is room. `_look_for_room` follows."""
        try:
            with section:
                self._feed_undisturbed()
        except BaseException:  # of a handler of a signal: it comes out here, and another thread goes on
            self._have_fed()
            raise

    def _feed_undisturbed(self) -> None:
        with self._lock:
            if self._fed is not None:
                return
            fed = self._fed = Latch(self._runtime)
            watch = self._take_stock()
        try:
            if watch is not None:
                with self._runtime.lock:
                    refs.unwatch(watch[1], watch[0])
            while (call := self._next_call()) is not None:
                let_in(self._begin, call)
        finally:
            with self._lock:
                self._fed = None
            fed.open()

    def _take_stock(self) -> tuple[Waiter, list[ObjectEntry]] | None:
        """Counts what is done, and measures the pace by it; gives what waited for that. Under the lock."""
        watch, self._watch = self._watch, None
        in_flight, before = self._in_flight, self._number
        for _ in range(len(in_flight)):
            entry = in_flight.popleft()
            if entry.state == PENDING:
                in_flight.append(entry)
            else:
                self._number -= 1
        self._pace.on_done(before - self._number, monotonic())
        return watch

    def _next_call(self) -> _Call | None:
        with self._lock:
            if not self._backlog or self._number >= self._pace.size:
                return None
            self._number += 1
            return self._backlog.popleft()

    def _begin(self, call: _Call) -> None:
        """Submits a call that counts as in flight already, unless it was cancelled."""
        future = call.future
        if not future.begin():
            self._one_less()
            return
        try:
            self._check_session()  # or .remote() would start another
            ref = self._remote(call.fn, call.args, call.kwargs)
        except BaseException as error:
            self._one_less()
            future.fail(error)
            if not isinstance(error, Exception):
                raise
            return
        self._in_flight.append(ref.entry)
        future.attach(ref)

    def _wait_for_some(self) -> bool:
        """Blocks until calls that are in flight are done; False where all are."""
        self._feed()
        with self._lock:
            fed, entries = self._fed, list(self._in_flight)
            wanted = min(self._pace.at_a_time, len(entries)) if self._backlog else len(entries)
        if fed is not None:
            return fed.wait()
        if not entries:
            return False
        waiter = Waiter()
        with section:
            try:
                if refs.watch_some(entries, waiter, wanted):
                    block(self._runtime, waiter, None)
            finally:
                with self._runtime.lock:
                    refs.unwatch(entries, waiter)
        return True

    def _wait_for_last(self) -> bool:
        """Blocks until the last call of the backlog is done; False where there is none."""
        with self._lock:
            last = self._backlog[-1].future if self._backlog else None
        if last is None:
            return False
        with suppress(CancelledError):
            last.exception()
        return True

    def _task_of(self, fn: FunctionType) -> RemoteFunction:
        latest, task = self._latest
        if latest is fn and task is not None:
            return task
        task = self._functions.pop(fn, None) or RemoteFunction(fn, self._options)
        self._functions[fn] = task
        if len(self._functions) > FUNCTIONS_KEPT:
            self._functions.pop(next(iter(self._functions)), None)
        self._latest = fn, task
        return task

    def _check_open(self) -> None:
        self._check_session()
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown() of the executor")

    def _check_session(self) -> None:
        if current.runtime is not self._runtime:
            raise RuntimeError(
                "the session that this executor was made in was shut down: make another executor"
            )


class _Pace:
    """How many calls may be in flight: a number that was given, or as many as the measured pace works off shortly."""

    def __init__(self, given: int | None, at_once: int) -> None:
        self._given = given is not None
        self._least = given or at_once * 2
        self.size = self._least
        self._since = 0.0
        self._done = 0

    @property
    def at_a_time(self) -> int:
        """With so many done the next are submitted: a few at a time where calls are short."""
        return max(1, self.size // 16)

    def begin(self, now: float) -> None:
        """From here on calls wait for others to be done."""
        self._since, self._done = now, 0

    def on_done(self, number: int, now: float) -> None:
        """So many are done: measures. The size doubles at most, as what was measured last may not last."""
        self._done += number
        if self._given or not self._done:
            return
        rate = self._done / max(now - self._since, 1e-6)
        self.size = max(self._least, min(MOST_IN_FLIGHT, 2 * self.size, int(rate * AHEAD_SECONDS)))
        if now - self._since >= MEASURE_SECONDS:
            self.begin(now)


def _run_at_once(num_cpus: float) -> int:
    """Tasks of so many CPUs that the cluster can run at the same time; at least 1."""
    if num_cpus <= 0:
        return MOST_IN_FLIGHT // 2
    return max(1, min(MOST_IN_FLIGHT // 2, int(cluster_resources().get("CPU", 1) / num_cpus)))


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _apply(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Calls what is no plain function: a method, a partial, an object, something written in C."""
    return fn(*args, **kwargs)
