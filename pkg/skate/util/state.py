"""What the node holds and reserves: for programs (`list_objects`, …) and for people (`store_report`, …). No state.

Only objects in the store are listed: values up to 100,000 bytes live with their owners.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from skate.api.session import require_runtime
from skate.core.usage import describe_resources, sum_units
from skate.ids import owner_of
from skate.store.report import report

__all__ = [
    "ObjectState",
    "PlacementGroupState",
    "list_objects",
    "list_placement_groups",
    "resource_report",
    "store_report",
]


Filters = Iterable[tuple[str, str, Any]]


class _State:
    """One row of a listing. Its fields can be read as attributes, or as keys, as in Ray."""

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)


@dataclass(frozen=True)
class ObjectState(_State):
    """One object in the store."""

    object_id: str
    #: bytes
    object_size: int
    #: id of the process that owns it
    owner: str
    #: pid of that process; None where it has ended
    pid: int | None
    #: pids of the processes that use it now: it cannot be spilled meanwhile
    pinned_by: tuple[int, ...]
    #: False while it is being made
    sealed: bool
    #: its bytes are on disk, not in memory
    spilled: bool
    #: no ref to it is left; its memory goes when `pinned_by` let go
    freed: bool
    #: pid of the process that put it there: the owner, a worker, or the node manager where it was on disk before
    creator_pid: int


def list_objects(*, filters: Filters | None = None, limit: int = 100) -> list[ObjectState]:
    """The largest objects in the store, at most `limit`, largest first. Blocks for one question to the node manager.

    filters: (field, "=" or "!=", value), all of which must hold.
    """
    wanted = _checked("list_objects", ObjectState, filters, limit)
    runtime = require_runtime()
    pids = {bytes(identity): pid for identity, pid, _, _ in runtime.query("workers")}
    states = [
        ObjectState(
            object_id=row["id"].hex(),
            object_size=row["size"],
            owner=row["owner"].hex(),
            pid=pids.get(row["owner"]),
            pinned_by=tuple(sorted(row["pins"])),
            sealed=row["sealed"],
            spilled=False,
            freed=row["doomed"],
            creator_pid=row["creator"],
        )
        for row in runtime.store.objects()
    ]
    here = {state.object_id for state in states if not state.freed}
    for object_id, size, creator in runtime.query("spilled objects"):
        if object_id.hex() not in here:  # else it has come back between the two looks
            owner = owner_of(object_id)
            states.append(
                ObjectState(
                    object_id=object_id.hex(),
                    object_size=size,
                    owner=owner.hex(),
                    pid=pids.get(owner),
                    pinned_by=(),
                    sealed=True,
                    spilled=True,
                    freed=False,
                    creator_pid=creator,
                )
            )
    chosen = [state for state in states if _fits(state, wanted)]
    return sorted(chosen, key=lambda state: -state.object_size)[:limit]


def _checked(function: str, kind: type, filters: Filters | None, limit: int) -> list[tuple[str, Any, bool]]:
    """(field, value, whether they must be equal) of each filter. ValueError for what is none, or no limit."""
    if limit < 0:
        raise ValueError(f"{function}(): limit must not be negative, got {limit}")
    names = [each.name for each in fields(kind)]
    wanted = []
    for condition in filters or ():
        field, predicate, value = condition
        if field not in names or predicate not in ("=", "!="):
            raise ValueError(
                f"{function}(): a filter is (field, '=' or '!=', value), with a field of {names}; got {condition!r}"
            )
        wanted.append((field, value, predicate == "="))
    return wanted


def _fits(state: _State, wanted: list[tuple[str, Any, bool]]) -> bool:
    return all((state[field] == value) == equal for field, value, equal in wanted)


def store_report() -> str:
    """How full the store is and what takes most of it, in a few lines."""
    runtime = require_runtime()
    return report(runtime.store.usage(), runtime.query("spilled"), runtime.store.objects())


@dataclass(frozen=True)
class PlacementGroupState(_State):
    """One placement group."""

    placement_group_id: str
    name: str
    #: PENDING, CREATED, RESCHEDULING or REMOVED
    state: str
    strategy: str
    #: {"bundle_index": …, "resources": …, "node_id": …} of each
    bundles: tuple[dict[str, Any], ...]


def list_placement_groups(*, filters: Filters | None = None, limit: int = 100) -> list[PlacementGroupState]:
    """Placement groups, at most `limit`, also those that were removed lately. Blocks for one question to the node.

    filters: (field, "=" or "!=", value), all of which must hold.
    """
    wanted = _checked("list_placement_groups", PlacementGroupState, filters, limit)
    states = [
        PlacementGroupState(
            placement_group_id=row["placement_group_id"],
            name=row["name"],
            state=row["state"],
            strategy=row["strategy"],
            bundles=tuple(
                {"bundle_index": index, "resources": units, "node_id": row["bundles_to_node_id"][index]}
                for index, units in row["bundles"].items()
            ),
        )
        for row in require_runtime().query("groups").values()
    ]
    return [state for state in states if _fits(state, wanted)][:limit]


def resource_report() -> str:
    """What is used of each resource of the cluster, what placement groups reserve, and what waits; for people to read.

    Other nodes tell of changes every 0.1 s.
    """
    query = require_runtime().query
    living = [row for row in query("nodes") if row["alive"]]
    return describe_resources(
        sum_units(living, "total"),
        sum_units(living, "available"),
        (demand for row in living for demand in row["demands"]),
        query("pending groups"),
    )
