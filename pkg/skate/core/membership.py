"""Which nodes a cluster has: the head's register of who has joined, who is away, who is dead.

Pure. State: a Member a node. Events: on_hello, on_recovered, on_link_up, on_link_lost, on_goodbye, on_report, tick.
What the nodes know of it is `core.roster`. A node's life in the register:

    (hello) ──▶ JOINING ──its link is up──▶ ALIVE ◀──it is back──┐
                   │                          ├───link lost───▶ AWAY
                   │ JOIN_SECONDS             │ goodbye          │ GRACE_SECONDS
                   ▼                          ▼                  ▼
               forgotten                     DEAD ◀──────────────┘

Rules:

* A node that speaks another protocol or another minor version of Python is refused, with a text that names both.
* Death is for ever: who was taken for dead and says hello is refused, and ends. Its processes count as dead already.
* A node is listed once the head reaches it at the address that it named, so whoever is listed can be spoken to.
* Two nodes cannot have one address: where a new node has it, the old one is dead.
* The head that comes back (with a new id, since its processes died) asks those who say hello whom else they know. Who
  is named and does not come back within GRACE_SECONDS is dead; and so is who was written down by the last head
  (`on_recovered`), after RETURN_SECONDS.
* The head is whoever gets a node's hello at the address that the node was given: the answer repeats a word of it. So
  nobody else ends a node by a refusal, or has it follow another head.
* A node that has lost the head waits longer than the head waits for it, before it takes the head's node for dead. So
  where both live, the head decides. It never stops looking for a head at that address.
* Changes of the table leave together, at most every SHARE_SECONDS; in a large cluster, of more than MANY nodes, in
  proportion less often (`share_seconds`), since each node is told of all. Nodes report no more often than that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from skate.core.deadlines import Deadlines
from skate.core.roster import DEAD_SHOWN, Row
from skate.ids import NodeId
from skate.wire.cluster import parse_address

#: seconds that a node whose link is lost has to come back
GRACE_SECONDS: Final = 3.0
#: seconds that the nodes which a head remembers have to find it again when it comes back
RETURN_SECONDS: Final = 6.0
#: seconds that a node has, from its hello, to be reached by the head
JOIN_SECONDS: Final = 10.0
#: seconds between two messages to all nodes, and between two reports of a node, where there are few
SHARE_SECONDS: Final = 0.1
#: nodes with more of which changes of the table leave less often
MANY: Final = 100
#: of the word in a hello, so many are repeated
ASK_CHARACTERS: Final = 64

JOINING: Final = "JOINING"
ALIVE: Final = "ALIVE"
AWAY: Final = "AWAY"
DEAD: Final = "DEAD"


def share_seconds(nodes: int) -> float:
    """Seconds between two messages to all nodes, and between two reports of a node, in a cluster of so many."""
    return SHARE_SECONDS * max(1.0, nodes / MANY)


def ask_of(hello: Mapping[str, Any]) -> str:
    """The word in a hello, which the answer repeats."""
    return str(hello.get("ask", ""))[:ASK_CHARACTERS]


class Identity(NamedTuple):
    """What must be the same on all nodes, and what is only worth a line in the log."""

    protocol: int
    python: str  # "3.11"
    skate: str

    def differs_from(self, other: Mapping[str, Any]) -> str:
        """Why a node that says this of itself cannot join; empty where it can."""
        if other.get("protocol") != self.protocol:
            return (
                f"it speaks protocol {other.get('protocol')!r:.20} (skate {other.get('skate')!r:.20}), this cluster's "
                f"head protocol {self.protocol} (skate {self.skate}): install the same skate on both"
            )
        if other.get("python") != self.python:
            return (
                f"it runs Python {other.get('python')!r:.20}, this cluster's head Python {self.python}: functions and "
                "objects travel between nodes, so the minor version must be the same"
            )
        return ""


# -------------------------------------------------------------------------------------------------------- effects


class Welcome(NamedTuple):
    """Effect: tell the node that it is in, with the whole table."""

    node: NodeId
    ask: str  # the word of its hello


class Refuse(NamedTuple):
    """Effect: tell whoever is at this address that it is not let in."""

    node: str  # as it calls itself
    address: str
    why: str
    ask: str  # the word of its hello


class Share(NamedTuple):
    """Effect: tell all nodes about these rows."""

    rows: Sequence[Row]


class DropNode(NamedTuple):
    """Effect: the link to a node that is no member (any more) is of no use."""

    node: NodeId


Effect = Welcome | Refuse | Share | DropNode


# -------------------------------------------------------------------------------------------------------- the head


class Member:
    """A node as the register knows it."""

    __slots__ = ("met", "row", "state")

    def __init__(self, row: Row, state: str, *, met: bool = True) -> None:
        self.row = row
        self.state = state
        #: it has said hello to this head; until then it does not take this one for its head
        self.met = met

    def __repr__(self) -> str:
        return f"<Member {self.row.node.hex()} {self.state}>"


class Register:
    """All nodes of a cluster, as its head knows them. The head itself is one that never leaves."""

    def __init__(self, me: Row, identity: Identity) -> None:
        self.me = me.node
        self.identity = identity
        self.members: dict[NodeId, Member] = {me.node: Member(me, ALIVE)}
        #: address -> who is there, of those that are not dead
        self._at: dict[str, NodeId] = {me.address: me.node}
        #: when nodes are given up
        self._deadlines: Deadlines[NodeId] = Deadlines()
        #: how often all were told of changes: since then, all that has changed will be told
        self.shared = 0
        self._changed: dict[NodeId, None] = {}
        self._share_at = 0.0
        self._effects: list[Effect] = []

    def take_effects(self) -> Sequence[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def expected(self) -> list[NodeId]:
        """The other nodes that live, as far as is known, or are about to be listed: who is told of changes."""
        return [
            node
            for node, member in self.members.items()
            if member.state != DEAD and member.met and node != self.me
        ]

    def is_member(self, node: NodeId) -> bool:
        """Whether the node lives, as far as is known, or is about to be listed."""
        member = self.members.get(node)
        return member is not None and member.state != DEAD

    def rows(self) -> list[Row]:
        """The table: all that were ever listed."""
        return [member.row for member in self.members.values() if member.state != JOINING]

    def on_recovered(self, rows: Iterable[Row], now: float) -> None:
        """These nodes lived when the last head died."""
        for row in rows:
            if row.node not in self.members and row.address not in self._at:
                row = row._replace(head=False, available={}, demands=[])
                self._add(Member(row, AWAY, met=False), now + RETURN_SECONDS)
                self._note(row.node)

    def on_hello(self, hello: Mapping[str, Any], now: float) -> None:
        """A node says who it is, for the first time or again. `hello` is what it sent, not yet checked."""
        address, name = hello.get("address"), hello.get("node")
        address, name = address if isinstance(address, str) else "", name if isinstance(name, str) else ""
        ask = ask_of(hello)
        why = self.identity.differs_from(hello)
        if why:
            self._effects.append(Refuse(name, address, why, ask))
            return
        try:
            row = Row.from_plain(hello.get("row"))
            parse_address(row.address)
            known = [Row.from_plain(plain) for plain in hello.get("known") or ()]
        except (ValueError, TypeError) as error:
            self._effects.append(Refuse(name, address, f"its hello makes no sense: {error}", ask))
            return
        member = self.members.get(row.node)
        if (member is not None and member.state == DEAD) or row.node == self.me:
            why = f"it was taken for dead: {member.row.cause if member else ''}"
        elif row.address == self.members[self.me].row.address:
            why = f"its address {row.address} is the head's own"
        elif any(other.node == self.me and not other.alive for other in known):
            why = "it has taken the head's node for dead, so what they knew of each other is lost"
        if why:
            self._effects.append(Refuse(name, address, f"{why}. Start it again: it joins with a new id", ask))
            return
        self._hear_of(known, now)
        self._take_over(row)
        row = row._replace(head=False, alive=True, cause="")
        if member is None or member.state == JOINING:
            self._add(Member(row, JOINING), now + JOIN_SECONDS)
        else:
            self._at.pop(member.row.address, None)
            self._at[row.address] = row.node
            member.row, member.met = row, True
            self._note(row.node)
        self._effects.append(Welcome(row.node, ask))

    def deadline(self, node: NodeId) -> float | None:
        """When the node is given up; None: it is not."""
        return self._deadlines.get(node)

    def _add(self, member: Member, deadline: float | None) -> None:
        """One more, or another one for the same node; when it is given up."""
        node = member.row.node
        before = self.members.get(node)
        if before is not None:
            self._at.pop(before.row.address, None)
        self.members[node] = member
        if member.state != DEAD:
            self._at[member.row.address] = node
        self._deadlines.set(node, deadline)

    def _hear_of(self, known: Sequence[Row], now: float) -> None:
        """Nodes of before this head came back."""
        for row in known:
            if row.node in self.members:
                continue
            row = row._replace(head=False, available={}, demands=[])
            if row.address in self._at:
                row = row._replace(
                    alive=False, cause=row.cause or f"another node came at its address {row.address}"
                )
            state, deadline = (AWAY, now + GRACE_SECONDS) if row.alive else (DEAD, None)
            self._add(Member(row, state, met=False), deadline)
            self._note(row.node)

    def _take_over(self, row: Row) -> None:
        """Who had the address of this node before is dead."""
        node = self._at.get(row.address, row.node)
        if node != row.node:
            self._give_up(
                self.members[node], f"another node, {row.node.hex()}, came at its address {row.address}"
            )

    def on_link_up(self, node: NodeId) -> None:
        """The head reaches the node at its address."""
        member = self.members.get(node)
        if member is None or member.state == DEAD:
            return
        if member.state == JOINING:
            self._note(node)
        member.state = ALIVE
        self._deadlines.set(node, None)

    def on_link_lost(self, node: NodeId, now: float) -> None:
        """The connection has ended, or heartbeats are not answered."""
        member = self.members.get(node)
        if member is not None and member.state == ALIVE and node != self.me:
            member.state = AWAY
            self._deadlines.set(node, now + GRACE_SECONDS)

    def on_goodbye(self, node: NodeId, why: str) -> None:
        member = self.members.get(node)
        if member is not None and member.state != DEAD and node != self.me:
            self._give_up(member, f"it ended: {why}")

    def on_report(
        self,
        node: NodeId,
        available: Mapping[str, int],
        demands: Sequence[Any],
        total: Mapping[str, int] | None = None,
    ) -> None:
        """What a node has free, what waits there, and what it has, where that has changed."""
        member = self.members.get(node)
        if member is not None and member.state != DEAD:
            row = member.row
            total = row.total if total is None else total
            if (row.total, row.available, row.demands) == (total, available, demands):
                return  # a node says it anew to each head
            member.row = row._replace(total=total, available=available, demands=demands)
            if member.state != JOINING:
                self._note(node)

    def tick(self, now: float) -> float | None:
        """Time has passed; gives the time of the next look, or None."""
        for node in self._deadlines.take(now):
            member = self.members[node]
            cause = f"its link was lost, and it did not come back within {GRACE_SECONDS:g} s"
            if not member.met:
                cause = "it lived when the last head died, and did not find this one in time"
            self._give_up(member, cause)
        due = self._deadlines.next()
        if not self._changed:
            return due
        if now < self._share_at:
            return self._share_at if due is None else min(due, self._share_at)
        rows = [self.members[node].row for node in self._changed if node in self.members]
        self._changed.clear()
        self._share_at = now + share_seconds(len(self.members))
        self.shared += 1
        self._effects.append(Share(rows))
        return due

    def _give_up(self, member: Member, cause: str) -> None:
        node = member.row.node
        self._deadlines.set(node, None)
        self._at.pop(member.row.address, None)
        self._effects.append(DropNode(node))
        if member.state == JOINING:
            del self.members[node]
            return
        member.state = DEAD
        member.row = member.row._replace(alive=False, cause=cause, available={}, demands=[])
        self._note(node)
        self._forget_oldest()

    def _note(self, node: NodeId) -> None:
        self._changed[node] = None

    def _forget_oldest(self) -> None:
        dead = [
            node
            for node, member in self.members.items()
            if member.state == DEAD and node not in self._changed
        ]
        for node in dead[: max(0, len(dead) - DEAD_SHOWN)]:
            del self.members[node]

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        if self.members[self.me].state != ALIVE:
            raise AssertionError(f"the head is {self.members[self.me].state}")
        addresses: dict[str, NodeId] = {}
        for node, member in self.members.items():
            if member.row.node != node or member.row.alive != (member.state != DEAD):
                raise AssertionError(f"{member} has the row {member.row}")
            if (self.deadline(node) is not None) != (member.state in (JOINING, AWAY)):
                raise AssertionError(f"{member} is given up at {self.deadline(node)}")
            if member.state != DEAD:
                if member.row.address in addresses:
                    raise AssertionError(f"two nodes have the address {member.row.address}")
                addresses[member.row.address] = node
        if addresses != self._at:
            raise AssertionError(f"who is where: {self._at}, not {addresses}")
        self._deadlines.check()
