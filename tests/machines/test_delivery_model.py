"""Frames between two nodes arrive once and in order, over a connection that breaks at any moment."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from skate.core import delivery
from skate.core.delivery import ACK_FRAMES, ACK_SECONDS, WINDOW_BYTES, WINDOW_FRAMES, Incoming, Outgoing

sizes = st.one_of(st.integers(0, 100), st.sampled_from([WINDOW_BYTES // 3, WINDOW_BYTES, 2 * WINDOW_BYTES]))


class Delivery(RuleBasedStateMachine):
    """One direction: frames go over `wire`, acknowledgements come back over `back`; either loses all when it breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.outgoing: Outgoing[int] = Outgoing()
        self.incoming = Incoming()
        self.now = 0.0
        self.up = True
        self.wire: deque[delivery.Sent[int]] = deque()
        self.back: deque[int] = deque()
        self.said = 0
        self.heard: list[int] = []

    @rule(size=sizes)
    def say(self, size: int) -> None:
        self.said += 1
        self.outgoing.put(self.said, size)

    @rule()
    @precondition(lambda self: self.up)
    def send(self) -> None:
        sent = self.outgoing.next()
        if sent is not None:
            self.wire.append(sent)

    @rule()
    @precondition(lambda self: self.up)
    def send_in_vain(self) -> None:
        """The socket takes nothing now."""
        if self.outgoing.next() is not None:
            self.outgoing.unsend()

    @rule()
    @precondition(lambda self: self.wire)
    def arrive(self) -> None:
        sent = self.wire.popleft()
        if self.incoming.take(sent.number, sent.size, self.now):
            self.heard.append(sent.what)

    @rule(seconds=st.floats(0, 0.1))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def acknowledge(self) -> None:
        due = self.incoming.due(self.now)
        if due is not None and due <= self.now:
            self.back.append(self.incoming.acknowledge())

    @rule()
    @precondition(lambda self: self.back)
    def acknowledged(self) -> None:
        assert self.outgoing.on_acknowledged(self.back.popleft())

    @rule()
    def lose_acknowledgements(self) -> None:
        """The other way's connection breaks and comes back: the state is said again."""
        self.back.clear()
        self.back.append(self.incoming.acknowledge())

    @rule(arrived=st.integers(0, 5))
    def lose_connection(self, arrived: int) -> None:
        """Some of what is under way may still arrive; nothing of it is known here."""
        for _ in range(min(arrived, len(self.wire))):
            self.arrive()
        self.wire.clear()
        self.up = False

    @rule()
    @precondition(lambda self: not self.up)
    def connect(self) -> None:
        self.up = True
        self.outgoing.on_connected()

    @invariant()
    def once_and_in_order(self) -> None:
        assert self.heard == list(range(1, len(self.heard) + 1))

    @invariant()
    def counts(self) -> None:
        self.outgoing.check()
        assert self.outgoing.acknowledged <= self.incoming.number == len(self.heard)

    def teardown(self) -> None:
        """Once nothing breaks any more, all arrives and is acknowledged."""
        self.wire.clear()
        self.outgoing.on_connected()
        self.back.append(self.incoming.acknowledge())
        for _ in range(10_000):
            if not len(self.outgoing):
                break
            self.up = True
            self.send()
            while self.wire:
                self.arrive()
            self.now += ACK_SECONDS
            self.acknowledge()
            while self.back:
                self.acknowledged()
        assert self.heard == list(range(1, self.said + 1))
        assert len(self.outgoing) == 0


TestDelivery = Delivery.TestCase


def test_no_more_than_the_window_is_under_way() -> None:
    outgoing: Outgoing[None] = Outgoing()
    for _ in range(WINDOW_FRAMES + 1):
        outgoing.put(None, 1)
    sent = [outgoing.next() for _ in range(WINDOW_FRAMES + 1)]
    assert sent[-1] is None
    assert sent[-2] is not None
    assert outgoing.on_acknowledged(1)
    assert outgoing.next() is not None


def test_a_frame_larger_than_the_window_goes_alone() -> None:
    outgoing: Outgoing[str] = Outgoing()
    for what in ("small", "large", "after"):
        outgoing.put(what, 2 * WINDOW_BYTES if what == "large" else 1)
    assert outgoing.next().what == "small"  # type: ignore[union-attr]
    assert outgoing.next() is None
    outgoing.on_acknowledged(1)
    assert outgoing.next().what == "large"  # type: ignore[union-attr]
    assert outgoing.next() is None


@pytest.mark.parametrize("number", [1, 2, 2**63])
def test_what_was_never_sent_cannot_be_acknowledged(number: int) -> None:
    outgoing: Outgoing[None] = Outgoing()
    outgoing.put(None, 1)
    assert not outgoing.on_acknowledged(number)
    outgoing.check()
    assert outgoing.next() is not None


def test_many_frames_are_acknowledged_at_once_and_few_after_a_while() -> None:
    incoming = Incoming()
    assert incoming.due(0.0) is None
    for number in range(1, ACK_FRAMES):
        assert incoming.take(number, 1, 0.0)
    assert incoming.due(0.0) == ACK_SECONDS
    assert incoming.take(ACK_FRAMES, 1, 0.0)
    assert incoming.due(0.0) == 0.0
    assert incoming.acknowledge() == ACK_FRAMES
    assert incoming.due(0.0) is None
    assert not incoming.take(3, 1, 0.0)  # the sender has not heard
    assert incoming.due(0.0) == 0.0
