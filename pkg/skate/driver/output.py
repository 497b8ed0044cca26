"""What a driver shows its user: lines that tasks print, and what skate logs.

State: two outlets, one for the program's stdout, one for its stderr and for skate's loggers, each with what has yet to
be shown, a thread that shows it (started with the first of it), and how much could not be.

The program's streams may block for ever (a pipe that nobody reads), and they and its logging handlers may be of its own
making, and raise. So whoever reads the inbox never writes to them: it leaves what is to be shown to these threads, and
what cannot be shown is counted, and said once; each line is tried, whatever became of those before it. A descriptor is
written to only where it has room, so that the thread of a stuck outlet does not sleep in the middle of a write, with
the stream's own lock.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, Final

from skate._c.clock import monotonic
from skate._c.steps import leave_signals
from skate.core.output import name_to_show, shown_lines
from skate.ids import ProcessId
from skate.untouched import SimpleQueue, select

log = logging.getLogger("skate")

#: characters shown after which the node that sent them is told, which may have more (see core.output)
TELL_CHARACTERS: Final = 1 << 18
#: seconds after which it is told anyway, while much waits
TELL_SECONDS: Final = 0.25
#: characters to be shown from which on that is done
MUCH: Final = 1 << 20
#: characters in one write; a pipe that has room takes 4096 bytes
PIECE: Final = 4096
PIECE_NOT_ASCII: Final = 1024
#: records of loggers that may wait to be shown
RECORDS: Final = 10_000
#: seconds that the end of a session waits for an outlet that shows nothing
CLOSE_SECONDS: Final = 1.0
#: milliseconds between two looks whether the session is at its end, while a stream has no room
LOOK_MS: Final = 100
#: whose records are shown by the outlets' threads
LOGGERS: Final = ("skate", "skate.net", "skate.node", "skate.store")

#: (node manager, characters): some of what came from there has been shown, or given up
Tell = Callable[[ProcessId, int], None]


class Output:
    """The outlets of a session. `tell` is called by their threads."""

    def __init__(self, tell: Tell, raw: bool) -> None:
        """`raw`: what tasks print is passed on as it is, control characters and all."""
        whole = threading.Lock()
        self._outlets = {name: Outlet(name, tell, whole, raw) for name in ("stdout", "stderr")}
        self._loggers = self._outlets["stderr"]
        self._pid = os.getpid()
        for name in LOGGERS:
            logging.getLogger(name).addFilter(self._divert)

    def show(self, node: ProcessId, source: str, name: str, pid: int, text: str) -> None:
        """Lines that a task has printed, whose node is told once they are shown. Does not block."""
        prefix = f"({name_to_show(name)} pid={pid})" if name else f"(pid={pid})"
        self._outlets["stderr" if source == "stderr" else "stdout"].put((node, prefix, text))

    def _divert(self, record: logging.LogRecord) -> bool:
        """The filter of skate's loggers: whoever logs neither waits for the handlers nor hears what they raise."""
        if self._loggers.is_mine() or os.getpid() != self._pid:
            return True
        self._loggers.put_record(record)
        return False

    def close(self) -> None:
        """Shows what there is; does not wait for an outlet that shows nothing for CLOSE_SECONDS."""
        for outlet in self._outlets.values():
            outlet.close()
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(self._divert)
        for outlet in self._outlets.values():
            outlet.say_what_was_lost()


class Outlet:
    """What goes to one of the program's streams."""

    def __init__(self, name: str, tell: Tell, whole: threading.Lock, raw: bool) -> None:
        self._name = name
        self._raw = raw
        self._tell = tell
        #: held while lines are written, where both streams go to one file
        self._whole = whole
        # Whoever puts something in may be a signal handler: this takes no lock.
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._starting = threading.Lock()
        #: characters that came, and that are done with
        self._came = 0
        self._done = 0
        #: pieces shown or given up: it rises where the thread gets on
        self._steps = 0
        #: node -> characters that it has not been told of
        self._untold: dict[ProcessId, int] = {}
        self._told_at = 0.0
        #: what could not be shown, and why the first
        self._lost = 0
        self._lost_records = 0
        self._said = False

    def put(self, what: tuple[ProcessId, str, str]) -> None:
        """Lines."""
        self._came += len(what[2])
        self._queue.put(what)
        self._start()

    def put_record(self, record: logging.LogRecord) -> None:
        """What a logger is to say."""
        if self._queue.qsize() > RECORDS:
            self._lost_records += 1
            return
        self._queue.put(record)
        self._start()

    def is_mine(self) -> bool:
        """Whether this thread is the outlet's."""
        return self._thread is threading.current_thread()

    def _start(self) -> None:
        if self._thread is None and self._starting.acquire(False):
            thread = threading.Thread(target=self._run, name=f"skate-{self._name}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # there may be no more threads: the next line tries again
                self._starting.release()
                return
            self._thread = thread  # (not released: it is started once)

    # --------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        leave_signals()
        self._show_all()

    def _show_all(self) -> None:
        self._thread = threading.current_thread()
        while (what := self._queue.get()) is not None:
            if type(what) is tuple:
                self._show(*what)
            elif self._has_room():
                self._attempt(partial(logging.getLogger(what.name).handle, what))
            self._steps += 1

    def _show(self, node: ProcessId, prefix: str, text: str) -> None:
        shown = text.split("\n") if self._raw else shown_lines(text)
        lines = [f"{prefix} {line}\n" for line in shown]
        with self._whole if _go_to_one_file() else nullcontext():
            for piece in self._pieces(lines):
                if not self._has_room() or not self._attempt(partial(self._write, piece)):
                    self._lost += piece.count("\n")
                self._steps += 1
        self._done += len(text)
        self._untold[node] = self._untold.get(node, 0) + len(text)
        self._tell_nodes()

    def _tell_nodes(self) -> None:
        """In ordinary use nobody is told: that is worth a message only where there is much."""
        now = monotonic()
        much = self._came - self._done > MUCH and now - self._told_at > TELL_SECONDS
        for node, characters in list(self._untold.items()):
            if much or characters >= TELL_CHARACTERS:
                self._told_at = now
                del self._untold[node]
                self._tell(node, characters)

    def _pieces(self, lines: list[str]) -> list[str]:
        """What is written at a time. Python's own streams take all of that or nothing: so lines are put together."""
        if _descriptor(self._name) is None:
            return lines
        if isinstance(getattr(sys, self._name), io.TextIOWrapper):
            return _pieces(lines)
        return [piece for line in lines for piece in _pieces([line])]

    def _write(self, text: str) -> None:
        stream: Any = getattr(sys, self._name)
        if stream is None:
            raise ValueError(f"sys.{self._name} is None")
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(stream, "encoding", None) or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()

    def _has_room(self) -> bool:
        """Waits until the stream can be written to without blocking, as far as that is known; False: it is the end."""
        while not _has_room(self._name, 0 if self._closing.is_set() else LOOK_MS):
            if self._closing.is_set():
                return False
        return True

    def _attempt(self, show: Callable[[], Any]) -> bool:
        """Whether it was shown. The first error is said, as far as it can be.

        All errors: streams and handlers are the program's, and KeyboardInterrupt is none of this thread's.
        """
        try:
            show()
        except BaseException as error:
            if not self._said:
                self._said = True
                self._say(
                    f"skate could not show something on {self._name}, and counts what else it cannot: {error!r}"
                )
            return False
        return True

    @staticmethod
    def _say(text: str) -> None:
        """Says it by the logger, or where that raises, on stderr; not where that would block."""
        for way in (lambda: log.warning("%s", text), lambda: print(text, file=sys.__stderr__, flush=True)):
            try:
                if _has_room("stderr", 0):
                    way()
                    return
            except BaseException:
                continue

    # ---------------------------------------------------------------------------------------------- closing

    def close(self) -> None:
        """Blocks until all is shown, or the outlet shows nothing any more."""
        self._queue.put(None)
        thread = self._thread
        if thread is None:  # there was nothing, or no thread to be had
            self._show_all()
            return
        steps = -1
        while thread.is_alive() and steps != self._steps:
            steps = self._steps
            thread.join(CLOSE_SECONDS)
        self._closing.set()
        thread.join(CLOSE_SECONDS)

    def say_what_was_lost(self) -> None:
        """Once the outlet is closed."""
        if self._lost:
            self._say(f"{self._lost} lines that tasks printed could not be shown on {self._name}")
        if self._lost_records:
            self._say(f"{self._lost_records} warnings of skate could not be shown: there were too many")


def _descriptor(name: str) -> int | None:
    """That of one of the program's streams, if it has one."""
    try:
        descriptor = int(getattr(sys, name).fileno())
    except BaseException:  # the program's own code; only writing to it shows what comes of that
        return None
    return descriptor if descriptor >= 0 else None


def _go_to_one_file() -> bool:
    out, err = _descriptor("stdout"), _descriptor("stderr")
    try:
        return out is not None and err is not None and os.path.sameopenfile(out, err)
    except OSError:
        return False


def _has_room(name: str, milliseconds: int) -> bool:
    """Whether writing to one of the program's streams would not block, or does not within this time."""
    descriptor = _descriptor(name)
    if descriptor is None:
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(milliseconds))


def _pieces(lines: list[str]) -> list[str]:
    """Lines put together, or taken apart, so that each write is of PIECE characters at most."""
    pieces: list[str] = []
    for line in lines:
        most = PIECE if line.isascii() else PIECE_NOT_ASCII
        if pieces and len(pieces[-1]) + len(line) <= most and (most < PIECE or pieces[-1].isascii()):
            pieces[-1] += line
        else:
            pieces += [line[at : at + most] for at in range(0, len(line), most)]
    return pieces
