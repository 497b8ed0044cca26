"""References of several processes under any order of messages: never freed while held, always freed afterwards.

The model is a world of processes, each with its References, joined by links that keep the order of what one process
sends another, and of nothing else. What a process does with its References is what runtime.objects,
runtime.submission and worker.executor do, without values: a value is the list of the ids of the refs inside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from budgets import examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from skate._c import refs
from skate._c.refs import FAILED, INLINE, PENDING, Guard, ObjectEntry, ObjectRef, TaskIds, Waiter
from skate.core.references import (
    AskEcho,
    AskSettled,
    FreeValue,
    References,
    Speak,
    TellBorrower,
    TellClaim,
    TellRelease,
)
from skate.core.settling import AskToSpeak, Settling
from skate.ids import NodeId, ProcessId, TaskId, object_id, owner_of, process_id

NODE = NodeId(b"node")
PROCESSES = 4

Message = tuple[Any, ...]


def ids_in(message: Any) -> Iterator[bytes]:
    """The object ids that a message names, however deep."""
    if isinstance(message, bytes) and len(message) == 20:
        yield message
    elif isinstance(message, (tuple, list)):
        for part in message:
            yield from ids_in(part)


class Task:
    """A task on its way: its owner's record of it, and what its worker is sent."""

    def __init__(
        self,
        worker: Process,
        nested: list[ObjectEntry],
        dependencies: list[ObjectEntry],
        result: ObjectEntry,
        retries: int,
    ) -> None:
        self.worker = worker
        self.nested = nested
        self.dependencies = dependencies
        self.result = result
        #: errors after which it is tried again
        self.retries = retries


class Running:
    """A task in its worker: the guards of its arguments, and the refs that its frame holds."""

    def __init__(self, owner: ProcessId, result: bytes) -> None:
        self.owner = owner
        self.result = result
        self.guards: list[Guard] = [Guard(owner)]
        self.locals: list[ObjectRef] = []


class Process:
    """One process: what runtime.Runtime, Objects, Submission and Executor do with References."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.me = process_id(NODE, number)
        self.references = References(self.me, self)
        self.next_task_id = TaskIds(self.me)
        self.alive = True
        #: refs that the program keeps: globals, attributes, what its main module holds
        self.kept: list[ObjectRef] = []
        #: refs in closures of functions that it exported: it keeps them for good
        self.captured: list[ObjectRef] = []
        self.tasks: dict[bytes, Task] = {}
        self.running: Running | None = None
        self.inbox_of_tasks: deque[Message] = deque()
        self.dropped: deque[ObjectEntry] = deque()

    # -- what every step begins and ends with

    def __enter__(self) -> Process:
        refs.set_home(self, self.references.entries, self.me)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        refs.set_home(None, {}, b"")

    def on_dropped(self, entry: ObjectEntry) -> None:
        self.dropped.append(entry)

    def release(self) -> None:
        while self.dropped:
            entry = self.dropped.popleft()
            if not entry.held:
                self.references.on_dropped(entry)
        self.act()

    def act(self) -> None:
        for effect in self.references.take_effects():
            if type(effect) is FreeValue:
                self.world.freed(effect.entry.id)
            elif type(effect) is TellBorrower:
                self.send(effect.to, "borrower_added", effect.object, effect.borrower, effect.container)
            elif type(effect) is TellClaim:
                self.send(effect.to, "borrow_claimed", effect.object, effect.owed, effect.gone)
            elif type(effect) is AskEcho:
                self.send(effect.to, "echo")
            elif type(effect) is AskSettled:
                self.send(ProcessId(NODE), "settle", effect.dead)
            elif type(effect) is Speak:
                self.send(ProcessId(NODE), "spoken", effect.number)
            else:
                assert type(effect) is TellRelease
                self.send(effect.to, "borrow_released", effect.object, effect.owed, effect.kept)

    def send(self, to: ProcessId, *message: Any) -> None:
        assert to != self.me or message[0] in ("pushed", "task_done", "exported"), (
            f"{message} is for the sender itself"
        )
        self.world.send(self.me, to, message)

    # -- what programs do

    @property
    def at_hand(self) -> list[ObjectRef]:
        """The refs that code which runs here can name."""
        return self.kept + (self.running.locals if self.running else [])

    def hold(self, ref: ObjectRef, *, keep: bool) -> None:
        (self.running.locals if self.running and not keep else self.kept).append(ref)

    def put(self, inner: list[ObjectRef], keep: bool) -> None:
        entry = self.references.create(object_id(self.next_task_id(), 0))
        entry.state = INLINE
        entry.value = self.world.inside[entry.id] = [ref.entry.id for ref in inner]
        if inner:
            self.references.on_value(entry, [(ref.entry.id, b"") for ref in inner])
        self.hold(ObjectRef(entry), keep=keep)

    def submit(
        self,
        worker: Process,
        nested: list[ObjectRef],
        dependencies: list[ObjectRef],
        keep: bool,
        retries: int = 0,
    ) -> None:
        task_id = self.next_task_id()
        result = self.references.create(object_id(task_id, 0))
        self.hold(ObjectRef(result), keep=keep)
        task = Task(
            worker, [ref.entry for ref in nested], [ref.entry for ref in dependencies], result, retries
        )
        self.tasks[task_id] = task
        self.world.inside[result.id] = [entry.id for entry in task.dependencies]  # it may fail as they do
        self.references.pin(task.nested)
        self.references.pin(task.dependencies)
        self.when_ready(task.dependencies, lambda: self.push(task_id))

    def push(self, task_id: TaskId) -> None:
        task = self.tasks.get(task_id)
        if task is None:
            return  # its worker died meanwhile
        for entry in task.dependencies:
            if entry.state == FAILED:  # it fails in the same way, and never runs
                del self.tasks[task_id]
                self.world.inside[task.result.id] = self.world.inside.get(entry.id, [])
                if not isinstance(entry.value, list):
                    self.world.lost.add(task.result.id)
                self.settle(task.result, FAILED, entry.value, self.references.contents_of(entry))
                self.let_go(task)
                return
        inline = [(entry.id, entry.state, entry.value) for entry in task.dependencies]
        self.send(task.worker.me, "pushed", task.result.id, [entry.id for entry in task.nested], inline)

    def export(self, worker: Process, captured: list[ObjectRef]) -> None:
        self.captured += captured
        self.send(worker.me, "exported", [ref.entry.id for ref in captured])

    def when_ready(self, entries: list[ObjectEntry], call: Any) -> None:
        pending = [entry for entry in entries if entry.state == PENDING]
        if not pending:
            call()
            return
        refs.watch_entries(pending, Waiter(lambda _: call()))
        for entry in pending:
            if self.references.has_died(owner_of(entry.id)):
                self.settle(entry, FAILED, None)
            elif not entry.owned and not entry.asked:
                entry.asked = True
                self.send(owner_of(entry.id), "asked", entry.id)

    def get(self, ref: ObjectRef, keep: bool) -> None:
        """Reads a value that is here, and takes out the refs inside; else asks for it, to be read another time."""
        entry = ref.entry
        if entry.state == PENDING:
            self.when_ready([entry], lambda: None)
        elif entry.value is not None and entry.value != "freed":  # a value or an error
            for inner in self.unpickle(entry.value, None if entry.owned else entry):
                self.hold(inner, keep=keep)

    def unpickle(self, ids: Iterable[bytes], guard: Guard | None) -> list[ObjectRef]:
        before = refs.unpickling_under(guard)
        try:
            return [ObjectRef(identifier) for identifier in ids]
        finally:
            refs.unpickling_under(before)

    # -- what workers do

    def begin_task(self) -> None:
        owner, result, nested, dependencies = self.inbox_of_tasks.popleft()
        running = self.running = Running(owner, result)
        for identifier, state, value in dependencies:
            if owner == self.me:  # as any other object that it reads
                entry = self.references.entries[identifier]
                guard = None if entry.owned else entry
            else:
                guard = Guard(owner, identifier)
                running.guards.append(guard)
            if state == INLINE:
                running.locals += self.unpickle(value, guard)
        running.locals += self.unpickle(nested, None if owner == self.me else running.guards[0])

    def end_task(self, result: list[ObjectRef], state: int = INLINE) -> None:
        running = self.running
        assert running is not None
        running.locals.clear()
        self.release()
        inner = [ref.entry for ref in result]
        contents = self.references.hand_over(inner, running.owner)
        result.clear()
        kept = [item for guard in running.guards for item in self.references.end_guard(guard)]
        self.act()
        answer = [entry.id for entry in inner]
        self.send(running.owner, "task_done", running.result, state, answer, contents, kept)
        self.running = None

    # -- messages

    def on_pushed(self, sender: ProcessId, *message: Any) -> None:
        self.inbox_of_tasks.append((sender, *message))

    def on_exported(self, sender: ProcessId, captured: list[bytes]) -> None:
        self.kept += self.unpickle(captured, None if sender == self.me else Guard(sender))

    def on_task_done(
        self,
        worker: ProcessId,
        result: bytes,
        state: int,
        value: list[bytes],
        contents: Any,
        kept: list[tuple[bytes, bytes]],
    ) -> None:
        task = self.tasks.get(result[:16])
        if task is None:
            return
        self.references.on_kept(kept, worker)
        if state == FAILED and task.retries:
            task.retries -= 1
            self.references.refuse_contents(contents)
            self.push(TaskId(result[:16]))
            return
        del self.tasks[result[:16]]
        self.settle(task.result, state, value, contents)
        self.let_go(task)

    def let_go(self, task: Task) -> None:
        self.references.unpin(task.dependencies)
        self.references.unpin(task.nested)

    def settle(self, entry: ObjectEntry, state: int, value: Any, contents: Any = None) -> None:
        if contents and entry.owned:
            self.references.on_value(entry, contents)
        for waiter in refs.settle(entry, state, value):
            waiter.callback(waiter)
        if entry.abandoned:
            self.references.on_value(entry, None)

    def on_asked(self, borrower: ProcessId, identifier: bytes) -> None:
        entry = self.references.entries.get(identifier)
        if entry is None:
            self.send(borrower, "answered", identifier, FAILED, "freed", None)
            return

        def tell() -> None:
            inside = [inner.id for inner in entry.contents or ()] if entry.state == FAILED else None
            self.send(borrower, "answered", identifier, entry.state, entry.value, inside)

        self.when_ready([entry], tell)

    def on_answered(
        self, _: ProcessId, identifier: bytes, state: int, value: Any, contents: list[bytes] | None
    ) -> None:
        entry = self.references.entries.get(identifier)
        if entry is not None and entry.state == PENDING:
            assert value != "freed" or not entry.held or identifier in self.world.tainted, (
                "its owner had freed it"
            )
            if contents:
                self.references.on_borrowed_error(entry, contents)
            self.settle(entry, state, value)

    def on_borrower_added(
        self, sender: ProcessId, identifier: bytes, borrower: ProcessId, container: bytes
    ) -> None:
        if not self.references.has_died(sender):
            self.references.on_borrower_added(identifier, borrower, container)

    def on_borrow_claimed(self, borrower: ProcessId, identifier: bytes, owed: int, gone: ProcessId) -> None:
        self.world.hear_out(gone, self)
        self.references.on_borrow_claimed(identifier, borrower, owed)

    def on_echo(self, asker: ProcessId) -> None:
        self.send(asker, "echoed")

    def on_echoed(self, process: ProcessId) -> None:
        self.references.on_echoed(process)

    def on_speak(self, _: ProcessId, number: int) -> None:
        self.references.on_asked_to_speak(number)

    def on_death_settled(self, _: ProcessId, dead: ProcessId) -> None:
        self.references.on_settled(dead)

    def on_borrow_released(self, borrower: ProcessId, identifier: bytes, owed: int, kept: Any) -> None:
        self.references.on_borrow_released(identifier, borrower, owed, kept or ())

    def on_process_died(self, _: ProcessId, process: ProcessId) -> None:
        self.world.hear_out(process, self)
        self.act()
        for task_id, task in list(self.tasks.items()):
            if task.worker.me == process and task_id in self.tasks:  # (it may have failed with another)
                del self.tasks[task_id]
                self.references.keep_for_heirs(process, [*task.nested, *task.dependencies])
                self.world.lost.add(task.result.id)
                self.settle(task.result, FAILED, None)
                self.let_go(task)
        for entry in self.references.on_process_died(process):
            if entry.state == PENDING:
                self.settle(entry, FAILED, None)


class World:
    """The processes and what is under way between them."""

    def __init__(self) -> None:
        self.processes = [Process(self, number) for number in range(1, PROCESSES + 1)]
        self.by_id = {process.me: process for process in self.processes}
        #: the node manager's: who has still to speak about a death
        self.settling = Settling()
        self.links: dict[tuple[ProcessId, ProcessId], deque[Message]] = {}
        #: objects inside values of dead owners, or in calls of dead callers that have not begun: nobody has a ref to
        #: them yet, and nothing is promised for them
        self.tainted: set[bytes] = set()
        self.ending = False
        #: results of tasks whose worker died
        self.lost: set[bytes] = set()
        #: object -> the objects that its value names; without cycles, which counting can never free
        self.inside: dict[bytes, list[bytes]] = {}

    def send(self, sender: ProcessId, to: ProcessId, message: Message) -> None:
        if to != NODE and not self.by_id[to].alive:
            return
        self.links.setdefault((sender, to), deque()).append(message)

    def reaches(self, identifier: bytes, other: bytes) -> bool:
        return identifier == other or any(
            self.reaches(inner, other) for inner in self.inside.get(identifier, ())
        )

    def under_way(self) -> list[tuple[ProcessId, ProcessId]]:
        return [pair for pair, messages in self.links.items() if messages]

    def deliver(self, pair: tuple[ProcessId, ProcessId]) -> None:
        name, *fields = self.links[pair].popleft()
        if pair[1] == NODE:
            self.node_hears(pair[0], name, fields[0])
            return
        with self.by_id[pair[1]] as receiver:
            getattr(receiver, f"on_{name}")(pair[0], *fields)

    def hear_out(self, sender: ProcessId, receiver: Process) -> None:
        """What the dead had sent is read before its death is dealt with."""
        messages = self.links.get((sender, receiver.me))
        while messages and not self.by_id[sender].alive:
            name, *fields = messages.popleft()
            getattr(receiver, f"on_{name}")(sender, *fields)

    def node_hears(self, sender: ProcessId, name: str, about: Any) -> None:
        if not self.by_id[sender].alive:
            return
        if name == "settle":
            self.settling.asked(sender, about, [process.me for process in self.living()], ())
        else:
            self.settling.spoken(sender, about)
        self.act()

    def act(self) -> None:
        self.settling.check()
        for effect in self.settling.take_effects():
            if type(effect) is AskToSpeak:
                self.send(ProcessId(NODE), effect.to, ("speak", effect.number))
            else:
                self.send(ProcessId(NODE), effect.to, ("death_settled", effect.dead))

    def freed(self, identifier: bytes) -> None:
        if identifier in self.tainted or self.ending:
            return
        for process in self.living():
            entry = process.references.entries.get(identifier)
            assert entry is None or not entry.held, (
                f"{identifier.hex()} was freed, {process.me!r} holds {entry}"
            )

    def living(self) -> list[Process]:
        return [process for process in self.processes if process.alive]

    def check(self) -> None:
        for process in self.living():
            process.references.check()
            for entry in process.references.entries.values():
                if entry.owned and entry.state == FAILED and entry.value is None:
                    assert entry.id in self.tainted or entry.id in self.lost, (
                        f"{entry} was freed, and came back"
                    )
                if entry.held and entry.id not in self.tainted:
                    owner = self.by_id[owner_of(entry.id)]
                    assert entry.id in owner.references.entries, (
                        f"{process.me!r} holds {entry}, its owner forgot it"
                    )

    # -- deaths

    def kill(self, process: Process, sent: int, *, actors: bool) -> None:
        """Of what it has said to each of the others, the first `sent` messages have left it.

        Workers that run its tasks end with it; `actors` that run its calls do not.
        """
        process.alive = False
        for identifier in list(self.inside):
            if owner_of(identifier) == process.me:
                self.taint(self.inside[identifier])
        for pair, messages in self.links.items():
            if pair[1] == process.me:
                messages.clear()
            while pair[0] == process.me and len(messages) > sent:
                messages.pop()
            self.taint(
                ids_in([message for message in messages if message[0] == "pushed" and pair[0] == process.me])
            )
        for other in self.living():
            self.taint(ids_in([task for task in other.inbox_of_tasks if task[0] == process.me]))
            self.send(ProcessId(NODE), other.me, ("process_died", process.me))
        self.settling.process_died(process.me, [other.me for other in self.living()], ())
        self.act()
        for other in self.living():
            runs_for_it = other.running is not None and other.running.owner == process.me
            if runs_for_it and not actors and len(self.living()) > 1:
                self.kill(other, sent, actors=actors)

    def taint(self, ids: Iterable[bytes]) -> None:
        """These and what is inside them."""
        for identifier in list(ids):
            if identifier not in self.tainted:
                self.tainted.add(identifier)
                self.taint(self.inside.get(identifier, ()))

    # -- the end

    def wind_down(self) -> None:
        """Everything ends, everybody lets go, and all that is under way arrives."""
        self.deliver_all()
        while any(process.running or process.inbox_of_tasks or process.kept for process in self.living()):
            for process in self.living():
                with process:
                    process.kept.clear()
                    if process.running:
                        process.end_task([])
                    elif process.inbox_of_tasks:
                        process.begin_task()
            self.deliver_all()
        self.ending = True  # functions live as long as their exporters: all of them go at once
        for process in self.living():
            with process:
                process.captured.clear()
        self.deliver_all()

    def deliver_all(self) -> None:
        while pairs := self.under_way():
            for pair in pairs:
                if self.links[pair]:  # (the dead were perhaps heard out)
                    self.deliver(pair)


class ReferencesModel(RuleBasedStateMachine):
    """Programs that make, nest, pass on, keep and drop refs."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    def process(self, number: int) -> Process:
        living = self.world.living()
        return living[number % len(living)]

    def others(self, process: Process) -> list[Process]:
        return [other for other in self.world.living() if other is not process]

    def pick(self, process: Process, picks: list[int]) -> list[ObjectRef]:
        at_hand = process.at_hand
        if not at_hand:
            return []
        picked = [at_hand[pick % len(at_hand)] for pick in picks]
        return list({ref.entry.id: ref for ref in picked}.values())

    numbers = st.integers(0, PROCESSES - 1)
    picks = st.lists(st.integers(0, 7), max_size=2)

    @rule(number=numbers, picks=picks, keep=st.booleans())
    def put(self, number: int, picks: list[int], keep: bool) -> None:
        with self.process(number) as process:
            process.put(self.pick(process, picks), keep)

    @rule(
        number=numbers,
        to=numbers,
        nested=picks,
        dependencies=picks,
        keep=st.booleans(),
        at_once=st.booleans(),
        retries=st.integers(0, 1),
    )
    def submit(
        self,
        number: int,
        to: int,
        nested: list[int],
        dependencies: list[int],
        keep: bool,
        at_once: bool,
        retries: int,
    ) -> None:
        """A worker may be given what it has submitted itself."""
        with self.process(number) as process:
            worker = self.process(to)
            process.submit(
                worker, self.pick(process, nested), self.pick(process, dependencies), keep, retries
            )
        if at_once:
            self.deliver_a_link(self.world.processes.index(process), self.world.processes.index(worker))
            with worker:
                if worker.running is None and worker.inbox_of_tasks:
                    worker.begin_task()

    @rule(number=numbers, to=numbers, picks=picks)
    def export(self, number: int, to: int, picks: list[int]) -> None:
        with self.process(number) as process:
            others = self.others(process)
            captured = self.pick(process, picks)
            if others and captured:
                process.export(others[to % len(others)], captured)

    @rule(number=numbers)
    def begin_task(self, number: int) -> None:
        with self.process(number) as process:
            if process.running is None and process.inbox_of_tasks:
                process.begin_task()

    @rule(number=numbers, result=picks, state=st.sampled_from([INLINE, INLINE, FAILED]))
    def end_task(self, number: int, result: list[int], state: int) -> None:
        """With a value or an error; refs are inside of either."""
        with self.process(number) as process:
            if process.running is not None:
                result_id = process.running.result
                chosen = [
                    ref
                    for ref in self.pick(process, result)
                    if not self.world.reaches(ref.entry.id, result_id)
                ]
                self.world.inside[result_id] = [ref.entry.id for ref in chosen]
                process.end_task(chosen, state)
                del chosen

    @rule(number=numbers, picks=st.lists(st.integers(0, 7), min_size=1, max_size=2))
    def keep(self, number: int, picks: list[int]) -> None:
        with self.process(number) as process:
            process.kept += self.pick(process, picks)

    @rule(number=numbers, pick=st.integers(0, 7), keep=st.booleans(), wait=st.booleans())
    def get(self, number: int, pick: int, keep: bool, wait: bool) -> None:
        with self.process(number) as process:
            chosen = self.pick(process, [pick])
            for ref in chosen:
                process.get(ref, keep)
                if wait and ref.entry.state == PENDING:
                    owner = self.world.processes.index(self.world.by_id[owner_of(ref.entry.id)])
                    break
            else:
                return
        me = self.world.processes.index(process)
        self.deliver_a_link(me, owner)
        self.deliver_a_link(owner, me)
        with process:
            process.get(ref, keep)
            del ref
            chosen.clear()

    @rule(number=numbers, pick=st.integers(0, 7), from_task=st.booleans(), drained=st.booleans())
    def drop(self, number: int, pick: int, from_task: bool, drained: bool) -> None:
        """Sometimes another thread has the lock, and deals with the drop later."""
        process = self.process(number)
        if from_task and process.running is None:
            return
        refs.set_home(process, process.references.entries, process.me)
        held = process.running.locals if from_task and process.running else process.kept
        if held:
            del held[pick % len(held)]
        if drained:
            process.release()
        refs.set_home(None, {}, b"")

    @precondition(lambda self: self.world.under_way())
    @rule(pick=st.integers(0, 11))
    def deliver(self, pick: int) -> None:
        pairs = self.world.under_way()
        self.world.deliver(pairs[pick % len(pairs)])

    @precondition(lambda self: self.world.under_way())
    @rule(number=numbers, to=numbers)
    def deliver_a_link(self, number: int, to: int) -> None:
        """All that one process has sent another arrives before anything else does."""
        pair = (self.world.processes[number].me, self.world.processes[to].me)
        while self.world.links.get(pair):
            self.world.deliver(pair)

    @invariant()
    def what_is_held_lives(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.wind_down()
        for process in self.world.living():
            process.references.check()
            assert not process.references.entries, (
                f"{process.me!r} never lets go of {process.references.entries}"
            )


class ReferencesModelWithDeaths(ReferencesModel):
    """The same, and processes die, with mail that they have not sent or not read: whatever living processes hold is as
    safe as ever, whoever they have it from, and nothing is kept for the dead."""

    @precondition(lambda self: len(self.world.living()) > 2)
    @rule(number=ReferencesModel.numbers, sent=st.sampled_from([0, 1, 2, 9]), actors=st.booleans())
    def kill(self, number: int, sent: int, actors: bool) -> None:
        self.world.kill(self.process(number), sent, actors=actors)

    @rule(number=ReferencesModel.numbers, to=ReferencesModel.numbers, boxed=st.booleans())
    def lend(self, number: int, to: int, boxed: bool) -> None:
        """An object lives by a task alone that somebody else runs."""
        process, worker = self.process(number), self.process(to)
        if process is worker or worker.running is not None or worker.inbox_of_tasks:
            return
        with process:
            process.put([], keep=True)
            if boxed:
                process.put(process.kept[-1:], keep=True)
            process.submit(worker, process.kept[-1:], [], keep=True)
            del process.kept[-2 - boxed :]
        self.deliver_a_link(self.world.processes.index(process), self.world.processes.index(worker))
        if worker.inbox_of_tasks:
            with worker:
                worker.begin_task()

    @rule(
        number=ReferencesModel.numbers,
        to=ReferencesModel.numbers,
        pick=st.integers(0, 7),
        ends=st.booleans(),
        sent=st.sampled_from([None, None, 0, 1, 2, 9]),
    )
    def hand_on(self, number: int, to: int, pick: int, ends: bool, sent: int | None) -> None:
        """Somebody calls an actor, which keeps what it is given; and perhaps is killed before it reads the answer."""
        process, actor = self.process(number), self.process(to)
        if process is actor or actor.running is not None or actor.inbox_of_tasks:
            return
        with process:
            process.submit(actor, self.pick(process, [pick]), [], keep=False)
        me, receiver = self.world.processes.index(process), self.world.processes.index(actor)
        self.deliver_a_link(me, receiver)
        if actor.inbox_of_tasks:
            with actor:
                actor.begin_task()
                actor.kept += actor.running.locals
                if ends:
                    actor.end_task([])
        if sent is not None and len(self.world.living()) > 2:
            self.world.kill(process, sent, actors=True)

    def teardown(self) -> None:
        world = self.world
        world.wind_down()
        for process in world.living():
            process.references.check()
            left = set(process.references.entries) - world.tainted
            assert not left, f"{process.me!r} never lets go of {left}"
        for process in world.living():
            with process:
                for other in world.processes:
                    if other is not process:
                        process.on_process_died(ProcessId(NODE), other.me)
            assert not process.references.entries, f"{process.me!r} keeps things for the dead"


# ----------------------------------------------------------------------------- ways in which a count could be missing


class Story:
    """`owner` lends `reader` a box with a ref inside through `middle`: two tasks, one within the other."""

    def __init__(self) -> None:
        self.world = World()
        self.owner, self.middle, self.reader, self.other = self.world.processes
        with self.owner as owner:
            owner.put([], keep=True)
            owner.put([owner.kept[0]], keep=True)
            owner.submit(self.middle, [owner.kept[1]], [], keep=True)
            self.ref, self.box = owner.kept[0].entry.id, owner.kept[1].entry.id
            del owner.kept[:2]
        self.arrive(self.owner, self.middle)
        with self.middle as middle:
            middle.begin_task()

    def lend_on(self, *, as_dependency: bool = False) -> None:
        """`middle` passes the box on to `reader`, which opens it; as a dependency, or as a ref inside the arguments."""
        with self.middle as middle:
            boxes = middle.running.locals[:1]
            if as_dependency:
                middle.get(boxes[0], keep=True)
        if as_dependency:
            self.arrive(self.middle, self.owner)
            self.arrive(self.owner, self.middle)
        with self.middle as middle:
            middle.submit(self.reader, *(([], boxes) if as_dependency else (boxes, [])), keep=True)
            boxes.clear()
        self.arrive(self.middle, self.reader)
        with self.reader as reader:
            reader.begin_task()
            if not as_dependency:
                reader.get(reader.running.locals[0], keep=False)
        self.arrive(self.reader, self.owner)
        self.arrive(self.owner, self.reader)
        with self.reader as reader:
            if not as_dependency:
                reader.get(reader.running.locals[0], keep=False)

    def end_task(self, process: Process, result: list[ObjectRef] | None = None) -> None:
        with process:
            process.end_task(result or [])

    def arrive(self, sender: Process, receiver: Process) -> None:
        pair = (sender.me, receiver.me)
        while self.world.links.get(pair):
            self.world.deliver(pair)
            self.world.check()

    def forget_the_box(self) -> None:
        """`middle` is done, and so the owner's own task: nobody but those who were told of is left."""
        self.end_task(self.middle)
        with self.middle:
            self.middle.kept.clear()
        self.arrive(self.middle, self.owner)

    def ends(self) -> None:
        self.world.deliver_all()
        self.world.check()
        self.world.wind_down()
        for process in self.world.processes:
            assert not process.references.entries


@pytest.fixture(params=[False, True], ids=["inside an argument", "as an argument"])
def story(request: pytest.FixtureRequest) -> Story:
    story = Story()
    story.lend_on(as_dependency=request.param)
    return story


def test_a_ref_outlives_the_box_that_it_came_in(story: Story) -> None:
    with story.reader as reader:
        reader.kept += reader.running.locals[-1:]
        reader.running.locals.clear()
    story.end_task(story.reader)
    story.arrive(story.reader, story.middle)
    story.forget_the_box()
    story.ends()


def test_a_ref_out_of_a_box_is_returned_before_the_box_goes(story: Story) -> None:
    with story.reader as reader:
        result = reader.running.locals[-1:]
    story.end_task(story.reader, result)
    story.arrive(story.reader, story.middle)
    with story.middle as middle:
        middle.get(middle.kept[-1], keep=True)
        del middle.kept[:-1]
    story.end_task(story.middle)
    story.arrive(story.middle, story.owner)
    story.ends()


def test_a_ref_out_of_a_box_stays_inside_an_object_of_the_reader(story: Story) -> None:
    with story.reader as reader:
        reader.put(reader.running.locals[-1:], keep=True)
    story.end_task(story.reader)
    story.arrive(story.reader, story.middle)
    story.forget_the_box()
    story.ends()


def test_a_ref_out_of_a_box_goes_on_to_a_task_of_the_reader_that_keeps_it(story: Story) -> None:
    with story.reader as reader:
        reader.submit(story.other, reader.running.locals[-1:], [], keep=True)
    story.arrive(story.reader, story.other)
    with story.other as other:
        other.begin_task()
        other.kept += other.running.locals
        other.end_task([])
    story.arrive(story.other, story.reader)
    story.end_task(story.reader)
    story.arrive(story.reader, story.middle)
    story.forget_the_box()
    story.ends()


def test_a_box_is_returned_and_what_was_inside_is_kept() -> None:
    story = Story()
    story.lend_on()
    with story.reader as reader:
        reader.kept += reader.running.locals[-1:]
        result = reader.running.locals[:1]
    story.end_task(story.reader, result)
    story.arrive(story.reader, story.middle)
    story.forget_the_box()
    story.ends()


def test_an_entry_that_was_forgotten_does_not_take_its_successor_along() -> None:
    entries: dict[bytes, ObjectEntry] = {}
    identifier = object_id(TaskId(bytes(15) + b"1"), 0)
    first, second = (ObjectEntry(identifier, None, owned=False) for _ in range(2))
    entries[identifier] = first
    assert refs.forget_if_unheld(entries, first)
    entries[identifier] = second
    assert not refs.forget_if_unheld(entries, first), "it was dropped twice before anybody looked"
    assert entries[identifier] is second


def test_an_owner_gets_its_own_ref_back_out_of_a_box_of_another() -> None:
    world = World()
    owner, boxer, reader, _ = world.processes
    story = Story.__new__(Story)
    story.world = world
    with owner:
        owner.put([], keep=True)
        owner.submit(boxer, owner.kept[:1], [], keep=True)
    story.arrive(owner, boxer)
    with boxer:  # a box of its own around a ref of the owner's
        boxer.begin_task()
        boxer.put(boxer.running.locals, keep=True)
        boxer.kept += boxer.running.locals
        box = boxer.kept[:1]
        boxer.end_task(box)
    story.arrive(boxer, owner)
    with owner:
        ref = owner.kept.pop(0).entry.id
        owner.get(owner.kept[0], keep=True)
        owner.submit(reader, owner.kept[1:], [], keep=True)
    story.arrive(owner, reader)
    with reader:
        reader.begin_task()
        reader.get(reader.running.locals[0], keep=False)
    story.arrive(reader, boxer)
    story.arrive(boxer, reader)
    with reader:
        reader.get(reader.running.locals[0], keep=False)
        assert reader.running.locals[-1].entry.id == ref
        reader.end_task(reader.running.locals[-1:])
    with owner:
        del owner.kept[:2]
    with boxer:
        boxer.kept.clear()
    story.world.deliver_all()
    story.ends()


def test_what_a_dead_worker_kept_is_freed_though_its_notice_came_first() -> None:
    world = World()
    owner, middle, worker, _ = world.processes
    with owner:
        owner.put([], keep=True)
        owner.submit(middle, owner.kept[:1], [], keep=True)
        owner.kept.clear()
    world.deliver_all()
    with middle:
        middle.begin_task()
        middle.submit(worker, middle.running.locals[:1], [], keep=True)
    world.deliver_all()
    with worker:
        worker.begin_task()
        worker.kept += worker.running.locals
        worker.end_task([])
    world.deliver((worker.me, middle.me))
    worker.alive = False
    with owner:
        owner.on_process_died(ProcessId(NODE), worker.me)
    world.deliver_all()
    with middle:
        middle.end_task([])
        middle.kept.clear()
        middle.on_process_died(ProcessId(NODE), worker.me)
    world.deliver_all()
    assert not owner.references.entries
    assert not middle.references.entries


ReferencesModel.TestCase.settings = settings(
    max_examples=examples(250), stateful_step_count=40, deadline=None
)
ReferencesModelWithDeaths.TestCase.settings = settings(
    max_examples=examples(120), stateful_step_count=40, deadline=None
)
TestReferencesModel = ReferencesModel.TestCase
TestReferencesModelWithDeaths = ReferencesModelWithDeaths.TestCase
