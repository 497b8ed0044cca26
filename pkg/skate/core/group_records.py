"""What the directory of placement groups deals in: groups, and what it has nodes and others do.

Owns nothing: the records are core.groups', which alone changes them.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from skate.core.labels import Expressions
from skate.core.placement import WantedBundle
from skate.core.resources import ResourceSet
from skate.ids import NodeId, ProcessId, owner_of

PENDING: Final = 0
CREATED: Final = 1
RESCHEDULING: Final = 2
REMOVED: Final = 3
STATE_NAMES: Final = ("PENDING", "CREATED", "RESCHEDULING", "REMOVED")


class PrepareBundles(NamedTuple):
    """Effect: the node takes what these bundles need, or nothing; `prepared` follows."""

    node: NodeId
    group: Group
    attempt: int
    bundles: dict[int, ResourceSet]


class CommitBundles(NamedTuple):
    """Effect: the bundles that the node has taken may be used."""

    node: NodeId
    group: Group
    indexes: tuple[int, ...]


class ReturnBundles(NamedTuple):
    """Effect: bundles that the node has taken, or is about to, are not wanted; nothing runs in them yet."""

    node: NodeId
    group: Group
    indexes: tuple[int, ...]


class EndGroup(NamedTuple):
    """Effect: the node gives back all of the group's bundles; what runs in them, or waits to, ends."""

    node: NodeId
    group: Group


class ClaimRoom(NamedTuple):
    """Effect: the node clears room for these bundles, which it then is asked to prepare; replaces an older claim."""

    node: NodeId
    group: Group
    bundles: tuple[ResourceSet, ...]


class DropClaim(NamedTuple):
    """Effect: the node need not clear room for the group any more."""

    node: NodeId
    group: Group


class TellGroup(NamedTuple):
    """Effect: tell these processes how the group stands. Of a REMOVED one, whatever waits to run in it is to end."""

    group: bytes
    state: int
    watchers: tuple[ProcessId, ...]


class WarnGroup(NamedTuple):
    """Effect: tell the group's maker that the cluster, were it idle, could not hold it."""

    group: Group


Effect = (
    PrepareBundles | CommitBundles | ReturnBundles | EndGroup | ClaimRoom | DropClaim | TellGroup | WarnGroup
)


class GroupSpec(NamedTuple):
    """What a group's maker says of it."""

    bundles: tuple[ResourceSet, ...]
    strategy: str
    name: str = ""
    namespace: str = ""
    detached: bool = False
    #: of each bundle, what its node's labels must meet; empty: nothing
    selectors: tuple[Expressions, ...] = ()
    #: the node that STRICT_PACK tries first
    target: NodeId | None = None


class Group:
    """One placement group."""

    __slots__ = (
        "attempt",
        "avoids",
        "awaiting",
        "claims",
        "created_at",
        "id",
        "infeasible",
        "lives_with",
        "nodes",
        "owner",
        "spec",
        "started_at",
        "state",
        "target",
        "watchers",
    )

    def __init__(self, group_id: bytes, spec: GroupSpec, lives_with: Any, now: float) -> None:
        self.id = group_id
        self.owner = owner_of(group_id)
        self.spec = spec
        #: the job or detached actor with which it ends; None where it is detached
        self.lives_with = None if spec.detached else lives_with
        self.state = PENDING
        #: where each bundle is; None: nowhere
        self.nodes: list[NodeId | None] = [None] * len(spec.bundles)
        #: where bundles are being placed now, and the nodes that have not answered
        self.target: dict[int, NodeId] = {}
        self.awaiting: set[NodeId] = set()
        #: the number of the attempt that is under way, or was last
        self.attempt = 0
        #: nodes that have refused it, and on which nothing has become free since
        self.avoids: set[NodeId] = set()
        #: node -> what it clears for the group
        self.claims: dict[NodeId, tuple[ResourceSet, ...]] = {}
        #: processes to be told once it is CREATED or REMOVED
        self.watchers: set[ProcessId] = {self.owner}
        #: the cluster is too small for it, were it idle; None: not looked at since a node came or went
        self.infeasible: bool | None = None
        #: when it was asked for, and when it was first whole
        self.started_at = now
        self.created_at: float | None = None

    @property
    def placed_on(self) -> tuple[NodeId, ...]:
        """The nodes that have bundles of it, each once."""
        return tuple(dict.fromkeys(node for node in self.nodes if node is not None))

    def missing(self) -> list[WantedBundle]:
        """Its bundles that are nowhere."""
        selectors = self.spec.selectors
        return [
            WantedBundle(index, self.spec.bundles[index], selectors[index] if selectors else ())
            for index, node in enumerate(self.nodes)
            if node is None
        ]

    def __repr__(self) -> str:
        return f"<Group {self.id.hex()} {STATE_NAMES[self.state]} {self.spec.strategy} {self.spec.name}>"
