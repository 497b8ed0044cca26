"""What every node of a cluster knows of the others: the table of nodes, as the head tells it.

Pure. State: a row a node, which node the head's is and how long it has been away, the nodes that something waits for
though nobody has told of them, the word of its hello. Events: on_asked, take_answer, on_welcome, on_refused, on_rows,
on_introduced, on_unknown, on_head_up, on_head_lost, on_head_goodbye, on_self_changed, tick. `core.membership` is the
head's side, and says the rules.

A head that comes back has another node id, since its processes died; but it says on which nodes the head was before
(`former`), and what is for the manager of one of these is for its own (`home`). Where a head is to come back (it has
said so, `head_returns`), those of its detached actors that live here are kept until another head has answered.

A scheduler reads `living()`: what each node has, has free, what waits there, its labels. A node that is in no cluster
has a table of itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from skate.ids import NODE_ID_BYTES, NodeId, ProcessId, manager_of, node_of
from skate.wire.cluster import parse_address

#: seconds after which a node takes the head's node for dead
HEAD_SECONDS: Final = 10.0
#: seconds that what is for an unknown node is kept: the head's word of it may be on its way
UNKNOWN_SECONDS: Final = 5.0
#: dead nodes that the table still shows
DEAD_SHOWN: Final = 1000


class Row(NamedTuple):
    """A node in the table of nodes."""

    node: NodeId
    address: str  #: host:port of its manager; empty: it is in no cluster
    hostname: str
    pid: int
    folder: str  #: its session's, on its own machine
    head: bool
    total: Mapping[str, int]  #: resource name -> units
    labels: Mapping[str, str]
    available: Mapping[str, int]
    demands: Sequence[Any]  #: what waits there: [({resource name: amount}, how many, feasible), …]
    alive: bool
    cause: str  #: why it is dead

    def to_plain(self) -> dict[str, Any]:
        """As messages and JSON carry it."""
        return self._asdict() | {
            "node": self.node.hex(),
            "total": dict(self.total),
            "labels": dict(self.labels),
            "available": dict(self.available),
            "demands": list(self.demands),
        }

    @classmethod
    def from_plain(cls, plain: Any) -> Row:
        """ValueError where it is no row, or a field is missing or of another type. Unknown fields are left out."""
        if not isinstance(plain, dict):
            raise ValueError(f"a row of the table of nodes is no {type(plain).__name__}")
        fields: dict[str, Any] = {name: plain.get(name) for name in cls._fields}
        for name, kind in _KINDS.items():
            if type(fields[name]) is not kind:
                raise ValueError(f"{name} of a node must be {kind.__name__}, not {fields[name]!r:.40}")
        fields["node"] = node_id(fields["node"])
        if fields["address"]:
            parse_address(fields["address"])
        for name in ("total", "available"):
            _check_amounts(name, fields[name])
        for pair in fields["labels"].items():
            if not all(isinstance(text, str) for text in pair):
                raise ValueError(f"a label is text, not {pair!r:.60}")
        check_demands(fields["demands"])
        return cls(**fields)


def rows_from(plain: Iterable[Any]) -> list[Row]:
    """Rows as a message tells of them. ValueError where one is none."""
    return [Row.from_plain(row) for row in plain]


_KINDS: Final = {
    "node": str, "address": str, "hostname": str, "pid": int, "folder": str, "head": bool, "total": dict,
    "labels": dict, "available": dict, "demands": list, "alive": bool, "cause": str,
}  # fmt: skip


def node_id(text: str) -> NodeId:
    """ValueError where the text is no node's id."""
    node = bytes.fromhex(text)
    if len(node) != NODE_ID_BYTES or not any(node):
        raise ValueError(f"{text!r:.40} is no node's id")
    return NodeId(node)


def _check_amounts(what: str, amounts: Any) -> None:
    if not isinstance(amounts, dict):
        raise ValueError(f"{what} of a node must be a dict, not {amounts!r:.60}")
    for name, units in amounts.items():
        if not isinstance(name, str) or type(units) is not int or units < 0:
            raise ValueError(f"{what} of a node: {name!r:.40} is {units!r:.40}")


def check_report(available: Any, demands: Any = (), total: Any = None) -> None:
    """ValueError where they are not what a node may report."""
    _check_amounts("available", available)
    _check_amounts("total", {} if total is None else total)
    if not isinstance(demands, list | tuple):
        raise ValueError(f"demands are a list, not {demands!r:.60}")
    check_demands(demands)


def check_demands(demands: Iterable[Any]) -> None:
    for demand in demands:
        if not isinstance(demand, list | tuple) or len(demand) != 3 or not isinstance(demand[0], dict):
            raise ValueError(f"what waits at a node is no {demand!r:.60}")
        if type(demand[1]) is not int or type(demand[2]) is not bool:
            raise ValueError(f"what waits at a node is no {demand!r:.60}")


class BuryNode(NamedTuple):
    """Effect: the node is dead; whoever deals with its processes must hear."""

    node: NodeId
    cause: str
    #: the node was the head's, and the head may come back, on another one
    returns: bool = False


class SendHeld(NamedTuple):
    """Effect: the address of a node is known now; what was kept for it can leave."""

    node: NodeId


class Leave(NamedTuple):
    """Effect: this node must end."""

    why: str


Effect = BuryNode | SendHeld | Leave


class Roster:
    """The table of nodes as one node knows it. A node that is in no cluster has a table of itself."""

    def __init__(self, me: Row, *, in_cluster: bool) -> None:
        self.me = me.node
        #: there are others, or may be
        self.in_cluster = in_cluster
        #: node -> its row; the order is that of joining
        self.rows: dict[NodeId, Row] = {me.node: me}
        #: rises when the head has told of other nodes
        self.version = 0
        #: how many others live
        self.others = 0
        #: other nodes of which there is news since `take_changed`; None: all
        self._changed: dict[NodeId, None] | None = {}
        #: those that are dead, in the order of their deaths
        self._dead: dict[NodeId, None] = {}
        #: the node of the head; None until it has answered
        self.head: NodeId | None = me.node if me.head else None
        #: the nodes on which it was before, the latest last
        self.former: tuple[NodeId, ...] = ()
        #: the head writes down what it must know when it comes back
        self.head_returns = False
        #: the node of a head that is dead and may come back
        self.awaited: NodeId | None = None
        #: why the head did not let this node in
        self.refused = ""
        self._head_deadline: float | None = None
        #: the word of the hello that is not answered yet
        self._ask = ""
        #: nodes that nobody knows -> until when what is for them is kept
        self._unknown: dict[NodeId, float] = {}
        #: where nodes said they are, before the head told of them
        self._introduced: dict[NodeId, str] = {}
        #: what `living` gives, until the table changes
        self._living: list[Row] | None = None
        self._effects: list[Effect] = []

    def take_effects(self) -> Sequence[Effect]:
        effects, self._effects = self._effects, []
        return effects

    # ------------------------------------------------------------------------------------------------ what it tells

    def living(self) -> list[Row]:
        """The nodes that live, this one among them. The same list as before where the table has not changed."""
        if self._living is None:
            self._living = [row for row in self.rows.values() if row.alive]
        return self._living

    def take_changed(self) -> list[Row]:
        """The rows of other nodes, dead ones among them, of which there is news since this was called last."""
        changed, self._changed = self._changed, {}
        if changed is None:
            return [row for row in self.rows.values() if row.node != self.me]
        return [self.rows[node] for node in changed if node in self.rows]

    def address(self, node: NodeId) -> str | None:
        """Where to reach the node; None where that is not known."""
        row = self.rows.get(node)
        return row.address if row is not None else self._introduced.get(node)

    def is_dead(self, node: NodeId) -> bool:
        row = self.rows.get(node)
        return row is not None and not row.alive

    def home(self, identifier: bytes) -> ProcessId:
        """The node manager that speaks for a process or actor: its node's; or the head's, where the head was there."""
        if self.head is not None and node_of(identifier) in self.former:
            return manager_of(self.head)
        return manager_of(identifier)

    # ------------------------------------------------------------------------------------------------------- events

    def on_self_changed(
        self, total: Mapping[str, int], available: Mapping[str, int], demands: Sequence[Any]
    ) -> None:
        """What this node has, what of it is free, and what waits here."""
        self._living = None
        row = self.rows[self.me]
        self.rows[self.me] = row._replace(total=total, available=available, demands=demands)

    def on_asked(self, ask: str) -> None:
        """This node has said hello at the head's address, with a word that it tells nobody else."""
        self._ask = ask

    def take_answer(self, to: Any) -> None:
        """ValueError where a letter with this word is no answer to what was asked last, or not the first one."""
        if not self._ask or to != self._ask:
            raise ValueError("it answers no hello of this node's")
        self._ask = ""

    def on_welcome(
        self, head: NodeId, rows: Iterable[Row], former: Iterable[NodeId] = (), *, returns: bool = False
    ) -> None:
        """The head has let this node in, or back in. `returns`: should it die, it may come back."""
        before, self.head = self.head, head
        self.former, self.head_returns = tuple(former), returns
        self._head_deadline = None
        if before is not None and before != head:
            self._bury(before, "the head was started again at its address", returns=before in self.former)
        self.on_rows(rows)

    def on_refused(self, why: str) -> None:
        self.refused = why
        self._effects.append(Leave(f"the head of the cluster refused this node: {why}"))

    def on_rows(self, rows: Iterable[Row]) -> None:
        """The head tells of nodes."""
        table, news = self.rows, 0
        for row in rows:
            node = row.node
            if node == self.me:
                if not row.alive:
                    self._effects.append(Leave(f"the head has taken this node for dead: {row.cause}"))
                continue
            known = table.get(node)
            if known is not None and not known.alive:
                continue  # dead for ever
            news += 1
            if row.alive:
                if known is None:
                    self.others += 1
                table[node] = row
                if self._unknown:
                    self._found(node)
                if self._changed is not None:
                    self._changed[node] = None
            elif known is not None:
                self._bury(node, row.cause, row)
            else:
                table[node] = row
                self._dead[node] = None
                self._introduced.pop(node, None)
                self._unknown.pop(node, None)
                self._effects.append(BuryNode(node, row.cause))  # a process here may know of it
        if news:
            self.version += 1
            self._living = None
        if self._changed is not None and len(self._changed) > len(table) / 2:
            self._changed = None
        self._forget_oldest()

    def on_introduced(self, node: NodeId, address: str) -> None:
        """A node has said where it is; the head's word of it is on its way."""
        if node != self.me and node not in self.rows:
            self._introduced[node] = address
            self._found(node)

    def on_unknown(self, node: NodeId, now: float) -> None:
        """There is something for a node that nobody has told of."""
        if not self.in_cluster:
            self._effects.append(BuryNode(node, "it is in no cluster with this one"))
        elif node not in self._unknown:
            self._unknown[node] = now + UNKNOWN_SECONDS

    def on_head_up(self) -> None:
        """There is a connection to the head's address."""
        self._head_deadline = None

    def on_head_lost(self, now: float) -> None:
        if self.head is not None and self.head != self.me and self._head_deadline is None:
            self._head_deadline = now + HEAD_SECONDS

    def on_head_goodbye(self, why: str, *, returns: bool = False) -> None:
        """The head ends, and its node with it. Another may come at its address."""
        if self.head is not None and self.head != self.me:
            self._bury(self.head, f"it ended: {why}", returns=returns)

    def tick(self, now: float) -> float | None:
        """Time has passed; gives the time of the next look, or None."""
        if self._head_deadline is not None and self._head_deadline <= now:
            self._head_deadline = None
            assert self.head is not None
            self._bury(
                self.head,
                f"the link to the head was lost, and it did not come back within {HEAD_SECONDS:g} s",
                returns=self.head_returns,
            )
        for node, deadline in list(self._unknown.items()):
            if deadline <= now:
                del self._unknown[node]
                self._effects.append(BuryNode(node, "no such node is in the cluster"))
        times = [*self._unknown.values()]
        if self._head_deadline is not None:
            times.append(self._head_deadline)
        return min(times, default=None)

    def _found(self, node: NodeId) -> None:
        if self._unknown.pop(node, None) is not None:
            self._effects.append(SendHeld(node))

    def _bury(self, node: NodeId, cause: str, row: Row | None = None, *, returns: bool = False) -> None:
        known = self.rows.get(node)
        if known is None or not known.alive or node == self.me:
            return
        self._living = None
        self.others -= 1
        self._dead[node] = None
        if self._changed is not None:
            self._changed[node] = None
        self.rows[node] = (row or known)._replace(alive=False, cause=cause, available={}, demands=[])
        self._introduced.pop(node, None)
        if returns:
            self.awaited = node
        self._effects.append(BuryNode(node, cause, returns))

    def _forget_oldest(self) -> None:
        while len(self._dead) > DEAD_SHOWN:
            node = next(iter(self._dead))
            del self._dead[node], self.rows[node]

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        if self._living not in (None, [row for row in self.rows.values() if row.alive]):
            raise AssertionError("the list of those that live is not that of the table")
        living = sum(row.alive for row in self.rows.values())
        if self.others != living - 1 or self._dead.keys() != {
            n for n, row in self.rows.items() if not row.alive
        }:
            raise AssertionError(
                f"{self.others} others are counted, {len(self._dead)} dead of {len(self.rows)}"
            )
        if not self.rows[self.me].alive:
            raise AssertionError("this node counts itself as dead")
        for node, row in self.rows.items():
            if row.node != node:
                raise AssertionError(f"{row} stands under {node.hex()}")
        for node in self._unknown:
            if node in self.rows or node in self._introduced:
                raise AssertionError(f"{node.hex()} is known and unknown")
