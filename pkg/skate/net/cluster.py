"""The sockets between node managers: TCP, closed to all who have not the cluster's key.

State: a bound ROUTER, which others send to; a DEALER to each node (opened on first use, opened anew when its connection
ends) with what waits to leave and what is not acknowledged; who knocked lately and was not let in. Decides nothing:
core.delivery numbers what goes and comes, core.membership knows who lives.

A connection ends by TCP or when heartbeats are not answered; these are ZeroMQ's own, which its I/O thread answers, so a
busy node does not look dead. Each socket has a monitor that tells.

CURVE is set for these sockets only. Whoever connects proves that it has the cluster's client key, which is checked here
(ZeroMQ asks over an inproc socket, ZAP), and the one that is bound proves that it has the server key.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from skate._c.clock import monotonic
from skate.core.deadlines import Deadlines
from skate.core.delivery import Incoming, Outgoing
from skate.ids import NodeId, ProcessId, manager_of, node_of
from skate.net.callers import Callers, cut, listen_at, peer_of, shut_gate, strangers_allowed
from skate.net.cluster_key import Keys
from skate.net.mailbox import LINGER_MS, READ_FRAMES, SCARCE, SCARCE_SECONDS
from skate.net.node_mailbox import NodeMailbox
from skate.wire.cluster import (
    ACK,
    BULK,
    DATA,
    GREETING,
    LETTER_BYTES,
    LETTERS,
    Envelope,
    WireError,
    is_bulk,
    join_address,
    pack_envelope,
    parse_address,
    unpack_envelope,
    unpack_letter,
)

log = logging.getLogger("skate.net")

#: milliseconds between two heartbeats, and until one that is not answered ends the connection
HEARTBEAT_MS: Final = 1000
SILENCE_MS: Final = 3000
#: milliseconds between two attempts to connect: at first, and at most
RETRY_MS: Final = 100
RETRY_MOST_MS: Final = 1000
#: milliseconds that one attempt to connect may take
CONNECT_MS: Final = 1000
#: seconds that a letter to somebody who is no member may take
LETTER_SECONDS: Final = 5.0
#: events at the port taken in before others get a turn
READ_EVENTS: Final = 256

_ZAP = "inproc://zeromq.zap.01"
_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_OF_A_LINK = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | _FAILED
_OF_THE_DOOR = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | _FAILED


class Receiver(Protocol):
    """Who is told what comes. Called from the node manager's loop."""

    def on_letter(self, kind: bytes, sender: ProcessId, content: dict[str, Any]) -> None:
        """A letter has come; `content` is not checked."""

    def on_frame(self, sender: ProcessId, to: ProcessId, frame: bytes, bulk: memoryview | None) -> None:
        """A frame for a process of this node. It is of the node that it claims to be of, once and in order.

        `bulk`: the bytes of an object that came with it.
        """

    def on_introduced(self, node: NodeId, address: str) -> None:
        """A node has said where it is reached."""

    def on_link_up(self, address: str, node: NodeId | None) -> None:
        """There is a connection."""

    def on_link_lost(self, address: str, node: NodeId | None) -> None:
        """It has ended."""

    def is_dead(self, node: NodeId) -> bool:
        """Whether nothing that the node says counts any more."""


class Conversation:
    """What one other node and this one say to each other."""

    def __init__(self) -> None:
        self.outgoing: Outgoing[tuple[ProcessId, ProcessId, bytes, memoryview | None]] = Outgoing()
        self.incoming = Incoming()


class NodeLink:
    """The way to the node at an address."""

    def __init__(self, address: str, node: NodeId | None) -> None:
        self.address = address
        #: who is there; None until it has said so
        self.node = node
        self.up = False
        #: why there is no connection, as far as that is known
        self.trouble = "nobody answers there"
        #: whoever is there did not take our key, or we not his
        self.turned_away = False
        #: what leaves before all else
        self.letters: list[list[bytes]] = []
        #: the link is for one letter only, until then at most
        self.until: float | None = None
        #: zmq.Socket; None while there are no descriptors for one
        self.socket: Any = None
        self.monitor: zmq.Socket[bytes] | None = None


class ClusterSockets:
    """What a node manager says to others of its cluster, and hears from them."""

    def __init__(
        self, mailbox: NodeMailbox, receiver: Receiver, host: str, port: int, keys: Keys | None
    ) -> None:
        """Binds host:port (0: any port). zmq.ZMQError where it cannot. `keys` None: open to everybody."""
        self._mailbox = mailbox
        self._receiver = receiver
        self._me = mailbox.me
        self._node = node_of(mailbox.me)
        self._keys = keys
        self._context = mailbox.context
        #: address -> link
        self._links: dict[str, NodeLink] = {}
        self._by_node: dict[NodeId, NodeLink] = {}
        #: those for which there were no descriptors -> when to try again
        self._unopened: dict[NodeLink, float] = {}
        #: those that are for one letter only
        self._passing: dict[NodeLink, None] = {}
        self._conversations: dict[NodeId, Conversation] = {}
        #: nodes that something waits for, or has come from, since the last `step`
        self._busy: dict[NodeId, None] = {}
        #: node -> when to look at it again: something is to be acknowledged to it, or it had no room
        self._due: Deadlines[NodeId] = Deadlines()
        self._callers = Callers(strangers_allowed())
        #: what the port listens with, and whether its gate is shut
        self._listening = -1
        self._shut = False
        #: how the last handshake failed, until that connection has ended
        self._failed = 0
        self._zap: zmq.Socket[bytes] | None = None
        self._door = self._context.socket(zmq.ROUTER)
        self._more = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            self._bind(host, port)
        except zmq.ZMQError:
            self._close_sockets()
            raise
        self.address = join_address(host, parse_address(self._door.get_string(zmq.LAST_ENDPOINT)[6:])[1])

    def _bind(self, host: str, port: int) -> None:
        door = self._door
        self._configure(door, host)
        door.set(zmq.ROUTER_HANDOVER, 1)  # a node that connects again takes its name over
        if self._keys is not None:
            # Before the door opens: without anybody to ask, ZeroMQ lets everybody in.
            zap = self._zap = self._context.socket(zmq.ROUTER)
            zap.set(zmq.LINGER, 0)
            zap.bind(_ZAP)
            self._listen(zap, self._answer_zap)
            door.set(zmq.CURVE_SERVER, 1)
            door.set(zmq.CURVE_SECRETKEY, self._keys.server.secret)
            door.set(zmq.ZAP_DOMAIN, b"skate")
        self._door_monitor = door.get_monitor_socket(_OF_THE_DOOR)
        self._listen(self._door_monitor, self._watch_door)
        self._mailbox.watch(self._more, self._read_on)
        self._listen(door, self._read)
        try:
            listening = listen_at(host, port)
        except OSError as error:
            raise zmq.ZMQError(error.errno, error.strerror) from error
        port = listening.getsockname()[1]
        self._listening = listening.detach()
        door.set(zmq.USE_FD, self._listening)  # from here on it is ZeroMQ's
        door.bind(f"tcp://{join_address(host, port)}")

    def _listen(self, socket: zmq.Socket[bytes], ready: Callable[[], None]) -> None:
        """Calls `ready` when something may have come. It must read all there is: the descriptor tells of changes only,
        and only to who has read all that was there before."""
        self._mailbox.watch(socket.fileno(), ready)
        ready()

    def _configure(self, socket: zmq.Socket[bytes], host: str) -> None:
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.SNDHWM, 0)  # core.delivery says how much may be under way
        socket.set(zmq.RCVHWM, 0)
        socket.set(zmq.MAXMSGSIZE, LETTER_BYTES)
        socket.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.set(zmq.HEARTBEAT_TIMEOUT, SILENCE_MS)
        socket.set(zmq.HEARTBEAT_TTL, SILENCE_MS)
        socket.set(zmq.HANDSHAKE_IVL, SILENCE_MS)
        socket.set(zmq.IPV6, ":" in host)

    # ----------------------------------------------------------------------------------------------------- links

    def connect(self, address: str, node: NodeId | None = None) -> NodeLink:
        """Opens the link to the node at this address, unless there is one. ValueError where that is no address."""
        link = self._links.get(address)
        if link is None:
            parse_address(address)
            link = self._links[address] = NodeLink(address, None)
            self._open(link)
        link.until = None
        if node is not None and link.node is None:
            self._name(link, node)
        return link

    def know(self, address: str, node: NodeId) -> None:
        """The node at this address is that one; what waits for it can leave."""
        link = self.connect(address)
        if link.node != node:
            if link.node is not None:
                self._by_node.pop(link.node, None)
            self._name(link, node)

    def _name(self, link: NodeLink, node: NodeId) -> None:
        link.node = node
        self._by_node[node] = link
        if link.up:
            self._begin(link)

    def write(self, address: str, letter: list[bytes], *, now: float | None = None) -> None:
        """Sends a letter (see pack_letter) to whoever is at the address, as soon as there is a connection.

        With `now`, the address is of somebody whom nothing else will be said to: the link ends soon.
        """
        known = self._links.get(address)
        passing = known is None or known.until is not None
        link = self.connect(address)
        if now is not None and passing:
            link.until = now + LETTER_SECONDS
            self._passing[link] = None
        if link.up:
            link.socket.send_multipart(letter)
        else:
            link.letters = [letter]  # an older one says nothing that this does not

    def drop(self, node: NodeId) -> list[tuple[ProcessId, ProcessId, bytes, memoryview | None]]:
        """The node is dead, or no member: nothing is said to it any more. Gives what it may not have heard."""
        conversation = self._conversations.pop(node, None)
        self._busy.pop(node, None)
        self._due.set(node, None)
        link = self._by_node.pop(node, None)
        if link is not None:
            self._links.pop(link.address, None)
            self._close_link(link)
        return [] if conversation is None else conversation.outgoing.unacknowledged()

    def is_up(self, node: NodeId) -> bool:
        """Whether there is a connection to the node."""
        link = self._by_node.get(node)
        return link is not None and link.up

    def turned_away(self, address: str) -> bool:
        """Whether somebody answered at the address, and the two do not agree on a key."""
        link = self._links.get(address)
        return link is not None and link.turned_away

    def trouble(self, address: str) -> str:
        """Why there is no connection to the address; empty where there is one."""
        link = self._links.get(address)
        return "" if link is None or link.up else link.trouble

    def _open(self, link: NodeLink) -> None:
        """Begins to connect. ValueError where that is no address. Without descriptors, `step` tries again."""
        host, port = parse_address(link.address)
        try:
            link.socket = self._context.socket(zmq.DEALER)
            self._configure_link(link.socket, host)
            link.monitor = link.socket.get_monitor_socket(_OF_A_LINK)
            self._listen(link.monitor, lambda: self._watch_link(link))
            link.socket.connect(f"tcp://{join_address(host, port)}")
        except (zmq.ZMQError, OSError) as error:
            self._close_link(link)
            link.trouble = f"nobody can be reached at {link.address}: {error}"
            if error.errno not in SCARCE:
                self._links.pop(link.address, None)
                raise ValueError(link.trouble) from None
            log.warning("%s; tried again in %.0f s", link.trouble, SCARCE_SECONDS)
            self._unopened[link] = monotonic() + SCARCE_SECONDS

    def _configure_link(self, socket: zmq.Socket[bytes], host: str) -> None:
        self._configure(socket, host)
        socket.set(zmq.ROUTING_ID, self._me)
        socket.set(zmq.RECONNECT_IVL, RETRY_MS)
        socket.set(zmq.RECONNECT_IVL_MAX, RETRY_MOST_MS)
        socket.set(zmq.CONNECT_TIMEOUT, CONNECT_MS)
        if self._keys is not None:
            socket.set(zmq.CURVE_SERVERKEY, self._keys.server.public)
            socket.set(zmq.CURVE_PUBLICKEY, self._keys.client.public)
            socket.set(zmq.CURVE_SECRETKEY, self._keys.client.secret)

    def _open_what_is_not(self, now: float) -> float | None:
        """Links for which there were no descriptors; gives the time of the next look, or None."""
        for link in [link for link, at in self._unopened.items() if at <= now]:
            del self._unopened[link]
            if self._links.get(link.address) is link:
                self._open(link)
        return min(self._unopened.values(), default=None)

    def _close_link(self, link: NodeLink, linger: int = 0) -> None:
        link.up = False
        if link.monitor is not None:
            self._mailbox.unwatch(link.monitor.fileno())
            link.socket.disable_monitor()
            link.monitor.close(0)
        if link.socket is not None:
            link.socket.close(linger)
        link.monitor = link.socket = None

    def _watch_link(self, link: NodeLink) -> None:
        """What has become of the connection."""
        monitor = link.monitor
        while monitor is not None and link.monitor is monitor:
            try:
                event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            kind = event["event"]
            if kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected(link)
            elif kind == zmq.EVENT_DISCONNECTED:
                self._disconnected(link)
            elif kind & _FAILED:
                link.turned_away = True
                link.trouble = (
                    "somebody answers there, but did not let this node in: it has another cluster key, or none "
                    "(--insecure), or is no skate"
                )

    def _connected(self, link: NodeLink) -> None:
        link.up = True
        link.turned_away = False
        link.trouble = ""
        for letter in link.letters:
            link.socket.send_multipart(letter)
        link.letters.clear()
        if link.node is not None:
            self._begin(link)
        self._receiver.on_link_up(link.address, link.node)

    def _begin(self, link: NodeLink) -> None:
        """The link is up, and it is known who is there: says who speaks, and what may have been lost goes again."""
        assert link.node is not None
        greeting = Envelope(GREETING, self._me, manager_of(link.node), 0, 0)
        link.socket.send_multipart(pack_envelope(greeting, self.address.encode()))
        conversation = self._conversation(link.node)
        conversation.outgoing.on_connected()
        # The last acknowledgement may have been lost with the connection.
        self._send(
            link, Envelope(ACK, self._me, manager_of(link.node), 0, conversation.incoming.acknowledge())
        )
        self._busy[link.node] = None

    def _disconnected(self, link: NodeLink) -> None:
        if not link.up:
            return  # ZeroMQ tries again
        self._close_link(link)  # with what it has not sent: core.delivery has that too, and in order
        link.trouble = "the connection was lost"
        self._open(link)
        self._receiver.on_link_lost(link.address, link.node)

    # --------------------------------------------------------------------------------------------------- sending

    def put(
        self, sender: ProcessId, to: ProcessId, frame: bytes, bulk: memoryview | None, address: str
    ) -> None:
        """Has a frame go to a process of the node that is at this address. Leaves with the next `step`.

        `bulk`: bytes of an object to go with it. They are not copied: they must stay, and as they are, until the other
        node has acknowledged them.
        """
        node = node_of(to)
        link = self._links.get(address)
        if node not in self._by_node and (link is None or link.node is None):
            self.know(address, node)  # (else another node came there: this one is dead, as will be told)
        size = len(frame) if bulk is None else len(frame) + bulk.nbytes
        self._conversation(node).outgoing.put((sender, to, frame, bulk), size)
        self._busy[node] = None

    def step(self, now: float) -> float | None:
        """Sends what can leave; gives the time of the next look, or None. Does not block."""
        for node in (*self._busy, *self._due.take(now)):
            self._due.set(node, self._advance(node, now))
        self._busy.clear()
        due = self._due.next()
        if self._callers.shut:
            self._cut(self._callers.tick(now))
            if (again := self._callers.look_at()) is not None:
                due = again if due is None else min(due, again)
        if self._unopened and (again := self._open_what_is_not(now)) is not None:
            due = again if due is None else min(due, again)
        for link in list(self._passing):
            if link.until is None or self._links.get(link.address) is not link:
                del self._passing[link]
            elif link.until <= now or (link.up and not link.letters):
                del self._links[link.address], self._passing[link]
                self._close_link(link, LINGER_MS)
            else:
                due = link.until if due is None else min(due, link.until)
        return due

    def _advance(self, node: NodeId, now: float) -> float | None:
        """Sends what waits for a node; gives the time by which it is to have its acknowledgement."""
        link, conversation = self._by_node.get(node), self._conversation(node)
        if link is None or not link.up:
            return None  # `_begin` makes it busy again
        outgoing, incoming = conversation.outgoing, conversation.incoming
        while (sent := outgoing.next()) is not None:
            sender, to, frame, bulk = sent.what
            kind = DATA if bulk is None else BULK
            envelope = Envelope(kind, sender, to, sent.number, incoming.acknowledge())
            if not self._send(link, envelope, frame, bulk):
                outgoing.unsend()
                return now + RETRY_MS / 1000
        due = incoming.due(now)
        if due is not None and due <= now:
            self._send(link, Envelope(ACK, self._me, manager_of(node), 0, incoming.acknowledge()))
            due = None
        return due

    @staticmethod
    def _send(link: NodeLink, envelope: Envelope, frame: bytes = b"", bulk: memoryview | None = None) -> bool:
        more = 0 if bulk is None else zmq.SNDMORE
        try:
            link.socket.send_multipart(pack_envelope(envelope, frame), zmq.NOBLOCK | more)
        except zmq.Again:
            return False
        if bulk is not None:  # (whoever has sent the first part can send the others)
            link.socket.send(bulk, copy=False)
        return True

    def _conversation(self, node: NodeId) -> Conversation:
        conversation = self._conversations.get(node)
        if conversation is None:
            conversation = self._conversations[node] = Conversation()
        return conversation

    # --------------------------------------------------------------------------------------------------- reading

    def _read_on(self) -> None:
        os.eventfd_read(self._more)
        self._read()
        self._watch_door()

    def _read(self) -> None:
        """Takes in what has come; where that is much, the rest after others had a turn."""
        for _ in range(READ_FRAMES):
            try:
                message = self._door.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            name = message[0].bytes
            if self._callers.has_strangers:
                self._callers.proved(int(message[-1].get(zmq.SRCFD)))
            try:
                self._receive(name, message[1:])
            except WireError as error:
                log.warning("refused a message from %s: %s", _name_of(name), error)
            except Exception:
                log.exception("a message from %s could not be handled", _name_of(name))
        os.eventfd_write(self._more, 1)

    def _receive(self, name: bytes, came: Sequence[zmq.Frame]) -> None:
        bulk = came[2].buffer if len(came) == 3 and is_bulk(came[0].buffer) else None
        parts = [part.bytes for part in (came if bulk is None else came[:2])]
        if len(name) != len(self._me) or name != manager_of(name) or not parts:
            raise WireError("it comes from no node manager")
        peer = ProcessId(name)
        if parts[0] in LETTERS:
            self._receiver.on_letter(parts[0], peer, unpack_letter(parts))
            return
        envelope, frame = unpack_envelope(parts)
        node = node_of(peer)
        if node_of(envelope.sender) != node:
            raise WireError(f"it claims to be from {envelope.sender.hex()}, a process of another node")
        if node_of(envelope.to) != self._node:
            raise WireError(f"it is for {envelope.to.hex()}, a process of another node")
        if self._receiver.is_dead(node):
            return
        conversation = self._conversation(node)
        if envelope.acknowledged and not conversation.outgoing.on_acknowledged(envelope.acknowledged):
            raise WireError(f"it acknowledges number {envelope.acknowledged}, which was never sent")
        self._busy[node] = None
        if envelope.kind == GREETING:
            self._greeted(node, frame)
        elif envelope.kind in (DATA, BULK):
            size = len(frame) if bulk is None else len(frame) + bulk.nbytes
            if conversation.incoming.take(envelope.number, size, monotonic()):
                self._receiver.on_frame(envelope.sender, envelope.to, frame, bulk)
                if bulk is not None:
                    self._advance(node, monotonic())  # more is asked for while the rest is taken in

    def _greeted(self, node: NodeId, frame: bytes) -> None:
        try:
            address = join_address(*parse_address(frame.decode()))
        except ValueError as error:  # UnicodeDecodeError is one
            raise WireError(f"no greeting: {error}") from None
        self._receiver.on_introduced(node, address)
        if node not in self._by_node:  # the head may be reached at another address than it names
            self.know(address, node)  # to acknowledge what comes

    # ------------------------------------------------------------------------------------------------- who knocks

    def _answer_zap(self) -> None:
        """ZeroMQ asks whether to let somebody in who has a key."""
        assert self._zap is not None
        assert self._keys is not None
        wanted = z85.decode(self._keys.client.public)
        while True:
            try:
                asked = self._zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            # way back, "", version, request, domain, address, routing id, mechanism, key
            back, request = asked[: asked.index(b"") + 1], asked[asked.index(b"") + 1 :]
            version, number, _domain, host, _routing_id, mechanism, *credentials = request
            known = mechanism == b"CURVE" and credentials == [wanted]
            if not known:
                self._knocked(host.decode(errors="replace"), "its key is not the cluster's")
            status = [b"200", b"OK"] if known else [b"400", b"not the cluster's key"]
            self._zap.send_multipart([*back, version, number, *status, b"", b""])

    def _watch_door(self) -> None:
        """Who came, and who was sent away. A failure is followed at once by the end of that connection."""
        for _ in range(READ_EVENTS):
            try:
                event = parse_monitor_message(self._door_monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            kind, descriptor = event["event"], event["value"]
            if kind == zmq.EVENT_ACCEPTED:
                self._cut(self._callers.came(descriptor, peer_of(descriptor), monotonic()))
            elif kind in (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED):
                who = self._callers.gone(descriptor)
                if self._failed & ~zmq.EVENT_HANDSHAKE_FAILED_AUTH:  # of those, ZAP has told
                    self._knocked(who, "it has not the cluster's key, or is no skate of this protocol")
                self._failed = 0
            elif kind & _FAILED:
                self._failed = kind
        os.eventfd_write(self._more, 1)

    def _cut(self, strangers: list[tuple[int, str]]) -> None:
        """Ends these connections; shuts or opens the gate, as that is to be now."""
        for descriptor, peer in strangers:
            self._knocked(peer, "there are too many who have not shown the cluster's key")
            cut(descriptor, peer)
        if self._callers.shut != self._shut:
            self._shut = self._callers.shut
            shut_gate(self._listening, self._shut)

    def _knocked(self, who: str, why: str) -> None:
        self._callers.knocked(who, self.address, why, monotonic())

    # --------------------------------------------------------------------------------------------------- closing

    def close(self) -> None:
        """Sends what can leave (for at most LINGER_MS) and closes all sockets."""
        self.step(monotonic())
        for link in self._links.values():
            self._close_link(link, LINGER_MS if link.up else 0)
        self._links.clear()
        self._by_node.clear()
        self._close_sockets()

    def _close_sockets(self) -> None:
        for socket in (self._door, self._zap):
            if socket is not None:
                self._mailbox.unwatch(socket.fileno())
        if hasattr(self, "_door_monitor"):
            self._mailbox.unwatch(self._door_monitor.fileno())
            self._door.disable_monitor()
            self._door_monitor.close(0)
        self._mailbox.unwatch(self._more)
        os.close(self._more)
        self._door.close(0)
        if self._zap is not None:
            self._zap.close(0)


def _name_of(name: bytes) -> str:
    return name.hex() if len(name) <= 8 else f"{name[:8].hex()}…"
