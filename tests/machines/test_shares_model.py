"""The splitting of what owners want over nodes, against dictionaries of what each node was asked for and grants."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from skate.core.group_names import asked_of_group, of_bundle
from skate.core.node_table import NodeTable, NodeView
from skate.core.policies import NODE, Choice, NodeChooser, Where
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
        self.views = NodeTable()
        self.refused: set[tuple[ProcessId, int]] = set()
        #: what each owner wants, and was not granted
        self.wants: dict[tuple[ProcessId, int], int] = {}
        self.look(ME)

    def look(self, node: NodeId) -> None:
        """The node is known as it is now."""
        has = self.nodes[node]
        self.views.put(NodeView(node, has.total, dict(has.free)))

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

    @rule(kind=st.integers(0, len(DEMANDS) - 1), chance=st.floats(0, 0.99), roams=st.booleans())
    def actor_wants(self, kind: int, chance: float, roams: bool) -> None:
        """It wants one worker, for the first time or when it starts again."""
        actor = ProcessId(OWNERS[kind % 2] + bytes([kind] * 8))
        if not self.wants.get((actor, 0)):
            self.wants[actor, 0] = 1
            self.shares.wanted(actor, 0, DEMANDS[kind], None, 1, None, for_actor=True, roams=roams)
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
                self.shares.actor_placed(key[0])
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
        del self.nodes[node]
        self.views.drop(node)
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
        self.views.check()
        asked: dict[tuple[ProcessId, int], int] = {}
        for node in self.nodes.values():
            for key, (_, waiting, reserved) in node.asked.items():
                asked[key] = asked.get(key, 0) + waiting + reserved
        for key, split in self.shares.splits.items():
            if split.for_actor and (split.leaves is not None or split.lost) and not asked.get(key):
                asked[key] = 1  # it is asked for again once that node has let go of it
        assert {key: n for key, n in asked.items() if n} == {key: n for key, n in self.wants.items() if n}


TestCluster = Cluster.TestCase


class Fixed(NodeChooser):
    """Says what it is told to say."""

    choice = Choice(None, never="it cannot be")

    def choose(self, *_: Any, **__: Any) -> Choice:
        return self.choice


def split_of(shares: Shares, views: list[NodeView]) -> dict[NodeId, int]:
    """node -> what it was asked for."""
    effects = shares.decide(NodeTable(views), lambda: 0.0, lambda _: (0, 0))
    return {effect.node: effect.wanted for effect in effects if type(effect) is Ask}


OTHER = NodeId(b"\0\0\0\2")


def test_this_node_first_then_others_the_rest_waits_here() -> None:
    shares = Shares(ME, NodeChooser())
    shares.wanted(OWNERS[0], 1, DEMANDS[0], None, 9, None)
    views = [NodeView(ME, {"CPU": 2 * ONE}), NodeView(OTHER, {"CPU": 4 * ONE})]
    assert split_of(shares, views) == {ME: 5, OTHER: 4}


def test_what_is_rather_for_a_node_waits_for_it_as_long_as_it_is_there() -> None:
    shares = Shares(ME, NodeChooser())
    rather = Where(NODE, node=OTHER.hex(), soft=True)
    shares.wanted(OWNERS[0], 1, DEMANDS[0], rather, 3, None)
    views = [NodeView(ME, {"CPU": 2 * ONE}), NodeView(OTHER, {"CPU": 2 * ONE}, {"CPU": ONE})]
    assert split_of(shares, views) == {OTHER: 3}
    shares.node_died(OTHER)
    assert split_of(shares, views[:1]) == {ME: 3}


def wants_near(shares: Shares, wanted: int, near: dict[NodeId, int]) -> None:
    shares.wanted(OWNERS[0], 9, ResourceSet({"CPU": ONE}), None, wanted, None, near=near)


def test_where_most_bytes_are_first_and_what_has_no_room_waits_there() -> None:
    shares = Shares(ME, NodeChooser())
    third = NodeId(b"\0\0\0\3")
    wants_near(shares, 9, {OTHER: 10, third: 5})
    views = [NodeView(node, {"CPU": 2 * ONE}) for node in (ME, OTHER, third)]
    assert split_of(shares, views) == {OTHER: 5, third: 2, ME: 2}
    shares.check()


def test_a_split_of_tasks_with_large_arguments_goes_when_nothing_is_wanted() -> None:
    shares = Shares(ME, NodeChooser())
    wants_near(shares, 1, {OTHER: 10})
    views = [NodeView(node, {"CPU": ONE}) for node in (ME, OTHER)]
    (ask,) = shares.decide(NodeTable(views), lambda: 0.0, lambda _: (0, 0))
    assert isinstance(ask, Ask)
    shares.stands(OTHER, OWNERS[0], 9, ask.number, 0, 1)
    assert shares.splits
    shares.stands(OTHER, OWNERS[0], 9, ask.number, 0, 0)
    assert not shares.splits
    wants_near(shares, 0, {OTHER: 10})
    assert split_of(shares, views) == {}
    assert not shares.splits


def test_what_can_never_be_is_refused_and_forgotten() -> None:
    shares = Shares(ME, Fixed())
    shares.wanted(OWNERS[0], 1, DEMANDS[0], Where("NODE", "ff"), 1, None)
    views = NodeTable([NodeView(ME, {"CPU": ONE})])
    (refusal,) = shares.decide(views, lambda: 0.0, lambda _: (0, 0))
    assert isinstance(refusal, Refuse)
    assert refusal.why == "it cannot be"
    assert not shares.splits


ACTOR = ProcessId(OWNERS[0] + bytes(8))
THIRD = NodeId(b"\0\0\0\3")


def actor_that_waits() -> tuple[Shares, NodeView, NodeView]:
    """It waits on another node; and the views of this one and that one."""
    shares = Shares(ME, NodeChooser())
    shares.wanted(ACTOR, 0, ResourceSet({"x": ONE}), None, 1, None, for_actor=True)
    mine, other = NodeView(ME, {"CPU": ONE}), NodeView(OTHER, {"x": ONE}, {"x": 0})
    assert split_of(shares, [mine, other]) == {OTHER: 1}
    return shares, mine, other


def test_an_actor_that_waits_elsewhere_stays_where_there_is_no_room_elsewhere_either() -> None:
    shares, mine, other = actor_that_waits()
    shares.look_again()
    third = NodeView(THIRD, {"x": ONE}, {"x": 0})
    assert split_of(shares, [mine, other, third]) == {}
    shares.look_again()
    other.set_free("x", ONE)
    assert split_of(shares, [mine, other, NodeView(THIRD, {"x": ONE})]) == {}
    shares.node_died(OTHER)
    assert split_of(shares, [mine, third]) == {THIRD: 1}


def test_an_actor_moves_once_the_node_where_it_waited_has_let_go_of_it() -> None:
    shares, mine, other = actor_that_waits()
    views = [mine, other, NodeView(THIRD, {"x": ONE})]
    shares.look_again()
    assert split_of(shares, views) == {OTHER: 0}
    shares.check()
    shares.look_again()
    assert split_of(shares, views) == {}, "it has not said yet that it did"
    shares.stands(OTHER, ACTOR, 0, 1, 0, 0)
    assert split_of(shares, views) == {}, "that was about an older request"
    shares.stands(OTHER, ACTOR, 0, 2, 0, 0)
    assert split_of(shares, views) == {THIRD: 1}
    shares.check()


def test_an_actor_does_not_move_that_was_placed_meanwhile() -> None:
    for reserved in (0, 1):
        shares, mine, other = actor_that_waits()
        views = [mine, other, NodeView(THIRD, {"x": ONE})]
        shares.look_again()
        assert split_of(shares, views) == {OTHER: 0}
        if not reserved:  # the worker was there when the node was asked to let go
            shares.actor_placed(ACTOR)
        shares.stands(OTHER, ACTOR, 0, 2, 0, reserved)
        shares.look_again()
        assert split_of(shares, views) == {}


def test_an_actor_moves_when_the_node_dies_that_was_to_let_go_of_it() -> None:
    shares, mine, other = actor_that_waits()
    third = NodeView(THIRD, {"x": ONE})
    shares.look_again()
    assert split_of(shares, [mine, other, third]) == {OTHER: 0}
    shares.node_died(OTHER)
    assert split_of(shares, [mine, third]) == {THIRD: 1}


GROUP = "ab" * 16
IN_GROUP = ResourceSet(asked_of_group(GROUP, -1, {"CPU": ONE}))


def with_bundle(node: NodeId, bundles: int = 1) -> NodeView:
    return NodeView(node, of_bundle(GROUP, 0, {"CPU": bundles * ONE}) | {"CPU": 4 * ONE})


def test_what_runs_in_a_group_follows_its_bundles() -> None:
    shares = Shares(ME, NodeChooser())
    shares.wanted(OWNERS[0], 1, IN_GROUP, None, 3, None)
    assert set(shares.groups_to_split()) == {GROUP}
    nowhere = [NodeView(ME, {"CPU": 4 * ONE}), NodeView(OTHER, {"CPU": 4 * ONE})]
    assert split_of(shares, nowhere) == {ME: 3}
    effects = []
    shares.group_changed("no such group")
    assert not shares.undecided
    shares.group_changed(GROUP)
    views = NodeTable([nowhere[0], with_bundle(OTHER)])
    effects = shares.decide(views, lambda: 0.0, lambda _: (3, 0))
    assert {effect.node: effect.wanted for effect in effects} == {ME: 0, OTHER: 3}  # type: ignore[union-attr]
    shares.node_died(OTHER)
    assert split_of(shares, [nowhere[0], with_bundle(THIRD)]) == {THIRD: 3}
    shares.check()


def test_this_node_hears_when_a_group_comes_to_it() -> None:
    """What waited here because the group was nowhere may run here now: admission must know."""
    shares = Shares(ME, NodeChooser())
    where = Where(selectors=((),))
    shares.wanted(OWNERS[0], 1, IN_GROUP, where, 1, None)
    (ask,) = shares.decide(NodeTable([NodeView(ME, {"CPU": ONE})]), lambda: 0.0, lambda _: (0, 0))
    assert isinstance(ask, Ask)
    assert (ask.node, ask.wanted, ask.allowed) == (ME, 1, False)
    shares.group_changed(GROUP)
    (ask,) = shares.decide(NodeTable([with_bundle(ME)]), lambda: 0.0, lambda _: (1, 0))
    assert isinstance(ask, Ask)
    assert (ask.node, ask.wanted, ask.allowed) == (ME, 1, True)


def test_the_end_of_a_group_ends_all_that_was_to_run_in_it() -> None:
    shares = Shares(ME, NodeChooser())
    shares.wanted(OWNERS[0], 1, IN_GROUP, None, 3, None)
    shares.wanted(ACTOR, 0, IN_GROUP, None, 1, None, for_actor=True)
    shares.wanted(OWNERS[1], 1, DEMANDS[0], None, 1, None)
    views = [NodeView(ME, {"CPU": 4 * ONE}), with_bundle(OTHER, 2)]
    assert split_of(shares, views) == {OTHER: 1, ME: 1}
    shares.wanted(OWNERS[1], 2, IN_GROUP, None, 1, None)  # nobody was asked for it yet
    ended = shares.group_ended(GROUP)
    assert [(split.owner, split.class_id) for split in ended] == [(OWNERS[0], 1), (ACTOR, 0), (OWNERS[1], 2)]
    assert list(shares.splits) == [(OWNERS[1], 1)]
    assert not shares.undecided
    assert shares.group_ended(GROUP) == []
    shares.check()


def test_an_old_answer_is_not_heard() -> None:
    shares = Shares(ME, NodeChooser())
    views = [NodeView(ME, {}), NodeView(OTHER, {"x": ONE})]
    shares.wanted(OWNERS[0], 1, DEMANDS[2], None, 1, None)
    assert split_of(shares, views) == {OTHER: 1}
    shares.wanted(OWNERS[0], 1, DEMANDS[2], None, 5, None)
    assert split_of(shares, views) == {OTHER: 5}
    shares.stands(OTHER, OWNERS[0], 1, 1, 0, 1)
    assert shares.splits[OWNERS[0], 1].waiting() == 5


def test_actors_that_hold_nothing_wait_on_all_nodes_alike() -> None:
    """They come faster than the nodes tell what they have free, and each holds a CPU for a moment alone."""
    shares = Shares(ME, NodeChooser())
    views = NodeTable()
    for node in (ME, OTHER, THIRD):
        views.put(NodeView(node, {"CPU": ONE}, {"CPU": 0}))
    for number in range(6):
        actor = ProcessId(OWNERS[0] + bytes([number] * 8))
        shares.wanted(actor, 0, ResourceSet({"CPU": ONE}), None, 1, None, for_actor=True, roams=True)
    chances = iter([0.1, 0.5, 0.9, 0.2, 0.6, 0.8])
    asked = shares.decide(views, lambda: next(chances), lambda split: (0, 0))
    assert sorted(ask.node for ask in asked if isinstance(ask, Ask) and ask.wanted) == sorted(
        [ME, OTHER, THIRD] * 2
    )
    shares.check()
