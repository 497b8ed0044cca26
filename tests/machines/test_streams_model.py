"""A generator in one process, its reader in another: each value is read once, in order, whatever dies in between.

The model runs both halves (`Stream`, `Outgoing`) over links that deliver late, with attempts that die or raise and are
tried again, a reader that stops, and what workers had put into a store before they died.
"""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from skate.core.streams import ABANDONED, STREAM, Outgoing, Stream, stream_returns

LENGTH = 6


class OneStream(RuleBasedStateMachine):
    """Messages: ("item", number), ("begins",), ("end",) to the owner; (read, received) to the worker."""

    @initialize(limit=st.integers(0, 3))
    def call(self, limit: int) -> None:
        self.limit = limit
        self.stream = Stream(b"task", returns=STREAM - limit, gathers=False)
        self.read: list[int] = []
        #: values of which a copy was made, and how many times
        self.made: dict[int, int] = {}
        self.attempts = 0
        self.begin()

    def begin(self) -> None:
        self.outgoing = Outgoing(self.stream.returns, first=self.attempts == 0)
        self.attempts += 1
        self.over = False
        self.to_owner: deque[tuple] = deque()
        self.to_worker: deque[tuple[int, int]] = deque()
        if not self.outgoing.known:
            self.to_owner.append(("begins",))

    # The worker.

    @rule()
    @precondition(lambda self: not self.over and not self.outgoing.waits)
    def the_generator_goes_on(self) -> None:
        if self.outgoing.abandoned or self.outgoing.yielded == LENGTH:
            self.over = True
            self.to_owner.append(("end",))
            return
        number = self.outgoing.on_yielded()
        if number is not None:
            self.made[number] = self.made.get(number, 0) + 1
            self.to_owner.append(("item", number))

    @rule()
    @precondition(lambda self: self.to_worker)
    def the_worker_hears(self) -> None:
        self.outgoing.on_read(*self.to_worker.popleft())

    @rule(heard=st.integers(0, 3))
    @precondition(lambda self: not self.stream.ended and self.attempts < 4)
    def it_dies_or_raises_and_is_tried_again(self, heard: int) -> None:
        """Of what it had sent the owner hears the first part."""
        for _ in range(min(heard, len(self.to_owner))):
            if self.to_owner[0] == ("end",):
                break
            self.the_owner_hears()
        for number in range(self.stream.received, LENGTH):
            self.made.pop(number, None)  # the owner drops what it has not heard of
        self.begin()

    # The owner.

    @rule()
    @precondition(lambda self: self.to_owner)
    def the_owner_hears(self) -> None:
        kind, *number = self.to_owner.popleft()
        if kind == "begins":
            self.to_worker.append(self.stream.progress)
        elif kind == "end":
            self.stream.ended, self.stream.expected = True, None
        else:
            assert self.stream.accepts(*number)
            self.stream.on_value(*number)
            if self.stream.abandoned:
                self.to_worker.append(self.stream.progress)

    @rule()
    @precondition(lambda self: self.stream.refs)
    def the_program_reads(self) -> None:
        self.read.append(self.stream.on_taken())
        if self.limit:
            self.to_worker.append(self.stream.progress)

    @rule()
    @precondition(lambda self: not self.stream.refs and not self.stream.ended)
    def the_program_waits(self) -> None:
        self.stream.expected = self.stream.received

    @rule()
    @precondition(lambda self: not self.stream.abandoned)
    def the_program_stops(self) -> None:
        self.stream.abandon()
        self.to_worker.append(self.stream.progress)

    @rule()
    def nothing_happens(self) -> None:
        """There is always a rule that can run."""

    # What always holds.

    @invariant()
    def consistent(self) -> None:
        if not hasattr(self, "stream"):
            return
        self.stream.check()
        assert self.read == list(range(len(self.read)))
        assert all(copies == 1 for copies in self.made.values()), "a value that had come was made again"
        if self.limit and not self.stream.abandoned:
            assert self.outgoing.yielded <= max(self.outgoing.skipped, len(self.read) + self.limit)

    def teardown(self) -> None:
        """Whatever has happened, it ends: nobody waits for ever, and a reader has had everything."""
        if not hasattr(self, "stream"):
            return
        while not self.stream.ended:
            before = (
                self.outgoing.yielded,
                len(self.to_owner),
                len(self.to_worker),
                len(self.stream.refs),
                self.over,
            )
            for step, ready in (
                (self.the_worker_hears, self.to_worker),
                (self.the_generator_goes_on, not self.over and not self.outgoing.waits),
                (self.the_owner_hears, self.to_owner),
                (self.the_program_reads, self.stream.refs),
            ):
                if ready:
                    step()
            self.consistent()
            after = (
                self.outgoing.yielded,
                len(self.to_owner),
                len(self.to_worker),
                len(self.stream.refs),
                self.over,
            )
            assert self.stream.ended or before != after or self.to_worker or self.to_owner, "it hangs"
        while self.stream.refs:
            self.the_program_reads()
        assert self.stream.abandoned or self.read == list(range(LENGTH))


TestStream = OneStream.TestCase


def test_what_pushtask_says() -> None:
    assert stream_returns(None) == stream_returns(-1) == STREAM
    assert Stream(b"", returns=stream_returns(3), gathers=False).limit == 3
    assert Outgoing(stream_returns(3), first=True).limit == 3


def test_check_notices_what_is_wrong() -> None:
    stream = Stream(b"", returns=STREAM, gathers=False)
    stream.on_value("first")
    stream.refs.clear()
    with pytest.raises(AssertionError, match="1 values came"):
        stream.check()
    stream.refs.append("first")
    stream.expected = "second"
    with pytest.raises(AssertionError, match="somebody waits"):
        stream.check()


def test_one_that_is_dropped_before_it_begins_again() -> None:
    outgoing = Outgoing(STREAM, first=False)
    assert outgoing.waits
    outgoing.on_read(ABANDONED, 3)
    assert not outgoing.waits
    assert outgoing.abandoned
