"""Placement groups: resources that are reserved together, on one node or several, for tasks and actors of a program.

State, a handle: the group's id, and its bundles once they are known. Names, defaults and errors are Ray's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from skate._c.refs import ObjectRef
from skate._c.resources import to_units
from skate.api.objects import put
from skate.api.session import require_runtime
from skate.core.placement import PACK, STRATEGIES, STRICT_PACK
from skate.core.resources import ResourceSet
from skate.exceptions import SkateSystemError
from skate.ids import TASK_ID_BYTES
from skate.options import check_label_selector, check_resource_name
from skate.runtime import current

__all__ = [
    "PlacementGroup",
    "PlacementGroupID",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "remove_placement_group",
]


class PlacementGroupID(bytes):
    """A group's id: plain bytes, with the names that Ray's ids have."""

    __slots__ = ()

    @classmethod
    def nil(cls) -> PlacementGroupID:
        return cls(b"\xff" * TASK_ID_BYTES)

    @classmethod
    def from_hex(cls, text: str) -> PlacementGroupID:
        return cls.fromhex(text)

    def is_nil(self) -> bool:
        return self == self.nil()

    def binary(self) -> bytes:
        return bytes(self)

    def __repr__(self) -> str:
        return f"PlacementGroupID({self.hex()})"

    def __reduce__(self) -> tuple[type[PlacementGroupID], tuple[bytes]]:
        return PlacementGroupID, (bytes(self),)


class PlacementGroup:
    """A handle of a group. Handles of one group are equal, also those that came from other processes."""

    def __init__(self, id: PlacementGroupID, bundle_cache: list[dict[str, float]] | None = None) -> None:
        self.id = id
        self.bundle_cache = bundle_cache

    @staticmethod
    def empty() -> PlacementGroup:
        """What stands for no group."""
        return PlacementGroup(PlacementGroupID.nil())

    @property
    def is_empty(self) -> bool:
        return self.id.is_nil()

    def ready(self) -> ObjectRef:
        """A ref whose value is this handle, once all bundles are reserved. Does not block.

        `get` of it raises TaskPlacementGroupRemoved when the group is removed before.
        """
        if self.is_empty:
            return put(self)
        return require_runtime().groups.ready(self.id.binary(), self)

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Whether the group is ready within so many seconds; blocks until then.

        Raises TaskPlacementGroupRemoved where it is removed.
        """
        runtime = require_runtime()
        if self.is_empty:
            return False
        if runtime.groups.is_created(self.id):
            return True
        ref = self.ready()
        if not runtime.objects.wait([ref], 1, timeout_seconds)[0]:
            return False
        runtime.objects.get([ref], None)
        return True

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """Its bundles: [{"CPU": 1.0}, …]. Asks the node where this handle does not know. ValueError if it is gone."""
        if self.bundle_cache is None:
            if self.is_empty:
                return []
            self.bundle_cache = require_runtime().groups.bundles(self.id.binary())
            if self.bundle_cache is None:
                raise ValueError(f"there is no placement group {self.id.hex()}; it was removed long ago")
        return self.bundle_cache

    @property
    def bundle_count(self) -> int:
        return len(self.bundle_specs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<PlacementGroup {self.id.hex()}>"


_NO_LIST: Final = (
    'Bundles must be a non-empty list of resource dictionaries, such as [{"CPU": 1.0}, {"GPU": 1.0}]'
)


def placement_group(
    bundles: list[dict[str, float]],
    strategy: str | None = None,
    name: str = "",
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: list[dict[str, str]] | None = None,
) -> PlacementGroup:
    """Asks for a group: all of its bundles are reserved, or none. Does not block; with a name, until the node answers.

    strategy: "PACK" (the default) puts the bundles on as few nodes as it can, "SPREAD" on as many; "STRICT_PACK" on one
    node and "STRICT_SPREAD" each on another, or not at all.
    name: for get_placement_group, in the namespace that init() was given; without one, in the whole cluster.
    lifetime: None, it ends with the program (or detached actor) that makes it; "detached", it does not.
    bundle_label_selector: for each bundle, which labels its node has.
    Raises ValueError for what is none of these, SkateSystemError for a name that is taken.
    """
    runtime = require_runtime()
    assert current.facts is not None
    sets = _checked_bundles(bundles)
    if strategy is None:
        strategy = PACK
    if strategy not in STRATEGIES:
        raise ValueError(
            f"Invalid placement group strategy {strategy!r}. Supported strategies are: {', '.join(STRATEGIES)}."
        )
    if lifetime not in (None, "detached"):
        raise ValueError(f"Placement group `lifetime` must be None or 'detached', got {lifetime!r}.")
    if not isinstance(name, str):
        raise ValueError(f"the name of a placement group must be a str, got {name!r}")
    spec = {
        "bundles": [bundle.units() for bundle in sets],
        "strategy": strategy,
        "name": name,
        "namespace": current.facts.group_namespace,
        "detached": lifetime == "detached",
        "selectors": _checked_selectors(bundle_label_selector, len(sets)),
        "target": _checked_target(_soft_target_node_id, strategy),
        "actor": _detached_actor(),
    }
    group, other = runtime.groups.create(spec, name)
    if other is not None:
        raise SkateSystemError(
            f"Failed to create placement group {group.hex()} because name {name!r} already exists: group {other.hex()} "
            "has it. Use another name, get_placement_group(), or remove_placement_group() first."
        )
    return PlacementGroup(PlacementGroupID(group), [bundle.to_dict() for bundle in sets])


def _checked_bundles(bundles: Any) -> list[ResourceSet]:
    if not isinstance(bundles, list):
        raise ValueError(f"Placement group bundles must be a list, got {type(bundles)}.")
    if not bundles:
        raise ValueError(f"{_NO_LIST}; got an empty list.")
    sets = []
    for bundle in bundles:
        if not isinstance(bundle, Mapping) or not all(isinstance(name, str) for name in bundle):
            raise ValueError(f"{_NO_LIST}; got {bundle!r}.")
        for name, amount in bundle.items():
            check_resource_name(name)
            if isinstance(amount, (str, bool)) or not hasattr(amount, "__float__"):
                raise ValueError(f"{_NO_LIST}; got {amount!r} of {name!r}.")
        one = ResourceSet({name: to_units(amount, name) for name, amount in bundle.items()})
        if not one:
            raise ValueError(
                "Bundles cannot be an empty dictionary or resources with only 0 values (less than 0.0001 counts as 0). "
                f"Bundles: {bundles}"
            )
        if one.group is not None:
            raise ValueError(f"a bundle cannot be made of what another group has reserved: {bundle!r}")
        sets.append(one)
    return sets


def _checked_selectors(selectors: Any, number: int) -> list[dict[str, str]]:
    if selectors is None:
        return []
    if not isinstance(selectors, list) or (selectors and len(selectors) != number):
        raise ValueError(
            f"bundle_label_selector must be a list with as many label selectors as there are bundles ({number}), "
            f"got {selectors!r}"
        )
    for selector in selectors:
        try:
            check_label_selector("bundle_label_selector", selector)
        except TypeError as error:
            raise ValueError(str(error)) from None
    return [dict(selector or {}) for selector in selectors]


def _checked_target(target: str | None, strategy: str) -> bytes | None:
    if not target:
        return None
    if strategy != STRICT_PACK:
        raise ValueError(f"_soft_target_node_id only works with STRICT_PACK, got {strategy}")
    try:
        return bytes.fromhex(target)
    except (ValueError, TypeError):
        raise ValueError(f"_soft_target_node_id must be a node's id in hexadecimal, got {target!r}") from None


def _detached_actor() -> bytes | None:
    """The detached actor that this process is: what it makes ends with it."""
    executor = None if current.facts is None else current.facts.executor
    if executor is None or executor.actor is None or not executor.actor.spec["detached"]:
        return None
    return bytes(executor.actor.id)


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Gives back what the group reserves. Does not block. What still runs in it is killed, what waits for it fails.

    One that is removed already, or unknown, is left alone.
    """
    if not isinstance(placement_group, PlacementGroup):
        raise TypeError(f"remove_placement_group() takes a PlacementGroup, got {placement_group!r}")
    require_runtime().groups.remove(placement_group.id.binary())


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """A handle of the group that has this name. ValueError where there is none. Blocks.

    In the namespace that this program's init() was given, else among the names of programs that gave none.
    """
    if not placement_group_name or not isinstance(placement_group_name, str):
        raise ValueError(
            f"get_placement_group() takes a name, a str that is not empty; got {placement_group_name!r}"
        )
    runtime = require_runtime()
    assert current.facts is not None
    found = runtime.groups.find(placement_group_name, current.facts.group_namespace)
    if found is None:
        raise ValueError(
            f"Failed to look up placement group with name: {placement_group_name}. No group has it in namespace "
            f"{current.facts.group_namespace!r}, and none of a program without a namespace."
        )
    group, bundles = found
    return PlacementGroup(PlacementGroupID(group), [dict(bundle) for bundle in bundles])


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """How a group stands, with its bundles and their nodes; or id -> that for all groups. {} if unknown. Blocks."""
    runtime = require_runtime()
    if placement_group is None:
        return dict(runtime.query("groups"))
    return runtime.query(f"group {placement_group.id.hex()}") or {}


def get_current_placement_group() -> PlacementGroup | None:
    """The group in which the running task or actor is; None elsewhere, and in drivers."""
    require_runtime()
    assert current.facts is not None
    executor = current.facts.executor
    if executor is None or executor.lease is None or executor.lease.group is None:
        return None
    return PlacementGroup(PlacementGroupID.from_hex(executor.lease.group))
