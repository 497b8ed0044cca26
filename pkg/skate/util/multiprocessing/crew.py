"""The workers of a Pool, and who of them does what.

State: actors that are idle or busy, and the jobs that wait for one. A worker has one job at a time, since functions may
wait for each other: a job that stood behind another while a worker was idle could block the program. So what passes at
once between a job and the next is kept short: a job is packed when it is made, and the next is handed out by the thread
that reads the answer to the last.

Invariants: no job waits while a worker is idle. A job is done once, and `on_done(job)` is called for it. The lock is
not held while anything is called: each call of the runtime's may run callbacks of anybody's.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from skate._c.refs import FAILED, ObjectRef
from skate._c.steps import Steps
from skate.api.actors import kill
from skate.api.objects import get, put, wait
from skate.api.remote import remote
from skate.api.session import require_runtime
from skate.exceptions import ActorDiedError, TaskError
from skate.runtime import current
from skate.runtime.latch import Latch
from skate.store.serialization import dump_function, load_function
from skate.util.waiting import when_done

__all__ = ["Code", "Crew", "Job", "Work"]

#: pickled functions up to this size travel with each job, larger ones through the store
INLINE_FUNCTION_BYTES = 32_768
#: functions that a pool keeps pickled, and a worker keeps loaded
FUNCTIONS_KEPT = 64


class Code:
    """A function as it travels to workers. Raises SerializationError, ObjectStoreFullError."""

    def __init__(self, function: Callable[..., Any]) -> None:
        dumped = dump_function(function)
        self.name = getattr(function, "__name__", type(function).__name__)
        #: None where a worker must not keep it
        self.digest: bytes | None = dumped.digest
        self.pickled: Any = dumped.data
        if dumped.refs:  # they must be counted: it goes as a value
            self.digest, self.pickled = None, put(function)
        elif len(dumped.data) > INLINE_FUNCTION_BYTES:
            self.pickled = put(dumped.data)


class Work(NamedTuple):
    """A function of the user's, and how a worker is to call it on the items of a batch."""

    code: Code
    #: a key of HOW
    how: str
    #: the first item that fails ends its batch
    all_or_nothing: bool


class Job:
    """A batch of items for one worker. Done when it has an answer, or an error that stands for one."""

    def __init__(self, work: Work | None, batch: list[Any], on_done: Callable[[Job], None]) -> None:
        self.size = len(batch)
        #: packed here and now: later there might be no thread that may wait for room in the store
        self.arguments: tuple[Any, ...] = ()
        if work is not None:
            code = work.code
            self.arguments = (code.digest, code.pickled, code.name, work.how, work.all_or_nothing, put(batch))
        self._on_done: Callable[[Job], None] | None = on_done
        self.ref: ObjectRef | None = None
        self.error: Exception | None = None

    def finish(self, error: Exception | None = None) -> None:
        """It is done, by the error where there is one."""
        on_done, self._on_done = self._on_done, None  # whoever waits for a job holds it: no cycle stays
        assert on_done is not None
        self.error = error
        on_done(self)

    def outcomes(self) -> tuple[list[Any], dict[int, TaskError]]:
        """Of a job that is done: the values, and by index the errors of items that failed, whose values are None.

        Raises what the job as a whole failed with.
        """
        if self.error is not None:
            raise self.error
        assert self.ref is not None
        if self.ref.entry.home is not current.runtime:  # get() would start another session
            raise RuntimeError("the Pool's session was shut down, and its results with it")
        return get(self.ref)  # type: ignore[no-any-return]


class _Hand:
    """A worker, as the crew sees it."""

    __slots__ = ("actor", "jobs")

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        #: how many it was given
        self.jobs = 0


class Crew:
    """So many workers, each an actor that ran `initializer(*initargs)`. Blocks until they have; raises what it raised.

    jobs_each: after so many a worker is replaced by a new one. options: of the actors.
    """

    def __init__(
        self,
        size: int,
        initializer: Callable[..., Any] | None,
        initargs: Iterable[Any],
        jobs_each: int | None,
        options: dict[str, Any],
    ) -> None:
        self.size = size
        self._runtime = require_runtime()
        self._jobs_each = jobs_each
        self._workers = _ActorClass.options(**options) if options else _ActorClass
        self._setup = put((initializer, tuple(initargs))) if initializer is not None else None
        self._lock = Steps()
        self._idle = [self._hire() for _ in range(size)]
        self._busy: dict[Job, _Hand] = {}
        self._waiting: deque[Job] = deque()
        self._closed = False
        self._terminated = False
        self._sent_away = False
        #: open when all is done and no more will come
        self._over = Latch(self._runtime)
        #: calls that end the workers
        self._leaving: list[ObjectRef] = []
        try:
            get([hand.actor.ready.remote() for hand in self._idle])
        except BaseException:
            self.terminate()
            raise

    def add(self, job: Job) -> None:
        """Has a job done, as soon as a worker is idle. Does not block."""
        with self._lock:
            terminated = self._terminated
            if not terminated:
                self._waiting.append(job)
        if terminated:
            job.finish(ActorDiedError("The Pool was terminated."))
        else:
            self._move_on()

    def close(self) -> None:
        """No more jobs will come: when all are done, the workers leave."""
        self._closed = True
        self._move_on()

    def terminate(self) -> None:
        """Kills the workers. What is not done fails with ActorDiedError."""
        with self._lock:
            self._closed = self._terminated = True
            hands = [*self._idle, *self._busy.values()]
            self._idle.clear()
            waiting, self._waiting = self._waiting, deque()
        for hand in hands if self._can_call else ():
            kill(hand.actor)
        for job in waiting:
            job.finish(ActorDiedError("The Pool was terminated before this was begun."))
        self._move_on()

    def wait_until_gone(self) -> None:
        """Blocks until all jobs are done and the workers have left."""
        self._over.wait()
        if self._leaving:
            wait(self._leaving, num_returns=len(self._leaving))

    # ---------------------------------------------------------------------------------------------------- steps

    @property
    def in_session(self) -> bool:
        """False after `skate.shutdown()`: the workers are gone, and to call one would start another session."""
        return current.runtime is self._runtime

    @property
    def _can_call(self) -> bool:
        """Whether there may be workers; False also where the node manager has died."""
        return self.in_session and self._runtime.broken is None

    def _check_session(self) -> None:
        if not self.in_session:
            raise RuntimeError("the Pool's session was shut down before this was begun")

    def _hire(self) -> _Hand:
        return _Hand(self._workers.remote(self._setup))

    def _move_on(self) -> None:
        """Hands out jobs as far as there are workers; where it all is over, sends the workers away."""
        while True:
            with self._lock:
                if not (self._waiting and self._idle):
                    break
                job, hand = self._waiting.popleft(), self._idle.pop()  # the one that is still warm
                self._busy[job] = hand
            hand.jobs += 1
            try:
                self._check_session()
                job.ref = hand.actor.run.remote(*job.arguments)
            except Exception as error:
                self._put_aside(job, hand, error)
            else:
                job.arguments = ()
                when_done(job.ref, partial(self._answered, job))
        with self._lock:
            if not self._closed or self._waiting or self._busy or self._sent_away:
                return
            self._sent_away = True
            hands, self._idle = self._idle, []
        try:
            if self._can_call:
                self._leaving += [hand.actor.__ray_terminate__.remote() for hand in hands]
        finally:
            self._over.open()

    def _answered(self, job: Job) -> None:
        """A worker is free again. By the thread that reads the inbox."""
        hand = self._busy[job]
        assert job.ref is not None
        used_up = _died(job.ref) or hand.jobs == self._jobs_each
        if used_up and not self._terminated and self._can_call:
            hand = self._hire()  # the other ends when its handle goes, that is, now
        self._put_aside(job, hand)
        self._move_on()

    def _put_aside(self, job: Job, hand: _Hand, error: Exception | None = None) -> None:
        """The job is done; the worker is idle."""
        job.finish(error)
        with self._lock:
            del self._busy[job]
            if not self._terminated:
                self._idle.append(hand)
                return
        if self._can_call:
            kill(hand.actor)


def _died(ref: ObjectRef) -> bool:
    return ref.entry.state == FAILED and isinstance(ref.exception(), ActorDiedError)


# ----------------------------------------------------------------------------------------------------- the worker


HOW: dict[str, Callable[[Callable[..., Any], Any], Any]] = {
    "apply": lambda function, item: function(*item[0], **item[1]),
    "each": lambda function, item: function(item),
    "star": lambda function, item: function(*item),
}


class _Worker:
    """Runs batches, one at a time."""

    def __init__(self, setup: tuple[Callable[..., Any], tuple[Any, ...]] | None) -> None:
        self._functions: dict[bytes, Callable[..., Any]] = {}
        if setup is not None:
            initializer, initargs = setup
            initializer(*initargs)

    def ready(self) -> None:
        """Answers once the initializer has run."""

    def run(
        self,
        digest: bytes | None,
        pickled: Any,
        name: str,
        how: str,
        all_or_nothing: bool,
        batch: list[Any],
    ) -> tuple[list[Any], dict[int, TaskError]]:
        """Calls the function for each item: see Job.outcomes. `all_or_nothing` stops at the first that fails."""
        function = pickled if digest is None else self._loaded(digest, pickled)
        call = HOW[how]
        values: list[Any] = []
        errors: dict[int, TaskError] = {}
        for index, item in enumerate(batch):
            try:
                values.append(call(function, item))
            except Exception as error:
                values.append(None)
                assert current.facts is not None
                node = current.facts.node.hex()[:8]
                errors[index] = TaskError.from_exception(error, name, os.getpid(), node)
                if all_or_nothing:
                    break
        return values, errors

    def _loaded(self, digest: bytes, pickled: bytes) -> Callable[..., Any]:
        """The function; the same one as before where it was the same, with what it remembers."""
        function = self._functions.pop(digest, None)
        if function is None:
            function = load_function(pickled)
            if len(self._functions) >= FUNCTIONS_KEPT:
                del self._functions[next(iter(self._functions))]
        self._functions[digest] = function
        return function


_ActorClass = remote(num_cpus=0)(_Worker)
