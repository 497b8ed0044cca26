"""The folder of a session: sockets, logs, and the lock that says it is alive.

State is on disk, under SESSIONS_FOLDER, which only its user can enter. A session's node manager (and its zygote) hold a
lock on its file `alive`, in which the node's id stands; whoever finds a folder whose lock is free removes what a
crashed session left. A session's name begins with PLACE, which stands for SESSIONS_FOLDER, so that a segment tells
of which folder its session is. Folders are made and swept under a lock on SESSIONS_FOLDER itself.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from skate.config import SESSIONS_FOLDER, SPILL_FOLDER
from skate.node.zygote import WORKER_VARIABLE, remove_session
from skate.store import segment
from skate.store.segment import SHM_DIR, segment_name

#: begins the names of all sessions of this SESSIONS_FOLDER
PLACE: Final = blake2b(os.path.realpath(SESSIONS_FOLDER).encode(), digest_size=2).hexdigest()

_LOCK = "alive"
_FACTS = "facts.json"


class Session(NamedTuple):
    """An open session."""

    name: str
    folder: str
    lock_fd: int


def create(node: str) -> Session:
    """Makes a folder for the session of `node` and takes its lock. PermissionError where others could get in."""
    os.makedirs(SESSIONS_FOLDER, mode=0o700, exist_ok=True)
    with _all_sessions():
        name = PLACE + secrets.token_hex(4)
        folder = os.path.join(SESSIONS_FOLDER, name)
        os.mkdir(folder, 0o700)
        lock_fd = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(lock_fd, node.encode())
    return Session(name, folder, lock_fd)


def note_facts(session: Session, facts: dict[str, Any]) -> None:
    """Writes down how drivers reach the session's node."""
    temporary = os.path.join(session.folder, _FACTS + ".new")
    with open(temporary, "w") as file:
        json.dump(facts, file)
    os.rename(temporary, os.path.join(session.folder, _FACTS))


def facts_of(folder: str) -> dict[str, Any] | None:
    """What the node of a session's folder has written down; None where no node runs there."""
    try:
        lock_fd = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # its node holds the lock
        pass
    else:
        return None
    finally:
        os.close(lock_fd)
    try:
        with open(os.path.join(folder, _FACTS)) as file:
            facts: dict[str, Any] = json.load(file)
            return facts
    except FileNotFoundError:
        return None  # it is just starting, or ending


def open_to_drivers() -> list[dict[str, Any]]:
    """The facts of the nodes on this machine that any driver of this user may come to, the newest last."""
    if not os.path.isdir(SESSIONS_FOLDER):
        return []
    found = []
    for name in os.listdir(SESSIONS_FOLDER):
        facts = facts_of(os.path.join(SESSIONS_FOLDER, name))
        if facts is not None and facts.get("open"):
            found.append(facts)
    return sorted(found, key=lambda facts: facts["started"])  # type: ignore[no-any-return]


def standing() -> list[dict[str, Any]]:
    """As above, of those that `skate start` started."""
    return [facts for facts in open_to_drivers() if facts["stays"]]


def make_spill_folder(session: Session, directory: str | None) -> None:
    """Makes the folder that full stores spill to: in the session's folder, or in `directory` with a link to it there.

    OSError where it cannot be made.
    """
    inside = os.path.join(session.folder, SPILL_FOLDER)
    if directory is None:
        os.mkdir(inside, 0o700)
        return
    outside = os.path.join(os.path.abspath(directory), segment_name(session.name))
    os.makedirs(directory, exist_ok=True)
    os.symlink(outside, inside)  # first: whoever removes the session follows it
    os.mkdir(outside, 0o700)


def sweep() -> list[str]:
    """Removes what sessions left that nobody runs any more, their processes included; gives their names."""
    swept: list[str] = []
    if os.path.isdir(SESSIONS_FOLDER):
        with _all_sessions():
            swept += [name for name in os.listdir(SESSIONS_FOLDER) if _sweep_one(name)]
    return swept + segment.sweep()  # what is left of sessions whose folder somebody has cleared away


@contextmanager
def _all_sessions() -> Iterator[None]:
    """Nobody else makes or sweeps sessions meanwhile. PermissionError where others could get in."""
    fd = os.open(SESSIONS_FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.getuid() or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise PermissionError(
                f"{SESSIONS_FOLDER} must be a folder that only this user can enter (mode 0700): sockets lie in it. "
                "Remove it, or set SKATE_TMPDIR to another place."
            )
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _sweep_one(name: str) -> bool:
    """Removes a session that nobody holds the lock of."""
    folder = os.path.join(SESSIONS_FOLDER, name)
    try:
        lock_fd = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CLOEXEC)
    except NotADirectoryError:
        return False  # no session's
    except FileNotFoundError:
        remove_session(folder, None)  # it died while it was made, or while it was removed
        return True
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        node = os.read(lock_fd, 64).decode()
    except BlockingIOError:
        return False
    finally:
        os.close(lock_fd)
    if node:
        _end_processes(node)
    remove_session(folder, os.path.join(SHM_DIR, segment_name(name)))
    return True


def _end_processes(node: str) -> None:
    """Ends what the workers of a node had started, where neither the node manager nor its zygote could."""
    mark = f"{WORKER_VARIABLE}={node}".encode()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as environ:
                marked = any(variable.startswith(mark) for variable in environ.read().split(b"\0"))
            if marked:
                os.kill(int(entry), signal.SIGKILL)
        except OSError:
            continue  # somebody else's, or it has ended meanwhile
