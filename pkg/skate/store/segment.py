"""The memory behind a node's arena: a POSIX shared-memory object, or what stands in for it.

State: none; a Segment is a file descriptor and the path under which other processes open the same
memory. Invariants: only this user may open it; its name tells user and session; its maker holds a lock on
it as long as it lives, so whoever finds one without removes what a crashed session left (`sweep`).
Callers: the node manager makes and unlinks it, every process of the session opens it by path.

Containers often give /dev/shm 64 MB. So it is looked at before it is used: an arena that it could not
hold goes to a file in a directory of the caller's choice, or to anonymous memory (a memfd) that others
open through its maker's /proc entry, with one warning that says why and what to do. Whatever the memory
is, the arena reserves it before it touches it, so running out is an ArenaFull and never a SIGBUS.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import warnings
from dataclasses import dataclass

SHM_DIR = "/dev/shm"

#: What an arena's tables may take on top of its data: a floor, and a share of the data (they use far less).
_TABLES_FLOOR_BYTES = 4 << 20
_TABLES_SHARE = 100

_OPEN_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class SegmentWarning(RuntimeWarning):
    """The store is not where it should be."""


@dataclass(frozen=True)
class Segment:
    """An open piece of shared memory. Whoever has it closes `fd`; its maker unlinks it as well."""

    fd: int
    #: opens the same memory in any process of this user while it is linked (a memfd: while its maker lives)
    path: str
    #: "shm", "file" or "memfd"
    kind: str

    def close(self) -> None:
        """Close the descriptor. Arenas over it keep their own."""
        os.close(self.fd)

    def unlink(self) -> None:
        """Remove the name; the memory goes with the last process that has it mapped. May be repeated."""
        if self.kind != "memfd":
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                pass


def segment_name(session: str) -> str:
    """The file name of a session's segment, the same in /dev/shm and in a fallback directory."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", session):
        raise ValueError(f"a session's name is made of letters, digits, '_', '.' and '-', not {session!r}")
    return _prefix() + session


def _prefix() -> str:
    """Begins the names of all of this user's segments."""
    return f"skate-{os.getuid()}-"


def create_segment(
    session: str, size: int, fallback_dir: str | None = None, *, shm_dir: str = SHM_DIR
) -> Segment:
    """Make the memory for an arena of `size` bytes: in /dev/shm, else in `fallback_dir`, else a memfd.

    The segment is empty; Arena.create gives it its length. FileExistsError if the session has one already.
    """
    name = segment_name(session)
    needed = size + size // _TABLES_SHARE + _TABLES_FLOOR_BYTES
    trouble = _why_not(shm_dir, needed)
    if trouble is None:
        return _create_file(os.path.join(shm_dir, name), "shm")
    more = f"Give {shm_dir} more room (docker: --shm-size={_gigabytes(needed)}g)"
    advice = f"{more}, or ask for a smaller object store"
    if fallback_dir is not None:
        no_fallback = _why_not(fallback_dir, needed)
        if no_fallback is None:
            segment = _create_file(os.path.join(fallback_dir, name), "file")
            _warn(f"{trouble}: the object store is a file in {fallback_dir}, which may be slow. {advice}")
            return segment
        trouble = f"{trouble}, and {no_fallback}"
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    _warn(f"{trouble}: the object store is in anonymous memory, which counts as this process's. {advice}")
    return Segment(fd, f"/proc/{os.getpid()}/fd/{fd}", "memfd")


def open_segment(path: str) -> Segment:
    """Open a segment that another process of this user has made. PermissionError if it is anybody else's."""
    memfd = path.startswith("/proc/")
    fd = open_own(path, _OPEN_FLAGS & ~os.O_NOFOLLOW if memfd else _OPEN_FLAGS)
    kind = "memfd" if memfd else "shm" if os.path.dirname(path) == SHM_DIR else "file"
    return Segment(fd, path, kind)


def open_own(path: str, flags: int = _OPEN_FLAGS) -> int:
    """Opens a file that is this user's, without waiting. OSError (PermissionError, ELOOP, …) for whatever else lies
    there: a link, a FIFO, a folder, somebody else's file.
    """
    fd = os.open(path, flags)
    info = os.fstat(fd)
    if info.st_uid != os.getuid() or not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise PermissionError(f"{path} is not a file of user {os.getuid()}: it is no session's")
    return fd


def sweep() -> list[str]:
    """Removes this user's segments in /dev/shm whose makers are dead, of whatever session; gives their names."""
    swept: list[str] = []
    try:
        names = os.listdir(SHM_DIR)
    except OSError:
        return []  # there is none, or none for this user
    for name in names:
        if name.startswith(_prefix()) and _remove_unlocked(os.path.join(SHM_DIR, name)):
            swept.append(name)
    return swept


def _remove_unlocked(path: str) -> bool:
    try:
        segment = open_segment(path)
    except OSError:
        return False  # it has just gone, or is no segment: anybody may put a file there, with any name
    try:
        fcntl.flock(segment.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        segment.close()
    return True


def _create_file(path: str, kind: str) -> Segment:
    while True:
        fd = os.open(path, _OPEN_FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(fd, fcntl.LOCK_SH)  # it goes with the last descriptor that this one is copied to
        if os.fstat(fd).st_nlink:
            return Segment(fd, path, kind)
        os.close(fd)  # somebody swept it before it was locked


def _why_not(directory: str, needed: int) -> str | None:
    """Why a segment of `needed` bytes cannot be in that directory, or None if it can."""
    try:
        room = os.statvfs(directory)
    except OSError as error:
        return f"{directory} cannot be used ({error.strerror})"
    if not os.access(directory, os.W_OK | os.X_OK):
        return f"{directory} cannot be written to"
    free = room.f_bavail * room.f_frsize
    if room.f_blocks and free < needed:
        return f"{directory} has {free >> 20} MB free, and the object store needs {needed >> 20} MB"
    return None


def _gigabytes(size: int) -> int:
    return -(-size // (1 << 30))


def _warn(message: str) -> None:
    warnings.warn(message, SegmentWarning, stacklevel=3)
