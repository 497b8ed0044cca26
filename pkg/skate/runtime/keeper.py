"""What a process asks its node manager about the store: room, and objects that were spilled.

No state. LocalStore calls it when the arena is full or lacks an object; the node manager's answer comes through the
runtime's inbox. Every question is answered, unless the node manager dies: then the runtime's waiters are woken.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from skate._c.clock import monotonic
from skate.ids import ObjectId
from skate.store.spill import read_file
from skate.wire import messages as m

if TYPE_CHECKING:
    from skate.runtime.runtime import Runtime


class NodeKeeper:
    """The node manager, as LocalStore sees it. All methods block, and may not be called under the runtime's lock."""

    def __init__(self, runtime: Runtime, folder: str) -> None:
        self._runtime = runtime
        self._folder = folder

    def make_room(self, nbytes: int, attempt: int) -> tuple[Any, ...]:
        """(MADE,) when there should be room; (FULL, why) or (DISK, why) when none can be made."""
        return tuple(self._runtime.ask(lambda token: m.MakeRoom(token, nbytes, attempt)))

    def bring_back(self, object_id: bytes, attempt: int, deadline: float | None) -> tuple[Any, ...]:
        """(THERE,): look again; (IN_FILE, file, offset, size): there is no room for it; (GONE,); (FAILED, why).

        TimeoutError when the clock passes the deadline; the object comes all the same.
        """
        timeout = None if deadline is None else max(0.0, deadline - monotonic())
        question = partial(m.Restore, object=ObjectId(object_id), attempt=attempt)
        return tuple(self._runtime.ask(question, timeout))

    def read_file(self, file: int, offset: int, size: int) -> memoryview | None:
        """A spilled object, in memory of this process; None where its file is gone."""
        return read_file(self._folder, file, offset, size)

    def forget_copy(self, object_id: bytes) -> None:
        """Drops what an earlier attempt has spilled; returns when that is done."""
        self._runtime.ask(lambda token: m.ForgetSpilled(token, ObjectId(object_id)))
