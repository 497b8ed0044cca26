"""An actor in its process: the instance, and how its calls run.

State: the instance. Calls run one at a time in the main thread, as tasks do; or in threads (`max_concurrency`,
concurrency groups); or, where the class has an `async def` method, in event loops: those of the default group in the
main thread, those of each concurrency group in a thread of its own. The main thread's loop reads the inbox itself
whenever it would sleep, so a call costs no thread a wake-up.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import selectors
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import copy_context
from types import AsyncGeneratorType, CoroutineType, WrapperDescriptorType
from typing import TYPE_CHECKING, Any

from skate._c import clock, refs
from skate._c.refs import Guard
from skate._c.steps import Steps, doze, let_in, section, with_signals
from skate.core.methods import BUILT_IN, DEFAULT_GROUP, method_id
from skate.exceptions import ActorExit
from skate.ids import ActorId, ProcessId, manager_of, owner_of
from skate.runtime.loops import LoopInbox
from skate.store.serialization import load_function
from skate.wire import messages as m
from skate.worker.executor import CallThread, End, Executor, NewActor, Pushed, running
from skate.worker.lease import Lease

if TYPE_CHECKING:
    from skate.runtime.runtime import Runtime

log = logging.getLogger("skate")

#: how many methods of an asyncio actor run at once where nothing is said, as in Ray
ASYNC_CONCURRENCY = 1_000
#: seconds for which a busy event loop takes calls off the lanes alone, and asks the kernel for nothing
BUSY_SECONDS = 0.0003
#: seconds that coroutines which are cancelled at the end of their actor may take to clear up
CANCEL_SECONDS = 5.0


class HostedActor:
    """The actor that lives in this process."""

    def __init__(self, new: NewActor) -> None:
        self.id = ActorId(new.actor)  # type: ignore[arg-type]
        self.owner = owner_of(new.actor)
        self.spec = new.spec
        self.restarts = new.restarts
        self.name: str = new.spec["name"]
        #: begins the lines that it prints, until it has a __repr__ of its own to tell
        self.shown: str = new.spec["class_name"]
        self.instance: Any = None
        #: what the constructor raised, packed; empty: nothing; None: it has not returned
        self._error: bytes | None = None

    def construct(self, executor: Executor, runtime: Runtime) -> None:
        """Makes the instance, and says to the actor's node that it is there, or what was raised.

        Where something was raised the process does not end by itself: the node ends it, once it has read why. So the
        end of the process cannot be heard of before its reason.
        """
        with section:
            self._construct(executor, runtime)

    def _construct(self, executor: Executor, runtime: Runtime) -> None:
        guards: list[Guard] = []
        failure: Any = None
        try:
            let_in(self._make_instance, executor, guards)
        except SystemExit:
            raise
        except BaseException as exception:
            failure = executor.packed_error(exception, f"{self.shown}.__init__")
        executor.flush_output()
        with runtime.lock:
            error, contents = b"", None
            if failure is not None:
                ((_, error, contents),) = executor.handed_over(self.owner, [failure])
                failure = None
            kept = executor.end_guards(guards)
            runtime.act()  # who else holds the refs inside must be known before the error is
            runtime.post(self.owner, m.ActorMade(self.id, kept, contents))
            self._error = error
            self.say_again(runtime)
            runtime.mailbox.flush()

    def _make_instance(self, executor: Executor, guards: list[Guard]) -> None:
        cls = self._load()
        args, kwargs = executor.arguments(self, guards)
        self.instance = cls(*args, **kwargs)
        self._add_methods(executor, cls)
        if not isinstance(cls.__repr__, WrapperDescriptorType):  # (object's, or a built-in container's)
            executor.set_output_name(self._own_name())

    def _own_name(self) -> str:
        try:
            return repr(self.instance) or self.shown
        except Exception:
            log.warning("%s.__repr__ raised: lines begin with the class's name", self.shown, exc_info=True)
            return self.shown

    def say_again(self, runtime: Runtime) -> None:
        """Tells the actor's node how the constructor ended, once it has. Under the lock."""
        if self._error is not None:
            runtime.post(manager_of(self.id), m.ActorStarted(self.id, self._error))

    # What Executor.arguments reads, as of a call.

    @property
    def args(self) -> bytes:
        return self.spec["args"]  # type: ignore[no-any-return]

    @property
    def dependencies(self) -> Any:
        return self.spec["dependencies"]

    def _load(self) -> Any:
        before = refs.unpickling_under(
            Guard(self.owner)
        )  # refs in the class live as long as its maker knows it
        try:
            return load_function(self.spec["pickled"])
        finally:
            refs.unpickling_under(before)

    def _add_methods(self, executor: Executor, cls: type) -> None:
        """The class's methods, whatever attributes of their names the instance has."""
        groups = [DEFAULT_GROUP, *(self.spec["groups"] or ())]
        for name in self.spec["methods"]:
            call = inspect.getattr_static(cls, name)
            if hasattr(call, "__get__"):
                call = call.__get__(self.instance, cls)
            for group in groups:
                executor.add_method(method_id(name, group), f"{self.shown}.{name}", call)
        own = {
            "__ray_ready__": lambda: True,
            "__ray_call__": lambda function, *args, **kwargs: function(self.instance, *args, **kwargs),
            "__ray_terminate__": _terminate,
        }
        for name in BUILT_IN:
            if name not in self.spec["methods"]:
                for group in groups:
                    executor.add_method(method_id(name, group), f"{self.shown}.{name}", own[name])

    def group_of(self) -> Mapping[bytes, str]:
        """Method id -> concurrency group."""
        groups = [DEFAULT_GROUP, *(self.spec["groups"] or ())]
        return {
            method_id(name, group): group for name in (*self.spec["methods"], *BUILT_IN) for group in groups
        }

    def limits(self, default: int) -> dict[str, int]:
        """Concurrency group -> how many of its calls run at once."""
        return {DEFAULT_GROUP: self.spec["max_concurrency"] or default} | (self.spec["groups"] or {})


def _terminate() -> None:
    raise ActorExit("__ray_terminate__ was called.")


def become_actor(executor: Executor, runtime: Runtime, new: NewActor) -> bool:
    """Makes the actor and serves it; returns when it has ended. True where the executor's own loop is to serve it.

    In a section.
    """
    actor = executor.actor = HostedActor(new)
    spec = new.spec
    executor.set_output_name(actor.shown)
    executor.serve(Lease(new.lease, ProcessId(new.actor), spec["depth"] + 1, new.allocation))
    runtime.objects.blocking = None  # an actor keeps what it holds while it waits
    if spec["asyncio"]:
        EventLoops(executor, runtime, actor).run()
        return False
    if spec["max_concurrency"] not in (None, 1) or spec["groups"]:
        Threads(executor, runtime, actor).run()
        return False
    try:
        actor.construct(executor, runtime)
    except SystemExit as request:
        executor.leave(request)
        return False
    return True


class ThreadGroup:
    """The threads of one concurrency group. They are started as they are needed, `limit` at most.

    One thread at a time is woken, and wakes the next when it has taken a call and more are there. So short calls are
    run by few threads, which need not hand the interpreter to one another, and long ones by as many as may.
    """

    def __init__(self, name: str, limit: int, run: Callable[[Pushed, Callable[[], bool]], bool]) -> None:
        self._name = name
        self._limit = limit
        #: runs a call; False where the thread is to end
        self._run = run
        #: (a step: a finalizer that comes in between may wait for a call of this very group to be taken in)
        self._lock = Steps()
        self._calls: deque[Pushed] = deque()
        #: what threads that have nothing to do sleep on
        self._idle: list[threading.Lock] = []
        #: a thread was woken, and has not looked yet
        self._waking = False
        self._ended = False
        self._threads: list[threading.Thread] = []

    def put(self, call: Pushed) -> None:
        """Gives a call to one of the threads. Does not block."""
        with self._lock:
            self._calls.append(call)
            self._wake_one()

    def end(self) -> None:
        """What runs goes on to its end, what waits does not begin; blocks until that is so."""
        with self._lock:
            self._ended = True
            self._calls.clear()
            for alarm in self._idle:
                alarm.release()
            self._idle.clear()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _wake_one(self) -> None:
        if self._waking or self._ended:
            return
        if self._idle:
            self._waking = True
            self._idle.pop().release()
        elif len(self._threads) < self._limit:
            self._waking = True
            name = f"skate-{self._name or 'default'}-{len(self._threads)}"
            thread = CallThread(target=self._serve, name=name, daemon=True)
            self._threads.append(thread)
            with_signals(thread.start)  # who takes in mail may have left them

    def _serve(self) -> None:
        alarm = threading.Lock()
        alarm.acquire()
        woken = True
        while True:
            with self._lock:
                if woken:
                    self._waking = woken = False
                call = self._calls.popleft() if self._calls else None
                if call is None:
                    if self._ended:
                        return
                    self._idle.append(alarm)
                elif self._calls:
                    self._wake_one()
            if call is None:
                alarm.acquire()
                woken = True
            elif not self._run(call, self._has_none):
                return

    def _has_none(self) -> bool:
        return not self._calls


class Threads:
    """Runs the calls of a threaded actor: each concurrency group has threads of its own."""

    def __init__(self, executor: Executor, runtime: Runtime, actor: HostedActor) -> None:
        self._executor = executor
        self._runtime = runtime
        self._actor = actor
        self._group_of: Mapping[bytes, str] = actor.group_of()
        self._groups = {name: ThreadGroup(name, limit, self._run) for name, limit in actor.limits(1).items()}

    def run(self) -> None:
        """Serves until the actor ends."""
        executor, actor = self._executor, self._actor
        executor.sink = self._take
        try:
            actor.construct(executor, self._runtime)
        except SystemExit as request:
            executor.leave(request)
            return
        while type(executor.next_item()) is not End:
            pass
        if executor.leaving is not None:
            for group in self._groups.values():
                group.end()
            executor.leave(executor.leaving)

    def _take(self, pushed: Pushed) -> None:
        self._groups[self._group_of.get(pushed.function, DEFAULT_GROUP)].put(pushed)

    def _run(self, pushed: Pushed, last: Callable[[], bool]) -> bool:
        if self._executor.leaving is not None:
            return False
        try:
            self._executor.run_in_thread(pushed, last)
        except SystemExit as request:
            self._executor.end(request)
            return False
        return True


class EventLoop:
    """Runs the calls of one concurrency group of an asyncio actor, in the thread that calls `run`."""

    def __init__(
        self, executor: Executor, runtime: Runtime, limit: int, selector: type[LoopSelector]
    ) -> None:
        self._executor = executor
        self._runtime = runtime
        sleeps_in = selector(runtime, self._start_calls)
        self._loop = asyncio.SelectorEventLoop(sleeps_in)
        if isinstance(sleeps_in, InboxSelector):
            sleeps_in.awaited = runtime.objects.loops.adopt(self._loop)
        #: the thread that runs it; 0: none does yet
        self.thread: int = 0
        self._context = copy_context()
        #: how many more calls may run, and those that wait for that
        self._free = limit
        self._waiting: deque[Pushed] = deque()
        self._arrived: deque[Pushed] = deque()
        self._ringing = False
        self._ended: asyncio.Future[None] = self._loop.create_future()
        #: calls that run; the loop itself holds its tasks weakly
        self._tasks: dict[Pushed, asyncio.Task[None]] = {}

    def run(self, first: Callable[[], None] | None = None) -> None:
        """Calls `first` in the loop, then serves until the actor ends. In a section."""
        self.thread = threading.get_ident()
        asyncio.set_event_loop(self._loop)
        main = self._loop.create_task(self._main(first))
        while not main.done():
            try:
                let_in(self._loop.run_until_complete, main)
            except SystemExit as request:
                self._executor.end(request)
                return
            except BaseException:
                if main.done():
                    raise
                log.exception("a handler of a signal raised while no call ran; the actor goes on")

    async def _main(self, first: Callable[[], None] | None) -> None:
        if first is not None:
            first()
        await self._ended

    def end(self) -> None:
        """Has `run` return. From any thread."""
        self._loop.call_soon_threadsafe(lambda: None if self._ended.done() else self._ended.set_result(None))

    def cancel_what_runs(self) -> None:
        """Coroutines are not answered any more, and can clear up after themselves. In the loop's thread."""
        self._executor.withholds = True
        last = self._loop.create_task(self._cancelled())
        while not last.done():
            try:
                let_in(self._loop.run_until_complete, last)
            except SystemExit:
                pass  # once more, from what else was on its way: it ends already
            except BaseException:
                log.exception("a handler of a signal raised while the actor ended; it goes on to its end")
        self._tasks.clear()

    async def _cancelled(self) -> None:
        """(What has ended is held by its callbacks, and the actor with it: these have run by now, or run meanwhile.)"""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_SECONDS)

    def take(self, pushed: Pushed) -> None:
        """Under the lock, where no user's code may run; a task factory could be one. So the selector starts it."""
        self._arrived.append(pushed)
        if not self._ringing and threading.get_ident() != self.thread:
            self._ringing = True
            self._loop.call_soon_threadsafe(self._start_calls)

    def _start_calls(self) -> bool:
        """Starts what has arrived, in the loop's thread; False where nothing has."""
        self._ringing = False  # first: what arrives from here on rings again
        arrived = self._arrived
        if not arrived:
            return False
        while arrived:
            pushed = arrived.popleft()
            if self._free:
                self._free -= 1
                self._start(pushed)
            else:
                self._waiting.append(pushed)
        return True

    def _start(self, pushed: Pushed) -> None:
        task = self._loop.create_task(self._run(pushed))
        if not task.done():  # (an eager one may be)
            self._tasks[pushed] = task

    async def _run(self, pushed: Pushed) -> None:
        """Runs one call and answers; the answer leaves before the loop sleeps."""
        executor = self._executor
        if executor.leaving is not None:
            return
        running.set(pushed)
        guards: list[Guard] = []
        started = clock.monotonic_ns()
        try:
            function = executor.function_of(pushed)
            args, kwargs = executor.arguments(pushed, guards)
            result = function.call(*args, **kwargs)
            if type(result) is CoroutineType or inspect.isawaitable(result):
                result = await result
            args, kwargs = (), {}
            many = type(result) is AsyncGeneratorType or pushed.returns not in (0, 1)
            if many and hasattr(result, "__aiter__") and executor.is_run(pushed):
                values = await executor.pack_async(pushed, function.name, result)
            else:
                values = executor.pack(pushed, function.name, result)
            result = None
        except SystemExit as request:
            executor.end(request)
            return
        except BaseException as exception:
            args, kwargs, result = (), {}, None
            values = executor.failed(pushed, exception, pushed.name or function.name)
        finally:
            self._tasks.pop(pushed, None)
            if self._waiting:
                # Not in here: it may be eager, and has nothing of this call's context.
                self._loop.call_soon(self._start, self._waiting.popleft(), context=self._context)
            else:
                self._free += 1
        executor.answer_at_once(pushed, values, guards, clock.monotonic_ns() - started)


class EventLoops:
    """Runs the calls of an asyncio actor: those of each concurrency group in a loop and a thread of its own.

    The default group's is the main thread, which takes in the mail, too. While a call blocks it, the pump does; so no
    group blocks another.
    """

    def __init__(self, executor: Executor, runtime: Runtime, actor: HostedActor) -> None:
        self._executor = executor
        self._runtime = runtime
        self._actor = actor
        self._group_of: Mapping[bytes, str] = actor.group_of()
        self._loops = {
            group: EventLoop(
                executor, runtime, limit, InboxSelector if group == DEFAULT_GROUP else LoopSelector
            )
            for group, limit in actor.limits(ASYNC_CONCURRENCY).items()
        }
        self._main = self._loops[DEFAULT_GROUP]
        self._threads: list[threading.Thread] = []
        self._warned: set[str] = set()

    def run(self) -> None:
        """Serves until the actor ends."""
        executor = self._executor
        executor.on_end = self._main.end
        self._runtime.objects.before_blocking = self._warn_of_blocking
        executor.sink = self._main.take if len(self._loops) == 1 else self._take
        self._main.run(self._begin)
        try:
            if executor.leaving is not None:
                executor.leave(executor.leaving)
        finally:
            self._end_groups()
            self._main.cancel_what_runs()
            self._runtime.objects.before_blocking = None  # exit handlers block no loop

    def _begin(self) -> None:
        """In the main loop: the instance is made there, before any call runs."""
        self._actor.construct(self._executor, self._runtime)
        for group, loop in self._loops.items():
            if loop is not self._main:
                thread = CallThread(target=self._serve, args=(loop,), name=f"skate-{group}", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, loop: EventLoop) -> None:
        with section:
            loop.run()
            loop.cancel_what_runs()

    def _end_groups(self) -> None:
        """What runs in them is cancelled; a call that blocks its thread is waited for as long as coroutines are."""
        self._executor.withholds = True
        for loop in self._loops.values():
            if loop is not self._main:
                loop.end()
        until = clock.monotonic() + 1.2 * CANCEL_SECONDS
        for thread in self._threads:
            let_in(thread.join, max(0.0, until - clock.monotonic()))

    def _take(self, pushed: Pushed) -> None:
        """Under the lock."""
        self._loops[self._group_of.get(pushed.function, DEFAULT_GROUP)].take(pushed)

    def _warn_of_blocking(self, function: str) -> None:
        """Once each, as Ray does."""
        here = threading.get_ident()
        if function in self._warned or all(loop.thread != here for loop in self._loops.values()):
            return
        self._warned.add(function)
        log.warning(
            "Using blocking skate.%s inside async actor. This blocks the event loop: the actor's other calls stand "
            "still meanwhile. Write `await ref`, or `await asyncio.gather(*refs)`.",
            function,
        )


class LoopSelector(selectors.EpollSelector):
    """What an event loop sleeps in. All mail leaves before it sleeps.

    `start_calls` is called, not under the lock, when calls may have come; True where any had.
    """

    def __init__(self, runtime: Runtime, start_calls: Callable[[], bool]) -> None:
        super().__init__()
        self._start_calls = start_calls
        self._runtime = runtime

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As in selectors."""
        events = self._sleep(0 if self._start_calls() else timeout)  # calls came while a coroutine blocked
        self._start_calls()
        return events

    def _sleep(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        self._runtime.before_sleep()
        return super().select(timeout)


class InboxSelector(LoopSelector):
    """Takes in the process's mail, too, unless another thread reads it. A busy one asks the kernel now and then."""

    def __init__(self, runtime: Runtime, start_calls: Callable[[], bool]) -> None:
        super().__init__(runtime, start_calls)
        self._mailbox = runtime.mailbox
        self._pump = runtime.pump
        self._inbox = self.register(self._mailbox.fileno(), selectors.EVENT_READ)
        #: the refs that are awaited in the loop
        self.awaited: LoopInbox
        #: when the kernel was asked last what is ready
        self._looked_at = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As in selectors."""
        came = self._start_calls() or self.awaited.has_arrivals()  # while a coroutine blocked
        events = self._sleep(0 if came else timeout)
        self._start_calls()
        self.awaited.hand_out()
        return events

    def _sleep(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        with section:
            ready = self._read_undisturbed(timeout)
        return ready

    def _read_undisturbed(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        if not self._pump.take():
            self._runtime.before_sleep()
            awaited = self.awaited
            awaited.looks = False  # first: from here on whoever brings something rings
            try:
                return self._without_inbox(let_in(self._kernel, 0 if awaited.has_arrivals() else timeout))
            finally:
                awaited.looks = True
        try:
            others = self._read_inbox(timeout)
        finally:
            self._pump.give_up()
        return others

    def _read_inbox(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        """As `_read`, by the thread that has the right to read."""
        mailbox = self._mailbox
        if mailbox.spin() if timeout != 0 else mailbox.take_lanes():
            timeout = 0
        if timeout == 0 and not mailbox.waits:
            now = clock.monotonic()
            if now - self._looked_at < BUSY_SECONDS:
                return []
            self._looked_at = now
        due = self._runtime.before_sleep()
        if mailbox.read(0):
            timeout = 0
        elif due is not None:
            timeout = due if timeout is None else min(timeout, due)
        awaited = self.awaited
        awaited.looks = False
        try:
            if timeout != 0 and not self._is_wanted() and mailbox.fall_asleep(True):
                doze(self.fileno(), timeout)
        finally:
            mailbox.wake_up()
            awaited.looks = True
        ready = self._kernel(0)
        others = self._without_inbox(ready)
        if len(others) != len(ready) or timeout != 0:
            mailbox.serve()
        return others

    def _kernel(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        return selectors.EpollSelector.select(self, timeout)

    def _is_wanted(self) -> bool:
        """Something is to be called first."""
        return self._runtime.lock.has_put_off() or self.awaited.has_arrivals()

    def _without_inbox(
        self, ready: list[tuple[selectors.SelectorKey, int]]
    ) -> list[tuple[selectors.SelectorKey, int]]:
        return [item for item in ready if item[0] is not self._inbox]
