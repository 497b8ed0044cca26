"""The store of this machine as one process uses it: values in, values out, by object id.

State: the arena that all processes of the machine map. create,
seal, get, release and delete happen in the caller's own process; no message is sent for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skate._c.arena import Arena, ArenaFull, ObjectExists
from skate._c.plain import Serialized, pack_into, packed_size, unpack
from skate.exceptions import ObjectStoreFullError
from skate.ids import ProcessId, owner_of
from skate.store.segment import open_segment

if TYPE_CHECKING:
    from skate._c.arena import ObjectRow


class LocalStore:
    """Puts objects into the arena and reads them. Every method may be called from any thread."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    @classmethod
    def attach(cls, path: str) -> LocalStore:
        """Opens the arena behind `path`. OSError where it is gone, ArenaError where it is none."""
        segment = open_segment(path)
        try:
            return cls(Arena.attach(segment.fd))
        finally:
            segment.close()

    def put(self, object_id: bytes, value: Serialized) -> int:
        """Copies a value in, once; gives its size in bytes. Raises ObjectStoreFullError where it does not fit."""
        size = packed_size(value)
        try:
            try:
                place = self._arena.allocate(object_id, size, owner_of(object_id))
            except ObjectExists:  # an earlier attempt of the task put it, and died before it could say so
                self._arena.delete(object_id)
                place = self._arena.allocate(object_id, size, owner_of(object_id))
        except ArenaFull:
            raise self._full_error(size) from None
        pack_into(value, place)
        place.seal()
        return size

    def get(self, object_id: bytes) -> Any:
        """The value, its arrays read-only views of the store that keep their block; KeyError where it is not here."""
        pinned = self._arena.get(object_id)
        if pinned is None:
            raise KeyError(object_id)
        return unpack(pinned)

    def delete(self, object_id: bytes) -> None:
        """Frees the object's block, now or with the last view of it."""
        self._arena.delete(object_id)

    def usage(self) -> dict[str, int]:
        """Counts and sizes in bytes; see Arena.stats."""
        return self._arena.stats()

    def objects(self) -> list[ObjectRow]:
        """What the store holds, oldest first; see Arena.objects."""
        return self._arena.objects()

    def _full_error(self, size: int) -> ObjectStoreFullError:
        rows = sorted(self._arena.objects(), key=lambda row: -row["size"])[:5]
        return ObjectStoreFullError(
            needed_bytes=size,
            capacity_bytes=self._arena.stats()["capacity"],
            largest=[(row["id"], row["size"], f"owned by process {row['owner'].hex()}") for row in rows],
        )

    def bury(self, process: ProcessId, pid: int) -> None:
        """Takes back what a dead process left: its pins, its half-made objects, and the objects that it owned."""
        self._arena.reap(pid)
        for row in self._arena.objects():
            if row["owner"] == process:
                self._arena.delete(row["id"])

    def close(self) -> None:
        """Leaves the arena; values that are still read keep their memory."""
        self._arena.close()
