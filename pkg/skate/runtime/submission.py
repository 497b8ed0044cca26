"""The owner's side of a call: from `.remote()` to the worker, and from the worker's answer to the caller's refs.

State: the tasks of this process that are not done. What goes where is decided by core.dispatch, what workers know of
functions by core.exports; whether a failed attempt is tried again by core.tasks.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from skate._c import clock, frames, refs
from skate._c.refs import FAILED, PENDING, STORED, ObjectEntry, ObjectRef
from skate.core.calls import ActorLine, Life
from skate.core.dispatch import AskLeases, Effect, GiveBack, LoseTasks, PushTasks, Queue
from skate.core.exports import Exports
from skate.core.streams import Stream
from skate.core.tasks import Function, OwnedTask
from skate.exceptions import PendingCallsLimitExceeded, ReferenceCountingAssertionError, TaskError
from skate.ids import (
    FIRST_INDEX,
    NODE_ID_BYTES,
    TASK_ID_BYTES,
    NodeId,
    ProcessId,
    TaskId,
    manager_of,
    object_id,
)
from skate.runtime.arguments import inlined, pack_arguments
from skate.runtime.deaths import crash_of, failed_by_argument
from skate.runtime.objects import pack_error
from skate.runtime.streams import ObjectRefGenerator
from skate.store.serialization import from_bytes
from skate.wire import checks
from skate.wire import messages as m
from skate.wire.messages import SCHEMAS

if TYPE_CHECKING:
    from skate.core.dispatch import HeldLease
    from skate.options import TaskOptions
    from skate.runtime.runtime import Runtime

log = logging.getLogger("skate")


#: the message that is sent most, without its named tuple
_PUSH_TASK: Final = m.PushTask.code  # type: ignore[attr-defined]
_PUSH_TASK_SCHEMA: Final = m.PushTask.schema  # type: ignore[attr-defined]


class Submission:
    """The tasks that this process owns."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._references = runtime.references
        self._dispatcher = runtime.dispatcher
        self._calls = runtime.actors.calls
        self._mailbox = runtime.mailbox
        self._objects = runtime.objects
        #: task id -> task, until it is done
        self.tasks: dict[bytes, OwnedTask] = {}
        self._exports = Exports()
        self._exported = self._exports.known
        #: workers whose deaths are about to be told: their last answers come from the node
        self._closed: set[ProcessId] = set()
        #: what fails by an argument just now: (task, argument)
        self._failing: list[tuple[OwnedTask, ObjectEntry]] = []
        #: it was warned that no node can run an actor
        self.warned = False
        #: warns about requests that no node can meet; set by the api
        self.warn: Callable[[str], None] = log.warning
        runtime.handle(m.TaskDone, self._task_done)
        runtime.handle(m.TasksReturned, self._tasks_returned)
        runtime.handle(m.LateAnswer, self._answered_late)
        runtime.handle(m.LeaseGranted, self._lease_granted)
        runtime.handle(m.ReclaimLease, self._lease_reclaimed)
        runtime.handle(m.Infeasible, self._infeasible)
        runtime.handle(m.LeasesFailed, self._leases_failed)

    # --------------------------------------------------------------------------------------------------- submit

    def submit(
        self,
        function: Function,
        options: TaskOptions,
        queue: Queue | ActorLine,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        returns: int,
        pinned: Sequence[ObjectEntry] = (),
    ) -> Any:
        """Queues a call. Gives the ref of its return value, or a list of them where `returns` is not 1. Does not block.

        `queue` is a scheduling class, or the line of an actor whose method `function` is. `returns` below 0 asks for a
        stream: then it gives an ObjectRefGenerator, or, of one that gathers its values, the ref of the whole. `pinned`
        lives until the call is done. Raises SerializationError for arguments that cannot be pickled,
        PendingCallsLimitExceeded.
        """
        runtime = self._runtime
        line: ActorLine | None = None
        if type(queue) is ActorLine:
            line = queue
        nested = pinned
        packed, dependencies = b"", None
        if args or kwargs:
            packed, dependencies, inner, _made = pack_arguments(runtime.objects, function.name, args, kwargs)
            if inner:
                nested = [*inner, *pinned]
        task_id = runtime.next_task_id()
        now = runtime.begin()
        try:
            if line is not None and 0 <= line.max_pending <= line.pending:
                raise PendingCallsLimitExceeded(
                    f"{function.name}(): {line.pending} calls of this actor are pending here, and its "
                    f"max_pending_calls is {line.max_pending}. Wait for some of them, or raise the limit."
                )
            references = self._references
            if returns == 1:  # the usual case, without a comprehension's price
                entry = references.create(task_id + FIRST_INDEX)
                entries = [entry]
                result: Any = ObjectRef(entry)
            else:
                entries = [
                    references.create(object_id(task_id, index))
                    for index in range(1 if returns < 0 else returns)
                ]
                result = [ObjectRef(entry) for entry in entries]
            task = OwnedTask(task_id, function, queue, options, packed, dependencies, nested, entries)
            if returns < 0:
                gathers = options.num_returns == "dynamic"
                task.stream = Stream(task_id, returns=returns, gathers=gathers)
                result = result[0] if gathers else ObjectRefGenerator(runtime, task.stream, result[0])
            self.tasks[task_id] = task
            if nested:
                references.pin(nested)
            ready = True
            if dependencies:
                references.pin(dependencies)
                task.waiter = runtime.objects.when_ready(dependencies, partial(self._arguments_ready, task))
                ready = task.waiter is None
            if line is not None and not dependencies:
                self._call_ready(line, task)
            elif line is not None:
                self._calls.call_submitted(line, task, False)
            if dependencies:
                if ready:
                    self._arguments_ready(task)
            elif line is None:
                self._dispatcher.task_queued(task, now)
            if runtime.effects:
                runtime.act()
            runtime.send_soon(now)
        finally:
            runtime.lock.leave()
        runtime.glance(now)
        return result

    def _call_ready(self, line: ActorLine, call: OwnedTask) -> None:
        life = self._calls.call_submitted(line, call, True)
        if life is not None:
            self.push(life.worker, (call,))

    def _arguments_ready(self, task: OwnedTask, _: Any = None) -> None:
        for entry in task.dependencies or ():
            if entry.state == FAILED:
                if type(task.queue) is not ActorLine or self._calls.call_withdrawn(task.queue, task):
                    self._fail_by(task, entry)
                return
        if type(task.queue) is ActorLine:
            self._calls.call_ready(task.queue, task)
        else:
            if self._runtime.in_cluster:
                large = tuple([entry.id for entry in task.dependencies or () if entry.state == STORED])
                if large:
                    task.queue = self._dispatcher.queue_with(task.queue, large)  # type: ignore[arg-type]
            self._dispatcher.task_queued(task, clock.monotonic())

    def _fail_by(self, task: OwnedTask, argument: ObjectEntry) -> None:
        """The task does not run: an argument of it has failed. (One by one: in a chain each fails the next.)"""
        self._failing.append((task, argument))
        if len(self._failing) > 1:
            return
        try:
            while self._failing:
                self._finish_by(*self._failing[0])
                del self._failing[0]
        finally:
            self._failing.clear()

    def _finish_by(self, task: OwnedTask, argument: ObjectEntry) -> None:
        packed = argument.value
        if packed is None:
            packed = pack_error(ReferenceCountingAssertionError(argument.id))
        error = failed_by_argument(packed, task.display_name, os.getpid(), self._runtime.node)
        self.finish(task, error, self._references.contents_of(argument))

    # ----------------------------------------------------------------------------------------------- decisions

    def carry_out(self, effect: Effect) -> None:
        """Does what the dispatcher decided. Under the lock."""
        runtime = self._runtime
        if type(effect) is PushTasks:
            self.push(effect.lease.worker, effect.tasks)
        elif type(effect) is AskLeases:
            queue = effect.queue
            runtime.post(
                runtime.node,
                m.RequestLeases(
                    queue.class_id,
                    queue.demand.units(),
                    runtime.depth,
                    effect.wanted,
                    queue.environment,
                    queue.where,
                    runtime.copies.whereabouts(queue.arguments) if queue.arguments else None,
                ),
            )
        elif type(effect) is GiveBack:
            runtime.post(manager_of(effect.lease.worker), m.ReturnLease(effect.lease.id))
        elif type(effect) is LoseTasks:
            lease = effect.lease
            self._lose(effect.tasks, lease.worker, lease.cause, clock.monotonic())
        else:
            runtime.post(effect.lease.worker, m.RecallTasks(effect.lease.id))

    def push(self, worker: ProcessId, tasks: Sequence[OwnedTask]) -> None:
        """Sends tasks to a worker, or calls to an actor. Under the lock."""
        mailbox = self._mailbox
        for task in tasks:
            function = task.function
            if function.pickled is not None and function.id not in self._exported[worker]:
                self._export(task.lease, function)  # type: ignore[arg-type] # (methods are not pickled)
            dependencies = task.dependencies
            inline = inlined(dependencies) if dependencies else None
            fields = (
                task.id,
                function.id,
                task.args,
                inline,
                len(task.returns) if task.stream is None else task.stream.returns,
                task.attempt,
                task.name,
                task.options.calls_per_worker,
            )
            mailbox.post(worker, frames.encode(_PUSH_TASK, _PUSH_TASK_SCHEMA, fields))

    def _export(self, lease: HeldLease, function: Function) -> None:
        """Sends a function to the lease's worker, which lacks it."""
        forgotten = self._exports.sent(lease, function)
        if forgotten:
            self._runtime.post(lease.worker, m.ForgetFunctions(forgotten))
        self._runtime.post(lease.worker, m.ExportFunction(function.id, function.name, function.pickled))

    # ------------------------------------------------------------------------------------------------- answers

    def _task_done(self, worker: ProcessId, task_id: TaskId, elapsed_ns: int, values: Any, kept: Any) -> None:
        task: OwnedTask | None = self.tasks.get(task_id)
        if task is None or task.lease is None or task.lease.worker != worker:
            self.discard(worker, task_id, values)
            return
        self._answered(worker, task, elapsed_ns * 1e-9, values, kept)

    def _answered(self, worker: ProcessId, task: OwnedTask, seconds: float, values: Any, kept: Any) -> None:
        """The worker that holds the task has run it."""
        lease = task.lease
        if type(lease) is Life:
            self._calls.call_done(lease, task)
        else:
            self._dispatcher.task_done(lease, task, seconds, clock.monotonic())  # type: ignore[arg-type]
        if worker in self._closed or self._references.has_died(worker):
            self._leave_to_heirs(task, worker)
        elif kept:
            self._references.on_kept(kept, worker)
        if values and values[-1][0] == FAILED and self._wants_retry(task, values[-1][1]) and task.may_retry():
            self._take_back(task, worker, values)
            if type(lease) is Life:
                self._call_ready(task.queue, task)  # type: ignore[arg-type]
            else:
                self._dispatcher.task_queued(task, clock.monotonic())
            return
        del self.tasks[task.id]
        if task.stream is not None:
            values = [self._runtime.streams.ended(task.stream, values[0], True)]
        if len(values) > len(task.returns):  # the error of one without a return value
            self._refuse(values[len(task.returns) :])
        for index, entry in enumerate(task.returns):
            state, value, contents = values[
                index
            ]  # (an error is there for each that it left without a value)
            if state == STORED:
                self._runtime.copies.made_by(entry.id, worker)
            self._objects.settle(entry, state, value, contents)
        self._let_go(task)

    def _answered_late(self, _: ProcessId, worker: ProcessId, attempt: int, record: bytes) -> None:
        """What a dead worker had answered: it has come already, or it never left; a long one may be under way."""
        if worker not in self._closed:
            self._runtime.hear_out(worker)
            self._closed.add(worker)
        if len(record) == TASK_ID_BYTES:
            task = self._held_by(worker, record, attempt)
            if task is not None and type(task.lease) is Life:
                task.lease.coming.add(record)
            return
        for code, fields in frames.decode(frames.frame([record]), SCHEMAS):
            task = self._held_by(worker, fields[0], attempt)
            if task is None:
                continue
            assert task.lease is not None
            task.lease.closes()
            if code == m.TaskDone.code:  # type: ignore[attr-defined]
                self._task_done(worker, *fields)
            elif code == m.StreamItem.code and task.stream and fields[1] == task.stream.received:  # type: ignore[attr-defined]
                self._runtime.streams.item(worker, *fields)

    def _held_by(self, worker: ProcessId, task_id: bytes, attempt: int) -> OwnedTask | None:
        """The task, if this attempt at it is the worker's."""
        task = self.tasks.get(task_id)
        if task is None or task.lease is None or task.lease.worker != worker or task.attempt != attempt:
            return None
        return task

    def discard(self, worker: ProcessId, task_id: bytes, values: Any, first: int = 0) -> None:
        """An answer that comes too late: the task was tried again elsewhere, or given up. Under the lock.

        Of a worker that has died it is the second copy: the node has passed on what that had answered.
        """
        if worker in self._closed or self._references.has_died(worker):
            return
        self._refuse(checks.values(values))
        for index, (state, _, _) in enumerate(values, first):
            if state == STORED:
                self._runtime.copies.discard(object_id(TaskId(task_id), index), worker)

    def _take_back(self, task: OwnedTask, worker: ProcessId, values: Any) -> None:
        """The task is tried again: what it made before its error is nobody's. Under the lock."""
        self._refuse(values)
        for entry, (state, _, _) in zip(task.returns, values, strict=False):
            if state == STORED:
                self._runtime.copies.drop_unanswered(entry.id, worker)

    def _refuse(self, values: Any) -> None:
        """Values that nobody will have: what is inside was registered in this process's name."""
        for _, _, contents in values:
            if contents:
                self._references.refuse_contents(contents)

    def _wants_retry(self, task: OwnedTask, packed: bytes) -> bool:
        wanted = task.options.retry_exceptions
        if not wanted:
            return False
        if wanted is True:
            return True
        error = from_bytes(packed)
        cause = error.task_error.cause if isinstance(error, TaskError) else error
        return isinstance(cause, wanted)

    def finish(self, task: OwnedTask, error: Any, contents: list[tuple[bytes, bytes]] | None = None) -> None:
        """A task fails without an answer, with a packed error; `contents` are the refs inside. Under the lock."""
        del self.tasks[task.id]
        state = FAILED
        if task.waiter is not None and not task.waiter.done:  # a call of an actor that is dead
            refs.unwatch(task.dependencies, task.waiter)
        task.waiter = None  # whose callback leads here: a cycle
        if task.stream is not None:
            state, error, contents = self._runtime.streams.ended(
                task.stream, (FAILED, error, contents), False
            )
        for entry in task.returns:
            if entry.state == PENDING:
                self._objects.settle(entry, state, error, contents)
        self._let_go(task)

    def free_results(self, task: OwnedTask, worker: ProcessId) -> None:
        """The worker that ran the task is dead: drops what it had put into the store already. Under the lock."""
        self._leave_to_heirs(task, worker)
        copies = self._runtime.copies
        for entry in task.returns:
            copies.drop_unanswered(entry.id, worker)
        if task.stream is not None:
            copies.drop_unanswered(object_id(task.id, task.stream.received + 1), worker)

    def _leave_to_heirs(self, task: OwnedTask, worker: ProcessId) -> None:
        """Whoever got refs from a dead worker that this had from the arguments must be heard before they may go."""
        arguments = [*task.nested, *(task.dependencies or ())]
        if arguments:
            self._references.keep_for_heirs(worker, arguments)

    def _let_go(self, task: OwnedTask) -> None:
        """Nothing of the call is needed any more but its values."""
        if task.dependencies:
            self._references.unpin(task.dependencies)
        if task.nested:
            self._references.unpin(task.nested)

    def _tasks_returned(self, worker: ProcessId, lease_id: int, task_ids: Any) -> None:
        lease = self._dispatcher.leases.get(lease_id)
        if lease is None or lease.worker != worker:
            return  # its worker was given up already
        tasks = [lease.in_flight[task_id] for task_id in task_ids if task_id in lease.in_flight]
        self._dispatcher.tasks_returned(lease, tasks, clock.monotonic())

    def _lease_granted(
        self, _: ProcessId, class_id: int, lease_id: int, worker: ProcessId, allocation: Any
    ) -> None:
        queue = self._dispatcher.queue_numbered(class_id)
        if queue is None:  # what it was for has run elsewhere
            self._runtime.post(manager_of(worker), m.ReturnLease(lease_id))
            return
        self._exports.granted(worker)
        self._runtime.post(worker, m.StartLease(lease_id, self._runtime.depth + 1, allocation))
        self._dispatcher.lease_granted(queue, lease_id, worker, clock.monotonic())

    def _leases_failed(self, _: ProcessId, class_id: int, cause: str) -> None:
        report = json.loads(cause)
        queue = self._dispatcher.queue_numbered(class_id)
        for task in [] if queue is None else self._dispatcher.leases_failed(queue):
            crash = crash_of(f"no task yet (it was to run {task.display_name})", report)
            self.finish(task, pack_error(crash))

    def _lease_reclaimed(self, _: ProcessId, lease_id: int) -> None:
        self._dispatcher.lease_reclaimed(lease_id)

    def _infeasible(self, _: ProcessId, class_id: int, text: str) -> None:
        queue = self._dispatcher.queue_numbered(class_id)
        if queue is None and class_id:
            return  # nothing waits for that any more
        warned: Queue | Submission = self if queue is None else queue.parent or queue
        if not warned.warned:
            warned.warned = True
            self._runtime.later(lambda: self.warn(text))

    # -------------------------------------------------------------------------------------------------- deaths

    def worker_died(self, gone: ProcessId | NodeId, cause: str, running: bytes, answered: int) -> None:
        """A worker is gone, or a node with all of its: their tasks run elsewhere, as far as they may be tried again.

        Under the lock.
        """
        self._closed = {worker for worker in self._closed if not worker.startswith(gone)}
        self._exports.died(gone)
        now = clock.monotonic()
        leases = self._dispatcher.leases.values()
        for lease in [lease for lease in leases if lease.worker.startswith(gone)]:
            lost = self._dispatcher.worker_lost(lease, running, answered, now, cause)
            self._lose(lost, lease.worker, cause, now)
        if len(gone) == NODE_ID_BYTES:
            self._dispatcher.node_died()

    def _lose(self, tasks: list[OwnedTask], worker: ProcessId, cause: str, now: float) -> None:
        """Tasks that a dead worker had begun, and has not answered: they are tried again, or fail."""
        for task in tasks:
            task.blamed = True
            self.free_results(task, worker)
            if task.may_retry():
                self._dispatcher.task_queued(task, now)
            else:
                self.finish(task, pack_error(crash_of(task.display_name, json.loads(cause))))
