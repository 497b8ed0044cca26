"""A task, or a call of an actor's method, as its owner sees it, and what becomes of it when an attempt fails.

Owns nothing: OwnedTask is the record that the runtime, the dispatcher and the references share. Its life:

    WAITING (for arguments) -> QUEUED -> PUSHED -> DONE
                                 ^---------'  attempt lost or to be retried, or given back unbegun
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from skate._c.refs import ObjectEntry, Waiter
from skate.ids import TaskId

if TYPE_CHECKING:
    from skate.core.calls import ActorLine, Life
    from skate.core.dispatch import HeldLease, Queue
    from skate.options import TaskOptions

WAITING: Final = 0
QUEUED: Final = 1
PUSHED: Final = 2
DONE: Final = 3
STATE_NAMES: Final = ("WAITING", "QUEUED", "PUSHED", "DONE")


class Function:
    """A function as its owner knows it: how it travels, and how long it takes."""

    __slots__ = ("__weakref__", "calls", "id", "name", "pickled", "refs", "seconds")

    #: weight of the newest measurement in the running mean
    WEIGHT = 0.2

    def __init__(
        self, function_id: bytes, name: str, pickled: bytes | None, refs: Sequence[Any] = ()
    ) -> None:
        self.id = function_id
        self.name = name
        #: None for a method, which its actor knows
        self.pickled = pickled
        #: refs that its closure captured: they live as long as the function is known
        self.refs = refs
        #: running mean of one call's run time; None before the first result
        self.seconds: float | None = None
        self.calls = 0

    def measured(self, seconds: float) -> None:
        old = self.seconds
        self.seconds = seconds if old is None else old + self.WEIGHT * (seconds - old)


class OwnedTask:
    """One task of this process. `state` says where it is; a DONE task is in no table."""

    __slots__ = (
        "args",
        "attempt",
        "blamed",
        "dependencies",
        "expected",
        "function",
        "id",
        "lease",
        "name",
        "nested",
        "options",
        "queue",
        "retries_left",
        "returns",
        "state",
        "stream",
        "waiter",
    )

    def __init__(
        self,
        task_id: TaskId,
        function: Function,
        queue: Queue | ActorLine,
        options: TaskOptions,
        args: bytes,
        dependencies: list[ObjectEntry] | None,
        nested: Sequence[ObjectEntry],
        returns: list[ObjectEntry],
    ) -> None:
        self.id = task_id
        self.function = function
        self.queue = queue
        self.options = options
        #: packed (args, kwargs); what stands for a top-level ref is filled in from `dependencies`
        self.args = args
        self.dependencies = dependencies
        #: what waits for the dependencies; None where they were there
        self.waiter: Waiter | None = None
        #: refs inside the arguments, pinned until the task is done
        self.nested = nested
        self.returns = returns
        #: where it was pushed to; None unless PUSHED
        self.lease: HeldLease | Life | None = None
        self.state = WAITING
        self.attempt = 0
        self.retries_left: int = options.max_retries
        #: seconds the dispatcher counted for it when it was pushed
        self.expected = 0.0
        #: it was in flight when a worker died: it travels alone, so that the next death has one culprit
        self.blamed = False
        self.name: str = options.name or ""
        #: of a generator: what becomes of its values (runtime.streams)
        self.stream: Any = None

    def may_retry(self) -> bool:
        """Uses up one retry, where there is one left (-1: without end)."""
        if self.retries_left == 0:
            return False
        if self.retries_left > 0:
            self.retries_left -= 1
        self.attempt += 1
        return True

    @property
    def display_name(self) -> str:
        return self.name or self.function.name

    def __repr__(self) -> str:
        return f"<OwnedTask {self.id.hex()} {self.display_name} {STATE_NAMES[self.state]} attempt={self.attempt}>"
