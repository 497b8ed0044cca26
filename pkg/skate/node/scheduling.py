"""On which nodes what the processes and actors of this node ask for is asked for, and what other nodes ask of this one.

State: the shares (core.shares), the nodes as they are known here, and the requests of other nodes' owners, with what
their nodes were told of how they stand. An owner speaks to its own node manager; that asks others in the owner's name,
and leases come from them to the owner, or, for an actor, to the manager of the node of the actor's maker.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple

from skate.config import scheduler_knobs
from skate.core.admission import Admission
from skate.core.bundles import BundledResources
from skate.core.leases import Lacks, LeaseRequest, NodeLease
from skate.core.node_table import NodeTable, NodeView
from skate.core.policies import Knobs, NodeChooser, Where
from skate.core.resources import ResourceSet
from skate.core.roster import Roster
from skate.core.shares import Ask, Refuse, Shares, Split
from skate.ids import (
    OBJECT_ID_BYTES,
    PROCESS_ID_BYTES,
    ActorId,
    NodeId,
    ObjectId,
    ProcessId,
    manager_of,
    node_of,
)
from skate.node.processes import environment_of
from skate.node.verdicts import granted_allocation, group_removed
from skate.wire import checks
from skate.wire import messages as m

log = logging.getLogger("skate.node")


class Details(NamedTuple):
    """What a node that is asked needs to know, besides what is asked for."""

    environment: Any
    depth: int
    captures: bool
    #: of an actor, which holds no CPU once it is there
    lends: bool = False
    #: of each of its tasks the large arguments; None: they have none
    arguments: Lacks | None = None
    #: of an actor, which outlives its maker
    detached: bool = False


class Hooks(NamedTuple):
    """What the node manager does for its scheduling."""

    post: Callable[[ProcessId, Any], None]
    #: what a job's workers need to know, by the job's id
    facts: Callable[[str], dict[str, Any]]
    #: takes in the job of an owner of another node
    adopt: Callable[[dict[str, Any]], None]
    #: (owner, node): the node is to hear of the owner's death
    acquaint: Callable[[ProcessId, NodeId], None]
    #: an owner of another node, whose death matters here
    introduce: Callable[[ProcessId], None]
    #: such an owner is gone
    dismiss: Callable[[ProcessId], None]
    #: which of these objects are not on this node
    lacks: Callable[[Lacks], Lacks]
    #: (owner, class, why): a request can never be met
    refused: Callable[[ProcessId, int, str, bool], None]
    #: (actor, what it asked for): the placement group in which it lives, or was to live, is removed
    group_gone: Callable[[ProcessId, ResourceSet], None]
    #: what a placement group gives the nodes on which it is, by its names
    offered: Callable[[str], Mapping[NodeId, Mapping[str, int]]]


def arguments_from(fields: Any) -> tuple[Lacks | None, dict[NodeId, int] | None]:
    """(large arguments, node -> bytes of them) as RequestLeases tells. ValueError where it tells something else."""
    if fields is None:
        return None, None
    near: dict[NodeId, int] = {}
    for item in checks.rows(fields, 3):
        if not isinstance(item[2], list | tuple) or not all(isinstance(node, bytes) for node in item[2]):
            raise ValueError(f"nodes with a copy are no {item[2]!r:.40}")
    lacks = _checked([(item[0], item[1]) for item in fields])
    for (_, size), (*_, nodes) in zip(lacks, fields, strict=True):
        for node in nodes:
            near[NodeId(node)] = near.get(NodeId(node), 0) + size
    return lacks, near


def _checked(arguments: Any) -> Lacks:
    lacks = tuple([(ObjectId(name), size) for name, size in checks.rows(arguments, 2)])
    for name, size in lacks:
        if type(name) is not bytes or len(name) != OBJECT_ID_BYTES or type(size) is not int or size < 0:
            raise ValueError(f"an argument is no ({name!r:.40}, {size!r:.40})")
    return lacks


class NodeScheduling:
    """`roster` and `hooks` are set once the node has them."""

    roster: Roster
    hooks: Hooks

    def __init__(self, node: NodeId, labels: dict[str, str], admission: Admission) -> None:
        self._me = node
        self._labels = labels
        self._admission = admission
        self._resources: BundledResources = admission.resources
        self._chooser = NodeChooser(Knobs(**scheduler_knobs()))
        self.shares = Shares(node, self._chooser)
        #: the nodes that live, as they were told of when something was split last, less what they were asked for since
        self._views = NodeTable()
        #: version of the table of nodes for which what waits was looked at
        self._version = 0
        #: (owner, class) -> (number of the latest request, what its node was told: see `_standing`)
        self._foreign: dict[tuple[ProcessId, int], tuple[int, int, int, bool]] = {}
        #: those that were asked for since others were told last
        self._asked_now: dict[tuple[ProcessId, int], None] = {}
        #: detached actors of other nodes' directories that have asked for a worker here
        self._detached: set[ProcessId] = set()
        self.handlers: Final[dict[int, Callable[..., None]]] = {
            m.RequestLeasesFor.code: self._asked,  # type: ignore[attr-defined]
            m.LeasesStand.code: self._stands,  # type: ignore[attr-defined]
            m.OwnerLeft.code: self._owner_left_there,  # type: ignore[attr-defined]
        }

    # --------------------------------------------------------------------------------- of this node's processes

    def wants(
        self,
        owner: ProcessId,
        class_id: int,
        demand: ResourceSet,
        where: Where | None,
        wanted: int,
        details: Details,
        *,
        for_actor: bool = False,
        near: dict[NodeId, int] | None = None,
    ) -> None:
        roams = for_actor and not demand.plain().keys() - ({"CPU"} if details.lends else set())
        self.shares.wanted(
            owner, class_id, demand, where, wanted, details, for_actor=for_actor, roams=roams, near=near
        )

    def housed(self, actor: ProcessId, demand: ResourceSet, where: Where, node: NodeId) -> None:
        """An actor of this node's directory has had a worker on that node since before this node was there."""
        self.shares.housed(actor, demand, where, node)

    def owner_left(self, owner: ProcessId) -> None:
        """A process of this node is gone, or an actor that was made here: what was asked for it is taken back."""
        self._admission.process_left(owner)
        for node in self.shares.owner_left(owner):
            if node != self._me and len(owner) > PROCESS_ID_BYTES and not self.roster.is_dead(node):
                self.hooks.post(manager_of(node), m.OwnerLeft(owner))  # (of a process nodes hear anyway)

    def group_changed(self, group: str) -> None:
        """A placement group has come to be elsewhere."""
        self.shares.group_changed(group)

    def group_ended(self, group: str) -> None:
        """A placement group is removed: what was to run in it is not asked for any more, and its owner is told."""
        for split in self.shares.group_ended(group):
            for node, share in split.shares.items():
                if node == self._me or self.roster.is_dead(node):
                    continue
                if split.for_actor:
                    self.hooks.post(manager_of(node), m.OwnerLeft(split.owner))
                elif share.waiting:
                    self._ask(Ask(node, split, 0, share.number, True))
            if split.for_actor:
                self.hooks.group_gone(split.owner, split.demand)
            else:
                notice = m.Unschedulable(split.class_id, True, group_removed(split.demand))
                self.hooks.post(split.owner, notice)

    def node_died(self, node: NodeId) -> None:
        self._views.drop(node)
        self.shares.node_died(node)

    def act(self) -> bool:
        """Splits what is asked for over the nodes; whether there was anything."""
        if self._version != self.roster.version:
            self._version = self.roster.version
            self.shares.look_again()
        if not self.shares.undecided:
            return False
        self._look()
        for effect in self.shares.decide(self._views, random.random, self._stand_here):
            if type(effect) is Refuse:
                split = effect.split
                self.hooks.refused(split.owner, split.class_id, effect.why, split.for_actor)
            else:
                assert type(effect) is Ask
                self._ask(effect)
        return True

    def _look(self) -> None:
        """Has the views show the nodes as they are known now."""
        views = self._views
        for row in self.roster.take_changed():
            known = views.find(row.node)
            if not row.alive:
                views.drop(row.node)
            elif known is None or known.source is not row:  # else what it was asked for since counts
                view = NodeView(row.node, row.total, row.available, row.labels)
                view.source = row
                views.put(view)
        views.put(NodeView(self._me, *self._resources.all_units(), self._labels))
        if len(views) > 1:
            self._add_groups()

    def _add_groups(self) -> None:
        """What nodes have for groups is known before they report it: nobody has used it then."""
        for group in set(self.shares.groups_to_split()):
            for node, names in self.hooks.offered(group).items():
                view = self._views.find(node)
                if view is not None and node != self._me:
                    for name, units in names.items():
                        if view.total.get(name) != units:
                            view.offer(name, units)

    def _stand_here(self, split: Split) -> tuple[int, int]:
        return self._standing(split.owner, split.class_id)[:2]

    def _standing(self, owner: ProcessId, class_id: int) -> tuple[int, int, bool]:
        """(leases that wait for resources, and for workers, whether any have both)."""
        request = self._admission.requests.get((owner, class_id))
        return (0, 0, False) if request is None else (request.wanted, request.reserved, request.held > 0)

    def _ask(self, effect: Ask) -> None:
        split, details = effect.split, effect.split.details
        if effect.node == self._me:
            self._ask_here(
                split.owner,
                split.class_id,
                split.demand,
                effect.wanted,
                details,
                split.for_actor,
                allowed=effect.allowed,
            )
            return
        if len(split.owner) == PROCESS_ID_BYTES:
            self.hooks.acquaint(split.owner, effect.node)
        job, variables = details.environment
        self.hooks.post(
            manager_of(effect.node),
            m.RequestLeasesFor(
                split.owner,
                split.class_id,
                effect.number,
                split.demand.units(),
                details.depth,
                effect.wanted,
                variables,
                details.captures,
                split.for_actor,
                details.lends,
                details.detached,
                details.arguments,
                self.hooks.facts(job),
            ),
        )

    def _ask_here(
        self,
        owner: ProcessId,
        class_id: int,
        demand: ResourceSet,
        wanted: int,
        details: Details,
        for_actor: bool,
        *,
        allowed: bool,
    ) -> None:
        """`wanted`: those without resources, which admission is told of with those that have theirs."""
        if not wanted and (owner, class_id) not in self._admission.requests:
            return  # it was dropped with its placement group
        if for_actor and wanted:
            self._admission.actor_placed(
                owner,
                demand,
                details.lends,
                details.depth,
                details.environment,
                allowed=allowed,
                captures=details.captures,
            )
            return
        reserved = self._standing(owner, class_id)[1]
        self._admission.leases_requested(
            owner,
            class_id,
            demand,
            details.depth,
            wanted + reserved,
            details.environment,
            allowed=allowed,
            captures=details.captures,
            lacks=None if details.arguments is None else self.hooks.lacks(details.arguments),
        )

    # ------------------------------------------------------------------------------------- of other nodes' owners

    def is_foreign(self, owner: bytes) -> bool:
        """Whether the process is another node's, or the actor was made on one."""
        return self.roster.home(owner) != manager_of(self._me)

    def _asked(
        self,
        asker: Any,
        owner: bytes,
        class_id: int,
        number: int,
        demand: Any,
        depth: int,
        wanted: int,
        variables: Any,
        captures: bool,
        for_actor: bool,
        lends: bool,
        detached: bool,
        arguments: Any,
        job: Any,
    ) -> None:
        """Another node asks in the name of an owner of its own."""
        if self.roster.home(owner) != asker.id:
            log.warning("%s asked in the name of %s: refused", asker.id.hex(), owner.hex())
            return
        asks_for = ProcessId(owner)
        environment = environment_of(checks.job(job)["id"], variables)
        asked = ResourceSet(checks.amounts(demand))
        needs = None if arguments is None else _checked(arguments)
        if wanted:  # else it takes back what it wanted, perhaps of the node on which the head was before
            self.hooks.adopt(job)
            self.hooks.introduce(asks_for)
            if detached:
                self._detached.add(asks_for)
        details = Details(environment, depth, captures, lends, needs, detached)
        self._ask_here(asks_for, class_id, asked, wanted, details, for_actor, allowed=True)
        self._foreign[asks_for, class_id] = (number, wanted, -1, False)
        self._asked_now[asks_for, class_id] = None

    def _stands(
        self, node: Any, owner: bytes, class_id: int, number: int, waiting: int, reserved: int, held: bool
    ) -> None:
        """A node that was asked says how that stands."""
        self.shares.stands(node_of(node.id), ProcessId(owner), class_id, number, waiting, reserved, held)

    def _owner_left_there(self, asker: Any, owner: bytes) -> None:
        if self.roster.home(owner) == asker.id:
            self.take_back(ProcessId(owner))
            self.hooks.dismiss(ProcessId(owner))

    def foreign_owner_left(self, owner: ProcessId) -> None:
        """What it asked of this node is taken back; but not from a detached actor whose head may come back."""
        if owner not in self._detached or node_of(owner) != self.roster.awaited:
            self.take_back(owner)

    def detached_of(self, nodes: Collection[NodeId]) -> list[tuple[ProcessId, NodeLease | None]]:
        """The detached actors, made on these nodes, that have asked for a worker here, and the lease of it if there is
        one that has a worker."""
        leases = {
            lease.request.owner: lease
            for lease in self._admission.leases.values()
            if lease.worker is not None
        }
        return [(actor, leases.get(actor)) for actor in self._detached if node_of(actor) in nodes]

    def take_back(self, owner: ProcessId) -> None:
        """What was asked in this name ends, with the workers that it has."""
        self._detached.discard(owner)
        for key in [key for key in self._foreign if key[0] == owner]:
            del self._foreign[key]
        self._admission.process_left(owner)

    def tell(self) -> None:
        """Tells other nodes how what they have asked for stands, where that has changed."""
        asked, self._asked_now = self._asked_now, {}
        for key in {**asked, **dict.fromkeys(self._admission.take_news())}:
            if key not in self._foreign:
                if key not in self._admission.requests:
                    self.shares.over_here(*key)
                continue
            number, *told = self._foreign[key]
            stands = self._standing(*key)
            if stands == (0, 0, False):
                del self._foreign[key]  # until it is asked for again
            else:
                self._foreign[key] = (number, *stands)
            if stands != tuple(told):
                self.hooks.post(manager_of(key[0]), m.LeasesStand(*key, number, *stands))

    def actor_placed(self, actor: ActorId) -> None:
        """Another node has a worker for an actor that was made here."""
        self.shares.actor_placed(ProcessId(actor))

    def actor_granted(self, lease: NodeLease) -> None:
        """An actor that was made on another node has its worker."""
        assert lease.worker is not None
        allocation = granted_allocation(lease)
        actor = ActorId(lease.request.owner)  # type: ignore[arg-type]
        self.hooks.post(manager_of(actor), m.ActorPlaced(actor, lease.worker.id, lease.id, allocation, ""))

    def actor_failed(self, request: LeaseRequest, why: str) -> None:
        actor = ActorId(request.owner)  # type: ignore[arg-type]
        self.hooks.post(manager_of(actor), m.ActorPlaced(actor, b"", 0, None, why))
