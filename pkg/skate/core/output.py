"""What a driver shows of what its tasks print: how much of it has been sent, which pipes wait, and in which characters.

What a task prints is shown as text. Colours stay, and end with their line; all else that a terminal would obey (the
cursor, the screen, titles) is escaped: so nothing that is printed changes the name that stands before it, or other
lines. A carriage return begins another line.

Pure. State, a job: the characters sent and not shown, the pipes that wait, whether the driver shows anything at all.
Events: sent, hold_up, shown, closed, tick.

A driver that is slow to show output (a terminal, a pager) slows down the tasks that print more than WINDOW ahead of it,
and nobody else. One that shows nothing for STUCK_SECONDS (a pipe that nobody reads, a program that is stopped) holds up
nobody: tasks go on, and what they print is dropped and counted, until it shows something again.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

#: characters that a driver may be sent and not have shown
WINDOW: Final = 16 << 20
#: seconds that a driver which others wait for may show nothing
STUCK_SECONDS: Final = 2.0

#: the longest name that is shown before a line, in characters
NAME_CHARACTERS: Final = 200
#: what ends all colours
RESET: Final = "\x1b[0m"
_CONTROL: Final = r"[\x00-\x08\x0a-\x1f\x7f-\x9f]"
_COLOUR: Final = r"\x1b\[[0-9;:]*m"
_NAME_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROLS: Final = re.compile(_CONTROL)
_COLOURS_OR_CONTROLS: Final = re.compile(f"({_COLOUR})|{_CONTROL}")

Pipe = TypeVar("Pipe", bound=Hashable)


class OutputWindow(Generic[Pipe]):
    """What a node has sent one driver."""

    def __init__(self) -> None:
        self._outstanding = 0
        self._waiting: dict[Pipe, None] = {}
        #: until when the driver has to show something; None: nobody waits for it
        self.deadline: float | None = None
        #: it has not: nobody waits until it does
        self._stuck = False
        self._lost = 0

    def sent(self, text: str) -> bool:
        """Lines for the driver. Whether they are to be sent; else they are counted as lost."""
        if self._stuck and self._outstanding + len(text) > WINDOW:
            self._lost += text.count("\n") + 1
            return False
        self._outstanding += len(text)
        return True

    def hold_up(self, pipe: Pipe, now: float) -> bool:
        """Whether the pipe is not to be read until it is given back by `shown`, `tick` or `give_up`."""
        if self._outstanding <= WINDOW or self._stuck:
            return False
        self._waiting[pipe] = None
        if self.deadline is None:
            self.deadline = now + STUCK_SECONDS
        return True

    def shown(self, characters: int, now: float) -> list[Pipe]:
        """The driver has shown so much. Gives the pipes that are read again."""
        self._outstanding = max(0, self._outstanding - max(0, characters))
        self._stuck = False
        if self._outstanding <= WINDOW:
            return self.give_up()
        if self._waiting:
            self.deadline = now + STUCK_SECONDS
        return []

    def tick(self, now: float) -> list[Pipe]:
        """Where the driver has shown nothing for too long, the pipes that are read again."""
        if self.deadline is None or self.deadline > now:
            return []
        self._stuck = True
        return self.give_up()

    def closed(self, pipe: Pipe) -> None:
        """There is no such pipe any more."""
        self._waiting.pop(pipe, None)
        if not self._waiting:
            self.deadline = None

    def give_up(self) -> list[Pipe]:
        """Gives the pipes that waited: nobody waits any more."""
        waiting, self._waiting, self.deadline = list(self._waiting), {}, None
        return waiting

    def take_lost(self) -> int:
        """How many lines were dropped since this was asked last; 0 while they still are."""
        if self._stuck:
            return 0
        lost, self._lost = self._lost, 0
        return lost

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        if (self.deadline is None) != (not self._waiting):
            raise AssertionError(f"{len(self._waiting)} pipes wait until {self.deadline}")
        if self._waiting and (self._stuck or self._outstanding <= WINDOW):
            raise AssertionError("pipes wait for nothing")


def shown_lines(text: str) -> list[str]:
    """What was printed, as the lines that are shown."""
    lines: list[str] = []
    for line in text.split("\n"):
        parts = [part for part in line.split("\r") if part] if "\r" in line else [line]
        lines += map(without_controls, parts or [""])
    return lines


def without_controls(line: str) -> str:
    """A line, its control characters escaped but for tabs and colours, which end with it."""
    if _CONTROLS.search(line) is None:
        return line
    shown = _COLOURS_OR_CONTROLS.sub(lambda found: found[1] or _escaped(found[0]), line)
    last = shown.rfind("\x1b")
    return shown if last < 0 or shown.startswith((RESET, "\x1b[m"), last) else shown + RESET


def name_to_show(name: str) -> str:
    """A name for the beginning of a line: one line, without control characters, and not too long."""
    shown = _NAME_CONTROLS.sub(lambda found: _escaped(found[0]), name)
    return shown if len(shown) <= NAME_CHARACTERS else shown[: NAME_CHARACTERS - 1] + "…"


def _escaped(character: str) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character) or f"\\x{ord(character):02x}"
