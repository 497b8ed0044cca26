"""What tasks print: marked with the task's name on its way into the worker's pipes, sorted out again by the node.

State: the name of the running task, and the name that was last announced in each stream. A line that begins with MARK
announces the task that prints from there on; it is written before the first output of a task, so tasks that print
nothing cost nothing.
"""

from __future__ import annotations

import io
import sys
from typing import Any, TextIO

#: begins the line that names a task
MARK = "\x1eskate-task:"


class TaskOutput:
    """The two text streams of a worker. `name` is set by the executor before each task."""

    def __init__(self) -> None:
        self.name = ""
        #: something was printed since the last flush
        self.dirty = False
        self._streams = (_Marked(self, sys.stdout), _Marked(self, sys.stderr))
        sys.stdout, sys.stderr = self._streams

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
        self._at_line_start = True

    def write(self, text: str) -> int:
        if not text:
            return 0
        name = self._output.name
        if name != self._announced and self._at_line_start:
            self._announced = name
            self._stream.write(f"{MARK}{name}\n")
        self._stream.write(text)
        self._at_line_start = text.endswith("\n")
        self._output.dirty = True
        if self._at_line_start:
            self._stream.flush()  # a line is seen while the task still runs
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
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
        self._stream.flush()
        return self._stream.buffer
