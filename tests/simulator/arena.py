"""The store of a node in plain memory: what skate._c.arena offers, as far as the product uses it here. Never full."""

from __future__ import annotations

from typing import Any

from skate._c.arena import NotMaking, ObjectExists

CAPACITY = 1 << 40


class Place(bytearray):
    """Room for an object that is being made."""

    arena: MemoryArena
    object_id: bytes

    def seal(self) -> None:
        self.arena.seal(self.object_id, self)

    def abort(self) -> None:
        self.arena.abort(self.object_id, self)


class MemoryArena:
    """Object id -> bytes. All processes of a node share one."""

    def __init__(self) -> None:
        self.sealed: dict[bytes, memoryview] = {}
        self._making: dict[bytes, Place] = {}
        self._owners: dict[bytes, bytes] = {}

    def allocate(self, object_id: bytes, size: int, owner: bytes = b"") -> Place:
        if object_id in self._owners:
            raise ObjectExists(object_id)
        place = self._making[object_id] = Place(size)
        place.arena, place.object_id = self, object_id
        self._owners[object_id] = owner
        return place

    def seal(self, object_id: bytes, place: Place) -> None:
        if self._making.get(object_id) is not place:
            raise NotMaking(object_id)
        del self._making[object_id]
        self.sealed[object_id] = memoryview(bytes(place))

    def abort(self, object_id: bytes, place: Place) -> None:
        if self._making.get(object_id) is not place:
            raise NotMaking(object_id)
        self._remove(object_id)

    def _remove(self, object_id: bytes) -> None:
        self._making.pop(object_id, None)
        self.sealed.pop(object_id, None)
        del self._owners[object_id]

    def get(self, object_id: bytes) -> memoryview | None:
        return self.sealed.get(object_id)

    def contains(self, object_id: bytes) -> bool:
        return object_id in self.sealed

    def delete(self, object_id: bytes) -> bool:
        if object_id not in self._owners:
            return False
        self._remove(object_id)
        return True

    def reap(self, pid: int) -> int:
        return 0  # a simulated process is never killed between allocate and seal

    def objects(self) -> list[dict[str, Any]]:
        return [
            {"id": object_id, "owner": owner, "doomed": False, "size": 0}
            for object_id, owner in self._owners.items()
        ]

    def victims(self, nbytes: int) -> list[tuple[bytes, int]]:
        return []

    def stats(self) -> dict[str, int]:
        used = sum(view.nbytes for view in self.sealed.values())
        return {"used": used, "capacity": CAPACITY, "largest_free": CAPACITY - used}

    def close(self) -> None: ...
