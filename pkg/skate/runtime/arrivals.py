"""Waiting for objects to be here: `wait(fetch_local=True)` in a cluster, where what is ready may lie on another node.

State: the objects that this process has asked its node for, and which waits are for each. The node manager brings what
is on other nodes or on disk, and answers once that is over; an object is asked for once, however often it is waited
for, and comes although nobody waits any more.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from skate._c import refs
from skate._c.refs import PENDING, STORED, ObjectEntry, ObjectRef, Waiter
from skate._c.steps import section
from skate.ids import ObjectId
from skate.wire import messages as m

if TYPE_CHECKING:
    from skate.runtime.runtime import Runtime


class _Wait:
    """One call of `wait`."""

    __slots__ = ("here", "waiter")

    def __init__(self, number: int) -> None:
        self.waiter = Waiter()
        self.waiter.missing = number
        #: ids of those that are here, or have failed
        self.here: set[bytes] = set()


class Arrivals:
    """The objects that are on their way to this node for this process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._coming: dict[bytes, list[_Wait]] = {}

    def wait(
        self, wanted: list[ObjectRef], num_returns: int, timeout: float | None
    ) -> tuple[list[ObjectRef], list[ObjectRef]]:
        """As Objects.wait; what is in a store counts once it is in this node's, or shows that it cannot be had."""
        runtime = self._runtime
        wait = _Wait(num_returns)
        watched: list[tuple[ObjectEntry, Waiter]] = []
        with section:
            try:
                with runtime.lock:
                    self._watch(wanted, wait, watched)
                if not wait.waiter.done:
                    runtime.objects.block(wait.waiter, timeout)
            finally:
                self._end(wait, watched)
        ready = [ref for ref in wanted if ref.entry.id in wait.here][:num_returns]
        chosen = {ref.entry.id for ref in ready}
        return ready, [ref for ref in wanted if ref.entry.id not in chosen]

    def _watch(self, wanted: list[ObjectRef], wait: _Wait, watched: list[tuple[ObjectEntry, Waiter]]) -> None:
        for ref in wanted:
            if ref.entry.state != PENDING:
                self._note(wait, ref.entry)
        if wait.waiter.done:
            return
        runtime = self._runtime
        if runtime.broken is not None:
            raise runtime.why_broken()
        for entry in [ref.entry for ref in wanted if ref.entry.state == PENDING]:
            waiter = Waiter(partial(self._settled, wait, entry))
            watched.append((entry, waiter))
            refs.watch_entries([entry], waiter)
        runtime.objects.ask_owners([entry for entry, _ in watched])

    def _settled(self, wait: _Wait, entry: ObjectEntry, _: Waiter) -> None:
        self._note(wait, entry)

    def _note(self, wait: _Wait, entry: ObjectEntry) -> None:
        """An object is ready: it counts if it is here, else it is asked for. Under the lock."""
        if entry.state != STORED or self._runtime.store.contains(entry.id):
            self._count(wait, entry.id)
            return
        waits = self._coming.get(entry.id)
        if waits is not None:
            waits.append(wait)
            return
        self._coming[entry.id] = [wait]
        object_id = ObjectId(entry.id)
        self._runtime.ask_later(lambda token: m.Restore(token, object_id, 0), partial(self._came, entry.id))

    def _came(self, object_id: bytes, _: Any) -> None:
        for wait in self._coming.pop(object_id):
            self._count(wait, object_id)

    def _count(self, wait: _Wait, object_id: bytes) -> None:
        wait.here.add(object_id)
        waiter = wait.waiter
        waiter.missing -= 1
        if waiter.missing <= 0 and not waiter.done:
            self._runtime.finish(waiter)

    def _end(self, wait: _Wait, watched: list[tuple[ObjectEntry, Waiter]]) -> None:
        runtime = self._runtime
        with runtime.lock:
            for entry, waiter in watched:
                if not waiter.done:
                    refs.unwatch([entry], waiter)
            for waits in self._coming.values():
                if wait in waits:
                    waits.remove(wait)
