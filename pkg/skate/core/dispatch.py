"""Which task goes to which leased worker, and how many leases the owner asks for.

Pure. State: a Queue for each scheduling class that somebody uses (tasks that need the same resources and environment,
and in a cluster the same large arguments), and the leases held for it. Events: task_queued, task_done, tasks_returned,
lease_granted, leases_failed, lease_reclaimed, worker_lost, tick. Effects out through `take_effects`.

Rules:

* A lease's pipeline is filled up to `BUDGET` seconds of expected work: short tasks travel many at a time, a task that
  takes longer, or that was never measured, travels alone.
* No task waits behind a long one: when the first task of a pipeline overruns, the rest is recalled.
* The owner asks for more leases than it has only for what does not fit into the pipelines of those.
* A lease without work is kept for `LINGER` seconds, and given back at once when others wait for it; and where tasks are
  to be spread over nodes: the next one is to run on another.
* Tasks with the same large arguments have a queue of their own, so that their leases can be asked for where these are,
  and granted once these have been brought there. Its idle leases go back before others are asked for, which may be
  wanted where they are.
* A queue is kept by what uses it: a remote function that was called, a task that is not done, a lease. It goes with
  the last of them.

Invariants (`check`): a task is in one queue or in flight on one lease; what a lease's `load` says is the sum of what
its tasks were expected to take; an idle lease and a waiting task of the same queue never exist at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import ceil
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakValueDictionary

from skate.core.machine import Machine
from skate.core.policies import SPREAD
from skate.core.resources import ResourceSet
from skate.core.tasks import DONE, PUSHED, QUEUED, OwnedTask
from skate.ids import ProcessId

if TYPE_CHECKING:
    from skate.core.calls import Life

#: seconds of expected work that a worker may have in its pipeline
BUDGET: Final = 0.003
#: seconds that a lease without work is kept
LINGER: Final = 0.1
#: seconds that answers of a dead worker may still be on the way
LATE: Final = 0.5
#: tasks that a worker may have in its pipeline, however short they are
MAX_IN_FLIGHT: Final = 512


class PushTasks:
    """Effect: these tasks go to the lease's worker now. (Or these calls, to an actor: see core.calls.)

    No tuple, as the others are: one is made for each task that runs alone.
    """

    __slots__ = ("lease", "tasks")

    def __init__(self, lease: HeldLease | Life, tasks: list[OwnedTask]) -> None:
        self.lease = lease
        self.tasks = tasks


class AskLeases(NamedTuple):
    """Effect: tell the node how many more leases the queue could use."""

    queue: Queue
    wanted: int


class GiveBack(NamedTuple):
    """Effect: the lease goes back to the node."""

    lease: HeldLease


class Recall(NamedTuple):
    """Effect: ask the worker for what it has not begun."""

    lease: HeldLease


class LoseTasks(NamedTuple):
    """Effect: the lease's worker died after it had run these tasks, and its answers will not come any more."""

    lease: HeldLease
    tasks: list[OwnedTask]


Effect = PushTasks | AskLeases | GiveBack | Recall | LoseTasks


class Queue:
    """Tasks of one scheduling class that wait for a worker, and the leases held for them."""

    __slots__ = (
        "__weakref__",
        "arguments",
        "class_id",
        "demand",
        "environment",
        "leases",
        "parent",
        "seconds",
        "spreads",
        "tasks",
        "told",
        "warned",
        "where",
    )

    def __init__(
        self,
        class_id: int,
        demand: ResourceSet,
        environment: Any = None,
        where: Any = None,
        parent: Queue | None = None,
        arguments: tuple[bytes, ...] = (),
    ) -> None:
        self.class_id = class_id
        #: ids of the large arguments of each of its tasks
        self.arguments = arguments
        #: the queue of tasks that ask for the same, whatever their arguments; None: it is that
        self.parent = parent
        self.demand = demand
        self.environment = environment
        #: on which nodes its tasks may run; None: on any (core.policies.Where)
        self.where = where
        #: the next task is to run on another node
        self.spreads = where is not None and where[0] == SPREAD
        self.tasks: deque[OwnedTask] = deque()
        self.leases: list[HeldLease] = []
        #: what the node was last told that we want
        self.told = 0
        #: running mean of a task's seconds in this class; None before the first result
        self.seconds: float | None = None
        #: the program was told that no node can run its tasks
        self.warned = False


class HeldLease:
    """A worker that is ours for now."""

    __slots__ = (
        "answered",
        "cause",
        "head_since",
        "id",
        "idle_since",
        "in_flight",
        "load",
        "queue",
        "recalling",
        "reclaimed",
        "stalled",
        "worker",
    )

    def __init__(self, lease_id: int, queue: Queue, worker: ProcessId, now: float) -> None:
        self.id = lease_id
        self.queue = queue
        self.worker = worker
        #: how many of its answers have come
        self.answered = 0
        #: pushed and not done, in the order in which the worker runs them
        self.in_flight: dict[bytes, OwnedTask] = {}
        #: seconds that they were expected to take
        self.load = 0.0
        #: since when the first of them has been first
        self.head_since = now
        self.idle_since = now
        #: the worker was asked to give back what it has not begun
        self.recalling = False
        #: its first task overruns or is blocked: nothing is pushed behind it
        self.stalled = False
        #: others wait for it
        self.reclaimed = False
        #: what its worker died of
        self.cause = ""

    def closes(self) -> None:
        """Its worker is dead, and its last answers come: nothing is pushed to it any more."""
        self.reclaimed = True

    def __repr__(self) -> str:
        return f"<HeldLease {self.id} of {self.worker.hex()} in flight: {len(self.in_flight)}>"


class Dispatcher(Machine):
    """The queues and leases of one owner. Every method is called under the runtime's lock."""

    def __init__(self, effects: list[Any] | None = None) -> None:
        super().__init__(effects)
        #: those that somebody uses, by what they ask for, and by number
        self.queues: WeakValueDictionary[Any, Queue] = WeakValueDictionary()
        self._by_class: WeakValueDictionary[int, Queue] = WeakValueDictionary()
        #: the number of the latest class
        self._classes = 0
        #: leases for tasks with large arguments
        self._brief = 0
        self.leases: dict[int, HeldLease] = {}
        #: (when to stop waiting, lease of a dead worker whose answers may still come)
        self._late: deque[tuple[float, HeldLease]] = deque()

    def queue_of(self, demand: ResourceSet, environment: Any = None, where: Any = None) -> Queue:
        """The queue of a scheduling class; made where it is new."""
        key = demand if environment is None and where is None else (demand, environment, where)
        return self.queues.get(key) or self._add(key, demand, environment, where)

    def queue_with(self, queue: Queue, arguments: tuple[bytes, ...]) -> Queue:
        """The queue of those tasks of a class that have these large arguments."""
        key = (queue.class_id, arguments)
        known = self.queues.get(key)
        if known is None:
            known = self._add(key, queue.demand, queue.environment, queue.where, queue, arguments)
            known.seconds = queue.seconds
        return known

    def _add(self, key: Any, *what: Any) -> Queue:
        self._classes += 1
        queue = self.queues[key] = self._by_class[self._classes] = Queue(self._classes, *what)
        return queue

    def queue_numbered(self, class_id: int) -> Queue | None:
        """The queue of this class; None where it is gone."""
        return self._by_class.get(class_id)

    # --------------------------------------------------------------------------------------------------- events

    def task_queued(self, task: OwnedTask, now: float) -> None:
        """A task has its arguments and wants a worker."""
        task.state = QUEUED
        queue: Queue = task.queue  # type: ignore[assignment] # calls of actors are not queued here
        queue.tasks.append(task)
        waiting = len(queue.tasks)
        if waiting == 1 or not queue.told:
            self._feed(queue, now)
        elif waiting > queue.told and (waiting <= 16 or waiting >= queue.told * 1.25):
            self._ask(queue)  # the pipelines are full already; a long queue is told in steps

    def task_done(self, lease: HeldLease, task: OwnedTask, seconds: float, now: float) -> None:
        """The worker has run a task. (Whether it is retried is not decided here.)"""
        task.function.measured(seconds)
        queue = lease.queue
        queue.seconds = seconds if queue.seconds is None else queue.seconds + 0.2 * (seconds - queue.seconds)
        task.state = DONE
        lease.answered += 1
        self._take_out(lease, task, now)
        lease.stalled = False
        if queue.tasks or queue.told:
            self._feed(queue, now)
        elif queue.spreads and not lease.in_flight and lease.id in self.leases:
            self._give_back(lease)

    def tasks_returned(self, lease: HeldLease, tasks: Iterable[OwnedTask], now: float) -> None:
        """The worker gives back tasks that it has not begun, because it was asked to or because it is blocked."""
        lease.recalling = False
        returned = list(tasks)
        if returned:
            lease.stalled = True  # until its first task is done; none: it had begun all of them
        head_since = lease.head_since
        for task in reversed(returned):
            self._take_out(lease, task, now)
            task.state = QUEUED
            lease.queue.tasks.appendleft(task)
        if lease.in_flight:
            lease.head_since = head_since
        else:
            lease.stalled = False
        self._feed(lease.queue, now)

    def lease_granted(self, queue: Queue, lease_id: int, worker: ProcessId, now: float) -> HeldLease:
        lease = HeldLease(lease_id, queue, worker, now)
        queue.leases.append(lease)
        self.leases[lease_id] = lease
        self._brief += bool(queue.arguments)
        queue.told = max(0, queue.told - 1)
        self._feed(queue, now)
        return lease

    def leases_failed(self, queue: Queue) -> list[OwnedTask]:
        """No worker for the queue can be started: gives the tasks that waited for one."""
        queue.told = 0
        if queue.leases:
            self._ask(queue)
            return []  # what it has goes on, with the workers that there are
        tasks = list(queue.tasks)
        queue.tasks.clear()
        return tasks

    def unschedulable(self, queue: Queue) -> list[OwnedTask]:
        """What the queue asks for can never be met: gives the tasks that waited. Leases that it has go on."""
        queue.told = 0
        tasks = list(queue.tasks)
        queue.tasks.clear()
        return tasks

    def lease_reclaimed(self, lease_id: int) -> None:
        """Others wait for what the lease holds."""
        lease = self.leases.get(lease_id)
        if lease is None:
            return  # it was given back already; the messages crossed
        lease.reclaimed = True
        if not lease.in_flight:
            self._give_back(lease)

    def worker_lost(
        self, lease: HeldLease, running: bytes, answered: int, now: float, cause: str = ""
    ) -> list[OwnedTask]:
        """The worker died. Tasks that it had not begun are queued again; gives the one that it was in, if any.

        `running` names that task; `answered` says how many tasks of the lease it had answered before. Answers that
        have not come yet may be on the way: the tasks wait for them for LATE seconds, in the lease, which is in no
        table any more.
        """
        tasks = list(lease.in_flight.values())
        late = tasks[: max(0, answered - lease.answered)]
        begun = tasks[len(late) : len(late) + bool(running)]
        self._drop(lease)
        lease.cause = cause
        lease.reclaimed = False
        lease.in_flight = {task.id: task for task in late}
        lease.load = sum(task.expected for task in late)
        if late:
            self._late.append((now + LATE, lease))
        for task in reversed(tasks[len(late) + len(begun) :]):
            task.lease = None
            task.state = QUEUED
            lease.queue.tasks.appendleft(task)
        for task in begun:
            task.blamed = True
            task.lease = None
        self._feed(lease.queue, now)
        return begun

    def node_died(self) -> None:
        """Grants of it that were on their way are lost, while those who asked it may have heard of them: says again
        what is wanted. (A lease too many goes back.)"""
        for queue in self.queues.values():
            if queue.told:
                queue.told = 0
                self._ask(queue)

    def tick(self, now: float) -> None:
        """Time has passed: recalls what waits behind a task that overruns, gives back idle leases."""
        while self._late and (self._late[0][0] <= now or not self._late[0][1].in_flight):
            _, lost = self._late.popleft()
            tasks = list(lost.in_flight.values())
            lost.in_flight.clear()
            for task in tasks:
                task.lease = None
            if tasks:
                self._effects.append(LoseTasks(lost, tasks))
        for lease in list(self.leases.values()):
            if not lease.in_flight:
                if now >= lease.idle_since + LINGER:
                    self._give_back(lease)
            elif len(lease.in_flight) > 1 and not lease.recalling and now >= self._overrun_at(lease):
                lease.recalling = lease.stalled = True
                self._effects.append(Recall(lease))

    def next_tick(self) -> float | None:
        """When `tick` has something to do next, in the clock's seconds; None: not before another event."""
        deadline = self._late[0][0] if self._late else None
        for lease in self.leases.values():
            if not lease.in_flight:
                at = lease.idle_since + LINGER
            elif len(lease.in_flight) > 1 and not lease.recalling:
                at = self._overrun_at(lease)
            else:
                continue
            if deadline is None or at < deadline:
                deadline = at
        return deadline

    # --------------------------------------------------------------------------------------------------- the rules

    def _overrun_at(self, lease: HeldLease) -> float:
        head = next(iter(lease.in_flight.values()))
        return lease.head_since + head.expected + BUDGET

    def _feed(self, queue: Queue, now: float) -> None:
        """Fills the pipelines of the queue's leases, then says how many more leases it could use."""
        tasks = queue.tasks
        pushed: dict[int, list[OwnedTask]] = {}
        while tasks:
            lease = self._roomiest(queue, tasks[0])
            if lease is None:
                break
            task = tasks.popleft()
            task.state = PUSHED
            task.lease = lease
            task.expected = BUDGET if task.function.seconds is None or task.blamed else task.function.seconds
            if not lease.in_flight:
                lease.head_since = now
            lease.in_flight[task.id] = task
            lease.load += task.expected
            batch = pushed.get(lease.id)
            if batch is None:
                pushed[lease.id] = batch = []
                self._effects.append(PushTasks(lease, batch))
            batch.append(task)
        if not tasks:
            for lease in list(queue.leases):
                if (lease.reclaimed or queue.spreads) and not lease.in_flight:
                    self._give_back(lease)
        self._ask(queue)

    def _roomiest(self, queue: Queue, task: OwnedTask) -> HeldLease | None:
        """The lease with the least to do whose pipeline has room for one more task."""
        best = None
        alone = task.blamed
        for lease in queue.leases:
            if lease.reclaimed or lease.stalled or lease.recalling:
                continue
            if lease.in_flight:
                expected = task.function.seconds
                if (
                    alone
                    or expected is None
                    or lease.load + expected > BUDGET
                    or len(lease.in_flight) >= MAX_IN_FLIGHT
                ):
                    continue
            if best is None or lease.load < best.load:
                best = lease
        return best

    def _ask(self, queue: Queue) -> None:
        waiting = len(queue.tasks)
        wanted = waiting
        if waiting and queue.seconds is not None:
            wanted = min(waiting, max(1, ceil(waiting * queue.seconds / BUDGET)))  # a task may measure 0 s
        if wanted > queue.told or (queue.told and not waiting):
            queue.told = wanted
            if self._brief and wanted:
                self._give_back_idle(queue)
            self._effects.append(AskLeases(queue, wanted))

    def _give_back_idle(self, asking: Queue) -> None:
        """Gives back leases that tasks with large arguments do not need any more, but those of the queue that asks."""
        for lease in list(self.leases.values()):
            if lease.queue.arguments and lease.queue is not asking and not lease.in_flight:
                self._give_back(lease)

    def _take_out(self, lease: HeldLease, task: OwnedTask, now: float) -> None:
        del lease.in_flight[task.id]
        task.lease = None
        lease.head_since = now
        if lease.in_flight:
            lease.load -= task.expected
        else:
            lease.load = 0.0
            lease.recalling = lease.stalled = False
            lease.idle_since = now
            if lease.reclaimed:
                self._give_back(lease)

    def _give_back(self, lease: HeldLease) -> None:
        self._drop(lease)
        self._effects.append(GiveBack(lease))

    def _drop(self, lease: HeldLease) -> None:
        if self.leases.pop(lease.id, None) is not None:
            lease.queue.leases.remove(lease)
            self._brief -= bool(lease.queue.arguments)

    # --------------------------------------------------------------------------------------------------- checks

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        seen: set[bytes] = set()
        if dict(self._by_class) != {queue.class_id: queue for queue in self.queues.values()}:
            raise AssertionError("the queues by key and by class differ")
        if self._brief != sum(bool(lease.queue.arguments) for lease in self.leases.values()):
            raise AssertionError(f"{self._brief} leases are counted as for tasks with large arguments")
        for queue in self.queues.values():
            if queue.told and not queue.tasks:
                raise AssertionError(
                    f"the node is asked for leases of class {queue.class_id}, which has no tasks"
                )
            for task in queue.tasks:
                if task.state != QUEUED or task.id in seen:
                    raise AssertionError(f"{task} stands in a queue")
                seen.add(task.id)
            for lease in queue.leases:
                if self.leases.get(lease.id) is not lease:
                    raise AssertionError(f"{lease} is not in the table")
                if queue.spreads and not lease.in_flight:
                    raise AssertionError(f"{lease} is idle, and the next task is to run elsewhere")
                if lease.reclaimed and not lease.in_flight:
                    raise AssertionError(f"{lease} is idle, and others wait for it")
                if queue.tasks and not lease.in_flight:
                    raise AssertionError(f"{lease} is idle while {len(queue.tasks)} tasks wait")
                total = sum(task.expected for task in lease.in_flight.values())
                if abs(lease.load - total) > 1e-6:
                    raise AssertionError(f"{lease}: load {lease.load}, its tasks {total}")
                for task in lease.in_flight.values():
                    if task.state != PUSHED or task.id in seen:
                        raise AssertionError(f"{task} is in flight on {lease}")
                    seen.add(task.id)
        if sum(len(queue.leases) for queue in self.queues.values()) != len(self.leases):
            raise AssertionError("a lease belongs to no queue")
