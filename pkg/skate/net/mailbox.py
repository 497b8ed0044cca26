"""The sockets of one process: an inbox that others send to, and a link to each peer that it sends to.

State: a bound ROUTER (the inbox), a DEALER a peer (opened on first use) with the records that wait to leave, and the
epoll set of the inbox and whatever else wakes this process. Holds no policy: it moves frames.

Who may call what: sending (`post`, `flush…`) under the runtime's lock; `read` by one thread at a time (see net.pump);
`poke` by anybody. A socket is never used by two threads at once: links belong to the lock's holder, the inbox to the
reader.

Inside a machine the transport is `ipc://`, in a folder that only the user can enter.
"""

from __future__ import annotations

import logging
import os
import resource
import select
from collections.abc import Callable
from time import monotonic
from typing import Any

import zmq

from skate._c import frames
from skate.ids import PROCESS_ID_BYTES, ProcessId
from skate.wire.messages import SCHEMAS

log = logging.getLogger("skate.net")

#: frames that may wait in a link's ZeroMQ queue; past that, records wait here
QUEUE_FRAMES = 10_000
#: records that leave in one frame at most
FRAME_RECORDS = 1024
#: frames taken in before others get a turn
READ_FRAMES = 64
#: milliseconds that closing waits for what was sent last
LINGER_MS = 500

#: descriptors that a peer may cost: a link, its way back, and in a node manager two pipes
LINK_DESCRIPTORS = 4
#: and what a process has open besides
OTHER_DESCRIPTORS = 64

Deliver = Callable[[ProcessId, list[tuple[int, tuple[Any, ...]]]], None]


class Link:
    """The way to one peer: its socket, and what has not left yet."""

    __slots__ = ("flushed_at", "peer", "records", "socket")

    def __init__(self, peer: ProcessId, socket: zmq.Socket[bytes]) -> None:
        self.peer = peer
        self.socket = socket
        self.records: list[bytes] = []
        self.flushed_at = 0.0


class Mailbox:
    """The inbox and the links of the process `me`, whose sockets live in `folder`."""

    def __init__(self, me: ProcessId, folder: str, deliver: Deliver) -> None:
        self.me = me
        self._folder = folder
        self._deliver = deliver
        self._context = zmq.Context(io_threads=1)
        self._context.set(zmq.MAX_SOCKETS, 20_000)
        self._inbox = self._context.socket(zmq.ROUTER)
        self._inbox.set(zmq.ROUTER_HANDOVER, 1)  # a peer that starts again takes its name over
        self._inbox.set(zmq.LINGER, 0)
        self._inbox.set(zmq.RCVHWM, QUEUE_FRAMES)
        self._inbox.bind(self._address(me))
        self._links: dict[ProcessId, Link] = {}
        self._waiting: list[Link] = []
        self._epoll = select.epoll()
        self._doorbell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        #: descriptor -> what to call when it is readable
        self._watched: dict[int, Callable[[], None]] = {self._doorbell: self._answer_doorbell}
        self._epoll.register(self._inbox.fileno(), select.EPOLLIN)
        self._epoll.register(self._doorbell, select.EPOLLIN)
        #: messages are being taken off the inbox: an exception in between would tear one
        self.taking_in = False
        #: whoever reads sleeps, or is about to: an exception tears nothing
        self.asleep = False
        self.closed = False

    def _address(self, process: ProcessId) -> str:
        return f"ipc://{self._folder}/{process.hex()}"

    # --------------------------------------------------------------------------------------------------- sending

    def post(self, to: ProcessId, record: bytes) -> Link:
        """Queues a record for `to`; it leaves with the next flush. Does not block."""
        link = self._links.get(to) or self._open(to)
        if not link.records:
            self._waiting.append(link)
        link.records.append(record)
        return link

    def flush(self) -> None:
        """Sends all that waits. What a peer's full queue does not take waits for the next flush. Does not block."""
        waiting = self._waiting
        if waiting:
            self._waiting = [link for link in waiting if not self._send(link)]

    def flush_due(self, now: float, pause: float) -> bool:
        """Sends what waits for peers that got nothing in the last `pause` seconds; True where some still waits."""
        waiting = self._waiting
        if waiting:
            self._waiting = [
                link for link in waiting if now - link.flushed_at < pause or not self._send(link)
            ]
        return bool(self._waiting)

    def _send(self, link: Link) -> bool:
        records = link.records
        while records:
            batch = records if len(records) <= FRAME_RECORDS else records[:FRAME_RECORDS]
            try:
                link.socket.send(frames.frame(batch), zmq.NOBLOCK)
            except zmq.Again:
                return False
            if batch is records:
                link.records = records = []
            else:
                del records[:FRAME_RECORDS]
        link.flushed_at = monotonic()
        return True

    def _open(self, to: ProcessId) -> Link:
        _allow_descriptors(OTHER_DESCRIPTORS + len(self._links) * LINK_DESCRIPTORS)
        socket = self._context.socket(zmq.DEALER)
        socket.set(zmq.ROUTING_ID, self.me)
        socket.set(zmq.SNDHWM, QUEUE_FRAMES)
        socket.set(zmq.LINGER, LINGER_MS)
        socket.connect(self._address(to))
        link = self._links[to] = Link(to, socket)
        return link

    def has_inbox(self, peer: ProcessId) -> bool:
        """Whether the peer's inbox is there: from before anyone hears of the peer until it is buried."""
        return os.path.exists(f"{self._folder}/{peer.hex()}")

    def forget(self, peer: ProcessId) -> None:
        """The peer is gone: what waits for it is dropped."""
        link = self._links.pop(peer, None)
        if link is not None:
            link.socket.close(linger=0)
            if link in self._waiting:
                self._waiting.remove(link)

    # --------------------------------------------------------------------------------------------------- reading

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Calls `ready` from `read` whenever `fd` is readable."""
        self._watched[fd] = ready
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def poke(self) -> None:
        """Makes the `read` that blocks now, or the next one, return at once. From any thread."""
        os.eventfd_write(self._doorbell, 1)

    def read(self, timeout: float | None) -> bool:
        """Takes in and delivers what has come; where there is nothing, waits up to `timeout` seconds (None: for ever).

        Returns whether frames came. Returns early when poked or when a watched descriptor was served.
        """
        if self._take_in():
            return True
        if timeout == 0:
            return False
        self.asleep = True
        try:
            events = self._epoll.poll(timeout)
        finally:
            self.asleep = False
        self._serve(events)
        return self._take_in()

    def fileno(self) -> int:
        """A descriptor that is readable when something may have come: for whoever sleeps elsewhere than in `read`.

        `read(0)` first, as ZeroMQ's own descriptor tells of changes only; `serve` once it is readable.
        """
        return self._epoll.fileno()

    def serve(self) -> bool:
        """Takes in and delivers what has come, and serves watched descriptors. Does not block."""
        self._serve(self._epoll.poll(0))
        return self._take_in()

    def _serve(self, events: list[tuple[int, int]]) -> None:
        for fd, _ in events:
            ready = self._watched.get(fd)
            if ready is not None:
                ready()

    def _take_in(self) -> bool:
        inbox = self._inbox
        taken = 0
        self.taking_in = True
        try:
            # The descriptor of a ZeroMQ socket tells of changes only: look at the socket before sleeping on it.
            while taken < READ_FRAMES and inbox.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                message = inbox.recv_multipart(zmq.NOBLOCK)
                taken += 1
                self._receive(message)
        finally:
            self.taking_in = False
        return taken > 0

    def _receive(self, message: list[bytes]) -> None:
        if len(message) != 2 or len(message[0]) != PROCESS_ID_BYTES:
            log.warning(
                "refused a message of %d parts from %r: no process of this session",
                len(message),
                message[0][:40],
            )
            return
        sender, data = message
        try:
            records = frames.decode(data, SCHEMAS)
        except frames.FrameError as error:
            log.warning("refused %d bytes from process %s: %s", len(data), sender.hex(), error)
            return
        self._deliver(ProcessId(sender), records)

    def _answer_doorbell(self) -> None:
        try:
            os.eventfd_read(self._doorbell)
        except BlockingIOError:
            return  # two pokes, answered at once

    # --------------------------------------------------------------------------------------------------- closing

    def close(self) -> None:
        """Sends what waits (for at most LINGER_MS) and closes all sockets. Nobody may be reading."""
        if self.closed:
            return
        self.closed = True
        self.flush()
        self._inbox.close()
        for link in self._links.values():
            link.socket.close()
        self._links.clear()
        self._waiting.clear()
        self._context.term()
        self._epoll.close()
        os.close(self._doorbell)
        self._watched.clear()


def _allow_descriptors(number: int) -> None:
    """Raises this process's own limit of open descriptors, where `number` comes near it and it may be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or number < soft // 2:
        return
    wanted = 2 * soft if hard == resource.RLIM_INFINITY else min(2 * soft, hard)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
