"""The store of this machine as one process uses it: values in, values out, by object id.

State: the arena that all processes of the machine map. create, seal, get, release and delete happen in the caller's own
process; no message is sent for them. Only where the arena is full, or an object is not in it, the node manager is asked
(`keeper`), and the calling thread waits.
"""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any, Protocol

from skate._c.arena import Arena, ArenaFull, ObjectExists, Pinned
from skate._c.plain import Serialized, pack_into, packed_size, unpack
from skate.core.spilling import DISK, FAILED, FULL, GONE, IN_FILE, MADE, THERE
from skate.exceptions import ObjectLostError, ObjectStoreFullError, OutOfDiskError
from skate.ids import ProcessId, owner_of
from skate.store.report import LARGEST, users_of
from skate.store.segment import open_segment

if TYPE_CHECKING:
    from skate._c.arena import ObjectRow, Writable


class NotHere(KeyError):
    """The object is not in the arena: spilled, or gone."""


class Keeper(Protocol):
    """Who spills and brings back; answers are those of core.spilling. All block."""

    def make_room(self, nbytes: int, attempt: int) -> tuple[Any, ...]: ...

    def bring_back(self, object_id: bytes, attempt: int, deadline: float | None) -> tuple[Any, ...]: ...

    def read_file(self, file: int, offset: int, size: int) -> memoryview | None: ...

    def forget_copy(self, object_id: bytes) -> None: ...


class LocalStore:
    """Puts objects into the arena and reads them. Every method may be called from any thread."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        #: None in the node manager, which never waits for itself
        self.keeper: Keeper | None = None

    @classmethod
    def attach(cls, path: str) -> LocalStore:
        """Opens the arena behind `path`. OSError where it is gone, ArenaError where it is none."""
        segment = open_segment(path)
        try:
            return cls(Arena.attach(segment.fd))
        finally:
            segment.close()

    def put(self, object_id: bytes, value: Serialized, *, again: bool = False) -> int:
        """Copies a value in, once; gives its size in bytes. Blocks while room is made, a few seconds if all is in use.

        `again`: an earlier attempt of a task may have put the object; its copy is replaced, wherever it is. Raises
        ObjectStoreFullError and OutOfDiskError where no room can be made. Not under the runtime's lock.
        """
        size = packed_size(value)
        place = self._allocate(object_id, size)
        if again and self.keeper is not None:
            self.keeper.forget_copy(object_id)  # not after the seal: then the copy could be the new one
        pack_into(value, place)
        place.seal()
        return size

    def _allocate(self, object_id: bytes, size: int) -> Writable:
        attempt = 0
        while True:
            try:
                return self._arena.allocate(object_id, size, owner_of(object_id))
            except ObjectExists:  # an earlier attempt of the task put it, and died before it could say so
                self._arena.delete(object_id)
            except ArenaFull as full:
                if size > full.capacity:
                    raise self._full_error(size, "The object is larger than the whole store.") from None
                if self.keeper is None:
                    raise self._full_error(size, "The object store is full.") from None
                word, *why = self.keeper.make_room(size, attempt)
                if word != MADE:
                    raise self._no_room(word, why[0], size) from None
                attempt += 1

    def get(self, object_id: bytes, deadline: float | None = None) -> Any:
        """The value, its arrays read-only views of the store that keep their block; brought back if it was spilled.

        TimeoutError when that takes until the clock passes the deadline.

        KeyError where no copy is left, ObjectLostError where it cannot be read. Not under the runtime's lock, nor by
        the thread that reads the inbox.
        """
        block: Pinned | memoryview | None = self._arena.get(object_id)
        attempt = 0
        while block is None:
            if self.keeper is None:
                raise NotHere(object_id)
            word, *more = self.keeper.bring_back(object_id, attempt, deadline)
            if word == GONE:
                raise KeyError(object_id)
            if word == FAILED:
                raise ObjectLostError(object_id, why=more[0])
            if word in (FULL, DISK):  # the node has no room for what it would bring from another
                raise self._no_room(word, *more)
            if word == IN_FILE:
                block = self.keeper.read_file(*more)
                if block is None:
                    attempt = -1  # so that the node looks where it is by now, or finds that its file is gone
            if word == THERE or block is None:
                block = self._arena.get(object_id)
            attempt += 1
        return unpack(block)

    def get_here(self, object_id: bytes) -> Any:
        """As `get`, but raises NotHere where the object is not in the arena. Does not block."""
        pinned = self._arena.get(object_id)
        if pinned is None:
            raise NotHere(object_id)
        return unpack(pinned)

    def pinned(self, object_id: bytes) -> Pinned | None:
        """The object's bytes, if it is in the arena. Does not block."""
        return self._arena.get(object_id)

    def contains(self, object_id: bytes) -> bool:
        """Whether the object is in the arena, sealed."""
        return self._arena.contains(object_id)

    def delete(self, object_id: bytes) -> bool:
        """Frees the object's block, now or with the last view of it. False where a copy may be on disk."""
        return self._arena.delete(object_id)

    def evict(self, object_id: bytes) -> bool:
        """Takes an object that has a copy on disk out of the arena, if nobody has it pinned. Whether it is out now."""
        pinned = self._arena.get(object_id)
        return pinned is not None and bool(pinned.evict())

    def usage(self) -> dict[str, int]:
        """Counts and sizes in bytes; see Arena.stats."""
        return self._arena.stats()

    def objects(self) -> list[ObjectRow]:
        """What the arena holds, oldest first; see Arena.objects."""
        return self._arena.objects()

    def victims(self, nbytes: int) -> list[tuple[bytes, int]]:
        """What may be spilled, oldest first; see Arena.victims."""
        return self._arena.victims(nbytes)

    def _no_room(self, word: str, why: str, size: int) -> Exception:
        if word == DISK:
            return OutOfDiskError(f"The object store is full, and spilling failed: {why}.")
        return self._full_error(size, f"The object store is full: {why}.")

    def _full_error(self, size: int, message: str) -> ObjectStoreFullError:
        rows = sorted(self._arena.objects(), key=lambda row: -row["size"])[:LARGEST]
        return ObjectStoreFullError(
            message,
            needed_bytes=size,
            capacity_bytes=self._arena.stats()["capacity"],
            largest=[
                (row["id"], row["size"], f"owned by process {row['owner'].hex()}, {users_of(row)}")
                for row in rows
            ],
        )

    def bury(self, pid: int, living: Container[ProcessId]) -> None:
        """Takes back what a dead process left: pins, half-made objects, and the objects of owners that are gone."""
        self._arena.reap(pid)
        self.drop_orphans(living)

    def drop_orphans(self, living: Container[ProcessId]) -> None:
        """Drops the objects of owners that are gone."""
        for row in self._arena.objects():
            if row["owner"] not in living and not row["doomed"]:
                self._arena.delete(row["id"])

    def close(self) -> None:
        """Leaves the arena; values that are still read keep their memory."""
        self._arena.close()
