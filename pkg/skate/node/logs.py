"""What the workers of a node print: read from their pipes, cut into lines, marked with the task that printed them.

State, a worker: the two pipes, an unfinished line of each, the name of the task that prints, the last lines of stderr.
And which of all pipes have an unfinished line.

No worker's output holds up the node: a pipe is read once a turn, and a line without an end is cut. One that stays
unfinished is shown as it is; what follows is another line.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from skate._c.clock import monotonic
from skate.core.output import without_controls

#: bytes read at a time
READ_BYTES: Final = 1 << 16
#: bytes of a line, after which it is cut
LINE_BYTES: Final = 1 << 20
#: what stands at the end of a line that was cut, and at the beginning of its next piece
CUT: Final = "[…]"
#: bytes that a pipe may hold when its worker is gone (what Linux lets anybody but root have)
PIPE_BYTES: Final = 1 << 20
#: lines of stderr kept for the error that a death raises, and characters of each
TAIL_LINES: Final = 20
TAIL_CHARACTERS: Final = 2000
#: seconds after which an unfinished line is shown
UNFINISHED_SECONDS: Final = 0.5

#: (source, task name, text of whole lines)
Emit = Callable[[str, str, str], None]


class LineReader:
    """One pipe of one worker."""

    def __init__(self, fd: int, source: str, mark: str, emit: Emit) -> None:
        """`mark` begins the name of a task, to the end of the line."""
        os.set_blocking(fd, False)
        self.fd = fd
        self.open = True
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._source = source
        self._mark = mark
        self._emit = emit
        #: what has come of a line that is not finished, in pieces, and its length
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        #: the line that is not finished was cut before
        self._goes_on = False
        #: so was the beginning of the line given out as a line of its own
        self._begun = False
        #: when the first of what has come of it did
        self.unfinished_since = 0.0
        self._name = ""

    def read(self) -> bool:
        """Takes some of what is there; False where the pipe has ended, and wants to be closed."""
        return self._read() != 0

    @property
    def unfinished(self) -> bool:
        """Whether something has come of a line that has no end yet."""
        return self._rest_bytes > 0

    def drain(self) -> None:
        """Takes what is there, when the worker is gone. (Who has its pipe still, and prints on, is not waited for.)"""
        left = PIPE_BYTES
        while left > 0 and (taken := self._read()) > 0:
            left -= taken

    def _read(self) -> int:
        """How many bytes came; 0: the pipe has ended. -1: nothing is there."""
        if not self.open:
            return 0
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return -1
        self._take(data)
        return len(data)

    def _take(self, data: bytes) -> None:
        first, *more = data.split(b"\n")
        if more or not self._rest_bytes:
            self.unfinished_since = monotonic()
        self._rest.append(first)
        self._rest_bytes += len(first)
        if more:
            lines = [b"".join(self._rest), *more]
            last = lines.pop()
            self._rest, self._rest_bytes = [last], len(last)
            self._lines(lines)
        if self._rest_bytes > LINE_BYTES:
            self._cut()

    def _lines(self, lines: list[bytes]) -> None:
        texts: list[str] = []
        for line in lines:
            text = line.decode("utf-8", "backslashreplace")
            if self._goes_on:
                self._goes_on, text = False, CUT + text
            if self._begun:
                self._begun = False
                if not text:
                    continue  # this was its end
            before, mark, name = text.partition(self._mark)
            if mark:
                self._flush(texts)
                if before:
                    self._flush([before])
                self._name = name
            else:
                texts.append(text)
        self._flush(texts)

    def _cut(self) -> None:
        """The line is too long to wait for its end."""
        self._flush([self._take_rest() + CUT])
        self._goes_on = True

    def give_unfinished(self) -> None:
        """Emits what has come of a line without waiting for its end."""
        text = self._take_rest()
        if text:
            self._flush([text])
            self._goes_on, self._begun = False, True

    def _take_rest(self) -> str:
        """What has come of a line. No character is torn, nor the name of another task, which stay."""
        line = b"".join(self._rest)
        end = len(line)
        while end and end > len(line) - 4 and line[end - 1] & 0xC0 == 0x80:
            end -= 1
        end -= end > 0 and line[end - 1] >= 0xC0
        mark = line.rfind(self._mark[:1].encode(), max(0, end - READ_BYTES), end)
        if mark >= 0 and _may_begin(line[mark:], self._mark.encode()):
            end = mark
        self._rest, self._rest_bytes = [line[end:]], len(line) - end
        return (CUT if self._goes_on and end else "") + line[:end].decode("utf-8", "backslashreplace")

    def _flush(self, lines: list[str]) -> None:
        if lines:
            self.tail.extend(_end_of(line) for line in lines[-TAIL_LINES:])
            self._emit(self._source, self._name, "\n".join(lines))
            lines.clear()

    def close(self) -> None:
        """Emits an unfinished last line and closes the pipe."""
        if self.open:
            self.open = False
            os.close(self.fd)
            if self._rest_bytes:
                self._take(b"\n")


class Unfinished:
    """The lines of a node's workers that are begun and not ended."""

    def __init__(self, read: Callable[[Any, LineReader], None]) -> None:
        #: reads what is there: perhaps the end of the line
        self._read = read
        self._readers: dict[LineReader, Any] = {}

    def note(self, worker: Any, reader: LineReader) -> None:
        """A pipe was read."""
        if reader.unfinished:
            self._readers[reader] = worker

    def leave(self, reader: LineReader) -> None:
        """The pipe is not read for now, or for ever."""
        self._readers.pop(reader, None)

    def step(self, now: float) -> float | None:
        """Gives out what has waited for its end for long enough; gives the time of the next look, or None."""
        due = None
        for reader, worker in list(self._readers.items()):
            since = reader.unfinished_since
            if since + UNFINISHED_SECONDS <= now:
                del self._readers[reader]
                self._read(worker, reader)
                if reader.open and reader.unfinished_since == since:
                    reader.give_unfinished()
            elif not reader.unfinished:
                del self._readers[reader]
            elif due is None or since < due:
                due = since
        return None if due is None else due + UNFINISHED_SECONDS


def _may_begin(data: bytes, mark: bytes) -> bool:
    return data.startswith(mark) or mark.startswith(data)


def _end_of(line: str) -> str:
    line = without_controls(line)
    return line if len(line) <= TAIL_CHARACTERS else CUT + line[-TAIL_CHARACTERS:]
