"""The splitting of what owners want over nodes, against dictionaries of what each node was asked for and grants."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from skate.core.policies import Choice, NodeChooser, NodeView, Where
from skate.core.resources import ResourceSet
from skate.core.shares import STEPS, Ask, Refuse, Shares, Split
from skate.ids import NodeId, ProcessId, process_id

ONE = 10_000
ME = NodeId(b"\0\0\0\1")
OWNERS = [process_id(ME, number) for number in (1, 2)]
DEMANDS = [
    ResourceSet({"CPU": ONE}),
    ResourceSet({"CPU": 2 * ONE}),
    ResourceSet({"x": ONE}),
    ResourceSet({}),
]
WHERES = [None, Where("SPREAD"), Where("NODE", ME.hex()), Where("NODE", "00000002", soft=True)]


class Node:
    """A node as it is: what it has, and what it was asked for. It grants when the test says so."""

    def __init__(self, total: dict[str, int]) -> None:
        self.total = total
        self.free = dict(total)
        #: (owner, class) -> [number, waiting, reserved]
        self.asked: dict[tuple[ProcessId, int], list[int]] = {}
        #: of whom the owner has not been told yet: (split's key, demand)
        self.demands: dict[tuple[ProcessId, int], ResourceSet] = {}


class Cluster(RuleBasedStateMachine):
    """Owners of one node ask; nodes reserve, grant, tell of themselves, join and die, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = Shares(ME, NodeChooser())
        self.nodes: dict[NodeId, Node] = {ME: Node({"CPU": 2 * ONE})}
        self.views: dict[NodeId, NodeView] = {}
        self.refused: set[tuple[ProcessId, int]] = set()
        #: what each owner wants, and was not granted
        self.wants: dict[tuple[ProcessId, int], int] = {}
        self.look(ME)

    def look(self, node: NodeId) -> None:
        """The node is known as it is now."""
        has = self.nodes[node]
        self.views[node] = NodeView(node, has.total, has.free)

    def decide(self, chance: float = 0.0) -> None:
        self.look(ME)
        for effect in self.shares.decide(self.views, lambda: chance, self.stands_here):
            split = effect.split
            key = split.owner, split.class_id
            if type(effect) is Refuse:
                self.wants[key] = 0
                continue
            assert type(effect) is Ask
            assert effect.node in self.nodes, "a dead node is asked"
            node = self.nodes[effect.node]
            node.demands[key] = split.demand
            node.asked[key] = [effect.number, effect.wanted, node.asked.get(key, [0, 0, 0])[2]]
            if effect.node != ME:
                can = all(node.total.get(name, 0) >= units for name, units in split.demand.items())
                assert can or not effect.wanted, "asked for what it can never run"

    def stands_here(self, split: Split) -> tuple[int, int]:
        _, waiting, reserved = self.nodes[ME].asked.get((split.owner, split.class_id), (0, 0, 0))
        return waiting, reserved

    @rule(
        owner=st.sampled_from(OWNERS),
        kind=st.integers(0, len(DEMANDS) - 1),
        where=st.integers(0, len(WHERES) - 1),
        wanted=st.integers(0, 12) | st.just(3 * STEPS),
        chance=st.floats(0, 0.99),
    )
    def owner_wants(self, owner: ProcessId, kind: int, where: int, wanted: int, chance: float) -> None:
        class_id = kind * len(WHERES) + where
        self.wants[owner, class_id] = max(wanted, self.coming(owner, class_id))
        self.shares.wanted(owner, class_id, DEMANDS[kind], WHERES[where], wanted, None)
        self.decide(chance)

    def coming(self, owner: ProcessId, class_id: int) -> int:
        return sum(node.asked.get((owner, class_id), [0, 0, 0])[2] for node in self.nodes.values())

    @rule(data=st.data())
    def reserves(self, data: Any) -> None:
        """A node takes resources for what waits there, and says so."""
        node = data.draw(st.sampled_from(sorted(self.nodes)))
        has = self.nodes[node]
        for key, standing in has.asked.items():
            demand = has.demands[key]
            if standing[1] and all(has.free.get(name, 0) >= units for name, units in demand.items()):
                for name, units in demand.items():
                    has.free[name] -= units
                standing[1] -= 1
                standing[2] += 1
                break
        self.tell(node)

    @rule(data=st.data())
    def grants(self, data: Any) -> None:
        """A node has a worker for what has its resources; the owner hears, and gives it back some day."""
        node = data.draw(st.sampled_from(sorted(self.nodes)))
        has = self.nodes[node]
        for key, standing in has.asked.items():
            if standing[2]:
                standing[2] -= 1
                self.wants[key] -= 1
                for name, units in has.demands[key].items():
                    has.free[name] += units
                break
        self.tell(node)

    def tell(self, node: NodeId) -> None:
        if node != ME:
            for (owner, class_id), (number, waiting, reserved) in self.nodes[node].asked.items():
                self.shares.stands(node, owner, class_id, number, waiting, reserved)

    @rule(chance=st.floats(0, 0.99))
    def nodes_are_looked_at(self, chance: float) -> None:
        for node in self.nodes:
            self.look(node)
        self.shares.look_again()
        self.decide(chance)

    @precondition(lambda self: len(self.nodes) < 4)
    @rule(number=st.integers(2, 9), cpus=st.integers(0, 3), x=st.integers(0, 1))
    def joins(self, number: int, cpus: int, x: int) -> None:
        node = NodeId(number.to_bytes(4, "big"))
        if node not in self.nodes:
            self.nodes[node] = Node({"CPU": cpus * ONE, "x": x * ONE})
            self.look(node)
            self.shares.look_again()
            self.decide()

    @precondition(lambda self: len(self.nodes) > 1)
    @rule(data=st.data())
    def dies(self, data: Any) -> None:
        node = data.draw(st.sampled_from(sorted(set(self.nodes) - {ME})))
        del self.nodes[node], self.views[node]
        self.shares.node_died(node)
        self.decide()

    @rule(owner=st.sampled_from(OWNERS))
    def leaves(self, owner: ProcessId) -> None:
        self.shares.owner_left(owner)
        for node in self.nodes.values():
            for key in [key for key in node.asked if key[0] == owner]:
                _, _, reserved = node.asked.pop(key)
                for name, units in node.demands[key].items():
                    node.free[name] = node.free.get(name, 0) + units * reserved
        self.wants = {key: wanted for key, wanted in self.wants.items() if key[0] != owner}

    @invariant()
    def nothing_is_forgotten_or_asked_for_twice(self) -> None:
        self.shares.check()
        asked: dict[tuple[ProcessId, int], int] = {}
        for node in self.nodes.values():
            for key, (_, waiting, reserved) in node.asked.items():
                asked[key] = asked.get(key, 0) + waiting + reserved
        assert {key: n for key, n in asked.items() if n} == {key: n for key, n in self.wants.items() if n}


TestCluster = Cluster.TestCase


class Fixed(NodeChooser):
    """Says what it is told to say."""

    choice = Choice(None, never="it cannot be")

    def choose(self, *_: Any, **__: Any) -> Choice:
        return self.choice


def split_of(shares: Shares, views: list[NodeView]) -> dict[NodeId, int]:
    """node -> what it was asked for."""
    table = {view.id: view for view in views}
    effects = shares.decide(table, lambda: 0.0, lambda _: (0, 0))
    return {effect.node: effect.wanted for effect in effects if type(effect) is Ask}


OTHER = NodeId(b"\0\0\0\2")


def test_this_node_first_then_others_the_rest_waits_here() -> None:
    shares = Shares(ME, NodeChooser())
    shares.wanted(OWNERS[0], 1, DEMANDS[0], None, 9, None)
    views = [NodeView(ME, {"CPU": 2 * ONE}), NodeView(OTHER, {"CPU": 4 * ONE})]
    assert split_of(shares, views) == {ME: 5, OTHER: 4}


def test_what_can_never_be_is_refused_and_forgotten() -> None:
    shares = Shares(ME, Fixed())
    shares.wanted(OWNERS[0], 1, DEMANDS[0], Where("NODE", "ff"), 1, None)
    views = {ME: NodeView(ME, {"CPU": ONE})}
    (refusal,) = shares.decide(views, lambda: 0.0, lambda _: (0, 0))
    assert isinstance(refusal, Refuse)
    assert refusal.why == "it cannot be"
    assert not shares.splits


def test_an_actor_that_waits_elsewhere_stays() -> None:
    shares = Shares(ME, NodeChooser())
    actor = ProcessId(OWNERS[0] + bytes(8))
    shares.wanted(actor, 0, ResourceSet({"x": ONE}), None, 1, None, for_actor=True)
    views = [NodeView(ME, {"CPU": ONE}), NodeView(OTHER, {"x": ONE}, {"x": 0})]
    assert split_of(shares, views) == {OTHER: 1}
    shares.look_again()
    third = NodeView(NodeId(b"\0\0\0\3"), {"x": ONE})
    assert split_of(shares, [*views, third]) == {}
    shares.node_died(OTHER)
    assert split_of(shares, [views[0], third]) == {third.id: 1}


def test_an_old_answer_is_not_heard() -> None:
    shares = Shares(ME, NodeChooser())
    views = [NodeView(ME, {}), NodeView(OTHER, {"x": ONE})]
    shares.wanted(OWNERS[0], 1, DEMANDS[2], None, 1, None)
    assert split_of(shares, views) == {OTHER: 1}
    shares.wanted(OWNERS[0], 1, DEMANDS[2], None, 5, None)
    assert split_of(shares, views) == {OTHER: 5}
    shares.stands(OTHER, OWNERS[0], 1, 1, 0, 1)
    assert shares.splits[OWNERS[0], 1].waiting() == 5
