"""Placement groups on nodes that come, go, fill up and answer late: whole or absent, never too much, nobody lost.

The directory talks to simulated nodes over links that keep order and take their time. A node holds its bundles in the
real core.bundles, and follows groups by the real core.followed_groups; the model keeps, beside it, who was told what
and which groups ought to be there.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import pytest
from budgets import examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from skate._c.resources import UNITS_PER_ONE as ONE
from skate.core import followed_groups as core_followed
from skate.core import group_records as g
from skate.core import groups as core_groups
from skate.core.bundles import BundledResources
from skate.core.followed_groups import AskAgain, Follow, FollowedGroups
from skate.core.group_records import GroupSpec
from skate.core.groups import GroupDirectory
from skate.core.labels import parse_selector
from skate.core.node_table import NodeView
from skate.core.placement import STRATEGIES, WantedBundle, place
from skate.core.resources import Allocation, ResourceSet
from skate.ids import NodeId, ProcessId, TaskId, manager_of, node_of, process_id

MAKERS = [process_id(NodeId(b"node"), number) for number in (1, 2)]
WATCHER = process_id(NodeId(b"node"), 9)
BUNDLES = [{"CPU": ONE}, {"CPU": 2 * ONE}, {"CPU": ONE, "GPU": ONE}, {"GPU": ONE // 2}, {"CPU": 9 * ONE}]


class Told(NamedTuple):
    """An order to a node: a group stands so."""

    group: bytes
    state: int
    bundles: tuple[ResourceSet, ...]
    nodes: tuple[NodeId | None, ...]


class SimulatedNode:
    """A node's resources, and the mail that is under way to it and from it."""

    def __init__(self, cpus: int, gpus: int, zone: str) -> None:
        totals = {"CPU": cpus * ONE, "GPU": gpus * ONE}
        self.resources = BundledResources(totals, [f"GPU-{device}" for device in range(gpus)])
        self.labels = {"zone": zone}
        self.orders: deque[Any] = deque()
        self.answers: deque[tuple[bytes, int, bool, dict[str, int]]] = deque()
        self.tasks: list[Allocation] = []
        #: group -> what is claimed
        self.claims: dict[bytes, tuple[ResourceSet, ...]] = {}
        #: what it knows of groups, and what it has told its processes
        self.followed = FollowedGroups()
        self.told: dict[tuple[bytes, ProcessId], int] = {}

    def obey(self) -> None:
        """Does what the next order says."""
        order = self.orders.popleft()
        if type(order) is Told:
            self.followed.told(*order)
            return
        group, resources = order.group, self.resources
        if type(order) is g.PrepareBundles:
            taken = resources.prepare(group.id.hex(), order.bundles)
            self.answers.append((group.id, order.attempt, taken, resources.units()[1]))
        elif type(order) is g.CommitBundles:
            resources.commit(group.id.hex(), order.indexes)
        elif type(order) is g.ReturnBundles:
            resources.unprepare(group.id.hex(), order.indexes)
        elif type(order) is g.EndGroup:
            resources.remove_group(group.id.hex())
        elif type(order) is g.ClaimRoom:
            self.claims[group.id] = order.bundles
        else:
            assert type(order) is g.DropClaim
            assert self.claims.pop(group.id, None) is not None, "a claim is dropped that was not made"

    def bundles(self) -> dict[str, set[int]]:
        """Group -> its committed bundles here."""
        return {group: set(pool.committed) for group, pool in self.resources._pools.items()}


class Cluster:
    """The directory, its nodes, and who was told what."""

    def __init__(self) -> None:
        self.directory = GroupDirectory()
        self.nodes: dict[NodeId, SimulatedNode] = {}
        self.serial = 0
        self.now = 0.0
        self.made: dict[bytes, GroupSpec] = {}
        self.removed: set[bytes] = set()
        self.told: dict[tuple[bytes, ProcessId], int] = {}
        #: (group, process) that want to hear once it is CREATED or REMOVED
        self.waits: set[tuple[bytes, ProcessId]] = set()
        self.warned: list[bytes] = []
        #: with what each group ends, unless it is detached
        self.lives: dict[bytes, Any] = {}
        #: what a head that comes back would know
        self.written: dict[bytes, tuple[Any, ...]] = {}

    def join(self, cpus: int, gpus: int, zone: str = "a") -> NodeId:
        self.serial += 1
        node = NodeId(self.serial.to_bytes(4, "big"))
        simulated = self.nodes[node] = SimulatedNode(cpus, gpus, zone)
        self.directory.node_joined(NodeView(node, *simulated.resources.units(), simulated.labels))
        return node

    def leave(self, node: NodeId) -> None:
        del self.nodes[node]
        self.directory.node_left(node)
        self.removed |= {group for group, life in self.lives.items() if node_of(life) == node}

    def create(self, spec: GroupSpec, maker: ProcessId = MAKERS[0], job: Any = "job") -> bytes:
        """A process of the directory's node makes a group, or one of another node, whose manager says so."""
        self.serial += 1
        group = TaskId(maker + self.serial.to_bytes(8, "big"))
        simulated = self.nodes.get(node_of(maker))
        if simulated is None:
            assert self.directory.created(group, spec, job, self.now) is None
            self.waits.add((group, maker))
        else:
            simulated.followed.made(group, maker, "request")
            assert self.directory.created(group, spec, job, self.now, manager_of(maker)) is None
        self.made[group] = spec
        if not spec.detached:
            self.lives[group] = job
        return group

    def follow(self) -> None:
        """What nodes that follow groups have decided, is done."""
        for node, simulated in self.nodes.items():
            for effect in simulated.followed.take_effects():
                if type(effect) is Follow:
                    self.directory.watched(effect.group, process_id(node, 0), owner_lives=True)
                else:
                    assert type(effect) is g.TellGroup
                    for process in effect.watchers:
                        assert node_of(process) == node
                        simulated.told[effect.group, process] = effect.state

    def remove(self, group: bytes, by: ProcessId | None = None) -> None:
        self.directory.removed(group, by)
        self.removed.add(group)
        self.waits.discard((group, by))  # type: ignore[arg-type]

    def decide(self) -> None:
        for effect in self.directory.decide():
            if type(effect) is g.TellGroup:
                for watcher in effect.watchers:
                    self.told[effect.group, watcher] = effect.state
                    if watcher == manager_of(watcher):
                        if node_of(watcher) in self.nodes:
                            self.nodes[node_of(watcher)].orders.append(self.stands(effect))
                        continue
                    if effect.state in (g.CREATED, g.REMOVED):
                        self.waits.discard((effect.group, watcher))
                    elif effect.group not in self.removed:
                        self.waits.add((effect.group, watcher))
            elif type(effect) is g.WarnGroup:
                self.warned.append(effect.group.id)
            elif type(effect) is g.KeepGroup:
                self.keep(effect.group)
            else:
                assert effect.node in self.nodes, f"{effect} goes to a node that is gone"
                self.nodes[effect.node].orders.append(effect)

    def keep(self, group: g.Group) -> None:
        """It is to be written down how the group stands."""
        self.written.pop(group.id, None)
        if group.state != g.REMOVED:
            self.written[group.id] = (
                group.spec,
                group.lives_with,
                group.state != g.PENDING,
                list(group.nodes),
            )

    def stands(self, effect: g.TellGroup) -> Told:
        group = self.directory.groups.get(effect.group)
        if group is None:
            return Told(effect.group, g.REMOVED, (), ())
        return Told(group.id, effect.state, group.spec.bundles, tuple(group.nodes))

    def answer(self, node: NodeId) -> None:
        group, attempt, taken, available = self.nodes[node].answers.popleft()
        self.directory.prepared(node, group, attempt, taken, available, self.now)

    def report(self, node: NodeId) -> None:
        """The node tells what it has free, on the link of its answers; what is under way to it is not counted in."""
        while self.nodes[node].answers:
            self.answer(node)
        self.directory.node_updated(node, self.nodes[node].resources.units()[1])

    def settle(self) -> None:
        """All mail arrives, until there is none."""
        for _ in range(10_000):
            self.follow()
            self.decide()
            busy = [node for node, simulated in self.nodes.items() if simulated.orders or simulated.answers]
            if not busy:
                if not any(simulated.followed._effects for simulated in self.nodes.values()):
                    return
                continue
            for node in busy:
                while self.nodes[node].orders:
                    self.nodes[node].obey()
                self.report(node)  # it has given something back, perhaps
        raise AssertionError("the directory never comes to rest")

    def check(self) -> None:
        self.directory.check()
        for simulated in self.nodes.values():
            simulated.resources.check()
            simulated.followed.check()

    def check_at_rest(self) -> None:
        """With no mail under way: each group is whole or absent, on the nodes too."""
        there: dict[str, list[tuple[int, NodeId]]] = {}
        for node, simulated in self.nodes.items():
            for group, pool in simulated.resources._pools.items():
                assert not pool.prepared, "prepared bundles were forgotten"
                there.setdefault(group, []).extend((index, node) for index in pool.committed)
            for group in simulated.claims:
                assert self.directory.groups[group].state != g.CREATED
        for group_id, group in self.directory.groups.items():
            known = [(index, node) for index, node in enumerate(group.nodes) if node is not None]
            assert sorted(there.pop(group_id.hex(), [])) == known
        assert not there, "bundles of groups that are gone"
        assert self.written == {
            group.id: (group.spec, group.lives_with, group.state != g.PENDING, group.nodes)
            for group in self.directory.groups.values()
        }
        assert set(self.directory.groups) == set(self.made) - self.removed
        for group_id, process in self.waits:
            group = self.directory.groups[group_id]
            assert group.state != g.CREATED, f"{process.hex()} was not told"
        for node, simulated in self.nodes.items():
            self.check_followed(node, simulated)

    def check_followed(self, node: NodeId, simulated: SimulatedNode) -> None:
        """What a node knows of groups is so, and its processes were told."""
        for group_id, followed in simulated.followed.groups.items():
            if group_id not in self.made:
                assert followed.state is None, "nobody can know it"
                continue
            group = self.directory.groups.get(group_id)
            assert group is not None, "it is removed"
            if followed.state is None:  # whoever makes it is not told that it waits
                assert group.state == g.PENDING
                continue
            assert followed.state == group.state
            assert [at if at in self.nodes else None for at in followed.nodes] == group.nodes
            if followed.maker is not None:
                assert simulated.told.get((group_id, followed.maker), g.PENDING) == group.state
        for (group_id, process), state in simulated.told.items():
            if group_id in self.removed:  # who only asked hears once
                assert state == g.REMOVED or (state == g.CREATED and not group_id.startswith(process))

    def views(self) -> list[NodeView]:
        return [NodeView(node, *each.resources.units(), each.labels) for node, each in self.nodes.items()]

    def could_place(self, group: g.Group) -> bool:
        held = group.placed_on
        return place(group.missing(), group.spec.strategy, self.views(), held=held) is not None


specs = st.builds(
    GroupSpec,
    bundles=st.lists(st.sampled_from(BUNDLES).map(ResourceSet), min_size=1, max_size=3).map(tuple),
    strategy=st.sampled_from(STRATEGIES),
    name=st.sampled_from(["", "", "n", "m"]),
    namespace=st.just("space"),
    detached=st.booleans(),
    selectors=st.just(()),
    target=st.none(),
)


class GroupsModel(RuleBasedStateMachine):
    """Anything may happen at any time; mail arrives in order on each link, and not otherwise."""

    picks = st.integers(0, 20)

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()
        #: what groups live with, by the names that rules have for them
        self.jobs: dict[str, Any] = {"job": "job", "other": "other"}

    @initialize(nodes=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2)), min_size=1, max_size=3))
    def start(self, nodes: list[tuple[int, int]]) -> None:
        for cpus, gpus in nodes:
            self.cluster.join(cpus, gpus)

    def node(self, pick: int) -> NodeId | None:
        nodes = list(self.cluster.nodes)
        return nodes[pick % len(nodes)] if nodes else None

    def group(self, pick: int) -> bytes | None:
        groups = list(self.cluster.made)
        return groups[pick % len(groups)] if groups else None

    @rule(cpus=st.integers(1, 3), gpus=st.integers(0, 2), zone=st.sampled_from("ab"))
    def node_joins(self, cpus: int, gpus: int, zone: str) -> None:
        if len(self.cluster.nodes) < 5:
            self.cluster.join(cpus, gpus, zone)

    @rule(pick=picks)
    def node_dies(self, pick: int) -> None:
        node = self.node(pick)
        if node is not None:
            self.cluster.leave(node)

    @rule(
        spec=specs, maker=st.sampled_from(MAKERS), job=st.sampled_from(["job", "other"]), select=st.booleans()
    )
    def create(self, spec: GroupSpec, maker: ProcessId, job: str, select: bool) -> None:
        directory = self.cluster.directory
        if select:
            spec = spec._replace(selectors=(parse_selector({"zone": "a"}),) * len(spec.bundles))
        other = directory.named(spec.name, spec.namespace) if spec.name else None
        if other is not None:
            assert directory.created(b"never", spec, self.jobs[job], 0.0) is other
            return
        self.cluster.create(spec, maker, self.jobs[job])

    @rule(pick=picks, spec=specs, with_node=picks)
    def create_elsewhere(self, pick: int, spec: GroupSpec, with_node: int) -> None:
        """A process of another node makes one, of a driver that is on that node or a third."""
        node, other = self.node(pick), self.node(with_node)
        if node is not None and other is not None:
            self.cluster.create(spec._replace(name=""), process_id(node, 5), process_id(other, 6))

    @rule(pick=picks, at=picks, remove=st.booleans())
    def another_node_asks(self, pick: int, at: int, remove: bool) -> None:
        """One of its processes wants to hear of a group, or removes it."""
        node, group = self.node(at), self.group(pick)
        if node is None or group is None:
            return
        simulated = self.cluster.nodes[node]
        if remove:
            simulated.followed.told(group, g.REMOVED, (), ())
            self.cluster.remove(group)
        else:
            simulated.followed.watched(group, process_id(node, 7))
            if not simulated.followed.is_gone(group):
                simulated.told.setdefault((group, process_id(node, 7)), g.PENDING)

    @rule(pick=picks, maker=st.sampled_from(MAKERS), spec=specs, at=picks)
    def removed_before_it_is_made(self, pick: int, maker: ProcessId, spec: GroupSpec, at: int) -> None:
        cluster, node = self.cluster, self.node(at)
        early = TaskId(maker + (cluster.serial + 1).to_bytes(8, "big"))
        if node is not None:
            cluster.nodes[node].followed.watched(early, process_id(node, 7))
            cluster.follow()
        cluster.directory.removed(early, awaited=True)
        assert cluster.create(spec._replace(name=""), maker) == early
        cluster.removed.add(early)
        cluster.waits.discard((early, maker))
        assert early not in cluster.directory.groups

    @rule(pick=picks, by=st.sampled_from([None, MAKERS[0], WATCHER]))
    def remove(self, pick: int, by: ProcessId | None) -> None:
        group = self.group(pick)
        if group is not None:
            self.cluster.remove(group, by)

    @rule(job=st.sampled_from(["job", "other"]))
    def job_ends(self, job: str) -> None:
        directory, ended = self.cluster.directory, self.jobs[job]
        gone = {group.id for group in directory.groups.values() if group.lives_with == ended}
        assert not any(directory.groups[group].spec.detached for group in gone)
        directory.ended(ended)
        self.cluster.removed |= gone
        late = self.cluster.create(GroupSpec((CPU,), "PACK"), MAKERS[0], ended)  # its word was on its way
        assert late not in directory.groups
        self.cluster.removed.add(late)
        self.cluster.waits.discard((late, MAKERS[0]))
        self.jobs[job] += "'"

    @rule(pick=picks)
    def watch(self, pick: int) -> None:
        group = self.group(pick)
        if group is not None:
            self.cluster.waits.add((group, WATCHER))
            self.cluster.directory.watched(group, WATCHER, owner_lives=True)

    @rule(pick=picks)
    def said_again(self, pick: int) -> None:
        group = self.group(pick)
        if group is not None:
            spec = self.cluster.made[group]._replace(name="")
            assert self.cluster.directory.created(group, spec, "job", 0.0) is None

    @rule()
    def decide(self) -> None:
        self.cluster.decide()

    @rule(pick=picks)
    def an_order_arrives(self, pick: int) -> None:
        node = self.node(pick)
        if node is not None and self.cluster.nodes[node].orders:
            self.cluster.nodes[node].obey()

    @rule(pick=picks)
    def an_answer_arrives(self, pick: int) -> None:
        node = self.node(pick)
        if node is not None and self.cluster.nodes[node].answers:
            self.cluster.answer(node)

    @rule(pick=picks, demand=st.sampled_from(BUNDLES))
    def task_begins(self, pick: int, demand: dict[str, int]) -> None:
        node = self.node(pick)
        if node is not None:
            allocation = self.cluster.nodes[node].resources.allocate(ResourceSet(demand))
            if allocation is not None:
                self.cluster.nodes[node].tasks.append(allocation)

    @rule(pick=picks)
    def task_ends(self, pick: int) -> None:
        node = self.node(pick)
        if node is not None and self.cluster.nodes[node].tasks:
            self.cluster.nodes[node].resources.release(self.cluster.nodes[node].tasks.pop())

    @rule(pick=picks)
    def node_reports(self, pick: int) -> None:
        node = self.node(pick)
        if node is not None:
            self.cluster.report(node)

    @rule()
    def all_mail_arrives(self) -> None:
        self.cluster.settle()
        self.cluster.check_at_rest()

    @rule(pick=picks)
    def news_that_make_no_sense(self, pick: int) -> None:
        directory, node = self.cluster.directory, NodeId(b"none")
        directory.node_left(node)
        directory.node_updated(node, {"CPU": ONE})
        directory.room_made(node)
        directory.removed(b"x" * 16)
        for group in directory.groups:
            directory.prepared(node, group, directory.groups[group].attempt, True, {}, 0.0)
            directory.prepared(node, group, 99, False, {}, 0.0)

    @invariant()
    def holds(self) -> None:
        self.cluster.check()

    def teardown(self) -> None:
        """The tasks end and mail arrives: what can be placed is; then all groups end, and nothing is held."""
        cluster = self.cluster
        for simulated in cluster.nodes.values():
            for task in simulated.tasks:
                simulated.resources.release(task)
            simulated.tasks.clear()
        cluster.settle()
        for _ in range(20):
            for node in cluster.nodes:
                cluster.report(node)
            cluster.settle()
        cluster.check()
        cluster.check_at_rest()
        for group in cluster.directory.groups.values():
            if group.state != g.CREATED and cluster.could_place(group):
                assert group.avoids, (
                    f"{group} waits, though there is room"
                )  # halves of two GPUs look like a whole
        for group_id in list(cluster.directory.groups):
            cluster.remove(group_id)
        cluster.settle()
        cluster.check_at_rest()
        for simulated in cluster.nodes.values():
            assert not simulated.followed.groups.keys() & cluster.made.keys()
        assert not cluster.waits
        assert not cluster.directory.names
        assert not cluster.directory.waiting
        for simulated in cluster.nodes.values():
            assert simulated.resources.available_dict() == simulated.resources.total_dict()
            assert not simulated.claims


GroupsModel.TestCase.settings = settings(max_examples=examples(150), stateful_step_count=50, deadline=None)
TestGroupsModel = GroupsModel.TestCase


# -------------------------------------------------------------------------------------------------- by example

CPU = ResourceSet({"CPU": ONE})
TWO = ResourceSet({"CPU": 2 * ONE})


def spec(*bundles: ResourceSet, strategy: str = "PACK", **more: Any) -> GroupSpec:
    return GroupSpec(bundles, strategy, **more)


def state(cluster: Cluster, group: bytes) -> str:
    return g.STATE_NAMES[cluster.directory.find(group).state]  # type: ignore[union-attr]


def test_one_prepare_and_one_commit_a_node() -> None:
    cluster = Cluster()
    first, second = cluster.join(1, 0), cluster.join(1, 0)
    group = cluster.create(spec(CPU, CPU, strategy="SPREAD"))
    cluster.decide()
    for node in (first, second):
        assert [type(order) for order in cluster.nodes[node].orders] == [g.PrepareBundles]
        cluster.nodes[node].obey()
    cluster.answer(first)
    cluster.decide()
    assert state(cluster, group) == "PENDING"
    assert not cluster.nodes[first].bundles().get(group.hex())
    cluster.answer(second)
    cluster.decide()
    assert cluster.told[group, MAKERS[0]] == g.CREATED
    for node in (first, second):
        assert [type(order) for order in cluster.nodes[node].orders] == [g.CommitBundles]


def test_one_refusal_gives_all_back_and_it_is_tried_again() -> None:
    cluster = Cluster()
    first, second = cluster.join(1, 0), cluster.join(1, 0)
    task = cluster.nodes[second].resources.allocate(CPU)  # the directory has not heard of it
    assert task is not None
    group = cluster.create(spec(CPU, CPU, strategy="STRICT_SPREAD"))
    cluster.settle()
    assert state(cluster, group) == "PENDING"
    assert cluster.nodes[first].resources.available_dict() == {"CPU": 1.0}
    cluster.report(second)
    cluster.settle()
    cluster.nodes[second].resources.release(task)
    cluster.report(second)
    cluster.settle()
    assert state(cluster, group) == "CREATED"


def test_bundles_of_a_dead_node_go_before_new_groups() -> None:
    cluster = Cluster()
    first, second = cluster.join(2, 0), cluster.join(1, 0)
    group = cluster.create(spec(CPU, TWO, strategy="STRICT_SPREAD"))
    cluster.settle()
    assert cluster.directory.groups[group].nodes == [second, first]
    waiting = cluster.create(spec(TWO))
    cluster.settle()
    cluster.leave(first)
    cluster.decide()
    assert state(cluster, group) == "RESCHEDULING"
    assert cluster.told[group, MAKERS[0]] == g.RESCHEDULING
    third = cluster.join(2, 0)
    cluster.settle()
    assert state(cluster, group) == "CREATED"
    assert cluster.directory.groups[group].nodes == [second, third], "the other bundle stays"
    assert cluster.told[group, MAKERS[0]] == g.CREATED
    assert state(cluster, waiting) == "PENDING"


def test_another_node_that_dies_while_bundles_of_the_first_are_placed_again() -> None:
    cluster = Cluster()
    first, second = cluster.join(1, 0), cluster.join(1, 0)
    group = cluster.create(spec(CPU, CPU, strategy="STRICT_SPREAD"))
    cluster.settle()
    third = cluster.join(1, 0)
    cluster.leave(first)
    cluster.decide()
    cluster.nodes[third].obey()
    cluster.leave(second)
    cluster.settle()
    assert state(cluster, group) == "RESCHEDULING"
    assert cluster.nodes[third].resources.available_dict() == {"CPU": 1.0}
    fourth = cluster.join(1, 0)
    cluster.settle()
    assert state(cluster, group) == "CREATED"
    assert {*cluster.directory.groups[group].nodes} == {third, fourth}


def test_a_node_that_dies_with_its_answer_under_way() -> None:
    cluster = Cluster()
    first, second = cluster.join(1, 0), cluster.join(1, 0)
    group = cluster.create(spec(CPU, CPU, strategy="STRICT_SPREAD"))
    cluster.decide()
    cluster.leave(second)
    cluster.settle()
    assert state(cluster, group) == "PENDING"
    assert cluster.nodes[first].resources.available_dict() == {"CPU": 1.0}
    cluster.join(1, 0)
    cluster.settle()
    assert state(cluster, group) == "CREATED"


def test_room_is_cleared_where_only_tasks_are_in_the_way() -> None:
    cluster = Cluster()
    node = cluster.join(2, 0)
    simulated = cluster.nodes[node]
    task = simulated.resources.allocate(CPU)
    assert task is not None
    cluster.report(node)
    group = cluster.create(spec(TWO))
    behind = cluster.create(spec(TWO))
    cluster.settle()
    assert simulated.claims == {group: (TWO,)}, "there is no room for two"
    small = cluster.create(spec(CPU))
    cluster.settle()
    assert state(cluster, small) == "CREATED", "one that fits does not wait behind those that do not"
    assert simulated.claims == {}, "now a group is in the way"
    cluster.remove(small)
    simulated.resources.release(task)
    cluster.settle()
    cluster.report(node)
    cluster.settle()
    assert state(cluster, group) == "CREATED"
    assert state(cluster, behind) == "PENDING"
    assert simulated.claims == {}


def test_infeasible_groups_are_told_once_and_placed_when_a_node_joins() -> None:
    cluster = Cluster()
    cluster.join(1, 0)
    group = cluster.create(spec(TWO))
    for _ in range(3):
        cluster.settle()
        cluster.create(spec(CPU))
    assert cluster.warned == [group]
    assert cluster.directory.groups[group].infeasible
    cluster.join(2, 0)
    cluster.settle()
    assert state(cluster, group) == "CREATED"


def test_who_asks_before_the_maker_speaks_is_told_later() -> None:
    cluster = Cluster()
    cluster.join(2, 0)
    directory = cluster.directory
    early = TaskId(MAKERS[0] + (7).to_bytes(8, "big"))
    directory.watched(early, WATCHER, owner_lives=True)
    assert not directory.is_gone(early, owner_lives=True)
    assert directory.is_gone(early, owner_lives=False)
    directory.created(early, spec(CPU), "job", 0.0)
    cluster.made[early] = spec(CPU)
    cluster.settle()
    assert cluster.told[early, WATCHER] == g.CREATED
    never = TaskId(MAKERS[0] + (8).to_bytes(8, "big"))
    directory.watched(never, WATCHER, owner_lives=True)
    directory.process_left(MAKERS[0])
    cluster.decide()
    assert cluster.told[never, WATCHER] == g.REMOVED


def test_ids_below_the_newest_are_of_removed_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_groups, "REMOVED_REMEMBERED", 1)
    cluster = Cluster()
    first, second = cluster.create(spec(CPU)), cluster.create(spec(CPU))
    cluster.remove(first)
    cluster.remove(second)
    assert cluster.directory.find(first) is None
    assert cluster.directory.find(second) is not None
    assert cluster.directory.is_gone(first, owner_lives=True)
    cluster.directory.watched(first, WATCHER, owner_lives=True)
    cluster.decide()
    assert cluster.told[first, WATCHER] == g.REMOVED


def test_whoever_removes_it_is_not_told() -> None:
    cluster = Cluster()
    cluster.join(2, 0)
    group = cluster.create(spec(CPU))
    cluster.settle()
    cluster.remove(group, MAKERS[0])
    cluster.settle()
    assert cluster.told[group, MAKERS[0]] == g.CREATED
    other = cluster.create(spec(CPU))
    cluster.settle()
    cluster.remove(other, WATCHER)
    cluster.settle()
    assert cluster.told[other, MAKERS[0]] == g.REMOVED


def test_detached_ones_outlive_their_job() -> None:
    cluster = Cluster()
    cluster.join(3, 0)
    stays = cluster.create(spec(CPU, detached=True, name="n"))
    goes = cluster.create(spec(CPU))
    cluster.settle()
    cluster.directory.ended("job")
    cluster.settle()
    assert state(cluster, stays) == "CREATED"
    assert state(cluster, goes) == "REMOVED"
    assert cluster.directory.named("n", "") is cluster.directory.groups[stays]


def test_check_notices() -> None:
    cluster = Cluster()
    cluster.join(3, 0)
    group = cluster.create(spec(CPU))
    cluster.settle()
    cluster.check()
    cluster.directory.groups[group].nodes = [None]
    with pytest.raises(AssertionError):
        cluster.check()


def test_missing_bundles_keep_their_selectors() -> None:
    selectors = (parse_selector({"zone": "a"}), ())
    group = g.Group(b"x" * 16, GroupSpec((CPU, TWO), "PACK", selectors=selectors), "job", 0.0)
    assert group.missing() == [WantedBundle(0, CPU, selectors[0]), WantedBundle(1, TWO, ())]


# ------------------------------------------------------------------------------------------- as other nodes know them

GROUP = b"g" * 16
HERE = NodeId(b"here")
PROCESS = process_id(HERE, 1)


def test_a_follower_asks_once_and_tells_who_waits() -> None:
    followed = FollowedGroups()
    followed.watched(GROUP, PROCESS)
    followed.wanted(GROUP)
    assert followed.take_effects() == [Follow(GROUP)]
    assert followed.offered(GROUP) == {}
    followed.told(GROUP, g.PENDING, (CPU, TWO), (None, None))
    assert followed.take_effects() == [g.TellGroup(GROUP, g.PENDING, ())]
    followed.told(GROUP, g.CREATED, (CPU, TWO), (HERE, HERE))
    assert followed.take_effects() == [g.TellGroup(GROUP, g.CREATED, (PROCESS,))]
    name = GROUP.hex()
    offered = followed.offered(GROUP)[HERE]
    assert offered[f"CPU_group_{name}"] == 3 * ONE
    assert offered[f"CPU_group_1_{name}"] == 2 * ONE
    followed.told(GROUP, g.REMOVED, (), ())
    assert followed.take_effects() == [g.TellGroup(GROUP, g.REMOVED, ())]
    assert followed.is_gone(GROUP)
    followed.watched(GROUP, PROCESS)
    assert followed.take_effects() == [g.TellGroup(GROUP, g.REMOVED, (PROCESS,))]


def test_what_is_removed_here_stays_removed_whatever_is_on_its_way() -> None:
    followed = FollowedGroups()
    followed.made(GROUP, PROCESS, "request")
    followed.told(GROUP, g.REMOVED, (), ())
    followed.take_effects()
    followed.told(GROUP, g.CREATED, (CPU,), (HERE,))
    assert followed.is_gone(GROUP)
    assert not followed.take_effects()


def test_another_head() -> None:
    """What was placed has ended; what was made, or asked about, and not told of is asked again."""
    placed, wanted, made, asked = (bytes([number]) * 16 for number in (1, 2, 3, 4))
    followed = FollowedGroups()
    followed.made(placed, PROCESS, "make that")
    followed.made(made, PROCESS, "make it")
    followed.registered(placed, PROCESS)
    followed.registered(made, PROCESS)
    followed.made(asked, PROCESS, "it is not answered, so whoever has asked asks again")
    followed.told(placed, g.CREATED, (CPU,), (HERE,))
    followed.watched(wanted, PROCESS)
    followed.take_effects()
    followed.head_changed(remembers=False)
    assert set(followed.take_effects()) == {
        AskAgain("make it"),
        Follow(wanted),
        g.TellGroup(placed, g.REMOVED, (PROCESS,)),
    }
    assert followed.newest() == [made]
    followed.check()


def test_a_head_that_has_come_back() -> None:
    """It is asked how all stand that it has heard of."""
    placed, wanted, made, asked = (bytes([number]) * 16 for number in (1, 2, 3, 4))
    followed = FollowedGroups()
    for group in (placed, made, asked):
        followed.made(group, PROCESS, "request")
    for group in (placed, made):
        followed.registered(group, PROCESS)
    followed.told(placed, g.CREATED, (CPU,), (HERE,))
    followed.watched(wanted, PROCESS)
    followed.take_effects()
    followed.head_changed(remembers=True)
    assert followed.take_effects() == [Follow(placed), Follow(wanted), Follow(made)]
    followed.told(placed, g.RESCHEDULING, (CPU,), (None,))
    assert followed.take_effects() == [g.TellGroup(placed, g.RESCHEDULING, (PROCESS,))]
    followed.process_left(PROCESS)
    assert not followed.newest()


def test_a_follower_forgets_who_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_followed, "REMOVED_REMEMBERED", 1)
    followed = FollowedGroups()
    followed.made(GROUP, PROCESS, "request")
    followed.watched(GROUP, PROCESS)
    followed.process_left(PROCESS)
    followed.told(GROUP, g.CREATED, (CPU,), (HERE,))
    assert followed.take_effects() == [g.TellGroup(GROUP, g.CREATED, ())]
    followed.told(GROUP, g.REMOVED, (), ())
    followed.told(b"x" * 16, g.REMOVED, (), ())
    assert not followed.is_gone(GROUP), "it is asked about again"
    followed.check()


def test_groups_end_with_the_node_of_their_driver_or_actor() -> None:
    cluster = Cluster()
    first, second = cluster.join(2, 0), cluster.join(2, 0)
    driver = process_id(second, 3)
    goes = cluster.create(spec(CPU), process_id(first, 2), driver)
    stays = cluster.create(spec(CPU, detached=True), process_id(second, 2), driver)
    of_process = cluster.create(spec(CPU), process_id(first, 2), process_id(first, 9))
    cluster.settle()
    cluster.directory.process_left(process_id(first, 9))
    cluster.removed.add(of_process)
    cluster.settle()
    assert state(cluster, of_process) == "REMOVED"
    cluster.leave(second)
    cluster.settle()
    cluster.check_at_rest()
    assert state(cluster, goes) == "REMOVED"
    assert state(cluster, stays) == "CREATED"


def test_a_group_whose_maker_died_with_its_node_is_not_waited_for() -> None:
    cluster = Cluster()
    first, second = cluster.join(1, 0), cluster.join(1, 0)
    never = TaskId(process_id(second, 2) + bytes(8))
    cluster.nodes[first].followed.watched(never, process_id(first, 7))
    cluster.settle()
    cluster.leave(second)
    cluster.settle()
    assert cluster.nodes[first].told[never, process_id(first, 7)] == g.REMOVED
