"""Which functions the workers know that an owner pushes tasks to: each is sent once, and again where it was forgotten.

Pure. State: of each worker, what it was sent. Invariant: a worker is not told to forget what it was pushed and has not
answered, so it never lacks what it is to run.
"""

from __future__ import annotations

from typing import Final

from skate.core.dispatch import HeldLease
from skate.ids import NodeId, ProcessId

#: functions that a worker knows at most, of one owner
FUNCTIONS_KEPT: Final = 1_000
#: bytes that their pickles have at most
BYTES_KEPT: Final = 64 << 20


class Exports:
    """The functions of one owner."""

    def __init__(self, most: int = FUNCTIONS_KEPT, most_bytes: int = BYTES_KEPT) -> None:
        self._most = most
        self._most_bytes = most_bytes
        #: worker -> ids of the functions that it knows, the one sent longest ago first -> bytes of their pickles
        self.known: dict[ProcessId, dict[bytes, int]] = {}

    def granted(self, worker: ProcessId) -> None:
        """The worker may be pushed to."""
        self.known.setdefault(worker, {})

    def sent(self, lease: HeldLease, function: bytes, size: int) -> list[bytes]:
        """A function goes to the lease's worker; gives those that it is to forget before, some more than it must."""
        known = self.known[lease.worker]
        total = size + sum(known.values())
        forgotten: list[bytes] = []
        if len(known) >= self._most or total > self._most_bytes:
            used = {task.function.id for task in lease.in_flight.values()}
            for each in [each for each in known if each not in used]:
                if len(known) < self._most * 7 // 8 and total <= self._most_bytes * 7 // 8:
                    break
                total -= known.pop(each)
                forgotten.append(each)
        known[function] = size
        return forgotten

    def died(self, gone: ProcessId | NodeId) -> None:
        """A worker is gone, or a node with all of its."""
        for worker in [worker for worker in self.known if worker.startswith(gone)]:
            del self.known[worker]
