"""Runs one command and ends everything it started: `python -m perf.warden PARENT_PID COMMAND …`.

The warden adopts orphans, so a daemon that its child started and left stays below it. The child may end by
itself, or be ended because the harness asks (SIGTERM) or dies (the kernel sends SIGTERM). What is then left
gets a grace, is killed, by pid, and named on stdout as a message of the child's protocol (see child.py).
The child's folder for temporary files goes too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

from perf import procs

GRACE_S = 3.0
_SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}


def _prepare_child() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    procs.die_with_parent(signal.SIGKILL)


def _reap() -> set[int]:
    """Collect every child that has ended."""
    ended: set[int] = set()
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.add(pid)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _wait_for_none(seconds: float) -> list[int]:
    """Wait until no descendant lives; the ones that still do after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        _reap()
        left = procs.descendants(os.getpid())
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def _bury() -> None:
    left = _wait_for_none(GRACE_S)
    names = sorted(procs.name(pid) for pid in left)
    while left:
        for pid in left:
            _kill(pid)
        left = _wait_for_none(0.2)
    if names:
        _tell(json.dumps({"event": "left_behind", "names": names}) + "\n")


def _tell(line: str) -> None:
    try:
        os.write(1, line.encode())
    except BrokenPipeError:  # the harness is dead
        pass


def _wait_for(child: int) -> None:
    """Until it ends; or end it, if the harness asks or dies."""
    while signal.sigwait(_SIGNALS) == signal.SIGCHLD:
        if child in _reap():
            return
    _kill(child)


def main(argv: list[str]) -> None:
    parent, command = int(argv[0]), argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    procs.adopt_orphans()
    procs.die_with_parent(signal.SIGTERM)
    if os.getppid() != parent:  # it died before we asked to be told
        return
    with tempfile.TemporaryDirectory(prefix="perf-", ignore_cleanup_errors=True) as folder:
        environment = {**os.environ, "TMPDIR": folder, "RAY_TMPDIR": folder}
        child = subprocess.Popen(command, preexec_fn=_prepare_child, cwd=folder, env=environment)
        _wait_for(child.pid)
        _bury()


if __name__ == "__main__":
    main(sys.argv[1:])
