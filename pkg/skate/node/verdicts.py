"""What a node says to who was granted a lease, and to who can have none. No state of its own."""

from __future__ import annotations

from typing import Any

from skate.core.leases import NodeLease
from skate.core.resources import ResourceSet


def granted_allocation(lease: NodeLease) -> dict[str, Any]:
    """What a worker may use, as messages carry it: see worker.lease."""
    demand = lease.allocation.request
    allocation: dict[str, Any] = {"resources": demand.plain(), "devices": list(lease.allocation.devices)}
    if demand.group is not None:
        allocation["group"] = (demand.group, lease.request.captures)
    return allocation


def group_removed(demand: ResourceSet) -> str:
    """What is said of a task or actor whose placement group is removed."""
    return (
        f"Its placement group {demand.group} was removed; it asked for {ResourceSet(demand.plain())} of it."
    )
