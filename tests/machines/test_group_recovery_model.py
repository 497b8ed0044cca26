"""Heads that are killed and come back, and the placement groups of the nodes that live on.

Real directories, ledgers, followers and bundles. What a head decides is written at the end of its turn, before any of
it leaves; a kill loses what is not written, and what is on its way. Nodes that live on ask again what was not answered,
and say what they have; and each bundle that they may use stays where it is as long as its group.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from budgets import examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from skate._c.resources import UNITS_PER_ONE as ONE
from skate.core import group_records as g
from skate.core.actors import ALIVE
from skate.core.followed_groups import AskAgain, Follow
from skate.core.group_records import GroupSpec, HeldBundles
from skate.core.groups import GroupDirectory
from skate.core.ledger import Gang, Ledger, Record, Standing
from skate.core.placement import STRATEGIES
from skate.core.policies import NodeView
from skate.core.resources import ResourceSet
from skate.ids import PROCESS_ID_BYTES, NodeId, ProcessId, TaskId, manager_of, node_of, owner_of, process_id
from test_groups_model import SimulatedNode, Told

ACTOR_SPEC = {"environment": ("job", ())}
JOB = {"id": "job"}


class Answer(NamedTuple):
    """The head has done what it was asked."""

    what: str
    identifier: bytes


class Node(SimulatedNode):
    """One that may outlive heads."""

    def __init__(self) -> None:
        super().__init__(cpus=3, gpus=0, zone="a")
        #: the head that it has called last
        self.head: NodeId | None = None
        #: what the head was asked, and has not answered: "make" or "remove" a group, or a driver has "left"
        self.asked: list[tuple[str, bytes]] = []
        #: to how much of that the answers are under way, if no head dies
        self.answered = 0

    def held(self) -> list[HeldBundles]:
        return [HeldBundles(bytes.fromhex(group), *bundles) for group, *bundles in self.resources.bundles()]


class Heads(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.serial = itertools.count(1)
        self.file: list[Record] = []
        self.nodes: dict[NodeId, Node] = {}
        #: nodes that died and of which the head may not have written that
        self.ghosts: set[NodeId] = set()
        self.specs: dict[bytes, GroupSpec] = {}
        #: group -> with what it ends
        self.lives: dict[bytes, bytes | None] = {}
        #: groups that ought to be there
        self.there: set[bytes] = set()
        self.actors: set[bytes] = set()
        #: drivers that have left
        self.gone: set[bytes] = set()
        self.head: NodeId | None = None
        self.start_head()

    # -- the head

    def start_head(self) -> None:
        self.ledger = Ledger(self.file)
        self.ledger.mend()
        self.ledger.check(mended=True)
        self.former = self.ledger.heads()
        self.head = self.new_node()
        self.nodes[self.head].head = self.head
        self.ledger.head_began(self.head)
        self.directory = GroupDirectory()
        self.directory.node_joined(self.view(self.head))
        for group, gang in self.ledger.groups():
            spec = GroupSpec.from_kept(gang.spec)
            self.directory.recovered(group, spec, gang.lives_with, gang.nodes, 0.0, created=gang.created)
        self.to_call = {NodeId(row["node"]) for row in self.ledger.nodes()}
        assert self.to_call >= self.nodes.keys() - {self.head}
        self.directory.check()
        self.turn()

    def new_node(self) -> NodeId:
        node = NodeId(next(self.serial).to_bytes(4, "big"))
        self.nodes[node] = Node()
        return node

    def view(self, node: NodeId) -> NodeView:
        return NodeView(node, *self.nodes[node].resources.units(), {})

    def lives_process(self, process: bytes) -> bool:
        return node_of(process) in self.nodes and process not in self.gone

    def turn(self) -> None:
        """What the head has decided is written, and leaves."""
        if self.head is None:
            return
        told: list[Any] = []
        for effect in self.directory.decide():
            if type(effect) is g.KeepGroup:
                self.keep(effect.group)
            else:
                told.append(effect)
        self.file += self.ledger.take_records()
        for node in self.nodes.values():
            if node.head == self.head:
                node.orders.extend(Answer(*asked) for asked in node.asked[node.answered :])
                node.answered = len(node.asked)
        for effect in told:
            if type(effect) is g.TellGroup:
                for watcher in effect.watchers:
                    assert watcher == manager_of(watcher)
                    if node_of(watcher) in self.nodes:
                        self.nodes[node_of(watcher)].orders.append(self.stands(effect))
            elif type(effect) is not g.WarnGroup:
                assert self.nodes[effect.node].head == self.head, "nothing is placed where nobody has called"
                self.nodes[effect.node].orders.append(effect)

    def keep(self, group: g.Group) -> None:
        """As node.ledger does."""
        life = group.lives_with
        if group.state == g.REMOVED:
            self.ledger.group_removed(group.id)
        elif life is None or len(life) > 8 or node_of(life) != self.head:
            gang = Gang(group.spec.kept(), life, group.state != g.PENDING, list(group.nodes))
            self.ledger.group_stands(group.id, gang)

    def stands(self, effect: g.TellGroup) -> Told:
        group = self.directory.groups.get(effect.group)
        if group is None:
            return Told(effect.group, g.REMOVED, (), ())
        return Told(group.id, effect.state, group.spec.bundles, tuple(group.nodes))

    # -- the others

    def follow(self, name: NodeId) -> None:
        """A node does what it has decided about groups, or says it to the head that there is."""
        node = self.nodes[name]
        for effect in node.followed.take_effects():
            if type(effect) is g.TellGroup:
                if effect.state == g.REMOVED:
                    node.resources.remove_group(effect.group.hex())
            elif node.head != self.head:
                pass  # there is none to say it to
            elif type(effect) is Follow:
                lives = effect.group in self.directory.groups or self.lives_process(effect.group)
                self.directory.watched(effect.group, process_id(name, 0), lives)
            else:
                assert type(effect) is AskAgain
                self.make(effect.request)

    def ask(self, name: NodeId, what: str, identifier: bytes) -> None:
        """A node asks the head for something, or the next one."""
        node = self.nodes[name]
        node.asked.append((what, identifier))
        if node.head == self.head:
            self.hear(what, identifier)

    def hear(self, what: str, identifier: bytes) -> None:
        if what == "make":
            self.make(identifier)
        elif what == "remove":
            self.directory.removed(identifier, awaited=self.lives_process(identifier))
        else:
            self.directory.ended(identifier)

    def obey(self, name: NodeId) -> None:
        """A node takes in what the head has said next."""
        node = self.nodes[name]
        if type(node.orders[0]) is not Answer:
            node.obey()
        else:
            what, identifier = answer = node.orders.popleft()
            assert node.asked.pop(0) == answer
            node.answered -= 1
            if what == "make":
                node.followed.registered(identifier, owner_of(identifier))
        self.follow(name)

    def make(self, group: bytes) -> None:
        life = self.lives[group]
        self.directory.created(group, self.specs[group], life, 0.0, manager_of(group))
        if life is not None and life not in self.actors and not self.lives_process(life):
            self.directory.ended(life)  # (whose node would tell, where it lives)

    def call(self, name: NodeId) -> None:
        """A node has found the head that has come."""
        node = self.nodes[name]
        assert self.head is not None
        may_use = {(group, index) for group, indexes in node.bundles().items() for index in indexes}
        self.to_call.discard(name)
        remembers, node.head = node.head in self.former, self.head
        node.claims.clear()
        if not remembers:
            for group in list(node.bundles()):
                node.resources.remove_group(group)
        node.followed.head_changed(remembers=remembers)
        self.follow(name)
        self.directory.node_joined(self.view(name), node.held())
        self.directory.makers_called(node.followed.newest())
        for asked in node.asked:
            self.hear(*asked)
        self.turn()
        for order in node.orders:
            if type(order) is g.EndGroup or (type(order) is Told and order.state == g.REMOVED):
                assert (order.group if type(order) is Told else order.group.id) not in self.there
        for group, index in may_use:
            if bytes.fromhex(group) in self.there:
                assert self.directory.groups[bytes.fromhex(group)].nodes[index] == name, "it stays"

    def node_is_dead(self, name: NodeId) -> None:
        """The head has heard of that."""
        self.ghosts.discard(name)
        self.to_call.discard(name)
        self.ledger.node_died(name)
        self.directory.node_left(name)

    # -- what happens

    @rule()
    @precondition(lambda self: len(self.nodes) < 5 and self.head is not None)
    def a_node_joins(self) -> None:
        node = self.new_node()
        self.nodes[node].head = self.head
        self.ledger.node_listed(node, {"node": node})
        self.directory.node_joined(self.view(node))
        self.turn()  # it was listed before it could say anything

    def some(self, data: st.DataObject) -> NodeId | None:
        nodes = sorted(self.nodes.keys() - {self.head})
        return data.draw(st.sampled_from(nodes)) if nodes else None

    @rule(data=st.data())
    def a_node_dies(self, data: st.DataObject) -> None:
        node = self.some(data)
        if node is not None:
            self.turn()
            known = dict(Ledger(self.file).groups()) if self.head is None else self.directory.groups
            self.there -= {group for group in self.there - known.keys() if node_of(group) == node}
            dead = self.nodes.pop(node)
            if dead.head != self.head:
                for what, group in dead.asked:
                    if what == "remove" and group in known:
                        self.there.add(group)  # nobody knows that it is not wanted
            self.end_lives()
            self.ghosts.add(node)
            if self.head is not None:
                self.node_is_dead(node)

    def end_lives(self) -> None:
        """The groups that have lived with what was there have ended; but detached actors of heads come back."""
        self.there = {
            group
            for group in self.there
            if self.lives[group] is None
            or self.lives[group] in self.actors
            or self.lives_process(self.lives[group] or b"")
        }

    @rule(
        data=st.data(),
        bundles=st.lists(st.sampled_from([1, 1, 2]), min_size=1, max_size=3),
        strategy=st.sampled_from(STRATEGIES),
        life=st.sampled_from(["detached", "driver", "driver of another", "driver of the head's", "actor"]),
        named=st.booleans(),
    )
    @precondition(lambda self: len(self.specs) < 20)
    def a_group_is_made(
        self, data: st.DataObject, bundles: list[int], strategy: str, life: str, named: bool
    ) -> None:
        name = self.some(data)
        if name is None:
            return
        number = next(self.serial)
        group = TaskId(process_id(name, 5) + number.to_bytes(8, "big"))
        lives: bytes | None = process_id(name, number)
        if life == "detached":
            lives = None
        elif life == "driver of another":
            lives = process_id(self.some(data) or name, number)
        elif self.head is not None and life == "driver of the head's":
            lives = process_id(self.head, number)
        elif self.head is not None and life == "actor":
            lives = process_id(self.head, 7) + number.to_bytes(8, "big")
            self.actors.add(lives)
            self.ledger.actor_stands(lives, Standing("", "", ALIVE, 0, 0, b"", 0, None))  # type: ignore[arg-type]
            self.ledger.actor_described(lives, ACTOR_SPEC, JOB)  # type: ignore[arg-type]
            self.file += self.ledger.take_records()
        self.specs[group] = GroupSpec(
            tuple(ResourceSet({"CPU": cpus * ONE}) for cpus in bundles),
            strategy,
            name=f"name{number}" if named else "",
            detached=lives is None,
        )
        self.lives[group] = lives
        self.there.add(group)
        self.nodes[name].followed.made(group, process_id(name, 5), group)
        self.ask(name, "make", group)

    @rule(data=st.data())
    @precondition(lambda self: self.specs)
    def another_node_follows(self, data: st.DataObject) -> None:
        name, group = self.some(data), data.draw(st.sampled_from(sorted(self.specs)))
        if name is not None:
            self.nodes[name].followed.wanted(group)
            self.follow(name)

    @rule(data=st.data())
    @precondition(lambda self: self.there)
    def a_group_is_removed(self, data: st.DataObject) -> None:
        name, group = self.some(data), data.draw(st.sampled_from(sorted(self.there)))
        followed = None if name is None else self.nodes[name].followed.groups.get(group)
        if name is None or (followed is None and manager_of(group) != process_id(name, 0)):
            return  # how would it know the group?
        if manager_of(group) != process_id(name, 0) and followed is not None and followed.state is None:
            return  # (nor is it sure that the maker will not ask for it once more)
        self.there.discard(group)
        self.ask(name, "remove", group)
        self.nodes[name].followed.told(group, g.REMOVED, (), ())
        self.follow(name)

    @rule(data=st.data())
    def a_driver_leaves(self, data: st.DataObject) -> None:
        drivers = [life for life in self.lives.values() if life and len(life) == PROCESS_ID_BYTES]
        drivers = [driver for driver in drivers if node_of(driver) in self.nodes.keys() - {self.head}]
        if not drivers:
            return
        driver = ProcessId(data.draw(st.sampled_from(drivers)))
        name = node_of(driver)
        self.there = {group for group in self.there if self.lives[group] != driver}
        self.gone.add(driver)
        self.ask(name, "left", driver)

    @rule()
    def the_head_takes_a_turn(self) -> None:
        self.turn()

    @rule(data=st.data(), much=st.booleans())
    @precondition(lambda self: self.nodes)
    def mail_arrives(self, data: st.DataObject, much: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.nodes)))
        node = self.nodes[name]
        while node.orders:
            self.obey(name)
            if not much:
                break

    @rule(data=st.data())
    @precondition(lambda self: self.head is not None)
    def answers_arrive(self, data: st.DataObject) -> None:
        self.answer(data.draw(st.sampled_from(sorted(self.nodes))))

    def answer(self, name: NodeId) -> None:
        node = self.nodes[name]
        if node.head != self.head:
            return
        while node.answers:
            group, attempt, taken, available = node.answers.popleft()
            self.directory.prepared(name, group, attempt, taken, available, 0.0)
        self.directory.node_updated(name, node.resources.units()[1])

    @rule(decided=st.booleans(), back=st.booleans())
    @precondition(lambda self: self.head is not None)
    def the_head_is_killed(self, decided: bool, back: bool) -> None:
        """Between turns, or in the middle of one; with what is on its way from it and to it."""
        if decided:
            self.turn()
        assert self.head is not None
        del self.nodes[self.head]
        self.end_lives()
        self.head = None
        for node in self.nodes.values():
            node.orders.clear()
            node.answers.clear()
            node.answered = 0
            assert node.head is not None
        if back:
            self.start_head()

    @rule()
    @precondition(lambda self: self.head is None)
    def the_head_comes_back(self) -> None:
        self.start_head()

    @rule(data=st.data())
    @precondition(lambda self: self.to_call and self.head is not None)
    def a_node_calls(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.to_call)))
        self.call(name) if name in self.nodes else self.node_is_dead(name)

    # -- what must hold

    @invariant()
    def checks(self) -> None:
        if self.head is not None:
            self.directory.check()
            self.ledger.check()
        for node in self.nodes.values():
            node.resources.check()
            node.followed.check()

    def settle(self) -> None:
        if self.head is None:
            self.start_head()
        for name in sorted(self.to_call):
            self.call(name) if name in self.nodes else self.node_is_dead(name)
        for _ in range(200):
            self.turn()
            for name, node in self.nodes.items():
                while node.orders:
                    self.obey(name)
                self.answer(name)
            if not self.directory.undecided:
                return
        raise AssertionError("it never comes to rest")

    @rule()
    def all_is_quiet(self) -> None:
        """What ought to be there is, whole on its nodes, and known to who follows it; nothing else is."""
        self.settle()
        assert self.directory.groups.keys() == self.there
        held: dict[str, dict[int, NodeId]] = {}
        for name, node in self.nodes.items():
            for group, pool in node.resources._pools.items():
                assert not pool.prepared
                held.setdefault(group, {}).update(dict.fromkeys(pool.committed, name))
            for group_id, followed in node.followed.groups.items():
                assert group_id in self.there, "nobody has said that it is gone"
                group_at_head = self.directory.groups[group_id]
                if followed.state is None:
                    assert group_at_head.state == g.PENDING
                else:
                    assert followed.state == group_at_head.state
                    assert [at if at in self.nodes else None for at in followed.nodes] == group_at_head.nodes
        for group_at_head in self.directory.groups.values():
            places = {index: at for index, at in enumerate(group_at_head.nodes) if at is not None}
            assert held.pop(group_at_head.id.hex(), {}) == places
            name = group_at_head.spec.name
            assert not name or self.directory.named(name, "") is group_at_head
        assert not held, "bundles of groups that are gone"
        ends_with_head = {
            group
            for group in self.there
            if (self.lives[group] or b"").startswith(self.head or b"?")
            and self.lives[group] not in self.actors
        }
        assert {group for group, _ in self.ledger.groups()} == self.there - ends_with_head
        assert not self.directory._awaited
        assert not self.directory._unwanted

    def teardown(self) -> None:
        self.all_is_quiet()
        for group in sorted(self.there):
            self.there.discard(group)
            self.directory.removed(group)
        self.all_is_quiet()
        for node in self.nodes.values():
            assert node.resources.available_dict() == {"CPU": 3.0}
            assert not node.claims


Heads.TestCase.settings = settings(max_examples=examples(200), stateful_step_count=50, deadline=None)
TestHeads = Heads.TestCase


# -------------------------------------------------------------------------------------------------- by example

NODE, OTHER = NodeId(b"node"), NodeId(b"othe")
GROUP, UNKNOWN = (
    TaskId(process_id(NODE, 5) + bytes(7) + b"\1"),
    TaskId(process_id(NODE, 5) + bytes(7) + b"\2"),
)
CPU = ResourceSet({"CPU": ONE})


def come_back(*nodes: NodeId | None, created: bool = True, life: bytes | None = None) -> GroupDirectory:
    """A head's directory that knows of one group, whose bundles were on these nodes."""
    directory = GroupDirectory()
    spec = GroupSpec((CPU,) * len(nodes), "PACK", detached=life is None)
    directory.recovered(GROUP, spec, life, nodes, 0.0, created=created)
    return directory


def joins(directory: GroupDirectory, node: NodeId, *held: HeldBundles) -> list[Any]:
    """Says what follows, but for what is written down."""
    directory.node_joined(NodeView(node, {"CPU": 3 * ONE}, {}, {}), held)
    directory.check()
    return [effect for effect in directory.decide() if type(effect) is not g.KeepGroup]


def test_what_a_node_has_that_joins_again() -> None:
    group = (directory := come_back(NODE, NODE)).groups[GROUP]
    assert not directory.decide()
    assert joins(directory, NODE, HeldBundles(GROUP, [], [0, 1])) == []
    assert (group.state, group.nodes) == (g.CREATED, [NODE, NODE])
    assert directory.unreserved(NODE, "CPU") == ONE

    group = (directory := come_back(NODE, OTHER)).groups[GROUP]
    assert joins(directory, NODE, HeldBundles(GROUP, [0], [])) == [g.CommitBundles(NODE, group, (0,))], (
        "it was written down, and not said"
    )
    effects = joins(directory, OTHER, HeldBundles(GROUP, [0], []))
    assert effects[:2] == [g.ReturnBundles(OTHER, group, (0,)), g.TellGroup(GROUP, g.RESCHEDULING, ())]
    directory.node_updated(OTHER, {"CPU": 3 * ONE})
    orders = [effect for effect in directory.decide() if type(effect) is g.PrepareBundles]
    assert [order.node for order in orders] == [OTHER]
    directory.check()


def test_what_a_node_has_and_nobody_knows() -> None:
    group = (directory := come_back(None, created=False)).groups[GROUP]
    assert group.state == g.PENDING
    effects = joins(directory, NODE, HeldBundles(GROUP, [0], []), HeldBundles(UNKNOWN, [], [0]))
    assert effects[:2] == [
        g.ReturnBundles(NODE, group, (0,)),
        g.TellGroup(UNKNOWN, g.REMOVED, (manager_of(NODE),)),
    ]
    group = (directory := come_back(OTHER)).groups[GROUP]
    assert joins(directory, NODE, HeldBundles(GROUP, [], [0])) == [g.EndGroup(NODE, group)]
    assert group.nodes == [OTHER]


def test_what_happens_before_a_node_joins_again() -> None:
    directory = come_back(NODE, OTHER)
    assert joins(directory, NODE, HeldBundles(GROUP, [], [0])) == []
    directory.node_left(OTHER)
    assert directory.groups[GROUP].nodes == [NODE, None]
    directory.check()

    directory = come_back(OTHER)
    directory.removed(GROUP)
    assert [type(effect) for effect in directory.decide()] == [g.KeepGroup, g.TellGroup]
    assert joins(directory, OTHER, HeldBundles(GROUP, [], [0])) == [
        g.TellGroup(GROUP, g.REMOVED, (manager_of(OTHER),))
    ]

    directory = come_back(NODE, life=process_id(OTHER, 3))
    directory.node_left(OTHER)  # it does not come back, and the group's driver was there
    assert not directory.groups


def test_who_asks_about_what_is_gone_hears_when_its_maker_s_node_calls() -> None:
    directory = come_back(NODE)
    directory.watched(UNKNOWN, process_id(OTHER, 0), owner_lives=True)
    directory.removed(UNKNOWN, awaited=True)
    assert not directory.decide()
    directory.makers_called([UNKNOWN])
    assert directory.decide() == [g.TellGroup(UNKNOWN, g.REMOVED, (process_id(OTHER, 0),))]
    assert not directory._unwanted
    assert GROUP in directory.groups
