"""The folder of a session: sockets, the lock that says it is alive, the name of its segment.

State is on disk, under SESSIONS_FOLDER, which only its user can enter. A session's node manager (and its zygote) hold a
lock on its file `alive`; whoever finds a folder whose lock is free removes what a crashed session left.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from typing import NamedTuple

from skate.config import SESSIONS_FOLDER
from skate.node.zygote import remove_session

_LOCK = "alive"
_SEGMENT = "segment"


class Session(NamedTuple):
    """An open session."""

    name: str
    folder: str
    lock_fd: int


def create() -> Session:
    """Makes a folder for a new session and takes its lock. PermissionError where others could get in."""
    os.makedirs(SESSIONS_FOLDER, mode=0o700, exist_ok=True)
    status = os.lstat(SESSIONS_FOLDER)
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077:
        raise PermissionError(
            f"{SESSIONS_FOLDER} must be a folder that only this user can enter (mode 0700): sockets lie in it. "
            "Remove it, or set SKATE_TMPDIR to another place."
        )
    while True:
        name = secrets.token_hex(4)
        folder = os.path.join(SESSIONS_FOLDER, name)
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            continue
        lock_fd = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Session(name, folder, lock_fd)


def note_segment(session: Session, path: str) -> None:
    """Writes down which segment goes with the session."""
    with open(os.path.join(session.folder, _SEGMENT), "w") as file:
        file.write(path)


def sweep() -> list[str]:
    """Removes what sessions left that nobody runs any more; gives their names."""
    swept: list[str] = []
    if not os.path.isdir(SESSIONS_FOLDER):
        return swept
    for name in os.listdir(SESSIONS_FOLDER):
        folder = os.path.join(SESSIONS_FOLDER, name)
        try:
            lock_fd = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # being made, or being removed
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            remove_session(folder, _segment_of(folder))
            swept.append(name)
        finally:
            os.close(lock_fd)
    return swept


def _segment_of(folder: str) -> str | None:
    try:
        with open(os.path.join(folder, _SEGMENT)) as file:
            return file.read()
    except FileNotFoundError:
        return None
