"""What the system still lets this process have: descriptors and threads. No state.

ZeroMQ ends the whole process where it cannot have what it needs to begin (libzmq 4.3.5), and so it does where a peer
connects to a local socket of it when no descriptor is left. So whoever is about to need them looks first.
"""

from __future__ import annotations

import os
import resource
from typing import Final

from skate._c.threads import check_threads

#: what a mailbox opens, and ZeroMQ for it, with a few for the first peers
MAILBOX_DESCRIPTORS: Final = 16
#: ZeroMQ's, that which reads the mailbox, and one more: those that were tried may take a moment to be gone
MAILBOX_THREADS: Final = 4


def check_mailbox() -> None:
    """OSError, which names the limit, where a process cannot open a mailbox."""
    check_descriptors(MAILBOX_DESCRIPTORS)
    check_threads(MAILBOX_THREADS)


def check_descriptors(number: int) -> None:
    """OSError where so many more descriptors cannot be opened."""
    opened: list[int] = []
    try:
        for _ in range(number):
            opened.append(os.eventfd(0, os.EFD_CLOEXEC))
    except OSError as error:
        text = f"{number} more descriptors cannot be opened (see `ulimit -n`): {error.strerror}"
        raise OSError(error.errno, text) from None
    finally:
        for descriptor in opened:
            os.close(descriptor)


def allow_descriptors(number: int) -> None:
    """Raises this process's own limit of open descriptors, where `number` comes near it and it may be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or number < soft // 2:
        return
    wanted = 2 * soft if hard == resource.RLIM_INFINITY else min(2 * soft, hard)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def allow_all_descriptors() -> int:
    """Raises this process's limit of open descriptors as far as it may; gives how many that are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
