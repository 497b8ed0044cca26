"""Placement groups, on the side of those who make and use them.

State: how the groups stand that this process has made, and the objects that stand for a group's being ready, until they
are settled. Who made a group is told of every change; others ask, and hear once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from skate._c.plain import to_bytes
from skate._c.refs import FAILED, INLINE, PENDING, ObjectEntry, ObjectRef
from skate.core.group_records import CREATED, REMOVED
from skate.core.group_records import PENDING as WAITING
from skate.exceptions import TaskPlacementGroupRemoved, TaskUnschedulableError
from skate.ids import ProcessId, TaskId, object_id
from skate.runtime.objects import pack_error
from skate.store.serialization import serialize
from skate.wire import messages as m

if TYPE_CHECKING:
    from skate.runtime.runtime import Runtime

#: groups of others whose bundles are kept, before they are asked for afresh
KNOWN_BUNDLES: Final = 1_000
#: a group's bundles, name -> amount
Bundles = list[dict[str, float]]


class Groups:
    """The placement groups that this process has to do with."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        #: of the groups that were made here and are not removed
        self._states: dict[bytes, int] = {}
        #: group -> a value, packed -> the object that gets it once the group is ready
        self._awaited: dict[bytes, dict[bytes, ObjectEntry]] = {}
        #: bundles that the node was asked for
        self._bundles: dict[bytes, Bundles] = {}
        runtime.handle(m.GroupState, self._told)
        runtime.handle(m.Unschedulable, self._unschedulable)

    def create(self, spec: dict[str, Any], name: str) -> tuple[TaskId, bytes | None]:
        """Has the node make a group: (its id, None), or (…, id of the group that has its name).

        Does not block, but for a group with a name, until the node has answered. `spec` has the fields of
        core.groups.GroupSpec as plain values.
        """
        runtime = self._runtime
        if name:
            made: list[TaskId] = []

            def question(token: int) -> m.CreateGroup:
                made.append(self._new_id())
                return m.CreateGroup(token, made[0], spec)

            other = runtime.ask(question)
            if other is not None:
                self._states.pop(made[0], None)
            return made[0], other
        with runtime.step:
            group = self._new_id()
            runtime.post(runtime.node, m.CreateGroup(0, group, spec))
        return group, None

    def _new_id(self) -> TaskId:
        """Under the lock: the node relies on it that ids of groups come in order."""
        group = self._runtime.next_task_id()
        self._states[group] = WAITING
        return group

    def remove(self, group: bytes) -> None:
        """Has the node remove the group, if there is such a one. Does not block."""
        runtime = self._runtime
        with runtime.step:
            runtime.post(runtime.node, m.RemoveGroup(0, TaskId(group)))
            self._settle(group, REMOVED)

    def is_created(self, group: bytes) -> bool:
        """Whether it is known, without asking, that the group is whole."""
        return self._states.get(group) == CREATED

    def ready(self, group: bytes, value: Any) -> ObjectRef:
        """A ref that gets `value` once the group is whole, or fails when it is removed. Does not block.

        Until then it is the same one, however often it is asked for.
        """
        runtime = self._runtime
        packed = to_bytes(serialize(value))
        with runtime.step:
            awaited = self._awaited.setdefault(group, {})
            if packed not in awaited:
                entry = awaited[packed] = runtime.references.create(object_id(runtime.next_task_id(), 0))
                runtime.references.pin([entry])
            ref = ObjectRef(awaited[packed])
            if self.is_created(group):
                self._settle(group, CREATED)
            elif group not in self._states:
                runtime.post(runtime.node, m.WatchGroup(TaskId(group)))
        return ref

    def bundles(self, group: bytes) -> Bundles | None:
        """The bundles of any group, from the node; None where there is no such group. Blocks until it answers."""
        known = self._bundles.get(group)
        if known is None:
            found = self._runtime.query(f"group {group.hex()}")
            if found is None:
                return None
            if len(self._bundles) >= KNOWN_BUNDLES:
                self._bundles.clear()
            known = [dict(bundle) for bundle in found["bundles"].values()]
            self._bundles[group] = known
        return known

    def find(self, name: str, namespace: str) -> tuple[bytes, Bundles] | None:
        """(id, bundles) of the group that has the name. Blocks until the node answers."""
        return self._runtime.ask(lambda token: m.FindGroup(token, name, namespace))  # type: ignore[no-any-return]

    # -------------------------------------------------------------------------------------------------- the node

    def _told(self, _: ProcessId, group: TaskId, state: int) -> None:
        self._settle(group, state)

    def _settle(self, group: bytes, state: int) -> None:
        """The group stands so now: what waited for that has its value. Under the lock."""
        if state == REMOVED:
            self._states.pop(group, None)
            self._bundles.pop(group, None)
        elif group in self._states:
            self._states[group] = state
        if state not in (CREATED, REMOVED):
            return
        for packed, entry in self._awaited.pop(group, {}).items():
            if entry.state == PENDING:
                if state == CREATED:
                    self._runtime.objects.settle(entry, INLINE, packed)
                else:
                    self._runtime.objects.settle(entry, FAILED, pack_error(removed_error(group.hex())))
            self._runtime.references.unpin([entry])

    def _unschedulable(self, _: ProcessId, class_id: int, removed: bool, text: str) -> None:
        submission = self._runtime.submission
        error = TaskPlacementGroupRemoved(text) if removed else TaskUnschedulableError(text)
        packed = pack_error(error)
        dispatcher = self._runtime.dispatcher
        queue = dispatcher.queue_numbered(class_id)
        for task in [] if queue is None else dispatcher.unschedulable(queue):
            submission.finish(task, packed)


def removed_error(group: str) -> TaskPlacementGroupRemoved:
    """What waits for a group, or in it, fails with once it is removed."""
    return TaskPlacementGroupRemoved(f"The placement group {group} was removed.")
