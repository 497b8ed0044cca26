"""What one node sends to another arrives once and in order, though the connection between them may break.

TCP loses what was on its way when a connection ends. So frames are numbered, kept until the other node has acknowledged
them, and sent again when the connection is back. Pure; an `Outgoing` and an `Incoming` for each other node.

    Outgoing   numbers frames, lets so many go, keeps them until they are acknowledged
    Incoming   takes each number once, in order; knows what is to be acknowledged

Invariants: numbers are given without gaps, from 1; what is kept is what was sent and not acknowledged; no more than
WINDOW_FRAMES and WINDOW_BYTES are under way (one frame may be larger).
"""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, NamedTuple, TypeVar

#: frames under way to one node, and their bytes; what is more waits
WINDOW_FRAMES: Final = 2048
WINDOW_BYTES: Final = 64 << 20
#: frames, and bytes, after which an acknowledgement does not wait any longer
ACK_FRAMES: Final = 64
ACK_BYTES: Final = 4 << 20
#: seconds that one waits for something to travel with, or for more to acknowledge
ACK_SECONDS: Final = 0.05

T = TypeVar("T")


class Sent(NamedTuple, Generic[T]):
    """A numbered frame."""

    number: int
    size: int
    what: T


class Outgoing(Generic[T]):
    """What goes to one node."""

    def __init__(self) -> None:
        #: the number given last
        self.number = 0
        #: all up to this number have arrived
        self.acknowledged = 0
        #: the highest number that ever left
        self._sent = 0
        self._under_way: deque[Sent[T]] = deque()
        self._waiting: deque[Sent[T]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        """Frames that are not acknowledged."""
        return len(self._under_way) + len(self._waiting)

    def put(self, what: T, size: int) -> None:
        """One more frame, of so many bytes."""
        self.number += 1
        self._waiting.append(Sent(self.number, size, what))

    def next(self) -> Sent[T] | None:
        """The frame to send now, if there is one. It counts as sent from here on."""
        if not self._waiting:
            return None
        size = self._waiting[0].size
        if self._under_way and (len(self._under_way) >= WINDOW_FRAMES or self._bytes + size > WINDOW_BYTES):
            return None
        sent = self._waiting.popleft()
        self._under_way.append(sent)
        self._bytes += size
        self._sent = max(self._sent, sent.number)
        return sent

    def unsend(self) -> None:
        """What `next` gave last could not be sent."""
        sent = self._under_way.pop()
        self._bytes -= sent.size
        self._waiting.appendleft(sent)

    def on_acknowledged(self, number: int) -> bool:
        """All up to `number` have arrived; False, changing nothing, where so much was never sent."""
        if number > self._sent:
            return False
        while self._waiting and self._waiting[0].number <= number:  # it was to be sent again, and had arrived
            self._waiting.popleft()
        while self._under_way and self._under_way[0].number <= number:
            self._bytes -= self._under_way.popleft().size
        self.acknowledged = max(self.acknowledged, number)
        return True

    def on_connected(self) -> None:
        """The connection is new: all that is not acknowledged goes again."""
        self._waiting.extendleft(reversed(self._under_way))
        self._under_way.clear()
        self._bytes = 0

    def unacknowledged(self) -> list[T]:
        """What may not have arrived, in order."""
        return [sent.what for sent in (*self._under_way, *self._waiting)]

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        numbers = [sent.number for sent in (*self._under_way, *self._waiting)]
        if numbers != list(range(self.acknowledged + 1, self.number + 1)):
            raise AssertionError(f"{numbers} are kept, of {self.acknowledged} to {self.number}")
        if self._bytes != sum(sent.size for sent in self._under_way):
            raise AssertionError(f"{self._bytes} bytes are counted under way")
        if len(self._under_way) > 1 and (len(self._under_way) > WINDOW_FRAMES or self._bytes > WINDOW_BYTES):
            raise AssertionError(f"{len(self._under_way)} frames of {self._bytes} bytes are under way")


class Incoming:
    """What comes from one node."""

    def __init__(self) -> None:
        #: the number that came last
        self.number = 0
        self._since = 0  # frames that are not acknowledged yet
        self._bytes = 0
        self._again = False
        self._due: float | None = None

    def take(self, number: int, size: int, now: float) -> bool:
        """Whether the frame is the next one; what came before, or comes too early, is not for the receiver."""
        if self._due is None:
            self._due = now + ACK_SECONDS
        if number != self.number + 1:
            self._again = True  # the sender does not know how far we are
            return False
        self.number = number
        self._since += 1
        self._bytes += size
        return True

    def acknowledge(self) -> int:
        """The number to send along with whatever leaves for that node."""
        self._since = self._bytes = 0
        self._again = False
        self._due = None
        return self.number

    def due(self, now: float) -> float | None:
        """When to acknowledge although nothing else leaves: now or before, later, or (None) there is nothing to."""
        if self._since >= ACK_FRAMES or self._bytes >= ACK_BYTES or self._again:
            return now
        return self._due
