"""An owner's dispatcher against a node and workers that do everything in any order: each task runs, and once.

It runs in a worker that has its function; and there are queues of what is used, and of nothing else.

The model keeps, in plain dictionaries, what the node was told and where each task is. The links to the node and to each
worker keep their order; between links, anything may happen first.
"""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

from budgets import examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from skate._c.refs import TaskIds
from skate.core.dispatch import (
    BUDGET,
    LATE,
    LINGER,
    MAX_IN_FLIGHT,
    AskLeases,
    Dispatcher,
    GiveBack,
    HeldLease,
    LoseTasks,
    PushTasks,
    Queue,
    Recall,
)
from skate.core.exports import Exports
from skate.core.resources import ResourceSet
from skate.core.tasks import DONE, Function, OwnedTask
from skate.ids import NodeId, ProcessId, process_id

OWNER = process_id(NodeId(b"node"), 1)
#: seconds that calls of the model's functions take: far below, around and far above what a pipeline holds
SECONDS = (0.00001, BUDGET / 3, BUDGET, 1.0)
WORKERS = 3
#: of tasks, by what they ask for; the last are to be spread
KINDS = 3
SPREAD = KINDS - 1
OPTIONS: Any = SimpleNamespace(max_retries=-1, name=None)


class Worker:
    """A worker process: it runs what was pushed, in order."""

    def __init__(self, me: ProcessId) -> None:
        self.me = me
        self.functions: set[bytes] = set()
        self.to_come: deque[tuple[str, Any]] = deque()  # owner -> worker
        self.sent: deque[tuple[str, Any]] = deque()  # worker -> owner
        self.queue: deque[OwnedTask] = deque()
        self.current: OwnedTask | None = None
        self.lease: int | None = None
        self.blocked = False

    def take_in(self) -> None:
        kind, content = self.to_come.popleft()
        if kind == "push":
            self.queue.extend(content)
        elif kind == "export":
            self.functions.add(content)
        elif kind == "forget":
            self.functions -= set(content)
        else:
            # What is first in the pipeline of a worker that runs nothing is as good as begun.
            self.give_back(content, keep=0 if self.current else 1)

    def give_back(self, lease: int, keep: int = 0) -> None:
        self.sent.append(("returned", (lease, list(self.queue)[keep:])))
        while len(self.queue) > keep:
            self.queue.pop()


class Owner:
    """The dispatcher, the node as far as it matters here, and the workers."""

    def __init__(self) -> None:
        self.dispatcher = Dispatcher()
        self.exports = Exports(most=2)
        #: what remote functions that were called keep; None: there is none for these resources any more
        self.held: list[Queue | None] = [None] * KINDS
        #: number of each class there was -> what the node knows of our wishes
        self.wanted: dict[int, int] = {}
        self.functions = [Function(bytes([n]) * 16, f"f{n}", b"") for n in range(len(SECONDS))]
        self.next_task_id = TaskIds(OWNER)
        self.now = 0.0
        self.serial = 10
        self.tasks: dict[bytes, OwnedTask] = {}
        self.runs: dict[bytes, int] = {}
        self.workers = {worker.me: worker for worker in (self.new_worker() for _ in range(WORKERS))}
        self.to_node: deque[tuple[Any, ...]] = deque()
        self.from_node: deque[tuple[Any, ...]] = deque()
        self.next_lease = 0

    def new_worker(self) -> Worker:
        self.serial += 1
        return Worker(process_id(NodeId(b"node"), self.serial))

    def act(self) -> None:
        for effect in self.dispatcher.take_effects():
            if isinstance(effect, PushTasks):
                assert effect.tasks
                assert isinstance(effect.lease, HeldLease)
                assert effect.lease.id in self.dispatcher.leases
                for task in effect.tasks:
                    self.export(effect.lease, task.function)
                self.to_worker(effect.lease, "push", list(effect.tasks))
            elif isinstance(effect, Recall):
                self.to_worker(effect.lease, "recall", effect.lease.id)
            elif isinstance(effect, AskLeases):
                self.to_node.append(("wanted", effect.queue.class_id, effect.wanted))
            else:
                assert isinstance(effect, GiveBack)
                self.to_node.append(("back", effect.lease.worker, effect.lease.id))
        self.dispatcher.check()

    def export(self, lease: HeldLease, function: Function) -> None:
        self.exports.granted(lease.worker)
        if function.id not in self.exports.known[lease.worker]:
            forgotten = self.exports.sent(lease, function)
            assert len(self.exports.known[lease.worker]) <= max(2, 1 + len(lease.in_flight))
            if forgotten:
                self.to_worker(lease, "forget", forgotten)
            self.to_worker(lease, "export", function.id)

    def to_worker(self, lease: HeldLease, kind: str, content: Any) -> None:
        worker = self.workers.get(lease.worker)
        if worker is not None:  # else its death is not known here yet
            assert worker.lease == lease.id
            worker.to_come.append((kind, content))

    # -- what happens

    def queue(self, kind: int) -> Queue:
        """The queue of a kind of tasks, as a remote function that is called gets it."""
        held = self.held[kind]
        where = ("SPREAD",) if kind == SPREAD else None
        queue = self.dispatcher.queue_of(ResourceSet({"CPU": 10_000 * (kind + 1)}), None, where)
        assert held is None or queue is held
        self.held[kind] = queue
        return queue

    def submit(self, function: int, kind: int = 0, arguments: tuple[bytes, ...] = ()) -> OwnedTask:
        queue = self.queue(kind)
        if arguments:
            queue = self.dispatcher.queue_with(queue, arguments)
        task = OwnedTask(self.next_task_id(), self.functions[function], queue, OPTIONS, b"", None, (), [])
        self.tasks[task.id] = task
        self.runs[task.id] = 0
        self.dispatcher.task_queued(task, self.now)
        self.act()
        return task

    def node_hears(self) -> None:
        kind, who, what = self.to_node.popleft()
        if kind == "wanted":
            self.wanted[who] = what
            return
        worker = self.workers.get(who)
        if worker is not None and worker.lease == what:
            assert not worker.queue, "a lease goes back, and tasks wait in its worker"
            assert worker.current is None, "a lease goes back, and its worker runs a task"
            assert all(kind != "push" for kind, _ in worker.to_come)
            while worker.to_come:
                worker.take_in()
            worker.lease = None

    def grant(self, class_id: int) -> None:
        worker = next(worker for worker in self.workers.values() if worker.lease is None)
        self.wanted[class_id] -= 1
        self.next_lease += 1
        worker.lease = self.next_lease
        self.from_node.append(("granted", class_id, self.next_lease, worker.me))

    def lose_grant(self) -> None:
        """The node of a worker dies, with the word on its way that the owner has a lease of it."""
        at = self.grants_under_way[0]
        process = self.from_node[at][-1]
        self.from_node[at] = ("node died", process)
        del self.workers[process]
        replacement = self.new_worker()
        self.workers[replacement.me] = replacement

    @property
    def grants_under_way(self) -> list[int]:
        """Where among the mail of nodes there are grants of workers that live."""
        return [
            at for at, sent in enumerate(self.from_node) if sent[0] == "granted" and sent[-1] in self.workers
        ]

    @property
    def grantable(self) -> list[int]:
        """Classes of which the node could grant leases."""
        if all(worker.lease is not None for worker in self.workers.values()):
            return []
        return [class_id for class_id, wanted in self.wanted.items() if wanted > 0]

    def owner_hears_node(self) -> None:
        kind, *content = self.from_node.popleft()
        if kind == "granted":
            class_id, lease, process = content
            queue = self.dispatcher.queue_numbered(class_id)
            if queue is None:
                self.to_node.append(("back", process, lease))
            else:
                self.dispatcher.lease_granted(queue, lease, process, self.now)
        elif kind == "reclaim":
            self.dispatcher.lease_reclaimed(*content)
        elif kind == "node died":
            self.exports.died(content[0])
            self.dispatcher.node_died()
        else:
            process, running = content
            self.exports.died(process)
            for lease in [lease for lease in self.dispatcher.leases.values() if lease.worker == process]:
                for task in self.dispatcher.worker_lost(lease, running, lease.answered, self.now):
                    self.dispatcher.task_queued(task, self.now)
        self.act()

    def owner_hears_worker(self, worker: Worker) -> None:
        kind, content = worker.sent.popleft()
        if kind == "done":
            task, seconds = content
            if task.lease is None or task.lease.worker != worker.me:
                return  # it was given up
            assert task.lease.worker == worker.me
            self.dispatcher.task_done(task.lease, task, seconds, self.now)
            assert task.state == DONE
            del self.tasks[task.id]
        else:
            lease_id, tasks = content
            lease = self.dispatcher.leases.get(lease_id)
            if lease is not None:
                self.dispatcher.tasks_returned(
                    lease, [task for task in tasks if task.id in lease.in_flight], self.now
                )
        self.act()

    def begin(self, worker: Worker) -> None:
        task = worker.current = worker.queue.popleft()
        assert task.function.id in worker.functions, "it was to forget what it is to run"
        self.runs[task.id] += 1
        assert self.runs[task.id] == 1, f"{task} runs a second time"

    def finish(self, worker: Worker) -> None:
        task = worker.current
        assert task is not None
        worker.current = None
        seconds = SECONDS[self.functions.index(task.function)]
        self.now += seconds
        worker.sent.append(("done", (task, seconds)))

    def kill(self, worker: Worker) -> None:
        """A worker dies. All that it had sent arrives before the news."""
        running = b"" if worker.current is None else worker.current.id
        while worker.sent:
            self.owner_hears_worker(worker)
        if worker.current is not None:
            self.runs[worker.current.id] = 0  # it is tried again
        del self.workers[worker.me]
        self.from_node.append(("died", worker.me, running))
        replacement = self.new_worker()
        self.workers[replacement.me] = replacement

    def tick(self) -> None:
        """Time passes up to what the dispatcher said."""
        due = self.dispatcher.next_tick()
        if due is not None:
            self.now = max(self.now, due) + 1e-9
            self.dispatcher.tick(self.now)
            self.act()
            again = self.dispatcher.next_tick()
            assert again is None or again > self.now, "it would be woken again and again"

    # -- the end

    def run_to_the_end(self) -> None:
        """Everybody does what there is to do, until nothing is left."""
        for _ in range(20 + 20 * len(self.tasks)):
            for worker in list(self.workers.values()):
                while worker.to_come:
                    worker.take_in()
                if worker.current is None and worker.queue:
                    self.begin(worker)
                if worker.current is not None:
                    self.finish(worker)
                while worker.sent:
                    self.owner_hears_worker(worker)
            while self.to_node:
                self.node_hears()
            while classes := self.grantable:
                self.grant(classes[0])
            while self.from_node:
                self.owner_hears_node()
            if not self.tasks and self.dispatcher.next_tick() is None:
                return
            self.tick()
        raise AssertionError(
            f"these tasks never end: {list(self.tasks.values())}; leases: {self.dispatcher.leases}"
        )


class DispatchModel(RuleBasedStateMachine):
    """Submitting, granting, reclaiming, recalling, returning, dying, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.owner = Owner()

    def worker(self, number: int) -> Worker:
        return list(self.owner.workers.values())[number % WORKERS]

    numbers = st.integers(0, WORKERS - 1)

    @rule(
        function=st.integers(0, len(SECONDS) - 1),
        kind=st.integers(0, KINDS - 1),
        count=st.sampled_from([1, 1, 1, 3, 20]),
        arguments=st.sampled_from([(), (), (b"one",), (b"one", b"two")]),
    )
    def submit(self, function: int, kind: int, count: int, arguments: tuple[bytes, ...]) -> None:
        for _ in range(count):
            self.owner.submit(function, kind, arguments)

    @rule(kind=st.integers(0, KINDS - 1))
    def forget_functions(self, kind: int) -> None:
        """Nobody has a remote function any more that asks for these resources."""
        self.owner.held[kind] = None

    @precondition(lambda self: self.owner.to_node)
    @rule()
    def node_hears(self) -> None:
        self.owner.node_hears()

    @precondition(lambda self: self.owner.grantable)
    @rule(pick=st.integers(0, 1))
    def grant(self, pick: int) -> None:
        classes = self.owner.grantable
        self.owner.grant(classes[pick % len(classes)])

    @precondition(lambda self: self.owner.from_node)
    @rule()
    def owner_hears_node(self) -> None:
        self.owner.owner_hears_node()

    @rule(number=numbers)
    def worker_takes_in(self, number: int) -> None:
        worker = self.worker(number)
        if worker.to_come:
            worker.take_in()

    @rule(number=numbers, tasks=st.integers(1, 8))
    def worker_runs(self, number: int, tasks: int) -> None:
        worker = self.worker(number)
        while worker.queue and tasks:
            if worker.current is None:
                self.owner.begin(worker)
            self.owner.finish(worker)
            tasks -= 1

    @rule(number=numbers)
    def worker_begins(self, number: int) -> None:
        worker = self.worker(number)
        if worker.current is None and worker.queue:
            self.owner.begin(worker)

    @rule(number=numbers)
    def worker_finishes(self, number: int) -> None:
        worker = self.worker(number)
        if worker.current is not None:
            self.owner.finish(worker)

    @rule(number=numbers)
    def worker_blocks(self, number: int) -> None:
        """Its task waits for an object: what is behind it goes back unasked."""
        worker = self.worker(number)
        if worker.current is not None and worker.lease is not None:
            worker.give_back(worker.lease)

    @rule(number=numbers, messages=st.integers(1, 10))
    def owner_hears_worker(self, number: int, messages: int) -> None:
        worker = self.worker(number)
        while worker.sent and messages:
            self.owner.owner_hears_worker(worker)
            messages -= 1

    @rule(number=numbers)
    def reclaim(self, number: int) -> None:
        """Others wait for this lease; it may be news from the past."""
        worker = self.worker(number)
        self.owner.from_node.append(("reclaim", worker.lease or 1))

    @rule(number=numbers)
    def worker_dies(self, number: int) -> None:
        self.owner.kill(self.worker(number))

    @precondition(lambda self: self.owner.grants_under_way)
    @rule()
    def node_dies(self) -> None:
        self.owner.lose_grant()

    @rule()
    def tick(self) -> None:
        self.owner.tick()

    @rule(seconds=st.sampled_from([0.0001, BUDGET, LINGER, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.owner.now += seconds
        self.owner.dispatcher.tick(self.owner.now)
        self.owner.act()

    @invariant()
    def nothing_waits_beside_an_idle_lease(self) -> None:
        dispatcher = self.owner.dispatcher
        dispatcher.check()
        for queue in dispatcher.queues.values():
            assert not (queue.tasks and any(not lease.in_flight for lease in queue.leases))
        places = [task.id for queue in dispatcher.queues.values() for task in queue.tasks]
        places += [task_id for lease in dispatcher.leases.values() for task_id in lease.in_flight]
        assert sorted(places) == sorted(self.owner.tasks)
        assert all(len(lease.in_flight) <= MAX_IN_FLIGHT for lease in dispatcher.leases.values())

    @invariant()
    def there_are_the_queues_that_somebody_uses(self) -> None:
        owner = self.owner
        used = {queue.class_id for queue in owner.held if queue is not None}
        for place in (*owner.tasks.values(), *owner.dispatcher.leases.values()):
            assert isinstance(place.queue, Queue)
            used.add(place.queue.class_id)
            if place.queue.parent is not None:
                used.add(place.queue.parent.class_id)
        assert {queue.class_id for queue in owner.dispatcher.queues.values()} == used

    def teardown(self) -> None:
        owner = self.owner
        owner.run_to_the_end()
        assert all(runs == 1 for runs in owner.runs.values())
        assert not owner.dispatcher.leases
        while owner.to_node:
            owner.node_hears()
        assert not any(owner.wanted.values()), "nothing waits, and the node goes on granting"
        owner.held = [None] * KINDS
        assert not owner.dispatcher.queues, "nobody uses them"
        assert all(worker.lease is None for worker in owner.workers.values())


# -------------------------------------------------------------------------------------------------- by example


def busy_owner(seconds: float, tasks: int) -> tuple[Owner, HeldLease]:
    """An owner with one lease, whose function is known to take `seconds`, and `tasks` tasks of it pushed."""
    owner = Owner()
    owner.submit(0)
    lease = owner.dispatcher.lease_granted(owner.queue(0), 1, ProcessId(b"unknown."), 0.0)
    owner.dispatcher.task_done(lease, next(iter(lease.in_flight.values())), seconds, 0.0)
    for _ in range(tasks):
        owner.submit(0)
    owner.dispatcher.take_effects()
    return owner, lease


def test_short_tasks_share_a_pipeline_and_long_ones_travel_alone() -> None:
    _, lease = busy_owner(BUDGET / 10, 20)
    assert 5 <= len(lease.in_flight) <= 10
    _, lease = busy_owner(BUDGET * 2, 20)
    assert len(lease.in_flight) == 1


def test_tasks_that_take_no_time_at_all_are_asked_a_lease_for() -> None:
    """A coarse clock may measure 0 s."""
    owner, lease = busy_owner(0.0, 5)
    owner.dispatcher.worker_lost(lease, b"", lease.answered, 1.0)
    assert len(owner.queue(0).tasks) == 5
    assert owner.dispatcher.take_effects() == [AskLeases(owner.queue(0), 1)]


def test_what_waits_behind_a_task_that_overruns_is_recalled_when_next_tick_says() -> None:
    owner, lease = busy_owner(BUDGET / 10, 5)
    assert len(lease.in_flight) == 5
    due = owner.dispatcher.next_tick()
    assert due is not None
    assert due <= 3 * BUDGET
    owner.dispatcher.tick(due - BUDGET / 100)
    assert not owner.dispatcher.take_effects()
    owner.dispatcher.tick(due)
    assert owner.dispatcher.take_effects() == [Recall(lease)]
    owner.dispatcher.tick(due + 1)
    assert not owner.dispatcher.take_effects(), "asked once, it is not asked again"


def test_a_task_that_was_given_back_goes_to_an_idle_lease() -> None:
    owner, lease = busy_owner(BUDGET / 10, 3)
    head, *rest = lease.in_flight.values()
    owner.dispatcher.tasks_returned(lease, rest, 1.0)
    other = owner.dispatcher.lease_granted(owner.queue(0), 2, ProcessId(b"another."), 1.0)
    assert list(lease.in_flight.values()) == [head]
    assert list(other.in_flight.values()) == rest
    owner.dispatcher.check()


def test_an_idle_lease_goes_back_after_a_while_and_a_reclaimed_one_at_once() -> None:
    owner, lease = busy_owner(BUDGET / 10, 0)
    assert owner.dispatcher.next_tick() == LINGER
    owner.dispatcher.tick(LINGER)
    assert owner.dispatcher.take_effects() == [GiveBack(lease)]
    owner, lease = busy_owner(BUDGET / 10, 0)
    owner.dispatcher.lease_reclaimed(lease.id)
    assert owner.dispatcher.take_effects() == [GiveBack(lease)]


def test_tasks_that_were_in_flight_when_a_worker_died_travel_alone() -> None:
    owner, lease = busy_owner(BUDGET / 10, 4)
    first, second, *unbegun = lease.in_flight.values()
    begun = owner.dispatcher.worker_lost(lease, second.id, lease.answered + 1, 1.0)
    assert begun == [second], "the first was answered: that may be on its way"
    assert list(owner.queue(0).tasks) == unbegun
    owner.dispatcher.take_effects()
    owner.dispatcher.tick(1.0 + LATE)
    assert LoseTasks(lease, [first]) in owner.dispatcher.take_effects()
    for task in (first, second):
        task.blamed = True
        owner.dispatcher.task_queued(task, 1.0)
    other = owner.dispatcher.lease_granted(owner.queue(0), 2, ProcessId(b"another."), 1.0)
    assert list(other.in_flight.values()) == unbegun, (
        "a task that may have killed a worker waits until it can go alone"
    )
    owner.dispatcher.check()


def test_tasks_end_where_no_worker_can_be_started() -> None:
    owner = Owner()
    tasks = [owner.submit(0) for _ in range(3)]
    assert owner.dispatcher.leases_failed(owner.queue(0)) == tasks
    owner.dispatcher.check()
    assert not owner.queue(0).told
    again = owner.submit(0)
    assert owner.to_node[-1] == ("wanted", owner.queue(0).class_id, 1), "whoever comes later asks again"
    assert list(owner.queue(0).tasks) == [again]


def test_a_grant_that_died_with_its_node_is_asked_for_again() -> None:
    """Those who asked that node may have heard from it that the lease is granted, and the owner has not."""
    owner = Owner()
    owner.submit(0)
    owner.node_hears()
    owner.grant(owner.queue(0).class_id)
    owner.lose_grant()
    assert not owner.grantable
    owner.owner_hears_node()
    assert owner.to_node[-1] == ("wanted", owner.queue(0).class_id, 1)


DispatchModel.TestCase.settings = settings(max_examples=examples(150), stateful_step_count=50, deadline=None)
TestDispatchModel = DispatchModel.TestCase


def test_a_lease_for_tasks_that_are_spread_goes_back_as_soon_as_none_waits() -> None:
    """The next one is to run on another node. While some wait, it serves them."""
    owner = Owner()
    for _ in range(2):
        owner.submit(3, SPREAD)
    lease = owner.dispatcher.lease_granted(owner.queue(SPREAD), 1, ProcessId(b"unknown."), owner.now)
    for _ in range(2):
        assert lease.id in owner.dispatcher.leases
        (task,) = lease.in_flight.values()
        owner.dispatcher.task_done(lease, task, 1.0, owner.now)
        owner.dispatcher.check()
    assert not owner.dispatcher.leases
