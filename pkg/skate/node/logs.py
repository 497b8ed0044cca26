"""What the workers of a node print: read from their pipes, cut into lines, marked with the task that printed them.

State, a worker: the two pipes, an unfinished line of each, the name of the task that prints, the last lines of stderr.

No worker's output holds up the node: a pipe is read once a turn, and a line without an end is cut.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Final

from skate.worker.output import MARK

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

#: (source, task name, text of whole lines)
Emit = Callable[[str, str, str], None]


class LineReader:
    """One pipe of one worker."""

    def __init__(self, fd: int, source: str, emit: Emit) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.open = True
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._source = source
        self._emit = emit
        #: what has come of a line that is not finished, in pieces, and its length
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        #: the line that is not finished was cut before
        self._goes_on = False
        self._name = ""

    def read(self) -> bool:
        """Takes some of what is there; False where the pipe has ended, and wants to be closed."""
        return self._read() != 0

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
            before, mark, name = text.partition(MARK)
            if mark:
                self._flush(texts)
                if before:
                    self._flush([before])
                self._name = name
            else:
                texts.append(text)
        self._flush(texts)

    def _cut(self) -> None:
        """The line is too long to wait for its end. No character of it is torn."""
        line = b"".join(self._rest)
        end = len(line)
        while end > len(line) - 4 and line[end - 1] & 0xC0 == 0x80:
            end -= 1
        end -= line[end - 1] >= 0xC0
        mark = line.rfind(MARK[:1].encode(), end - READ_BYTES, end)
        if mark >= 0:
            end = mark  # it may begin the name of another task
        self._rest, self._rest_bytes = [line[end:]], len(line) - end
        self._flush([(CUT if self._goes_on else "") + line[:end].decode("utf-8", "backslashreplace") + CUT])
        self._goes_on = True

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


def _end_of(line: str) -> str:
    return line if len(line) <= TAIL_CHARACTERS else CUT + line[-TAIL_CHARACTERS:]
