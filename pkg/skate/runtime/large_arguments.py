"""Large arguments that are given by value to many calls: stored once, while the calls are in flight.

State: which object holds the bytes of which value, by the value's address. That is a hint only: an array may have been
changed since the last call, or another value may live at its address by now. What decides is a comparison with the
stored bytes, which costs half of a copy and no memory. An object is not kept alive for it: once no call needs it, it is
freed, and the next call puts it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skate._c import plain
from skate._c.refs import STORED, ObjectRef

if TYPE_CHECKING:
    from skate.runtime.objects import Objects
    from skate.runtime.runtime import Runtime

#: values remembered; more than one loop passes round
REMEMBERED = 64


class LargeArguments:
    """The stored arguments of late calls."""

    def __init__(self, runtime: Runtime, objects: Objects) -> None:
        self._runtime = runtime
        self._objects = objects
        #: id(value) -> id of the object that held its bytes, oldest first
        self._holders: dict[int, bytes] = {}

    def ref_for(self, value: Any, packed: plain.Serialized) -> ObjectRef:
        """A ref to an object with exactly these bytes: one that an earlier call still needs, or a new one.

        `packed` is the value, serialized. Raises ObjectStoreFullError, OutOfDiskError. Not under the lock.
        """
        ref = self._holder(id(value))
        if ref is not None:
            stored = self._runtime.store.pinned(ref.entry.id)  # None: it was spilled
            if stored is not None and plain.same_bytes(packed, stored):
                return ref
        ref = self._objects.put_packed(value, packed)
        self._holders.pop(id(value), None)
        self._holders[id(value)] = ref.entry.id
        if len(self._holders) > REMEMBERED:
            self._holders.pop(next(iter(self._holders)), None)
        return ref

    def _holder(self, address: int) -> ObjectRef | None:
        """The object that held what was at this address, if anybody needs it still; the ref keeps it from now on."""
        object_id = self._holders.get(address)
        if object_id is None:
            return None
        ref = ObjectRef(object_id)  # in one step: finds the object and keeps it; one that was freed is FAILED
        return ref if ref.entry.state == STORED else None
