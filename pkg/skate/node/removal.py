"""Notices that somebody removes files from a session's folder: a cleaner of /tmp, or a person who tidies up.

A node that cannot be reached by its sockets any more, and whose lock nobody finds, must not go on unseen. State: an
inotify descriptor, which is readable when something has changed.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

from skate.net.mailbox import Mailbox

_IN_MOVED_FROM = 0x40
_IN_DELETE = 0x200
_IN_MOVE_SELF = 0x800
_libc = ctypes.CDLL(None, use_errno=True)


class RemovalWatch:
    """Has `removed(path)` called when one of `names` in `folder`, or that itself, is gone. OSError where this user may
    watch no more.
    """

    def __init__(
        self, folder: str, names: tuple[str, ...], mailbox: Mailbox, removed: Callable[[str], None]
    ) -> None:
        self._paths = [os.path.join(folder, name) for name in names]
        self._removed = removed
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        if (
            _libc.inotify_add_watch(
                self._fd, os.fsencode(folder), _IN_DELETE | _IN_MOVED_FROM | _IN_MOVE_SELF
            )
            < 0
        ):
            error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), folder)
            self.close()
            raise error
        mailbox.watch(self._fd, self._look)

    def _look(self) -> None:
        """Something was removed; most often what a worker had there."""
        try:
            os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return
        for path in self._paths:
            if not os.path.lexists(path):
                self._removed(path)
                return

    def close(self) -> None:
        os.close(self._fd)
