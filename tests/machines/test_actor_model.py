"""Actors from registration to death, and the calls to them, with messages in any order that links allow.

The node's directory and the callers' lines are the real machines. The model is the world around them: processes that
run what was pushed to them in order, links that deliver in order each and in any order together, deaths at any moment.
What is checked is what a program relies on: a call ends once; it runs no more often than its retries allow; calls of
one caller run in order in each life; an actor has one life at a time; a name is never that of one bound to end;
an actor that nobody holds ends, and does not start again; whoever asks about a dead one is told so.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from budgets import examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from skate.core.actors import (
    ALIVE,
    CAUSES_REMEMBERED,
    DEAD,
    ActorDirectory,
    Become,
    EndGently,
    FreeName,
    KillProcess,
    Place,
    Tell,
    Unplace,
    killed_by,
)
from skate.core.calls import ActorLine, Calls, FailCalls, LoseCalls, PushTasks, WatchActor
from skate.core.dispatch import LATE
from skate.core.methods import method_id
from skate.core.names import NameTable
from skate.core.tasks import Function, OwnedTask
from skate.ids import ActorId, NodeId, ProcessId, TaskId, process_id
from skate.options import TaskOptions

NODE = NodeId(b"node")
CALLERS = [process_id(NODE, number) for number in (1, 2)]
METHOD = Function(method_id("f", ""), "A.f", None)


class Process:
    """An actor's process: runs what is pushed to it, one call after the other."""

    def __init__(self, actor: ActorId) -> None:
        self.actor = actor
        self.queue: deque[tuple[ProcessId, bytes]] = deque()
        self.running = b""
        self.ran: list[tuple[ProcessId, bytes]] = []
        self.ending = False


class Caller:
    """A process with handles."""

    def __init__(self, me: ProcessId) -> None:
        self.me = me
        self.calls = Calls()
        self.lines: dict[ActorId, ActorLine] = {}
        self.tasks: dict[bytes, OwnedTask] = {}
        self.serial = 0


class World(RuleBasedStateMachine):
    """Directory, callers, processes, links."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.directory = ActorDirectory()
        self.names = NameTable()
        self.callers = {me: Caller(me) for me in CALLERS}
        self.serial = 100
        self.actors: list[ActorId] = []
        self.retries: dict[ActorId, int] = {}
        self.released: set[ActorId] = set()
        #: those whose constructors have been run
        self.began: set[ActorId] = set()
        self.placing: list[ActorId] = []
        self.starting: dict[ProcessId, ActorId] = {}
        self.processes: dict[ProcessId, Process] = {}
        #: (from, to) -> messages under way
        self.links: dict[tuple[bytes, bytes], deque[Any]] = {}
        self.runs: dict[bytes, int] = {}
        self.attempts: dict[bytes, int] = {}
        self.ended: dict[bytes, str] = {}
        #: calls with an argument that has not come; also of those that have ended meanwhile
        self.unready: list[tuple[Caller, OwnedTask]] = []

    # ------------------------------------------------------------------------------------------------ effects

    def send(self, sender: bytes, to: bytes, message: Any) -> None:
        self.links.setdefault((sender, to), deque()).append(message)

    def act(self) -> None:
        """Carries out what the machines decided."""
        while effects := self.directory.take_effects():
            for effect in effects:
                getattr(self, f"do_{type(effect).__name__}")(effect)
        for caller in self.callers.values():
            while effects := caller.calls.take_effects():
                for effect in effects:
                    getattr(self, f"do_{type(effect).__name__}")(caller, effect)

    def do_Place(self, effect: Place) -> None:
        assert effect.actor.spec is not None
        assert effect.actor.id not in self.placing, "placed twice at once"
        self.placing.append(effect.actor.id)

    def do_Unplace(self, effect: Unplace) -> None:
        if effect.actor.id in self.placing:
            self.placing.remove(effect.actor.id)

    def do_Become(self, effect: Become) -> None:
        actor = effect.actor
        assert actor.worker is not None
        living = [process for process in self.processes.values() if process.actor == actor.id]
        assert not living, "two lives at once"
        self.processes[actor.worker] = Process(actor.id)
        self.starting[actor.worker] = actor.id
        self.began.add(actor.id)

    def do_EndGently(self, effect: EndGently) -> None:
        assert effect.actor.worker is not None
        self.processes[effect.actor.worker].ending = True

    def do_KillProcess(self, effect: KillProcess) -> None:
        if effect.worker in self.processes:
            self.lose(effect.worker)

    def do_Tell(self, effect: Tell) -> None:
        actor = effect.actor
        worker = actor.worker if actor.state == ALIVE else None
        for watcher in effect.watchers:
            self.send(NODE, watcher, (actor.id, actor.state, worker, actor.cause))

    def do_FreeName(self, effect: FreeName) -> None:
        self.names.ended(effect.actor.id)

    def do_PushTasks(self, caller: Caller, effect: PushTasks) -> None:
        for task in effect.tasks:
            self.attempts[task.id] = self.attempts.get(task.id, 0) + 1
            self.send(caller.me, effect.lease.worker, task.id)

    def do_WatchActor(self, caller: Caller, effect: WatchActor) -> None:
        self.send(caller.me, NODE, effect.line.actor)

    def do_FailCalls(self, caller: Caller, effect: FailCalls) -> None:
        for task in effect.calls:
            self.end(caller, task, "failed")

    def do_LoseCalls(self, caller: Caller, effect: LoseCalls) -> None:
        again = []
        for task in effect.calls:
            if effect.line.state != DEAD and task.may_retry():
                again.append(task)
            else:
                self.end(caller, task, "failed")
        caller.calls.calls_again(effect.line, again)

    def names_of(self, actor: ActorId) -> list[tuple[str, str]]:
        found = [(key, self.names.find(key[1], key[0])) for key in self.names.listing()]
        return [key for key, named in found if named is not None and named.id == actor]

    def end(self, caller: Caller, task: OwnedTask, how: str) -> None:
        assert task.id not in self.ended, "a call ended twice"
        self.ended[task.id] = how
        del caller.tasks[task.id]

    def lose(self, worker: ProcessId) -> None:
        """A process ends, at once. What it has sent still arrives; what was sent to it does not."""
        del self.processes[worker]
        self.starting.pop(worker, None)
        for me in (
            CALLERS
        ):  # what it had answered and has not arrived: passed on, or, of a long answer, that it comes
            for number, task_id in enumerate(self.links.get((worker, me), ())):
                self.send(NODE, me, ("answered" if number % 2 else "coming", worker, task_id))
        for sender, to in list(self.links):
            if to == worker:
                del self.links[sender, to]
        self.directory.process_left(worker, {"exit_status": -9})

    # -------------------------------------------------------------------------------------------------- making

    @rule(
        restarts=st.integers(-1, 2),
        retries=st.integers(0, 2),
        name=st.sampled_from(["", "a", "b"]),
        later=st.booleans(),
        early=st.sampled_from(["", "", "watch", "kill"]),
    )
    def make(self, restarts: int, retries: int, name: str, later: bool, early: str) -> None:
        """`early`: somebody who has a handle is faster than the registration."""
        if len(self.actors) >= 4:
            return
        owner = self.callers[CALLERS[0]]
        owner.serial += 1
        actor = ActorId(TaskId(owner.me + owner.serial.to_bytes(8, "big")))
        if name:
            self.directory.expected(actor)
            other = self.names.claimed(actor, name, "ns", None)
            if other is not None:
                assert other.id not in self.released, "a name is that of an actor which nobody holds"
                self.directory.refused(actor)
                assert actor not in self.directory.actors
                self.act()
                return
        self.actors.append(actor)
        self.retries[actor] = retries
        line = owner.calls.line_of(actor)
        owner.lines[actor] = line
        line.state, line.watched = 1, True
        if early == "watch":
            self.directory.watched(actor, CALLERS[1], owner_lives=True)
        elif early == "kill":
            self.directory.killed(actor, True, "test", owner_lives=True)
        self.directory.registered(actor, name, "ns", False, None)
        self.directory.described(actor, {"spec": 1}, restarts)
        if not later:  # else with what happens next
            self.act()

    @precondition(lambda self: self.placing)
    @rule(data=st.data())
    def place(self, data: Any) -> None:
        actor = data.draw(st.sampled_from(self.placing))
        self.placing.remove(actor)
        self.serial += 1
        self.directory.placed(actor, process_id(NODE, self.serial))
        self.act()

    @precondition(lambda self: self.placing)
    @rule(data=st.data())
    def cannot_place(self, data: Any) -> None:
        actor = data.draw(st.sampled_from(self.placing))
        self.directory.unplaceable(actor, "no process")
        self.act()

    @precondition(lambda self: self.starting)
    @rule(data=st.data(), fails=st.sampled_from([False, False, False, True]))
    def start(self, data: Any, fails: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(self.starting)))
        del self.starting[worker]
        self.directory.started(worker, b"error" if fails else b"")
        self.act()

    # ------------------------------------------------------------------------------------------------- calling

    @precondition(lambda self: set(self.actors) - self.released)
    @rule(
        data=st.data(),
        who=st.sampled_from(CALLERS),
        arguments=st.sampled_from(["there", "to come", "failed"]),
    )
    def submit(self, data: Any, who: ProcessId, arguments: str) -> None:
        """An argument may have failed before the call is made: it ends before what the line decides is carried out."""
        actor = data.draw(st.sampled_from(sorted(set(self.actors) - self.released)))
        caller = self.callers[who]
        line = caller.calls.line_of(actor)
        caller.lines[actor] = line
        caller.serial += 1
        options = TaskOptions(max_retries=self.retries[actor])
        task = OwnedTask(
            TaskId(who + (1000 + caller.serial).to_bytes(8, "big")), METHOD, line, options, b"", None, (), []
        )
        caller.tasks[task.id] = task
        life = caller.calls.call_submitted(line, task, arguments == "there")
        if life is not None:
            self.do_PushTasks(caller, PushTasks(life, [task]))
        if arguments == "failed":
            self.withdraw(caller, task)
        elif arguments == "to come":
            self.unready.append((caller, task))
        self.act()

    def withdraw(self, caller: Caller, task: OwnedTask) -> None:
        if caller.calls.call_withdrawn(task.queue, task):  # type: ignore[arg-type]
            self.end(caller, task, "withdrawn")

    @precondition(lambda self: self.unready)
    @rule(data=st.data(), withdraw=st.booleans(), at_once=st.booleans())
    def argument_comes(self, data: Any, withdraw: bool, at_once: bool) -> None:
        """Or fails, perhaps while it is being carried out that its actor is dead."""
        caller, task = data.draw(st.sampled_from(self.unready))
        self.unready.remove((caller, task))
        if withdraw and not at_once and task.id not in self.ended:
            caller.calls.actor_state(task.queue.actor, DEAD, None, killed_by("test"), self.now)  # type: ignore[union-attr]
            self.directory.killed(task.queue.actor, True, "test", owner_lives=True)  # type: ignore[union-attr]
        if withdraw:
            self.withdraw(caller, task)
        else:
            caller.calls.call_ready(task.queue, task)
        self.act()

    @precondition(lambda self: any(self.links.values()))
    @rule(data=st.data())
    def deliver(self, data: Any) -> None:
        sender, to = data.draw(st.sampled_from(sorted(key for key, queue in self.links.items() if queue)))
        self.deliver_one(sender, to)

    def deliver_one(self, sender: bytes, to: bytes) -> None:
        message = self.links[sender, to].popleft()
        if to == NODE:
            self.directory.watched(message, ProcessId(sender), owner_lives=True)
        elif sender == NODE and isinstance(message[0], str):
            word, worker, task_id = message
            task = self.callers[ProcessId(to)].tasks.get(task_id)
            if task is not None and task.lease is not None and task.lease.worker == worker:
                task.lease.closes()
                if word == "coming":
                    task.lease.coming.add(task_id)  # type: ignore[union-attr]
                else:
                    self.answered(self.callers[ProcessId(to)], worker, task_id)
        elif sender == NODE:
            actor, state, worker, cause = message
            self.callers[to].calls.actor_state(actor, state, worker, cause, self.now)  # type: ignore[index]
        elif to in self.callers:
            self.answered(self.callers[ProcessId(to)], sender, message)
        elif to in self.processes:  # else it has died meanwhile
            self.processes[ProcessId(to)].queue.append((ProcessId(sender), message))
        self.act()

    def answered(self, caller: Caller, worker: bytes, task_id: bytes) -> None:
        task = caller.tasks.get(task_id)
        if task is not None and task.lease is not None and task.lease.worker == worker:
            caller.calls.call_done(task.lease, task)  # type: ignore[arg-type]
            self.end(caller, task, "answered")

    def able(self) -> list[ProcessId]:
        return sorted(
            worker
            for worker, process in self.processes.items()
            if (process.queue or process.running) and worker not in self.starting
        )

    @precondition(lambda self: self.able())
    @rule(data=st.data())
    def run(self, data: Any) -> None:
        self.run_one(data.draw(st.sampled_from(self.able())))

    def run_one(self, worker: ProcessId) -> None:
        """Begins the next call, or answers the one that runs."""
        process = self.processes[worker]
        if process.running:
            who, task_id = process.ran[-1]
            process.running = b""
            self.send(worker, who, task_id)
            return
        who, task_id = process.queue.popleft()
        process.running = task_id
        process.ran.append((who, task_id))
        self.runs[task_id] = self.runs.get(task_id, 0) + 1
        mine = [
            other
            for caller, other in process.ran
            if caller == who and self.attempts[other] == 1 and self.runs[other] == 1
        ]
        assert mine == sorted(mine), "calls of one caller out of order"

    # --------------------------------------------------------------------------------------------------- ending

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def crash(self, data: Any) -> None:
        self.lose(data.draw(st.sampled_from(sorted(self.processes))))
        self.act()

    @precondition(lambda self: self.actors)
    @rule(data=st.data(), no_restart=st.booleans(), by_caller=st.booleans())
    def kill(self, data: Any, no_restart: bool, by_caller: bool) -> None:
        actor = data.draw(st.sampled_from(self.actors))
        if by_caller and no_restart:
            cause = killed_by("test")
            self.callers[CALLERS[0]].calls.actor_state(actor, DEAD, None, cause, self.now)
        self.directory.killed(actor, no_restart, "test", owner_lives=True)
        self.act()

    @rule(data=st.data(), kills=st.booleans())
    @precondition(lambda self: self.released)
    def ask_about_the_dead(self, data: Any, kills: bool) -> None:
        """Through a handle that does not count. Nothing need be remembered of it."""
        actor = data.draw(st.sampled_from(sorted(self.released)))
        if actor in self.directory.actors:
            return  # its process has yet to end
        self.act()
        if kills:
            self.directory.killed(actor, True, "test", owner_lives=True)
        self.directory.watched(actor, CALLERS[1], owner_lives=True)
        (told,) = self.directory.take_effects()
        assert type(told) is Tell
        assert (told.actor.state, told.watchers) == (DEAD, (CALLERS[1],))
        assert actor not in self.directory.actors

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        worker = data.draw(st.sampled_from(sorted(self.processes)))
        self.directory.leaves(worker, "it wanted to")
        self.lose(worker)
        self.act()

    @precondition(lambda self: set(self.actors) - self.released)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        """Nobody holds a handle: no caller has anything pending, for that would hold one."""
        actor = data.draw(st.sampled_from(sorted(set(self.actors) - self.released)))
        pending = [
            task
            for caller in self.callers.values()
            for task in caller.tasks.values()
            if task.queue.actor == actor  # type: ignore[union-attr]
        ]
        if pending:
            return
        self.released.add(actor)
        self.directory.released(actor)
        self.act()
        assert actor not in self.directory.named, "a name is kept by an actor which nobody holds"

    @precondition(lambda self: any(process.ending for process in self.processes.values()))
    @rule(data=st.data())
    def end_gently(self, data: Any) -> None:
        """A process ends that was told to. (It may crash before, or be killed.)"""
        ending = [worker for worker, process in self.processes.items() if process.ending]
        worker = data.draw(st.sampled_from(sorted(ending)))
        process = self.processes[worker]
        assert not process.running
        assert not process.queue
        self.lose(worker)
        self.act()

    @rule(seconds=st.sampled_from([0.01, LATE]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for caller in self.callers.values():
            caller.calls.tick(self.now)
        self.act()

    # --------------------------------------------------------------------------------------------------- checks

    @invariant()
    def machines_hold(self) -> None:
        self.directory.check()
        for caller in self.callers.values():
            caller.calls.check()

    @invariant()
    def the_released_end(self) -> None:
        """One that nobody holds is known until its constructor has been run, and for as long as its process runs. It
        does not start again."""
        for actor in self.released:
            assert actor not in self.placing or actor not in self.began, "one that nobody holds starts again"
            housed = {process.actor for process in self.processes.values()}
            waits = actor in self.placing or actor not in self.began
            assert waits or actor in housed or actor not in self.directory.actors

    @invariant()
    def no_call_runs_too_often(self) -> None:
        for caller in self.callers.values():
            for task in caller.tasks.values():
                allowed = 1 + self.retries[task.queue.actor]  # type: ignore[union-attr]
                assert self.runs.get(task.id, 0) <= allowed

    def teardown(self) -> None:
        """When nothing new happens, every call ends."""
        for _ in range(10_000):
            for caller, task in self.unready:
                caller.calls.call_ready(task.queue, task)
            self.unready.clear()
            self.act()
            busy = [key for key, queue in self.links.items() if queue]
            if busy:
                self.deliver_one(*busy[0])
            elif self.placing:
                self.serial += 1
                self.directory.placed(self.placing.pop(0), process_id(NODE, self.serial))
                self.act()
            elif self.starting:
                worker, _ = self.starting.popitem()
                self.directory.started(worker, b"")
                self.act()
            elif self.able():
                self.run_one(self.able()[0])
            elif ending := [worker for worker, process in self.processes.items() if process.ending]:
                self.lose(ending[0])
                self.act()
            elif any(caller.calls.next_tick() is not None for caller in self.callers.values()):
                self.now += LATE
                for caller in self.callers.values():
                    caller.calls.tick(self.now)
                self.act()
            else:
                break
        left = [task for caller in self.callers.values() for task in caller.tasks.values()]
        assert not left, f"calls that never end: {left}"
        assert not self.released.intersection(self.directory.actors), "a released actor is remembered"
        assert {actor for actor in self.actors if self.names_of(actor)} == set(self.directory.named)
        self.machines_hold()


TestActors = World.TestCase
TestActors.settings = settings(max_examples=examples(200), stateful_step_count=60, deadline=None)


def test_a_name_is_free_again_after_the_actor_s_death() -> None:
    directory = ActorDirectory()
    first, second = (ActorId(TaskId(CALLERS[0] + bytes(7) + bytes([n]))) for n in (1, 2))
    for actor in (first, second):
        directory.registered(actor, "a", "ns", False, None)
    directory.killed(first, True, "test", owner_lives=True)
    directory.take_effects()
    directory.killed(first, True, "test", owner_lives=True)
    assert not directory.take_effects(), "an actor dies twice"
    directory.killed(second, True, "test", owner_lives=True)
    freed = [effect.actor.id for effect in directory.take_effects() if type(effect) is FreeName]
    assert freed == [second]


def test_what_is_known_of_the_dead_does_not_grow() -> None:
    """Whatever ends them, while their owner lives, and whether or not it ever lets go of its handles: for those that it
    has let go of nothing is left but the causes of the last ones. Who asks about any is told that it is dead."""
    directory = ActorDirectory()
    actors = [
        ActorId(TaskId(CALLERS[0] + number.to_bytes(8, "big")))
        for number in range(1, CAUSES_REMEMBERED + 500)
    ]
    for number, actor in enumerate(actors):
        worker = process_id(NODE, 1_000 + number)
        directory.registered(actor, f"name {number}", "ns", number % 7 == 0, None)
        directory.described(actor, {"spec": 1}, -1)
        directory.placed(actor, worker)
        if number % 3:
            directory.started(worker, b"")
        if number % 5 < 2 or number % 7 == 0:
            directory.killed(actor, True, "test", owner_lives=True)
        directory.released(actor)
        directory.killed(actor, False, "test", owner_lives=True)
        directory.process_left(worker, {"exit_status": -9})
        directory.take_effects()
        directory.check()
    sizes = {name: len(table) for name, table in vars(directory).items()}
    assert max(sizes.values()) <= CAUSES_REMEMBERED, sizes
    assert len(directory.actors) == 0
    for actor in (actors[0], actors[-1]):
        directory.watched(actor, CALLERS[1], owner_lives=True)
        (told,) = directory.take_effects()
        assert type(told) is Tell
        assert told.actor.state == DEAD
    assert told.actor.cause is not None
    assert told.actor.cause["kind"] in ("killed", "released")


def test_a_kill_that_comes_before_the_registration_counts() -> None:
    directory = ActorDirectory()
    actor = ActorId(TaskId(CALLERS[0] + bytes(7) + b"\1"))
    directory.killed(actor, True, "test", owner_lives=True)
    directory.registered(actor, "a", "ns", False, None)
    effects = directory.take_effects()
    assert [effect.watchers for effect in effects if type(effect) is Tell] == [(CALLERS[0],)]
    assert [effect.actor.id for effect in effects if type(effect) is FreeName] == [actor]
    assert not [effect for effect in effects if type(effect) is Place]


def test_who_asks_early_is_told_when_the_registration_comes() -> None:
    directory = ActorDirectory()
    actor = ActorId(TaskId(CALLERS[0] + bytes(8)))
    directory.watched(actor, CALLERS[1], owner_lives=True)
    directory.registered(actor, "", "ns", False, None)
    directory.take_effects()
    directory.described(actor, {"spec": 1}, 0)
    worker = process_id(NODE, 9)
    directory.placed(actor, worker)
    directory.started(worker, b"")
    told = [effect for effect in directory.take_effects() if type(effect) is Tell]
    assert CALLERS[1] in told[-1].watchers
    assert told[-1].actor.state == ALIVE


def test_an_actor_ends_with_its_owner_and_a_detached_one_does_not() -> None:
    directory = ActorDirectory()
    actors = [ActorId(TaskId(CALLERS[0] + bytes(7) + bytes([n]))) for n in (1, 2)]
    directory.registered(actors[0], "", "ns", False, None)
    directory.registered(actors[1], "kept", "ns", True, None)
    directory.process_left(CALLERS[0], None)
    assert list(directory.actors) == [actors[1]]
    directory.watched(actors[0], CALLERS[1], owner_lives=False)
    (told,) = [e for e in directory.take_effects() if type(e) is Tell and e.watchers == (CALLERS[1],)]
    assert told.actor.state == DEAD
    assert told.actor.cause is not None
    assert told.actor.cause["kind"] == "owner"
