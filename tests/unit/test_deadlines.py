"""Deadlines against a dictionary."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from skate.core.deadlines import SPARE, Deadlines

KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])


class Model(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.deadlines: Deadlines[bytes] = Deadlines()
        self.model: dict[bytes, float] = {}

    @rule(key=KEYS, at=st.one_of(st.none(), st.integers(0, 9)))
    def set(self, key: bytes, at: float | None) -> None:
        self.deadlines.set(key, at)
        self.model.pop(key, None)
        if at is not None:
            self.model[key] = at

    @rule(now=st.integers(0, 9))
    def take(self, now: float) -> None:
        due = sorted((at, key) for key, at in self.model.items() if at <= now)
        assert self.deadlines.take(now) == [key for _, key in due]
        for _, key in due:
            del self.model[key]

    @rule()
    def next(self) -> None:
        assert self.deadlines.next() == min(self.model.values(), default=None)

    @invariant()
    def agrees(self) -> None:
        self.deadlines.check()
        assert all(self.deadlines.get(key) == self.model.get(key) for key in (b"a", b"b", b"c", b"d"))


TestDeadlines = Model.TestCase


def test_what_is_put_off_again_and_again_is_forgotten() -> None:
    deadlines: Deadlines[bytes] = Deadlines()
    deadlines.set(b"first", 0.5)
    for number in range(10 * SPARE):
        deadlines.set(b"other", 1.0 + number)
        deadlines.check()
    assert deadlines.take(10 * SPARE) == [b"first", b"other"]
    assert deadlines.next() is None
