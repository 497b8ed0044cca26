"""A program that uses skate in a process of its own, and what can be done to it and seen of it."""

from __future__ import annotations

import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from api.rendezvous import eventually


class Driver:
    """A running program. Its standard output and error go to one file."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self._process = process
        self._output = output
        self.pid = process.pid

    @property
    def output(self) -> str:
        return self._output.read_text(errors="backslashreplace")

    def line(self, first_word: str, timeout: float = 20) -> list[str]:
        """Waits until the program has printed a line that begins with this word; gives the words after it."""

        def there() -> list[str] | None:
            *lines, _ = self.output.split("\n")
            found = next((line.split() for line in lines if line.split()[:1] == [first_word]), None)
            if found is None and self._process.poll() is not None:
                raise AssertionError(f"the driver ended with {self._process.returncode}:\n{self.output}")
            return found

        return eventually(there, timeout)[1:]

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """kill -9, unless it has ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def wait(self, timeout: float = 30) -> int:
        """Its exit status."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the driver does not end; it printed:\n{self.output}") from None


def lives(pid: int) -> bool:
    """Whether the process runs: neither gone nor a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_at_once(*pids: int) -> None:
    """kill -9 of several, none of which can do anything between the first kill and the last."""
    targets = [psutil.Process(pid) for pid in pids]
    for target in targets:
        target.suspend()
    for target in targets:
        target.kill()


@contextmanager
def no_descriptors(pid: int, but: int = 3) -> Iterator[None]:
    """The process can open none of number `but` or more meanwhile; what it has open works on."""
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (but, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
