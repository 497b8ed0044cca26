"""The placement groups of a cluster: what each one wants, where its bundles are, who waits for it.

Pure. There is one directory in a cluster, the head's. State: the nodes as they were last told of, a Group for each that
is not removed, the queue of those that wait to be placed, the table of names, and the last ones that were removed.
Events are the methods below; `decide` places what can be placed and gives the effects. A group's life:

    PENDING -> CREATED -> REMOVED
                 |  ^
                 v  |
             RESCHEDULING   a node with some of its bundles died; the others stay where they are

Rules:

* All or nothing, in two phases. `PrepareBundles` goes to each node of a placement; when all have taken their bundles,
  `CommitBundles`; when one refuses or dies, the others get `ReturnBundles`. An answer to an attempt that was given up
  only tells what the node has free: what it took was asked back when it was given up, on the same ordered link.
* What a node has free is what it told last, less what it was asked for since. A node that has room by its amounts and
  refuses even so (halves of two GPUs are no whole one) is left alone by that group until something there is free again.
* Groups of which a node died go before those that were never placed; equals in the order in which they came. One that
  does not fit now does not hold up those behind it; but room is cleared for it (`ClaimRoom`) on nodes where only tasks
  stand in its way, until it is placed or that is no longer so.
* A group ends with what it lives with (the driver of its program, or a detached actor, or the node of that), unless it
  is detached.
* A name, in its namespace, belongs to one group until that is removed.
* Who follows a group hears of every change: its maker, or, where that is of another node, the manager there; and the
  managers whose processes have to do with it. Others hear once.

Whoever asks about a group before its maker's word has come is told later, and who removes it is obeyed then; ids of one
maker rise, so an id below its newest is of a group that was removed.

A head that comes back builds its directory again (`recovered`) from what the last one wrote down: KeepGroup says when,
before anybody hears of that. Nodes then say which bundles they have as they join again, and nothing is placed on one
before: what was written as there and is not there is placed again, what is there and was not written is given back.
Managers say what their processes have made (`makers_called`), so who asks about a group that is gone hears that.

Invariants: see `check`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from skate.core.group_nodes import GroupNode
from skate.core.group_records import (
    CREATED,
    PENDING,
    REMOVED,
    RESCHEDULING,
    ClaimRoom,
    CommitBundles,
    DropClaim,
    Effect,
    EndGroup,
    Group,
    GroupSpec,
    HeldBundles,
    KeepGroup,
    PrepareBundles,
    ReturnBundles,
    TellGroup,
    WarnGroup,
)
from skate.core.node_table import NodeView
from skate.core.placement import place
from skate.core.resources import ResourceSet
from skate.ids import NodeId, ProcessId, manager_of, node_of, owner_of

#: removed groups that are remembered, for tables; and ends of what groups live with
REMOVED_REMEMBERED: Final = 1_000


class GroupDirectory:
    """All placement groups of a cluster."""

    def __init__(self) -> None:
        self.groups: dict[bytes, Group] = {}
        self.names: dict[tuple[str, str], Group] = {}
        self.removed_groups: dict[bytes, Group] = {}
        self._nodes: dict[NodeId, GroupNode] = {}
        #: nodes that had bundles when the last head died, and have not joined again
        self._away: set[NodeId] = set()
        #: those that wait to be placed, in turn: of dead nodes, then new ones
        self._rescheduling: dict[bytes, Group] = {}
        self._pending: dict[bytes, Group] = {}
        #: pending ones that were never looked at
        self._fresh: list[Group] = []
        #: something has changed that may let others be placed
        self._dirty = False
        #: what is to be cleared for groups is to be worked out again
        self._claims_due = False
        #: maker -> the newest of its groups
        self._newest: dict[ProcessId, bytes] = {}
        #: groups that somebody asked about and whose makers' word has not come
        self._awaited: dict[bytes, set[ProcessId]] = {}
        #: groups that were removed before their makers' word came
        self._unwanted: set[bytes] = set()
        #: drivers and actors with which groups ended, the last ones
        self._ends: dict[Any, None] = {}
        self._effects: list[Effect] = []

    # --------------------------------------------------------------------------------------------------- the nodes

    def node_joined(self, view: NodeView, held: Iterable[HeldBundles] = ()) -> None:
        """A node is there, and has these bundles. The view is the directory's from here on."""
        node = view.id
        known = self._nodes[node] = GroupNode(view)
        self._nodes_changed()
        there = {bundles.group: self._confirmed(known, bundles) for bundles in held}
        if node in self._away:
            self._away.discard(node)
            for group in self.groups.values():
                self._lose(group, node, there.get(group.id, ()))

    def _confirmed(self, known: GroupNode, held: HeldBundles) -> Collection[int]:
        """A node that joins again has these bundles of a group: gives those that it keeps."""
        node, group = known.view.id, self.groups.get(held.group)
        if group is None:
            self._effects.append(TellGroup(held.group, REMOVED, (manager_of(node),)))
            return ()
        mine = {index for index, at in enumerate(group.nodes) if at == node}
        if not mine.issuperset(held.committed):  # what it may use is written down before it is told
            self._effects.append(EndGroup(node, group))
            return ()
        told = tuple(sorted(mine.intersection(held.prepared)))
        if told:
            self._effects.append(
                CommitBundles(node, group, told)
            )  # the last head died before it could say so
        if len(told) < len(held.prepared):
            self._effects.append(ReturnBundles(node, group, tuple(sorted(set(held.prepared) - mine))))
        kept = mine.intersection((*held.committed, *told))
        for index in kept:
            known.keeps(group.spec.bundles[index])
        return kept

    def _lose(self, group: Group, node: NodeId, kept: Collection[int] = ()) -> None:
        """The node has none of the group's bundles any more, but for those `kept`: they are placed again."""
        lost = [index for index, at in enumerate(group.nodes) if at == node and index not in kept]
        if not lost:
            return
        self._give_up_attempt(group)  # it was for the others alone
        for index in lost:
            group.nodes[index] = None
        self._effects.append(KeepGroup(group))
        if group.state == CREATED:
            group.state = RESCHEDULING
            self._rescheduling[group.id] = group
            self._tell(group)

    def knows(self, node: NodeId) -> bool:
        return node in self._nodes

    def unreserved(self, node: NodeId, name: str) -> int:
        """What no group holds of a resource of the node."""
        known = self._nodes.get(node)
        return 0 if known is None else known.view.total.get(name, 0) - known.reserved.get(name, 0)

    def node_updated(self, node: NodeId, available: Mapping[str, int]) -> None:
        """What is free on a node has changed."""
        known = self._nodes.get(node)
        if known is not None and known.told(available):
            self._more_is_free(node)

    def node_left(self, node: NodeId) -> None:
        """A node is gone, with all that was on it: bundles, makers of groups, what groups lived with."""
        for process in {owner_of(awaited) for awaited in (*self._awaited, *self._unwanted, *self._newest)}:
            if node_of(process) == node:
                self.process_left(process)
        self.process_left(manager_of(node))
        for group in list(self.groups.values()):
            if group.lives_with is not None and node_of(group.lives_with) == node:
                self.removed(group.id)
        self._nodes_changed()
        if self._nodes.pop(node, None) is None and node not in self._away:
            return
        self._away.discard(node)
        self._effects = [
            effect
            for effect in self._effects
            if isinstance(effect, (TellGroup, WarnGroup, KeepGroup)) or effect.node != node
        ]
        for group in self.groups.values():
            group.claims.pop(node, None)
            group.avoids.discard(node)
            if node in group.target.values():
                self._give_up_attempt(group)
            self._lose(group, node)

    def _more_is_free(self, node: NodeId) -> None:
        self._dirty = True
        for group in (*self._rescheduling.values(), *self._pending.values()):
            group.avoids.discard(node)

    def _nodes_changed(self) -> None:
        self._dirty = True
        for group in (*self._rescheduling.values(), *self._pending.values()):
            group.infeasible = None

    # ---------------------------------------------------------------------------------------------- what makers say

    def created(
        self, group_id: bytes, spec: GroupSpec, lives_with: Any, now: float, follower: ProcessId | None = None
    ) -> Group | None:
        """A new group is wanted. Gives None, or the group that has its name: then nothing is registered.

        `follower`: who hears how it stands in its maker's place.
        """
        key = (spec.namespace, spec.name)
        other = self.names.get(key) if spec.name else None
        if other is not None and other.id != group_id:
            return other
        if group_id in self.groups or self._is_old(group_id):  # said twice
            if follower is not None:
                self.watched(group_id, follower, owner_lives=True)
            return None
        group = self.groups[group_id] = self._pending[group_id] = Group(group_id, spec, lives_with, now)
        self._newest[group.owner] = group_id
        group.followers.add(group.owner if follower is None else follower)
        for process in self._awaited.pop(group_id, ()):
            self._watches(group, process)
        if spec.name:
            self.names[key] = group
        self._effects.append(KeepGroup(group))
        self._fresh.append(group)
        if group_id in self._unwanted or group.lives_with in self._ends:
            self._unwanted.discard(group_id)
            self.removed(group_id)
        return None

    def removed(self, group_id: bytes, by: ProcessId | None = None, *, awaited: bool = False) -> None:
        """Somebody does not want the group any more; nothing happens to one that was never there. `by` knows already.

        `awaited`: its maker lives, so if it is not there perhaps it comes.
        """
        group = self.groups.pop(group_id, None)
        if group is None:
            if awaited and not self._is_old(group_id):
                self._unwanted.add(group_id)
            return
        self._pending.pop(group_id, None)
        self._rescheduling.pop(group_id, None)
        if self.names.get((group.spec.namespace, group.spec.name)) is group:
            del self.names[group.spec.namespace, group.spec.name]
        group.state = REMOVED
        self._effects.append(KeepGroup(group))
        for node in group.claims:
            self._effects.append(DropClaim(node, group))
        group.claims = {}
        self._give_up_attempt(group)
        for node in group.placed_on:
            if node in self._nodes:  # else it is told when it joins
                self._effects.append(EndGroup(node, group))
        for index, at in enumerate(group.nodes):
            if at in self._nodes:
                self._nodes[at].reserve(group.spec.bundles[index], -1)
        if by is not None:
            group.followers.discard(by)
            group.watchers.discard(by)
        self._tell(group)
        group.followers.clear()
        self._dirty = True
        self.removed_groups[group_id] = group
        if len(self.removed_groups) > REMOVED_REMEMBERED:
            del self.removed_groups[next(iter(self.removed_groups))]

    def ended(self, lives_with: Any) -> None:
        """A driver, or a detached actor, has ended: so do its groups, also one whose maker's word is on its way."""
        self._ends[lives_with] = None
        if len(self._ends) > REMOVED_REMEMBERED:
            del self._ends[next(iter(self._ends))]
        for group in [group for group in self.groups.values() if group.lives_with == lives_with]:
            self.removed(group.id)

    def process_left(self, process: ProcessId) -> None:
        """A process has ended: nobody tells it anything, and its groups that were not heard of will not come.

        If it was a driver, its groups end.
        """
        for group in self.groups.values():
            group.watchers.discard(process)
            group.followers.discard(process)
        for watchers in self._awaited.values():
            watchers.discard(process)
        for group_id in [awaited for awaited in self._awaited if owner_of(awaited) == process]:
            watchers = self._awaited.pop(group_id)
            self._effects.append(TellGroup(group_id, REMOVED, tuple(sorted(watchers))))
        self._unwanted = {group_id for group_id in self._unwanted if owner_of(group_id) != process}
        self._newest.pop(process, None)
        if any(group.lives_with == process for group in self.groups.values()):
            self.ended(process)

    # ------------------------------------------------------------------------------------------- a head comes back

    def recovered(
        self,
        group_id: bytes,
        spec: GroupSpec,
        lives_with: Any,
        nodes: Sequence[NodeId | None],
        now: float,
        *,
        created: bool,
    ) -> None:
        """A group as it stood when the last head died. `created`: it was whole once. Its nodes join again, or die."""
        group = self.groups[group_id] = Group(group_id, spec, lives_with, now)
        group.nodes = list(nodes)
        if spec.name:
            self.names[spec.namespace, spec.name] = group
        if not created:
            self._pending[group_id] = group
        elif None in group.nodes:
            group.state = RESCHEDULING
            self._rescheduling[group_id] = group
        else:
            group.state = CREATED
        if created:
            group.created_at = now
        self._away.update(node for node in group.placed_on if node not in self._nodes)
        self._dirty = True

    def makers_called(self, newest: Iterable[bytes]) -> None:
        """Of processes that make groups, the newest of each: those before it that are not there will not come."""
        for group_id in newest:
            maker = owner_of(group_id)
            self._newest[maker] = max(group_id, self._newest.get(maker, b""))
        for awaited in [awaited for awaited in self._awaited if self._is_old(awaited)]:
            watchers = self._awaited.pop(awaited)
            self._effects.append(TellGroup(awaited, REMOVED, tuple(sorted(watchers))))
        self._unwanted = {group_id for group_id in self._unwanted if not self._is_old(group_id)}

    # -------------------------------------------------------------------------------------------- what anybody asks

    def watched(self, group_id: bytes, process: ProcessId, owner_lives: bool) -> None:
        """A process wants to hear once the group is CREATED or REMOVED; a manager, of every change from now on."""
        group = self.groups.get(group_id)
        if group is not None:
            self._watches(group, process)
            if process in group.followers or group.state == CREATED:
                self._effects.append(TellGroup(group_id, group.state, (process,)))
        elif self.is_gone(group_id, owner_lives):
            self._effects.append(TellGroup(group_id, REMOVED, (process,)))
        else:
            self._awaited.setdefault(group_id, set()).add(process)

    def _watches(self, group: Group, process: ProcessId) -> None:
        if process == manager_of(process):
            group.followers.add(process)
        elif group.state != CREATED:
            group.watchers.add(process)

    def _tell(self, group: Group) -> None:
        """The group stands otherwise: who follows it hears, and who waits for this."""
        told = set(group.followers)
        if group.state in (CREATED, REMOVED):
            told |= group.watchers
            group.watchers.clear()
        self._effects.append(TellGroup(group.id, group.state, tuple(sorted(told))))

    def is_gone(self, group_id: bytes, owner_lives: bool) -> bool:
        """Whether nothing can ever run in the group; False also for one whose maker's word is still on the way."""
        return group_id not in self.groups and (not owner_lives or self._is_old(group_id))

    def named(self, name: str, namespace: str) -> Group | None:
        """The group of that name in the namespace, else among those of programs that have none."""
        return self.names.get((namespace, name)) or self.names.get(("", name))

    def find(self, group_id: bytes) -> Group | None:
        """The group, also if it was removed lately."""
        return self.groups.get(group_id) or self.removed_groups.get(group_id)

    @property
    def waiting(self) -> bool:
        """Whether any group waits to be placed: then it matters what nodes have free."""
        return bool(self._pending or self._rescheduling)

    @property
    def undecided(self) -> bool:
        """Whether `decide` has something to do."""
        return self._dirty or bool(self._effects or self._fresh)

    def _is_old(self, group_id: bytes) -> bool:
        return group_id in self.removed_groups or group_id <= self._newest.get(owner_of(group_id), b"")

    # ------------------------------------------------------------------------------------------- what nodes answer

    def prepared(
        self,
        node: NodeId,
        group_id: bytes,
        attempt: int,
        taken: bool,
        available: Mapping[str, int],
        now: float,
    ) -> None:
        """A node has taken the bundles of an attempt, or had no room; `available` is what it has free after that."""
        known = self._nodes.get(node)
        if known is None or not known.answered(group_id, attempt):
            return
        group = self.groups.get(group_id)
        if group is not None and group.attempt == attempt and node in group.awaiting:
            group.awaiting.remove(node)
            if not taken:
                for index in [index for index, at in group.target.items() if at == node]:
                    del group.target[index]
                    known.reserve(group.spec.bundles[index], -1)
                self._give_up_attempt(group)
                group.avoids.add(node)
                self._dirty = True  # with what is known now, another node may do
            elif not group.awaiting:
                self._commit(group, now)
        if known.told(available):
            self._more_is_free(node)

    def room_made(self, node: NodeId) -> None:
        """A node has room for what was claimed of it."""
        self._dirty |= node in self._nodes

    # --------------------------------------------------------------------------------------------------- decisions

    def decide(self) -> Sequence[Effect]:
        """Places what can be placed, and gives all effects since the last call."""
        if self._dirty:
            self._dirty = False
            self._claims_due = self.waiting
            failed: set[Any] = set()  #: shapes that found no place in this round
            for group in (*self._rescheduling.values(), *self._pending.values()):
                self._try(group, failed)
        else:
            for group in self._fresh:
                if group.id in self._pending and not self._try(group, set()):
                    self._claims_due = True
        self._fresh.clear()
        if self._claims_due:
            self._claims_due = False
            self._claim()
        effects, self._effects = self._effects, []
        return effects

    def _try(self, group: Group, failed: set[Any]) -> bool:
        """Begins to place the group; whether it is under way."""
        if group.awaiting:
            return True
        nodes = [known.view for node, known in self._nodes.items() if node not in group.avoids]
        target = _place(group, nodes, failed)
        if target is None:
            return False
        group.attempt += 1
        group.target = target
        group.awaiting = set(target.values())
        for node in sorted(group.awaiting):
            bundles = {index: group.spec.bundles[index] for index, at in sorted(target.items()) if at == node}
            self._nodes[node].asks(group.id, group.attempt, list(bundles.values()))
            self._effects.append(PrepareBundles(node, group, group.attempt, bundles))
        return True

    def _give_up_attempt(self, group: Group) -> None:
        """The bundles that are being placed are asked back; the group waits again."""
        by_node: dict[NodeId, list[int]] = {}
        for index, node in group.target.items():
            if node in self._nodes:
                by_node.setdefault(node, []).append(index)
                self._nodes[node].reserve(group.spec.bundles[index], -1)
        group.target = {}
        group.awaiting = set()
        for node, indexes in sorted(by_node.items()):
            self._effects.append(ReturnBundles(node, group, tuple(indexes)))

    def _commit(self, group: Group, now: float) -> None:
        self._effects.append(KeepGroup(group))
        for node in sorted(set(group.target.values())):
            indexes = tuple(sorted(index for index, at in group.target.items() if at == node))
            self._effects.append(CommitBundles(node, group, indexes))
        for index, node in group.target.items():
            group.nodes[index] = node
        group.target = {}
        self._pending.pop(group.id, None)
        self._rescheduling.pop(group.id, None)
        self._claims_due |= self.waiting
        for node in group.claims:
            self._effects.append(DropClaim(node, group))
        group.claims = {}
        group.avoids.clear()
        group.state = CREATED
        if group.created_at is None:
            group.created_at = now
        self._tell(group)

    def _claim(self) -> None:
        """Has room cleared for groups that only tasks keep from being placed, and warns of those that fit nowhere."""
        waiting = [g for g in (*self._rescheduling.values(), *self._pending.values()) if not g.awaiting]
        if not waiting:
            return
        spare = [self._without_tasks(node) for node in self._nodes.values()]
        by_id = {view.id: view for view in spare}
        failed: set[Any] = set()
        hopeless: set[Any] = set()
        for group in waiting:
            target = _place(group, spare, failed)
            claims: dict[NodeId, list[ResourceSet]] = {}
            for index, at in sorted((target or {}).items()):
                demand = group.spec.bundles[index]
                claims.setdefault(at, []).append(demand)
                by_id[at].take(demand)
            self._set_claims(group, {node: tuple(demands) for node, demands in claims.items()})
            if target is None and group.infeasible is None:
                idle = [NodeView(view.id, view.total, None, view.labels) for view in spare]
                group.infeasible = _place(group, idle, hopeless) is None
                if group.infeasible:
                    self._effects.append(WarnGroup(group))

    @staticmethod
    def _without_tasks(node: GroupNode) -> NodeView:
        """The node as it would be if only groups held something of it."""
        view, reserved = node.view, node.reserved
        free = {name: units - reserved.get(name, 0) for name, units in view.total.items()}
        return NodeView(view.id, view.total, free, view.labels)

    def _set_claims(self, group: Group, claims: dict[NodeId, tuple[ResourceSet, ...]]) -> None:
        for node in [node for node in group.claims if node not in claims]:
            self._effects.append(DropClaim(node, group))
        for node, bundles in claims.items():
            if group.claims.get(node) != bundles:
                self._effects.append(ClaimRoom(node, group, bundles))
        group.claims = claims

    # -------------------------------------------------------------------------------------------------------- checks

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        reserved: dict[NodeId, dict[str, int]] = {node: {} for node in self._nodes}
        for group in self.groups.values():
            waits = (group.id in self._pending) + (group.id in self._rescheduling)
            if waits != (group.state != CREATED) or (group.state == CREATED) != (None not in group.nodes):
                raise AssertionError(f"{group} waits in {waits} queues, its bundles are at {group.nodes}")
            if group.state == PENDING and any(group.nodes):
                raise AssertionError(f"{group} is there in part: {group.nodes}")
            if bool(group.target) != bool(group.awaiting):
                raise AssertionError(f"{group} goes to {group.target} and waits for {group.awaiting}")
            if group.state == CREATED and (group.target or group.claims or group.watchers):
                raise AssertionError(f"{group} is there, and still waits")
            for index, at in (*enumerate(group.nodes), *group.target.items()):
                if at is None:
                    continue
                if at in self._away:
                    continue
                if at not in reserved:
                    raise AssertionError(f"{group} has bundle {index} on {at.hex()}, which is gone")
                for name, units in group.spec.bundles[index].items():
                    reserved[at][name] = reserved[at].get(name, 0) + units
            _check_strategy(group)
        if self._away & self._nodes.keys():
            raise AssertionError(f"{self._away} are away, and {list(self._nodes)} there")
        for node, amounts in reserved.items():
            known = self._nodes[node]
            known.check()
            if amounts != known.reserved:
                raise AssertionError(f"{node.hex()} holds {known.reserved}, its bundles need {amounts}")
            if any(units > known.view.total.get(name, 0) for name, units in amounts.items()):
                raise AssertionError(f"{node.hex()} has {known.view.total}, bundles hold {amounts}")
        for (namespace, name), group in self.names.items():
            if self.groups.get(group.id) is not group or group.spec[2:4] != (name, namespace):
                raise AssertionError(f"the name {namespace}/{name} leads to {group}")


def _place(group: Group, nodes: Sequence[NodeView], failed: set[Any]) -> dict[int, NodeId] | None:
    """A place for what the group lacks. `failed`: shapes that found none among these nodes, when they had more free."""
    spec, held = group.spec, group.placed_on
    missing = group.missing()
    shape = (tuple(missing), spec.strategy, held, frozenset(group.avoids))
    if shape in failed:
        return None
    target = place(missing, spec.strategy, nodes, held=held, target=spec.target)
    if target is None:
        failed.add(shape)
    return target


def _check_strategy(group: Group) -> None:
    nodes = [node for node in (*group.nodes, *group.target.values()) if node is not None]
    if group.spec.strategy == "STRICT_PACK" and len(set(nodes)) > 1:
        raise AssertionError(f"{group} is on {len(set(nodes))} nodes")
    if group.spec.strategy == "STRICT_SPREAD" and len(set(nodes)) < len(nodes):
        raise AssertionError(f"{group} has two bundles on one node")
