"""What a worker may use while it serves an owner, and how the libraries in it hear of that.

State: the environment variable CUDA_VISIBLE_DEVICES. How many threads libraries have is in worker.threads.
"""

from __future__ import annotations

import os
from typing import Any

from skate._c.resources import UNITS_PER_ONE, from_units
from skate.ids import ProcessId
from skate.runtime import current
from skate.worker import threads


class Lease:
    """A lease as its worker knows it."""

    __slots__ = ("captured", "depth", "devices", "group", "id", "owner", "resources")

    def __init__(self, lease_id: int, owner: ProcessId, depth: int, allocation: dict[str, Any]) -> None:
        self.id = lease_id
        self.owner = owner
        self.depth = depth
        #: resource name -> units
        self.resources: dict[str, int] = allocation["resources"]
        #: (GPU id, units)
        self.devices: list[Any] = allocation["devices"]
        #: the placement group in which it is, in hexadecimal; `captured` where its tasks are to run there, too
        self.group: str | None = None
        self.captured: str | None = None
        if "group" in allocation:
            self.group, captures = allocation["group"]
            self.captured = self.group if captures else None

    @property
    def device_ids(self) -> list[str]:
        return [device for device, _ in self.devices]

    def assigned(self) -> dict[str, float]:
        """Resource name -> amount, as the user wrote it."""
        return {name: from_units(units) for name, units in self.resources.items()}

    def apply(self) -> None:
        """Makes the process keep to the lease, as far as environment and libraries can."""
        visible = ",".join(self.device_ids)
        assert current.facts is not None
        if not visible:  # the user may say what it sees all the same
            visible = dict(current.facts.variables).get("CUDA_VISIBLE_DEVICES", "")
        if os.environ.get("CUDA_VISIBLE_DEVICES") != visible:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
        threads.limit(max(1, self.resources.get("CPU", 0) // UNITS_PER_ONE))
