"""The mail of one process: an inbox that others send to, and a link to each peer that it sends to.

State: a bound ROUTER and, where the node has lanes, a slot of rings in shared memory (the inbox); a lane or a DEALER a
peer, opened on first use, with the records that wait to leave; the epoll set of all that wakes this process. Holds no
policy: it moves frames.

Inside a machine a record goes by the lane (skate._c.lanes): it is with the reader when `post` returns. What is too
long for that goes by ZeroMQ, over `ipc://` in a folder that only the user can enter, and leaves with the next flush; a
mark in the lane says where it belongs, so the order between two processes is kept. Where a peer has no lane, all goes
by ZeroMQ.

What is for a process of another node goes through this node's manager, by its socket, as a message of two parts,
[receiver, frame], and comes from the manager as [sender, frame], in order with what else the manager says: nobody on
the way decodes it (see net.cluster). All that one process says to another takes one way, so order is kept.

Who may call what: sending (`post`, `flush…`) under the runtime's lock; `read` by one thread at a time (see net.pump);
`poke` by anybody. A socket is never used by two threads at once: links belong to the lock's holder, the inbox to the
reader.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, Final

import zmq

from skate._c import clock, frames, steps
from skate._c.alarm import Alarm
from skate._c.lanes import LONGEST_RECORD, STALLED, STARVED, Exchange, Inbox, Lane
from skate.config import Timeout
from skate.exceptions import SkateSystemError
from skate.ids import NODE_ID_BYTES, PROCESS_ID_BYTES, ProcessId, manager_of
from skate.net import exchange
from skate.net.limits import allow_descriptors, check_mailbox
from skate.untouched import select
from skate.wire.messages import SCHEMAS

log = logging.getLogger("skate.net")

#: frames that may wait in a link's ZeroMQ queue; past that, records wait here
QUEUE_FRAMES = 10_000
#: records that leave in one frame at most
FRAME_RECORDS = 1024
#: frames taken in before others get a turn
READ_FRAMES = 64
#: records of a lane taken in before others get a turn, and turns
READ_RECORDS = 256
READ_BATCHES = 64
#: milliseconds that closing waits for what was sent last
LINGER_MS = 500
#: later than any time; and the part of a pause after which a message leaves with others
NEVER = float("inf")
NEARLY = 0.75
#: seconds that a message waits at most for a core that its reader could run on
HOLD_SECONDS = 0.005
#: seconds for which a busy reader of lanes does not look at the socket
SOCKET_SECONDS = 0.0005

#: of a socket call: there are no descriptors, or buffers, for now; seconds until it is tried again; and after which
#: whoever waits meanwhile hears of it
SCARCE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
SCARCE_SECONDS: Final = 1.0
SCARCE_PATIENCE: Final = 5.0

#: descriptors that a peer may cost: a link, its way back, and in a node manager two pipes
LINK_DESCRIPTORS = 4
#: and what a process has open besides
OTHER_DESCRIPTORS = 64

Records = list[tuple[int, tuple[Any, ...]]]
#: (descriptor, what epoll says of it)
Events = list[tuple[int, int]]
Deliver = Callable[[ProcessId, Records], None]


class Relay:
    """Stands where a link to a process of another node has its socket: this node's manager passes frames on."""

    __slots__ = ("_manager", "_to")

    def __init__(self, manager: zmq.Socket[bytes], to: ProcessId) -> None:
        self._manager = manager
        self._to = to

    def send(self, frame: bytes, flags: int) -> None:
        self._manager.send_multipart((self._to, frame), flags)

    def close(self, linger: int | None = None) -> None:
        """The manager's socket is its own link's."""


class Link:
    """The way to one peer: its lane or socket, and what has not left yet."""

    __slots__ = ("flushed_at", "lane", "marked", "peer", "records", "socket", "waits")

    def __init__(self, peer: ProcessId, lane: Lane | None) -> None:
        self.peer = peer
        self.lane = lane
        #: opened on first use
        self.socket: zmq.Socket[bytes] | Relay | None = None
        self.records: list[bytes] = []
        #: something is to be done at the next flush: records are to leave, or a reader that sleeps is to be woken
        self.waits = False
        #: the lane says already that the first of the records comes by the socket
        self.marked = False
        self.flushed_at = 0.0


Links = list[Link]


class Mailbox:
    """The inbox and the links of the process `me`, whose sockets live in `folder`, and lanes at `place`."""

    def __init__(
        self,
        me: ProcessId,
        folder: str,
        deliver: Deliver,
        place: exchange.Place | None = None,
    ) -> None:
        self.me = me
        self._folder = folder
        self._deliver = deliver
        check_mailbox()
        self.context = zmq.Context(io_threads=1)
        self.context.set(zmq.MAX_SOCKETS, 20_000)
        self._inbox = self.context.socket(zmq.ROUTER)
        self._inbox.set(zmq.ROUTER_HANDOVER, 1)  # a peer that starts again takes its name over
        self._inbox.set(zmq.LINGER, 0)
        self._inbox.set(zmq.RCVHWM, QUEUE_FRAMES)
        self._inbox.bind(self._address(me))
        os.chmod(self._path(me), 0o600)  # whatever the program's umask is, peers get in
        self._links: dict[ProcessId, Link] = {}
        self._waiting: list[Link] = []
        #: when the oldest of them began to, or before; and of them all, when the first got something last
        self._wait_began = 0.0
        self._waits_since = NEVER
        self._epoll = select.epoll()
        self._epoll_fd = self._epoll.fileno()
        self._doorbell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        #: descriptor -> what to call when it is readable
        self._watched: dict[int, Callable[[], None]] = {
            self._doorbell: self._answer_doorbell,
            self._inbox.fileno(): self._socket_speaks,
        }
        self._epoll.register(self._inbox.fileno(), select.EPOLLIN)
        self._epoll.register(self._doorbell, select.EPOLLIN)
        #: others ring it where this process sleeps; -1 without lanes
        self._bell = -1
        self._exchange: Exchange | None = None
        self._lanes: Inbox | None = None
        if place is not None:
            self._open_lanes(place)
        #: what came by the socket from peers with lanes, before its mark was read
        self._early: dict[ProcessId, deque[tuple[ProcessId, Records]]] = {}
        self._socket_looked_at = 0.0
        #: nothing is left in the socket, so its descriptor becomes readable when something comes
        self._socket_is_silent = False
        #: when to try again to open what there was no descriptor for, and since when there has been none
        self.look_at: float | None = None
        self._scarce_since: float | None = None
        #: what is to wake another thread of this process if nobody reads for a while; None: nothing is
        self.alarm: Alarm | None = None
        #: the process takes its leave: what it still says to others than its node manager matters no more
        self._leaving = False
        self.closed = False

    def _open_lanes(self, place: exchange.Place) -> None:
        shared = exchange.attach(place)
        if shared is None:
            return
        path = self._bell_path(self.me)
        os.mkfifo(path, 0o600)
        os.chmod(path, 0o600)
        self._bell = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOATIME)
        self._watched[self._bell] = self._answer_bell
        self._epoll.register(self._bell, select.EPOLLIN)
        self._lanes = shared.inbox(self.me, SCHEMAS, place.cores)  # last: from here on others write
        if self._lanes is not None:
            self._exchange = shared  # (who has no inbox there hears of no room in a lane, so it uses none)

    def _address(self, process: ProcessId) -> str:
        return f"ipc://{self._path(process)}"

    def _path(self, process: ProcessId) -> str:
        return f"{self._folder}/{process.hex()}"

    def _bell_path(self, process: ProcessId) -> str:
        return f"{self._path(process)}.bell"

    # --------------------------------------------------------------------------------------------------- sending

    def post(self, to: ProcessId, record: bytes) -> bool:
        """Sends a record to `to`, or queues it for the next flush. Does not block.

        True: it is where nothing can lose it, not even this process's death.
        """
        link = self._links.get(to) or self._open(to)
        lane = link.lane
        written = False
        if lane is not None and not link.records and lane.write(record):
            if not lane.wanted:
                return True
            written = True
        else:
            link.records.append(record)
        self._wait(link)
        return written

    def _wait(self, link: Link) -> None:
        """The next flush has something to do for this peer."""
        if not link.waits:
            link.waits = True
            if not self._waiting:
                self._wait_began = clock.monotonic()
            self._waiting.append(link)
            self._waits_since = min(self._waits_since, link.flushed_at)

    def flush(self) -> None:
        """Sends all that waits. What a peer has no room for waits for the next flush. Does not block.

        What there is no descriptor for waits for the first one after `look_at`.
        """
        due = self.look_at is not None and clock.monotonic() >= self.look_at
        if due:
            self.look_at = None
        if self._waiting:
            self._keep_waiting([link for link in self._waiting if not self._send(link)])
        if due and self.look_at is None:  # there is one, or the peer is gone
            self._scarce_since = None

    def check_descriptors(self) -> None:
        """For whoever waits: SkateSystemError where messages have waited SCARCE_PATIENCE seconds for a descriptor."""
        if self._leaving or self._scarce_since is None:
            return
        now = clock.monotonic()
        if now - self._scarce_since >= SCARCE_PATIENCE:
            self.look_at = now  # who waits next is not to hear of it where there are some again
            raise SkateSystemError(
                f"this process (pid {os.getpid()}) has had no descriptor left for {now - self._scarce_since:.0f} s, so "
                "it cannot connect to those that it has messages for. Close files and sockets that are not needed, or "
                "raise the limit (`ulimit -n`); the messages leave then."
            )

    def _keep_waiting(self, links: Links) -> None:
        self._waiting = links
        self._waits_since = min([link.flushed_at for link in links], default=NEVER)

    def flush_due(self, now: float, pause: float) -> bool:
        """Sends what waits for peers that got nothing in the last `pause` seconds; True where some still waits.

        What is nearly due leaves with what is: so a look at all that wait sends a share of it, however many they are.
        And while more processes are awake than there are cores, nobody is woken: he would wait for a core, and get what
        comes meanwhile one by one.
        """
        if self._waiting and now - self._waits_since >= pause:
            lanes = self._lanes if now - self._wait_began < HOLD_SECONDS else None
            if lanes is not None and lanes.is_crowded():
                return True
            nearly = pause * NEARLY
            self._keep_waiting(
                [
                    link
                    for link in self._waiting
                    if now - link.flushed_at < nearly
                    or (lanes is not None and lanes.is_crowded())
                    or not self._send(link)
                ]
            )
        return bool(self._waiting)

    def _send(self, link: Link) -> bool:
        """Sends what waits for one peer, and wakes it; False where it has no room for all of it.

        What threads still say once this is closed goes nowhere.
        """
        if self.closed:
            link.waits = False
        elif link.lane is None:
            link.waits = not self._send_by_socket(link)
        else:
            link.waits = not self._send_by_lane(link, link.lane)
        return not link.waits

    def _send_by_lane(self, link: Link, lane: Lane) -> bool:
        records = link.records
        sent = 0
        try:
            while sent < len(records) and self._send_in_order(link, lane, records[sent]):
                sent += 1
        finally:
            del records[:sent]
        lane.ring()
        link.flushed_at = clock.monotonic()
        return not records

    def _send_by_socket(self, link: Link) -> bool:
        records = link.records
        while records:
            batch = records if len(records) <= FRAME_RECORDS else records[:FRAME_RECORDS]
            if not self._send_frame(link, batch):
                return False
            if batch is records:
                link.records = records = []
            else:
                del records[:FRAME_RECORDS]
        link.flushed_at = clock.monotonic()
        return True

    def _send_in_order(self, link: Link, lane: Lane, record: bytes) -> bool:
        """By the lane, or a long one by the socket after a mark in the lane. False where there is no room."""
        if len(record) <= LONGEST_RECORD:
            return lane.write(record)
        if not link.marked and not lane.mark():
            return False
        link.marked = not self._send_frame(link, [record])
        return not link.marked

    def _send_frame(self, link: Link, records: list[bytes]) -> bool:
        if link.socket is None and not self._connected(link):
            return False
        assert link.socket is not None
        try:
            link.socket.send(frames.frame(records), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _connected(self, link: Link) -> bool:
        """Opens the link's socket; False where there is no descriptor for one, for now."""
        now = clock.monotonic()
        if self.look_at is not None and now < self.look_at:
            return False
        try:
            link.socket = self._connect(link.peer)
        except zmq.ZMQError as error:
            if error.errno not in SCARCE:
                raise
            if self._scarce_since is None:
                self._scarce_since = now
                log.warning("process %s cannot be spoken to for now: %s", link.peer.hex(), error)
            self.look_at = now + SCARCE_SECONDS
            return False
        self.look_at = self._scarce_since = None
        return True

    def is_elsewhere(self, process: ProcessId) -> bool:
        """Whether the process is one of another node."""
        return process[:NODE_ID_BYTES] != self.me[:NODE_ID_BYTES]

    def _open(self, to: ProcessId) -> Link:
        allow_descriptors(OTHER_DESCRIPTORS + len(self._links) * LINK_DESCRIPTORS)
        lane = None
        if self._exchange is not None and not self.is_elsewhere(to):
            lane = self._exchange.lane(self.me, to, self._bell_path(to))
        link = self._links[to] = Link(to, lane)
        return link

    def _connect(self, to: ProcessId) -> zmq.Socket[bytes] | Relay:
        if self.is_elsewhere(to):
            manager = manager_of(self.me)
            way = self._links.get(manager) or self._open(manager)
            if way.socket is None:
                way.socket = self._connect(manager)
            return Relay(way.socket, to)  # type: ignore[arg-type]
        socket = self.context.socket(zmq.DEALER)
        socket.set(zmq.ROUTING_ID, self.me)
        socket.set(zmq.SNDHWM, QUEUE_FRAMES)
        socket.set(zmq.LINGER, LINGER_MS)
        socket.connect(self._address(to))
        return socket

    def has_inbox(self, peer: ProcessId) -> bool:
        """Whether the peer's inbox is there: from before anyone hears of the peer until it is buried.

        Of a process of another node that is not known: whoever writes to it hears if it is gone.
        """
        return self.is_elsewhere(peer) or os.path.exists(f"{self._folder}/{peer.hex()}")

    def last_words(self, peer: ProcessId) -> Records:
        """What a peer that has ended had sent, and nobody has read yet. By whoever reads; `forget` comes next."""
        records: Records = []
        lanes = self._lanes
        if lanes is None or not lanes.has_lane(peer):
            return records
        early = self._early.pop(peer, deque())
        while (batch := lanes.take_from(peer, READ_RECORDS)) is not None:
            _, found, flags, _ = batch
            records += found
            if flags & STALLED and early:
                records += early.popleft()[1]
        return records

    def forget_node(self, node: bytes) -> None:
        """The node is gone, and all its processes."""
        for peer in [peer for peer in self._links if peer.startswith(node)]:
            self.forget(peer)

    def forget(self, peer: ProcessId) -> None:
        """The peer is gone: what waits for it is dropped, and what it sent."""
        link = self._links.pop(peer, None)
        if link is not None:
            if link.socket is not None:
                link.socket.close(linger=0)
            if link.lane is not None:
                link.lane.give_up()
            if link in self._waiting:
                self._waiting.remove(link)
        if self._lanes is not None:
            self._lanes.release(peer)
            self._early.pop(peer, None)

    def waits_for(self, peer: ProcessId) -> bool:
        """Whether the peer has had no room yet for all that it was sent."""
        link = self._links.get(peer)
        return link is not None and bool(link.records)

    def leave_lanes(self) -> None:
        """Others are about to hear that this process has ended, and to give its rings away: what it still says goes by
        ZeroMQ. Once nothing waits for a peer that is to read it: what was in the way of a lane is read after that.
        """
        self._leaving = True
        self._exchange = None
        for link in self._links.values():
            link.lane = None

    def bury(self, peer: ProcessId, living: Collection[ProcessId]) -> None:
        """By the node manager, once a process has ended and `living` others run: its place in the exchange is free."""
        if self._exchange is not None:
            self._exchange.bury(peer, living)
            with contextlib.suppress(FileNotFoundError):  # it died before it opened its inbox
                os.unlink(self._bell_path(peer))

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
        if self._lanes is not None:
            self._lanes.nudge()
        os.eventfd_write(self._doorbell, 1)

    def read(self, timeout: Timeout, idle: bool = True) -> bool:
        """Takes in and delivers what has come; where there is nothing, waits up to `timeout` seconds (None: for ever).

        `idle`: nothing else runs in this process meanwhile. Returns whether anything came. Returns early when poked,
        when a watched descriptor was served, or when the handler of a signal is to run.
        """
        if timeout == 0:
            self._socket_is_silent = False  # (the kernel is not asked)
            return self._take_in()
        if self._take_in():
            return True
        try:
            asleep = self.fall_asleep(idle)
            events = steps.doze(self._epoll_fd, timeout) if asleep else []
        finally:
            self.wake_up()
        if asleep:
            self._socket_looked_at = clock.monotonic()
        self._serve(events)
        return self._take_in()

    def spin(self) -> bool:
        """Waits for a moment without sleeping, where that has paid lately; True where something came by a lane.

        Does nothing while records wait to leave.
        """
        lanes = self._lanes
        return lanes is not None and not self._waiting and lanes.spin() and self._take_in()

    def take_lanes(self) -> bool:
        """Takes in and delivers what has come by lanes; whether anything had. Does not block, nor ask the kernel."""
        return self._lanes is not None and self._read_lanes(self._lanes)

    @property
    def waits(self) -> bool:
        """Something waits to leave with the next flush."""
        return bool(self._waiting)

    def fall_asleep(self, idle: bool) -> bool:
        """Before sleeping on `fileno`, by `doze`; False: do not, something came. `wake_up` follows in either case."""
        alarm = self.alarm
        if alarm is not None and alarm.is_set:
            alarm.clear()
        return self._lanes is None or self._lanes.fall_asleep(idle)

    def wake_up(self) -> None:
        """After `fall_asleep`."""
        if self._lanes is not None:
            self._lanes.wake_up()

    def fileno(self) -> int:
        """A descriptor that is readable when something may have come: for whoever sleeps elsewhere than in `read`.

        `read(0)` first, as ZeroMQ's own descriptor tells of changes only, then `fall_asleep`; `serve` once it is
        readable.
        """
        return self._epoll_fd

    def serve(self) -> bool:
        """Takes in and delivers what has come, and serves watched descriptors. Does not block."""
        self._serve(steps.doze(self._epoll_fd, 0))
        return self._take_in()

    def _serve(self, events: Events) -> None:
        for fd, _ in events:
            ready = self._watched.get(fd)
            if ready is not None:
                ready()

    def _take_in(self) -> bool:
        taken = self._lanes is not None and self._read_lanes(self._lanes)
        if self._socket_is_silent and (
            not taken or clock.monotonic() - self._socket_looked_at < SOCKET_SECONDS
        ):
            return taken
        return self._read_socket() or taken

    def _read_lanes(self, lanes: Inbox) -> bool:
        taken = 0
        while taken < READ_BATCHES:
            batch = lanes.take(READ_RECORDS)
            if batch is None:
                break
            taken += 1
            sender, records, flags, error = batch
            if error is not None:
                log.warning("refused a record from process %s: %s", sender.hex(), error)
            if flags & STARVED:
                self._nudge(sender)
            if records:
                self._deliver(sender, records)
            if flags & STALLED and sender in self._early:
                self._take_early(lanes, sender)
        return taken > 0

    def _take_early(self, lanes: Inbox, sender: ProcessId) -> None:
        """The lane's mark for a message that has come by the socket was read."""
        early = self._early[sender]
        origin, records = early.popleft()
        if not early:
            del self._early[sender]
        lanes.resume(sender)
        self._deliver(origin, records)

    def _nudge(self, peer: ProcessId) -> None:
        """There is room in its lane to us again."""
        if self._exchange is not None:
            self._exchange.nudge(peer, self._bell_path(peer))

    def _read_socket(self) -> bool:
        inbox = self._inbox
        taken = 0
        self._socket_is_silent = False
        while taken < READ_FRAMES:
            # The descriptor of a ZeroMQ socket tells of changes only, from the look on that finds nothing.
            if not inbox.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                self._socket_is_silent = True
                break
            message = inbox.recv_multipart(zmq.NOBLOCK)
            taken += 1
            self._receive(message)
        self._socket_looked_at = clock.monotonic()
        return taken > 0

    def _receive(self, message: list[bytes]) -> None:
        if len(message) == 2 and len(message[0]) == PROCESS_ID_BYTES:
            sender = ProcessId(message[0])
            records = self._decode(sender, message[1])
            if records is not None:
                self._arrived(sender, sender, records)
        elif len(message) == 3 and len(message[0]) == len(message[1]) == PROCESS_ID_BYTES:
            self._relayed(ProcessId(message[0]), ProcessId(message[1]), message[2])
        else:
            log.warning(
                "refused a message of %d parts from %r: no process of this session",
                len(message),
                message[0][:40],
            )

    def _relayed(self, by: ProcessId, sender: ProcessId, data: bytes) -> None:
        """A frame of another node's process has come."""
        if by == manager_of(self.me) and self.is_elsewhere(sender):
            self._arrived(
                by, sender, self._decode(sender, data) or []
            )  # where it is refused, its mark counts even so
        else:
            log.warning("refused what process %s passes on: that is for the node manager to do", by.hex())

    def _decode(self, sender: ProcessId, data: bytes) -> Records | None:
        try:
            return frames.decode(data, SCHEMAS)
        except frames.FrameError as error:
            log.warning("refused %d bytes from process %s: %s", len(data), sender.hex(), error)
            return None

    def _arrived(self, by: ProcessId, origin: ProcessId, records: Records) -> None:
        """Something has come by the socket: it is the turn of what `by` has marked in its lane, if it has one."""
        lanes = self._lanes
        if lanes is None or not lanes.has_lane(by):
            self._deliver(origin, records)
            return
        self._early.setdefault(by, deque()).append((origin, records))
        if lanes.is_stalled(by):
            self._take_early(lanes, by)

    def _socket_speaks(self) -> None:
        self._socket_is_silent = False

    def _answer_bell(self) -> None:
        steps.empty(self._bell)

    def _answer_doorbell(self) -> None:
        steps.empty(self._doorbell)

    # --------------------------------------------------------------------------------------------------- closing

    def close(self) -> None:
        """Sends what waits (for at most LINGER_MS) and closes all sockets. Nobody may be reading, or sending."""
        if self.closed:
            return
        self._send_the_rest()
        self.closed = True
        self._inbox.close()
        for link in self._links.values():
            if link.socket is not None:
                link.socket.close()
        self._links.clear()
        self._waiting.clear()
        self.context.term()
        self._epoll.close()
        os.close(self._doorbell)
        if self._bell >= 0:
            os.close(self._bell)
        self._lanes = self._exchange = None
        self._watched.clear()

    def _send_the_rest(self) -> None:
        """Blocks until the lanes have room for what waits, or LINGER_MS are over."""
        end = clock.monotonic() + LINGER_MS / 1000
        self.flush()
        while any(link.lane is not None for link in self._waiting) and clock.monotonic() < end:
            if self.fall_asleep(True):
                steps.doze(self._epoll_fd, max(0.0, end - clock.monotonic()))
            self.wake_up()
            self._drain_bells()
            self.flush()

    def _drain_bells(self) -> None:
        self._answer_bell()
        self._answer_doorbell()
        if self._lanes is not None:
            self._lanes.take(0)  # a nudge is taken note of; what others write nobody reads any more
