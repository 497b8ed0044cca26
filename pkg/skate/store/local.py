"""The store of this machine as one process uses it: values in, values out, by object id.

State: the arena that all processes of the machine map, and the process that objects are put in the name of. create,
seal, get, release and delete happen in the caller's own process; no message is sent for them.
"""

from __future__ import annotations

import os
from typing import Any

from skate._c.arena import Arena, ArenaFull
from skate._c.plain import Serialized, pack_into, packed_size, unpack
from skate.exceptions import ObjectStoreFullError
from skate.ids import ProcessId


class LocalStore:
    """Puts objects into the arena and reads them. Every method may be called from any thread."""

    def __init__(self, arena: Arena, me: ProcessId) -> None:
        self._arena = arena
        self._me = me

    @classmethod
    def attach(cls, path: str, me: ProcessId) -> LocalStore:
        """Opens the arena behind `path`. OSError where it is gone, ArenaError where it is none."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls(Arena.attach(fd), me)
        finally:
            os.close(fd)

    def put(self, object_id: bytes, value: Serialized) -> int:
        """Copies a value in, once; gives its size in bytes. Raises ObjectStoreFullError where it does not fit."""
        size = packed_size(value)
        try:
            place = self._arena.allocate(object_id, size, self._me)
        except ArenaFull as full:
            raise self._full_error(size, full) from None
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

    def usage(self) -> dict[str, Any]:
        """Counts and sizes in bytes; see Arena.stats."""
        return self._arena.stats()

    def objects(self) -> list[dict[str, Any]]:
        """What the store holds, oldest first; see Arena.objects."""
        return self._arena.objects()

    def _full_error(self, size: int, full: ArenaFull) -> ObjectStoreFullError:
        holders = sorted(((entry["size"], entry["id"].hex()) for entry in self._arena.objects()), reverse=True)[:5]
        return ObjectStoreFullError(size, self._arena.stats()["capacity"], holders)

    def close(self) -> None:
        """Leaves the arena; values that are still read keep their memory."""
        self._arena.close()
