"""Values of objects: put, get, wait, futures; and what owners and borrowers tell one another.

State is the runtime's references; this module reads and writes values. A value is in one of three places: packed in
the entry (INLINE), in a node's store (STORED), or it is an error (FAILED). An owner tells a borrower that asked as
soon as the value is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from skate._c import refs
from skate._c.clock import monotonic
from skate._c.plain import Serialized, to_bytes, unpack
from skate._c.refs import FAILED, INLINE, NOTHING, PENDING, STORED, ObjectEntry, ObjectRef, Waiter
from skate._c.steps import enter_section, leave_section, let_in, section
from skate.config import INLINE_BETWEEN_NODES, INLINE_BYTES, Deadline, Timeout
from skate.core.references import (
    AskEcho,
    AskSettled,
    Effect,
    FreeValue,
    Speak,
    TellBorrower,
    TellClaim,
    TellWatch,
)
from skate.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    OwnerDiedError,
    ReferenceCountingAssertionError,
    TaskError,
)
from skate.ids import PROCESS_ID_BYTES, NodeId, ObjectId, ProcessId, manager_of, object_id, owner_of
from skate.runtime.arrivals import Arrivals
from skate.runtime.large_arguments import LargeArguments
from skate.runtime.loops import Loops
from skate.store.local import NotHere
from skate.store.serialization import from_bytes, serialize
from skate.wire import checks
from skate.wire import messages as m

if TYPE_CHECKING:
    from skate.runtime.runtime import Runtime

log = logging.getLogger("skate")

#: types whose values cannot change: once read, the same value is given again
IMMUTABLE = frozenset({int, float, bool, type(None), str, bytes, complex})


def pack_failure(error: BaseException) -> tuple[int, bytes, list[ObjectRef]]:
    """An exception as a value of a call: (FAILED, packed, refs inside)."""
    packed = serialize(error, "the exception", "exception")
    return FAILED, to_bytes(packed), packed.refs


def pack_error(error: BaseException) -> bytes:
    """An exception of skate's own, with no refs inside, as the value of a FAILED object."""
    return pack_failure(error)[1]


def wake(ready: asyncio.Future[None]) -> None:
    """Ends the wait of a coroutine, in its loop. (A closure in a coroutine would be a cycle, once compiled.)"""
    if not ready.done():  # it may have been cancelled
        ready.set_result(None)


class Objects:
    """The objects of one process, by value."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._references = runtime.references
        self.large_arguments = LargeArguments(runtime, self)
        self._arrivals = Arrivals(runtime)
        self.loops = Loops(runtime)
        #: PENDING object of this process -> the borrowers that have asked for it
        self._askers: dict[bytes, set[ProcessId]] = {}
        #: (process, number) of an Echo -> who waits for its answer
        self._echo_waits: dict[tuple[ProcessId, int], Waiter] = {}
        self._echoes_asked = 0
        #: id of an object of this process -> what to call, under the lock, when it is freed
        self.when_freed: dict[bytes, Callable[[], None]] = {}
        #: called with "get" or "wait" before one; an asyncio actor warns there
        self.before_blocking: Callable[[str], None] | None = None
        #: called around a wait that really blocks; workers lend their CPUs meanwhile
        self.blocking: Any = None
        runtime.handle(m.AskObject, self._asked)
        runtime.handle(m.ObjectReady, self._answered)
        runtime.handle(m.AddBorrower, self._borrower_added)
        runtime.handle(m.ReleaseBorrow, self._borrow_released)
        runtime.handle(m.ClaimBorrow, self._borrow_claimed)
        runtime.handle(m.Echo, lambda asker, number: runtime.post(asker, m.Echoed(number)))
        runtime.handle(m.Echoed, self._echoed)
        runtime.handle(m.Speak, lambda _, number, dead: self._references.on_asked_to_speak(number))
        runtime.handle(m.DeathSettled, lambda _, dead: self._references.on_settled(dead))

    # ------------------------------------------------------------------------------------------------------ put

    def put(self, value: Any) -> ObjectRef:
        """Stores a value; copies it once. Raises SerializationError, ObjectStoreFullError, OutOfDiskError.

        Blocks for as long as a full store makes room.
        """
        return self.put_packed(value, serialize(value))

    def put_packed(self, value: Any, packed: Serialized) -> ObjectRef:
        """As `put`, of a value that is serialized already."""
        runtime = self._runtime
        identifier = object_id(runtime.next_task_id(), 0)
        enter_section()  # what is in the store has an entry that owns it, whatever comes in between
        try:
            state, stored = self.keep(identifier, packed)
            runtime.lock.enter()
            try:
                entry = self._references.create(identifier)
                entry.state = state
                entry.value = stored
                if type(value) in IMMUTABLE:
                    entry.literal = value
                if packed.refs:
                    inner = [ref.entry for ref in packed.refs]
                    self._references.on_value(entry, [(each.id, b"") for each in inner])
                ref = ObjectRef(entry)
            finally:
                runtime.lock.leave()
        finally:
            leave_section()
        return ref

    @property
    def inline_argument_bytes(self) -> int:
        """Larger arguments go to the store. (Who calls does not know on which node of a cluster.)"""
        return INLINE_BETWEEN_NODES if self._runtime.in_cluster else INLINE_BYTES

    def keep(
        self, identifier: bytes, packed: Serialized, again: bool = False, owner: ProcessId | None = None
    ) -> tuple[int, Any]:
        """Puts a packed value where its size says: (state, what the entry's `value` is then). See LocalStore.put.

        `owner`: it is on its way there, where that is another process.
        """
        size = packed.total_bytes
        if size <= INLINE_BYTES or (size <= INLINE_BETWEEN_NODES and self._is_elsewhere(owner)):
            return INLINE, to_bytes(packed)
        return STORED, self._runtime.store.put(identifier, packed, again=again)

    def _is_elsewhere(self, owner: ProcessId | None) -> bool:
        return owner is not None and self._runtime.mailbox.is_elsewhere(owner)

    # ------------------------------------------------------------------------------------------------------ get

    def get(self, wanted: list[ObjectRef], timeout: float | None) -> list[Any]:
        """The values, in order. Blocks until all are there, or one has failed, or `timeout` seconds are over."""
        if self.before_blocking is not None:
            self.before_blocking("get")
        waiter = Waiter(eager=True)
        deadline = None if timeout is None else monotonic() + timeout
        if not self._wait(wanted, waiter, len(wanted), timeout):
            missing = [ref for ref in wanted if ref.entry.state == PENDING]
            raise GetTimeoutError(
                f"get: {len(missing)} of {len(wanted)} objects not ready within {timeout} s, the first: {missing[0]!r}"
                if missing
                else f"get: not ready within {timeout} s"
            )
        if waiter.failed:
            for ref in wanted:
                if ref.entry.state == FAILED:
                    self.value(ref.entry)
        return [self.value(ref.entry, True, deadline) for ref in wanted]

    def wait(
        self, wanted: list[ObjectRef], num_returns: int, timeout: float | None, fetch_local: bool = False
    ) -> tuple[list[ObjectRef], list[ObjectRef]]:
        """(ready, rest), each in the order given. Blocks until `num_returns` are ready or `timeout` is over.

        With `fetch_local`, what lies on another node is ready once it is here.
        """
        if self.before_blocking is not None:
            self.before_blocking("wait")
        if fetch_local and self._runtime.in_cluster:
            return self._arrivals.wait(wanted, num_returns, timeout)
        if refs.ready_count(wanted) < num_returns:
            self._wait(wanted, Waiter(), num_returns, timeout)
        return refs.split_ready(wanted, num_returns)  # type: ignore[no-any-return]

    def _wait(self, wanted: list[ObjectRef], waiter: Waiter, number: int, timeout: Timeout) -> bool:
        runtime = self._runtime
        enter_section()
        try:
            runtime.lock.enter()
            try:
                pending = refs.watch(wanted, waiter, number)
                if waiter.done:
                    return True
                if runtime.broken is None:
                    self.ask_owners(pending)
                else:
                    refs.unwatch(pending, waiter)
                    raise runtime.why_broken()
            finally:
                runtime.lock.leave()
            done = waiter.done
            try:
                done = done or self.block(waiter, timeout)
            finally:
                missing = number - (len(wanted) - len(pending))
                if not done or waiter.failed or len(pending) > missing:
                    with runtime.lock:  # it still stands on what it did not wait out
                        refs.unwatch(pending, waiter)
            return done
        finally:
            leave_section()

    def block(self, waiter: Waiter, timeout: Timeout) -> bool:
        """Blocks until the waiter is done (True) or `timeout` seconds are over; with 0 takes in what has come."""
        if timeout is not None and timeout <= 0:
            self._runtime.before_sleep()
            self._runtime.pump.glance(monotonic(), 0.0)
            return waiter.done
        return self.wait_for(waiter, None if timeout is None else monotonic() + timeout)

    def wait_for(self, waiter: Waiter, deadline: Deadline) -> bool:
        """Blocks until the waiter is done (True) or the clock passes `deadline`; a worker lends its CPUs meanwhile."""
        runtime = self._runtime
        if self.blocking is None:
            return runtime.pump.wait(waiter, runtime.lock, deadline)
        with section, self.blocking():
            return runtime.pump.wait(waiter, runtime.lock, deadline)

    def value(
        self, entry: ObjectEntry, block: bool = True, deadline: Any = None, run: Callable[..., Any] = let_in
    ) -> Any:
        """The value of an entry that is not PENDING; raises what it failed with.

        Blocks while an object is brought back from disk or another node, until the clock passes the deadline (or None):
        then raises GetTimeoutError, and the object comes all the same. Without `block`, raises NotHere where it would.
        `run` calls what unpickles.
        """
        if entry.literal is not NOTHING:
            return entry.literal
        if entry.owned:
            return self._load(entry, block, deadline)
        with section:
            before = refs.unpickling_under(entry)
            try:
                value = run(self._load, entry, block, deadline)
            finally:
                refs.unpickling_under(before)
        return value

    def stored(self, identifier: bytes, deadline: float | None = None) -> Any:
        """A value out of the store, or back from disk. ObjectLostError where it is in neither."""
        try:
            return self._runtime.store.get(identifier, deadline)
        except TimeoutError:
            raise GetTimeoutError(
                f"get: object {identifier.hex()} is ready, but did not come to this node in time. It is on its way."
            ) from None
        except KeyError:
            raise ObjectLostError(identifier, why="its bytes are not in the store any more.") from None

    def _load(self, entry: ObjectEntry, block: bool, deadline: Any) -> Any:
        if entry.state == FAILED:
            self._raise_error(entry)
        if entry.state == STORED:
            return self.stored(entry.id, deadline) if block else self._runtime.store.get_here(entry.id)
        value = unpack(entry.value)
        if type(value) in IMMUTABLE:
            entry.literal = value
        return value

    def _raise_error(self, entry: ObjectEntry) -> None:
        error = self._error_of(entry)
        try:
            raise error
        finally:
            del error  # its traceback leads here: a cycle would keep the callers' refs until the garbage collector runs

    def exception(self, entry: ObjectEntry) -> BaseException | None:
        """What an object has failed with, or None. asyncio.InvalidStateError where it is PENDING."""
        if entry.state == PENDING:
            raise asyncio.InvalidStateError(f"{entry.id.hex()} is not ready: it has no exception yet")
        if entry.state != FAILED:
            return None
        if entry.owned:
            return self._error_of(entry)
        with section:
            before = refs.unpickling_under(entry)
            try:
                error = let_in(self._error_of, entry)
            finally:
                refs.unpickling_under(before)
        return error

    def _error_of(self, entry: ObjectEntry) -> BaseException:
        """What an object that is FAILED has failed with."""
        if entry.value is None:
            return ReferenceCountingAssertionError(entry.id)
        error = from_bytes(entry.value)
        return error.as_instanceof_cause() if isinstance(error, TaskError) else error  # type: ignore[no-any-return]

    # -------------------------------------------------------------------------------------------------- settling

    def settle(
        self,
        entry: ObjectEntry,
        state: Any,
        value: Any,
        contents: Iterable[tuple[bytes, bytes]] | None = None,
    ) -> None:
        """A PENDING object has its value or error: whoever waits for it hears. Under the lock."""
        if contents and entry.owned:
            self._references.on_value(entry, contents)
        for waiter in refs.settle(entry, state, value):
            self._runtime.finish(waiter)
        if entry.abandoned:
            self._references.on_value(entry, None)

    def when_ready(self, entries: list[ObjectEntry], callback: Any) -> Waiter | None:
        """Calls `callback(waiter)`, under the lock, once all are ready. None if they are already (then it does not).

        Returns the waiter, which `refs.unwatch` takes off again. Under the lock.
        """
        pending = [entry for entry in entries if entry.state == PENDING]
        if not pending:
            return None
        waiter = Waiter(callback)
        refs.watch_entries(pending, waiter)
        self.ask_owners(pending)
        return waiter

    def watch(self, entry: ObjectEntry, callback: Any) -> Waiter | None:
        """As `when_ready` of one object, and not under the lock."""
        if entry.owned:
            waiter = Waiter(callback)
            return waiter if refs.watch_one(entry, waiter) else None
        runtime = self._runtime
        with runtime.lock:
            waiter = self.when_ready([entry], callback)
            runtime.mailbox.flush()  # its owner may have been asked for it
        return waiter

    def fail_pending(self, error: BaseException) -> None:
        packed = pack_error(error)
        for entry in list(self._references.entries.values()):
            if entry.state == PENDING:
                self.settle(entry, FAILED, packed)

    # ------------------------------------------------------------------------------------------------ event loops

    async def await_ref(self, ref: ObjectRef) -> Any:
        """The object's value, in any event loop."""
        if ref.entry.state == PENDING:
            await self.until_ready(ref)
        try:
            return self.value(ref.entry, False)
        except NotHere:
            return await asyncio.get_running_loop().run_in_executor(None, self.value, ref.entry)

    async def until_ready(self, ref: ObjectRef) -> None:
        """Returns when the object is there, or has failed."""
        inbox = self.loops.running()
        ready: asyncio.Future[None] = inbox.loop.create_future()
        waiter = inbox.expect(ref, partial(wake, ready))
        if waiter is not None:
            try:
                await ready
            finally:
                if not waiter.done:
                    inbox.give_up(ref, waiter)

    # ------------------------------------------------------------------------------------- owners and borrowers

    def came_with(self, known: Iterable[tuple[bytes, int, Any]]) -> None:
        """(object, state, value) of what a task was given as arguments: refs to these need not be asked for."""
        entries = self._references.entries
        if any(identifier in entries for identifier, _, _ in known):
            with self._runtime.lock:
                for identifier, state, value in known:
                    entry = entries.get(identifier)
                    if entry is not None and entry.state == PENDING and state != FAILED and not entry.owned:
                        self.settle(entry, state, value)

    def ask_owners(self, pending: Sequence[ObjectEntry]) -> None:
        """Asks the owners of borrowed objects to tell their values, each once. Those in the store here are there."""
        for entry in pending:
            if not entry.owned and not entry.asked:
                entry.asked = True
                owner = owner_of(entry.id)
                if self._references.has_died(owner) or not self._runtime.mailbox.has_inbox(owner):
                    self.settle(entry, FAILED, pack_error(OwnerDiedError(entry.id, owner)))
                elif (block := self._runtime.store.pinned(entry.id)) is not None:
                    self.settle(entry, STORED, len(block))
                else:
                    self._runtime.post(owner, m.AskObject(ObjectId(entry.id)))

    def _asked(self, borrower: ProcessId, identifier: ObjectId) -> None:
        entry = self._references.entries.get(identifier)
        if entry is None:
            error = pack_error(ReferenceCountingAssertionError(identifier))
            self._runtime.post(borrower, m.ObjectReady(identifier, FAILED, error, None))
            return

        borrowers = self._askers.get(identifier)
        if borrowers is not None:
            borrowers.add(borrower)
            return
        self._askers[identifier] = {borrower}

        def tell(_: Waiter | None = None) -> None:
            inside = entry.contents if entry.state == FAILED else None
            contents = [inner.id for inner in inside] if inside else None
            ready = m.ObjectReady(identifier, entry.state, entry.value, contents)
            for asker in self._askers.pop(identifier):
                self._runtime.post(asker, ready)

        if self.when_ready([entry], tell) is None:
            tell()

    def _answered(self, _: ProcessId, identifier: ObjectId, state: int, value: Any, contents: Any) -> None:
        entry = self._references.entries.get(identifier)
        if entry is not None and entry.state == PENDING:
            if contents and not entry.owned:
                self._references.on_borrowed_error(entry, checks.objects(contents))
            self.settle(entry, state, value)

    def _borrower_added(
        self, sender: ProcessId, identifier: ObjectId, borrower: ProcessId, container: bytes
    ) -> None:
        if not self._references.has_died(sender):  # (late: the borrower claims what it was to say)
            self._references.on_borrower_added(identifier, borrower, container)

    def _borrow_released(self, borrower: ProcessId, identifier: ObjectId, owed: int, kept: Any) -> None:
        self._references.on_borrow_released(identifier, borrower, owed, checks.objects(kept))

    def _borrow_claimed(self, borrower: ProcessId, identifier: ObjectId, owed: int, gone: bytes) -> None:
        if len(gone) == PROCESS_ID_BYTES:
            self._runtime.hear_out(ProcessId(gone))  # what it has said of the borrower is in the claim
        self._references.on_borrow_claimed(identifier, borrower, owed)

    def hear_answers(self, process: ProcessId, deadline: float) -> bool:
        """Blocks until all has come that the process has answered before; False where the clock passes the deadline.

        A process that is dead answers nothing any more. Not under the lock.
        """
        runtime = self._runtime
        waiter = Waiter()
        with section:
            with runtime.lock:
                self._echoes_asked += 1
                key = process, self._echoes_asked
                if self._references.has_died(process):
                    return True
                self._echo_waits[key] = waiter
                runtime.post(process, m.Echo(key[1]))
                runtime.mailbox.flush()
            try:
                runtime.pump.wait(waiter, runtime.lock, deadline)
            finally:
                with runtime.lock:
                    self._echo_waits.pop(key, None)
        return waiter.done

    def _echoed(self, process: ProcessId, number: int) -> None:
        if number == 0:
            self._references.on_echoed(process)
        elif (waiter := self._echo_waits.get((process, number))) is not None:
            self._runtime.finish(waiter)

    def owner_died(self, gone: ProcessId | NodeId) -> None:
        """A process is gone, or a node: borrows of theirs end, what only they knew is lost. Under the lock."""
        for askers in self._askers.values():
            askers.difference_update([asker for asker in askers if asker.startswith(gone)])
        for (process, _), waiter in self._echo_waits.items():
            if process.startswith(gone):
                self._runtime.finish(waiter)
        errors: dict[ProcessId, bytes] = {}
        for entry in self._references.on_process_died(gone):
            if entry.state == PENDING or entry.state == STORED:
                owner = owner_of(entry.id)
                if owner not in errors:
                    errors[owner] = pack_error(OwnerDiedError(entry.id, owner))
                entry.state = PENDING
                self.settle(entry, FAILED, errors[owner])

    def carry_out(self, effect: Effect) -> None:
        """Does what the references decided. Under the lock."""
        if type(effect) is FreeValue:
            entry = effect.entry
            if entry.state == STORED:
                self._runtime.free(entry.id)
            elif entry.state == FAILED:
                self._runtime.copies.free_remains(entry.id)
            entry.value = None
            entry.literal = NOTHING
            if entry.id in self.when_freed:
                self.when_freed.pop(entry.id)()
        elif type(effect) is TellBorrower:
            self._runtime.post(effect.to, m.AddBorrower(effect.object, effect.borrower, effect.container))
        elif type(effect) is TellWatch:
            self._runtime.post(manager_of(effect.process), m.WatchProcess(effect.process))
        elif type(effect) is TellClaim:
            self._runtime.post(effect.to, m.ClaimBorrow(effect.object, effect.owed, effect.gone))
        elif type(effect) is AskEcho:
            self._runtime.post(effect.to, m.Echo(0))
        elif type(effect) is Speak:
            self._runtime.post(self._runtime.node, m.Spoken(effect.number))
        elif type(effect) is AskSettled:
            self._runtime.post(self._runtime.node, m.SettleDeath(effect.dead))
        else:
            self._runtime.post(effect.to, m.ReleaseBorrow(effect.object, effect.owed, effect.kept))
