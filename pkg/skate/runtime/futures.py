"""Futures of objects' values: `ref.future()`, and those of an executor.

A LazyFuture costs what its ref costs until somebody asks for more than its value. What makes it a
`concurrent.futures.Future` (a condition, a state, callbacks) is made when it is first touched, by a callback,
`cancel()`, `concurrent.futures.wait` or `as_completed`; only then something waits for the object in its name. `result`
and `exception` wait as `skate.get` does: they read the inbox, and lend the CPUs of a task.

State, a future: its ref, once there is one; its answer, once it was read; who waits in `result`; the watch on the
object. What waits for the object knows the future weakly: one that nobody holds any more, or that was cancelled, leaves
nothing behind. One that has callbacks is not abandoned, whoever holds it: it stays until they are called.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures._base import FINISHED, RUNNING
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref as weakly

from skate._c import refs
from skate._c.clock import monotonic
from skate._c.refs import FAILED, PENDING, STORED, ObjectRef, Waiter, Watch
from skate._c.steps import Steps, let_in, section
from skate.exceptions import GetTimeoutError
from skate.runtime.latch import block
from skate.store.local import NotHere

if TYPE_CHECKING:
    from skate.runtime.runtime import Runtime

log = logging.getLogger("skate")

#: what a Future has, and a LazyFuture only once it is asked for it
_STATE = frozenset(vars(Future()))
#: held while a future gets its state, its ref or its answer; nothing is called, and no other lock taken under it
_changing = Steps()


class LazyFuture(Future[Any]):
    """A Future of an object, or of one that a call will return. Whatever a callback raises, the others are called."""

    _answer: tuple[Any, BaseException | None] | None = None
    #: who waits in `result`
    _waiting: tuple[Waiter, ...] = ()
    _ready: _Ready | None = None
    _watch: Watch | None = None
    #: a callback was interrupted by Ctrl-C, or raised as much
    _interrupt: KeyboardInterrupt | None = None
    #: it cannot be cancelled any more
    _begun = False

    def __init__(self, runtime: Runtime, ref: ObjectRef | None = None) -> None:
        # (That of Future is called by `_become_future`.)
        self._runtime = runtime
        self._ref = ref

    # ------------------------------------------------------------------------------------------------- its value

    def done(self) -> bool:
        """Whether it has its value or error, or was cancelled."""
        if self._answer is not None:
            return True
        if "_condition" in self.__dict__:
            return super().done()
        if self._ref is None:
            return False
        state = self._ref.entry.state
        return super().done() if state == STORED else state != PENDING  # (that may have to be brought here)

    def running(self) -> bool:
        """Whether its call has begun, and is not done."""
        return self._answer is None and super().running()

    def result(self, timeout: float | None = None) -> Any:
        """What the call returned. Blocks; raises what the call raised, TimeoutError, or CancelledError."""
        answer = self._answer
        value, error = self._outcome(timeout) if answer is None else answer
        if error is None:
            return value
        try:
            raise error
        finally:
            del error, self  # its traceback leads here: a cycle

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, or None. Blocks; raises TimeoutError or CancelledError."""
        return (self._answer or self._outcome(timeout))[1]

    def _outcome(self, timeout: float | None) -> tuple[Any, BaseException | None]:
        deadline = None if timeout is None else monotonic() + timeout
        if not self._has_come():
            self._wait(timeout)
        if self._answer is None:
            if self.cancelled():
                raise CancelledError()
            self._read(True, deadline, let_in)
        assert self._answer is not None
        return self._answer

    def _has_come(self) -> bool:
        return self._ref is not None and self._ref.entry.state != PENDING

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return "_condition" in self.__dict__ and super().cancelled()

    def _wait(self, timeout: float | None) -> None:
        """Blocks until the object is there, or the call was cancelled or cannot begin."""
        waiter = Waiter()
        with section:
            with _changing:
                if self.cancelled() or self._answer is not None:
                    return
                if self._ref is not None and not refs.watch_one(self._ref.entry, waiter):
                    return
                self._waiting += (waiter,)
            try:
                done = block(self._runtime, waiter, timeout)
            finally:
                with _changing:
                    self._waiting = tuple([each for each in self._waiting if each is not waiter])
                if not waiter.done:
                    self._unwatch(waiter)
        if not done:
            raise TimeoutError()

    def _unwatch(self, waiter: Waiter) -> None:
        with self._runtime.lock:
            refs.unwatch([] if self._ref is None else [self._ref.entry], waiter)

    def _read(self, may_block: bool, deadline: float | None, run: Callable[..., Any]) -> None:
        """Takes the answer from the object, which is there. NotHere where it would block, and may not."""
        assert self._ref is not None
        objects, entry = self._runtime.objects, self._ref.entry
        try:
            if entry.state == FAILED:
                answer = None, objects.exception(entry)
            else:
                answer = objects.value(entry, may_block, deadline, run), None
        except NotHere:
            raise
        except GetTimeoutError:
            if deadline is not None and monotonic() >= deadline:
                raise TimeoutError() from None
            raise
        except Exception as error:
            answer = None, error.with_traceback(None)  # its frames lead to those who hold the future
        with _changing:
            if self._answer is None:
                self._answer = answer

    # ------------------------------------------------------------------------------------ the call that it is of

    def has_begun(self) -> bool:
        """There is a call: something was submitted."""
        return self._ref is not None

    def begin(self) -> bool:
        """The call begins, and cannot be cancelled from here on. False where it was."""
        with _changing:
            if "_condition" not in self.__dict__:
                self._begun = True
                return True
        return self.set_running_or_notify_cancel()

    def attach(self, ref: ObjectRef) -> None:
        """The call has begun: this is what it will return."""
        with _changing:
            self._ref = ref
            come = [waiter for waiter in self._waiting if not refs.watch_one(ref.entry, waiter)]
            if "_condition" in self.__dict__:
                self._watch_object()
        self._finish(come)

    def fail(self, error: BaseException) -> None:
        """The call could not begin."""
        with _changing:
            self._answer = None, error
            is_future = "_condition" in self.__dict__
        if is_future:
            self.set_exception(error)
        self._finish(self._waiting)

    def _finish(self, waiting: Any) -> None:
        if waiting:
            with self._runtime.lock:
                for waiter in waiting:
                    self._runtime.finish(waiter)

    # -------------------------------------------------------------------------------------------- as any Future

    def __getattr__(self, name: str) -> Any:
        """What a Future has, when it is first asked for."""
        if name not in _STATE:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if "_condition" not in self.__dict__:
            with _changing:
                self._become_future()
        if name not in self.__dict__:  # it was done by then, and nobody wanted to know of what
            if self._answer is None:
                self._read(True, None, let_in)
            assert self._answer is not None
            self._result, self._exception = self._answer
        return self.__dict__[name]

    def _become_future(self) -> None:
        if "_condition" in self.__dict__:
            return
        state = vars(Future())
        if self._answer is not None or (self._has_come() and self._ref.entry.state != STORED):  # type: ignore[union-attr]
            state["_state"] = FINISHED
            del state["_result"], state["_exception"]
        elif self._begun:
            state["_state"] = RUNNING
        self.__dict__.update(state)
        if state["_state"] != FINISHED and self._ref is not None:
            self._watch_object()

    def _watch_object(self) -> None:
        assert self._ref is not None
        self._ready = _Ready(self._runtime, self)
        waiter = Waiter(self._ready)
        if refs.watch_one(self._ref.entry, waiter):
            self._watch = Watch(waiter, [self._ref.entry])
            if self._done_callbacks:
                self._ready.kept = self
        else:  # (nothing of the program's is called here: its locks may be held)
            threading.Thread(target=self.resolve, name="skate-future", daemon=True).start()

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Calls `fn(self)` once the future is done or cancelled, though nobody may hold it any more."""
        super().add_done_callback(partial(_call_back, fn))
        with _changing:
            if self._watch is not None and not self._watch.waiter.done:
                assert self._ready is not None
                self._ready.kept = self
        if self.done():  # it was called here
            self._raise_interrupt()

    def cancel(self) -> bool:
        """Ends the wait for the object; what makes it goes on. False where it is there, or the call has begun."""
        if self._answer is not None or not super().cancel():
            return False
        waits = False
        with self._runtime.lock:
            if self._watch is not None and not self._watch.waiter.done:
                waits = True
                refs.unwatch([self._ref.entry], self._watch.waiter)  # type: ignore[union-attr]
                assert self._ready is not None
                self._ready.kept = None
        if waits:
            self.set_running_or_notify_cancel()  # concurrent.futures.wait() hears of it by this
        for waiter in self._waiting:
            self._unwatch(waiter)
        self._finish(self._waiting)
        self._raise_interrupt()
        return True

    def resolve(self) -> None:
        """The object is there: takes its value. Not under the lock."""
        if self._state == RUNNING or self.set_running_or_notify_cancel():
            self._take(False)

    def _take(self, may_block: bool) -> None:
        """Called later, so what a handler raises is not the future's, or by a thread for that."""
        try:
            if self._answer is None:
                self._read(may_block, None, _call)
            assert self._answer is not None
            value, error = self._answer
        except NotHere:  # this may be the thread that reads the answer: another one waits for it
            threading.Thread(target=self._take, args=(True,), name="skate-restore", daemon=True).start()
            return
        except BaseException as unfit:
            value, error = None, unfit.with_traceback(None)
        if error is None:
            self.set_result(value)
        else:
            self.set_exception(error)
        self._raise_interrupt()

    def _raise_interrupt(self) -> None:
        interrupt, self._interrupt = self._interrupt, None
        if interrupt is not None:
            raise interrupt


class RefFuture(LazyFuture):
    """What `ref.future()` gives."""

    def __init__(self, runtime: Runtime, ref: ObjectRef) -> None:
        super().__init__(runtime, ref)
        if not ref.entry.owned and ref.entry.state == PENDING:
            with runtime.lock:
                runtime.objects.ask_owners([ref.entry])
                runtime.mailbox.flush()


class _Ready:
    """What is called, under the lock, when a future's object is there."""

    __slots__ = ("_future", "_runtime", "kept")

    def __init__(self, runtime: Runtime, future: LazyFuture) -> None:
        self._runtime = runtime
        self._future = weakly(future)
        #: the future, once it has callbacks
        self.kept: LazyFuture | None = None

    def __call__(self, _: Waiter | None = None) -> None:
        future, self.kept = self._future(), None
        if future is not None:
            self._runtime.later(future.resolve)


def _call_back(fn: Callable[[Future[Any]], object], future: LazyFuture) -> None:
    """(What is an Exception is logged by concurrent.futures; anything else would end the calling of callbacks.)"""
    try:
        fn(future)
    except Exception:
        raise
    except KeyboardInterrupt as error:
        future._interrupt = error
    except BaseException:
        log.exception("a callback of %r ended with an exception that is for no one", future)


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)
