"""What the workers of a node print: read from their pipes, cut into lines, marked with the task that printed them.

State, a worker: the two pipes, an unfinished line of each, the name of the task that prints, the last lines of stderr.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Final

from skate.worker.output import MARK

#: bytes read at a time
READ_BYTES: Final = 1 << 16
#: lines of stderr kept for the error that a death raises
TAIL_LINES: Final = 20

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
        self._rest = b""
        self._name = ""

    def read(self) -> bool:
        """Takes what is there; False where the pipe has ended, and wants to be closed."""
        while self.open:
            try:
                data = os.read(self.fd, READ_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._take(data)
        return False

    def _take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        texts: list[str] = []
        for line in lines:
            text = line.decode("utf-8", "backslashreplace")
            before, mark, name = text.partition(MARK)
            if mark:
                self._flush(texts)
                if before:
                    self._flush([before])
                self._name = name
            else:
                texts.append(text)
        self._flush(texts)

    def _flush(self, lines: list[str]) -> None:
        if lines:
            self.tail.extend(lines)
            self._emit(self._source, self._name, "\n".join(lines))
            lines.clear()

    def close(self) -> None:
        """Emits an unfinished last line and closes the pipe."""
        if self.open:
            self.open = False
            os.close(self.fd)
            if self._rest:
                self._take(b"\n")
