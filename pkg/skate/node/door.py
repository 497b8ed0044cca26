"""The door of a node: the socket in the session's folder through which drivers come, and those who only ask.

State: the visitors that have not said yet who they are, each with the time until which they may, and those whose answer
has yet to come. Nothing here blocks: door and visitors lie in the epoll set of the node's mailbox.

A visitor says one message and gets one answer:

    a driver    {"job": …, "log_to_driver": …}     what it needs to know of the node
    who asks    {"ask": table, "from": number}     {"rows": the table's rows from that one on, "next": number or null}
    anybody                                        {"refused": why}

The tables are "nodes", as this node knows them, and those of which the head is asked (node.head): "pending groups".
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from skate._c.clock import monotonic
from skate.net.mailbox import Mailbox
from skate.node.removal import RemovalWatch
from skate.node.sessions import LOCK
from skate.node.zygote import receive, send

log = logging.getLogger("skate.node")

#: the socket's name in the session's folder
DOOR: Final = "door"
#: bytes of rows in one answer
ANSWER_BYTES: Final = 60_000
#: visitors at a time; others wait outside
VISITORS: Final = 64
#: seconds that a visitor may take to say who it is; and that the door stays shut when no more can be let in
KNOCK_SECONDS: Final = 1.0
_CREDENTIALS: Final = struct.Struct("3i")


class Refused(Exception):
    """A visitor is not let in; the text says why, and what it can do."""


Answer = Callable[[dict[str, Any]], None]


def some_rows(rows: Sequence[Any], first: int) -> dict[str, Any]:
    """As many rows of a table, from that one on, as fit into an answer; and which comes next."""
    end, size = first, 0
    while end < len(rows) and size < ANSWER_BYTES:
        size += len(json.dumps(rows[end]))
        end += 1
    return {"rows": rows[first:end], "next": end if end < len(rows) else None}


class Door:
    """Where drivers come in.

    `answer(pid, message, tell)` has `tell` called with what a visitor is told, at once or later, or raises Refused.
    `removed(path)` is called where somebody takes away the door, or the inbox or the lock beside it.
    """

    def __init__(
        self,
        folder: str,
        mailbox: Mailbox,
        answer: Callable[[int, dict[str, Any], Answer], None],
        removed: Callable[[str], None],
    ) -> None:
        self._mailbox = mailbox
        self._answer = answer
        #: visitor -> until when it may speak, the first to come first
        self._visitors: dict[socket.socket, float] = {}
        #: those who have asked something
        self._asking: set[socket.socket] = set()
        #: when the door is watched again; 0.0: it is
        self._shut_until = 0.0
        #: it is not watched until one of the visitors has gone
        self._full = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._socket.bind(os.path.join(folder, DOOR))
        self._socket.listen()
        mailbox.watch(self._socket.fileno(), self._open)
        self._watch: RemovalWatch | None = None
        try:
            self._watch = RemovalWatch(folder, (LOCK, DOOR, mailbox.me.hex()), mailbox, removed)
        except OSError as error:
            log.warning("it goes unnoticed if somebody removes %s: %s", folder, error)

    def step(self, now: float) -> float | None:
        """Sends away who has said nothing for too long; gives the time of the next such look, or None."""
        if self._shut_until and self._shut_until <= now:
            self._shut_until = 0.0
            self._mailbox.watch(self._socket.fileno(), self._open)
        for visitor in [visitor for visitor, until in self._visitors.items() if until <= now]:
            self._refuse(visitor, f"it has said nothing for {KNOCK_SECONDS:.0f} s")
        times = [*list(self._visitors.values())[:1], *([self._shut_until] if self._shut_until else ())]
        return min(times, default=None)

    def close(self) -> None:
        self._full = False
        for visitor in (*self._visitors, *self._asking):
            self._see_off(visitor)
        self._socket.close()
        if self._watch is not None:
            self._watch.close()

    def _open(self) -> None:
        """Somebody knocks."""
        try:
            visitor, _ = self._socket.accept()
        except (BlockingIOError, ConnectionError):
            return  # it has gone again
        except OSError as error:  # no descriptor is free: who knocks is served once one is
            log.warning("nobody can be let in for %.0f s: %r", KNOCK_SECONDS, error)
            self._mailbox.unwatch(self._socket.fileno())
            self._shut_until = monotonic() + KNOCK_SECONDS
            return
        visitor.setblocking(False)
        self._visitors[visitor] = monotonic() + KNOCK_SECONDS
        self._mailbox.watch(visitor.fileno(), partial(self._listen, visitor))
        if len(self._visitors) + len(self._asking) >= VISITORS:
            self._mailbox.unwatch(self._socket.fileno())
            self._full = True

    def _listen(self, visitor: socket.socket) -> None:
        """A visitor has said who it is, or has gone."""
        credentials = visitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(credentials)
        try:
            message, descriptors = receive(visitor)
            for descriptor in descriptors:
                os.close(descriptor)  # nobody has asked for any
            if message is None:
                raise ConnectionError("it has gone")
            if uid != os.getuid():
                raise Refused(f"It is of user {uid}, and the node of user {os.getuid()}.")
            if visitor in self._asking or not isinstance(message, dict):
                raise Refused("A visitor says one message, and waits for the answer.")
            del self._visitors[visitor]
            self._asking.add(visitor)
            self._answer(pid, message, partial(self._tell, visitor))
        except BlockingIOError:
            return  # woken for nothing
        except Refused as refusal:
            self._refuse(visitor, str(refusal), pid)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._refuse(visitor, f"what it says makes no sense here: {error!r}", pid)

    def _refuse(self, visitor: socket.socket, why: str, pid: int = 0) -> None:
        log.warning("process %d knocked and was not let in: %s", pid, why)
        self._tell(visitor, {"refused": why})

    def _tell(self, visitor: socket.socket, message: dict[str, Any]) -> None:
        """The answer, after which a visitor goes."""
        if visitor.fileno() < 0:
            return  # it has gone, and did not wait for it
        try:
            send(visitor, message)
        except OSError as error:  # a driver that was let in is missed by its pidfd when it ends
            log.warning("a visitor has gone without its answer: %r", error)
        self._see_off(visitor)

    def _see_off(self, visitor: socket.socket) -> None:
        self._visitors.pop(visitor, None)
        self._asking.discard(visitor)
        self._mailbox.unwatch(visitor.fileno())
        visitor.close()
        if self._full:
            self._full = False
            self._mailbox.watch(self._socket.fileno(), self._open)
