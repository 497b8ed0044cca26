"""What a node says to who was granted a lease, and to who can have none. No state of its own."""

from __future__ import annotations

from typing import Any

from skate.core.leases import LeaseRequest, NodeLease
from skate.core.resources import ResourceSet


def granted_allocation(lease: NodeLease) -> dict[str, Any]:
    """What a worker may use, as messages carry it: see worker.lease."""
    demand = lease.allocation.request
    allocation: dict[str, Any] = {"resources": demand.plain(), "devices": list(lease.allocation.devices)}
    if demand.group is not None:
        allocation["group"] = (demand.group, lease.request.captures)
    return allocation


def none_can(request: LeaseRequest, total: dict[str, float], labels: dict[str, str], others: int) -> str:
    """Why no node can run what is asked for: this one has so much and these labels, and there are so many others."""
    has = f"{total} in all"
    if not request.allowed:
        has += f", and the labels {labels}, which are not what was asked for"
    if others:
        has += f", and of the cluster's {others} other nodes none has enough (skate.nodes() lists them)"
    return (
        f"No node can run what asks for {request.demand}: this node has {has}. "
        "It waits until a node joins that can; ask for less, or init() with more resources."
    )


def group_removed(demand: ResourceSet) -> str:
    """What is said of a task or actor whose placement group is removed."""
    return (
        f"Its placement group {demand.group} was removed; it asked for {ResourceSet(demand.plain())} of it."
    )
