"""What placement groups reserve of a node, and what runs in it.

State owned here: the pool of each group that has bundles on the node (`GroupPool`), beside the node's own resources
(`BundledResources`). A bundle is prepared first: its amounts and GPUs are taken from the node, and nobody may use them.
Once it is committed, the group's pool offers them under the group's names (core.group_names). Requests for such names
are met from the pool alone, so an allocation belongs to the node or to one pool, and all operations find which.

Invariants (`check`): what a pool offers is what its committed bundles took from the node; the rest is that of
`NodeResources`, for the node and for each pool. So nothing in a group runs over its bundles, a wildcard request not
over their sum, and no GPU is another than the bundle's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from skate.core import group_names
from skate.core.resources import Allocation, NodeResources, ResourceSet


class GroupPool(NodeResources):
    """What one placement group has on one node. Its devices are (bundle, device) pairs."""

    def __init__(self, group: str, node_gpu_ids: tuple[str, ...]) -> None:
        super().__init__({})
        self.group = group
        self._node_gpu_ids = node_gpu_ids
        #: bundle -> what it holds of the node
        self.prepared: dict[int, Allocation] = {}
        self.committed: dict[int, Allocation] = {}

    def commit(self, index: int) -> None:
        allocation = self.committed[index] = self.prepared.pop(index)
        for name, units in group_names.of_bundle(self.group, index, allocation.request.units()).items():
            self._vector.add(name, units)
        self._devices.add({(index, device): part for device, part in allocation._parts})

    def _take_devices(self, request: ResourceSet) -> list[tuple[Any, int]] | None:
        index = request.index
        here = None if index < 0 else (lambda device: device[0] == index)
        return self._devices.allocate(request.asks_of("GPU"), here)

    def _device_id(self, device: tuple[int, int]) -> str:
        return self._node_gpu_ids[device[1]]

    def check(self) -> None:
        super().check()
        offered: dict[str, int] = {}
        for index, allocation in self.committed.items():
            units = allocation.request.units()
            for name, amount in group_names.of_bundle(self.group, index, units).items():
                offered[name] = offered.get(name, 0) + amount
        if offered != self._vector.total_dict():
            raise RuntimeError(
                f"group {self.group} offers {self._vector.total_dict()}, its bundles are {offered}"
            )


class BundledResources(NodeResources):
    """A node's resources of which placement groups may reserve parts."""

    def __init__(self, totals: Mapping[str, int], gpu_ids: Iterable[str] = ()) -> None:
        super().__init__(totals, tuple(gpu_ids))
        self._pools: dict[str, GroupPool] = {}
        #: what bundles hold; among `_live`, as what leases hold
        self._bundles: set[Allocation] = set()

    # -------------------------------------------------------------------------------------------------- bundles

    def prepare(self, group: str, bundles: Mapping[int, ResourceSet]) -> bool:
        """Takes what these bundles of the group need, all of it, or nothing and returns False.

        Raises ValueError for a bundle that is here already.
        """
        pool = self._pools.get(group)
        known = () if pool is None else (*pool.prepared, *pool.committed)
        if not set(known).isdisjoint(bundles):
            raise ValueError(f"bundles {sorted(set(known) & set(bundles))} of group {group} are here already")
        taken = self._take_all(bundles.values())
        if taken is None:
            return False
        if pool is None:
            pool = self._pools[group] = GroupPool(group, self.gpu_ids)
        pool.prepared.update(zip(bundles, taken, strict=True))
        self._bundles.update(taken)
        return True

    def has_room(self, bundles: Iterable[ResourceSet]) -> bool:
        """Whether `prepare` would succeed."""
        taken = self._take_all(bundles)
        for allocation in taken or ():
            super().release(allocation)
        return taken is not None

    @property
    def groups(self) -> list[str]:
        """The groups that have bundles here."""
        return list(self._pools)

    def bundles(self) -> list[tuple[str, list[int], list[int]]]:
        """Of each group that has bundles here: (its name, those that are prepared, those that are committed)."""
        return [(name, list(pool.prepared), list(pool.committed)) for name, pool in self._pools.items()]

    def are_prepared(self, group: str, indexes: Iterable[int]) -> bool:
        """Whether `commit` of these bundles makes sense."""
        pool = self._pools.get(group)
        return pool is not None and pool.prepared.keys() >= set(indexes)

    def commit(self, group: str, indexes: Iterable[int]) -> None:
        """Those that were prepared may be used from here on."""
        for index in indexes:
            self._pools[group].commit(index)

    def unprepare(self, group: str, indexes: Iterable[int]) -> None:
        """Gives back bundles that were prepared and not committed. Others are ignored."""
        pool = self._pools.get(group)
        if pool is None:
            return
        for index in indexes:
            allocation = pool.prepared.pop(index, None)
            if allocation is not None:
                self._free(allocation)
        if not pool.prepared and not pool.committed:
            del self._pools[group]

    def remove_group(self, group: str) -> None:
        """Gives back all that the group has here. Raises RuntimeError while anything runs in it."""
        pool = self._pools.get(group)
        if pool is None:
            return
        if pool.live:
            raise RuntimeError(f"group {group} is still in use by {pool.live}")
        del self._pools[group]
        for allocation in (*pool.prepared.values(), *pool.committed.values()):
            self._free(allocation)

    def _take_all(self, requests: Iterable[ResourceSet]) -> list[Allocation] | None:
        taken: list[Allocation] = []
        for request in requests:
            compiled = self._compile(request)
            parts = None
            if self._vector.fits(compiled):
                parts = self._devices.allocate(request.get("GPU"), mixed=True)
            if parts is None:
                for allocation in taken:
                    super().release(allocation)
                return None
            self._vector.reserve(compiled)
            taken.append(self._note(request, parts))
        return taken

    def _free(self, bundle: Allocation) -> None:
        self._bundles.remove(bundle)
        super().release(bundle)

    # --------------------------------------------------------------------------------------------------- leases

    def feasible(self, request: ResourceSet) -> bool:
        """As of a node; of a group that has no bundle here, False."""
        if request.group is None:
            return super().feasible(request)
        pool = self._pools.get(request.group)
        return pool is not None and pool.feasible(request)

    def allocate(self, request: ResourceSet) -> Allocation | None:
        if request.group is None:
            return super().allocate(request)
        pool = self._pools.get(request.group)
        return None if pool is None else pool.allocate(request)

    def release(self, allocation: Allocation) -> None:
        pool = self._pool_of(allocation)
        super().release(allocation) if pool is None else pool.release(allocation)

    def release_cpus(self, allocation: Allocation) -> None:
        pool = self._pool_of(allocation)
        super().release_cpus(allocation) if pool is None else pool.release_cpus(allocation)

    def reacquire_cpus(self, allocation: Allocation) -> bool:
        pool = self._pool_of(allocation)
        return super().reacquire_cpus(allocation) if pool is None else pool.reacquire_cpus(allocation)

    def _pool_of(self, allocation: Allocation) -> GroupPool | None:
        group = allocation.request.group
        return None if group is None else self._pools.get(group)

    # -------------------------------------------------------------------------------------------------- reports

    @property
    def live(self) -> frozenset[Allocation]:
        """What leases hold, in the node and in groups."""
        return (super().live - self._bundles).union(*(pool.live for pool in self._pools.values()))

    def units(self) -> tuple[dict[str, int], dict[str, int]]:
        """(total, available) of the node itself, without what it has for groups; for a NodeView."""
        return self._vector.total_dict(), self._vector.as_dict()

    def all_units(self) -> tuple[dict[str, int], dict[str, int]]:
        """(total, available) with what it has for groups, under their names."""
        total, available = self.units()
        for pool in self._pools.values():
            total |= pool._vector.total_dict()
            available |= pool._vector.as_dict()
        return total, available

    def reserved_units(self) -> dict[str, int]:
        """What bundles hold of the node, prepared or committed."""
        held: dict[str, int] = {}
        for bundle in self._bundles:
            for name, units in bundle.request.items():
                held[name] = held.get(name, 0) + units
        return held

    def available_dict(self) -> dict[str, float]:
        """What is free, with what is free in groups under their names, as in Ray."""
        free = super().available_dict()
        for pool in self._pools.values():
            free |= pool.available_dict()
        return free

    def total_dict(self) -> dict[str, float]:
        """What there is, with what groups have under their names, as in Ray."""
        total = super().total_dict()
        for pool in self._pools.values():
            total |= pool.total_dict()
        return total

    def check(self) -> None:
        super().check()
        held: set[Allocation] = set()
        for pool in self._pools.values():
            pool.check()
            held |= {*pool.prepared.values(), *pool.committed.values()}
        if held != self._bundles or not held <= self._live:
            raise RuntimeError(f"the bundles {held} are not what is reserved: {self._bundles}")
