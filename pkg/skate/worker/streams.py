"""Generators on the side of the worker that runs them: each value is packed, and of a stream leaves, as it is yielded.

State: the generators that stream (core.streams.Outgoing), and who waits for word from their readers. A generator that
is called with num_returns=n gives its first n values to the call's refs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from skate._c import frames
from skate._c.refs import INLINE, Waiter
from skate.core.streams import ABANDONED, Outgoing
from skate.ids import NodeId, ProcessId, TaskId
from skate.runtime.objects import wake
from skate.runtime.runtime import Runtime
from skate.store.serialization import serialize, to_bytes
from skate.wire import messages as m

if TYPE_CHECKING:
    from skate.worker.executor import Executor, Pushed

log = logging.getLogger("skate")

#: a message that is sent often, without its named tuple
_STREAM_ITEM: Final = m.StreamItem.code  # type: ignore[attr-defined]
_STREAM_ITEM_SCHEMA: Final = m.StreamItem.schema  # type: ignore[attr-defined]


class Collected:
    """What a call with num_returns=n yields, or returns in a list."""

    #: as a stream's: it never waits for a reader
    waits = False
    known = True

    def __init__(self, executor: Executor, pushed: Pushed, name: str) -> None:
        self._executor = executor
        self._pushed = pushed
        self._name = name
        self.values: list[Any] = []
        #: it has yielded once more than there are refs
        self.abandoned = False

    def take(self, value: Any) -> bool:
        """A value has come. Whether it is to stop."""
        number = len(self.values)
        if number < self._pushed.returns:
            self.values.append(self._executor.kept(self._pushed, self._name, number, value))
        else:
            self.abandoned = True
            log.warning("%s, but it yielded more; they are dropped", self._asked)
        return self.abandoned

    def complete(self, error: BaseException | None) -> list[Any]:
        """The values, then the error (that there was nothing more) for each ref without one, but at least once.

        So a call with all its values can be tried again, too.
        """
        returns = self._pushed.returns
        missing = returns - len(self.values)
        if error is None and missing:
            error = ValueError(f"{self._asked}, but it gave {len(self.values)} values")
        if error is None:
            return self.values
        if returns and not missing:
            log.warning("%s, and then raised %r, which no ref shows", self._asked, error)
            if self.abandoned:
                return self.values  # it did so on being told to stop
        failed = self._executor.packed_error(error, self._name)
        return [*self.values, *[failed] * max(1, missing)]

    @property
    def _asked(self) -> str:
        return f"{self._name}() was called with num_returns={self._pushed.returns}"


class Streams:
    """The generators that run in this worker."""

    def __init__(self, executor: Executor, runtime: Runtime) -> None:
        self._executor = executor
        self._runtime = runtime
        #: task -> its owner, its stream
        self._outgoing: dict[bytes, tuple[ProcessId, Outgoing]] = {}
        #: task -> called once, under the lock, when its owner has said something
        self._on_word: dict[bytes, Callable[[], None]] = {}
        runtime.handle(m.StreamRead, self._reader_speaks)
        runtime.when_gone.append(self._owner_died)

    def _reader_speaks(self, _: ProcessId, task: TaskId, read: int, received: int) -> None:
        if task in self._outgoing:  # else it has ended meanwhile
            self._outgoing[task][1].on_read(read, received)
            on_word = self._on_word.pop(task, None)
            if on_word is not None:
                on_word()

    def _owner_died(self, gone: ProcessId | NodeId) -> None:
        """An actor outlives its callers: a call of one that is dead has no reader."""
        for task, (owner, _) in list(self._outgoing.items()):
            if owner.startswith(gone):
                self._reader_speaks(owner, TaskId(task), ABANDONED, 0)

    # ------------------------------------------------------------------------------------------ what is yielded

    def run(self, pushed: Pushed, name: str, results: Any) -> list[Any]:
        """Runs a generator, or goes through what else is iterable: the packed values of the call's refs."""
        if pushed.returns < 0:
            stream = self._begin(pushed)
            try:
                self._drain(pushed, results, stream, partial(self._send, pushed, name, stream))
            finally:
                self._end(pushed)
            return _END
        collected = Collected(self._executor, pushed, name)
        try:
            self._drain(pushed, results, collected, collected.take)
        except SystemExit:
            raise
        except BaseException as error:
            return collected.complete(error)
        return collected.complete(None)

    async def run_async(self, pushed: Pushed, name: str, results: Any) -> list[Any]:
        """As `run`, of an async generator."""
        if pushed.returns < 0:
            stream = self._begin(pushed)
            try:
                await self._drain_async(pushed, results, stream, partial(self._send, pushed, name, stream))
            finally:
                self._end(pushed)
            return _END
        collected = Collected(self._executor, pushed, name)
        try:
            await self._drain_async(pushed, results, collected, collected.take)
        except SystemExit:
            raise
        except BaseException as error:
            return collected.complete(error)
        return collected.complete(None)

    def _drain(
        self, pushed: Pushed, results: Any, sink: Outgoing | Collected, take: Callable[[Any], None]
    ) -> None:
        try:
            while sink.waits:
                self._wait_for_reader(pushed, sink)
            if sink.abandoned:
                return
            for value in results:
                look = take(value)
                value = None
                if not look:
                    continue
                while sink.waits:
                    self._wait_for_reader(pushed, sink)
                if sink.abandoned:
                    return
        finally:
            if hasattr(results, "close"):
                results.close()

    async def _drain_async(
        self, pushed: Pushed, results: Any, sink: Outgoing | Collected, take: Callable[[Any], None]
    ) -> None:
        try:
            while sink.waits:
                await self._wait_for_reader_async(pushed, sink)
            if sink.abandoned:
                return
            async for value in results:
                look = take(value)
                value = None
                if not look:
                    continue
                while sink.waits:
                    await self._wait_for_reader_async(pushed, sink)
                if sink.abandoned:
                    return
        finally:
            if hasattr(results, "aclose"):
                await results.aclose()

    # ---------------------------------------------------------------------------------------------- of a stream

    def _begin(self, pushed: Pushed) -> Outgoing:
        stream = Outgoing(pushed.returns, first=pushed.attempt == 0)
        self._outgoing[pushed.task] = pushed.owner, stream
        if not stream.known:
            with self._runtime.lock:
                self._runtime.post(pushed.owner, m.StreamBegins(pushed.task))
        return stream

    def _end(self, pushed: Pushed) -> None:
        del self._outgoing[pushed.task]
        self._on_word.pop(pushed.task, None)

    def _send(self, pushed: Pushed, name: str, stream: Outgoing, value: Any) -> bool:
        """Whether it may have to wait for its reader now, or to stop."""
        executor, runtime = self._executor, self._runtime
        number = stream.on_yielded()
        if number is None:
            return True  # its owner has it from an earlier attempt
        kept = executor.kept(pushed, name, number + 1, value)
        value = None
        now = runtime.begin()
        try:
            ((state, stored, contents),) = executor.handed_over(pushed.owner, [kept])
            pushed.stored = None
            runtime.act()
            fields = (pushed.task, number, state, stored, contents)
            executor.post_answer(pushed, frames.encode(_STREAM_ITEM, _STREAM_ITEM_SCHEMA, fields))
            runtime.send_soon(now)
        finally:
            runtime.lock.leave()
        runtime.glance(now)
        return stream.abandoned or stream.limit > 0

    def _wait_for_reader(self, pushed: Pushed, stream: Outgoing | Collected) -> None:
        """Blocks until the reader has spoken; the worker lends its CPUs, but not for what is answered at once."""
        runtime = self._runtime
        told = Waiter()
        told.missing = 1
        with runtime.lock:
            if not stream.waits:
                return
            self._on_word[pushed.task] = partial(runtime.finish, told)
            runtime.mailbox.flush()
        if stream.known:
            runtime.objects.wait_for(told, None)
        else:
            runtime.pump.wait(told, runtime.lock, None)

    async def _wait_for_reader_async(self, pushed: Pushed, stream: Outgoing | Collected) -> None:
        """As `_wait_for_reader`, in the actor's event loop, which sends all mail before it sleeps."""
        loop = asyncio.get_running_loop()
        told: asyncio.Future[None] = loop.create_future()
        self._on_word[pushed.task] = partial(loop.call_soon_threadsafe, wake, told)
        if stream.waits:  # else the reader has just spoken
            await told


#: the value of a stream's own ref: that it has ended
_END = [(INLINE, to_bytes(serialize(None)), None)]
