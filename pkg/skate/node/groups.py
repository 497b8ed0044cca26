"""The placement groups, as one node has to do with them: what processes say of groups, and who hears how they stand.

State: on the head, and on a node that is in no cluster, the directory of the cluster's groups (core.groups), and the
answers that wait until what they say is written down; on others the groups that their processes have to do with
(core.followed_groups). Those pass on to the head what their processes say. The bundles of a node are in its admission,
see node.bundles.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from skate._c.clock import monotonic
from skate.core.followed_groups import AskAgain, Follow, FollowedGroups
from skate.core.group_names import parse
from skate.core.group_records import (
    CREATED,
    PENDING,
    REMOVED,
    STATE_NAMES,
    Group,
    GroupSpec,
    HeldBundles,
    KeepGroup,
    TellGroup,
    WarnGroup,
    bundles_from,
    offered,
)
from skate.core.groups import GroupDirectory
from skate.core.node_table import NodeView
from skate.core.resources import ResourceSet
from skate.core.roster import check_report
from skate.ids import (
    NODE_ID_BYTES,
    PROCESS_ID_BYTES,
    TASK_ID_BYTES,
    NodeId,
    ProcessId,
    TaskId,
    manager_of,
    node_of,
    owner_of,
    process_id,
)
from skate.node.bundles import NodeBundles, as_message
from skate.node.head import HeadLink
from skate.node.scheduling import NodeScheduling
from skate.wire import messages as m

if TYPE_CHECKING:
    from skate.core.ledger import Gang
    from skate.node.ledger import NodeLedger

log = logging.getLogger("skate.node")

#: what is asked of the head in StateQuery: (bundles, strategy, feasible) of each group that waits to be placed
PENDING_GROUPS: Final = "pending groups"

Post = Callable[[ProcessId, Any], None]


class Hooks(NamedTuple):
    """What the node manager does for its groups."""

    #: whether a process of this node lives
    lives: Callable[[ProcessId], bool]
    #: whether another node is in the cluster, or about to be listed; asked on the head
    is_member: Callable[[NodeId], bool]
    #: hears where groups are, and of their ends
    scheduling: NodeScheduling


class NodeGroups:
    """The placement groups of a node. `hooks` is set once the node manager has them."""

    hooks: Hooks
    #: of a head that is to come back
    ledger: NodeLedger | None = None

    def __init__(
        self, node: NodeId, labels: dict[str, str], bundles: NodeBundles, head: HeadLink, post: Post
    ) -> None:
        #: used on the head
        self.directory = GroupDirectory()
        #: used elsewhere
        self.followed = FollowedGroups()
        self._me = node
        self._manager = process_id(node, 0)
        self._bundles = bundles
        self._head = head
        self._post = post
        #: version of the table of nodes as the directory knows it
        self._version = 0
        #: nodes that have reported, and so know who the head is, and are not the directory's yet: what they have free
        self._reported: dict[NodeId, Mapping[str, int]] = {}
        #: what such nodes have of groups, where they have said so
        self._called: dict[NodeId, list[HeldBundles]] = {}
        #: gives answers; when what has been decided before is done
        self._owed: list[Callable[[], None]] = []
        #: processes of other nodes of whose deaths this one, the head, has asked to be told
        self._watched: set[ProcessId] = set()
        head.on_new_head.append(self._head_changed)
        head.answers.append(self._answers)
        resources = bundles.resources
        self.directory.node_joined(NodeView(node, *resources.units(), labels))
        self.handlers: Final[dict[int, Callable[..., None]]] = {
            m.CreateGroup.code: self._create,  # type: ignore[attr-defined]
            m.RemoveGroup.code: self._remove,  # type: ignore[attr-defined]
            m.WatchGroup.code: self._watch,  # type: ignore[attr-defined]
            m.FindGroup.code: self._find,  # type: ignore[attr-defined]
        }
        #: from other nodes' managers
        self.from_managers: Final[dict[int, Callable[..., None]]] = {
            m.MakeGroup.code: self._make_for,  # type: ignore[attr-defined]
            m.RemoveGroup.code: self._remove_for,  # type: ignore[attr-defined]
            m.FollowGroup.code: self._follow_for,  # type: ignore[attr-defined]
            m.FindGroup.code: self._find_for,  # type: ignore[attr-defined]
            m.LifeEnded.code: self._ended_there,  # type: ignore[attr-defined]
            m.BundlesPrepared.code: self._prepared,  # type: ignore[attr-defined]
            m.RoomMade.code: self._room_made_there,  # type: ignore[attr-defined]
            m.GroupStands.code: self._told,  # type: ignore[attr-defined]
            **bundles.handlers,
        }

    # ----------------------------------------------------------------------------------- from this node's processes

    def _create(self, process: Any, token: int, group: TaskId, spec: Any) -> None:
        if not group.startswith(process.id):
            log.warning(
                "process %s made group %s, whose id is not its own: refused", process.id.hex(), group.hex()
            )
            return
        checked = GroupSpec.from_plain(spec)
        lives_with = _id_of_actor(spec.get("actor")) or process.job.driver
        if self._head.is_here:
            other = self.directory.created(group, checked, lives_with, monotonic())
            self._end_if_over(lives_with)
            if token:
                self._owe_here(process.id, token, other and other.id)
            return
        request = m.MakeGroup(0, group, spec, lives_with)
        self.followed.made(group, process.id, request)

        def answered(other: Any) -> None:
            if other is not None:
                self.followed.refused(group)
            elif self.hooks.lives(process.id):
                self.followed.registered(group, process.id)
            if token:
                self._post_if_it_lives(process.id, m.StateReply(token, other))

        self._head.ask(lambda number: request._replace(token=number), answered)

    def _remove(self, process: Any, _: int, group: TaskId) -> None:
        if self._head.is_here:
            self.directory.removed(group, process.id, awaited=self._may_live(owner_of(group)))
        else:
            self._head.ask(lambda number: m.RemoveGroup(number, group), _done)
            self.followed.told(group, REMOVED, (), ())

    def _watch(self, process: Any, group: TaskId) -> None:
        if self._head.is_here:
            self._watch_at_directory(group, process.id)
        else:
            self.followed.watched(group, process.id)

    def _find(self, process: Any, token: int, name: str, namespace: str) -> None:
        if self._head.is_here:
            self._owe_here(process.id, token, self._named(name, namespace))
            return
        self._head.ask(
            lambda number: m.FindGroup(number, name, namespace),
            lambda found: self._post_if_it_lives(process.id, m.StateReply(token, found)),
        )

    def _owe_here(self, process: ProcessId, token: int, value: Any) -> None:
        self._owed.append(partial(self._post_if_it_lives, process, m.StateReply(token, value)))

    def _owe(self, node: NodeId, token: int, value: Any) -> None:
        self._owed.append(partial(self._head.reply, manager_of(node), token, value))

    def _post_if_it_lives(self, process: ProcessId, message: Any) -> None:
        if self.hooks.lives(process):
            self._post(process, message)

    def _named(self, name: str, namespace: str) -> Any:
        found = self.directory.named(name, namespace)
        return found and (found.id, [bundle.to_dict() for bundle in found.spec.bundles])

    # ---------------------------------------------------------------------------------------- from the node manager

    def is_gone(self, group_hex: str) -> bool:
        """Whether the group was removed. One that is not known yet is asked about: what waits for it hears."""
        group = bytes.fromhex(group_hex)
        if not self._head.is_here:
            self.followed.wanted(group)
            return self.followed.is_gone(group)
        if group in self.directory.groups:
            return False
        if self.directory.is_gone(group, self._may_live(owner_of(group))):
            return True
        self._watch_at_directory(group, self._manager)
        return False

    def offered(self, group_hex: str) -> Mapping[NodeId, Mapping[str, int]]:
        """What the group gives the nodes that have bundles of it, name -> units."""
        if not self._head.is_here:
            return self.followed.offered(bytes.fromhex(group_hex))
        group = self.directory.groups.get(bytes.fromhex(group_hex))
        return {} if group is None else offered(group_hex, group.spec.bundles, group.nodes)

    def room_made(self) -> None:
        """This node has room for what was claimed of it."""
        if self._head.is_here:
            self.directory.room_made(self._me)
        else:
            self._head.tell(m.RoomMade(self._bundles.free()))

    def life_ended(self, lives_with: bytes) -> None:
        """A driver of this node, or a detached actor that was made here, is gone."""
        if self._head.is_here:
            self.directory.ended(lives_with)
        elif node_of(lives_with) == self._me:
            self._head.ask(lambda number: m.LifeEnded(number, lives_with), _done)

    def process_left(self, process: ProcessId) -> None:
        """A process is gone, of this node or of another."""
        self._watched.discard(process)
        self.directory.process_left(process)
        self.followed.process_left(process)

    def node_died(self, node: NodeId) -> None:
        if node in self._head.roster.former:
            return  # what it had is dealt with; and the groups of its detached actors are this node's
        self._watched = {process for process in self._watched if node_of(process) != node}
        self._reported.pop(node, None)
        self._called.pop(node, None)
        self.directory.node_left(node)

    def node_reported(self, node: NodeId, available: Mapping[str, int]) -> None:
        """To the head: what another node has free. Objects in its store take nothing from what bundles may have."""
        if self.directory.knows(node):
            store = "object_store_memory"
            self.directory.node_updated(node, {**available, store: self.directory.unreserved(node, store)})
        else:
            self._reported[node] = available
            self._version = 0

    # ------------------------------------------------------------------------------------------- a head comes back

    def recovered(self, kept: Iterable[tuple[bytes, Gang]], former: Collection[NodeId]) -> None:
        """As head: the groups as they stood when the last one died, which has been on these nodes."""
        for group, gang in kept:
            spec = GroupSpec.from_kept(gang.spec)
            if spec.target is not None and spec.target in former:
                spec = spec._replace(target=self._me)
            self.directory.recovered(
                group, spec, gang.lives_with, gang.nodes, monotonic(), created=gang.created
            )

    def is_there(self, group_hex: str) -> bool:
        """As head: whether there is such a group."""
        return bytes.fromhex(group_hex) in self.directory.groups

    def roll(self) -> tuple[list[Any], list[bytes]]:
        """What a head is told that has come: see RollCall."""
        return [tuple(held) for held in self._bundles.held()], self.followed.newest()

    def called(self, node: NodeId, bundles: Any, made: Any) -> None:
        """To the head: what another node has of groups, and which ones its processes have made."""
        self._check_asked(node)
        if not isinstance(bundles, list | tuple) or not isinstance(made, list | tuple):
            raise ValueError(f"bundles and groups of a node are lists, not {bundles!r:.60} and {made!r:.60}")
        if not all(isinstance(group, bytes) and node_of(group) == node for group in made):
            raise ValueError(f"groups that the node's processes have made are not {made!r:.60}")
        self._called[node] = [HeldBundles.from_plain(each) for each in bundles]
        self._version = 0
        matter = {owner_of(group) for group in made}
        for known in self.directory.groups.values():
            matter |= {known.owner, known.lives_with}
        for process in matter:
            if process is not None and node_of(process) == node and len(process) == PROCESS_ID_BYTES:
                self._watch_process(process)
        self.directory.makers_called(made)

    # ------------------------------------------------------------------------------------ from other nodes' managers

    def _check_asked(self, node: NodeId) -> None:
        """ValueError where the node has nothing to say to this one of groups."""
        if not self._head.is_here or not self.hooks.is_member(node):
            raise ValueError("placement groups are for members to ask for, and of the head")

    def _make_for(self, node: NodeId, token: int, group: TaskId, spec: Any, lives_with: bytes) -> None:
        self._check_asked(node)
        if node_of(group) != node or len(lives_with) not in (PROCESS_ID_BYTES, TASK_ID_BYTES):
            raise ValueError(f"group {group.hex()} is not that node's, or lives with {lives_with.hex()}")
        other = self.directory.created(
            group, GroupSpec.from_plain(spec), lives_with, monotonic(), manager_of(node)
        )
        self._watch_process(owner_of(group))
        self._end_if_over(lives_with)
        self._owe(node, token, other and other.id)

    def _remove_for(self, node: NodeId, token: int, group: TaskId) -> None:
        self._check_asked(node)
        self.directory.removed(group, awaited=self._may_live(owner_of(group)))
        self._owe(node, token, None)

    def _follow_for(self, node: NodeId, group: TaskId) -> None:
        self._check_asked(node)
        self._watch_at_directory(group, manager_of(node))

    def _find_for(self, node: NodeId, token: int, name: str, namespace: str) -> None:
        self._check_asked(node)
        self._owe(node, token, self._named(name, namespace))

    def _ended_there(self, node: NodeId, token: int, lives_with: bytes) -> None:
        self._check_asked(node)
        if node_of(lives_with) != node:
            raise ValueError(f"{lives_with.hex()} is not that node's")
        self.directory.ended(lives_with)
        self._owe(node, token, None)

    def _prepared(self, node: NodeId, group: TaskId, attempt: int, taken: bool, available: Any) -> None:
        self._check_asked(node)
        check_report(available)
        self.directory.prepared(node, group, attempt, taken, available, monotonic())

    def _room_made_there(self, node: NodeId, available: Any) -> None:
        self._check_asked(node)
        check_report(available)
        self.directory.node_updated(node, available)
        self.directory.room_made(node)

    def _told(self, node: NodeId, group: TaskId, state: int, bundles: Any, nodes: Any) -> None:
        self._head.check_is_head(node)
        at: list[Any] = list(nodes) if isinstance(nodes, list | tuple) else [b""]
        if not all(each is None or (isinstance(each, bytes) and len(each) == NODE_ID_BYTES) for each in at):
            raise ValueError(f"bundles of a group are on nodes, not {nodes!r:.60}")
        demands = bundles_from(bundles)
        if not PENDING <= state <= REMOVED or len(demands) != len(at):
            raise ValueError(f"state {state} of a group of {len(demands)} bundles on {len(at)} nodes")
        self.followed.told(group, state, demands, at)

    def _may_live(self, process: ProcessId) -> bool:
        """Whether a process lives, for all that the head knows. Of one of another node it asks to be told."""
        if node_of(process) == self._me:
            return self.hooks.lives(process)
        if node_of(process) in self._head.roster.former or self._head.roster.is_dead(node_of(process)):
            return False
        self._watch_process(process)
        return True

    def _end_if_over(self, lives_with: bytes) -> None:
        """A group was made that is to end with this driver or actor: perhaps it has come too late."""
        former, node = self._head.roster.former, node_of(lives_with)
        if len(lives_with) == PROCESS_ID_BYTES:
            over = not self._may_live(ProcessId(lives_with))
        else:  # (its own node tells)
            over = node not in former and self._head.roster.is_dead(node)
        if over:
            self.directory.ended(lives_with)

    def _watch_process(self, process: ProcessId) -> None:
        """Has the node of a process tell of its death, at once if it is dead."""
        if node_of(process) != self._me and process not in self._watched:
            self._watched.add(process)
            self._post(manager_of(process), m.WatchProcess(process))

    def _watch_at_directory(self, group: bytes, process: ProcessId) -> None:
        lives = group in self.directory.groups or self._may_live(owner_of(group))
        self.directory.watched(group, process, lives)

    def _head_changed(self) -> None:
        """Another head has come. It hears of groups that were made before, and then what there is: see `roll`."""
        remembers = self._head.remembers
        self._bundles.head_changed(remembers=remembers)
        self.followed.head_changed(remembers=remembers)
        self.act()

    # ------------------------------------------------------------------------------------------------------ effects

    @property
    def undecided(self) -> bool:
        """Whether `act` has something to do since nodes have come or gone."""
        return self._head.is_here and (
            self.directory.undecided or bool(self._owed) or self._head.roster.version != self._version
        )

    def act(self) -> bool:
        """Does what the directory decides, or tells what the head's has decided; whether there was anything."""
        if not self._head.is_here:
            effects = self.followed.take_effects()
            for effect in effects:
                if type(effect) is TellGroup:
                    self._tell(effect)
                elif type(effect) is Follow:
                    self._head.tell(m.FollowGroup(TaskId(effect.group)))
                else:
                    assert type(effect) is AskAgain
                    self._head.tell(effect.request)
            return bool(effects)
        directory = self.directory
        self._look_at_nodes()
        if directory.waiting:
            directory.node_updated(self._me, self._bundles.free())
        acted = False
        while decided := directory.decide():
            acted = True
            for each in decided:
                if isinstance(each, TellGroup):
                    self._tell(each)
                elif isinstance(each, WarnGroup):
                    self._warn(each.group)
                elif isinstance(each, KeepGroup):
                    if self.ledger is not None:
                        self.ledger.group_changed(each.group, self._me)
                elif each.node == self._me:
                    self._bundles.obey(each, self._prepared_here)
                else:
                    self._post(manager_of(each.node), as_message(each))
        owed, self._owed = self._owed, []
        for answer in owed:
            answer()
        return acted

    def _look_at_nodes(self) -> None:
        """Nodes that have joined, and have said what they have, are the directory's, too."""
        roster = self._head.roster
        if roster.version == self._version:
            return
        self._version = roster.version
        for row in roster.living():
            if row.node in self._reported and row.node in self._called:
                total = {name: units for name, units in row.total.items() if parse(name) is None}
                view = NodeView(row.node, total, {}, row.labels)
                self.directory.node_joined(view, self._called.pop(row.node))
                self.node_reported(row.node, self._reported.pop(row.node))

    def _prepared_here(self, group: bytes, attempt: int, taken: bool, free: dict[str, int]) -> None:
        self.directory.prepared(self._me, group, attempt, taken, free, monotonic())

    def _tell(self, effect: TellGroup) -> None:
        name = effect.group.hex()
        if effect.state == REMOVED:
            self._bundles.end(effect.group)  # also of a group that was never placed
            self.hooks.scheduling.group_ended(name)
        else:
            self.hooks.scheduling.group_changed(name)
        notice = m.GroupState(TaskId(effect.group), effect.state)
        for watcher in effect.watchers:
            if watcher == manager_of(watcher) and watcher != self._manager:
                self._post(watcher, self._stands(effect))
            else:
                self._post_if_it_lives(watcher, notice)

    def _stands(self, effect: TellGroup) -> m.GroupStands:
        group = self.directory.groups.get(effect.group)
        if group is None:
            return m.GroupStands(TaskId(effect.group), REMOVED, [], [])
        bundles = [bundle.units() for bundle in group.spec.bundles]
        return m.GroupStands(TaskId(group.id), effect.state, bundles, list(group.nodes))

    def _warn(self, group: Group) -> None:
        living = self._head.roster.living()
        if not all(self.directory.knows(row.node) for row in living):
            return  # it is looked at again once they have reported
        bundles = ", ".join(str(bundle) for bundle in group.spec.bundles)
        total = ResourceSet(self._bundles.resources.units()[0])
        others = len(living) - 1
        has = f"this node has {total} in all"
        if others:
            has = f"the head has {total} in all, and {others} other nodes are in the cluster (skate.nodes() lists them)"
        text = (
            f"There is no room for the placement group {group.spec.name or group.id.hex()} ({group.spec.strategy}: "
            f"{bundles}), even without tasks and other groups: {has}. "
            "It waits until a node joins that can; ask for less, or init() with more resources."
        )
        if node_of(group.owner) != self._me or self.hooks.lives(group.owner):
            self._post(group.owner, m.Infeasible(0, text))

    # ------------------------------------------------------------------------------------------------------ reports

    def _answers(self, what: str) -> Callable[[], Any] | None:
        if what.startswith("group "):
            return lambda: self._one(what.removeprefix("group "))
        return {"groups": self._table, PENDING_GROUPS: self._pending}.get(what)

    def _table(self) -> dict[str, Any]:
        """Id in hexadecimal -> how the group stands, in Ray's words; with those that were removed lately."""
        self.act()  # a group's maker is told how it stands before anybody can read that here
        groups = {**self.directory.removed_groups, **self.directory.groups}
        return {group_id.hex(): _described(group) for group_id, group in groups.items()}

    def _one(self, group: str) -> dict[str, Any] | None:
        """As in the table, of one group; None of one that is not known."""
        self.act()
        try:
            found = self.directory.find(bytes.fromhex(group))
        except ValueError:
            return None
        return None if found is None else _described(found)

    def _pending(self) -> list[tuple[list[dict[str, float]], str, bool]]:
        """(bundles, strategy, feasible) of each group that waits to be placed."""
        return [
            ([bundle.to_dict() for bundle in group.spec.bundles], group.spec.strategy, not group.infeasible)
            for group in self.directory.groups.values()
            if group.state != CREATED
        ]


def _done(_: Any) -> None:
    """The head has done what it was asked."""


def _id_of_actor(claimed: Any) -> bytes | None:
    """What a process says in which detached actor it is."""
    return claimed if isinstance(claimed, bytes) and len(claimed) == TASK_ID_BYTES else None


def _described(group: Group) -> dict[str, Any]:
    if group.state == REMOVED:
        stage = "REMOVED"
    elif group.state == CREATED:
        stage = "FINISHED"
    else:
        stage = "INFEASIBLE" if group.infeasible else "NO_RESOURCES"
    latency = 0.0 if group.created_at is None else (group.created_at - group.started_at) * 1e3
    return {
        "placement_group_id": group.id.hex(),
        "name": group.spec.name,
        "bundles": {index: bundle.to_dict() for index, bundle in enumerate(group.spec.bundles)},
        "bundles_to_node_id": {index: node.hex() if node else "" for index, node in enumerate(group.nodes)},
        "strategy": group.spec.strategy,
        "state": STATE_NAMES[group.state],
        "stats": {
            "end_to_end_creation_latency_ms": latency,
            "scheduling_latency_ms": latency,
            "scheduling_attempt": group.attempt,
            "highest_retry_delay_ms": 0.0,
            "scheduling_state": stage,
        },
    }
