"""The processes of one run, as /proc shows them. They carry the run's SKATE_TMPDIR in their environment.

A pid is only ever used through a pidfd that was opened before the process was looked at: so nobody else is hit.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from skate.node.zygote import NO_WORKER, WORKER_VARIABLE

_PAGE = os.sysconf("SC_PAGE_SIZE")


def marked(mark: bytes) -> dict[int, dict[bytes, bytes]]:
    """Pid and environment of each process of this user whose environment has the line `mark`."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            lines = _environment(int(entry))
            if mark in lines:
                parts = (line.partition(b"=") for line in lines)
                found[int(entry)] = {name: value for name, _, value in parts}
    return found


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []  # another user's, or it has ended


def is_worker(environment: dict[bytes, bytes]) -> bool:
    """Whether it is a worker, or was started by one; also one that is not ready yet."""
    return environment.get(WORKER_VARIABLE.encode(), NO_WORKER.encode()) != NO_WORKER.encode()


def workers(mark: bytes) -> list[int]:
    """Pids of the run's workers, sorted."""
    return sorted(pid for pid, environment in marked(mark).items() if is_worker(environment))


@contextmanager
def _opened(pid: int, mark: bytes) -> Iterator[int | None]:
    """A pidfd of the process; None where it is not one of the run any more."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        yield None
        return
    try:
        yield fd if mark in _environment(pid) else None
    finally:
        os.close(fd)


def send_signal(pid: int, number: signal.Signals, mark: bytes) -> bool:
    """Sends a process of the run a signal. False where it has ended."""
    with _opened(pid, mark) as fd:
        if fd is None:
            return False
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)
            return True
        return False


def children(pid: int) -> list[int]:
    """Pids of what the process has forked and not reaped."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        return [
            int(word)
            for task in tasks
            for word in Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        ]
    except OSError:
        return []


def private_bytes(pids: list[int]) -> int:
    """What these processes have in memory, without what they share."""
    total = 0
    for pid in pids:
        with suppress(OSError, ValueError):
            _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
            total += (int(resident) - int(shared)) * _PAGE
    return total
