"""The node's side of placement groups: what core.groups decides, done; what processes say, passed on to it.

State: the directory. Of this node its bundles are prepared, committed and given back in admission, at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from skate.core.admission import Admission
from skate.core.group_records import (
    CREATED,
    REMOVED,
    STATE_NAMES,
    ClaimRoom,
    CommitBundles,
    DropClaim,
    EndGroup,
    Group,
    GroupSpec,
    PrepareBundles,
    ReturnBundles,
    TellGroup,
)
from skate.core.groups import GroupDirectory
from skate.core.labels import parse_selector
from skate.core.policies import NodeView
from skate.core.resources import ResourceSet
from skate.ids import NodeId, ProcessId, TaskId, owner_of, process_id
from skate.wire import messages as m

log = logging.getLogger("skate.node")

Post = Callable[[ProcessId, Any], None]


class NodeGroups:
    """The placement groups of the node.

    `post` sends a message, `lives` tells whether a process is there, `lifetime` with what groups of a process end.
    """

    def __init__(
        self,
        node: NodeId,
        labels: dict[str, str],
        admission: Admission,
        post: Post,
        lives: Callable[[ProcessId], bool],
        lifetime: Callable[[ProcessId], Any],
    ) -> None:
        self.directory = GroupDirectory()
        self._node = node
        self._admission = admission
        self._post = post
        self._lives = lives
        self._lifetime = lifetime
        self.directory.node_joined(NodeView(node, *admission.resources.units(), labels))
        self.handlers: dict[int, Callable[..., None]] = {
            m.CreateGroup.code: self._create,  # type: ignore[attr-defined]
            m.RemoveGroup.code: self._remove,  # type: ignore[attr-defined]
            m.WatchGroup.code: self._watch,  # type: ignore[attr-defined]
            m.FindGroup.code: self._find,  # type: ignore[attr-defined]
        }

    # -------------------------------------------------------------------------------------------------- messages

    def _create(self, process: Any, token: int, group: TaskId, spec: Any) -> None:
        if not group.startswith(process.id):
            log.warning(
                "process %s made group %s, whose id is not its own: refused", process.id.hex(), group.hex()
            )
            return
        checked = GroupSpec(
            bundles=tuple(ResourceSet(units) for units in spec["bundles"]),
            strategy=spec["strategy"],
            name=spec["name"],
            namespace=spec["namespace"],
            detached=spec["detached"],
            selectors=tuple(parse_selector(selector) for selector in spec["selectors"]),
            target=None if spec["target"] is None else NodeId(spec["target"]),
        )
        other = self.directory.created(group, checked, self._lifetime(process.id), monotonic())
        if token:
            self._post(process.id, m.StateReply(token, other and other.id))

    def _remove(self, process: Any, group: TaskId) -> None:
        self.directory.removed(group, process.id)

    def _watch(self, process: Any, group: TaskId) -> None:
        self.directory.watched(group, process.id, self._lives(owner_of(group)))

    def _find(self, process: Any, token: int, name: str, namespace: str) -> None:
        found = self.directory.named(name, namespace)
        answer = found and (found.id, [bundle.to_dict() for bundle in found.spec.bundles])
        self._post(process.id, m.StateReply(token, answer))

    def is_gone(self, group_hex: str) -> bool:
        """Whether the group was removed.

        One that is not known yet is watched: should its maker end first, what waits for it does, too.
        """
        group = bytes.fromhex(group_hex)
        lives = self._lives(owner_of(group))
        if self.directory.is_gone(group, lives):
            return True
        if group not in self.directory.groups:
            self.directory.watched(group, process_id(self._node, 0), lives)
        return False

    # --------------------------------------------------------------------------------------------------- effects

    def act(self) -> bool:
        """Does what the directory decides; whether there was anything."""
        directory, admission = self.directory, self._admission
        if directory.waiting:
            directory.node_updated(self._node, admission.resources.units()[1])
        acted = False
        while effects := directory.decide():
            acted = True
            for effect in effects:
                if type(effect) is PrepareBundles:
                    group = effect.group.id
                    taken = admission.bundles_prepared(group, effect.bundles)
                    free = admission.resources.units()[1]
                    directory.prepared(self._node, group, effect.attempt, taken, free, monotonic())
                elif type(effect) is CommitBundles:
                    admission.bundles_committed(effect.group.id, effect.indexes)
                elif type(effect) is TellGroup:
                    self._tell(effect)
                elif type(effect) is EndGroup:
                    admission.group_ended(effect.group.id)
                elif type(effect) is ReturnBundles:
                    admission.bundles_returned(effect.group.id, effect.indexes)
                elif type(effect) is ClaimRoom:
                    admission.room_claimed(effect.group.id, effect.bundles)
                elif type(effect) is DropClaim:
                    admission.claim_dropped(effect.group.id)
                else:
                    self._warn(effect.group)
        return acted

    def _tell(self, effect: TellGroup) -> None:
        if effect.state == REMOVED:
            self._admission.group_ended(effect.group)  # also of a group that was never placed
        notice = m.GroupState(TaskId(effect.group), effect.state)
        for watcher in effect.watchers:
            if self._lives(watcher):
                self._post(watcher, notice)

    def _warn(self, group: Group) -> None:
        bundles = ", ".join(str(bundle) for bundle in group.spec.bundles)
        total = self._admission.resources.total_dict()
        text = (
            f"There is no room for the placement group {group.spec.name or group.id.hex()} ({group.spec.strategy}: "
            f"{bundles}), even without tasks and other groups: this node has {total} in all. "
            "It waits until a node joins that can; ask for less, or init() with more resources."
        )
        if self._lives(group.owner):
            self._post(group.owner, m.Infeasible(0, text))

    # --------------------------------------------------------------------------------------------------- reports

    def table(self) -> dict[str, Any]:
        """Id in hexadecimal -> how the group stands, in Ray's words; with those that were removed lately."""
        self.act()  # a group's maker is told how it stands before anybody can read that here
        groups = {**self.directory.removed_groups, **self.directory.groups}
        return {group_id.hex(): _described(group) for group_id, group in groups.items()}

    def one(self, group: str) -> dict[str, Any] | None:
        """As in `table`, of one group; None of one that is not known."""
        self.act()
        found = self.directory.find(bytes.fromhex(group))
        return found and _described(found)

    def pending(self) -> list[tuple[list[dict[str, float]], str, bool]]:
        """(bundles, strategy, feasible) of each group that waits to be placed."""
        return [
            ([bundle.to_dict() for bundle in group.spec.bundles], group.spec.strategy, not group.infeasible)
            for group in self.directory.groups.values()
            if group.state != CREATED
        ]


def _described(group: Group) -> dict[str, Any]:
    if group.state == REMOVED:
        stage = "REMOVED"
    elif group.state == CREATED:
        stage = "FINISHED"
    else:
        stage = "INFEASIBLE" if group.infeasible else "NO_RESOURCES"
    latency = 0.0 if group.created_at is None else (group.created_at - group.started_at) * 1e3
    return {
        "placement_group_id": group.id.hex(),
        "name": group.spec.name,
        "bundles": {index: bundle.to_dict() for index, bundle in enumerate(group.spec.bundles)},
        "bundles_to_node_id": {index: node.hex() if node else "" for index, node in enumerate(group.nodes)},
        "strategy": group.spec.strategy,
        "state": STATE_NAMES[group.state],
        "stats": {
            "end_to_end_creation_latency_ms": latency,
            "scheduling_latency_ms": latency,
            "scheduling_attempt": group.attempt,
            "highest_retry_delay_ms": 0.0,
            "scheduling_state": stage,
        },
    }
