"""What the node says to a request before admission hears of it, and to who was granted one. No state of its own."""

from __future__ import annotations

import random
from typing import Any, Final, NamedTuple

from skate.config import scheduler_knobs
from skate.core.bundles import BundledResources
from skate.core.leases import NodeLease
from skate.core.policies import Knobs, NodeChooser, NodeView, where_from
from skate.core.resources import ResourceSet
from skate.ids import NodeId
from skate.node.groups import NodeGroups


class Verdict(NamedTuple):
    """What the node says to a request."""

    #: it may run here, as far as node and labels go
    allowed: bool = True
    #: why it can run nowhere, ever; empty: it can, or may some day
    never: str = ""
    #: because its placement group was removed
    removed: bool = False
    #: tasks of what runs there go to its placement group
    captures: bool = False


#: what the node says to most requests
ANYWHERE: Final = Verdict()


class Judge:
    """Says whether what asks for something may run on this node, which is the only one."""

    def __init__(
        self, node: NodeId, labels: dict[str, str], resources: BundledResources, groups: NodeGroups
    ) -> None:
        self._node = node
        self._labels = labels
        self._resources = resources
        self._groups = groups
        self._chooser = NodeChooser(Knobs(**scheduler_knobs()))

    def __call__(self, demand: ResourceSet, where: Any, for_actor: bool = False) -> Verdict:
        """`where` is a core.policies.Where as it travels, or None."""
        if demand.group is not None and self._groups.is_gone(demand.group):
            return Verdict(False, group_removed(demand), removed=True)
        if where is None:
            return ANYWHERE
        wanted = where_from(where)
        if not wanted.chooses:
            return Verdict(captures=wanted.captures)
        here = NodeView(self._node, *self._resources.all_units(), self._labels)
        choice = self._chooser.choose(
            [here], demand, wanted, local=self._node, chance=random.random(), for_actor=for_actor
        )
        return Verdict(choice.node is not None, choice.never, captures=wanted.captures)


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
