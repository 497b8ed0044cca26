"""What the sessions of this test run have left: processes, shared memory, folders.

Every test run has a SKATE_TMPDIR of its own (set here, before skate is imported; all that the run starts inherits it).
By that it knows its own sessions from those of another run, or of the user: processes carry it in their environment,
folders lie in it, and the names of segments begin with what stands for it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from pathlib import Path

#: seconds that what a test started may take to end
GRACE_SECONDS = 3.0

_VARIABLE = "SKATE_TMPDIR"
#: started by the standard library, and ended by it when this process ends
_NOT_OURS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")

TEMPORARY = tempfile.mkdtemp(prefix="skate-tests-")
os.environ[_VARIABLE] = TEMPORARY
_OWNER = os.getpid()


@atexit.register
def _remove() -> None:
    if os.getpid() == _OWNER:  # not in a fork
        shutil.rmtree(TEMPORARY, ignore_errors=True)


def processes() -> dict[int, str]:
    """Pid and command of each live process that was started by this run, directly or not."""
    mark = f"{_VARIABLE}={TEMPORARY}".encode()
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            if mark in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                found[int(entry)] = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # another user's, or it has ended meanwhile
    return {pid: command for pid, command in found.items() if not any(word in command for word in _NOT_OURS)}


def segments() -> list[str]:
    """Names in /dev/shm."""
    from skate.node.sessions import PLACE
    from skate.store.segment import segment_name

    return [name for name in os.listdir("/dev/shm") if name.startswith(segment_name(PLACE))]


def folders() -> list[str]:
    """Names of sessions that have a folder."""
    from skate.config import SESSIONS_FOLDER

    return os.listdir(SESSIONS_FOLDER) if os.path.isdir(SESSIONS_FOLDER) else []


def leftovers() -> set[str]:
    """All of them, as text."""
    return {
        *(f"process {pid}: {command[:80]}" for pid, command in processes().items()),
        *(f"segment {name}" for name in segments()),
        *(f"folder {name}" for name in folders()),
    }


def wait_for_nothing_left(before: set[str] = frozenset(), seconds: float = GRACE_SECONDS) -> None:  # type: ignore[assignment]
    """AssertionError where something that was not there `before` is still there after so many seconds."""
    deadline = time.monotonic() + seconds
    while left := leftovers() - before:
        if time.monotonic() > deadline:
            raise AssertionError(f"left behind after {seconds} s: {sorted(left)}")
        time.sleep(0.02)
