"""The two halves of a stream: the values of a generator that runs in one process and is read in another, its owner.

Pure. A worker has an `Outgoing` for each generator that runs in it, an owner a `Stream` for each that it called:

    worker  on_yielded ── StreamItem(number) ─▶ accepts, on_value   owner
            on_read   ◀── StreamRead(read, received) ── on_taken, abandon, or asked

Rules:

* Values are numbered from 0. Each has an object of its own at the owner, index 1, 2, … of the task.
* An attempt that is not the first begins with a question (StreamBegins): only the owner knows which values have come.
  Those are not sent again, nor put into a store: readers may be at them, wherever they are.
* A generator with a limit stops while it is so many values ahead of its reader.
* Once nobody reads any more, the generator stops, and what still comes goes at once.

Invariants (`check`): what came and was not taken is here, in order, or the stream is abandoned; a ref is given out
ahead of its value only where no value is here.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

STREAM: Final = -1
#: what `StreamRead.read` says where nobody reads any more
ABANDONED: Final = -1


def stream_returns(limit: int | None) -> int:
    """What `returns` of PushTask says for a generator that may be `limit` values ahead (None: any number)."""
    return STREAM if limit is None or limit < 0 else STREAM - limit


class Stream:
    """The owner's half: the values of one generator that have come and were not taken."""

    __slots__ = ("abandoned", "ended", "expected", "gathers", "limit", "read", "received", "refs", "task")

    def __init__(self, task: bytes, *, returns: int, gathers: bool) -> None:
        #: the task's id (not the task, which leads here: a cycle)
        self.task = task
        #: how many values the generator may be ahead; 0: any number
        self.limit = STREAM - returns
        #: refs of values that have come and were not taken
        self.refs: deque[Any] = deque()
        #: values that have come, and that the program has taken
        self.received = 0
        self.read = 0
        self.ended = False
        #: nobody will take any more
        self.abandoned = False
        #: num_returns="dynamic": the refs become the value of the task's own ref when it ends
        self.gathers = gathers
        #: the ref of the next value, where somebody waits for that
        self.expected: Any = None

    @property
    def returns(self) -> int:
        """Of its PushTask."""
        return STREAM - self.limit

    def accepts(self, number: Any) -> bool:
        """Whether the value of that number is the next one."""
        return number == self.received and not self.ended

    def on_value(self, ref: Any) -> None:
        """The next value has come, or the error that ends the stream: its ref (`expected`, if there is one)."""
        self.received += 1
        self.expected = None
        if not self.abandoned:
            self.refs.append(ref)

    def on_taken(self) -> Any:
        """The program takes the next ref, which is there."""
        self.read += 1
        return self.refs.popleft()

    def abandon(self) -> None:
        """Nobody reads any more."""
        self.abandoned = True
        self.refs.clear()

    @property
    def progress(self) -> tuple[int, int]:
        """`read` and `received` of StreamRead."""
        return ABANDONED if self.abandoned else self.read, self.received

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        if len(self.refs) != (0 if self.abandoned else self.received - self.read):
            raise AssertionError(
                f"{self.received} values came, {self.read} were taken, and {len(self.refs)} are here"
            )
        if self.expected is not None and (self.refs or self.ended):
            raise AssertionError(f"somebody waits for {self.expected}, which is there or will never be")


class Outgoing:
    """The worker's half: one generator that runs here."""

    __slots__ = ("abandoned", "known", "limit", "read", "skipped", "yielded")

    def __init__(self, returns: int, *, first: bool) -> None:
        """`first`: it is the task's first attempt. Else it waits for `on_read` before it begins."""
        self.limit = STREAM - returns
        #: values that it has yielded, and that its reader has taken
        self.yielded = 0
        self.read = 0
        #: how many values the owner has from earlier attempts, once that is known
        self.skipped = 0
        self.known = first
        #: nobody reads any more
        self.abandoned = False

    @property
    def waits(self) -> bool:
        """It must wait for its owner to say something."""
        return not self.known or (0 < self.limit <= self.yielded - self.read and not self.abandoned)

    def on_read(self, read: int, received: int) -> None:
        """The owner says how far it is."""
        if not self.known:
            self.known = True
            self.skipped = received
        if read == ABANDONED:
            self.abandoned = True
        else:
            self.read = read

    def on_yielded(self) -> int | None:
        """The generator has yielded: the number of that value, None where its owner has it."""
        number = self.yielded
        self.yielded += 1
        return None if number < self.skipped else number
