"""`ref.future()`: a `concurrent.futures.Future` of an object's value.

State, a future: its ref; the watch on the object, which ends with the future. What waits for the object knows the
future weakly: one that nobody holds any more, or that was cancelled, leaves nothing behind. One that has callbacks is
not abandoned, whoever holds it: it stays until they are called.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref as weakly

from skate._c.refs import ObjectRef, Waiter, Watch, unwatch
from skate.runtime.latch import LatchedFuture
from skate.store.local import NotHere

if TYPE_CHECKING:
    from skate.runtime.runtime import Runtime

log = logging.getLogger("skate")


class RefFuture(LatchedFuture):
    """A future of an object. Whatever one of its callbacks raises, the others are called."""

    def __init__(self, runtime: Runtime, ref: ObjectRef) -> None:
        super().__init__(runtime)
        self._ref = ref
        self._ready = _Ready(runtime, self)
        self._watch: Watch | None = None
        #: a callback was interrupted by Ctrl-C, or raised as much
        self._interrupt: KeyboardInterrupt | None = None
        with runtime.lock:
            waiter = runtime.objects.when_ready([ref.entry], self._ready)
            if waiter is None:
                self._ready()
            else:
                self._watch = Watch(waiter, [ref.entry])
            runtime.mailbox.flush()

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Calls `fn(self)` once the future is done or cancelled, though nobody may hold it any more."""
        super().add_done_callback(partial(_call_back, fn))
        with self._runtime.lock:
            if self._watch is not None and not self._watch.waiter.done:
                self._ready.kept = self
        if self.done():  # it was called here
            self._raise_interrupt()

    def cancel(self) -> bool:
        """Ends the wait for the object; what makes it goes on. False where the value is there."""
        if not super().cancel():
            return False
        with self._runtime.lock:
            waits = self._watch is not None and not self._watch.waiter.done
            if waits:
                assert self._watch is not None
                unwatch([self._ref.entry], self._watch.waiter)
                self._ready.kept = None
        if waits:
            self.set_running_or_notify_cancel()  # concurrent.futures.wait() hears of it by this
        self._raise_interrupt()
        return True

    def resolve(self) -> None:
        """The object is there: takes its value. Not under the lock."""
        if self.set_running_or_notify_cancel():
            self._take(False)

    def _take(self, block: bool) -> None:
        """Called later, so what a handler raises is not the future's, or by a thread for that."""
        try:
            value = self._runtime.objects.value(self._ref.entry, block, None, _call)
        except NotHere:  # this may be the thread that reads the answer: another one waits for it
            threading.Thread(target=self._take, args=(True,), name="skate-restore", daemon=True).start()
            return
        except BaseException as error:
            self.set_exception(error.with_traceback(None))  # its frames lead to those who hold the future
        else:
            self.set_result(value)
        self._raise_interrupt()

    def _raise_interrupt(self) -> None:
        interrupt, self._interrupt = self._interrupt, None
        if interrupt is not None:
            raise interrupt


class _Ready:
    """What is called, under the lock, when a future's object is there."""

    __slots__ = ("_future", "_runtime", "kept")

    def __init__(self, runtime: Runtime, future: RefFuture) -> None:
        self._runtime = runtime
        self._future = weakly(future)
        #: the future, once it has callbacks
        self.kept: RefFuture | None = None

    def __call__(self, _: Waiter | None = None) -> None:
        future, self.kept = self._future(), None
        if future is not None:
            self._runtime.later(future.resolve)


def _call_back(fn: Callable[[Future[Any]], object], future: RefFuture) -> None:
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
