"""Who has connected to this node's port and not yet proved anything: how many of them there may be, and who goes first.

State: the connections, each with the other end's address; those of strangers (nothing has come from them that ZeroMQ
let through), by host, the oldest first; who knocked lately and was not let in. Reads no socket, decides whom to cut.

Descriptors are what a node dies of when it has none. Whoever connects and says nothing at all costs none: the kernel
keeps him (`listen_at`). Whoever says something has HANDSHAKE_IVL to prove that he has the cluster's key, and strangers
may have a share of the descriptors. When they have that, nobody else is let in (`shut_gate`: the kernel drops who
connects, who tries again), and those that had GRACE_SECONDS are cut, so that others get their chance. What came before
the gate was shut, and is too much, is cut at once, the oldest of the host that has most.
"""

from __future__ import annotations

import ctypes
import logging
import resource
import socket as sockets
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from skate.wire.cluster import join_address

log = logging.getLogger("skate.net")

#: strangers that are enough, and the share of the descriptors of this process that is
STRANGERS: Final = 2048
SHARE: Final = 6
#: seconds that a stranger has where others wait
GRACE_SECONDS: Final = 0.5
#: seconds for which the kernel keeps who has connected and says nothing; and how many of them
SILENT_SECONDS: Final = 60
SILENT: Final = 4096
#: seconds after which another knock from the same host is worth a line, and hosts that are remembered
KNOCK_SECONDS: Final = 60.0
KNOCKERS: Final = 1000

#: of Linux
SO_ATTACH_FILTER: Final = 26
SO_DETACH_FILTER: Final = 27
BPF_RET_K: Final = 0x06

UNKNOWN: Final = "an unknown address"


class Callers:
    """The connections to a port. `most`: strangers with which the gate is shut; twice as many there never are."""

    def __init__(self, most: int) -> None:
        self._most = most
        #: descriptor -> host:port at the other end
        self._peers: dict[int, str] = {}
        #: descriptor -> when it came, of strangers, the oldest first
        self._strangers: dict[int, float] = {}
        #: host -> its strangers, the oldest first
        self._of_host: dict[str, dict[int, None]] = {}
        #: nobody else is to be let in for now
        self.shut = False
        #: host -> (when it was logged last, knocks since)
        self._knocks: dict[str, tuple[float, int]] = {}

    @property
    def has_strangers(self) -> bool:
        return bool(self._strangers)

    def came(self, descriptor: int, peer: str, now: float) -> list[tuple[int, str]]:
        """Somebody has connected. Gives whom to cut: (descriptor, host:port)."""
        self.gone(descriptor)
        self._peers[descriptor] = peer
        self._strangers[descriptor] = now
        self._of_host.setdefault(_host_of(peer), {})[descriptor] = None
        self.shut = self.shut or len(self._strangers) >= self._most
        cut = []
        while len(self._strangers) > 2 * self._most:
            crowd = max(self._of_host.values(), key=len)
            cut.append(self._cut(next(iter(crowd))))
        return cut

    def tick(self, now: float) -> list[tuple[int, str]]:
        """Time has passed. Gives whom to cut, so that others can be let in."""
        if not self.shut:
            return []
        late = [descriptor for descriptor, came in self._strangers.items() if came + GRACE_SECONDS <= now]
        cut = [self._cut(descriptor) for descriptor in late]
        self.shut = len(self._strangers) > self._most // 2
        return cut

    def look_at(self) -> float | None:
        """When `tick` is to be called next; None: not for now."""
        return next(iter(self._strangers.values()), -GRACE_SECONDS) + GRACE_SECONDS if self.shut else None

    def _cut(self, descriptor: int) -> tuple[int, str]:
        self.proved(descriptor)  # (it is told of once more when it has gone)
        return descriptor, self._peers[descriptor]

    def proved(self, descriptor: int) -> None:
        """Something has come from there that was let through: it is no stranger."""
        if self._strangers.pop(descriptor, None) is not None:
            host = _host_of(self._peers[descriptor])
            of_host = self._of_host[host]
            del of_host[descriptor]
            if not of_host:
                del self._of_host[host]

    def gone(self, descriptor: int) -> str:
        """The connection has ended. Gives host:port of the other end."""
        self.proved(descriptor)
        return self._peers.pop(descriptor, UNKNOWN)

    def knocked(self, who: str, at: str, why: str, now: float) -> None:
        """Somebody was not let in: a line in the log, though not one for each attempt."""
        host = _host_of(who)
        last, count = self._knocks.get(host, (-KNOCK_SECONDS, 0))
        if now - last < KNOCK_SECONDS:
            self._knocks[host] = (last, count + 1)
            return
        self._knocks.pop(host, None)
        self._knocks[host] = (now, 0)
        if len(self._knocks) > KNOCKERS:
            del self._knocks[next(iter(self._knocks))]
        more = f" ({count} more of its attempts since the last line)" if count else ""
        log.warning("%s knocked at %s and was not let in: %s%s", who, at, why, more)

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        if len(self._strangers) > 2 * self._most:
            raise AssertionError(f"{len(self._strangers)} strangers of {self._most}")
        if len(self._strangers) >= self._most and not self.shut:
            raise AssertionError(f"open to more than {len(self._strangers)} strangers")
        if {fd: host for host, fds in self._of_host.items() for fd in fds} != {
            fd: _host_of(self._peers[fd]) for fd in self._strangers
        }:
            raise AssertionError("strangers are counted wrongly")


def strangers_allowed() -> int:
    """How many of a node's descriptors strangers may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return STRANGERS if hard == resource.RLIM_INFINITY else max(1, min(STRANGERS, hard // SHARE))


def listen_at(host: str, port: int) -> sockets.socket:
    """A socket that listens there, and accepts whoever has said something. OSError where it cannot."""
    kind, _, _, _, place = sockets.getaddrinfo(
        host, port, type=sockets.SOCK_STREAM, flags=sockets.AI_PASSIVE
    )[0]
    listening = sockets.socket(kind, sockets.SOCK_STREAM)
    try:
        listening.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        listening.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_DEFER_ACCEPT, SILENT_SECONDS)
        if kind == sockets.AF_INET6:
            listening.setsockopt(sockets.IPPROTO_IPV6, sockets.IPV6_V6ONLY, 0)
        listening.bind(place)
        listening.listen(SILENT)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def shut_gate(descriptor: int, shut: bool) -> None:
    """Has the kernel drop what comes from whoever is not connected yet, or no more. They try again, after a second."""
    program = ctypes.create_string_buffer(
        struct.pack("HBBI", BPF_RET_K, 0, 0, 0)
    )  # takes no byte of any packet
    attached = struct.pack("HP", 1, ctypes.addressof(program))
    try:
        with _borrowed(descriptor) as listening:
            listening.setsockopt(sockets.SOL_SOCKET, SO_ATTACH_FILTER if shut else SO_DETACH_FILTER, attached)
    except OSError as error:
        log.warning("the port cannot be %s: %s", "shut" if shut else "opened", error)


def peer_of(descriptor: int) -> str:
    """host:port of whoever is at the other end of a connection of this process, if it is still there."""
    try:
        with _borrowed(descriptor) as connection:
            host, port = connection.getpeername()[:2]
    except (OSError, ValueError):
        return UNKNOWN  # it is closed, or another descriptor's number by now
    return join_address(str(host).removeprefix("::ffff:"), port)


def cut(descriptor: int, peer: str) -> None:
    """Ends a connection that ZeroMQ has, if it is still that one."""
    if peer == UNKNOWN or peer_of(descriptor) != peer:
        return
    try:
        with _borrowed(descriptor) as connection:
            connection.shutdown(sockets.SHUT_RDWR)
    except OSError:
        pass  # the other end was faster


@contextmanager
def _borrowed(descriptor: int) -> Iterator[sockets.socket]:
    """The descriptor of another's: a copy would cost one, and there may be none. OSError where it is no socket's."""
    socket = sockets.socket(sockets.AF_INET6, sockets.SOCK_STREAM, 0, fileno=descriptor)
    try:
        yield socket
    finally:
        socket.detach()


def _host_of(peer: str) -> str:
    return peer.rpartition(":")[0] or peer
