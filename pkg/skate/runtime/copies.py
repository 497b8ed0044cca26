"""The owner's part in bringing objects from node to node: tells node managers where a copy is, and when to drop it.

State: core.copies's machine. Everything here is called under the runtime's lock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from skate._c.refs import FAILED, PENDING, STORED
from skate.core.copies import Copies, TellCopy
from skate.exceptions import ObjectLostError
from skate.ids import NodeId, ObjectId, ProcessId, manager_of, node_of, owner_of
from skate.runtime.objects import pack_error
from skate.wire import messages as m

if TYPE_CHECKING:
    from skate.runtime.runtime import Runtime

_FREED = "its owner has freed it: no ref to it was counted any more."


class OwnedCopies:
    """Where the bytes of this process's objects are."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._home = node_of(runtime.me)
        self.machine = Copies(self._home, runtime.effects)
        runtime.handle(m.FindCopy, self._asked)
        runtime.handle(m.CopyMade, self._made)
        runtime.handle(m.PullEnded, self._ended)

    def made_by(self, object_id: bytes, worker: ProcessId) -> None:
        """A worker has put the object into the store of its node."""
        self.machine.on_made(object_id, node_of(worker))

    def discard(self, object_id: bytes, worker: ProcessId) -> None:
        """A worker has made the object, and its answer does not count."""
        node = node_of(worker)
        entry = self._runtime.references.entries.get(object_id)
        if entry is None:
            self.drop_unanswered(object_id, worker)
        elif entry.state == PENDING:
            self.machine.on_made_in_vain(object_id, node)
            self._runtime.objects.when_freed.setdefault(object_id, partial(self.free_remains, object_id))
        elif node not in self.machine.nodes_of(object_id):
            self._runtime.post(manager_of(node), m.DropCopy(ObjectId(object_id)))

    def drop_unanswered(self, object_id: bytes, worker: ProcessId) -> None:
        """A worker may have made the object, which nobody has been told of, and nobody will be."""
        self.made_by(object_id, worker)
        self.free(object_id)

    def whereabouts(self, object_ids: Iterable[bytes]) -> list[tuple[bytes, int, list[NodeId]]]:
        """(object, bytes, nodes that have them) of stored objects.

        Of another process's only that one knows all: here, or else perhaps where its owner is.
        """
        found = []
        for object_id in object_ids:
            entry = self._runtime.references.entries.get(object_id)
            if entry is not None and entry.state == STORED:
                if entry.owned:
                    nodes = list(self.machine.nodes_of(object_id))
                elif self._runtime.store.contains(object_id):
                    nodes = [self._home]
                else:
                    nodes = [node_of(owner_of(object_id))]
                found.append((object_id, entry.value, nodes))
        return found

    def free(self, object_id: bytes) -> None:
        """Drops the object from all stores, and disks."""
        for node, begun in self.machine.on_freed(object_id).items():
            if node != self._home or begun:
                self._runtime.post(manager_of(node), m.DropCopy(ObjectId(object_id)))
            elif not self._runtime.store.delete(object_id):
                self._runtime.post(self._runtime.node, m.ForgetSpilled(0, ObjectId(object_id)))

    def free_remains(self, object_id: bytes) -> None:
        """Nobody holds the object any more, which is not in the store as far as is known: drops what there is of it."""
        if object_id in self.machine.placed:
            self.free(object_id)

    def node_died(self, node: NodeId, cause: str) -> None:
        """What was on that node alone is lost."""
        why = json.loads(cause).get("node_died") or "the node is dead"
        for object_id in self.machine.on_node_died(node, f"the node died ({why})"):
            entry = self._runtime.references.entries.get(object_id)
            if entry is not None and entry.state == STORED:
                error = ObjectLostError(object_id, why=f"{self.machine.placed[object_id].why}.")
                entry.contents = (
                    entry.contents or []
                )  # so that its end is not its process's private matter: see free_remains
                entry.state = PENDING
                self._runtime.objects.settle(entry, FAILED, pack_error(error))

    # ------------------------------------------------------------------------------------------------- messages

    def _asked(self, manager: ProcessId, object_id: ObjectId, pull: int, missed: Any) -> None:
        entry = self._runtime.references.entries.get(object_id)
        if entry is not None and entry.state == STORED:
            self.machine.on_asked(object_id, node_of(manager), pull, missed)
        else:
            placed = self.machine.placed.get(object_id)
            lost = entry is not None and entry.state == FAILED and placed is not None
            why = f"{placed.why}." if lost and placed is not None else _FREED
            self._runtime.post(manager, m.CopyAt(pull, 0, NodeId(b""), why))

    def _made(self, manager: ProcessId, object_id: ObjectId) -> None:
        if not self.machine.on_copied(object_id, node_of(manager)):
            self._runtime.post(manager, m.DropCopy(object_id))

    def _ended(self, manager: ProcessId, object_id: ObjectId) -> None:
        self.machine.on_gave_up(object_id, node_of(manager))

    def carry_out(self, effect: TellCopy) -> None:
        entry = self._runtime.references.entries.get(effect.object)
        size = 0 if entry is None or entry.state != STORED else entry.value
        source = NodeId(b"") if effect.source is None else effect.source
        why = f"{effect.why}." if effect.why else ""
        self._runtime.post(manager_of(effect.to), m.CopyAt(effect.pull, size, source, why))
