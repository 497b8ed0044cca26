"""Messages inside a node, connections between nodes, and what may go wrong with both.

State: the mailboxes by process, the addresses at which nodes are reached, the connections, the clogs and cuts. Messages
of one sender to one receiver keep their order. Inside a node nothing is lost but what a killed process had sent last;
between nodes a connection that ends loses what was on its way, and a clogged one delivers late.

`SimMailbox` is the product's own mailbox with other sockets under it; so is `SimClusterSockets`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import zmq
from skate.core.deadlines import Deadlines
from skate.ids import NodeId, ProcessId, node_of
from skate.net.callers import Callers
from skate.net.cluster import RETRY_MOST_MS, RETRY_MS, SILENCE_MS, ClusterSockets, NodeLink
from skate.net.cluster import log as cluster_log
from skate.net.mailbox import NEVER, Link, Mailbox
from skate.net.node_mailbox import NodeMailbox
from skate.wire.cluster import WireError

if TYPE_CHECKING:
    from simulator.world import World

#: seconds that a message takes inside a node, at least and at most
LOCAL: Final = (20e-6, 120e-6)
#: and between nodes
REMOTE: Final = (150e-6, 800e-6)
#: how often a killed process's last messages are lost, as far as they are under way
LOST_AT_KILL: Final = 0.3


class Network:
    """All links of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        #: process -> what to call with a message for it
        self.receivers: dict[ProcessId, Callable[[Any], None]] = {}
        #: address -> the sockets that are bound there
        self.bound: dict[str, SimClusterSockets] = {}
        self.connections: dict[Connection, None] = {}
        #: (from, to) -> until when nothing arrives
        self.clogs: dict[tuple[NodeId, NodeId], float] = {}
        #: (from, to) -> until when nothing gets through
        self.cuts: dict[tuple[NodeId, NodeId], float] = {}
        #: messages that were sent, between processes of a node and between nodes
        self.local = 0
        self.remote = 0
        self._last: dict[tuple[ProcessId, ProcessId], float] = {}
        #: processes that were killed -> receivers that miss what they said last
        self._killed: dict[ProcessId, dict[ProcessId, bool]] = {}

    # ----------------------------------------------------------------------------------------------- in one node

    def send(self, sender: ProcessId, to: ProcessId, message: list[Any]) -> None:
        """A message inside a node."""
        world = self.world
        self.local += 1
        world.note(message[-1], sender, to)
        low, high = LOCAL
        at = world.now + low + (high - low) * world.random.random()
        key = (sender, to)
        last = self._last.get(key, 0.0)
        if at <= last:
            at = last + 1e-9
        self._last[key] = at
        world.at(at, self._arrive, sender, to, message)

    def _arrive(self, sender: ProcessId, to: ProcessId, message: list[Any]) -> None:
        lost = self._killed.get(sender)
        if lost is not None and (
            lost.get(to) or lost.setdefault(to, self.world.random.random() < LOST_AT_KILL)
        ):
            return
        receive = self.receivers.get(to)
        if receive is not None:
            receive(message)

    def killed(self, process: ProcessId) -> None:
        """What it said last may be lost, from some message on."""
        self.receivers.pop(process, None)
        self._killed[process] = {}

    def forget(self, node: NodeId) -> None:
        """The node is no more."""
        for table in (self._last, self.clogs, self.cuts):
            for key in [key for key in table if node in (node_of(key[0]), node_of(key[1]))]:
                del table[key]  # type: ignore[attr-defined]
        self._killed = {process: lost for process, lost in self._killed.items() if node_of(process) != node}

    # --------------------------------------------------------------------------------------------- between nodes

    def is_cut(self, a: NodeId, b: NodeId) -> bool:
        return self.cuts.get((a, b), 0.0) > self.world.now

    def between(self, a: NodeId, b: NodeId) -> list[Connection]:
        return [each for each in self.connections if {each.node, each.peer} == {a, b}]

    def clog(self, a: NodeId, b: NodeId, seconds: float) -> None:
        """What a sends b arrives late. Too short for anybody to take the connection for lost."""
        assert seconds * 1000 < SILENCE_MS
        self.clogs[a, b] = self.world.now + seconds

    def reset(self, a: NodeId, b: NodeId) -> None:
        """The connections between them end, with what is on its way; both may connect again at once."""
        for connection in self.between(a, b):
            connection.lose(0.001 * self.world.random.random())

    def cut(self, a: NodeId, b: NodeId, seconds: float) -> None:
        """Nothing gets through between them for so long. They notice when heartbeats are not answered."""
        for pair in ((a, b), (b, a)):
            self.cuts[pair] = self.world.now + seconds
        for connection in self.between(a, b):
            connection.lose(SILENCE_MS / 1000)

    def heal(self) -> None:
        """All links are good again."""
        self.clogs.clear()
        self.cuts.clear()


class Part(NamedTuple):
    """A part of a message as it is received: what the product reads of a zmq.Frame."""

    bytes: bytes

    @property
    def buffer(self) -> memoryview:
        return memoryview(self.bytes)


def _parts_of(message: list[Any]) -> list[Part]:
    """As they are received. The pieces of a frame are that frame again: many nodes may be sent one, and share it."""
    head, *pieces = message
    whole = pieces[0].obj if len(pieces) > 1 and type(pieces[0]) is memoryview else None
    if whole is not None and all(type(piece) is memoryview and piece.obj is whole for piece in pieces):
        pieces = [whole]
    return [Part(bytes(part)) for part in (head, *pieces)]


class Connection:
    """A node's way to an address: what a DEALER is to the product."""

    def __init__(self, network: Network, sockets: SimClusterSockets, link: NodeLink) -> None:
        self.node = sockets.node
        #: who is there; None while there is no connection
        self.peer: NodeId | None = None
        self._network = network
        self._world = network.world
        self._sockets = sockets
        self._link = link
        self._target: SimClusterSockets | None = None
        self._under_way: deque[list[Part]] = deque()
        #: the parts so far of a message that is sent in several
        self._begun: list[Any] = []
        self._last = 0.0
        self._retry = RETRY_MS / 1000
        self._closed = False
        self._lost = False
        network.connections[self] = None
        self._world.after(self._delay(), self._try)

    def _delay(self) -> float:
        low, high = REMOTE
        return low + (high - low) * self._world.random.random()

    def _try(self) -> None:
        """Connects, or tries again later."""
        if self._closed:
            return
        target = self._network.bound.get(self._link.address)
        if target is None or target.node == self.node or self._network.is_cut(self.node, target.node):
            self._world.after(self._retry, self._try)
            self._retry = min(2 * self._retry, RETRY_MOST_MS / 1000)
            return
        self._target, self.peer = target, target.node
        self._sockets.call(self._sockets.on_connected, self._link, self)

    def send(self, part: Any, copy: bool = False) -> None:
        """The last part of a message, of which the others were sent with SNDMORE."""
        begun, self._begun = self._begun, []
        self.send_multipart([*begun, part])

    def send_multipart(self, parts: list[Any], flags: int = 0) -> None:
        network, world = self._network, self._world
        if flags & zmq.SNDMORE:
            self._begun = parts
            return
        if self._closed or self._target is None:
            return
        network.remote += 1
        world.note(parts[-1], self.node, self._target.node)
        at = max(
            world.now + self._delay(), self._last, network.clogs.get((self.node, self._target.node), 0.0)
        )
        self._last = at
        self._under_way.append(_parts_of(parts))
        world.at(at, self._arrive)

    def _arrive(self) -> None:
        """The next message of those under way: this one, unless the clock was turned by a clog meanwhile."""
        if self._lost or not self._under_way:
            return
        assert self._target is not None
        until = self._network.clogs.get((self.node, self._target.node), 0.0)
        if until > self._world.now:
            self._last = max(self._last, until)
            self._world.at(until, self._arrive)
            return
        self._target.receive(self._sockets.name, self._under_way.popleft())

    def lose(self, noticed_after: float) -> None:
        """The connection ends, and what is on its way is lost."""
        if self._lost or self._target is None:
            return
        self._lost = True
        self._under_way.clear()
        self._world.after(noticed_after, self._notice)

    def _notice(self) -> None:
        if not self._closed:
            self._sockets.call(self._sockets.on_disconnected, self._link, self)

    def close(self, linger: int | None = None) -> None:
        """By the product. What has left arrives."""
        self._closed = True
        self._network.connections.pop(self, None)


class SimClusterSockets(ClusterSockets):
    """The product's conversations between nodes, over simulated connections.

    `network` and `call` (which runs something in the node manager's own process) are those of the mailbox.
    """

    def __init__(self, mailbox: SimNodeMailbox, receiver: Any, host: str, port: int, keys: Any) -> None:
        self._mailbox = mailbox
        self._receiver = receiver
        self._me = mailbox.me
        self._node = node_of(mailbox.me)
        self._keys = keys
        self._links: dict[str, NodeLink] = {}
        self._by_node: dict[NodeId, NodeLink] = {}
        self._callers = Callers(1)
        self._unopened: dict[NodeLink, float] = {}
        self._passing: dict[NodeLink, None] = {}
        self._conversations: dict[NodeId, Any] = {}
        self._busy: dict[NodeId, None] = {}
        self._due: Deadlines[NodeId] = Deadlines()
        self.address = f"{host}:{port}"
        self.network = mailbox.network
        self.call = mailbox.call
        self.network.bound[self.address] = self

    @property
    def node(self) -> NodeId:
        return self._node

    @property
    def name(self) -> ProcessId:
        """By which others know who sends."""
        return self._me

    def conversations(self) -> dict[NodeId, Any]:
        return self._conversations

    def _open(self, link: NodeLink) -> None:
        link.socket = Connection(self.network, self, link)  # type: ignore[assignment]

    def _close_link(self, link: NodeLink, linger: int = 0) -> None:
        link.up = False
        link.socket.close(linger)

    def on_connected(self, link: NodeLink, connection: Connection) -> None:
        if link.socket is connection:
            self._connected(link)

    def on_disconnected(self, link: NodeLink, connection: Connection) -> None:
        if link.socket is connection:
            self._disconnected(link)

    def receive(self, name: ProcessId, parts: list[Any]) -> None:
        """A message has arrived: it is read in the node manager's next turn."""
        self.call(self._take, name, parts)

    def _take(self, name: ProcessId, parts: list[Any]) -> None:
        try:
            self._receive(name, parts)
        except WireError as error:
            cluster_log.warning("refused a message from %s: %s", name.hex(), error)
        except Exception:
            cluster_log.exception("a message from %s could not be handled", name.hex())

    def _close_sockets(self) -> None:
        if self.network.bound.get(self.address) is self:
            del self.network.bound[self.address]

    def died(self, noticed_after: float) -> None:
        """The process is gone: so are its connections, and others' to it, which they notice so many seconds later."""
        self._close_sockets()
        for connection in list(self.network.connections):
            if connection.node == self._node:
                connection.lose(noticed_after)
                connection.close()
            elif connection.peer == self._node:
                connection.lose(noticed_after)


class _Socket:
    """Where a link inside a node has its DEALER."""

    __slots__ = ("_mailbox", "_to")

    def __init__(self, mailbox: _Simulated, to: ProcessId) -> None:
        self._mailbox = mailbox
        self._to = to

    def send(self, frame: bytes, flags: int) -> None:
        self.send_multipart((frame,), flags)

    def send_multipart(self, parts: Any, flags: int) -> None:
        mailbox = self._mailbox
        if not mailbox.closed:
            mailbox.network.send(mailbox.me, self._to, [mailbox.me, *parts])

    def close(self, linger: int | None = None) -> None: ...


class _Simulated:
    """The parts of a mailbox that touch the kernel, without it. Everything goes as it does without lanes."""

    network: Network

    def open(self, me: ProcessId, deliver: Callable[..., None]) -> None:
        self.me = me
        self._folder = ""
        self._deliver = deliver
        self._links: dict[ProcessId, Link] = {}
        self._waiting: list[Link] = []
        self._waits_since = NEVER
        self._wait_began = 0.0
        self.look_at = self._scarce_since = None
        self._leaving = False
        self._watched: dict[int, Callable[[], None]] = {}
        self._early: dict[Any, Any] = {}
        self._exchange = self._lanes = None
        self.closed = False

    def _open(self, to: ProcessId) -> Link:
        link = self._links[to] = Link(to, None)
        return link

    def _connect(self, to: ProcessId) -> Any:
        if self.is_elsewhere(to):  # type: ignore[attr-defined]
            return Mailbox._connect(self, to)  # type: ignore[arg-type]
        return _Socket(self, to)

    def has_inbox(self, peer: ProcessId) -> bool:
        return self.is_elsewhere(peer) or peer in self.network.receivers  # type: ignore[attr-defined]

    def bury(self, peer: ProcessId, living: Any) -> None: ...

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        self._watched[fd] = ready

    def unwatch(self, fd: int) -> None:
        self._watched.pop(fd, None)

    def poke(self) -> None: ...

    def spin(self) -> bool:
        return False

    def take(self, message: Any) -> None:
        """What has arrived."""
        self._receive(message)  # type: ignore[attr-defined]

    def close(self) -> None:
        if not self.closed:
            self.flush()  # type: ignore[attr-defined]
            self.closed = True


class SimMailbox(_Simulated, Mailbox):
    """That of a driver or worker."""

    def __init__(self, network: Network, me: ProcessId, deliver: Callable[..., None]) -> None:
        self.network = network
        self.open(me, deliver)


class SimNodeMailbox(_Simulated, NodeMailbox):
    """That of a node manager. `call` runs something in the manager's process, as if a descriptor were readable."""

    def __init__(
        self, network: Network, call: Callable[..., None], me: ProcessId, deliver: Callable[..., None]
    ) -> None:
        self.network = network
        self.call = call
        #: for how long the manager would sleep now (None: until something comes); set by its loop
        self.slept = False
        self.timeout: float | None = None
        self.open(me, deliver)

    def read(self, timeout: float | None, *, idle: bool = True) -> bool:
        self.slept, self.timeout = True, timeout
        return False
