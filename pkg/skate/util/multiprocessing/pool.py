"""`Pool`: multiprocessing.Pool, with actors for processes, so that it may span what skate spans.

State, a pool: its crew; the iterators of `imap` that have not handed over all of their input; a thread that calls the
user's callbacks, started with the first. Results are unpickled by who asks for them. Waiting lends a task's CPUs.
"""

from __future__ import annotations

import logging
import threading
import warnings
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from multiprocessing import TimeoutError
from types import FunctionType
from typing import Any

from skate._c.clock import monotonic
from skate._c.steps import Steps
from skate.api.context import cluster_resources
from skate.api.session import init, is_initialized, require_runtime
from skate.options import as_index
from skate.runtime.latch import Latch
from skate.untouched import SimpleQueue
from skate.util.checks import check_count
from skate.util.multiprocessing.crew import FUNCTIONS_KEPT, Code, Crew, Job, Work

__all__ = ["AsyncResult", "IMapIterator", "Pool"]

log = logging.getLogger("skate")

#: chunks a worker that `imap` has begun and nobody has fetched, at most
CHUNKS_AHEAD = 8


class Pool:
    """`multiprocessing.Pool`: a number of processes that run functions.

    processes: how many; by default as many as the cluster has CPUs. They take no CPUs of the cluster, unless
    ray_remote_args, the options of their actors, say so: {"num_cpus": 1}. initializer(*initargs) is run by each as it
    starts; where it raises, so does Pool(), with ActorDiedError. maxtasksperchild: calls, or chunks, after which a
    process is replaced. ray_address is given to `init()` where skate does not run yet, and
    processes for num_cpus.

    Differences from multiprocessing: functions may be closures and lambdas, and are pickled by value where they are of
    the main program, once a pool, with the globals that they use; an exception arrives as one of its own class that is
    a TaskError too; a process that dies fails its chunk with ActorDiedError, where multiprocessing waits for ever, and
    is replaced; `imap` takes items as results are fetched, a few chunks ahead, not all at once; terminate() fails what
    is pending.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] | None = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        ray_address: str | None = None,
        ray_remote_args: dict[str, Any] | None = None,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError(f"Pool(): initializer must be callable, got {initializer!r:.100}")
        processes = check_count("Pool", "processes", processes)
        maxtasksperchild = check_count("Pool", "maxtasksperchild", maxtasksperchild)
        if context is not None:
            warnings.warn("Pool(context=…) does nothing: workers are skate's", RuntimeWarning, stacklevel=2)
        options = dict(ray_remote_args or {})
        if options.get("name") is not None:
            raise ValueError("Pool(): a name in ray_remote_args would be that of each process; leave it out")
        if not is_initialized():
            init(address=ray_address, num_cpus=processes)
        size = processes or max(1, int(cluster_resources().get("CPU", 1)))
        self._crew = Crew(size, initializer, initargs or (), maxtasksperchild, options)
        self._closed = False
        self._lock = Steps()
        #: functions as they travel, the one used longest ago first
        self._codes: dict[FunctionType, Code] = {}
        #: iterators that still have input
        self._feeding: set[IMapIterator] = set()
        self._callbacks: SimpleQueue[AsyncResult | None] = SimpleQueue()
        self._caller: threading.Thread | None = None

    # ------------------------------------------------------------------------------------------------------ calls

    def apply(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] | None = (),
        kwds: Mapping[str, Any] | None = None,
        *,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """`func(*args, **kwds)`, run by a process. Blocks; raises what it raised. (`kwargs` is Ray's word for it.)"""
        return self.apply_async(func, args, kwds, kwargs=kwargs).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] | None = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        kwargs: Mapping[str, Any] | None = None,
    ) -> AsyncResult:
        """Starts a call and gives an AsyncResult of what it returns. Does not block.

        callback(value) or error_callback(exception) is called when it is done, in a thread of the pool's.
        """
        self._check_running()
        work = self._work(func, "apply")
        item = (tuple(args or ()), dict(kwds or kwargs or {}))
        return self._start(work, [[item]], True, callback, error_callback)

    def map(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[Any]:
        """`[func(item) for item in iterable]`. Blocks; raises the first exception, in order, once all is done.

        chunksize: items that a process is given at a time; by default a quarter of its share.
        """
        return self._map(func, "each", iterable, chunksize).get()  # type: ignore[no-any-return]

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """As `map`, without blocking: gives an AsyncResult of the list. Callbacks are as in `apply_async`."""
        return self._map(func, "each", iterable, chunksize, callback, error_callback)

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[Any]:
        """As `map`, but `func(*item)`."""
        return self._map(func, "star", iterable, chunksize).get()  # type: ignore[no-any-return]

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """As `map_async`, but `func(*item)`."""
        return self._map(func, "star", iterable, chunksize, callback, error_callback)

    def imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = 1
    ) -> IMapIterator:
        """An iterator of `func(item)` for each item, in order, of as many as you like: see IMapIterator."""
        return self._imap(func, iterable, chunksize, ordered=True)

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = 1
    ) -> IMapIterator:
        """As `imap`; results come as their chunks are done."""
        return self._imap(func, iterable, chunksize, ordered=False)

    # -------------------------------------------------------------------------------------------------- the end

    def close(self) -> None:
        """No more calls are taken. The processes leave when all that was asked for is done."""
        self._closed = True
        self._close_crew()

    def terminate(self) -> None:
        """Kills the processes at once; what is pending fails with ActorDiedError."""
        self._closed = True
        self._feeding.clear()
        self._crew.terminate()
        self._callbacks.put(None)

    def join(self) -> None:
        """After `close` or `terminate`: blocks until all is done, callbacks too, and the processes have left.

        Raises ValueError where the pool still runs.
        """
        if not self._closed:
            raise ValueError("Pool is still running: call close() or terminate() before join()")
        for iterator in list(self._feeding):
            iterator._feed(float("inf"))
        self._crew.wait_until_gone()
        self._callbacks.put(None)
        if self._caller is not None and self._caller is not threading.current_thread():
            self._caller.join()

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, *_: object) -> None:
        """Terminates the pool, as multiprocessing's does."""
        self.terminate()

    def __reduce__(self) -> Any:
        raise NotImplementedError("a Pool cannot be passed to another process: make one there")

    def __repr__(self) -> str:
        return f"<Pool of {self._crew.size} processes{', closed' if self._closed else ''}>"

    # ---------------------------------------------------------------------------------------------------- steps

    def _check_running(self) -> None:
        if self._closed:
            raise ValueError("Pool not running: it was closed or terminated")
        if not self._crew.in_session:
            raise ValueError("Pool not running: its session was shut down; make another after skate.init()")

    def _work(self, func: Callable[..., Any], how: str, *, all_or_nothing: bool = True) -> Work:
        """A plain function is pickled once; what has a state of its own (a method, a partial) each time."""
        if type(func) is not FunctionType:
            return Work(Code(func), how, all_or_nothing)
        with self._lock:
            code = self._codes.pop(func, None)
        code = code or Code(func)
        with self._lock:
            self._codes[func] = code
            if len(self._codes) > FUNCTIONS_KEPT:
                del self._codes[next(iter(self._codes))]
        return Work(code, how, all_or_nothing)

    def _map(
        self,
        func: Callable[..., Any],
        how: str,
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        self._check_running()
        _check_chunksize(chunksize)
        items = list(iterable)
        size = chunksize or -(-len(items) // (4 * self._crew.size)) or 1
        chunks = [items[start : start + size] for start in range(0, len(items), size)]
        return self._start(self._work(func, how), chunks, False, callback, error_callback)

    def _start(
        self,
        work: Work,
        chunks: list[list[Any]],
        single: bool,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> AsyncResult:
        result = AsyncResult(self, single, callback, error_callback)
        if callback or error_callback:
            self._start_caller()
        result._begin(self._crew, [Job(work, chunk, result._one_done) for chunk in chunks])
        return result

    def _start_caller(self) -> None:
        with self._lock:
            if self._caller is None:
                results = self._callbacks
                self._caller = threading.Thread(
                    target=_call_back, args=(results,), name="skate-pool", daemon=True
                )
                self._caller.start()
                weakref.finalize(self, results.put, None)

    def _imap(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None, *, ordered: bool
    ) -> IMapIterator:
        self._check_running()
        _check_chunksize(chunksize)
        iterator = IMapIterator(
            self, self._work(func, "each", all_or_nothing=False), iterable, chunksize or 1, ordered
        )
        self._feeding.add(iterator)
        iterator._feed(CHUNKS_AHEAD * self._crew.size)
        return iterator

    def _all_fed(self, iterator: IMapIterator) -> None:
        self._feeding.discard(iterator)
        self._close_crew()

    def _close_crew(self) -> None:
        if self._closed and not self._feeding:
            self._crew.close()


class AsyncResult:
    """What a call, or a map, will give. Made by the `…_async` methods of a Pool."""

    def __init__(
        self,
        pool: Pool,
        single: bool,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        #: kept while there is something to wait for
        self._pool = pool
        self._single = single
        self._callback = callback
        self._error_callback = error_callback
        self._jobs: list[Job] = []
        self._missing = 0
        self._lock = Steps()
        self._done = Latch(require_runtime())

    def wait(self, timeout: float | None = None) -> None:
        """Blocks until it is done, or for `timeout` seconds."""
        self._done.wait(timeout)

    def get(self, timeout: float | None = None) -> Any:
        """The value. Blocks; raises what the call raised, multiprocessing.TimeoutError after `timeout` seconds."""
        if not self._done.wait(timeout):
            raise TimeoutError(f"not done within {timeout} s")
        values: list[Any] = []
        for job in self._jobs:
            more, errors = job.outcomes()
            for index in sorted(errors):
                raise errors[index].as_instanceof_cause()
            values += more
        return values[0] if self._single else values

    def ready(self) -> bool:
        """Whether it is done."""
        return self._done.is_open

    def successful(self) -> bool:
        """Whether it is done without an exception. Raises ValueError where it is not done."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready: ask successful() once ready() is true")
        try:
            self.get()
        except Exception:
            return False
        return True

    def _begin(self, crew: Crew, jobs: list[Job]) -> None:
        self._jobs = jobs
        self._missing = len(jobs)
        if not jobs:
            self._finish()
        for job in jobs:
            crew.add(job)

    def _one_done(self, _: Job) -> None:
        with self._lock:
            self._missing -= 1
            if self._missing:
                return
        self._finish()

    def _finish(self) -> None:
        self._done.open()
        if self._callback or self._error_callback:
            self._pool._callbacks.put(self)

    def _call_back(self) -> None:
        try:
            value = self.get()
        except Exception as error:
            if self._error_callback is not None:
                self._error_callback(error)
        else:
            if self._callback is not None:
                self._callback(value)


class IMapIterator:
    """The results of `imap`, one `next()` each; what the call of an item raised is raised in its place, and the next
    follows.

    Items are taken from the input, by the thread that calls `next`, as results are fetched: CHUNKS_AHEAD chunks a
    process are under way. `close()` and `join()` of the pool: join() takes the rest of the input.
    """

    def __init__(
        self, pool: Pool, work: Work, iterable: Iterable[Any], chunksize: int, ordered: bool
    ) -> None:
        self._pool = pool
        self._crew = pool._crew
        self._work = work
        self._input = iter(iterable)
        self._chunksize = chunksize
        self._ordered = ordered
        self._fed = False
        self._ahead = CHUNKS_AHEAD * pool._crew.size
        #: one thread in `next` at a time
        self._turn = threading.Lock()
        #: for the three below
        self._lock = Steps()
        #: jobs whose results were not fetched, in the order of the items
        self._jobs: OrderedDict[Job, None] = OrderedDict()
        #: those of them that are done, in the order in which they were
        self._done: OrderedDict[Job, None] = OrderedDict()
        #: opened by the next job that is done, where somebody waits for one
        self._next_done: Latch | None = None
        #: results of the chunk that is being read: (value, exception)
        self._outcomes: deque[tuple[Any, BaseException | None]] = deque()

    def __iter__(self) -> IMapIterator:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next result. Blocks; multiprocessing.TimeoutError after `timeout` seconds. StopIteration at the end."""
        deadline = None if timeout is None else monotonic() + float(timeout)
        if not self._turn.acquire(
            timeout=-1 if timeout is None else min(max(0.0, float(timeout)), threading.TIMEOUT_MAX)
        ):
            raise TimeoutError(f"another thread waited for the next result, for {timeout} s")
        try:
            while not self._outcomes:
                job = self._wait_for_one(deadline, timeout)
                if job is None:
                    raise StopIteration
                self._outcomes += _outcomes_of(job)
                self._feed(self._ahead)
            value, error = self._outcomes.popleft()
        finally:
            self._turn.release()
        if error is not None:
            raise error
        return value

    def _wait_for_one(self, deadline: float | None, timeout: float | None) -> Job | None:
        """The job whose results are next, taken out; None where there are no more."""
        while True:
            with self._lock:
                if not self._jobs:
                    return None
                candidates = self._jobs if self._ordered else self._done
                job = next(iter(candidates), None)
                if job is not None and job in self._done:
                    del self._jobs[job], self._done[job]
                    return job
                latch = self._next_done = Latch(require_runtime())
            left = None if deadline is None else max(0.0, deadline - monotonic())
            if not latch.wait(left):
                raise TimeoutError(f"the next result was not there within {timeout} s")

    def _one_done(self, job: Job) -> None:
        with self._lock:
            self._done[job] = None
            latch, self._next_done = self._next_done, None
        if latch is not None:
            latch.open()

    def _feed(self, ahead: float) -> None:
        """Takes input until so many chunks are under way."""
        while not self._fed and len(self._jobs) < ahead:
            chunk: list[Any] = []
            failure: Exception | None = None
            try:
                chunk.extend(islice(self._input, self._chunksize))
                self._fed = len(chunk) < self._chunksize
            except Exception as error:  # of the input's own: it comes out where the next item would have
                failure, self._fed = error, True
            if chunk:
                self._add(chunk)
            if failure is not None:
                self._add_failure(failure)
            if self._fed:
                self._pool._all_fed(self)

    def _add(self, chunk: list[Any]) -> None:
        try:
            job = Job(self._work, chunk, self._one_done)
        except Exception as error:  # it cannot be pickled
            for _ in chunk:
                self._add_failure(error)
            return
        with self._lock:
            self._jobs[job] = None
        self._crew.add(job)

    def _add_failure(self, error: Exception) -> None:
        """Stands for one item."""
        job = Job(None, [None], self._one_done)
        with self._lock:
            self._jobs[job] = None
        job.finish(error)


def _outcomes_of(job: Job) -> Iterator[tuple[Any, BaseException | None]]:
    """(value, None) or (None, exception) for each item of a job that is done."""
    try:
        values, errors = job.outcomes()
    except Exception as error:
        return iter([(None, error)] * job.size)
    return iter(
        [
            (value, errors[index].as_instanceof_cause() if index in errors else None)
            for index, value in enumerate(values)
        ]
    )


def _call_back(results: SimpleQueue[AsyncResult | None]) -> None:
    """The life of the thread that calls callbacks, until there is None."""
    while (result := results.get()) is not None:
        try:
            result._call_back()
        except Exception:
            log.exception("a callback of a Pool raised")
        result = None  # it would live until the next comes


def _check_chunksize(chunksize: Any) -> None:
    if chunksize is not None and (as_index(chunksize) or 0) < 1:
        raise ValueError(f"chunksize must be 1 or more, or None; got {chunksize!r}")
