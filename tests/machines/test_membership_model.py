"""A cluster's nodes under any sequence of joins, lost links, deaths and heads that come back, against plain sets."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from skate.core.acquaintances import Acquaintances
from skate.core.membership import (
    ALIVE,
    AWAY,
    DEAD,
    GRACE_SECONDS,
    JOIN_SECONDS,
    JOINING,
    RETURN_SECONDS,
    SHARE_SECONDS,
    DropNode,
    Identity,
    Refuse,
    Register,
    Share,
    Welcome,
    share_seconds,
)
from skate.core.roster import HEAD_SECONDS, UNKNOWN_SECONDS, BuryNode, Leave, Roster, Row, SendHeld
from skate.ids import NodeId, process_id

IDENTITY = Identity(1, "3.11", "0.1.0")


def node_id(number: int) -> NodeId:
    return NodeId(number.to_bytes(4, "big"))


def row(number: int, address: str = "", head: bool = False) -> Row:
    return Row(
        node=node_id(number),
        address=address or f"10.0.0.{number}:7000",
        hostname=f"host{number}",
        pid=number,
        folder=f"/tmp/{number}",
        head=head,
        total={"CPU": 10_000},
        labels={"number": str(number)},
        available={"CPU": 10_000},
        demands=[],
        alive=True,
        cause="",
    )


def hello(of: Row, known: list[Row] | None = None, ask: str = "") -> dict[str, Any]:
    return IDENTITY._asdict() | {
        "node": of.node.hex(),
        "address": of.address,
        "row": of.to_plain(),
        "known": [each.to_plain() for each in known or []],
        "ask": ask,
    }


class Node:
    """A node as the network sees it: its roster, and what it has heard of deaths."""

    def __init__(self, me: Row) -> None:
        self.me = me
        self.roster = Roster(me, in_cluster=True)
        self.runs = True
        self.inbox: list[Any] = []  # what the head has sent and it has not read
        self.heard_dead: list[NodeId] = []
        self.connected = False  # the head's link to it is up


class Cluster(RuleBasedStateMachine):
    """One head, which may be started again, and nodes. What the head sends arrives in order while a link is up."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.serial = itertools.count(1)
        self.words = itertools.count(1)
        self.asked: dict[NodeId, str] = {}  # the word of each node's latest hello
        self.nodes: dict[NodeId, Node] = {}
        self.refused: set[NodeId] = set()
        self.start_head([], [])

    def start_head(self, former: list[NodeId], remembered: list[Row]) -> None:
        me = row(next(self.serial), "10.0.0.0:7000", head=True)
        self.former = former
        self.register = Register(me, IDENTITY)
        self.register.on_recovered(remembered, self.now)
        self.head = Roster(me, in_cluster=True)
        self.head_dead: list[NodeId] = []
        self.packed: tuple[int, list[Row]] = (-1, [])

    def table(self) -> list[Row]:
        """What a letter of welcome tells: as a head has packed it, once between two messages to all."""
        if self.packed[0] != self.register.shared:
            self.packed = self.register.shared, self.register.rows()
        return self.packed[1]

    def running(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.runs]

    def turn(self) -> None:
        """The head does what is due."""
        self.register.tick(self.now)
        for effect in self.register.take_effects():
            if type(effect) is Welcome:
                node = self.nodes.get(effect.node)
                if node is not None:
                    node.inbox.append((effect.ask, self.former, self.register.me, self.table()))
            elif type(effect) is Refuse:
                self.refused.add(NodeId(bytes.fromhex(effect.node)))
            elif type(effect) is Share:
                self.head.on_rows(effect.rows)
                for expected in self.register.expected():
                    if expected in self.nodes:
                        self.nodes[expected].inbox.append((None, [], self.register.me, effect.rows))
            else:
                assert type(effect) is DropNode
        for buried in self.head.take_effects():
            assert type(buried) is BuryNode
            self.head_dead.append(buried.node)

    # -- what happens

    @rule()
    @precondition(lambda self: len(self.nodes) < 6)
    def join(self) -> None:
        node = Node(row(next(self.serial)))
        self.nodes[node.me.node] = node
        self.say_hello(node)

    @rule(data=st.data())
    @precondition(lambda self: self.running())
    def join_at_an_address_that_was_another_s(self, data: st.DataObject) -> None:
        old = data.draw(st.sampled_from(self.running()))
        old.runs = False
        node = Node(row(next(self.serial), old.me.address))
        self.nodes[node.me.node] = node
        self.say_hello(node)

    def say_hello(self, node: Node) -> None:
        known = [each for each in node.roster.rows.values() if each.node != node.me.node]
        ask = self.asked[node.me.node] = f"word {next(self.words)}"
        node.roster.on_asked(ask)
        self.register.on_hello(hello(node.me, known, ask), self.now)
        self.turn()

    @rule(data=st.data())
    @precondition(lambda self: self.running())
    def hello_again(self, data: st.DataObject) -> None:
        self.say_hello(data.draw(st.sampled_from(self.running())))

    @rule(data=st.data())
    @precondition(lambda self: self.running())
    def link_up(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(self.running()))
        if node.me.node in self.register.members and self.register.members[node.me.node].state != DEAD:
            node.connected = True
            self.register.on_link_up(node.me.node)

    @rule(data=st.data())
    @precondition(lambda self: self.nodes)
    def link_lost(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(list(self.nodes.values())))
        node.connected = False
        self.register.on_link_lost(node.me.node, self.now)

    @rule(data=st.data())
    @precondition(lambda self: self.running())
    def read(self, data: st.DataObject) -> None:
        """A node reads what the head has sent it so far."""
        node = data.draw(st.sampled_from(self.running()))
        if node.connected:
            self.catch_up(node)

    def catch_up(self, node: Node) -> None:
        for to, former, head, rows in node.inbox:
            if to is not None:
                if counts(node.roster, to):
                    node.roster.on_welcome(head, rows, former, returns=True)
            elif head == node.roster.head:
                node.roster.on_rows(rows)
        node.inbox.clear()
        for effect in node.roster.take_effects():
            if type(effect) is BuryNode:
                node.heard_dead.append(effect.node)
                assert not effect.returns or effect.node in node.roster.former, (
                    "it is followed by who answers"
                )
            elif type(effect) is Leave:
                node.runs = False

    @rule(data=st.data(), to=st.sampled_from(["", None, 7, "word 1", "word 2", ["word 1"]]))
    @precondition(lambda self: self.running())
    def answer_from_somebody_else(self, data: st.DataObject, to: Any) -> None:
        """He has the cluster's key, and has not got the node's hello."""
        node = data.draw(st.sampled_from(self.running()))
        if to != self.asked.get(node.me.node):
            assert not counts(node.roster, to)

    @rule(data=st.data())
    @precondition(lambda self: self.running())
    def goodbye(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(self.running()))
        node.runs = False
        self.register.on_goodbye(node.me.node, "told to")
        if node.me.node in self.register.members:
            assert self.register.members[node.me.node].state in (DEAD, JOINING)

    @rule(data=st.data(), units=st.integers(0, 10_000))
    @precondition(lambda self: self.running())
    def report(self, data: st.DataObject, units: int) -> None:
        node = data.draw(st.sampled_from(self.running()))
        self.register.on_report(node.me.node, {"CPU": units}, [])

    @rule(seconds=st.sampled_from([0.01, SHARE_SECONDS, 1.0, GRACE_SECONDS, JOIN_SECONDS]))
    def wait(self, seconds: float) -> None:
        away = {
            node: self.register.deadline(node)
            for node, member in self.register.members.items()
            if member.state in (AWAY, JOINING)
        }
        self.now += seconds
        self.turn()
        for node, deadline in away.items():
            assert deadline is not None
            member = self.register.members.get(node)
            lives = member is not None and member.state != DEAD
            assert lives is (deadline > self.now), "given up too early, or too late"

    @rule(remembers=st.booleans())
    def restart_head(self, remembers: bool) -> None:
        """As a new cluster's, or as the one that knows what the last one knew."""
        members = [each for each in self.register.members.values() if each.state in (ALIVE, AWAY)]
        rows = [each.row for each in members if each.row.node != self.register.me]
        former = [*self.former, self.register.me]
        self.start_head(*(former, rows) if remembers else ([], []))
        for node in self.nodes.values():
            node.connected = False
            node.inbox.clear()

    # -- what must hold

    @invariant()
    def checks(self) -> None:
        self.register.check()
        self.head.check()
        for node in self.nodes.values():
            node.roster.check()

    @invariant()
    def nobody_dies_twice_or_rises(self) -> None:
        assert len(set(self.head_dead)) == len(self.head_dead)
        for node in self.nodes.values():
            assert len(set(node.heard_dead)) == len(node.heard_dead)
            assert {each.node for each in node.roster.living()}.isdisjoint(node.heard_dead)

    def teardown(self) -> None:
        """Healed: who runs says hello and is reached, who does not is given up; all agree in the end."""
        for node in self.running():
            self.say_hello(node)
            if node.me.node in self.refused:
                node.runs = False
            else:
                node.connected = True
                self.register.on_link_up(node.me.node)
        for node in self.nodes.values():
            if not node.runs:
                self.register.on_link_lost(node.me.node, self.now)
        for _ in range(3):
            self.now += JOIN_SECONDS
            self.turn()
        for node in self.running():
            self.catch_up(node)
        living = {each.node for each in self.head.living()}
        # Whoever was refused meanwhile ends, and is no member; nobody else is missing.
        assert living == {self.register.me} | {node.me.node for node in self.running()}
        for node in self.running():
            assert {each.node for each in node.roster.living()} == living
            assert node.roster.head == self.register.me
            for head in self.former:
                assert node.roster.home(process_id(head, 5)) == process_id(self.register.me, 0)
            assert node.roster.home(process_id(node.me.node, 5)) == process_id(node.me.node, 0)


def counts(roster: Roster, to: Any) -> bool:
    """Whether a letter with this word is an answer to the node."""
    try:
        roster.take_answer(to)
    except ValueError:
        return False
    return True


TestCluster = Cluster.TestCase


# ------------------------------------------------------------------------------------------------- single rules


def test_a_head_that_comes_back_waits_for_those_it_remembers() -> None:
    head = register()
    head.on_recovered([row(2), row(3), row(4, row(3).address), row(5, row(1).address)], 0.0)
    assert [each.node for each in head.rows()] == [node_id(1), node_id(2), node_id(3)]
    assert head.expected() == [], "they are told of nothing until they take this one for their head"
    head.on_hello(hello(row(2)), 0.0)
    head.on_link_up(node_id(2))
    assert head.expected() == [node_id(2)]
    assert head.tick(RETURN_SECONDS - 1) == RETURN_SECONDS
    head.tick(RETURN_SECONDS)
    assert head.members[node_id(2)].state == ALIVE
    assert head.members[node_id(3)].state == DEAD
    assert "did not find this one" in head.members[node_id(3)].row.cause
    head.check()


@pytest.mark.parametrize("returns", [False, True])
def test_a_head_that_ends_says_whether_it_comes_back(returns: bool) -> None:
    mine = roster()
    mine.on_head_goodbye("told to", returns=returns)
    assert mine.take_effects() == [BuryNode(node_id(1), "it ended: told to", returns)]
    assert mine.awaited == (node_id(1) if returns else None)
    assert mine.home(process_id(node_id(1), 3)) == process_id(node_id(1), 0), "nobody follows it yet"
    mine.on_welcome(node_id(9), [row(9, row(1).address, head=True), row(2)], [node_id(1)] if returns else [])
    assert mine.home(process_id(node_id(1), 3)) == process_id(node_id(9 if returns else 1), 0)


def test_only_who_was_asked_answers_and_once() -> None:
    mine = roster()
    assert not counts(mine, ""), "nobody was asked"
    mine.on_asked("first")
    mine.on_asked("second")
    assert [counts(mine, to) for to in (None, "", "first", ["second"], "second", "second")] == [False] * 4 + [
        True,
        False,
    ]


@pytest.mark.parametrize("changed", [{}, {"protocol": 2}, {"row": None}, {"address": 7}])
def test_an_answer_repeats_the_word_of_the_hello(changed: dict[str, Any]) -> None:
    head = register()
    head.on_hello(hello(row(2), ask="word") | changed, 0.0)
    (effect,) = head.take_effects()
    assert type(effect) in (Welcome, Refuse)
    assert effect.ask == "word"


def register() -> Register:
    return Register(row(1, head=True), IDENTITY)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("protocol", 2, ["protocol 2", "protocol 1"]),
        ("protocol", None, ["protocol None", "protocol 1"]),
        ("python", "3.12", ["3.12", "3.11", "minor"]),
        ("python", ["x" * 10_000], ["3.11"]),
    ],
)
def test_who_speaks_otherwise_is_refused_and_both_are_named(field: str, value: Any, named: list[str]) -> None:
    head = register()
    head.on_hello(hello(row(2)) | {field: value}, 0.0)
    (effect,) = head.take_effects()
    assert type(effect) is Refuse
    assert effect.address == row(2).address
    assert effect.node == node_id(2).hex()
    assert all(word in effect.why for word in named)
    assert len(effect.why) < 500
    assert list(head.members) == [node_id(1)]


def test_another_skate_of_the_same_protocol_is_let_in() -> None:
    head = register()
    head.on_hello(hello(row(2)) | {"skate": "9.9.9"}, 0.0)
    assert head.take_effects() == [Welcome(node_id(2), "")]


@pytest.mark.parametrize(
    "broken",
    [
        {"row": None},
        {"row": {}},
        {"row": row(2).to_plain() | {"node": "zz"}},
        {"row": row(2).to_plain() | {"node": "00000000"}},
        {"row": row(2).to_plain() | {"total": {"CPU": -1}}},
        {"row": row(2).to_plain() | {"total": {"CPU": 1.5}}},
        {"row": row(2).to_plain() | {"labels": {"a": 1}}},
        {"row": row(2).to_plain() | {"demands": [1]}},
        {"row": row(2).to_plain() | {"alive": 1}},
        {"known": [7]},
        {"known": 7},
    ],
)
def test_a_hello_that_makes_no_sense_is_refused(broken: dict[str, Any]) -> None:
    head = register()
    head.on_hello(hello(row(2)) | broken, 0.0)
    (effect,) = head.take_effects()
    assert type(effect) is Refuse
    assert "makes no sense" in effect.why
    head.check()


def test_a_hello_of_nothing_is_refused() -> None:
    head = register()
    for content in ({}, {"address": 5, "node": []}, IDENTITY._asdict()):
        head.on_hello(content, 0.0)
    assert [type(effect) for effect in head.take_effects()] == [Refuse] * 3


def test_a_node_at_the_head_s_own_address_is_refused() -> None:
    head = register()
    head.on_hello(hello(row(2, row(1).address)), 0.0)
    (effect,) = head.take_effects()
    assert type(effect) is Refuse
    assert "own" in effect.why
    head.check()


def test_a_node_is_listed_once_it_is_reached() -> None:
    head = register()
    head.on_hello(hello(row(2)), 0.0)
    assert [each.node for each in head.rows()] == [node_id(1)]
    assert head.expected() == [node_id(2)]
    head.on_link_up(node_id(2))
    assert [each.node for each in head.rows()] == [node_id(1), node_id(2)]


def test_a_node_that_is_never_reached_is_forgotten() -> None:
    head = register()
    head.on_hello(hello(row(2)), 0.0)
    assert head.tick(0.0) == JOIN_SECONDS
    head.tick(JOIN_SECONDS)
    assert DropNode(node_id(2)) in head.take_effects()
    assert list(head.members) == [node_id(1)]


def test_the_dead_are_refused() -> None:
    head = register()
    head.on_hello(hello(row(2)), 0.0)
    head.on_link_up(node_id(2))
    head.on_link_lost(node_id(2), 0.0)
    head.tick(GRACE_SECONDS)
    head.take_effects()
    head.on_hello(hello(row(2)), GRACE_SECONDS)
    (effect,) = head.take_effects()
    assert type(effect) is Refuse
    assert "taken for dead" in effect.why
    assert "3 s" in effect.why


def test_who_has_given_the_head_up_is_refused() -> None:
    head = register()
    buried = row(1, head=True)._replace(alive=False)
    head.on_hello(hello(row(2), [buried]), 0.0)
    (effect,) = head.take_effects()
    assert type(effect) is Refuse
    assert "taken the head's node for dead" in effect.why


def test_changes_leave_together() -> None:
    head = register()
    head.on_hello(hello(row(2)), 0.0)
    head.on_link_up(node_id(2))
    head.tick(0.0)
    assert [type(effect) for effect in head.take_effects()] == [Welcome, Share]
    for units in range(5):
        head.on_report(node_id(2), {"CPU": units}, [])
    assert head.tick(SHARE_SECONDS / 2) == SHARE_SECONDS
    assert not head.take_effects()
    head.tick(SHARE_SECONDS)
    (effect,) = head.take_effects()
    assert type(effect) is Share
    assert [each.available for each in effect.rows] == [{"CPU": 4}]


def test_what_a_node_says_again_is_no_change() -> None:
    """Each node tells each head what it has free, though that stood in its hello: in a large cluster, that is much."""
    head = register()
    head.on_hello(hello(row(2)), 0.0)
    head.on_link_up(node_id(2))
    head.tick(0.0)
    head.take_effects()
    same = row(2)
    head.on_report(node_id(2), same.available, same.demands, same.total)
    head.tick(SHARE_SECONDS)
    assert not head.take_effects()
    head.on_report(node_id(2), same.available, [({"CPU": 1.0}, 3, True)], same.total)
    head.tick(SHARE_SECONDS)
    assert [type(effect) for effect in head.take_effects()] == [Share]


def test_many_nodes_are_told_of_less_often() -> None:
    assert share_seconds(1) == share_seconds(100) == SHARE_SECONDS
    assert share_seconds(1000) == 10 * SHARE_SECONDS


def test_a_head_that_came_back_waits_for_those_it_hears_of() -> None:
    head = register()
    head.on_hello(hello(row(2), [row(3), row(4)._replace(alive=False, cause="old")]), 0.0)
    assert head.members[node_id(3)].state == AWAY
    assert head.members[node_id(4)].state == DEAD
    head.on_hello(hello(row(3)), 1.0)
    head.on_link_up(node_id(3))
    head.tick(GRACE_SECONDS)
    assert head.members[node_id(3)].state == ALIVE


# ------------------------------------------------------------------------------------------------------- rosters


def roster() -> Roster:
    mine = Roster(row(2), in_cluster=True)
    mine.on_welcome(node_id(1), [row(1, head=True), row(2), row(3)])
    return mine


def test_the_head_s_node_is_dead_when_it_does_not_come_back() -> None:
    mine = roster()
    mine.on_head_lost(0.0)
    assert mine.tick(1.0) == HEAD_SECONDS
    mine.on_head_up()
    assert mine.tick(2 * HEAD_SECONDS) is None
    mine.on_head_lost(0.0)
    mine.tick(HEAD_SECONDS)
    (effect,) = mine.take_effects()
    assert type(effect) is BuryNode
    assert effect.node == node_id(1)
    assert mine.is_dead(node_id(1))
    assert not mine.is_dead(node_id(3))


def test_a_head_that_was_started_again_is_another_node() -> None:
    mine = roster()
    mine.on_welcome(node_id(9), [row(9, row(1).address, head=True), row(2)])
    (effect,) = mine.take_effects()
    assert effect == BuryNode(node_id(1), "the head was started again at its address")
    assert mine.head == node_id(9)


def test_what_is_for_an_unknown_node_waits_for_the_head_s_word() -> None:
    mine = roster()
    mine.on_unknown(node_id(7), 0.0)
    assert mine.tick(0.0) == UNKNOWN_SECONDS
    mine.on_rows([row(7)])
    assert mine.take_effects() == [SendHeld(node_id(7))]
    mine.on_unknown(node_id(8), 0.0)
    mine.on_introduced(node_id(8), "10.0.0.8:7000")
    assert mine.take_effects() == [SendHeld(node_id(8))]
    assert mine.address(node_id(8)) == "10.0.0.8:7000"
    mine.on_unknown(node_id(9), 0.0)
    mine.tick(UNKNOWN_SECONDS)
    assert mine.take_effects() == [BuryNode(node_id(9), "no such node is in the cluster")]


def test_a_node_in_no_cluster_knows_at_once_that_there_is_no_other() -> None:
    alone = Roster(row(2), in_cluster=False)
    alone.on_unknown(node_id(3), 0.0)
    assert [type(effect) for effect in alone.take_effects()] == [BuryNode]


def test_a_node_that_was_taken_for_dead_ends() -> None:
    mine = roster()
    mine.on_rows([row(2)._replace(alive=False, cause="away")])
    (effect,) = mine.take_effects()
    assert type(effect) is Leave
    assert "away" in effect.why


def test_rows_survive_the_wire() -> None:
    one = row(2)._replace(demands=[({"CPU": 1.0}, 3, True)])
    assert Row.from_plain(one.to_plain()) == one
    assert Row.from_plain(one.to_plain() | {"added later": 1}) == one


def test_acquaintances() -> None:
    known = Acquaintances()
    first, second = process_id(node_id(1), 1), process_id(node_id(1), 2)
    known.met(first, node_id(2))
    known.met(first, node_id(3))
    known.met(first, node_id(2))
    known.met(second, node_id(3))
    known.on_node_died(node_id(3))
    assert known.on_process_died(first) == [node_id(2)]
    assert known.on_process_died(first) == []
    assert known.on_process_died(second) == []
