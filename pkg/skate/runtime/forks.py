"""What a fork of a driver or a worker (multiprocessing, os.fork) has of its parent's runtime: nothing.

The copy's threads are gone, its locks may be held by them, its sockets and objects are the parent's. So the child
forgets the runtime, and drops refs without a word; it may call `skate.init()` and start a session of its own.
"""

from __future__ import annotations

import os

from skate._c import refs
from skate.runtime import current


def forget_runtime() -> None:
    """In the child: no runtime runs here."""
    runtime = current.runtime
    if runtime is not None:
        runtime.closed = True
        refs.set_home(None, {}, b"")
        current.set_runtime(None, None)


os.register_at_fork(after_in_child=forget_runtime)
