"""Runs what owners push: tasks and the calls of an actor, one at a time, in the worker's main thread.

State: the queue of what was pushed and has not begun, the functions this worker knows, the lease it serves. The main
thread reads the inbox itself while it has nothing to do; while a task runs, the runtime's pump reads it. An actor with
threads or an event loop takes over what is pushed (`sink`, see worker.actor), and uses the parts of a call from here.

Invariants: a task is answered once, by TaskDone or TasksReturned, unless the process dies; the testament says what runs
and what was answered, so that after a death the node can tell, and deliver.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Final, NamedTuple

from skate._c import clock, frames, plain, refs
from skate._c.refs import FAILED, INLINE, STORED, Guard, Waiter
from skate._c.steps import let_in, section
from skate.callables import is_generator
from skate.exceptions import ActorExit, SerializationError, TaskError
from skate.ids import ProcessId, TaskId, manager_of, object_id
from skate.runtime.arguments import unpack_arguments
from skate.runtime.objects import pack_failure
from skate.runtime.runtime import Runtime
from skate.store.serialization import from_bytes, load_function, serialize
from skate.wire import checks
from skate.wire import messages as m
from skate.wire.messages import encode
from skate.wire.testament import Testament
from skate.worker import threads
from skate.worker.functions import Functions, Loaded
from skate.worker.lease import Lease
from skate.worker.output import TaskOutput
from skate.worker.streams import Streams

log = logging.getLogger("skate")


class Pushed:
    """A task as it was pushed: see PushTask."""

    __slots__ = (
        "args",
        "attempt",
        "dependencies",
        "function",
        "max_calls",
        "name",
        "owner",
        "returns",
        "stored",
        "task",
    )

    def __init__(
        self,
        owner: ProcessId,
        task: TaskId,
        function: bytes,
        args: bytes,
        dependencies: Any,
        returns: int,
        attempt: int,
        name: str,
        max_calls: int,
    ) -> None:
        self.owner = owner
        self.task = task
        self.function = function
        self.args = args
        self.dependencies = dependencies
        self.returns = returns
        self.attempt = attempt
        self.name = name
        self.max_calls = max_calls
        #: ids of what is in the store for it and no answer has told of
        self.stored: set[bytes] | None = None


#: the message that is sent most, without its named tuple
_TASK_DONE: Final = m.TaskDone.code  # type: ignore[attr-defined]
_TASK_DONE_SCHEMA: Final = m.TaskDone.schema  # type: ignore[attr-defined]

#: what runs in this thread or coroutine, where an actor runs many calls at once
running: ContextVar[Pushed | None] = ContextVar("skate_running", default=None)


class NewActor(NamedTuple):
    """The worker is to become an actor."""

    actor: bytes
    lease: int
    allocation: Any
    spec: dict[str, Any]
    restarts: int


class End(NamedTuple):
    """The actor's last handle is gone, or it ends itself."""


class CallThread(threading.Thread):
    """Runs calls of an actor with threads, or event loops."""

    def run(self) -> None:
        threads.limit_here()
        super().run()


class Executor:
    """The worker's side of a call."""

    def __init__(
        self,
        runtime: Runtime,
        testament: Testament,
        output: TaskOutput,
        become_actor: Callable[[Executor, Runtime, NewActor], bool],
    ) -> None:
        self._runtime = runtime
        self._become_actor = become_actor
        self._testament = testament
        self._output = output
        self._queue: deque[Pushed | Lease | NewActor | End] = deque()
        self._known = Functions(runtime.lock)
        self._functions = self._known.by_id
        #: what was taken off the queue when the last task was answered: it comes next, and counts as begun
        self._taken: Pushed | Lease | NewActor | End | None = None
        self._arrival: Waiter | None = None
        #: a wait in the task has lent its CPUs; what runs meanwhile in a handler or a finalizer may wait, too
        self._lends = False
        #: the task waits until it has CPUs again
        self._resume: Waiter | None = None
        self._stopping = False
        #: tasks of the lease that were answered
        self._answered = 0
        self._main = threading.get_ident()
        #: what the worker holds while it serves an owner; the runtime context reads it
        self.lease: Lease | None = None
        #: the task that runs, or None; see `running_now`
        self.current: Pushed | None = None
        #: the actor that lives here, or None (worker.actor)
        self.actor: Any = None
        #: takes what is pushed, under the lock, in place of the queue
        self.sink: Callable[[Pushed], None] | None = None
        #: called, under the lock, when the actor is to end, in place of the queue
        self.on_end: Callable[[], None] | None = None
        #: the actor ends itself, in order: what was raised in it
        self.leaving: SystemExit | None = None
        #: calls that end from here on are not answered: they fail when the process has ended
        self.withholds = False
        #: the generators that run
        self._streams = Streams(self, runtime)
        runtime.objects.blocking = self._blocking
        runtime.when_gone.append(self._known.owner_died)
        runtime.handle(m.ExportFunction, self._known.exported)
        runtime.handle(m.ForgetFunctions, self._forgotten)
        runtime.handle(m.StartLease, self._lease_started)
        runtime.handle(m.PushTask, self._pushed)
        runtime.handle(m.RecallTasks, self._recalled)
        runtime.handle(m.Resume, self._resumed)
        runtime.handle(m.ExitIfUnused, self._asked_to_leave)
        runtime.handle(m.BecomeActor, self._to_become)
        runtime.handle(m.EndActor, self._told_to_end)
        runtime.handle(m.Left, self._left)

    # ------------------------------------------------------------------------------------------------- messages

    def _forgotten(self, owner: ProcessId, functions: Any) -> None:
        self._known.forgotten(owner, checks.functions(functions))

    def _lease_started(self, owner: ProcessId, lease_id: int, depth: int, allocation: Any) -> None:
        if self.lease is not None and self.lease.owner != owner:
            self._known.serves_another()
        self._queue.append(Lease(lease_id, owner, depth, allocation))

    def _pushed(self, owner: ProcessId, *fields: Any) -> None:
        if self.sink is not None:
            self.sink(Pushed(owner, *fields))
        else:
            self._enqueue(Pushed(owner, *fields))

    def _to_become(self, _: ProcessId, *fields: Any) -> None:
        """A head that has come back says it again, as it cannot know whether this process has heard, or was."""
        if self.actor is None:
            self._enqueue(NewActor(*fields))
        else:
            self.actor.say_again(self._runtime)

    def _told_to_end(self, _: ProcessId, actor: bytes) -> None:
        self._end()

    def _left(self, _: ProcessId, reason: str) -> None:
        """Nobody needs this process any more: nothing begins."""
        self._queue.clear()
        self._taken = None
        self._end()

    def _end(self) -> None:
        """What runs goes on to its end, and then this process ends. Under the lock."""
        if self.on_end is not None:
            self.on_end()
        else:
            self._enqueue(End())

    def _enqueue(self, item: Pushed | NewActor | End) -> None:
        self._queue.append(item)
        arrival = self._arrival
        if arrival is not None:
            self._arrival = None
            self._runtime.finish(arrival)

    def _recalled(self, owner: ProcessId, lease_id: int) -> None:
        # Where nothing runs, the first was pushed a moment ago and begins now: given back, it would go in circles.
        begun = self.current is not None or self._taken is not None
        self._give_back(owner, lease_id, keep=0 if begun else 1)

    def _give_back(self, owner: ProcessId, lease_id: int, keep: int = 0) -> None:
        """Returns the owner's tasks that have not begun, but for the first `keep` of them. Under the lock."""
        unbegun = []
        stays: deque[Pushed | Lease | NewActor | End] = deque()
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
        resume, self._resume = self._resume, None
        if resume is not None:
            self._runtime.finish(resume)

    def _asked_to_leave(self, node: ProcessId, reason: str) -> None:
        """The node has idle workers to spare. Leaves only what owns nothing that others may still want."""
        busy = self.current is not None or self._taken is not None or self._queue
        if not busy and not self._runtime.references.entries:
            self._stopping = True
            if self._arrival is not None:
                self._runtime.finish(self._arrival)
        else:
            self._runtime.post(node, m.StillUsed(reason))

    # --------------------------------------------------------------------------------------------------- the loop

    def run(self) -> None:
        """Runs tasks until the node asks this worker to leave, or its last call of `max_calls`, or its actor ends.

        All but the tasks themselves is one section: a handler that a task has left behind interrupts nothing.
        """
        with section:
            self._run()

    def _run(self) -> None:
        runtime = self._runtime
        while True:
            item, self._taken = self._taken, None
            if item is None:
                item = self.next_item()
            kind = type(item)
            if kind is Pushed:
                if not self._execute(item):
                    return
            elif kind is Lease:
                self.lease = item
                self._answered = 0
                self._resume = None
                self._testament.new_lease()
                runtime.depth = item.depth
                runtime.captured = item.captured
                item.apply()
            elif kind is NewActor:
                # Twice: what was said again lay in the queue when it became one. It speaks when it is made.
                if self.actor is None and not self._become_actor(self, runtime, item):
                    return
            else:
                if self.leaving is not None:
                    self.leave(self.leaving)
                return

    def next_item(self) -> Pushed | Lease | NewActor | End:
        """What comes next; blocks until there is something."""
        runtime = self._runtime
        while True:
            with runtime.lock:
                item = self._queue.popleft() if self._queue else End() if self._stopping else None
                if item is None:
                    arrival = self._arrival = Waiter()
            if item is not None:
                return item
            try:
                runtime.pump.wait(arrival, runtime.lock, None)
            except SystemExit:
                raise
            except BaseException:
                if runtime.closed:
                    raise
                log.exception("a handler of a signal raised while no task ran; the worker goes on")

    def end(self, request: SystemExit) -> None:
        """The actor ends itself. What runs goes on to its end, what waits does not begin.

        From any thread, not under the lock. In one that runs no call (the program's own) nobody can tell in which call
        it happened, so none that runs is answered.
        """
        with self._runtime.lock:
            if self.leaving is None:
                self.leaving = request
            self.withholds = self.withholds or not self.runs_calls_here()
            self._queue.clear()
            self._taken = None
            self._end()

    def runs_calls_here(self) -> bool:
        """Whether calls run in this thread."""
        return threading.get_ident() == self._main or type(threading.current_thread()) is CallThread

    def let_go_of_actor(self) -> None:
        """The actor's instance goes, as what a program holds goes when it ends: its `__del__` runs."""
        if self.actor is not None:
            self.actor.instance = self.leaving = None  # (whose traceback leads to it)
            self._functions.clear()
            gc.collect()

    def set_output_name(self, name: str) -> None:
        """What all lines that are printed from here on begin with, whichever way."""
        self._output.stay(name)

    def flush_output(self) -> None:
        """What was printed is with the node before the answer is, even if this process is killed now."""
        if self._output.dirty:
            self._output.flush()

    def serve(self, lease: Lease) -> None:
        """From here on the worker keeps to this lease, which its actor holds for life."""
        self.lease = lease
        self._answered = 0
        self._testament.new_lease()
        self._runtime.depth = lease.depth
        self._runtime.captured = lease.captured
        lease.apply()

    def add_method(self, function_id: bytes, name: str, call: Any) -> None:
        """Makes a method of the actor callable by its id."""
        loaded = self._functions[function_id] = Loaded(self._runtime.me, name, b"")
        loaded.call = call

    def running_now(self) -> Pushed | None:
        """The task or call that this thread or coroutine runs."""
        return running.get() or self.current

    def _execute(self, pushed: Pushed) -> bool:
        """Runs one task and answers. False where it was this worker's last."""
        runtime = self._runtime
        self.current = pushed
        self._testament.begins(pushed.task)
        function = self._functions[pushed.function]
        if self.actor is None:
            self._output.name = pushed.name or function.name
        guards: list[Guard] = []
        started = clock.monotonic_ns()
        try:
            values = let_in(self.call, function, pushed, guards)
        except SystemExit as request:
            if self.actor is None:
                raise
            self.flush_output()
            self.leave(self.leaving or request)
            return False
        except BaseException as exception:  # a handler raised at its very beginning or end
            values = self.failed(pushed, exception, pushed.name or function.name)
        ended = clock.monotonic_ns()
        now = ended * 1e-9
        self.flush_output()
        if self.withholds:
            return True
        runtime.lock.enter()
        try:
            self.answer(pushed, values, guards, ended - started)
            values = None
            self._answered += 1
            self._testament.answered(self._answered)
            self.current = None
            if self._queue:
                self._taken = self._queue.popleft()
                runtime.send_soon(now)
            else:
                runtime.mailbox.flush()
        finally:
            runtime.lock.leave()
        if pushed.max_calls:
            function.calls += 1
            if function.calls >= pushed.max_calls:
                return False
        runtime.glance(now)
        return True

    def run_in_thread(self, pushed: Pushed, last: Callable[[], bool]) -> None:
        """Runs one call of an actor with threads, in one of them, and answers. `last`: nothing else waits for a thread.

        Raises SystemExit where the actor is to end.
        """
        runtime = self._runtime
        running.set(pushed)
        guards: list[Guard] = []
        started = clock.monotonic_ns()
        values = self.call(self._functions[pushed.function], pushed, guards)
        elapsed = clock.monotonic_ns() - started
        self.flush_output()
        if self.withholds:
            return
        runtime.lock.enter()
        try:
            self.answer(pushed, values, guards, elapsed)
            if last():
                runtime.mailbox.flush()
            else:
                runtime.send_soon(clock.monotonic())
        finally:
            runtime.lock.leave()

    def function_of(self, pushed: Pushed) -> Loaded:
        """What the call calls."""
        return self._functions[pushed.function]

    async def pack_async(self, pushed: Pushed, name: str, result: Any) -> list[Any]:
        """As `pack`, of an async generator that is run for its values (`is_run`)."""
        return await self._streams.run_async(pushed, name, result)

    def is_run(self, pushed: Pushed) -> bool:
        """Whether a generator that the call has returned is run for its values; else it would be the value itself."""
        if pushed.returns not in (0, 1):
            return True
        return is_generator(self._functions[pushed.function].call)

    def answer_at_once(self, pushed: Pushed, values: list[Any], guards: list[Guard], elapsed: int) -> None:
        """Answers a call of an actor that runs many at once. Not under the lock."""
        self.flush_output()
        if self.withholds:
            return
        lock = self._runtime.lock
        lock.enter()
        try:
            self.answer(pushed, values, guards, elapsed)
        finally:
            lock.leave()

    def answer(self, pushed: Pushed, values: list[Any], guards: list[Guard], elapsed: Any) -> None:
        """Posts the answer of a call: its values, or its error as each of them. Under the lock."""
        runtime = self._runtime
        if pushed.stored:
            self._drop_untold(pushed, values)
        answer = self.handed_over(pushed.owner, values)
        kept = self.end_guards(guards)
        runtime.act()  # who else holds the refs inside must be known before the answer is
        self.post_answer(
            pushed, frames.encode(_TASK_DONE, _TASK_DONE_SCHEMA, (pushed.task, elapsed, answer, kept))
        )

    def _drop_untold(self, pushed: Pushed, values: list[Any]) -> None:
        """Drops what was put into the store for an answer that does not tell of it: a handler raised meanwhile."""
        untold, pushed.stored = pushed.stored, None
        assert untold is not None
        for index, (state, _, _) in enumerate(values):
            if state == STORED:
                untold.discard(object_id(pushed.task, index))
        for identifier in untold:
            self._runtime.free(identifier)

    def post_answer(self, pushed: Pushed, record: bytes) -> None:
        """Posts what must not be lost if this process dies before it has left. Under the lock."""
        mailbox = self._runtime.mailbox
        if mailbox.post(pushed.owner, record):
            return
        if not self._testament.note(pushed.owner, pushed.attempt, record):
            self._testament.note(pushed.owner, pushed.attempt, pushed.task)
            mailbox.flush()

    def end_guards(self, guards: list[Guard]) -> list[Any] | None:
        """What the call has kept of its arguments, for their owner. Under the lock."""
        if not guards:
            return None
        end_guard = self._runtime.references.end_guard
        return [item for guard in guards for item in end_guard(guard)] or None

    def leave(self, request: SystemExit) -> None:
        """The actor ends itself: the node hears of it before it sees the process end.

        Raises `request` again where it says that something is wrong: then the actor may start again.
        """
        if request.code:
            raise request
        why = str(request) if isinstance(request, ActorExit) else "sys.exit() was called in it."
        runtime = self._runtime
        with runtime.lock:
            manager = manager_of(self.actor.id)
            record = encode(m.ActorLeaves(self.actor.id, why))
            if not runtime.mailbox.post(manager, record):
                self._testament.note(manager, 0, record)
            runtime.mailbox.flush()

    def call(self, function: Loaded, pushed: Pushed, guards: list[Guard]) -> list[Any]:
        """The values of a call, packed; or what it raised."""
        name = pushed.name or function.name
        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        try:
            if function.call is None:
                function.call = self._load(function)
            if pushed.args:
                args, kwargs = self.arguments(pushed, guards)
            result = function.call(*args, **kwargs)
            args, kwargs = (), {}
            return self.pack(pushed, name, result)
        except SystemExit:
            raise
        except BaseException as exception:
            args, kwargs = (), {}
            refs.unpickling_under(None)  # it may have been interrupted just where it was to end
            return self.failed(pushed, exception, name)

    def failed(self, pushed: Pushed, exception: BaseException, name: str) -> list[Any]:
        """The values of a call that has raised: the error for each, and one where there are none."""
        return [self.packed_error(exception, name)] * max(1, pushed.returns)

    def packed_error(self, exception: BaseException, name: str) -> tuple[int, bytes, Any]:
        """(FAILED, packed, refs inside): an exception of the user's as a value."""
        node = self._runtime.node.hex()[:8]
        return pack_failure(TaskError.from_exception(exception, name, os.getpid(), node))

    def arguments(self, pushed: Any, guards: list[Guard]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) of what `pushed` carries; the refs among them live by the guards that this adds."""
        if not pushed.args:
            return (), {}
        guard = self._guard(pushed.owner, b"", guards)
        dependencies: list[Any] = []
        try:
            if pushed.dependencies:
                dependencies = [self._dependency(pushed.owner, item, guards) for item in pushed.dependencies]
            refs.unpickling_under(guard)
            try:
                arguments = unpack_arguments(pushed.args, dependencies)
            finally:
                refs.unpickling_under(None)
            if pushed.dependencies:
                self._runtime.objects.came_with(pushed.dependencies)
            return arguments
        finally:
            dependencies.clear()

    def _guard(self, owner: ProcessId, container: bytes, guards: list[Guard]) -> Guard | None:
        """What refs live by that `owner` sends inside a call's arguments, or in the value of one of them.

        Its own arguments a process finds as any other object: it has them, and what is in them lives by them.
        """
        if owner == self._runtime.me:
            entry = self._runtime.references.entries.get(container)
            return None if entry is None or entry.owned else entry
        guard = Guard(owner, container)
        guards.append(guard)
        return guard

    def _load(self, function: Loaded) -> Any:
        """Unpickles a function; refs in its closure live as long as its exporter keeps them."""
        assert function.pickled is not None
        before = refs.unpickling_under(self._guard(function.owners[0], b"", []))
        try:
            call = load_function(function.pickled)
        finally:
            refs.unpickling_under(before)
        function.pickled = None
        return call

    def _dependency(self, owner: ProcessId, item: tuple[bytes, int, Any], guards: list[Guard]) -> Any:
        identifier, state, value = item
        refs.unpickling_under(self._guard(owner, identifier, guards))
        try:
            if state == STORED:
                return self._runtime.objects.stored(identifier)
            value = from_bytes(value)
            if state == FAILED:  # it was lost after the task had been queued
                raise value
            return value
        finally:
            refs.unpickling_under(None)

    def pack(self, pushed: Pushed, name: str, result: Any) -> list[Any]:
        """The values of a call, serialized, one for each ref that its caller has."""
        number = pushed.returns
        kind = type(result)
        if kind is GeneratorType and self.is_run(pushed):
            return self._streams.run(pushed, name, result)
        if number == 1:
            if kind is GeneratorType or kind is AsyncGeneratorType:
                raise TypeError(
                    f"{name}() was called for one value, and returned a generator, without being one itself. Call it "
                    "with num_returns='streaming' (or 'dynamic', or the number of values), or have it return a list."
                )
            return [self.kept(pushed, name, 0, result)]
        if number == 0:
            return []
        asked = f"{name}() was called with num_returns={number if number > 0 else 'streaming'!r}"
        if not hasattr(result, "__iter__") or isinstance(result, (str, bytes)):
            must = f"return {number} values" if number > 0 else "be a generator, or return an iterable"
            raise ValueError(f"{asked}, so it must {must}; it returned one {type(result).__name__}")
        if number > 0 and hasattr(result, "__len__") and len(result) != number:
            raise ValueError(f"{asked}, but it returned {len(result)} values")
        return self._streams.run(pushed, name, result)

    def kept(self, pushed: Pushed, name: str, index: Any, value: Any) -> tuple[int, Any, Any]:
        """(state, value, refs inside) of one value, which is in the store where it is large."""
        small = plain.small(value)
        if small is not None:
            return INLINE, small, ()
        if type(value) is CoroutineType:
            value.close()
            raise SerializationError(
                f"{name}() returned a coroutine: await it inside the task, say with asyncio.run"
            )
        serialized = serialize(value, "the result of {}()", "result", name)
        identifier = object_id(pushed.task, index)
        with section:  # what is in the store is known to be, whatever comes in between
            state, stored = self._runtime.objects.keep(
                identifier, serialized, pushed.attempt > 0, pushed.owner
            )
            if state == STORED:
                if pushed.stored is None:
                    pushed.stored = set()
                pushed.stored.add(identifier)
        return state, stored, serialized.refs

    def handed_over(self, owner: ProcessId, values: list[Any]) -> list[Any]:
        """The values as a message carries them; the owner is registered with the refs inside. Under the lock."""
        references = self._runtime.references
        return [
            (state, stored, references.hand_over([ref.entry for ref in inner], owner) if inner else None)
            for state, stored, inner in values
        ]

    def current_names(self) -> tuple[str, str]:
        """(name, function as module.qualname) of the task that runs."""
        pushed = self.running_now()
        assert pushed is not None
        function = self._functions[pushed.function]
        call = function.call
        full = f"{getattr(call, '__module__', '?')}.{getattr(call, '__qualname__', function.name)}"
        return pushed.name or function.name, full

    # -------------------------------------------------------------------------------------------------- blocking

    @contextmanager
    def _blocking(self) -> Iterator[None]:
        """Around a wait inside a task: gives back what has not begun, lends the CPUs, takes them again afterwards.

        In a section.
        """
        lease = self.lease
        if lease is None or self.current is None or self._lends or threading.get_ident() != self._main:
            yield
            return
        runtime = self._runtime
        if self._resume is not None:  # a handler waits, of a signal that came while the task waited for CPUs
            runtime.pump.wait(self._resume, runtime.lock, None)
        self.flush_output()
        with runtime.lock:
            self._give_back(lease.owner, lease.id)
            runtime.post(runtime.node, m.Blocked(lease.id))
        self._lends = True
        try:
            yield
        finally:
            self._lends = False
            with runtime.lock:
                resume = self._resume = Waiter()
                resume.missing = 1
                runtime.post(runtime.node, m.Unblocked(lease.id))
            try:
                runtime.pump.wait(resume, runtime.lock, None)
            finally:
                lease.apply()
