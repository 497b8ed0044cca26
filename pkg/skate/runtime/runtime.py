"""What every process that owns objects runs, drivers and workers alike: the lock, the mail, the machines.

State: one lock over the process's machines (references, dispatcher) and outgoing links; the mailbox and its pump; the
store. `Objects` and `Submission` (the other modules of this package) do the work and share this state.

The lock is held for short steps (`with runtime.lock`, or `with runtime.step as now`) that call no code of the user's,
and that none interrupts: handlers of signals and finalizers wait until the step is over (skate._c.steps). What must not
happen under the lock (callbacks of futures, printing) is put into `later` and runs when it is released; what may hold
the last reference to something of the user's is let go of then, too. Refs can be dropped anywhere, in the middle of a
step, too: `on_dropped` only notes them, and whoever releases the lock next deals with them.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

from skate._c import clock, refs
from skate._c.frames import FrameError
from skate._c.refs import ObjectEntry, ObjectRef
from skate._c.steps import Steps, section
from skate.config import CORK_SECONDS, GLANCE_SECONDS
from skate.core import calls, dispatch, references
from skate.core.copies import TellCopy
from skate.core.dispatch import Dispatcher
from skate.core.references import References
from skate.core.streams import Stream
from skate.ids import NodeId, ProcessId, manager_of
from skate.net.exchange import Place
from skate.net.mailbox import Mailbox
from skate.net.pump import Pump
from skate.runtime.actors import Actors
from skate.runtime.copies import OwnedCopies
from skate.runtime.futures import RefFuture
from skate.runtime.groups import Groups
from skate.runtime.keeper import NodeKeeper
from skate.runtime.objects import Objects
from skate.runtime.streams import Streams
from skate.runtime.submission import Submission
from skate.store.local import LocalStore
from skate.wire import messages as m
from skate.wire.messages import encode

log = logging.getLogger("skate")

Handler = Callable[..., None]


class Step:
    """A step of a thread of the program: what was decided in it is done, mail leaves soon, and it glances at the inbox.

    Raises why the runtime cannot go on. Gives the time.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def __enter__(self) -> float:
        return self._runtime.begin()

    def __exit__(self, kind: object, *_: object) -> None:
        runtime = self._runtime
        now = clock.monotonic()
        try:
            if kind is None:
                runtime.act()
                runtime.send_soon(now)
        finally:
            runtime.lock.leave()
        if kind is None:
            runtime.glance(now)


class Runtime:
    """The machines of this process, and the threads and sockets that feed them."""

    def __init__(
        self, me: ProcessId, node: ProcessId, folder: str, store: LocalStore, name: str, lanes: Place | None
    ) -> None:
        self.me = me
        self.node = node
        self.store = store
        self.lock = Steps(self._drain_dropped)
        self.step = Step(self)
        self.closed = False
        self.next_task_id = refs.TaskIds(me)
        #: this node is one of a cluster: there are others, or may be
        self.in_cluster = False
        #: how many tasks deep what runs here is nested; 0 in a driver
        self.depth = 0
        #: the placement group, in hexadecimal, that what runs here has its own tasks run in; None: in none
        self.captured: str | None = None
        #: why the runtime cannot go on: the node manager died. `why_broken` is raised by whatever waits
        self.broken: BaseException | None = None
        #: the process ends: its other threads are to end without a word
        self.ending = False
        #: called, under the lock, with a process or node that is dead
        self.when_gone: list[Callable[[ProcessId | NodeId], None]] = []
        self._handlers: list[Handler | None] = [None] * 256
        #: what the machines below have decided and nobody has done yet
        self.effects: list[Any] = []
        self.references = References(me, self, self.effects)
        self.dispatcher = Dispatcher(self.effects)
        self.mailbox = self.open_mailbox(folder, lanes)
        self.pump = self.make_pump(name)
        self.objects = Objects(self)
        self.copies = OwnedCopies(self)
        self.actors = Actors(self)
        self.streams = Streams(self)
        self.submission = Submission(self)
        self.groups = Groups(self)
        self._carriers: dict[type, Callable[[Any], None]] = {
            kind: carrier.carry_out
            for carrier, kinds in (
                (self.objects, get_args(references.Effect)),
                (self.copies, (TellCopy,)),
                (self.actors, get_args(calls.Effect)),
                (self.submission, get_args(dispatch.Effect)),
            )
            for kind in kinds
        }
        #: token of a question to the node manager -> Waiter, then the answer
        self._queries: dict[int, Any] = {}
        self._next_token = itertools.count(1).__next__
        store.keeper = NodeKeeper(self, folder)
        self.handle(m.Registered, self._registered)
        self.handle(m.ProcessDied, self._process_died)
        self.handle(m.NodeDied, self._node_died)
        self.handle(m.StateReply, self._replied)
        self.handle(m.StoreReply, self._replied)
        refs.set_home(self, self.references.entries, me)

    def start(self) -> None:
        self.pump.start()

    # ----------------------------------------------------------------------------------------------------- lock

    def begin(self) -> float:
        """Begins a step of a thread of the program, which `lock.leave` ends; gives the time. See Step."""
        self.lock.enter()
        if self.broken is not None:
            self.lock.leave()
            raise self.why_broken()
        return clock.monotonic()

    def why_broken(self) -> BaseException:
        """What to raise where the runtime cannot go on. (SystemExit ends a thread without a word.)"""
        assert self.broken is not None
        return SystemExit() if self.ending else type(self.broken)(*self.broken.args)

    def later(self, call: Callable[[], object]) -> None:
        """Runs `call` once the lock is released. Under the lock."""
        self.lock.later(call)

    def on_dropped(self, what: ObjectEntry | Stream | refs.Waiter) -> None:
        """The last handle of it went. From any thread, at any time, also under the lock."""
        if not self.closed:
            self.lock.note_dropped(what)

    def _drain_dropped(self) -> None:
        dropped = self.lock.dropped
        while dropped:
            what = dropped.popleft()
            if type(what) is ObjectEntry:
                if not what.held:
                    self.references.on_dropped(what)
            elif type(what) is refs.Waiter:
                refs.unwatch(what.watched, what)
            else:
                self.streams.abandon(what)
        self.act()
        self.send_soon(clock.monotonic())

    # ----------------------------------------------------------------------------------------------------- mail

    def open_mailbox(self, folder: str, lanes: Place | None) -> Mailbox:
        """The sockets and lanes of this process. (A simulation has others.)"""
        return Mailbox(self.me, folder, self.deliver, lanes)

    def make_pump(self, name: str) -> Pump:
        """Who reads the mailbox; its thread has the name. (A simulation has no threads.)"""
        return Pump(self.mailbox, self.before_sleep, self.lock, name)

    def handle(self, message: Any, handler: Handler) -> None:
        """`handler(sender, *fields)` is called under the lock for each such message."""
        trusted = m.SAID_BY.get(message)
        self._handlers[message.code] = handler if trusted is None else self._from_node(handler, trusted)

    def _from_node(self, handler: Handler, own: bool) -> Handler:
        """Refuses what only a node manager says, this process's own or any, from everybody else."""

        def handle(sender: ProcessId, *fields: Any) -> None:
            if sender != (self.node if own else manager_of(sender)):
                raise FrameError("only a node manager says that")
            handler(sender, *fields)

        return handle

    def post(self, to: ProcessId, message: Any) -> None:
        """Queues a message; it leaves with the next flush. Under the lock."""
        self.mailbox.post(to, encode(message))

    def deliver(self, sender: ProcessId, records: list[tuple[int, tuple[Any, ...]]]) -> None:
        """What has come from another process. By the thread that reads the mailbox."""
        self.lock.enter()
        try:
            self._handle(sender, records)
            self.act()
        finally:
            self.lock.leave()

    def _handle(self, sender: ProcessId, records: list[tuple[int, tuple[Any, ...]]]) -> None:
        for code, fields in records:
            handler = self._handlers[code]
            if handler is None:
                text = "process %s sent message %d, which is not for this kind of process"
                self.later(partial(log.warning, text, sender.hex(), code))
                continue
            try:
                handler(sender, *fields)
            except FrameError as error:
                text = "refused message %d from process %s: %s"
                self.later(partial(log.warning, text, code, sender.hex(), error))
            except Exception as error:
                text = "message %d from process %s could not be handled"
                self.later(partial(log.error, text, code, sender.hex(), exc_info=error))

    def hear_out(self, process: ProcessId) -> None:
        """A process has ended: what it had sent by its lane counts before its death does. Under the lock."""
        self._handle(process, self.mailbox.last_words(process))

    def act(self) -> None:
        """Carries out what the machines have decided: all of it, also where one of them raises. Under the lock."""
        effects = self.effects
        while effects:
            todo = effects[:]
            effects.clear()
            done = 0
            try:
                for effect in todo:
                    done += 1
                    self._carriers[type(effect)](effect)
            except BaseException:
                effects[:0] = todo[done:]
                self.act()
                raise

    def before_sleep(self) -> float | None:
        """For the thread that is about to sleep in the inbox: timers, then all mail leaves. Seconds until the next."""
        now = clock.monotonic()
        self.lock.enter()
        try:
            due = self._next_tick()
            if due is not None and due <= now:
                self.dispatcher.tick(now)
                self.actors.calls.tick(now)
                self.act()
                due = self._next_tick()
            self.mailbox.flush()
            if self.mailbox.look_at is not None:
                due = self.mailbox.look_at if due is None else min(due, self.mailbox.look_at)
        finally:
            self.lock.leave()
        return None if due is None else max(0.0, due - now)

    def _next_tick(self) -> float | None:
        dispatch, calls = self.dispatcher.next_tick(), self.actors.calls.next_tick()
        if dispatch is None or calls is None:
            return calls if dispatch is None else dispatch
        return min(dispatch, calls)

    def send_soon(self, now: float) -> None:
        """After a step of a busy thread: a first message leaves at once, what follows closely leaves together."""
        if self.mailbox.flush_due(now, CORK_SECONDS) and self.pump.may_sleep_on():
            self.mailbox.flush()

    def glance(self, now: float) -> None:
        """Lets a busy thread take in what has come, so that no other thread has to. Not under the lock."""
        self.pump.glance(now, GLANCE_SECONDS)

    # ------------------------------------------------------------------------------------------------ the others

    def _registered(self, _: ProcessId, session: Any) -> None:
        self.in_cluster = "address" in session

    def _process_died(
        self, _: ProcessId, process: ProcessId, cause: str, running: bytes, answered: int
    ) -> None:
        self.hear_out(process)
        self.act()  # what was decided before it was known still names the process
        self.mailbox.forget(process)
        self._gone(process, cause, running, answered)

    def _node_died(self, _: ProcessId, node: NodeId, cause: str) -> None:
        """How much of what its workers were asked they have done is not known: it all counts as begun."""
        self.act()
        self.mailbox.forget_node(node)
        self.actors.node_died(node, cause, clock.monotonic())
        self._gone(node, cause, b"", sys.maxsize)
        self.copies.node_died(node, cause)

    def _gone(self, who: ProcessId | NodeId, cause: str, running: bytes, answered: int) -> None:
        self.submission.worker_died(who, cause, running, answered)
        self.actors.process_died(who, clock.monotonic())
        self.objects.owner_died(who)
        for call in self.when_gone:
            call(who)

    def fail_everything(self, error: BaseException) -> None:
        """The node manager is gone: nothing that is pending will ever come. From any thread."""
        with self.lock:
            self.broken = error
            self.objects.fail_pending(error)
            for waiter in list(self._queries.values()):
                if type(waiter) is refs.Waiter:
                    self.finish(waiter)

    def end_quietly(self, error: BaseException) -> None:
        """The process ends: its other threads hear nothing of it, and stay where they wait. Not under the lock."""
        with self.lock:
            self.ending = True
            self.broken = error

    def query(self, what: str, timeout: float = 30.0) -> Any:
        """Asks the node manager about its state; blocks until it answers."""
        try:
            return self.ask(lambda token: m.StateQuery(token, what), timeout)
        except TimeoutError:
            text = f"the node manager did not answer the question for {what!r} within {timeout} s"
            raise TimeoutError(text) from None

    def ask(self, question: Callable[[int], Any], timeout: float | None = None) -> Any:
        """Sends the node manager `question(token)` and blocks until it answers that token, or is gone.

        TimeoutError after `timeout` seconds. Not under the lock, nor by the thread that reads the inbox.
        """
        waiter = refs.Waiter()
        waiter.missing = 1
        answer: Any = waiter
        with section:
            with self.step as now:
                if self.lock.dropped:
                    self._drain_dropped()  # what a program dropped before it asks is said before
                token = self._next_token()
                self._queries[token] = waiter
                self.post(self.node, question(token))
                self.mailbox.flush()
            try:
                self.pump.wait(waiter, self.lock, None if timeout is None else now + timeout)
            finally:
                answer = self._queries.pop(token)
        if answer is waiter:
            if self.broken is not None:
                raise self.why_broken()
            raise TimeoutError("the node manager did not answer")
        return answer

    def ask_later(self, question: Callable[[int], Any], answered: Callable[[Any], None]) -> None:
        """As `ask`, without blocking: calls `answered(answer)`, under the lock, or with None when the node is gone.

        Under the lock.
        """
        token = self._next_token()

        def finished(waiter: refs.Waiter) -> None:
            answer = self._queries.pop(token)
            answered(None if answer is waiter else answer)

        self._queries[token] = refs.Waiter(finished)
        self.post(self.node, question(token))

    def _replied(self, _: ProcessId, token: int, value: Any) -> None:
        waiter = self._queries.get(token)
        if waiter is None:
            return  # it stopped waiting
        self._queries[token] = value
        self.finish(waiter)

    def free(self, identifier: bytes) -> None:
        """Drops a stored object of this process, from all stores and disks. Under the lock."""
        self.copies.free(identifier)

    def finish(self, waiter: refs.Waiter) -> None:
        """A waiter is done: whoever sleeps until it is wakes up. Under the lock."""
        waiter.done = True
        callback = waiter.callback
        if callback is not None:
            waiter.callback = None
            callback(waiter)
            self.lock.drop_later(callback)
        elif not self.closed and self.pump.another_thread_reads():
            self.mailbox.poke()  # perhaps it is that one, which sleeps in the inbox

    def future(self, ref: ObjectRef) -> Any:
        return RefFuture(self, ref)

    def await_ref(self, ref: ObjectRef) -> Any:
        return self.objects.await_ref(ref)

    def close(self) -> None:
        """Ends the pump and the sockets. Refs made here are of no use any more."""
        self.closed = True
        refs.set_home(None, {}, b"")
        self.pump.close(self.ending)
        with self.lock:
            self.mailbox.close()
        self.store.close()
