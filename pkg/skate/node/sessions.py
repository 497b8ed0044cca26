"""The folder of a session: sockets, logs, and the lock that says it is alive.

State is on disk, under SESSIONS_FOLDER, which only its user can enter. A session's node manager (and its zygote) hold a
lock on its file `alive`, in which the node's id stands; whoever finds a folder whose lock is free removes what a
crashed session left. A session's name begins with PLACE, which stands for SESSIONS_FOLDER, so that a segment tells
of which folder its session is. Folders are made and swept under a lock on SESSIONS_FOLDER itself. What else lies there,
whosever it is, is left alone; and a SESSIONS_FOLDER that others can get into is neither used nor believed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from skate.config import NAME_BYTES, SESSIONS_FOLDER, SOCKET_PATH_BYTES, SPILL_FOLDER
from skate.node.errors import CannotStart
from skate.node.zygote import WORKER_VARIABLE, remove_session
from skate.store import segment
from skate.store.segment import SHM_DIR, open_own, segment_name

#: begins the names of all sessions of this SESSIONS_FOLDER
PLACE: Final = blake2b(os.path.realpath(SESSIONS_FOLDER).encode(), digest_size=2).hexdigest()

#: names of sessions, and of nodes
_NAME = re.compile("[0-9a-f]{12}")
_NODE = re.compile("[0-9a-f]{8}")
#: the file that is locked while the session lives
LOCK: Final = "alive"
_FACTS = "facts.json"


class Session(NamedTuple):
    """An open session."""

    name: str
    folder: str
    lock_fd: int


def create(node: str) -> Session:
    """Makes a folder for the session of `node` and takes its lock. CannotStart where that cannot be, or others could
    get in.
    """
    if len(os.fsencode(SESSIONS_FOLDER)) + NAME_BYTES > SOCKET_PATH_BYTES:
        raise CannotStart(
            f"the path {SESSIONS_FOLDER} is too long: that of a Unix socket in it has at most {SOCKET_PATH_BYTES} "
            "bytes. Set SKATE_TMPDIR to a folder with a shorter one"
        )
    name = PLACE + secrets.token_hex(4)
    folder = os.path.join(SESSIONS_FOLDER, name)
    try:
        os.makedirs(SESSIONS_FOLDER, mode=0o700, exist_ok=True)
        with _all_sessions():
            os.mkdir(folder, 0o700)
            try:
                return Session(name, folder, _take_lock(os.path.join(folder, LOCK), node))
            except OSError:
                remove_session(folder, None)
                raise
    except OSError as error:
        raise CannotStart(
            f"a session cannot have its folder in {SESSIONS_FOLDER}: {error.strerror or error}. Set SKATE_TMPDIR to a "
            "folder of this machine that this user can write to"
        ) from error


def _take_lock(path: str, node: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(fd, node.encode())
    return fd


def note_facts(session: Session, facts: dict[str, Any]) -> None:
    """Writes down how drivers reach the session's node."""
    temporary = os.path.join(session.folder, _FACTS + ".new")
    with open(temporary, "w") as file:
        json.dump(facts, file)
    os.rename(temporary, os.path.join(session.folder, _FACTS))


def facts_of(folder: str) -> dict[str, Any] | None:
    """What the node of a session's folder has written down; None where no node of this user's runs there."""
    try:
        if os.stat(folder).st_uid != os.getuid():
            return None
        lock_fd = open_own(os.path.join(folder, LOCK))
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
        with open(open_own(os.path.join(folder, _FACTS))) as file:
            facts = json.load(file)
            return facts if isinstance(facts, dict) else None
    except (OSError, ValueError):
        return None  # it is just starting, or ending


def open_to_drivers() -> list[dict[str, Any]]:
    """The facts of the nodes on this machine that any driver of this user may come to, the newest last."""
    found = []
    for folder in _folders():
        facts = facts_of(folder)
        if facts is not None and facts.get("open"):
            found.append(facts)
    return sorted(found, key=lambda facts: facts["started"])  # type: ignore[no-any-return]


def standing() -> list[dict[str, Any]]:
    """As above, of those that `skate start` started."""
    return [facts for facts in open_to_drivers() if facts["stays"]]


def make_spill_folder(session: Session, directory: str | None) -> None:
    """Makes the folder that full stores spill to: in the session's folder, or in `directory` with a link to it there.

    CannotStart where it cannot be made.
    """
    inside = os.path.join(session.folder, SPILL_FOLDER)
    if directory is None:
        os.mkdir(inside, 0o700)
        return
    outside = os.path.join(os.path.abspath(directory), segment_name(session.name))
    try:
        os.makedirs(directory, exist_ok=True)
        os.symlink(outside, inside)  # first: whoever removes the session follows it
        os.mkdir(outside, 0o700)
    except OSError as error:
        raise CannotStart(
            f"a full object store cannot spill to {directory}: {error.strerror}. Name a folder that this user can "
            "write to, by init(object_spilling_directory=…) or SKATE_SPILL_DIR"
        ) from error


def sweep() -> list[str]:
    """Removes what sessions left that nobody runs any more, their processes included; gives their names."""
    swept: list[str] = []
    if _folders():
        with _all_sessions():
            swept += [os.path.basename(folder) for folder in _folders() if _sweep_one(folder)]
    return swept + segment.sweep()  # what is left of sessions whose folder somebody has cleared away


@contextmanager
def _all_sessions() -> Iterator[None]:
    """Nobody else makes or sweeps sessions meanwhile. PermissionError where others could get in."""
    if os.path.lexists(SESSIONS_FOLDER) and not _is_private(os.lstat(SESSIONS_FOLDER)):
        raise PermissionError(
            "it must be a folder (no link) that only this user can enter (mode 0700), for sockets lie in it; remove it "
            "if you can"
        )
    fd = os.open(SESSIONS_FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not _is_private(os.fstat(fd)):
            raise PermissionError("it was replaced while it was opened")
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _is_private(status: os.stat_result) -> bool:
    """Whether that is a folder, and only this user can enter it."""
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.getuid()
        and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    )


def _folders() -> list[str]:
    """The paths of what can be sessions of this user; none where SESSIONS_FOLDER is not this user's own."""
    try:
        if not _is_private(os.lstat(SESSIONS_FOLDER)):
            return []
        with os.scandir(SESSIONS_FOLDER) as entries:
            return [
                entry.path
                for entry in entries
                if _NAME.fullmatch(entry.name) and _is_private(entry.stat(follow_symlinks=False))
            ]
    except OSError:
        return []  # it is not there, or just going


def _sweep_one(folder: str) -> bool:
    """Removes a session that nobody holds the lock of."""
    try:
        lock_fd = open_own(os.path.join(folder, LOCK))
    except FileNotFoundError:
        remove_session(folder, None)  # it died while it was made, or while it was removed
        return True
    except OSError:
        return False  # that is no lock: it is no session
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        node = os.read(lock_fd, 64).decode("ascii", "replace")
    except BlockingIOError:
        return False
    finally:
        os.close(lock_fd)
    if _NODE.fullmatch(node):
        _end_processes(node)
    remove_session(folder, os.path.join(SHM_DIR, segment_name(os.path.basename(folder))))
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
