"""A head that dies and comes back: what it takes up, and what the other nodes keep for it meanwhile.

A head comes back on a node with a new id, since the processes of the old one are dead and must stay so; it says on
which nodes it was before (core.roster). What stood in the old node's directories and outlives it, detached actors and
placement groups, then stands in the new one's.

    head dies ─▶ others: its node is dead, but detached actors of its directory that live here stay, and so does what
                 was said to that directory; so do the bundles that they have for groups
    head back ─▶ it has its ledger; nodes that were written down are awaited
    others   ──▶ what was kept for the directory; which groups they follow; their names; RollCall: which of its actors
                 live here, and which bundles; then all that was asked and is not answered, in its order
    head     ──▶ keeps these, ends what it does not know, deals with what is missing as with a death
    all have called, or are dead ─▶ what was on the head's own node, or waited for a worker, is placed

`HeadRecovery` is the head's side. State: the nodes that have not called yet, and what waits for them.
`Survivors` is the others'. State: the nodes on which heads have been that may come back, and what was said to them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from skate._c import frames
from skate._c.clock import monotonic
from skate.core.ledger import Kept
from skate.core.policies import NODE, where_from
from skate.core.resources import ResourceSet
from skate.core.roster import Roster, Row
from skate.ids import ActorId, NodeId, ProcessId, manager_of, node_of
from skate.node.actors import NodeActors
from skate.node.groups import NodeGroups
from skate.node.head import HeadLink
from skate.node.ledger import NodeLedger
from skate.node.processes import Job
from skate.node.scheduling import NodeScheduling
from skate.node.verdicts import granted_allocation
from skate.wire import messages as m
from skate.wire.messages import MESSAGES, SCHEMAS, encode

log = logging.getLogger("skate.node")

#: what is said to a directory of actors, and kept for it while there is none
_FOR_A_DIRECTORY: Final = (m.KillActor.code, m.ActorStarted.code, m.ActorLeaves.code)  # type: ignore[attr-defined]
#: frames that are kept, at most
KEPT_FRAMES: Final = 10_000

Frame = tuple[ProcessId, ProcessId, bytes]


class HeadRecovery:
    """What a head takes up of the last one.

    `post` sends a message, `adopt` takes in a job whose driver may live, `jobs` are all that the node knows.
    """

    def __init__(
        self,
        node: NodeId,
        book: NodeLedger,
        actors: NodeActors,
        groups: NodeGroups,
        jobs: dict[str, Job],
        adopt: Callable[[dict[str, Any]], None],
        post: Callable[[ProcessId, Any], None],
    ) -> None:
        self._node = node
        self._book = book
        self._actors = actors
        self._groups = groups
        self._jobs = jobs
        self._adopt = adopt
        self._post = post
        #: nodes that lived when the last head died, and have not said yet what they have
        self._awaited: set[NodeId] = set()
        #: actors whose workers died with the last head, and those that had none
        self._bereft: list[ProcessId] = []
        self._unplaced: list[ActorId] = []

    def begin(self, roster: Roster, returning: Callable[[list[Row], float], None]) -> None:
        """Before anybody is heard. `returning` is told of the nodes that may come back."""
        ledger = self._book.ledger
        lost = ledger.mend()
        former = ledger.heads()
        ledger.head_began(self._node)
        roster.former, roster.head_returns = tuple(former), True
        rows = [Row.from_plain(row) for row in ledger.nodes()]
        self._awaited = {row.node for row in rows}
        returning(rows, monotonic())
        for facts in ledger.jobs():
            self._take_up_job(dict(facts), former)
        for actor, name, namespace, about in ledger.names():
            self._actors.names.table.claimed(actor, name, namespace, about)
        for actor, standing in lost:
            log.warning("actor %s %s cannot be made again: %s", actor.hex(), standing.name, _NOT_DESCRIBED)
            self._actors.directory.unrecoverable(actor, _NOT_DESCRIBED)
            self._groups.life_ended(actor)
        kept = ledger.actors()
        for each in kept:
            self._take_up(each, former)
        groups = ledger.groups()
        self._groups.recovered(groups, former)
        self._book.commit()
        if former:
            known = len(rows), len(kept), len(groups)
            log.info(
                "the head is back: %d nodes, %d detached actors and %d placement groups are known", *known
            )
        self._settle()

    def _take_up_job(self, facts: dict[str, Any], former: list[NodeId]) -> None:
        if node_of(bytes.fromhex(facts["driver"])) in former:
            job = self._jobs[facts["id"]] = Job(facts)
            job.left = True
        else:
            self._adopt(facts)

    def _take_up(self, kept: Kept, former: list[NodeId]) -> None:
        actor, standing, about, spec = kept
        worker = ProcessId(standing.worker) if standing.worker else None
        spec["environment"] = _environment(spec["environment"])
        where = where_from(spec["where"])
        if where.kind == NODE and where.node in {node.hex() for node in former}:
            spec["where"] = tuple(where._replace(node=self._node.hex()))  # it was to be on the head's node
        self._actors.directory.recovered(
            actor,
            standing.name,
            standing.namespace,
            about,
            spec,
            standing.state,
            standing.restarts,
            standing.restarts_left,
            worker,
        )
        if worker is None:
            self._unplaced.append(actor)
            return
        self._actors.housed(actor, worker, standing.lease, standing.allocation)
        if node_of(worker) not in self._awaited:
            self._bereft.append(worker)

    def called(self, node: NodeId, housed: Any) -> None:
        """A node says which actors it has. (Its names and bundles are known.)"""
        directory = self._actors.directory
        there = set()
        for actor, worker, lease, allocation in housed:
            known = directory.actors.get(actor)
            group = None if known is None else ResourceSet(known.spec["demand"]).group
            if group is not None and not self._groups.is_there(group):
                directory.evicted(actor)  # it ended with the head's node
                known = None
            if known is not None and known.worker is None and actor in self._unplaced:
                self._unplaced.remove(actor)  # the last head had no time to write that down
                self._actors.housed(actor, worker, lease, allocation)
                directory.placed(actor, worker)
            elif known is not None and known.worker == worker:
                directory.confirmed(actor)
            else:
                self._post(
                    manager_of(node), m.EndWorker(worker, "the head that came back knows no actor in it")
                )
            there.add(worker)
        if node in self._awaited:
            for worker in [worker for worker in directory.workers() if node_of(worker) == node]:
                if worker not in there:
                    self._end_of(worker, "while the head was away")
            self._awaited.discard(node)
            self._settle()

    def node_died(self, node: NodeId) -> None:
        """(The directory has heard of it.)"""
        if node in self._awaited:
            self._awaited.discard(node)
            self._settle()

    def _settle(self) -> None:
        """Once all nodes have told what they have, nothing can turn up any more: what is missing is made again."""
        if self._awaited:
            return
        bereft, self._bereft = self._bereft, []
        for worker in bereft:
            self._end_of(worker, "with the node of the cluster's head")
        unplaced, self._unplaced = self._unplaced, []
        for actor in unplaced:
            self._actors.directory.resumed(actor)

    def _end_of(self, worker: ProcessId, when: str) -> None:
        report = {"text": f"Its process ended {when}.", "node": node_of(worker).hex()}
        self._actors.directory.process_left(worker, report)


_NOT_DESCRIBED: Final = (
    "The head died before the arguments of its constructor were there, and its maker with the head."
)


def _environment(plain: Any) -> Any:
    job, variables = plain
    return job, tuple((name, value) for name, value in variables)


class Survivors:
    """What a node that is not the head's keeps for a head that may come back."""

    def __init__(
        self, head: HeadLink, scheduling: NodeScheduling, actors: NodeActors, groups: NodeGroups
    ) -> None:
        self._head = head
        self._scheduling = scheduling
        self._actors = actors
        self._groups = groups
        head.on_new_head.append(self._call)
        #: where the head is, and was before
        self._heads: set[NodeId] = set()
        self._kept: list[Frame] = []

    def head_died(self, returns: bool) -> None:
        """Its node is dead, and those who have to do with its processes have heard."""
        if not returns:
            self._end(self._heads)
            self._heads = set()
            self._kept.clear()

    def keep(self, sender: ProcessId, to: ProcessId, frame: bytes) -> None:
        """Something for a manager that is dead, and whose directory may come back."""
        try:
            said = frames.decode(frame, SCHEMAS)
        except frames.FrameError as error:
            log.warning("refused %d bytes from process %s: %s", len(frame), sender.hex(), error)
            return
        records = [encode(MESSAGES[code](*fields)) for code, fields in said if code in _FOR_A_DIRECTORY]
        if records and len(self._kept) < KEPT_FRAMES:
            self._kept.append((sender, to, frames.frame(records)))

    def head_came(self, pass_on: Callable[[ProcessId, ProcessId, bytes, None], None]) -> None:
        """A head has come, perhaps the first."""
        roster = self._head.roster
        assert roster.head is not None
        heads = {*roster.former, roster.head}
        self._end(self._heads - heads)
        self._heads = heads
        kept, self._kept = self._kept, []
        for sender, to, frame in kept:
            if node_of(to) in heads:
                pass_on(sender, to, frame, None)

    def _call(self) -> None:
        """After the names, and what is said of groups: says what lives here of which the head must know."""
        housed = []
        for actor, lease in self._scheduling.detached_of(self._head.roster.former):
            if lease is None:
                self._scheduling.take_back(actor)  # the head asks again
            else:
                assert lease.worker is not None
                housed.append((actor, lease.worker.id, lease.id, granted_allocation(lease)))
        named = [actor for actor, *_ in self._actors.named()]
        self._head.tell(m.RollCall(named, housed, *self._groups.roll()))

    def _end(self, nodes: set[NodeId]) -> None:
        for actor, _ in self._scheduling.detached_of(nodes):
            log.info(
                "detached actor %s ends: the head in whose directory it stood does not come back", actor.hex()
            )
            self._scheduling.take_back(actor)
