"""Pulls and copies together: nodes that want an owner's objects, lose them, die; messages that arrive in any order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from skate.core.copies import Copies, TellCopy
from skate.core.pulls import (
    ALL_BYTES,
    CHUNK_BYTES,
    FETCHING,
    SOURCE_BYTES,
    Abort,
    Allocate,
    AskChunk,
    AskOwner,
    Pulls,
    Seal,
    TellGivenUp,
)
from skate.core.spilling import FAILED, FULL, GONE, THERE, Answer
from skate.ids import NodeId, ObjectId, ProcessId, TaskId, object_id, process_id

HOME = NodeId(b"home")
NODES = [NodeId(b"nod1"), NodeId(b"nod2"), NodeId(b"nod3"), NodeId(b"nod4")]
OWNER = process_id(HOME, 1)
OBJECTS = [object_id(TaskId(OWNER + bytes(7) + bytes([number])), 0) for number in range(1, 4)]
SIZES = dict(
    zip(OBJECTS, (1, 3 * CHUNK_BYTES + 1, SOURCE_BYTES + ALL_BYTES // CHUNK_BYTES * 1000), strict=True)
)
#: bytes of a node's store: the two largest objects do not fit together
ROOM = SIZES[OBJECTS[2]] + 10


class Node:
    """A node manager and its store; a place that is being filled counts the chunks in it."""

    def __init__(self, node: NodeId) -> None:
        self.node = node
        self.pulls = Pulls()
        self.store: set[ObjectId] = set()
        #: what it has, and cannot read for now
        self.unreadable: set[ObjectId] = set()
        self.places: dict[int, tuple[ObjectId, set[int]]] = {}
        self.questions: dict[int, tuple[ProcessId, ObjectId]] = {}
        self.answers: dict[int, tuple[Any, ...]] = {}

    def used(self) -> int:
        held = [*self.store, *(object_id for object_id, _ in self.places.values())]
        assert len(held) == len(set(held))
        return sum(SIZES[each] for each in held)


class Cluster(RuleBasedStateMachine):
    """One owner, at home; each pair of parties has a line of messages that keep their order."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = Copies(HOME)
        self.nodes = {node: Node(node) for node in (HOME, *NODES)}
        self.freed: set[ObjectId] = set()
        self.lost: set[ObjectId] = set()
        #: (from, to) -> calls to be made there; the owner is None
        self.lines: dict[tuple[NodeId | None, NodeId | None], deque[Callable[[], None]]] = {}
        self.tokens = 0

    def say(self, sender: NodeId | None, to: NodeId | None, call: Callable[[], None]) -> None:
        if to is None or to in self.nodes:
            self.lines.setdefault((sender, to), deque()).append(call)

    def owner_acts(self) -> None:
        for effect in self.copies.take_effects():
            assert type(effect) is TellCopy
            if effect.to in self.nodes:
                pulls = self.nodes[effect.to].pulls
                size = SIZES[ObjectId(effect.object)]
                self.say(
                    None,
                    effect.to,
                    lambda e=effect, p=pulls, s=size: p.on_source(e.pull, s, e.source, e.why),  # type: ignore[misc]
                )

    def acts(self, node: Node) -> None:
        while effects := node.pulls.take_effects():
            for effect in effects:
                self.carry_out(node, effect)

    def carry_out(self, node: Node, effect: Any) -> None:
        me = node.node
        if type(effect) is AskOwner:
            self.say(me, None, lambda: self.asked(effect.object, me, effect.pull, effect.missed))
        elif type(effect) is Allocate:
            self.allocate(node, effect)
        elif type(effect) is AskChunk:
            self.say(me, effect.node, lambda: self.chunk_asked(effect.node, me, effect))
        elif type(effect) is Seal:
            object_id, chunks = node.places.pop(effect.pull)
            assert sum(min(CHUNK_BYTES, SIZES[object_id] - at) for at in chunks) == SIZES[object_id]
            node.store.add(object_id)
            self.say(me, None, lambda: self.copied(object_id, me))
        elif type(effect) is Abort:
            del node.places[effect.pull]
        elif type(effect) is TellGivenUp:
            self.say(me, None, lambda: self.copies.on_gave_up(effect.object, me))
        else:
            assert type(effect) is Answer
            _, object_id = node.questions.pop(effect.token)
            word = effect.value[0]
            if word == THERE:
                assert object_id in node.store
            elif word == FAILED:
                assert effect.value[1]
                assert object_id in self.lost | self.freed
            else:
                assert word in (GONE, FULL)

    def allocate(self, node: Node, effect: Allocate) -> None:
        if not node.pulls.needs_room(effect.pull):
            return
        if effect.object in node.store:
            node.pulls.on_present(effect.pull)
        elif node.used() + effect.size > ROOM and node.node != HOME:
            node.pulls.on_no_room(effect.pull, (FULL, "no room"))
        else:
            node.places[effect.pull] = (effect.object, set())
            node.pulls.on_allocated(effect.pull)

    def asked(self, object_id: ObjectId, node: NodeId, pull: int, missed: Any) -> None:
        if object_id in self.freed or object_id in self.lost:
            why = "it is gone"
            if node in self.nodes:
                pulls = self.nodes[node].pulls
                self.say(None, node, lambda: pulls.on_source(pull, 0, None, why))
        elif node in self.nodes:
            self.copies.on_asked(object_id, node, pull, missed)
            if not self.copies.placed[object_id].copies:
                self.lost.add(object_id)

    def copied(self, object_id: ObjectId, node: NodeId) -> None:
        if node in self.nodes and not self.copies.on_copied(object_id, node):
            self.say(None, node, lambda: self.drop(node, object_id))

    def drop(self, node: NodeId, object_id: ObjectId) -> None:
        self.nodes[node].pulls.on_freed(object_id)
        self.nodes[node].store.discard(object_id)

    def chunk_asked(self, source: NodeId, asker: NodeId, effect: AskChunk) -> None:
        node = self.nodes[source]
        there = effect.object in node.store - node.unreadable
        if asker in self.nodes:
            self.say(source, asker, lambda: self.chunk_came(asker, source, effect, there))

    def chunk_came(self, asker: NodeId, source: NodeId, effect: AskChunk, there: bool) -> None:
        node = self.nodes[asker]
        if not there:
            node.pulls.on_missing(effect.pull, source, "it is not there")
        elif node.pulls.expects(effect.pull, source, effect.offset, effect.size):
            node.places[effect.pull][1].add(effect.offset)
            node.pulls.on_chunk(effect.pull, effect.offset)

    # ------------------------------------------------------------------------------------------------------ rules

    @initialize(
        in_vain=st.lists(st.tuples(st.sampled_from([HOME, *NODES]), st.sampled_from(OBJECTS)), max_size=3),
        made_at=st.tuples(*[st.sampled_from([HOME, HOME, NODES[0]])] * len(OBJECTS)),
    )
    def make(self, in_vain: list[tuple[NodeId, ObjectId]], made_at: tuple[NodeId, ...]) -> None:
        """Attempts of the objects' tasks whose answers did not count, then those that did."""
        for node, which in in_vain:
            self.nodes[node].store.add(which)
            self.copies.on_made_in_vain(which, node)
        for node, which in zip(made_at, OBJECTS, strict=True):
            self.nodes[node].store.add(which)
            self.copies.on_made(which, node)

    def act_all(self) -> None:
        self.owner_acts()
        for node in list(self.nodes.values()):
            self.acts(node)

    @rule(node=st.sampled_from([HOME, *NODES]), which=st.sampled_from(OBJECTS), process=st.integers(2, 3))
    def want(self, node: NodeId, which: ObjectId, process: int) -> None:
        if node in self.nodes and which not in self.nodes[node].store:
            self.tokens += 1
            who = process_id(node, process)
            self.nodes[node].questions[self.tokens] = (who, which)
            self.nodes[node].pulls.on_wanted(which, who, self.tokens)
            self.act_all()

    @rule(data=st.data(), count=st.integers(1, 60))
    @precondition(lambda self: any(self.lines.values()))
    def deliver(self, data: st.DataObject, count: int) -> None:
        lines = sorted((line for line in self.lines if self.lines[line]), key=str)
        line = self.lines[data.draw(st.sampled_from(lines))]
        for _ in range(min(count, len(line))):
            line.popleft()()
            self.act_all()

    @rule(node=st.sampled_from(NODES), which=st.sampled_from(OBJECTS))
    def evict(self, node: NodeId, which: ObjectId) -> None:
        """A copy is gone, and nobody was told."""
        if node in self.nodes:
            self.nodes[node].store.discard(which)

    @rule(node=st.sampled_from(NODES), which=st.sampled_from(OBJECTS))
    def stops_reading(self, node: NodeId, which: ObjectId) -> None:
        """A copy that is on a disk, for example, which fails now and then."""
        if node in self.nodes:
            self.nodes[node].unreadable ^= {which}

    @rule(which=st.sampled_from(OBJECTS))
    def free(self, which: ObjectId) -> None:
        if which not in self.freed:
            self.freed.add(which)
            for node in self.copies.on_freed(which):
                self.say(None, node, lambda node=node: self.drop(node, which))  # type: ignore[misc]
            self.act_all()

    @rule(node=st.sampled_from(NODES), process=st.integers(2, 3))
    def process_dies(self, node: NodeId, process: int) -> None:
        if node in self.nodes:
            who = process_id(node, process)
            questions = self.nodes[node].questions
            self.nodes[node].questions = {t: asked for t, asked in questions.items() if asked[0] != who}
            self.nodes[node].pulls.on_process_left(who)
            self.act_all()

    @rule(node=st.sampled_from(NODES), data=st.data())
    def gives_up(self, node: NodeId, data: st.DataObject) -> None:
        """Somebody does not wait any longer; others may."""
        if node in self.nodes and self.nodes[node].questions:
            token = data.draw(st.sampled_from(sorted(self.nodes[node].questions)))
            who, which = self.nodes[node].questions.pop(token)
            self.nodes[node].pulls.on_unwanted(which, who, token)
            self.act_all()

    @rule(node=st.sampled_from(NODES))
    def node_dies(self, node: NodeId) -> None:
        if node in self.nodes:
            del self.nodes[node]
            self.lines = {
                line: calls for line, calls in self.lines.items() if node not in line or line == (node, None)
            }
            self.lines.pop((node, None), None)
            for other in self.nodes.values():
                self.say(None, other.node, lambda p=other.pulls: p.on_node_died(node, "killed"))  # type: ignore[misc]
            self.lost |= {ObjectId(each) for each in self.copies.on_node_died(node, "killed")}
            self.act_all()

    @invariant()
    def checks(self) -> None:
        self.copies.check()
        for node in self.nodes.values():
            node.pulls.check()
            waiting = {w for pull in node.pulls.pulls.values() for w in pull.waiters}
            assert waiting == {(who, token) for token, (who, _) in node.questions.items()}
            assert set(node.places) == {n for n, pull in node.pulls.pulls.items() if pull.allocated}

    def teardown(self) -> None:
        """When all that was said has arrived, every question has its answer, and what was freed is nowhere."""
        for _ in range(100_000):
            line = next((line for line in self.lines.values() if line), None)
            if line is None:
                break
            line.popleft()()
            self.act_all()
        self.checks()
        for node in self.nodes.values():
            assert not node.questions, f"{node.pulls.pulls} never end"
            assert not node.places
            assert not node.store & self.freed
            assert not node.pulls.bytes_under_way
        for which, placed in self.copies.placed.items():
            assert not placed.readers or which in self.lost
            assert not placed.waiting


TestPulls = Cluster.TestCase


def test_a_broadcast_spreads_as_a_tree() -> None:
    """No copy has more than two readers at once, and those that have read serve others."""
    copies = Copies(HOME)
    copies.on_asked(b"x", NODES[0], 1)
    copies.on_asked(b"x", NODES[1], 1)
    copies.on_asked(b"x", NODES[2], 1)
    copies.on_asked(b"x", NODES[3], 1)
    assert [(each.to, each.source) for each in copies.take_effects()] == [(NODES[0], HOME), (NODES[1], HOME)]
    assert copies.on_copied(b"x", NODES[1])
    assert [(each.to, each.source) for each in copies.take_effects()] == [
        (NODES[2], NODES[1]),
        (NODES[3], HOME),
    ]
    copies.check()


def test_chunks_are_bounded_by_source_and_in_all() -> None:
    machine, effects = Pulls(), []
    for number in range(1, 7):
        machine.on_wanted(ObjectId(bytes([number]) * 20), OWNER, number)
        effects += machine.take_effects()
        machine.on_source(number, 100 << 20, NODES[number % 2], "")
        machine.on_allocated(number)
    effects += machine.take_effects()
    asked = [effect for effect in effects if type(effect) is AskChunk]
    assert sum(effect.size for effect in asked) == 2 * SOURCE_BYTES
    assert {effect.pull for effect in asked} == {1, 2}
    assert machine.pulls[6].state == FETCHING
    machine.check()
