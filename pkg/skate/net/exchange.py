"""The shared memory of a node's lanes (see skate._c.lanes): made by its manager, opened by every process of the node.

State: none. It is a memfd that others open through its maker's /proc entry, so nothing is left of it, however the node
ends. SKATE_LANES=0 does without: then every message goes by ZeroMQ.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from skate._c.lanes import EXCHANGE_BYTES, Exchange

log = logging.getLogger("skate.net")

VARIABLE = "SKATE_LANES"


class Place(NamedTuple):
    """Where a node's lanes are, and how many cores its processes share."""

    path: str
    cores: int

    @classmethod
    def of(cls, fields: Sequence[Any] | None) -> Place | None:
        """From what a message or a file carries of it."""
        return None if fields is None else cls(*fields)


def create(cores: int) -> tuple[int, Place] | None:
    """(descriptor, place) of new lanes; None where they are turned off, or a sparse file of their size cannot be."""
    if not wanted():
        return None
    fd = os.memfd_create("skate-lanes", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, EXCHANGE_BYTES)
    except OSError as error:  # `ulimit -f`
        log.warning("no lanes for this node, it goes on without: %s", error)
        os.close(fd)
        return None
    return fd, Place(f"/proc/{os.getpid()}/fd/{fd}", cores)


def attach(place: Place | None) -> Exchange | None:
    """The lanes at a place, mapped; None where there are none, or this process may not have them."""
    if place is None or not wanted():
        return None
    try:
        fd = os.open(place.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return Exchange(fd)
        finally:
            os.close(fd)
    except OSError as error:
        log.warning("no lanes for this process, it goes on without: %s", error)
        return None


def wanted() -> bool:
    """Whether the environment leaves lanes on."""
    return os.environ.get(VARIABLE, "1") != "0"
