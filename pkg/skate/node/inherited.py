"""What a process inherits from whoever started the program, however odd, made into what the runtime relies on.

Descriptors 0 to 2 may be closed, signals blocked or ignored, sockets may have a default timeout, the umask may keep a
process out of its own files. A node manager makes itself at home once, before anything else, and its zygote and workers
inherit that; what a program's own code may have set on purpose, a worker gets back. No state.
"""

from __future__ import annotations

import os
import signal
import socket
from typing import Any, Final

#: what Python ignores when it starts
_IGNORED: Final = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
#: of whoever sets no other: files of ours are for their user, who must be able to open them
_UMASK: Final = 0o077


def open_standard_descriptors() -> None:
    """Standard input, output and error are open; /dev/null where they were not.

    Otherwise the next socket, or the store, would be descriptor 2, and what writes to standard error would write there.
    """
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= 2:
        os.set_inheritable(fd, True)
        fd = os.open(os.devnull, os.O_RDWR)
    os.close(fd)


def settle() -> dict[str, Any]:
    """Has this process begin as if nobody had set anything; what `restore` gives back. For its only thread."""
    open_standard_descriptors()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN and number not in _IGNORED:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = {"umask": os.umask(_UMASK), "socket_timeout": socket.getdefaulttimeout()}
    socket.setdefaulttimeout(None)
    return before


def restore(before: dict[str, Any]) -> None:
    """What code of the program's own sees: the umask and the default timeout of sockets that were inherited."""
    os.umask(before["umask"])
    socket.setdefaulttimeout(before["socket_timeout"])
