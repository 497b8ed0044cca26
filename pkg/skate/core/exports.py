"""Which functions the workers know that an owner pushes tasks to: each is sent once, and again where it was forgotten.

Pure. State: of each worker, what it was sent. Invariant: a worker is not told to forget what it was pushed and has not
answered, so it never lacks what it is to run.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from skate.core.dispatch import HeldLease
from skate.ids import NodeId, ProcessId

#: functions that a worker knows at most, of one owner
FUNCTIONS_KEPT: Final = 1_000


class Exports:
    """The functions of one owner."""

    def __init__(self, most: int = FUNCTIONS_KEPT) -> None:
        self._most = most
        #: worker -> ids of the functions that it knows, the one sent longest ago first
        self.known: dict[ProcessId, dict[bytes, None]] = {}

    def granted(self, worker: ProcessId) -> None:
        """The worker may be pushed to."""
        self.known.setdefault(worker, {})

    def sent(self, lease: HeldLease, function: bytes) -> list[bytes]:
        """A function goes to the lease's worker; gives those that it is to forget before, a few at a time."""
        known = self.known[lease.worker]
        forgotten: list[bytes] = []
        if len(known) >= self._most:
            used = {task.function.id for task in lease.in_flight.values()}
            forgotten = [each for each in islice(known, 1 + self._most // 8) if each not in used]
            for each in forgotten:
                del known[each]
        known[function] = None
        return forgotten

    def died(self, gone: ProcessId | NodeId) -> None:
        """A worker is gone, or a node with all of its."""
        for worker in [worker for worker in self.known if worker.startswith(gone)]:
            del self.known[worker]
