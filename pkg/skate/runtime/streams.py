"""Generators as tasks, on the owner's side: their values are objects as they are yielded.

State, a stream: refs that have come and were not taken yet. The task's own return value (index 0) says only how it
ended; the yielded ones follow as index 1, 2, ... A task that is tried again yields its first values again: those that
have come already are dropped.

`returns` of PushTask for a stream is STREAM, or STREAM - n for one that may be n values ahead of its reader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from skate._c.refs import FAILED, INLINE, STORED, ObjectRef
from skate.ids import ProcessId, TaskId, object_id
from skate.store.serialization import serialize, to_bytes
from skate.wire import messages as m

if TYPE_CHECKING:
    from skate.core.tasks import OwnedTask
    from skate.runtime.runtime import Runtime

STREAM: Final = -1


def stream_returns(limit: int | None) -> int:
    """What `returns` says for a generator that may be `limit` values ahead of its reader (None: any number)."""
    return STREAM if limit is None or limit < 0 else STREAM - limit


class Stream:
    """The values of one generator that have come and were not taken."""

    __slots__ = (
        "abandoned",
        "asked",
        "ended",
        "expected",
        "gathers",
        "limited",
        "read",
        "received",
        "refs",
        "task",
    )

    def __init__(self, task: OwnedTask, *, limit: int, gathers: bool) -> None:
        self.task = task
        #: `returns` of its PushTask
        self.asked = STREAM - limit
        self.refs: deque[ObjectRef] = deque()
        #: values that have come, and that the program has taken
        self.received = 0
        self.read = 0
        self.ended = False
        #: nobody will take any more
        self.abandoned = False
        #: the generator waits for its reader
        self.limited = limit > 0
        #: num_returns="dynamic": the refs become the value of the task's own ref when it ends
        self.gathers = gathers
        #: the ref of the next value, where somebody waits for that
        self.expected: ObjectRef | None = None


class Streams:
    """The streams of the generators that this process owns."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        runtime.handle(m.StreamItem, self.item)

    # -------------------------------------------------------------------------------------------------- messages

    def item(
        self, worker: ProcessId, task_id: TaskId, index: int, state: int, value: Any, contents: Any
    ) -> None:
        runtime = self._runtime
        task = runtime.submission.tasks.get(task_id)
        stream = task.stream if task is not None else None
        lease = task.lease if task is not None else None
        if stream is None or lease is None or lease.worker != worker or index != stream.received:
            runtime.submission.discard(worker, task_id, [(state, value, contents)], index + 1)
            identifier = object_id(task_id, index + 1)
            if state == STORED and identifier not in runtime.references.entries:
                runtime.copies.discard(identifier, worker)  # a retry's, of a value that was read and dropped
            if index == 0 and stream is not None and lease is not None and lease.worker == worker:
                self._say_how_far(
                    stream, worker
                )  # a retry begins, and knows nothing of what was read before it
            return
        if state == STORED:
            runtime.copies.made_by(object_id(task_id, index + 1), worker)
        self._append(stream, state, value, contents)
        if stream.abandoned:
            self._say_how_far(stream, worker)

    def _say_how_far(self, stream: Stream, worker: ProcessId) -> None:
        """Tells the generator's worker what was read, if it waits for that, or that nobody reads any more."""
        if stream.abandoned:
            self._runtime.post(worker, m.StreamRead(stream.task.id, -1))
        elif stream.limited:
            self._runtime.post(worker, m.StreamRead(stream.task.id, stream.read))

    def _append(self, stream: Stream, state: int, value: Any, contents: Any) -> None:
        """A value, or the error that ends the stream, has come. Under the lock."""
        runtime = self._runtime
        stream.received += 1
        ref, stream.expected = stream.expected, None
        if ref is None:
            ref = ObjectRef(runtime.references.create(object_id(stream.task.id, stream.received)))
        runtime.objects.settle(ref.entry, state, value, contents)
        if not stream.abandoned:
            stream.refs.append(ref)

    def ended(self, task: OwnedTask, values: list[Any]) -> list[Any]:
        """The generator is done, or has failed: gives what its own ref becomes. Under the lock."""
        stream = task.stream
        state, value, _ = values[0]
        stream.ended = True
        if state == FAILED and not stream.gathers:
            self._append(stream, FAILED, value, None)
        elif stream.expected is not None:
            last, stream.expected = stream.expected, None
            self._runtime.objects.settle(
                last.entry, INLINE, b""
            )  # who waits for it sees that the stream has ended
        if stream.gathers and state != FAILED:
            refs = list(stream.refs)  # which stay until what holds them has its value
            packed = serialize(DynamicObjectRefGenerator(refs))
            contents = [(ref.entry.id, b"") for ref in refs]
            return [(INLINE, to_bytes(packed), contents)]
        return values

    # --------------------------------------------------------------------------------------------------- reading

    def peek(self, stream: Stream) -> ObjectRef | None:
        """A ref that is ready as soon as the next value has come, or the stream has ended; None where it has.

        Under the lock. It is the next value's own ref, if there is a next value.
        """
        if stream.refs:
            return stream.refs[0]
        if stream.ended:
            return None
        if stream.expected is None:
            entry = self._runtime.references.create(object_id(stream.task.id, stream.received + 1))
            stream.expected = ObjectRef(entry)
        return stream.expected

    def _take(self, stream: Stream) -> tuple[ObjectRef | None, bool]:
        """(ref, True): the next value, taken; (ref, False): what to wait for; (None, False): the end."""
        runtime = self._runtime
        runtime.lock.acquire()
        try:
            if runtime.broken is not None:
                raise runtime.broken
            ref = self.peek(stream)
            if ref is None or not stream.refs:
                return ref, False
            stream.refs.popleft()
            stream.read += 1
            lease = stream.task.lease
            if stream.limited and lease is not None:
                self._say_how_far(stream, lease.worker)
                runtime.mailbox.flush()
            return ref, True
        finally:
            runtime.release()

    def next_ref(self, stream: Stream) -> ObjectRef:
        """The next ref; blocks until it has come. StopIteration at the end."""
        while True:
            ref, taken = self._take(stream)
            if ref is None:
                raise StopIteration
            if taken:
                return ref
            self._runtime.objects.wait([ref], 1, None)

    async def next_ref_async(self, stream: Stream) -> ObjectRef:
        """As `next_ref`, in any event loop; StopAsyncIteration at the end."""
        while True:
            ref, taken = self._take(stream)
            if ref is None:
                raise StopAsyncIteration
            if taken:
                return ref
            await self._runtime.objects.until_ready(ref)

    def abandon(self, stream: Stream) -> None:
        """Nobody will read any more: the generator is told to stop. Under the lock."""
        stream.abandoned = True
        stream.refs.clear()
        lease = stream.task.lease
        if lease is not None and not stream.ended:
            self._say_how_far(stream, lease.worker)


class ObjectRefGenerator:
    """The refs of what a generator task yields, as it yields them: `for ref in generator`, or `async for`.

    `next` blocks until the generator has yielded once more (or raised: then the last ref holds its exception).
    Dropping this object ends the generator.
    """

    def __init__(self, runtime: Runtime, stream: Stream, completed: ObjectRef) -> None:
        self._runtime = runtime
        self._stream = stream
        self._completed = completed

    def __iter__(self) -> ObjectRefGenerator:
        return self

    def __next__(self) -> ObjectRef:
        return self._runtime.streams.next_ref(self._stream)

    def __aiter__(self) -> ObjectRefGenerator:
        return self

    async def __anext__(self) -> ObjectRef:
        return await self._runtime.streams.next_ref_async(self._stream)

    def peek(self) -> ObjectRef:
        """A ref that is ready when `next` does not block any more: for `wait`."""
        runtime = self._runtime
        runtime.lock.acquire()
        try:
            return runtime.streams.peek(self._stream) or self._completed
        finally:
            runtime.release()

    def _refuse(self, *_: Any) -> Any:
        raise NotImplementedError(
            "a generator that runs in another process takes nothing: drop the ObjectRefGenerator to end it"
        )

    send = throw = close = asend = athrow = aclose = _refuse

    def completed(self) -> ObjectRef:
        """A ref that is ready when the generator has ended; `get` of it raises what the generator raised."""
        return self._completed

    def next_ready(self) -> bool:
        """Whether `next` would not block."""
        return bool(self._stream.refs)

    def is_finished(self) -> bool:
        """Whether everything that was yielded has been taken, and no more will come."""
        return self._stream.ended and not self._stream.refs

    def task_id(self) -> bytes:
        """The id of the task: 16 bytes."""
        return self._stream.task.id

    def __reduce__(self) -> Any:
        raise TypeError(
            "an ObjectRefGenerator cannot be sent to another process: its values come here. "
            "Pass on the refs that it gives, or call the generator task there."
        )

    def __del__(self) -> None:
        stream = self._stream
        if not stream.abandoned and not (stream.ended and not stream.refs):
            self._runtime.on_dropped(stream)

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._stream.task.id.hex()})"


class DynamicObjectRefGenerator:
    """What `get` gives for a task with num_returns="dynamic": the refs of all that it yielded."""

    def __init__(self, refs: list[ObjectRef]) -> None:
        self._refs = refs

    def __iter__(self) -> Iterator[ObjectRef]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, index: int) -> ObjectRef:
        return self._refs[index]

    def __repr__(self) -> str:
        return f"DynamicObjectRefGenerator({self._refs})"
