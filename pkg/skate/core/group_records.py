"""What the directory of placement groups deals in: groups, and what it has nodes and others do.

Owns nothing: the records are core.groups', which alone changes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from skate.core import group_names
from skate.core.labels import Expressions, parse_selector
from skate.core.placement import STRATEGIES, WantedBundle
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
    """Effect: tell these how the group stands. Of a REMOVED one, whatever waits to run in it is to end.

    `watchers`: processes of this node, and managers of others, which tell theirs.
    """

    group: bytes
    state: int
    watchers: tuple[ProcessId, ...]


class WarnGroup(NamedTuple):
    """Effect: tell the group's maker that the cluster, were it idle, could not hold it."""

    group: Group


class KeepGroup(NamedTuple):
    """Effect: write down how the group stands; of a REMOVED one, that it is no more."""

    group: Group


#: what a node is to do
Order = PrepareBundles | CommitBundles | ReturnBundles | EndGroup | ClaimRoom | DropClaim
Effect = Order | TellGroup | WarnGroup | KeepGroup


class HeldBundles(NamedTuple):
    """What a node has of a group."""

    group: bytes
    prepared: Sequence[int]
    committed: Sequence[int]

    @classmethod
    def from_plain(cls, plain: Any) -> HeldBundles:
        """ValueError where it is none."""
        if not isinstance(plain, list | tuple) or len(plain) != 3 or not isinstance(plain[0], bytes):
            raise ValueError(f"no node has of a group {plain!r:.60}")
        for indexes in plain[1:]:
            if not isinstance(indexes, list | tuple) or not all(type(index) is int for index in indexes):
                raise ValueError(f"bundles are named by a list of numbers, not {indexes!r:.60}")
        return cls(*plain)


class GroupSpec(NamedTuple):
    """What a group's maker says of it; in messages a dictionary of plain values."""

    bundles: tuple[ResourceSet, ...]
    strategy: str
    name: str = ""
    namespace: str = ""
    detached: bool = False
    #: of each bundle, what its node's labels must meet; empty: nothing
    selectors: tuple[Expressions, ...] = ()
    #: the node that STRICT_PACK tries first
    target: NodeId | None = None

    @classmethod
    def from_plain(cls, plain: Any) -> GroupSpec:
        """ValueError where it is none. Unknown fields are left out."""
        if not isinstance(plain, dict):
            raise ValueError(f"a placement group is described by a dict, not {plain!r:.60}")
        names = plain.get("name"), plain.get("namespace")
        target, selectors = plain.get("target"), plain.get("selectors")
        if plain.get("strategy") not in STRATEGIES or not all(isinstance(name, str) for name in names):
            raise ValueError(f"strategy, name and namespace of a placement group: {plain!r:.200}")
        if not (target is None or isinstance(target, bytes)) or not isinstance(selectors, list | tuple):
            raise ValueError(f"target and selectors of a placement group: {target!r:.60}, {selectors!r:.60}")
        bundles = bundles_from(plain.get("bundles"))
        if not bundles or (selectors and len(selectors) != len(bundles)):
            raise ValueError(f"a placement group of {len(bundles)} bundles with {len(selectors)} selectors")
        for selector in selectors:
            if not isinstance(selector, dict) or not all(
                isinstance(text, str) for pair in selector.items() for text in pair
            ):
                raise ValueError(f"no label selector is {selector!r:.60}")
        return cls(
            bundles=bundles,
            strategy=plain["strategy"],
            name=plain["name"],
            namespace=plain["namespace"],
            detached=plain.get("detached") is True,
            selectors=tuple(parse_selector(selector) for selector in selectors),
            target=None if target is None else NodeId(target),
        )

    def kept(self) -> dict[str, Any]:
        """As a head writes it down."""
        return self._asdict() | {"bundles": [bundle.units() for bundle in self.bundles]}

    @classmethod
    def from_kept(cls, kept: Mapping[str, Any]) -> GroupSpec:
        """What `kept` gave, also when it has been in a file."""
        selectors = tuple(
            tuple((label, operator, tuple(values)) for label, operator, values in selector)
            for selector in kept["selectors"]
        )
        return cls(**{**kept, "bundles": bundles_from(kept["bundles"]), "selectors": selectors})


def bundles_from(plain: Any) -> tuple[ResourceSet, ...]:
    """Bundles as messages carry them, [{name: units}, …]; ValueError for anything else."""
    if not isinstance(plain, list | tuple):
        raise ValueError(f"bundles are a list, not {plain!r:.60}")
    for units in plain:
        if not isinstance(units, dict) or not all(isinstance(name, str) for name in units):
            raise ValueError(f"a bundle is a dict of resources, not {units!r:.60}")
    try:
        return tuple(ResourceSet(units) for units in plain)
    except TypeError as error:
        raise ValueError(str(error)) from None


def offered(
    group: str, bundles: Sequence[ResourceSet], nodes: Sequence[NodeId | None]
) -> dict[NodeId, dict[str, int]]:
    """What a group (its id in hexadecimal) with these bundles on these nodes gives each node, name -> units."""
    found: dict[NodeId, dict[str, int]] = {}
    for index, node in enumerate(nodes):
        if node is not None:
            has = found.setdefault(node, {})
            for name, units in group_names.of_bundle(group, index, bundles[index].units()).items():
                has[name] = has.get(name, 0) + units
    return found


class Group:
    """One placement group."""

    __slots__ = (
        "attempt",
        "avoids",
        "awaiting",
        "claims",
        "created_at",
        "followers",
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
        #: the driver or detached actor with which it ends; None where it is detached
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
        #: who hears of every change: its maker, or the manager of that one's node, and managers that have asked
        self.followers: set[ProcessId] = set()
        #: processes to be told once it is CREATED or REMOVED
        self.watchers: set[ProcessId] = set()
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
