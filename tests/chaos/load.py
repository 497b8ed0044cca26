"""What every load has: its own random numbers, its counts, and the rule of what a call may give.

A step that meets a failure raises Failure; the load is over then, and its run has failed.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Final

import skate
from skate.exceptions import (
    ActorError,
    ActorPlacementGroupRemoved,
    ActorUnschedulableError,
    GetTimeoutError,
    NodeDiedError,
    ObjectFreedError,
    ObjectLostError,
    ReferenceCountingAssertionError,
    TaskError,
    TaskPlacementGroupRemoved,
    WorkerCrashedError,
)

#: seconds that a call may take, with everything that is killed and stopped meanwhile
GET_SECONDS: Final = 90.0
#: what may come of a call or object where processes and nodes are killed
LOSSES: Final = (WorkerCrashedError, ObjectLostError, ActorError, NodeDiedError)
#: and of what is in a placement group that is removed
REMOVALS: Final = (TaskPlacementGroupRemoved, ActorPlacementGroupRemoved, ActorUnschedulableError)
#: ends the waiting of a task or actor whose workers were killed before they were ready, three in a row
NEVER_READY: Final = ("no task yet", "No process for it could be started")
#: but never these: somebody still held the object
UNFOUNDED: Final = (ReferenceCountingAssertionError, ObjectFreedError)


class Failure(Exception):
    """Something that no kill explains."""


class Load:
    """Steps of one kind, until it is told to end. `run` is for a thread of its own."""

    name: ClassVar[str]

    def __init__(self, seed: int, store_bytes: int) -> None:
        self.random = Random(f"{seed} {self.name}")
        self.store_bytes = store_bytes
        self.ending = threading.Event()
        self.calls = 0
        self.errors: Counter[str] = Counter()
        self.failure = ""
        #: when the step that runs now began; None: the load has ended
        self.step_began: float | None = time.monotonic()

    def step(self) -> None:
        """Makes some calls, and checks what they give."""
        raise NotImplementedError

    def finish(self) -> None:
        """Drops whatever is held."""

    def run(self) -> None:
        try:
            while not self.ending.is_set():
                self.step_began = time.monotonic()
                try:
                    self.step()
                except Exception as error:
                    self.lost(error)
        except Exception:
            self.failure = shown()
        finally:
            self.finish()
            self.step_began = None

    # ------------------------------------------------------------------------------------------------ expectations

    def expect(self, ref: Any, expected: Any, losses: tuple[type[BaseException], ...] = LOSSES) -> bool:
        """The value must be `expected` (or fulfil it, if that is a function). False where it was lost with a kill."""
        self.calls += 1
        try:
            value = skate.get(ref, timeout=GET_SECONDS)
        except Exception as error:
            self.lost(error, losses, ref)
            return False
        self.check(value, expected)
        return True

    def check(self, value: Any, expected: Any) -> None:
        right = expected(value) if callable(expected) else value == expected
        if not right:
            raise Failure(f"wrong value: {value!r:.300}, and {expected!r:.300} was expected")

    def fails(self, ref: Any, expected: Callable[[Exception], bool]) -> None:
        """The call must raise what fulfils `expected`, or have been lost."""
        self.calls += 1
        try:
            value = skate.get(ref, timeout=GET_SECONDS)
        except Exception as error:
            if not expected(error):
                self.lost(error, LOSSES, ref)
        else:
            raise Failure(f"{value!r:.300} came, where an exception was expected")

    def lost(
        self, error: Exception, losses: tuple[type[BaseException], ...] = LOSSES + REMOVALS, ref: Any = None
    ) -> None:
        """Counts an error that a kill explains. Raises Failure for any other."""
        root = root_of(error)
        if isinstance(error, GetTimeoutError):
            raise Failure(f"hangs: {where_it_hangs(ref)}") from error
        never_ready = isinstance(root, LOSSES) and any(words in str(root) for words in NEVER_READY)
        if never_ready or (isinstance(root, losses) and not isinstance(root, UNFOUNDED)):
            self.errors[type(root).__name__] += 1
        else:
            raise error if isinstance(error, Failure) else Failure(f"not explained: {root!r}") from error


def shown() -> str:
    """The exception that is handled now, with the lines of the loads that led to it."""
    error = sys.exc_info()[1]
    assert error is not None
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "chaos" in frame.filename]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return f"{error} ({where})" if isinstance(error, Failure) else f"{traceback.format_exc()} ({where})"


def root_of(error: BaseException) -> BaseException:
    """What a chain of failed tasks began with."""
    while isinstance(error, TaskError) and error.cause is not None:
        error = error.cause
    return error


def where_it_hangs(ref: Any) -> str:
    """How this process sees the object that did not come, and the task that makes it."""
    from skate.runtime import current

    from chaos.examined import describe

    runtime = current.runtime
    if runtime is None or not hasattr(ref, "entry"):
        return repr(ref)
    task = runtime.submission.tasks.get(ref.entry.id[:16])
    lines = [describe(ref.entry)]
    if task is not None:
        lines += [describe(task), describe(task.queue), describe(task.lease)]
    return "\n    ".join(lines)
