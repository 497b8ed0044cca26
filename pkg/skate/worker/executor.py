"""Runs the tasks that owners push, one at a time, in the worker's main thread.

State: the queue of what was pushed and has not begun, the functions this worker knows, the lease it serves. The main
thread reads the inbox itself while it has nothing to do; while a task runs, the runtime's pump reads it.

Invariants: a task is answered once, by TaskDone or TasksReturned, unless the process dies; `marker` names the task that
runs, so that the node can say after a death which one it was.
"""

from __future__ import annotations

import inspect
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap
from time import monotonic, perf_counter_ns
from typing import Any, NamedTuple

from skate._c import refs
from skate._c.refs import FAILED, STORED, Guard, Waiter
from skate.core.tasks import CALLS_SHIFT, ONCE
from skate.exceptions import SerializationError, TaskError
from skate.ids import ProcessId, TaskId, object_id
from skate.runtime.arguments import unpack_arguments
from skate.runtime.objects import pack_error
from skate.runtime.runtime import Runtime
from skate.store.serialization import from_bytes, load_function, serialize
from skate.wire import messages as m
from skate.worker.lease import Lease
from skate.worker.output import TaskOutput

log = logging.getLogger("skate")

NO_TASK = bytes(16)
#: length of the marker: the task that runs, then how many of the lease were answered
MARKER_BYTES = 24


class Pushed(NamedTuple):
    """A task as it was pushed."""

    owner: ProcessId
    task: TaskId
    function: bytes
    args: bytes
    dependencies: Any
    returns: int
    attempt: int
    name: str
    flags: int


class Loaded:
    """A function as this worker has it: its pickle until it is first called, then itself."""

    __slots__ = ("call", "calls", "name", "owner", "pickled")

    def __init__(self, owner: ProcessId, name: str, pickled: bytes) -> None:
        self.owner = owner
        self.name = name
        self.pickled: bytes | None = pickled
        self.call: Any = None
        self.calls = 0


class Executor:
    """The worker's side of a call."""

    def __init__(self, runtime: Runtime, marker: mmap, output: TaskOutput) -> None:
        self._runtime = runtime
        self._marker = marker
        self._output = output
        self._queue: deque[Pushed | Lease] = deque()
        self._functions: dict[bytes, Loaded] = {}
        self._arrival: Waiter | None = None
        self._resume: Waiter | None = None
        self._stopping = False
        #: tasks of the lease that were answered
        self._answered = 0
        self._main = threading.get_ident()
        #: what the worker holds while it serves an owner; the runtime context reads it
        self.lease: Lease | None = None
        #: the task that runs, or None
        self.current: Pushed | None = None
        runtime.objects.blocking = self._blocking
        runtime.handle(m.ExportFunction, self._exported)
        runtime.handle(m.StartLease, self._lease_started)
        runtime.handle(m.PushTask, self._pushed)
        runtime.handle(m.RecallTasks, self._recalled)
        runtime.handle(m.Resume, self._resumed)
        runtime.handle(m.ExitIfUnused, self._asked_to_leave)

    # ------------------------------------------------------------------------------------------------- messages

    def _exported(self, owner: ProcessId, function_id: bytes, name: str, pickled: bytes) -> None:
        if function_id not in self._functions:
            self._functions[function_id] = Loaded(owner, name, pickled)

    def _lease_started(self, owner: ProcessId, lease_id: int, depth: int, allocation: Any) -> None:
        self._queue.append(Lease(lease_id, owner, depth, allocation))

    def _pushed(self, owner: ProcessId, *fields: Any) -> None:
        self._queue.append(Pushed(owner, *fields))
        arrival = self._arrival
        if arrival is not None:
            self._arrival = None
            self._runtime.finish(arrival)

    def _recalled(self, owner: ProcessId, lease_id: int) -> None:
        # Where nothing runs, the first was pushed a moment ago and begins now: given back, it would go in circles.
        self._give_back(owner, lease_id, keep=0 if self.current is not None else 1)

    def _give_back(self, owner: ProcessId, lease_id: int, keep: int = 0) -> None:
        """Returns the owner's tasks that have not begun, but for the first `keep` of them. Under the lock."""
        unbegun = []
        stays: deque[Pushed | Lease] = deque()
        for item in self._queue:
            if type(item) is not Pushed or item.owner != owner:
                stays.append(item)
            elif keep:
                keep -= 1
                stays.append(item)
            else:
                unbegun.append(item.task)
        self._queue = stays
        self._runtime.post(owner, m.TasksReturned(lease_id, unbegun))

    def _resumed(self, _: ProcessId, lease_id: int) -> None:
        if self._resume is not None:
            self._runtime.finish(self._resume)

    def _asked_to_leave(self, node: ProcessId, reason: str) -> None:
        """The node has idle workers to spare. Leaves only what owns nothing that others may still want."""
        if self.current is None and not self._queue and not self._runtime.references.entries:
            self._stopping = True
            if self._arrival is not None:
                self._runtime.finish(self._arrival)
        else:
            self._runtime.post(node, m.StillUsed(reason))

    # --------------------------------------------------------------------------------------------------- the loop

    def run(self) -> None:
        """Runs tasks until the node asks this worker to leave, or a task's `max_calls` are used up."""
        runtime = self._runtime
        while True:
            runtime.lock.acquire()
            try:
                item = self._queue.popleft() if self._queue else None
                if item is None:
                    if self._stopping:
                        return
                    arrival = self._arrival = Waiter()
            finally:
                runtime.release()
            if item is None:
                runtime.pump.wait(arrival, runtime.lock, None)
            elif type(item) is Lease:
                self.lease = item
                self._answered = 0
                self._marker[:] = bytes(MARKER_BYTES)
                runtime.depth = item.depth
                item.apply()
            elif not self._execute(item):
                return

    def _execute(self, pushed: Pushed) -> bool:
        """Runs one task and answers. False where it was this worker's last."""
        runtime = self._runtime
        self.current = pushed
        self._marker[:16] = pushed.task
        function = self._functions[pushed.function]
        self._output.name = pushed.name or function.name
        guards: list[Guard] = []
        started = perf_counter_ns()
        values, error = self._call(function, pushed, guards)
        elapsed = perf_counter_ns() - started
        self._output.end_task()
        now = monotonic()
        runtime.lock.acquire()
        try:
            if error is None:
                answer = self._answer(pushed, values)
            else:
                answer = [(FAILED, error, None)] * max(1, pushed.returns)
            values = None
            kept = [item for guard in guards for item in runtime.references.end_guard(guard)] or None
            runtime.act(now)  # who else holds the refs inside must be known before the answer is
            runtime.post(pushed.owner, m.TaskDone(pushed.task, elapsed, answer, kept))
            self._answered += 1
            self._marker[:] = NO_TASK + self._answered.to_bytes(8, "little")
            self.current = None
            if pushed.flags & ONCE or not self._queue:
                runtime.mailbox.flush()
            else:
                runtime.send_soon(now)
        finally:
            runtime.release()
        calls = pushed.flags >> CALLS_SHIFT
        if calls:
            function.calls += 1
            if function.calls >= calls:
                return False
        runtime.glance()
        return True

    def _call(self, function: Loaded, pushed: Pushed, guards: list[Guard]) -> tuple[Any, bytes | None]:
        """(packed values, None), or (None, packed error)."""
        name = pushed.name or function.name
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        dependencies: list[Any] = []
        try:
            if function.call is None:
                function.call = self._load(function)
            if pushed.args:
                guard = Guard(pushed.owner)
                guards.append(guard)
                if pushed.dependencies:
                    dependencies = [
                        self._dependency(pushed.owner, item, guards) for item in pushed.dependencies
                    ]
                refs.unpickling_under(guard)
                try:
                    args, kwargs = unpack_arguments(pushed.args, dependencies)
                finally:
                    refs.unpickling_under(None)
                dependencies.clear()
            result = function.call(*args, **kwargs)
            args, kwargs = (), {}
            return self._pack(pushed, name, result), None
        except SystemExit:
            raise
        except BaseException as exception:
            args, kwargs = (), {}
            dependencies.clear()
            node = self._runtime.node.hex()[:8]
            return None, pack_error(TaskError.from_exception(exception, name, os.getpid(), node))

    def _load(self, function: Loaded) -> Any:
        """Unpickles a function; refs in its closure live as long as its exporter keeps them."""
        assert function.pickled is not None
        before = refs.unpickling_under(Guard(function.owner))
        try:
            call = load_function(function.pickled)
        finally:
            refs.unpickling_under(before)
        function.pickled = None
        return call

    def _dependency(self, owner: ProcessId, item: tuple[bytes, int, Any], guards: list[Guard]) -> Any:
        identifier, state, value = item
        guard = Guard(owner, identifier)
        guards.append(guard)
        refs.unpickling_under(guard)
        try:
            return self._runtime.objects.stored(identifier) if state == STORED else from_bytes(value)
        finally:
            refs.unpickling_under(None)

    def _pack(self, pushed: Pushed, name: str, result: Any) -> list[Any]:
        """The values of a call, serialized, one for each ref that its caller has."""
        number = pushed.returns
        if number == 1:
            results = (result,)
        elif number == 0:
            results = ()
        else:
            if not hasattr(result, "__iter__") or isinstance(result, (str, bytes)):
                raise ValueError(
                    f"{name}() was called with num_returns={number}, so it must return {number} values; "
                    f"it returned one {type(result).__name__}"
                )
            results = tuple(result)
            if len(results) != number:
                raise ValueError(
                    f"{name}() was called with num_returns={number}, but it returned {len(results)} values"
                )
        packed: list[Any] = []
        try:
            for index, value in enumerate(results):
                if inspect.iscoroutine(value):
                    value.close()
                    raise SerializationError(
                        f"{name}() returned a coroutine: await it inside the task, say with asyncio.run"
                    )
                serialized = serialize(value, f"the result of {name}()", "result")
                identifier = object_id(pushed.task, index)
                state, stored = self._runtime.objects.keep(identifier, serialized, pushed.attempt > 0)
                packed.append((state, stored, serialized.refs))
        except BaseException:
            self._take_back(pushed.task, packed)
            raise
        return packed

    def _take_back(self, task: TaskId, packed: list[Any]) -> None:
        """The call fails after all: those of its values that are in the store already are nobody's."""
        runtime = self._runtime
        runtime.lock.acquire()
        try:
            for index, (state, _, _) in enumerate(packed):
                if state == STORED:
                    runtime.free(object_id(task, index))
        finally:
            runtime.release()

    def _answer(self, pushed: Pushed, values: list[Any]) -> list[Any]:
        """The values as TaskDone carries them; the owner is registered with the refs inside. Under the lock."""
        hand_over = self._runtime.references.hand_over
        return [
            (state, stored, hand_over([ref.entry for ref in inner], pushed.owner) if inner else None)
            for state, stored, inner in values
        ]

    def current_names(self) -> tuple[str, str]:
        """(name, function as module.qualname) of the task that runs."""
        pushed = self.current
        assert pushed is not None
        function = self._functions[pushed.function]
        call = function.call
        full = f"{getattr(call, '__module__', '?')}.{getattr(call, '__qualname__', function.name)}"
        return pushed.name or function.name, full

    # -------------------------------------------------------------------------------------------------- blocking

    @contextmanager
    def _blocking(self) -> Iterator[None]:
        """Around a wait inside a task: gives back what has not begun, lends the CPUs, takes them again afterwards."""
        lease = self.lease
        if lease is None or self.current is None or threading.get_ident() != self._main:
            yield
            return
        runtime = self._runtime
        self._output.flush()
        runtime.lock.acquire()
        try:
            self._give_back(lease.owner, lease.id)
            runtime.post(runtime.node, m.Blocked(lease.id))
        finally:
            runtime.release()
        try:
            yield
        finally:
            runtime.lock.acquire()
            try:
                resume = self._resume = Waiter()
                resume.missing = 1
                runtime.post(runtime.node, m.Unblocked(lease.id))
            finally:
                runtime.release()
            runtime.pump.wait(resume, runtime.lock, None)
            self._resume = None
            lease.apply()
