"""What of the product is replaced while a world runs: all that knows time, chance, sockets, processes, files.

Each line of `_SEAMS` is a name in a module, and what stands there meanwhile. What is replaced this way holds no policy;
the rest of the product, its loops and its glue included, is what runs. Two more seams are methods of classes:
Runtime.open_mailbox and make_pump (see process), NodeManager._fork and _end_workers (see node).
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final

import skate.api.session
import skate.net.cluster
import skate.node.cluster
import skate.node.manager
import skate.node.scheduling
import skate.node.spiller
import skate.node.zygotes
import skate.worker.executor
import skate.worker.lease
from greenlet import GreenletExit
from skate._c import clock, frames
from skate.core.roster import rows_from
from skate.wire.cluster import unpack_letter

from simulator.world import Alarms, World, set_running

#: bytes of a frame that may be one that all nodes are sent; and how many of these are remembered
LONG_FRAME: Final = 2048
REMEMBERED: Final = 16


class NoDoor:
    """Nobody knocks: drivers are let in by calling what the door would call."""

    def __init__(self, *_: Any) -> None: ...

    def step(self, now: float) -> None: ...

    def close(self) -> None: ...


class Once:
    """Stands for a function that many nodes call with the same object: the first call's result is all others', too.

    Of what is told to all nodes there is one copy, and it is decoded once; nobody changes what it has decoded.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._known: dict[int, tuple[Any, Any]] = {}

    def __call__(self, what: Any, *args: Any) -> Any:
        known = self._known.get(id(what))
        if known is not None:
            return known[1]
        result = self._function(what, *args)
        if len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[id(what)] = what, result  # (which keeps the id its own)
        return result


class NoSpillThreads:
    """No store is ever full here, so nothing is written or read."""

    fd = -1

    def __init__(self, *_: Any) -> None: ...

    def submit(self, job: Any) -> None:
        raise AssertionError(f"nothing is to be spilled, but there is {job}")

    def results(self) -> list[Any]:
        return []

    def close(self) -> None: ...


def is_compiled() -> bool:
    """Whether the modules on the way of a call are C, which nobody can replace parts of."""
    return not skate.worker.executor.__file__.endswith(".py")


def _frames_decoded_once() -> SimpleNamespace:
    """What a node's cluster sees as `frames`."""
    once = Once(frames.decode)

    def decode(frame: bytes, schemas: Any) -> Any:
        return (once if len(frame) > LONG_FRAME else frames.decode)(frame, schemas)

    return SimpleNamespace(decode=decode, FrameError=frames.FrameError, VERSION=frames.VERSION)


def _letters_read_once() -> Callable[[Any], Any]:
    once = Once(lambda content, parts: unpack_letter(parts))
    return lambda parts: once(parts[-1], parts)


def _no_file(*_: Any) -> None:
    raise FileNotFoundError


def _no_session() -> None:
    raise GreenletExit  # code of a process that is dead, on its way out


def _files_of_nobody() -> SimpleNamespace:
    """What modules see as `os`: pidfds that nobody polls, an environment of their own, no files."""
    serial = iter(range(1_000_000_000, 2_000_000_000))
    return SimpleNamespace(
        path=os.path,
        pidfd_open=lambda pid: next(serial),
        close=lambda fd: None,
        unlink=_no_file,
        getpid=lambda: 1,
        environ={},
    )


@contextmanager
def replaced(world: World, sockets: type) -> Iterator[Alarms]:
    """The product's modules see the world's clock, chance and network. `sockets` stands for ClusterSockets."""
    files = _files_of_nobody()
    seams: list[tuple[Any, str, Any]] = [
        (skate.api.session, "init", _no_session),
        (skate.node.manager, "os", files),
        (skate.node.manager, "Door", NoDoor),
        (skate.node.zygotes, "send", lambda zygote, message, fds=(): zygote.send(message)),
        (skate.node.manager, "_oom_kills", lambda: 0),
        (skate.node.cluster, "ClusterSockets", sockets),
        (skate.node.cluster, "frames", _frames_decoded_once()),
        (skate.node.cluster, "rows_from", Once(rows_from)),
        (skate.net.cluster, "unpack_letter", _letters_read_once()),
        (skate.node.spiller, "SpillThreads", NoSpillThreads),
        (skate.node.scheduling, "random", world.random),
        (skate.worker.executor, "os", files),
        (skate.worker.lease, "os", files),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in seams]
    logger, alarms = logging.getLogger("skate"), Alarms(world)
    level, propagates = logger.level, logger.propagate
    for module, name, stand_in in seams:
        setattr(module, name, stand_in)
    clock.replace(world)
    logger.addHandler(alarms)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    set_running(world)
    collecting = gc.isenabled()
    gc.disable()  # a ref in a cycle would be dropped at any time, in the middle of another process
    try:
        yield alarms
    finally:
        if collecting:
            gc.enable()
        set_running(None)
        logger.removeHandler(alarms)
        logger.propagate, logger.level = propagates, level
        logger.setLevel(level)
        clock.replace(None)
        for module, name, thing in before:
            setattr(module, name, thing)
