"""The placement groups that a node has to do with, where another node, the head, keeps the directory of them.

Pure. State: of each group that a process of this node has made, or asked about, or wants to run something in, how it
stands as the head told last, and the processes that wait to hear; the last ones that were removed. Events are the
methods below. Effects: Follow, AskAgain, TellGroup (whose `watchers` are processes of this node).

Rules:

* The head is asked about a group once, and then tells of every change of it, until it is removed.
* Who has made a group hears of every change, others once it is CREATED or REMOVED.
* What a process of this node has removed is removed here at once, whatever the head has yet to say.
* A head that has come back knows how groups stand, and is asked once more. Any other knows none: those that were placed
  have ended, and those that were not, and that were made here, are asked for again. (What the head before has not
  answered is asked again anyway, see node.head.)

Invariant (`check`): nobody waits for what is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from skate.core.group_records import CREATED, PENDING, REMOVED, TellGroup, offered
from skate.core.machine import Machine
from skate.core.resources import ResourceSet
from skate.ids import NodeId, ProcessId

#: removed groups that are remembered; of others the head is asked again
REMOVED_REMEMBERED: Final = 1_000


class Follow(NamedTuple):
    """Effect: ask the head to tell how the group stands, now and at every change."""

    group: bytes


class AskAgain(NamedTuple):
    """Effect: the head is to make this group, which it has not heard of."""

    request: Any


class Followed:
    """A group as this node knows it."""

    __slots__ = ("asked", "bundles", "maker", "nodes", "request", "state", "watchers")

    def __init__(self) -> None:
        #: None until the head has told
        self.state: int | None = None
        self.bundles: Sequence[ResourceSet] = ()
        #: where each bundle is
        self.nodes: Sequence[NodeId | None] = ()
        #: the process of this node that has made it, and what the head was asked then; opaque here
        self.maker: ProcessId | None = None
        self.request: Any = None
        #: that is not answered
        self.asked = False
        self.watchers: set[ProcessId] = set()


class FollowedGroups(Machine):
    """The groups that one node follows."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: dict[bytes, Followed] = {}
        self._removed: dict[bytes, None] = {}
        #: process of this node -> the newest of the groups that it has made
        self._newest: dict[ProcessId, bytes] = {}

    def made(self, group: bytes, maker: ProcessId, request: Any) -> None:
        """A process of this node makes the group: the head is asked for it with `request`, and tells how it stands."""
        followed = self.groups.setdefault(group, Followed())
        followed.maker, followed.request, followed.asked = maker, request, True

    def registered(self, group: bytes, maker: ProcessId) -> None:
        """The head has answered: it has the group. The maker lives. Answers come in the order of what was made."""
        self._newest[maker] = group
        if group in self.groups:
            self.groups[group].asked = False

    def refused(self, group: bytes) -> None:
        """The head does not make it: its name is taken."""
        self.told(group, REMOVED, (), ())

    def wanted(self, group: bytes) -> None:
        """Something is to run in the group."""
        if group not in self.groups and group not in self._removed:
            self.groups[group] = Followed()
            self._effects.append(Follow(group))

    def watched(self, group: bytes, process: ProcessId) -> None:
        """A process wants to hear once the group is CREATED or REMOVED."""
        self.wanted(group)
        followed = self.groups.get(group)
        if followed is None:
            self._effects.append(TellGroup(group, REMOVED, (process,)))
        elif followed.state == CREATED:
            self._effects.append(TellGroup(group, CREATED, (process,)))
        else:
            followed.watchers.add(process)

    def told(
        self, group: bytes, state: int, bundles: Sequence[ResourceSet], nodes: Sequence[NodeId | None]
    ) -> None:
        """The group stands so, as the head says, or, of REMOVED, a process of this node."""
        followed = self.groups.get(group)
        if state == REMOVED:
            self.groups.pop(group, None)
            self._removed[group] = None
            if len(self._removed) > REMOVED_REMEMBERED:
                del self._removed[next(iter(self._removed))]
        if followed is None:
            if state == REMOVED:
                self._effects.append(TellGroup(group, REMOVED, ()))
            return  # it was removed here, and the head has yet to hear
        followed.state, followed.bundles, followed.nodes = state, bundles, nodes
        if state != PENDING:
            followed.request = None
        told = set() if followed.maker is None else {followed.maker}
        if state in (CREATED, REMOVED):
            told |= followed.watchers
            followed.watchers.clear()
        self._effects.append(TellGroup(group, state, tuple(sorted(told))))

    def process_left(self, process: ProcessId) -> None:
        """A process of this node has ended."""
        self._newest.pop(process, None)
        for followed in self.groups.values():
            followed.watchers.discard(process)
            if followed.maker == process:
                followed.maker = None

    def head_changed(self, *, remembers: bool) -> None:
        """Another head has come; whether it knows what the last one knew."""
        for group, followed in sorted(self.groups.items()):
            if followed.asked and followed.state is None:
                continue  # whoever has asked asks again
            if remembers:
                self._effects.append(Follow(group))
            elif followed.request is not None:
                self._effects.append(AskAgain(followed.request))
            elif followed.state in (None, PENDING):
                self._effects.append(Follow(group))
            else:
                self.told(group, REMOVED, (), ())

    def newest(self) -> list[bytes]:
        """Of each process of this node that makes groups, the newest that a head has had. For the one that has come."""
        return list(self._newest.values())

    def is_gone(self, group: bytes) -> bool:
        """Whether it is known that nothing can ever run in the group."""
        return group in self._removed

    def offered(self, group: bytes) -> Mapping[NodeId, Mapping[str, int]]:
        """What the group gives the nodes on which it is, name -> units."""
        followed = self.groups.get(group)
        return {} if followed is None else offered(group.hex(), followed.bundles, followed.nodes)

    def check(self) -> None:
        """Raises AssertionError where the invariant does not hold."""
        for group, followed in self.groups.items():
            if followed.state == REMOVED or group in self._removed:
                raise AssertionError(f"{group.hex()} is removed and there")
            if followed.state == CREATED and followed.watchers:
                raise AssertionError(f"{group.hex()} is there, and {followed.watchers} wait for that")
            if len(followed.nodes) != len(followed.bundles):
                raise AssertionError(f"{group.hex()} has {len(followed.bundles)} bundles on {followed.nodes}")
