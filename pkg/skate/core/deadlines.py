"""When each of many things is due, the earliest first: what a look costs does not grow with those that are not due.

Pure. State: the times, and a heap of them in which those that do not count any more stay until they are met.

Invariant (`check`): each time is in the heap, which is not much longer than there are times.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

#: entries of the heap that do not count any more, at most, beside as many as there are others
SPARE: Final = 64

K = TypeVar("K", bound=bytes)


class Deadlines(Generic[K]):
    """key -> seconds on the caller's clock."""

    def __init__(self) -> None:
        self._at: dict[K, float] = {}
        self._heap: list[tuple[float, K]] = []

    def get(self, key: K) -> float | None:
        """When it is due; None: never."""
        return self._at.get(key)

    def set(self, key: K, at: float | None) -> None:
        """It is due at that time, and no other; None: never."""
        if at is None:
            self._at.pop(key, None)
        elif self._at.get(key) != at:
            self._at[key] = at
            heappush(self._heap, (at, key))
            if len(self._heap) > 2 * len(self._at) + SPARE:
                self._heap = [(at, key) for key, at in self._at.items()]
                heapify(self._heap)

    def next(self) -> float | None:
        """When the first is due; None where none is."""
        heap = self._heap
        while heap and self._at.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None

    def take(self, now: float) -> list[K]:
        """Those that are due, the earliest first. They are due no more."""
        due = []
        while (at := self.next()) is not None and at <= now:
            key = heappop(self._heap)[1]
            del self._at[key]
            due.append(key)
        return due

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        if not {(at, key) for key, at in self._at.items()} <= set(self._heap):
            raise AssertionError(f"{self._at} is due, and {self._heap} is looked at")
        if len(self._heap) > 2 * len(self._at) + SPARE + 1:
            raise AssertionError(f"{len(self._heap)} entries are kept for {len(self._at)}")
