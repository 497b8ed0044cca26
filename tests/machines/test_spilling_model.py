"""core.spilling against a model of the store, the disk, the thread that writes, and the processes that ask.

The thread is a generator, so that whatever may come between two of its steps does: a get, a free, a death. The model
keeps what each object holds; nobody may ever read anything else, and who still has a ref always finds it. However often
an object goes out of the store and comes back, it is written once, for as long as the disk has room for its copy.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from budgets import examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from skate.core.spilling import (
    DELETED,
    DISK,
    FULL,
    GONE,
    IN_FILE,
    KEPT,
    MADE,
    ON_DISK,
    READING,
    REMADE,
    RESTORED,
    ROOM_SECONDS,
    THERE,
    Answer,
    DeleteFile,
    DeleteObject,
    Evict,
    LookFor,
    ReadObject,
    Spilling,
    View,
    WarnNearlyFull,
    WriteObjects,
)
from skate.ids import ProcessId

CAPACITY = 100
DISK_BYTES = 3000


class Stored:
    """An object in the model's store."""

    def __init__(self, object_id: bytes, size: int, content: int) -> None:
        self.id = object_id
        self.size = size
        self.content = content
        self.pins = 0
        self.sealed = False
        self.doomed = False
        #: the store knows of a copy on disk
        self.copied = False


class Question:
    """What a process waits for an answer to."""

    def __init__(self, process: ProcessId, object_id: bytes, size: int, put: bool) -> None:
        self.process = process
        self.id = object_id
        self.size = size
        self.put = put
        #: a get whose value is let go at once
        self.brief = False
        self.attempt = 0


class SpillingModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.machine = Spilling(max_bytes=400, batch_bytes=40, file_bytes=60)
        self.now = 0.0
        self.serial = 0
        self.processes = [self.new_process() for _ in range(2)]
        #: in the store, by age of their last use; doomed ones stand under no id
        self.store: dict[bytes, Stored] = {}
        self.doomed: list[Stored] = []
        self.files: dict[int, dict[int, tuple[bytes, int]]] = {}
        #: (object id, content) of what was written to a file that is not given up
        self.copies: set[tuple[bytes, int]] = set()
        self.disk_full = False
        #: object id -> content, of what its owner has not freed
        self.live: dict[bytes, int] = {}
        self.pins: list[tuple[ProcessId, Stored]] = []
        self.questions: dict[int, Question] = {}
        #: token -> (process, object id, block) of what is being made again
        self.makers: dict[int, tuple[bytes, bytes, Stored]] = {}
        self.jobs: deque[Any] = deque()
        self.thread: Iterator[None] | None = None
        self.warnings = 0

    def new_process(self) -> ProcessId:
        self.serial += 1
        return ProcessId(self.serial.to_bytes(8, "big"))

    def used(self) -> int:
        return sum(each.size for each in [*self.store.values(), *self.doomed])

    # --------------------------------------------------------------------------------------- the store's operations

    def unpin(self, stored: Stored) -> None:
        stored.pins -= 1
        if stored.pins:
            return
        if stored.doomed:
            self.doomed.remove(stored)
        else:
            self.store[stored.id] = self.store.pop(stored.id)  # the newest now

    def delete(self, object_id: bytes) -> bool:
        stored = self.store.pop(object_id, None)
        if stored is None:
            return False
        stored.doomed = True
        if stored.pins:
            self.doomed.append(stored)
        return not stored.copied

    def allocate(self, object_id: bytes, size: int, content: int) -> Stored | None:
        if self.used() + size > CAPACITY:
            return None
        stored = self.store[object_id] = Stored(object_id, size, content)
        stored.pins = 1
        return stored

    # ------------------------------------------------------------------------------------------- what processes do

    @initialize(max_bytes=st.sampled_from([200, 400, 2000]))
    def limit(self, max_bytes: int) -> None:
        self.machine.max_bytes = max_bytes

    @rule(who=st.integers(0, 9), size=st.sampled_from([3, 10, 15, 20, 30, 45]))
    def put(self, who: int, size: int) -> None:
        process = self.processes[who % len(self.processes)]
        self.serial += 1
        self.try_put(Question(process, process + self.serial.to_bytes(12, "big"), size, True))

    def try_put(self, question: Question) -> None:
        stored = self.allocate(question.id, question.size, len(self.live) * 1000 + self.serial)
        if stored is None:
            self.ask(question)
            return
        stored.sealed = True
        self.live[question.id] = stored.content
        self.unpin(stored)

    def ask(self, question: Question) -> None:
        self.serial += 1
        self.questions[self.serial] = question
        if question.put:
            self.machine.room_requested(question.process, self.serial, question.size, question.attempt)
        else:
            self.machine.restore_requested(question.process, self.serial, question.id, question.attempt)  # type: ignore
        question.attempt += 1

    @precondition(lambda self: self.live)
    @rule(who=st.integers(0, 9), which=st.integers(0, 99))
    def get(self, who: int, which: int) -> None:
        object_id = list(self.live)[which % len(self.live)]
        self.try_get(Question(self.processes[who % len(self.processes)], object_id, 0, False))

    @precondition(lambda self: self.live)
    @rule(who=st.integers(0, 9), which=st.integers(0, 99), count=st.integers(1, 8), steps=st.integers(0, 20))
    def pass_over(self, who: int, which: int, count: int, steps: int) -> None:
        """A pass over some of what there is: each object is wanted for a moment, and time goes by."""
        for at in range(count):
            if not self.live:
                return
            object_id = list(self.live)[(which + at) % len(self.live)]
            question = Question(self.processes[who % len(self.processes)], object_id, 0, False)
            question.brief = True
            self.try_get(question)
            for _ in range(steps // 5):
                self.decide(0.0)
                if self.jobs or self.thread is not None:
                    self.work(steps=steps)

    def try_get(self, question: Question) -> None:
        stored = self.store.get(question.id)
        if stored is None or not stored.sealed:
            self.ask(question)
            return
        assert stored.content == self.live.get(question.id, stored.content)
        stored.pins += 1
        if question.brief:
            self.unpin(stored)
        else:
            self.pins.append((question.process, stored))

    @precondition(lambda self: self.pins)
    @rule(which=st.integers(0, 99))
    def let_go(self, which: int) -> None:
        _, stored = self.pins.pop(which % len(self.pins))
        self.unpin(stored)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 99))
    def free(self, which: int) -> None:
        object_id = list(self.live)[which % len(self.live)]
        del self.live[object_id]
        if not self.delete(object_id):
            self.machine.forget_requested(object_id)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 99))
    def make_again(self, which: int) -> None:
        """A task whose answer was lost runs again, and puts its result again: LocalStore.put(again=True)."""
        object_id = list(self.live)[which % len(self.live)]
        self.delete(object_id)
        stored = self.allocate(object_id, 10, self.serial + 1_000_000)
        if stored is None:
            del self.live[object_id]
            self.machine.forget_requested(object_id)
            return
        del self.live[object_id]
        process = object_id[:8]
        self.serial += 1
        self.makers[self.serial] = (process, object_id, stored)
        self.machine.remake_requested(process, self.serial, object_id)

    def made_again(self, process: bytes, object_id: bytes, stored: Stored) -> None:
        """The copy of the old one is gone: the new one may be sealed."""
        if not stored.doomed:
            stored.sealed = True
            self.live[object_id] = stored.content
        self.unpin(stored)

    @rule(who=st.integers(0, 9), really=st.integers(0, 15))
    def die(self, who: int, really: int) -> None:
        if really:
            return  # deaths are rare, or nothing else would ever happen
        process = self.processes[who % len(self.processes)]
        self.processes.remove(process)
        self.processes.append(self.new_process())
        for mine in [pin for pin in self.pins if pin[0] == process]:
            self.pins.remove(mine)
            self.unpin(mine[1])
        self.questions = {token: each for token, each in self.questions.items() if each.process != process}
        for object_id in [object_id for object_id in self.live if object_id.startswith(process)]:
            del self.live[object_id]
        for object_id in [object_id for object_id in self.store if object_id.startswith(process)]:
            self.delete(object_id)
        for _, _, stored in [each for each in self.makers.values() if each[0] == process]:
            self.unpin(stored)
        self.makers = {token: each for token, each in self.makers.items() if each[0] != process}
        self.machine.process_left(process)
        self.machine.owners_left(self.processes)

    @rule(room=st.integers(0, 5))
    def disk(self, room: int) -> None:
        self.disk_full = room == 0

    # ---------------------------------------------------------------------------------------------- the node manager

    @rule(seconds=st.sampled_from([0.0, 0.06, 1.5]))
    def decide(self, seconds: float) -> None:
        self.now += seconds
        wanted = self.machine.wants_view(self.now)
        view = None
        if wanted is not None:
            victims = [(each.id, each.size) for each in self.store.values() if each.sealed and not each.pins]
            room = CAPACITY - self.used()
            view = View(
                CAPACITY, self.used(), room, victims, 20 if self.disk_full else DISK_BYTES, DISK_BYTES
            )
        for effect in self.machine.decide(self.now, view):
            self.carry_out(effect)

    def carry_out(self, effect: Any) -> None:
        if type(effect) is Answer:
            self.answered(effect)
        elif type(effect) is LookFor:
            stored = self.store.get(effect.object)
            word = THERE if stored is not None and stored.sealed else GONE
            self.answered(Answer(effect.process, effect.token, (word,)))
        elif type(effect) is DeleteObject:
            self.delete(effect.object)
        elif type(effect) is Evict:
            self.machine.evicted([each for each in effect.objects if self.evict(each)])
        elif type(effect) is WarnNearlyFull:
            self.warnings += 1
            assert self.warnings == 1
        else:
            if type(effect) is DeleteFile:
                self.copies -= set(self.files.get(effect.file, {}).values())
            self.jobs.append(effect)

    def evict(self, object_id: bytes) -> bool:
        stored = self.store.get(object_id)
        if stored is None or not stored.sealed or stored.pins:
            return False
        known = self.machine.objects[object_id]
        assert self.files[known.file.number][known.span.offset] == (object_id, stored.content)
        self.delete(object_id)
        return True

    def answered(self, answer: Answer) -> None:
        if answer.token in self.makers:
            self.made_again(*self.makers.pop(answer.token))
            return
        question = self.questions.pop(answer.token, None)
        assert question is not None, "a question was answered twice, or its asker is dead"
        assert question.process == answer.process
        word, *more = answer.value
        if question.put:
            assert word in (MADE, FULL, DISK)
            if word == MADE:
                self.try_put(question)
        elif word == GONE:
            assert question.id not in self.live or self.in_store(question.id), (
                "a live object is said to be gone"
            )
        elif word == IN_FILE:
            file, offset, _ = more
            if file in self.files and self.files[file].get(offset, (b"", 0))[0] == question.id:
                assert self.files[file][offset][1] == self.live.get(question.id, self.files[file][offset][1])
            else:
                self.try_get(question)
        else:
            assert word == THERE
            self.try_get(question)

    def in_store(self, object_id: bytes) -> bool:
        return object_id in self.store

    # ---------------------------------------------------------------------------------------------------- the thread

    @precondition(lambda self: self.thread is not None or self.jobs)
    @rule(steps=st.integers(1, 6))
    def work(self, steps: int) -> None:
        for _ in range(steps):
            if self.thread is None:
                if not self.jobs:
                    return
                self.thread = self.do(self.jobs.popleft())
            if next(self.thread, self) is self:
                self.thread = None

    def do(self, job: Any) -> Iterator[None]:
        if type(job) is DeleteFile:
            self.files.pop(job.file, None)
        elif type(job) is WriteObjects:
            yield from self.write(job)
        else:
            yield from self.read(job)

    def write(self, job: WriteObjects) -> Iterator[None]:
        content = self.files.setdefault(job.file, {})
        written: dict[bytes, int] = {}
        kept: set[bytes] = set()
        size = job.spans[0].offset
        trouble = ""
        for span in job.spans:
            stored = self.store.get(span.object)
            if stored is None or not stored.sealed or stored.size != span.size:
                continue
            stored.pins += 1
            yield
            if self.disk_full:
                trouble = "no space"
                self.unpin(stored)
                break
            content[span.offset] = (span.object, stored.content)
            yield
            if stored.doomed:
                del content[span.offset]
            else:
                written[span.object] = 7
                size = span.offset + span.size
                copy = (span.object, stored.content)
                assert copy not in self.copies, "what has a copy was written once more"
                self.copies.add(copy)
                if stored.pins == 1:
                    self.delete(span.object)
                else:
                    stored.copied = True
                    kept.add(span.object)
            self.unpin(stored)
            yield
        self.machine.write_ended(written, kept, size, trouble)

    def read(self, job: ReadObject) -> Iterator[None]:
        object_id, offset, size = job.span
        found, content = self.files[job.file][offset]
        assert found == object_id
        if object_id in self.store:
            outcome = REMADE
        else:
            stored = self.allocate(object_id, size, content)
            if stored is None:
                outcome = FULL
            else:
                yield
                outcome = DELETED if stored.doomed else RESTORED
                stored.sealed = stored.copied = True
                self.unpin(stored)
        yield
        self.machine.read_ended(object_id, outcome)

    # --------------------------------------------------------------------------------------------------------- checks

    @invariant()
    def sound(self) -> None:
        self.machine.check()

    @invariant()
    def nothing_is_lost(self) -> None:
        for object_id in self.live:
            known = self.machine.objects.get(object_id)
            if object_id in self.store:
                continue
            assert known is not None, "neither in the store nor on disk"
            assert known.wanted
            assert known.state != KEPT
            if known.state in (ON_DISK, READING):
                assert self.files[known.file.number][known.span.offset] == (object_id, self.live[object_id])

    def teardown(self) -> None:
        """Everybody lets go: all questions are answered; then all is freed, and nothing is left."""
        for _ in range(len(self.pins)):
            self.let_go(which=0)
        self.settle()
        assert not self.questions, "somebody waits for ever"
        assert not self.makers, "somebody who makes an object again waits for ever"
        for _ in range(len(self.live)):
            self.free(which=0)
        for _ in range(len(self.pins)):
            self.let_go(which=0)
        self.settle()
        assert not self.machine.objects
        assert not self.machine.files
        assert not self.files
        assert self.machine.file_total == 0
        assert not self.store
        assert not self.doomed

    def settle(self) -> None:
        for _ in range(400):
            self.decide(ROOM_SECONDS / 50)
            if self.jobs or self.thread is not None:
                self.work(steps=50)
            elif not self.questions and not self.makers:
                self.decide(0.0)
                if not self.jobs:
                    break
        self.sound()
        self.nothing_is_lost()


SpillingModel.TestCase.settings = settings(max_examples=examples(200), stateful_step_count=80, deadline=None)
TestSpillingModel = SpillingModel.TestCase


@pytest.mark.parametrize("seed", range(examples(100)))
def test_passes_over_more_than_the_store_holds(seed: int) -> None:
    """As above, but chiefly reads and puts that fill the store several times, which chance seldom comes to."""
    rng = random.Random(seed)
    model = SpillingModel()
    model.limit(rng.choice([200, 400, 2000]))
    weights = {
        "put": 3,
        "pass": 6,
        "get": 1,
        "let_go": 1,
        "free": 1,
        "make_again": 0.3,
        "die": 0.1,
        "disk": 0.2,
    }
    for _ in range(150):
        (name,) = rng.choices(list(weights), list(weights.values()))
        who, which = rng.randrange(2), rng.randrange(100)
        if name == "put" and sum(stored.size for stored in model.store.values()) * rng.random() < 120:
            model.put(who, rng.choice([3, 10, 20, 30, 45]))
        elif name == "pass" and model.live:
            model.pass_over(who=who, which=which, count=rng.randrange(1, 9), steps=20)
        elif name == "get" and model.live:
            model.get(who=who, which=which)
        elif (name == "let_go" and model.pins) or (name in ("free", "make_again") and model.live):
            getattr(model, name)(which=which)
        elif name == "die":
            model.die(who, 0)
        elif name == "disk":
            model.disk(rng.randrange(6))
        model.decide(rng.choice([0.0, 0.06, 1.5]))
        if model.jobs or model.thread is not None:
            model.work(steps=rng.randrange(1, 7))
        model.sound()
        model.nothing_is_lost()
    model.teardown()
