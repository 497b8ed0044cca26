"""Generators as tasks, on the side of the worker that runs them: each value leaves as it is yielded.

State: the generators that run, and how far their readers say they are. See runtime.streams for the other side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from skate._c.clock import monotonic
from skate._c.refs import INLINE, Waiter
from skate.ids import ProcessId, TaskId
from skate.runtime.runtime import Runtime
from skate.runtime.streams import STREAM
from skate.store.serialization import serialize, to_bytes
from skate.wire import messages as m
from skate.wire.messages import encode

if TYPE_CHECKING:
    from skate.worker.executor import Executor, Pushed


class Outgoing:
    """One generator that runs here."""

    __slots__ = ("abandoned", "limit", "on_read", "read", "sent")

    def __init__(self, limit: int) -> None:
        #: values that it may be ahead of its reader; 0: any number
        self.limit = limit
        self.sent = 0
        self.read = 0
        #: nobody reads any more
        self.abandoned = False
        #: called once, under the lock, when the reader says something
        self.on_read: Callable[[], None] | None = None

    @property
    def is_ahead(self) -> bool:
        """It must wait for its reader."""
        return 0 < self.limit <= self.sent - self.read and not self.abandoned


class Streams:
    """The generators that run in this worker."""

    def __init__(self, executor: Executor, runtime: Runtime) -> None:
        self._executor = executor
        self._runtime = runtime
        self._outgoing: dict[bytes, Outgoing] = {}
        runtime.handle(m.StreamRead, self._reader_speaks)

    def _reader_speaks(self, _: ProcessId, task: TaskId, read: int) -> None:
        stream = self._outgoing.get(task)
        if stream is None:
            return  # it has ended meanwhile
        if read < 0:
            stream.abandoned = True
        else:
            stream.read = read
        on_read, stream.on_read = stream.on_read, None
        if on_read is not None:
            on_read()

    def send_all(self, pushed: Pushed, name: str, results: Iterable[Any]) -> list[Any]:
        """Sends what a generator yields, as it yields it; gives the value of the task's own ref."""
        if not hasattr(results, "__iter__"):
            raise TypeError(
                f"{name}() was called with num_returns='streaming', so it must be a generator or return an iterable; "
                f"it returned {type(results).__name__}"
            )
        stream = self._begin(pushed)
        try:
            for value in results:
                self._send(pushed, name, stream, value)
                value = None
                while stream.is_ahead:
                    self._wait_for_reader(stream)
                if stream.abandoned:
                    break
        finally:
            del self._outgoing[pushed.task]
            if hasattr(results, "close"):
                results.close()
        return _END

    async def send_all_async(self, pushed: Pushed, name: str, results: Any) -> list[Any]:
        """As `send_all`, of an async generator."""
        stream = self._begin(pushed)
        loop = asyncio.get_running_loop()
        try:
            async for value in results:
                self._send(pushed, name, stream, value)
                value = None
                while stream.is_ahead:
                    told: asyncio.Future[None] = loop.create_future()
                    stream.on_read = partial(loop.call_soon_threadsafe, _end_wait, told)
                    if stream.is_ahead:  # else the reader has just spoken
                        await told
                if stream.abandoned:
                    break
        finally:
            del self._outgoing[pushed.task]
            await results.aclose()
        return _END

    def _begin(self, pushed: Pushed) -> Outgoing:
        stream = self._outgoing[pushed.task] = Outgoing(STREAM - pushed.returns)
        return stream

    def _send(self, pushed: Pushed, name: str, stream: Outgoing, value: Any) -> None:
        executor, runtime = self._executor, self._runtime
        number = stream.sent
        kept = executor.kept(pushed, name, number + 1, value)
        value = None
        now = monotonic()
        runtime.lock.acquire()
        try:
            ((state, stored, contents),) = executor.handed_over(pushed, [kept])
            runtime.act()
            executor.post_answer(pushed, encode(m.StreamItem(pushed.task, number, state, stored, contents)))
            runtime.send_soon(now)
        finally:
            runtime.release()
        stream.sent += 1
        runtime.glance(now)

    def _wait_for_reader(self, stream: Outgoing) -> None:
        """Blocks until the reader has said something; the worker lends its CPUs."""
        runtime = self._runtime
        told = Waiter()
        told.missing = 1
        runtime.lock.acquire()
        try:
            if not stream.is_ahead:
                return
            stream.on_read = partial(runtime.finish, told)
            runtime.mailbox.flush()
        finally:
            runtime.release()
        runtime.objects.wait_for(told, None)


def _end_wait(told: asyncio.Future[None]) -> None:
    if not told.done():  # the call may have been cancelled
        told.set_result(None)


#: the value of a stream's own ref: that it has ended
_END = [(INLINE, to_bytes(serialize(None)), None)]
