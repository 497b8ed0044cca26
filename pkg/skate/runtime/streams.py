"""Generators as tasks, on the owner's side: their values are objects as they are yielded.

State: none of its own; each generator's is its task's `stream` (core.streams, which has the rules). The task's own
return value (index 0) says only how it ended, or, with num_returns="dynamic", holds the refs of all that it yielded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from skate._c.refs import FAILED, INLINE, STORED, ObjectRef
from skate.core.streams import ABANDONED, Stream
from skate.exceptions import FormerSessionError
from skate.ids import ProcessId, TaskId, object_id
from skate.store.serialization import serialize, to_bytes
from skate.wire import messages as m

if TYPE_CHECKING:
    from skate.core.calls import Life
    from skate.core.dispatch import HeldLease
    from skate.core.tasks import OwnedTask
    from skate.runtime.runtime import Runtime


class Streams:
    """The streams of the generators that this process owns."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        runtime.handle(m.StreamItem, self.item)
        runtime.handle(m.StreamBegins, self._begins)

    # -------------------------------------------------------------------------------------------------- messages

    def item(
        self, worker: ProcessId, task_id: TaskId, index: Any, state: Any, value: Any, contents: Any
    ) -> None:
        runtime = self._runtime
        task = self._run_by(worker, task_id)
        if task is None or not task.stream.accepts(index):
            runtime.submission.discard(worker, task_id, [(state, value, contents)], index + 1)
            return
        stream = task.stream
        if state == STORED:
            runtime.copies.made_by(object_id(task_id, index + 1), worker)
        self._append(stream, state, value, contents)
        if stream.abandoned:
            self._say_how_far(stream, worker)

    def _begins(self, worker: ProcessId, task_id: TaskId) -> None:
        """A generator that is tried again asks which of its values have come."""
        task = self._run_by(worker, task_id)
        if task is not None:
            self._say_how_far(task.stream, worker)
        else:  # it was given up meanwhile
            self._runtime.post(worker, m.StreamRead(task_id, ABANDONED, 0))

    def _run_by(self, worker: ProcessId, task_id: TaskId) -> OwnedTask | None:
        """The generator's task, if that worker has it."""
        tasks = self._runtime.submission.tasks
        task = tasks.get(task_id)
        if task is None or task.stream is None or task.lease is None or task.lease.worker != worker:
            return None
        return task

    def _say_how_far(self, stream: Stream, worker: ProcessId) -> None:
        self._runtime.post(worker, m.StreamRead(TaskId(stream.task), *stream.progress))

    def _append(self, stream: Stream, state: Any, value: Any, contents: Any) -> None:
        """A value, or the error that ends the stream, has come. Under the lock."""
        runtime = self._runtime
        objects = runtime.objects
        ref = stream.expected
        if ref is None:
            ref = ObjectRef(runtime.references.create(object_id(TaskId(stream.task), stream.received + 1)))
        stream.on_value(ref)
        objects.settle(ref.entry, state, value, contents)

    def ended(self, stream: Stream, value: tuple[int, Any, Any], answered: bool) -> tuple[int, Any, Any]:
        """The generator is done, or has failed: gives what its own ref becomes. Under the lock.

        What came before an error stays, and the error is in the last ref. `answered`: it has run.
        """
        state, packed, inside = value
        if state == FAILED and (answered or stream.received or not stream.gathers):
            self._append(stream, FAILED, packed, inside)
            if inside:  # and inside of what the stream's own ref becomes
                value = (state, packed, [(inner, b"") for inner, _ in inside])
        stream.ended = True
        if stream.expected is not None:  # who waits for it sees that the stream has ended
            last, stream.expected = stream.expected, None
            self._runtime.objects.settle(last.entry, INLINE, b"")
        if not stream.gathers or not (answered or stream.received):
            return value
        refs = list(stream.refs)  # which stay until what holds them has its value
        contents = [(ref.entry.id, b"") for ref in refs]
        return INLINE, to_bytes(serialize(DynamicObjectRefGenerator(refs))), contents

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
            entry = self._runtime.references.create(object_id(TaskId(stream.task), stream.received + 1))
            stream.expected = ObjectRef(entry)
        return stream.expected

    def _take(self, stream: Stream) -> tuple[ObjectRef | None, bool]:
        """(ref, True): the next value, taken; (ref, False): what to wait for; (None, False): the end."""
        runtime = self._runtime
        if runtime.closed:
            task = stream.task.hex()
            raise FormerSessionError(
                f"the generator of task {task} is of a session that was shut down: call it again in this one"
            )
        runtime.begin()
        try:
            ref = self.peek(stream)
            taken = ref is not None and bool(stream.refs)
            if taken:
                ref = stream.on_taken()
                lease = self._lease_of(stream) if stream.limit else None
                if lease is not None:
                    self._say_how_far(stream, lease.worker)
                    runtime.mailbox.flush()
        finally:
            runtime.lock.leave()
        return ref, taken

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
        stream.abandon()
        lease = self._lease_of(stream)
        if lease is not None:
            self._say_how_far(stream, lease.worker)

    def _lease_of(self, stream: Stream) -> HeldLease | Life | None:
        """Where the generator runs now, if it does."""
        tasks = self._runtime.submission.tasks
        task = tasks.get(stream.task)
        return None if task is None else task.lease


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
        with runtime.lock:
            ref = runtime.streams.peek(self._stream) or self._completed
        return ref

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
        return self._stream.task

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
        return f"ObjectRefGenerator({self._stream.task.hex()})"


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
