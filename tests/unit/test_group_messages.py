"""What managers say of placement groups, well formed or not, to a head and to another node: done or refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from skate.core.admission import Admission
from skate.core.bundles import BundledResources
from skate.core.group_records import CREATED, PENDING, REMOVED, GroupSpec
from skate.core.resources import ResourceSet
from skate.core.roster import Roster, Row
from skate.ids import NodeId, ProcessId, TaskId, manager_of, process_id
from skate.node.bundles import NodeBundles
from skate.node.groups import Hooks, NodeGroups
from skate.node.head import HeadLink
from skate.wire import messages as m

ONE = 10_000
HEAD, OTHER, STRANGE = NodeId(b"head"), NodeId(b"othe"), NodeId(b"stra")
MAKER = process_id(OTHER, 3)
GROUP = TaskId(MAKER + bytes(7) + b"\1")
SPEC = {
    "bundles": [{"CPU": ONE}, {"CPU": ONE}],
    "strategy": "STRICT_SPREAD",
    "name": "",
    "namespace": "space",
    "detached": False,
    "selectors": [],
    "target": None,
}
ODD: list[Any] = [
    None, True, -1, 2**62, 1.5, "text", b"bytes", [], {}, [None], [1, 2], ["CPU"], {"CPU": "many"}, {"CPU": -1},
    [{"CPU": -1}], [{"CPU": 1.5}], [{1: 1}], {-1: {"CPU": 1}}, {"0": {"CPU": 1}}, {0: None}, {0: {"CPU": "x"}}, [-1],
    [b"nod"], [b"node", None, 7], SPEC | {"bundles": []}, SPEC | {"strategy": "ANY"}, SPEC | {"name": None},
    SPEC | {"target": 7},
    SPEC | {"selectors": [{}]}, SPEC | {"selectors": [{"a": 1}, {}]}, SPEC | {"selectors": [None, None]},
    SPEC | {"bundles": [{"CPU": 2**70}]}, SPEC | {"bundles": {"CPU": 1}},
]  # fmt: skip


def row(node: NodeId, *, head: bool = False) -> Row:
    return Row(
        node, "127.0.0.1:1", "host", 1, "/tmp", head, {"CPU": 2 * ONE}, {}, {"CPU": 2 * ONE}, [], True, ""
    )


class Scheduling:
    """Hears of groups in the place of node.scheduling."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def group_changed(self, group: str) -> None:
        self.heard.append(("changed", group))

    def group_ended(self, group: str) -> None:
        self.heard.append(("ended", group))


class Node:
    """A node's groups, with nobody around them."""

    def __init__(self, node: NodeId, members: tuple[NodeId, ...] = (OTHER,)) -> None:
        self.posted: list[tuple[ProcessId, Any]] = []
        self.admission = Admission(BundledResources({"CPU": 2 * ONE}), keep_idle=0, start_at_once=1)
        self.head = HeadLink(node, lambda to, message: self.posted.append((to, message)))
        bundles = NodeBundles(self.admission, self.head)
        self.groups = NodeGroups(node, {}, bundles, self.head, self.head._post)
        self.head.roster = Roster(row(node, head=node == HEAD), in_cluster=True)
        self.head.roster.on_welcome(HEAD, [row(HEAD, head=True), row(OTHER)])
        self.head.act()
        self.scheduling = Scheduling()
        self.groups.hooks = Hooks(lambda _: True, lambda each: each in members, self.scheduling)  # type: ignore[arg-type]

    def say(self, message: Any, node: NodeId = HEAD) -> None:
        """A manager says something."""
        self.groups.from_managers[message.code](node, *message)

    def heard(self) -> list[tuple[ProcessId, Any]]:
        """What it has said since it was asked last."""
        while self.groups.act():
            pass
        said, self.posted[:] = list(self.posted), []
        return said

    def check(self) -> None:
        self.groups.directory.check()
        self.groups.followed.check()
        self.admission.check()


def messages(value: Any, group: TaskId = GROUP) -> list[Any]:
    return [
        m.MakeGroup(1, group, value, MAKER),
        m.BundlesPrepared(group, 1, True, value),
        m.RoomMade(value),
        m.PrepareBundles(group, 1, value),
        m.CommitBundles(group, value),
        m.ReturnBundles(group, value),
        m.ClaimRoom(group, value),
        m.GroupStands(group, 1, value, value),
        m.GroupStands(group, 99, [], []),
        m.LifeEnded(1, value if isinstance(value, bytes) else b""),
    ]


@pytest.mark.parametrize("me", [HEAD, OTHER])
def test_whatever_is_said_is_done_or_refused(me: NodeId) -> None:
    """ValueError is what refuses a message; anything else would be a fault of ours."""
    chance = random.Random(7)
    node = Node(me)
    said = [message for value in ODD for message in messages(value)]
    said += [m.MakeGroup(1, TaskId(HEAD + bytes(12)), SPEC, MAKER), m.MakeGroup(1, GROUP, SPEC, b"short")]
    for _ in range(3):
        chance.shuffle(said)
        for message in said:
            for sender in (HEAD, OTHER, STRANGE):
                try:
                    node.say(message, sender)
                except ValueError:
                    pass
                node.heard()
                node.check()
    for value in ODD:
        for bundles in (value, [value], [(GROUP, value, value)]):
            for sender in (OTHER, STRANGE):
                try:
                    node.groups.called(sender, bundles, value)
                except ValueError:
                    pass
                node.groups.node_reported(sender, {})
                node.heard()
                node.check()
    assert node.groups._answers("group no hex")() is None  # type: ignore[misc]


def refused(node: Node, message: Any, sender: NodeId) -> None:
    with pytest.raises(ValueError):
        node.say(message, sender)


def test_who_may_say_what() -> None:
    head, other = Node(HEAD), Node(OTHER)
    from_head: Callable[[], list[Any]] = lambda: [  # noqa: E731
        m.PrepareBundles(GROUP, 1, {0: {"CPU": ONE}}), m.CommitBundles(GROUP, [0]), m.ReturnBundles(GROUP, [0]),
        m.EndGroup(GROUP), m.ClaimRoom(GROUP, [{"CPU": ONE}]), m.DropClaim(GROUP), m.GroupStands(GROUP, 0, [], []),
    ]  # fmt: skip
    to_head = [
        m.MakeGroup(0, GROUP, SPEC, MAKER), m.FollowGroup(GROUP), m.RemoveGroup(1, GROUP), m.FindGroup(1, "n", "s"),
        m.LifeEnded(1, MAKER), m.BundlesPrepared(GROUP, 1, True, {}), m.RoomMade({}),
    ]  # fmt: skip
    for message in from_head():
        refused(other, message, STRANGE)
    for message in to_head:
        refused(head, message, STRANGE)
        refused(other, message, OTHER)
    refused(head, m.LifeEnded(1, process_id(STRANGE, 1)), OTHER)
    refused(other, m.CommitBundles(GROUP, [0]), HEAD)


def test_a_group_from_its_making_to_its_end() -> None:
    """Made on another node, placed on both; then that node's own bundles, as the head's orders have them."""
    head, other = Node(HEAD), Node(OTHER)
    head.groups.node_reported(OTHER, {"CPU": 2 * ONE})
    head.head.roster.on_rows([row(OTHER)])
    head.heard()
    assert not head.groups.directory.knows(OTHER), "it may have bundles"
    head.groups.called(OTHER, [], [])
    head.say(m.MakeGroup(7, GROUP, SPEC, MAKER), OTHER)
    said = head.heard()
    orders = [message for to, message in said if isinstance(message, m.PrepareBundles)]
    assert (manager_of(OTHER), m.StateReply(7, None)) in said
    assert (manager_of(OTHER), m.WatchProcess(MAKER)) in said, "its death must be heard of"
    (order,) = orders
    other.say(order)
    ((to, answer),) = other.heard()
    assert to == manager_of(HEAD)
    assert answer == m.BundlesPrepared(GROUP, order.attempt, True, {"CPU": ONE})
    head.say(answer, OTHER)
    said = head.heard()
    for _, message in said:
        other.say(message)
    (stands,) = [message for _, message in said if isinstance(message, m.GroupStands)]
    assert stands.state == CREATED
    assert sorted(stands.nodes) == [HEAD, OTHER]
    other.heard()
    assert other.admission.resources.groups == [GROUP.hex()]
    assert other.groups.offered(GROUP.hex()) == {}, "it did not ask: nobody there uses it"
    other.groups.is_gone(GROUP.hex())
    assert other.heard() == [(manager_of(HEAD), m.FollowGroup(GROUP))]
    head.say(m.FollowGroup(GROUP), OTHER)
    other.say(head.heard()[-1][1])
    assert other.groups.offered(GROUP.hex()) == head.groups.offered(GROUP.hex())
    head.say(m.RemoveGroup(8, GROUP), OTHER)
    *said, answer = head.heard()
    assert answer == (manager_of(OTHER), m.StateReply(8, None)), "last, when it is sure"
    for _, message in said:
        other.say(message)
    other.heard()
    assert other.scheduling.heard[-1] == head.scheduling.heard[-1] == ("ended", GROUP.hex())
    assert other.groups.is_gone(GROUP.hex())
    for node in (head, other):
        assert node.admission.resources.available_dict() == {"CPU": 2.0}
        node.check()


def test_another_head_knows_nothing() -> None:
    """What a node has for groups of the one before is given back, and who uses it is told."""
    node = Node(OTHER)
    pending, placed = GROUP, TaskId(MAKER + bytes(7) + b"\2")
    for group in (pending, placed):
        node.groups.followed.made(group, MAKER, m.MakeGroup(0, group, SPEC, MAKER))
        node.groups.followed.registered(group, MAKER)
    node.say(m.PrepareBundles(placed, 1, {0: {"CPU": ONE}}))
    node.say(m.CommitBundles(placed, [0]))
    node.say(m.ClaimRoom(pending, [{"CPU": 2 * ONE}]))
    node.say(m.GroupStands(placed, CREATED, [{"CPU": ONE}], [OTHER]))
    node.heard()
    node.head.roster.on_welcome(STRANGE, [row(STRANGE, head=True)])
    node.head.act()
    said = node.heard()
    assert (manager_of(STRANGE), m.MakeGroup(0, pending, SPEC, MAKER)) in said
    assert (MAKER, m.GroupState(placed, REMOVED)) in said
    assert node.admission.resources.available_dict() == {"CPU": 2.0}
    assert not node.admission.requests
    node.check()


def test_a_spec_travels() -> None:
    plain = SPEC | {"selectors": [{"zone": "in(a, b)"}, {}], "target": bytes(HEAD), "name": "n", "more": 7}
    spec = GroupSpec.from_plain(plain)
    assert spec.bundles == (ResourceSet({"CPU": ONE}),) * 2
    assert (spec.name, spec.target, spec.detached, len(spec.selectors)) == ("n", HEAD, False, 2)
    assert PENDING == 0
