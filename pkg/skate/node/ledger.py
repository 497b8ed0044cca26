"""What the head of a cluster writes down as it goes, so that it can come back.

State: the ledger (core.ledger) and its file. What has changed is written in one transaction a turn of the manager's
loop, and nothing that the manager says leaves before: from the first change until then its mailbox holds it back. A
node that has no ledger does none of this.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from skate.core.actors import DEAD, Actor
from skate.core.group_records import PENDING, REMOVED, Group
from skate.core.ledger import Gang, Ledger, Standing
from skate.core.roster import Row
from skate.ids import PROCESS_ID_BYTES, ActorId, NodeId, node_of
from skate.net.node_mailbox import NodeMailbox
from skate.node.errors import CannotJoin

if TYPE_CHECKING:
    from skate.node.state_file import StateFile

log = logging.getLogger("skate.node")


class NodeLedger:
    """`facts` gives what workers of a job need to know, by its id; `warn` has drivers show a text."""

    def __init__(
        self,
        file: StateFile,
        mailbox: NodeMailbox,
        facts: Callable[[str], Mapping[str, Any]],
        warn: Callable[[str], None],
    ) -> None:
        self.ledger = Ledger(file.records())
        self._file: StateFile | None = file
        #: the user has ended this node; all else is a crash
        self.stopped = False
        self._mailbox = mailbox
        self._facts = facts
        self._warn = warn

    @property
    def stays(self) -> bool:
        """Whether it is still there when this node has ended. A file that nobody has named is for crashes alone."""
        return self._file is not None and (self._file.named or not self.stopped)

    def name_taken(self, actor: ActorId, name: str, namespace: str, about: Any) -> None:
        self.ledger.name_taken(actor, name, namespace, about)
        self._changed()

    def name_freed(self, name: str, namespace: str) -> None:
        self.ledger.name_freed(name, namespace)
        self._changed()

    def actor_changed(self, actor: Actor, lease: int, allocation: Any) -> None:
        """A detached actor stands otherwise than before. `lease`: 0 where it has no worker."""
        if actor.state == DEAD:
            self.ledger.actor_ended(actor.id)
        else:
            if actor.spec is not None:
                self.ledger.actor_described(actor.id, actor.spec, self._facts(actor.spec["environment"][0]))
            standing = Standing(
                actor.name,
                actor.namespace,
                actor.state,
                actor.restarts,
                actor.restarts_left,
                actor.worker or b"",
                lease,
                allocation,
            )
            self.ledger.actor_stands(actor.id, standing)
        self._changed()

    def group_changed(self, group: Group, me: NodeId) -> None:
        """A placement group stands otherwise than before. One that lives with a process of this node ends with it."""
        life = group.lives_with
        if group.state == REMOVED:
            self.ledger.group_removed(group.id)
        elif life is None or len(life) > PROCESS_ID_BYTES or node_of(life) != me:
            gang = Gang(group.spec.kept(), life, group.state != PENDING, list(group.nodes))
            self.ledger.group_stands(group.id, gang)
        self._changed()

    def nodes_changed(self, rows: Iterable[Row], me: NodeId) -> None:
        for row in rows:
            if not row.alive:
                self.ledger.node_died(row.node)
            elif row.node != me and not self.ledger.lists(row.node):
                self.ledger.node_listed(row.node, row._replace(available={}, demands=[]).to_plain())
        self._changed()

    def _changed(self) -> None:
        if self.ledger.unwritten:
            self._mailbox.hold(self.commit)

    def commit(self) -> None:
        """Writes down what has changed, all of it or nothing."""
        records = self.ledger.take_records()
        if self._file is None or not records:
            return
        try:
            self._file.write(records)
        except CannotJoin as error:  # (a StateError: who has no state file need not import SQLite)
            # What it holds is old from here on: a head that came back to it would know what is not so.
            file, self._file = self._file, None
            self._warn(
                f"In the head {error}. The cluster goes on, but if the head dies now, it cannot come back: the file is "
                "removed."
            )
            file.close(remove=True)

    def close(self) -> None:
        self.commit()
        if self._file is not None:
            self._file.close(remove=not self.stays)
            self._file = None
