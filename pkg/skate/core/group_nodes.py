"""A node as the directory of placement groups knows it: what it has, what groups hold of it, what it was asked for.

Owns nothing: the records are core.groups', which alone changes them.
"""

from __future__ import annotations

from collections.abc import Mapping

from skate.core.node_table import NodeView
from skate.core.resources import ResourceSet


class GroupNode:
    """A node, and what groups hold of it."""

    __slots__ = ("_asked_units", "asked", "reserved", "view")

    def __init__(self, view: NodeView) -> None:
        self.view = view
        #: (group, attempt) -> bundles that it was asked to prepare, and has not answered
        self.asked: dict[tuple[bytes, int], list[ResourceSet]] = {}
        #: their sum
        self._asked_units: dict[str, int] = {}
        #: units that bundles hold, committed or being prepared
        self.reserved: dict[str, int] = {}

    def reserve(self, demand: ResourceSet, sign: int) -> None:
        """Counts a bundle in (1) or out (-1); what is available is guessed until the node tells."""
        for name, units in demand.items():
            held = self.reserved.get(name, 0) + sign * units
            if held:
                self.reserved[name] = held
            else:
                del self.reserved[name]
            available = self.view.available.get(name, 0) - sign * units
            self.view.set_free(name, max(0, min(self.view.total.get(name, 0), available)))

    def keeps(self, demand: ResourceSet) -> None:
        """Counts in a bundle that the node has already; what it says that it has free is without that."""
        for name, units in demand.items():
            self.reserved[name] = self.reserved.get(name, 0) + units

    def asks(self, group: bytes, attempt: int, demands: list[ResourceSet]) -> None:
        """The node is asked to prepare these bundles."""
        self.asked[group, attempt] = demands
        for demand in demands:
            self.reserve(demand, 1)
            for name, units in demand.items():
                self._asked_units[name] = self._asked_units.get(name, 0) + units

    def answered(self, group: bytes, attempt: int) -> bool:
        """It has answered that; False where it was not asked."""
        demands = self.asked.pop((group, attempt), None)
        for demand in demands or ():
            for name, units in demand.items():
                self._asked_units[name] -= units
        return demands is not None

    def check(self) -> None:
        """Raises AssertionError if what it was asked for is not counted right."""
        units: dict[str, int] = {}
        for demands in self.asked.values():
            for demand in demands:
                for name, amount in demand.items():
                    units[name] = units.get(name, 0) + amount
        if units != {name: amount for name, amount in self._asked_units.items() if amount}:
            raise AssertionError(f"{self.view} is asked for {units}, counted as {self._asked_units}")

    def told(self, available: Mapping[str, int]) -> bool:
        """The node has said what it has free; whether that is more of something than was known."""
        before, now = self.view.available, dict(available)
        for name, units in self._asked_units.items():
            now[name] = max(0, now.get(name, 0) - units)
        self.view.set_all_free(now)
        return any(units > before.get(name, 0) for name, units in now.items())
