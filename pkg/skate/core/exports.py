"""Which functions the workers know that an owner pushes tasks to: each is sent once, and again where it was forgotten.

Pure. State: of each worker, what it was sent. A program that makes functions in a loop and drops them has workers
forget them, too, after a while. Invariant: a worker is not told to forget what it was pushed and has not answered,
so it never lacks what it is to run.
"""

from __future__ import annotations

import weakref
from typing import Final, NamedTuple

from skate.core.dispatch import HeldLease
from skate.core.tasks import Function
from skate.ids import NodeId, ProcessId

#: functions that a worker knows at most, of one owner
FUNCTIONS_KEPT: Final = 1_000
#: bytes that their pickles have at most
BYTES_KEPT: Final = 64 << 20
#: bytes of pickles in all from which on those are forgotten that the owner has dropped itself
DROPPED_BYTES_KEPT: Final = 4 << 20


class Sent(NamedTuple):
    """A function that a worker knows."""

    #: bytes of its pickle
    size: int
    #: gives None once the owner has dropped it
    function: weakref.ref[Function]


class Exports:
    """The functions of one owner."""

    def __init__(
        self,
        most: int = FUNCTIONS_KEPT,
        most_bytes: int = BYTES_KEPT,
        most_dropped_bytes: int = DROPPED_BYTES_KEPT,
    ) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._most_dropped_bytes = most_dropped_bytes
        #: worker -> ids of the functions that it knows, the one sent longest ago first
        self.known: dict[ProcessId, dict[bytes, Sent]] = {}

    def granted(self, worker: ProcessId) -> None:
        """The worker may be pushed to."""
        self.known.setdefault(worker, {})

    def sent(self, lease: HeldLease, function: Function) -> list[bytes]:
        """A function goes to the lease's worker; gives those that it is to forget before, some more than it must."""
        assert function.pickled is not None
        known = self.known[lease.worker]
        total = len(function.pickled) + sum([each.size for each in known.values()])
        forgotten: list[bytes] = []
        if total > min(self._most_bytes, self._most_dropped_bytes) or len(known) >= self._most:
            used = {task.function.id for task in lease.in_flight.values()}
            unused = [each for each in known if each not in used]
            # what was dropped goes first; of each kind, what was sent first
            for each in sorted(unused, key=lambda each: known[each].function() is not None):
                enough = len(known) < self._most * 7 // 8 and total <= self._most_bytes * 7 // 8
                if enough and known[each].function() is not None:
                    break
                total -= known.pop(each).size
                forgotten.append(each)
        known[function.id] = Sent(len(function.pickled), weakref.ref(function))
        return forgotten

    def died(self, gone: ProcessId | NodeId) -> None:
        """A worker is gone, or a node with all of its."""
        for worker in [worker for worker in self.known if worker.startswith(gone)]:
            del self.known[worker]
