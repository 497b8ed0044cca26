"""The mailbox of a node manager: what it says itself, and what it passes on between its processes and other nodes.

State: that of its mailbox, and what is held back until something is written down (`hold`). A frame of another node's
process waits in the same line as what the manager itself says to the receiver, so the two keep their order: where the
receiver has a lane, the frame goes by the socket, and a mark in the lane says when it is its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import zmq

from skate._c import frames
from skate._c.clock import monotonic
from skate._c.lanes import Lane
from skate.ids import NodeId, ProcessId, manager_of
from skate.net.mailbox import FRAME_RECORDS, Link, Mailbox, Relay

Forward = Callable[[ProcessId, ProcessId, bytes, "memoryview | None"], None]


class NodeMailbox(Mailbox):
    """The mailbox of a node manager: it passes frames on, between its own processes and those of other nodes."""

    #: what to do with a frame (sender, receiver, frame, bytes of an object) for a process of another node
    pass_on: Forward
    #: what is to be done before anything more is said; None: nothing
    _before: Callable[[], None] | None = None
    #: what says what was to be said since
    _held: list[Callable[[], Any]]

    def hold(self, before: Callable[[], None]) -> None:
        """From here on nothing leaves until the next flush has called `before`."""
        if self._before is None:
            self._before = before
            self._held = []

    def flush(self) -> None:
        while self._before is not None:
            self._before()
            held, self._before = self._held, None
            for say in held:
                say()
            self.poke()  # what is for other nodes leaves in the next turn
        super().flush()

    def post(self, to: ProcessId, record: bytes) -> bool:
        if self._before is not None:
            self._held.append(partial(self.post, to, record))
            return False
        if self.is_elsewhere(to):
            self.pass_on(self.me, to, frames.frame([record]), None)
            return False
        return super().post(to, record)

    def post_to_managers(self, nodes: Sequence[NodeId], record: bytes) -> None:
        """Queues a record for the managers of many other nodes, which have one frame in common."""
        if self._before is not None:
            self._held.append(partial(self.post_to_managers, nodes, record))
            return
        frame = frames.frame([record])
        for node in nodes:
            self.pass_on(self.me, manager_of(node), frame, None)

    def post_bulk(self, to: ProcessId, record: bytes, bulk: memoryview) -> None:
        """Queues a record for the manager of another node, and bytes of an object, which stay as they are, with it."""
        if self._before is not None:
            self._held.append(partial(self.post_bulk, to, record, bulk))
            return
        self.pass_on(self.me, to, frames.frame([record]), bulk)

    def forward(self, to: ProcessId, sender: ProcessId, frame: bytes) -> None:
        """Gives a frame of another node's process to one of this node, after all that was posted to it before."""
        if self._before is not None:
            self._held.append(partial(self.forward, to, sender, frame))
            return
        link = self._links.get(to) or self._open(to)
        link.records.append((sender, frame))  # type: ignore[arg-type]
        self._wait(link)

    def deliver_late(self, sender: ProcessId, to: ProcessId, record: bytes) -> None:
        """What a process of this node had for a manager, this one or another, when it ended: as if it came now."""
        frame = frames.frame([record])
        if to != self.me:
            self.pass_on(sender, to, frame, None)
        else:
            self.deliver_here(sender, frame)

    def deliver_here(self, sender: ProcessId, frame: bytes) -> None:
        """A frame that a process of this node had for a manager, and that is for this one."""
        if (records := self._decode(sender, frame)) is not None:
            self._deliver(sender, records)

    def _relayed(self, by: ProcessId, sender: ProcessId, data: bytes) -> None:
        self.pass_on(by, sender, data, None)  # from a process of this node it is the receiver that is named

    def _send_by_socket(self, link: Link) -> bool:
        waiting: list[Any] = link.records
        sent = 0
        try:
            while sent < len(waiting):
                end = sent + 1
                if type(waiting[sent]) is tuple:
                    gone = self._send_parts(link, waiting[sent])
                else:
                    most = min(len(waiting), sent + FRAME_RECORDS)
                    while end < most and type(waiting[end]) is bytes:
                        end += 1
                    gone = self._send_frame(link, waiting[sent:end])
                if not gone:
                    return False
                sent = end
        finally:
            del waiting[:sent]
        link.flushed_at = monotonic()
        return True

    def _send_in_order(self, link: Link, lane: Lane, record: Any) -> bool:
        if type(record) is not tuple:
            return super()._send_in_order(link, lane, record)
        if not link.marked and not lane.mark():
            return False
        link.marked = not self._send_parts(link, record)
        return not link.marked

    def _send_parts(self, link: Link, parts: tuple[ProcessId, bytes]) -> bool:
        if link.socket is None and not self._connected(link):
            return False
        assert link.socket is not None
        assert not isinstance(link.socket, Relay)
        try:
            link.socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True
