"""How tests and their tasks meet without sleeping: files in a test's own folder.

All of these travel to tasks as arguments. They import the standard library only, since workers load them.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], T], timeout_s: float = 20) -> T:
    """Wait until `condition()` is true, and return what it gave."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {condition}")
        time.sleep(0.005)
    return value


@dataclass(frozen=True)
class Gate:
    """Holds up a task until the test opens it, or the other way round."""

    path: Path

    def open(self) -> None:
        self.path.touch()

    @property
    def is_open(self) -> bool:
        return self.path.exists()

    def wait(self) -> None:
        eventually(self.path.exists)


@dataclass(frozen=True)
class Tally:
    """Counts across processes: how often was a task run?"""

    path: Path

    def add(self) -> int:
        """Count one, and return how many that makes."""
        with self.path.open("ab", buffering=0) as file:
            file.write(b".")
            return os.fstat(file.fileno()).st_size

    @property
    def count(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def meet(self, parties: int) -> None:
        """Return when so many are here: only tasks that run at the same time ever get past."""
        self.add()
        eventually(lambda: self.count >= parties)


def most_at_once(spans: list[tuple[float, float]]) -> int:
    """The largest number of (start, end) spans that overlap at one moment."""
    return max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)


def lives(pid: int) -> bool:
    """Whether the process runs: neither gone nor a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def gone(pid: int) -> bool:
    return not lives(pid)
