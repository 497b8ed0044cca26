"""A node in its cluster: passes frames on between its processes and those of other nodes, joins, hears of deaths.

State: the roster (and on the head the register), which process is known to which nodes, what waits for nodes that
nobody knows yet; the sockets, where the node is in a cluster. A node that is in none runs the same code without
sockets: what is for another node's process finds that there is no such node.

What decides is core.membership, core.roster, core.delivery and core.acquaintances.
"""

from __future__ import annotations

import json
import logging
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import zmq

from skate._c import frames
from skate._c.clock import monotonic
from skate.config import VERSION
from skate.core import membership, roster
from skate.core.acquaintances import Acquaintances
from skate.core.membership import DropNode, Identity, Refuse, Register, Share, Welcome, ask_of, share_seconds
from skate.core.roster import BuryNode, Leave, Roster, Row, SendHeld, check_report, node_id, rows_from
from skate.ids import PROCESS_ID_BYTES, NodeId, ProcessId, manager_of, node_of
from skate.net.cluster import ClusterSockets
from skate.net.cluster_key import keys_of
from skate.net.node_mailbox import NodeMailbox
from skate.node.errors import CannotJoin
from skate.wire import checks
from skate.wire import messages as m
from skate.wire.cluster import HELLO, REFUSED, WELCOME, addressed, pack_letter
from skate.wire.messages import SCHEMAS, encode

if TYPE_CHECKING:
    from skate.node.ledger import NodeLedger
    from skate.node.recovery import HeadRecovery, Survivors

log = logging.getLogger("skate.node")

#: seconds that the head may take to let a node in
JOIN_SECONDS: Final = 10.0
#: and for how long a node goes on knocking that was turned away
TURNED_AWAY_SECONDS: Final = 2.0
#: seconds between two looks at how full the store is, where nothing else wakes the node
STORE_SECONDS: Final = 1.0
#: frames that are kept for one node that nobody knows yet
HELD_FRAMES: Final = 10_000


class Hooks(NamedTuple):
    """What the node manager does for its cluster."""

    #: whether a process of this node lives
    lives: Callable[[ProcessId], bool]
    #: (sender, records): something is for the node manager itself, from a process of another node
    deliver: Callable[[ProcessId, list[tuple[int, tuple[Any, ...]]]], None]
    #: a process of another node is dead
    process_died: Callable[[m.ProcessDied], None]
    #: another node is dead
    node_died: Callable[[m.NodeDied], None]
    #: this node must end
    end: Callable[[str], None]
    #: (units that there are, units that are free, demands), with those of placement groups
    measure: Callable[[], tuple[dict[str, int], dict[str, int], list[Any]]]
    #: (node, units): to the head, what another node has free
    reported: Callable[[NodeId, dict[str, int]], None]
    #: tells all processes of this node
    tell_all: Callable[[Any], None]
    #: this node has a head, the first or another one
    head_came: Callable[[], None]


def identity() -> Identity:
    """What this node speaks."""
    return Identity(frames.VERSION, f"{sys.version_info.major}.{sys.version_info.minor}", VERSION)


class NodeCluster:
    """The cluster, as one node manager has to do with it. `survivors` is set once the node has them, and where it is
    the head of a cluster that is to come back `recovery` and `ledger`."""

    survivors: Survivors
    recovery: HeadRecovery | None = None
    ledger: NodeLedger | None = None

    def __init__(self, row: Row, config: dict[str, Any] | None, mailbox: NodeMailbox, hooks: Hooks) -> None:
        """`row` says what this node is; `config` is api.session's `cluster_config`, None for a node in no cluster.

        OSError where the port cannot be bound.
        """
        self.me = mailbox.me
        self._mailbox = mailbox
        self._hooks = hooks
        self._identity = identity()
        self._acquaintances = Acquaintances()
        self._held: dict[NodeId, list[tuple[ProcessId, ProcessId, bytes, memoryview | None]]] = {}
        #: processes of this node that have said something to the dead, and to whom: a process, or one of that node
        self._spoke_to_dead: dict[tuple[ProcessId, ProcessId | NodeId], None] = {}
        #: processes of this node that are dead, and nodes to which something of theirs was passed on even so
        self._last_words: dict[tuple[ProcessId, NodeId], None] = {}
        #: when to look next at what is free here, and what the head was told of it
        self._look_at = 0.0
        self._told: tuple[dict[str, int], dict[str, int], list[Any]] | None = None
        #: as head: the letter of welcome, and what it hangs on
        self._welcomes: tuple[Any, list[bytes]] | None = None
        self._head_address: str | None = None
        self._sockets: ClusterSockets | None = None
        mailbox.pass_on = self.pass_on
        if config is not None:
            self._head_address = config["head"]
            keys = None if config["key"] is None else keys_of(config["key"])
            try:
                self._sockets = ClusterSockets(mailbox, self, config["host"], config["port"], keys)
            except zmq.ZMQError as error:
                place = f"{config['host']}:{config['port']}" if config["port"] else config["host"]
                raise CannotJoin(
                    f"{place} cannot be bound: {error}. Is --node-ip-address one of this machine's, and the port free?"
                ) from None
            row = row._replace(address=self._sockets.address, head=self._head_address is None)
        self.roster = Roster(row, in_cluster=config is not None)
        #: the head that this node has told what it has
        self._head: NodeId | None = None
        self.register = Register(row, self._identity) if row.head else None
        #: what comes from other nodes' managers
        self._handlers: dict[int, Callable[..., None]] = {
            m.NodesChanged.code: self._nodes_changed,  # type: ignore[attr-defined]
            m.NodeReport.code: self._reported,  # type: ignore[attr-defined]
            m.Goodbye.code: self._goodbye,  # type: ignore[attr-defined]
            m.ProcessDied.code: self._process_died,  # type: ignore[attr-defined]
        }
        if self._sockets is not None and self._head_address is not None:
            self._sockets.connect(self._head_address)

    def handle(self, handlers: Mapping[int, Callable[..., None]]) -> None:
        """More of what the managers of other nodes may say: code -> what to call with the node and the fields."""
        self._handlers.update(handlers)

    def come_back(self, ledger: NodeLedger, recovery: HeadRecovery) -> None:
        """This head takes up what the last one has left, before anybody is heard."""
        assert self.register is not None
        self.ledger, self.recovery = ledger, recovery
        recovery.begin(self.roster, self.register.on_recovered)
        self.roster.on_rows(self.register.rows())  # before anybody looks who lives

    @property
    def address(self) -> str:
        """Where others reach this node; empty where it is in no cluster."""
        return "" if self._sockets is None else self._sockets.address

    @property
    def joined(self) -> bool:
        """Whether this node is in its cluster (or is in none)."""
        return not self.roster.in_cluster or self.roster.head is not None

    @property
    def turned_away(self) -> bool:
        """Whether there is no use in waiting to join: somebody at the head's address does not take this node's key."""
        assert self._sockets is not None
        assert self._head_address is not None
        return self._sockets.turned_away(self._head_address)

    def why_not_joined(self) -> str:
        """For whoever has waited for long enough."""
        assert self._sockets is not None
        assert self._head_address is not None
        why = self._sockets.trouble(self._head_address) or (
            f"it lets this node in, but does not answer. It must reach this node at {self.address}: is that the "
            "right --node-ip-address, and may it connect there?"
        )
        return f"the head at {self._head_address}: {why}"

    def rows(self) -> list[dict[str, Any]]:
        """The table of nodes, with what is free here now."""
        self.roster.on_self_changed(*self._hooks.measure())
        return [row.to_plain() for row in self.roster.rows.values()]

    # ------------------------------------------------------------------------------------------------ passing on

    def pass_on(self, sender: ProcessId, to: ProcessId, frame: bytes, bulk: memoryview | None) -> None:
        """A process of this node says something to one of another, perhaps with bytes of an object."""
        node = node_of(to)
        if node == node_of(self.me) or node_of(sender) != node_of(self.me):
            log.warning("process %s had a message passed on to process %s: refused", sender.hex(), to.hex())
        elif node in self.roster.former:
            self._pass_on_to_head(sender, to, frame)
        elif self.roster.is_dead(node):
            self._spoke_to_dead[sender, node] = None
            if node == self.roster.awaited and to == manager_of(node):
                self.survivors.keep(sender, to, frame)
        else:
            if self._hooks.lives(sender):
                self._acquaintances.met(sender, node)
            elif sender != self.me:  # last words, which make it known there
                self._last_words[sender, node] = None
            address = self.roster.address(node)
            if address is None:
                self._hold(node, (sender, to, frame, bulk))
            else:
                assert self._sockets is not None
                self._sockets.put(sender, to, frame, bulk, address)

    def _pass_on_to_head(self, sender: ProcessId, to: ProcessId, frame: bytes) -> None:
        """For a process of a node on which the head was before. They are dead, but for what its manager knew."""
        home = self.roster.home(to)
        if to != manager_of(to):
            self._spoke_to_dead[sender, to] = None
            return
        if sender == home:
            return
        if home == self.me:
            self._mailbox.deliver_here(sender, frame)
        else:
            self.pass_on(sender, home, frame, None)

    def _hold(self, node: NodeId, what: tuple[ProcessId, ProcessId, bytes, memoryview | None]) -> None:
        held = self._held.setdefault(node, [])
        if len(held) < HELD_FRAMES:
            held.append(what)
        else:
            log.error("too much is for node %s, which nobody knows: a message was dropped", node.hex())
        self.roster.on_unknown(node, monotonic())

    def on_frame(
        self, sender: ProcessId, to: ProcessId, frame: bytes, bulk: memoryview | None = None
    ) -> None:
        """Something for a process of this node, from one of another, perhaps with bytes of an object."""
        if to == self.me:
            try:
                records = frames.decode(frame, SCHEMAS)
            except frames.FrameError as error:
                log.warning("refused %d bytes from process %s: %s", len(frame), sender.hex(), error)
                return
            if sender == manager_of(sender):
                self._deliver(sender, records, bulk)
            else:
                self._hooks.deliver(sender, records)
        elif self._hooks.lives(to):
            self._acquaintances.met(to, node_of(sender))
            self._mailbox.forward(to, sender, frame)
        else:
            self._mailbox.post(manager_of(sender), encode(self._obituary(to)))

    def _answer_for_the_dead(self) -> None:
        """Who has said something to the dead hears that they are, once for all that it said: it may wait for an answer,
        and have had nothing to do with them when they died. And who was spoken to by the dead hears that they are."""
        words, self._last_words = self._last_words, {}
        for process, node in words:
            if not self._hooks.lives(process) and not self.roster.is_dead(node):
                self._mailbox.post(manager_of(node), encode(self._obituary(process)))
        spoken, self._spoke_to_dead = self._spoke_to_dead, {}
        for sender, dead in spoken:
            if not self._hooks.lives(sender):
                continue
            if len(dead) == PROCESS_ID_BYTES:
                self._mailbox.post(sender, encode(self._obituary(ProcessId(dead))))
            elif (row := self.roster.rows.get(NodeId(dead))) is not None:
                report = self._report_of(row.node, row.cause, row.node == self.roster.awaited)
                self._mailbox.post(sender, encode(m.NodeDied(row.node, report)))

    def _report_of(self, node: NodeId, cause: str, returns: bool) -> str:
        """How a node has died, for its NodeDied. `returns`: it was the head's, and that may come back on another."""
        report: dict[str, Any] = {"pid": None, "node": node.hex(), "exit_status": None, "node_died": cause}
        if returns:
            report["heads"] = [head.hex() for head in (*self.roster.former, node)]
        return json.dumps(report)

    def _obituary(self, process: ProcessId) -> m.ProcessDied:
        cause = {"pid": None, "node": node_of(process).hex(), "exit_status": None}
        return m.ProcessDied(process, json.dumps(cause), b"", 0)

    def watch(self, watcher: ProcessId, process: ProcessId) -> None:
        """A process of another node wants to hear of the death of one of this."""
        if self._hooks.lives(process):
            self._acquaintances.met(process, node_of(watcher))
        else:
            self._mailbox.post(manager_of(watcher), encode(self._obituary(process)))

    def acquaint(self, process: ProcessId, node: NodeId) -> None:
        """A node is to hear of the death of a process of this one, though that never spoke to it."""
        self._acquaintances.met(process, node)

    def tell_of_death(self, notice: m.ProcessDied) -> list[NodeId]:
        """A process of this node is dead: other nodes that know it hear. Gives them."""
        nodes = self._acquaintances.on_process_died(notice.process)
        for node in nodes:
            self._mailbox.post(manager_of(node), encode(notice))
        return nodes

    # --------------------------------------------------------------------------------- from other node managers

    def _deliver(
        self, sender: ProcessId, records: list[tuple[int, tuple[Any, ...]]], bulk: memoryview | None
    ) -> None:
        for code, fields in records:
            handler = self._handlers.get(code)
            try:
                if bulk is not None and handler is not None:
                    handler(node_of(sender), *fields, bulk)
                elif handler is not None:
                    handler(node_of(sender), *fields)
                else:
                    self._hooks.deliver(sender, [(code, fields)])
            except ValueError as error:
                log.warning("refused message %d from node %s: %s", code, sender.hex(), error)
            except Exception:
                log.exception("message %d from node %s could not be handled", code, sender.hex())

    def _nodes_changed(self, node: NodeId, rows: Any) -> None:
        if node != self.roster.head:
            raise ValueError("only the head tells of nodes")
        self.roster.on_rows(rows_from(rows))

    def _reported(self, node: NodeId, total: Any, available: Any, demands: Any) -> None:
        if self.register is None:
            raise ValueError("a report is for the head")
        check_report(available, demands, total)
        self.register.on_report(node, available, demands, total)
        self._hooks.reported(node, available)

    def _goodbye(self, node: NodeId, why: str, returns: bool) -> None:
        if self.register is not None:
            self.register.on_goodbye(node, why)
        elif node == self.roster.head:
            self.roster.on_head_goodbye(why, returns=returns)

    def _process_died(self, node: NodeId, process: ProcessId, *fields: Any) -> None:
        if self.roster.home(process) != manager_of(node):
            raise ValueError(f"process {process.hex()} is not that node's")
        checks.report(fields[0])
        self._hooks.process_died(m.ProcessDied(process, *fields))

    def is_member(self, node: NodeId) -> bool:
        """Whether another node is of this one's cluster, which must be the head to know."""
        return self.register is not None and self.register.is_member(node)

    def is_dead(self, node: NodeId) -> bool:
        return self.roster.is_dead(node)

    def on_introduced(self, node: NodeId, address: str) -> None:
        self.roster.on_introduced(node, address)

    # ---------------------------------------------------------------------------------------------------- joining

    def on_letter(self, kind: bytes, sender: ProcessId, content: dict[str, Any]) -> None:
        """Something about joining."""
        if kind == HELLO and self.register is not None:
            self.register.on_hello(content, monotonic())
        elif kind == HELLO:
            why = f"{self.address} is not the head of its cluster: join at {self._head_address}"
            self._refuse(Refuse(str(content.get("node")), str(content.get("address")), why, ask_of(content)))
        else:
            try:
                self._answered(kind, node_of(sender), content)
            except (ValueError, TypeError) as error:
                log.warning("refused the letter %r of node %s: %s", kind.decode(), sender.hex(), error)

    def _answered(self, kind: bytes, head: NodeId, content: dict[str, Any]) -> None:
        self.roster.take_answer(content.get("to"))
        if kind == REFUSED:
            self.roster.on_refused(str(content.get("why"))[:2000])
        else:
            self._welcomed(head, content)

    def _welcomed(self, head: NodeId, content: dict[str, Any]) -> None:
        assert self._sockets is not None
        assert self._head_address is not None
        rows = rows_from(content.get("rows", ()))
        differs = self._identity.differs_from(content)
        if differs:
            self.roster.on_refused(differs)
            return
        if content.get("skate") != self._identity.skate:
            log.warning("the head runs skate %s, this node %s", content.get("skate"), self._identity.skate)
        if head != self.roster.head:
            log.info("this node, %s, is in the cluster of %s", self.me.hex(), self._head_address)
            self._look_at, self._told = 0.0, None  # it does not know what is free here
        former = [node_id(text) for text in content.get("former", ())]
        self._sockets.know(self._head_address, head)
        self.roster.on_welcome(head, rows, former, returns=content.get("returns") is True)

    def _refuse(self, refusal: Refuse) -> None:
        assert self._sockets is not None
        log.warning("node %.40s at %.60s was refused: %s", refusal.node, refusal.address, refusal.why)
        letter = addressed(pack_letter(REFUSED, {"why": refusal.why}), refusal.ask)
        try:
            self._sockets.write(refusal.address, letter, now=monotonic())
        except ValueError as error:
            log.warning("it cannot be told: %s", error)

    def on_link_up(self, address: str, node: NodeId | None) -> None:
        assert self._sockets is not None
        if address == self._head_address:
            ask = secrets.token_hex(8)
            self.roster.on_head_up()
            self.roster.on_asked(ask)
            known = [row.to_plain() for row in self.roster.rows.values() if row.node != self.roster.me]
            hello = self._identity._asdict() | {
                "node": self.roster.me.hex(),
                "address": self.address,
                "row": self.roster.rows[self.roster.me].to_plain(),
                "known": known,
                "ask": ask,
            }
            self._sockets.write(address, pack_letter(HELLO, hello))
        elif self.register is not None and node is not None:
            self.register.on_link_up(node)

    def on_link_lost(self, address: str, node: NodeId | None) -> None:
        now = monotonic()
        log.info("the link to %s was lost", address)
        if address == self._head_address:
            self.roster.on_head_lost(now)
        elif self.register is not None and node is not None:
            self.register.on_link_lost(node, now)

    # -------------------------------------------------------------------------------------------------- decisions

    def step(self, now: float) -> float | None:
        """Does what is to be done; gives the time of the next look, or None."""
        self._answer_for_the_dead()
        times = [self._report(now), self.roster.tick(now)]
        if self.register is not None:
            times.append(self.register.tick(now))
            for effect in self.register.take_effects():
                self._lead(effect, now)
        while effects := self.roster.take_effects():
            for each in effects:
                self._carry_out(each)
        if self.roster.head != self._head:
            self._head = self.roster.head
            self._head_came()
        if self._sockets is not None:
            times.append(self._sockets.step(now))
        return min((time for time in times if time is not None), default=None)

    def _report(self, now: float) -> float | None:
        """Tells the head what has changed here, so often at most; gives the time of the next look."""
        if self._sockets is None:
            return None
        if now < self._look_at:
            return self._look_at
        if self.roster.head is None:
            return None
        self._look_at = now + share_seconds(self.roster.others + 1)
        total, available, demands = measured = self._hooks.measure()
        # What processes put into the store wakes nobody here.
        again = now + STORE_SECONDS if self.roster.others else None
        if measured == self._told:
            return again
        self._told = measured
        self.roster.on_self_changed(*measured)
        if self.register is not None:
            self.register.on_report(self.roster.me, available, demands, total)
        elif not self.roster.is_dead(self.roster.head):
            self._mailbox.post(manager_of(self.roster.head), encode(m.NodeReport(*measured)))
        return again

    def _lead(self, effect: membership.Effect, now: float) -> None:
        """Does what the register has decided."""
        assert self._sockets is not None
        assert self.register is not None
        if type(effect) is Welcome:
            row = self.register.members[effect.node].row
            self._sockets.know(row.address, effect.node)
            if self._sockets.is_up(effect.node):
                self.register.on_link_up(effect.node)
            self._sockets.write(row.address, addressed(self._welcome(), effect.ask))
        elif type(effect) is Refuse:
            self._refuse(effect)
        elif type(effect) is DropNode:
            self._sockets.drop(effect.node)
        else:
            assert type(effect) is Share
            self._share(effect.rows)

    def _welcome(self) -> list[bytes]:
        """The letter to a node that is let in. What has changed since it was packed the node hears with all others."""
        assert self.register is not None
        facts = (self.register.shared, self.roster.former, self.roster.head_returns)
        if self._welcomes is None or self._welcomes[0] != facts:
            content: dict[str, Any] = self._identity._asdict() | {
                "rows": [row.to_plain() for row in self.register.rows()],
                "former": [node.hex() for node in self.roster.former],
                "returns": self.roster.head_returns,
            }
            self._welcomes = facts, pack_letter(WELCOME, content)
        return self._welcomes[1]

    def _share(self, rows: Sequence[Row]) -> None:
        assert self.register is not None
        self.roster.on_rows(rows)
        if self.ledger is not None:
            self.ledger.nodes_changed(rows, self.roster.me)
        changed = encode(m.NodesChanged([row.to_plain() for row in rows]))
        self._mailbox.post_to_managers(self.register.expected(), changed)

    def _carry_out(self, effect: roster.Effect) -> None:
        """Does what the roster has decided."""
        if type(effect) is Leave:
            self._hooks.end(effect.why)
        elif type(effect) is SendHeld:
            for what in self._held.pop(effect.node, ()):
                self.pass_on(*what)
        else:
            assert type(effect) is BuryNode
            self._bury(effect.node, effect.cause, effect.returns)

    def _head_came(self) -> None:
        """This node has a head, the first or another one."""
        if self.roster.head != self.roster.me:
            self.survivors.head_came(self.pass_on)
            self._hooks.head_came()
            self._hooks.tell_all(m.HeadBack(list(self.roster.former)))
            self._mailbox.poke()  # what that has changed here is dealt with in another turn

    def _bury(self, node: NodeId, cause: str, returns: bool) -> None:
        log.warning("node %s is dead: %s", node.hex(), cause)
        self._held.pop(node, None)
        self._acquaintances.on_node_died(node)
        if self._sockets is not None:
            unheard = self._sockets.drop(node)
            if self._head_address is not None:
                self._sockets.connect(self._head_address)  # another head may come there
            for sender, to, frame, _ in unheard if returns else ():
                if to == manager_of(node):
                    self.survivors.keep(sender, to, frame)
        self._hooks.node_died(m.NodeDied(node, self._report_of(node, cause, returns)))
        if node == self.roster.head:
            self.survivors.head_died(returns)
            if not returns:
                self._hooks.tell_all(m.HeadBack([]))
        if self.recovery is not None:
            self.recovery.node_died(node)

    def close(self, why: str) -> None:
        """Says goodbye, and closes the sockets."""
        if self._sockets is None:
            return
        goodbye = encode(m.Goodbye(why, self.ledger is not None and self.ledger.stays))
        if self.register is None:
            told = [] if self.roster.head is None or self.roster.refused else [self.roster.head]
        else:
            told = [row.node for row in self.roster.living() if row.node != self.roster.me]
        for node in told:
            if not self.roster.is_dead(node):
                self._mailbox.post(manager_of(node), goodbye)
        self._sockets.close()
