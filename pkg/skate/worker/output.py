"""What tasks print: marked with the task's name on its way into the worker's pipes, sorted out again by the node.

State: the name of the running task, and the name that was last announced in each stream. A mark announces the task that
prints from there on; it is written before the first output of a task, so tasks that print nothing cost nothing. An
actor's name stays, and is announced at once: so it stands before what is written past these streams, too.
"""

from __future__ import annotations

import io
import sys
from typing import Any, TextIO

from skate.core.output import name_to_show


def mark_of(secret: str) -> str:
    """What begins a mark; the name follows, to the end of the line.

    `secret` is known to the worker and its node alone: nothing that happens to be printed is taken for a mark.
    """
    return f"\x1eskate-task:{secret}:"


class TaskOutput:
    """The two text streams of a worker. `name` is set by the executor before each task."""

    def __init__(self, secret: str) -> None:
        self.name = ""
        #: something was printed since the last flush
        self.dirty = False
        self.mark = mark_of(secret)
        self._streams = (_Marked(self, sys.stdout), _Marked(self, sys.stderr))
        sys.stdout, sys.stderr = self._streams

    def stay(self, name: str) -> None:
        """All that is printed from here on, in whatever way, has this name."""
        self.name = name
        for stream in self._streams:
            stream.announce()
        self.flush()

    def flush(self) -> None:
        """Everything that was printed leaves."""
        self.dirty = False
        for stream in self._streams:
            stream.flush()


class _Marked(io.TextIOBase):
    """A text stream that announces the running task before its first output."""

    def __init__(self, output: TaskOutput, stream: TextIO) -> None:
        self._output = output
        self._stream = stream
        self._announced = ""

    def announce(self) -> None:
        """What is written next has the name of the task that runs."""
        output = self._output
        if output.name != self._announced:
            self._announced = output.name
            self._stream.write(f"{output.mark}{name_to_show(output.name)}\n")

    def write(self, text: str) -> int:
        if not text:
            return 0
        output = self._output
        if output.name != self._announced:
            self.announce()
        output.dirty = True
        self._stream.write(text)
        if text.endswith("\n"):
            self._stream.flush()  # a line is seen while the task still runs
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """Whoever asks may write to it: what is to come before that leaves."""
        self._leave_to_others()
        return self._stream.fileno()

    def isatty(self) -> bool:
        return False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    @property
    def buffer(self) -> Any:
        self._leave_to_others()
        return self._stream.buffer

    def __getattr__(self, name: str) -> Any:
        """`reconfigure` and whatever else a text stream has."""
        return getattr(self._stream, name)

    def _leave_to_others(self) -> None:
        self.announce()
        self._output.dirty = True
        self._stream.flush()
