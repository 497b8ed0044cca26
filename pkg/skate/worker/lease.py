"""What a worker may use while it serves an owner, and how the libraries in it hear of that.

State: the environment variables CUDA_VISIBLE_DEVICES and OMP_NUM_THREADS, and the number of BLAS threads of a numpy
that the zygote had loaded already. What the user has set before is left alone.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from typing import Any

from skate._c.resources import UNITS_PER_ONE, from_units
from skate.ids import ProcessId

#: the variable was set by the user, in the driver's environment: skate does not touch it
USER_OMP = "SKATE_USER_OMP_NUM_THREADS"
_SETTERS = ("openblas_set_num_threads", "MKL_Set_Num_Threads", "bli_thread_set_num_threads")


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
        """Makes the process keep to the lease, as far as environment and BLAS can."""
        visible = ",".join(self.device_ids)
        if os.environ.get("CUDA_VISIBLE_DEVICES") != visible:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
        if USER_OMP in os.environ:
            return
        threads = max(1, self.resources.get("CPU", 0) // UNITS_PER_ONE)
        if os.environ.get("OMP_NUM_THREADS") != str(threads):
            os.environ["OMP_NUM_THREADS"] = str(threads)
            set_blas_threads(threads)


def set_blas_threads(threads: int) -> None:
    """Tells the BLAS libraries that are loaded already; those loaded later read OMP_NUM_THREADS."""
    for setter in blas_setters():
        setter(threads)


@functools.cache
def blas_setters() -> tuple[Callable[[int], Any], ...]:
    """The functions that set the number of threads, of each BLAS in this process. numpy's own is loaded before.

    Looked for once: the zygote does, and its children need not.
    """
    with open("/proc/self/maps") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line}
    found = []
    for path in paths:
        name = os.path.basename(path).lower()
        if not any(word in name for word in ("openblas", "mkl_rt", "blis")):
            continue
        library = ctypes.CDLL(path)
        for setter in _SETTERS:
            for symbol in (setter, f"scipy_{setter}", f"scipy_{setter}64_", f"{setter}64_"):
                if hasattr(library, symbol):
                    found.append(getattr(library, symbol))
                    break
    return tuple(found)
