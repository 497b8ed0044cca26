"""core.output: whatever a driver shows, memory is bounded, nobody waits for ever, all lines are counted."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from skate.core.output import STUCK_SECONDS, WINDOW, OutputWindow

#: characters that one pipe gives in a turn, far more than in real life
MOST = WINDOW // 3


class OutputModel(RuleBasedStateMachine):
    """Some pipes that print, a driver that shows or does not, a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.window: OutputWindow[int] = OutputWindow()
        self.now = 0.0
        self.readable = set(range(4))
        self.printed = self.sent = self.lost = self.on_its_way = 0
        #: when something was last shown while pipes waited, or the first began to wait
        self.waits_since: float | None = None

    @rule(pipe=st.integers(0, 3), characters=st.integers(1, MOST))
    def prints(self, pipe: int, characters: int) -> None:
        if pipe not in self.readable:
            return
        self.printed += 1
        if self.window.sent("x" * characters):
            self.sent += 1
            self.on_its_way += characters
        if self.window.hold_up(pipe, self.now):
            self.readable.remove(pipe)
            if self.waits_since is None:
                self.waits_since = self.now

    @rule(share=st.floats(0, 1))
    def shows(self, share: float) -> None:
        characters = int(self.on_its_way * share)
        self.on_its_way -= characters
        self.given_back(self.window.shown(characters, self.now))
        if self.waits_since is not None:
            self.waits_since = self.now
        self.lost += self.window.take_lost()

    @rule(seconds=st.floats(0, 2 * STUCK_SECONDS))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.given_back(self.window.tick(self.now))
        assert self.waits_since is None or self.now - self.waits_since < STUCK_SECONDS, (
            "somebody waits for ever"
        )

    @rule(characters=st.sampled_from([-(2**62), -1, 2**62]))
    def lies(self, characters: int) -> None:
        """A driver says that it has shown what it was never sent: that is its own loss."""
        self.given_back(self.window.shown(characters, self.now))
        if characters > 0:
            self.on_its_way = 0
        if self.waits_since is not None:
            self.waits_since = self.now

    def given_back(self, pipes: list[int]) -> None:
        assert not self.readable & set(pipes)
        self.readable |= set(pipes)
        if len(self.readable) == 4:
            self.waits_since = None

    @invariant()
    def holds(self) -> None:
        self.window.check()
        assert self.on_its_way <= WINDOW + 4 * MOST
        assert self.printed == self.sent + self.lost + self.window._lost


TestOutput = OutputModel.TestCase
