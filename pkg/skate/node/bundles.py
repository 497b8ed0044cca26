"""The bundles of a node: what the directory of placement groups wants of it, done in admission.

No state of its own. The directory is this node's, or the head's: then its orders come as messages, and the answers go
back the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from skate.core.admission import Admission
from skate.core.bundles import BundledResources
from skate.core.group_records import (
    ClaimRoom,
    CommitBundles,
    EndGroup,
    HeldBundles,
    Order,
    PrepareBundles,
    ReturnBundles,
    bundles_from,
)
from skate.core.resources import ResourceSet
from skate.ids import NodeId, TaskId
from skate.node.head import HeadLink
from skate.wire import messages as m

log = logging.getLogger("skate.node")

#: (group, attempt, taken, what is free after that)
Prepared = Callable[[bytes, int, bool, dict[str, int]], None]


def as_message(order: Order) -> Any:
    """The order, for another node."""
    group = TaskId(order.group.id)
    if type(order) is PrepareBundles:
        bundles = {index: demand.units() for index, demand in order.bundles.items()}
        return m.PrepareBundles(group, order.attempt, bundles)
    if type(order) is CommitBundles:
        return m.CommitBundles(group, list(order.indexes))
    if type(order) is ReturnBundles:
        return m.ReturnBundles(group, list(order.indexes))
    if type(order) is ClaimRoom:
        return m.ClaimRoom(group, [demand.units() for demand in order.bundles])
    return m.EndGroup(group) if type(order) is EndGroup else m.DropClaim(group)


class NodeBundles:
    """What this node has for placement groups."""

    def __init__(self, admission: Admission, head: HeadLink) -> None:
        self._admission = admission
        self._head = head
        #: from the head
        self.handlers: Final[dict[int, Callable[..., None]]] = {
            m.PrepareBundles.code: self._prepare,  # type: ignore[attr-defined]
            m.CommitBundles.code: self._commit,  # type: ignore[attr-defined]
            m.ReturnBundles.code: self._return,  # type: ignore[attr-defined]
            m.EndGroup.code: self._end,  # type: ignore[attr-defined]
            m.ClaimRoom.code: self._claim,  # type: ignore[attr-defined]
            m.DropClaim.code: self._drop,  # type: ignore[attr-defined]
        }

    @property
    def resources(self) -> BundledResources:
        return self._admission.resources

    def free(self) -> dict[str, int]:
        """What could be prepared, as far as amounts tell."""
        return self._admission.resources.units()[1]

    def obey(self, order: Order, prepared: Prepared) -> None:
        """Does what this node's own directory wants; `prepared` is called with the answer, where there is one."""
        admission, group = self._admission, order.group.id
        if type(order) is PrepareBundles:
            prepared(group, order.attempt, admission.bundles_prepared(group, order.bundles), self.free())
        elif type(order) is CommitBundles:
            admission.bundles_committed(group, order.indexes)
        elif type(order) is ReturnBundles:
            admission.bundles_returned(group, order.indexes)
        elif type(order) is EndGroup:
            admission.group_ended(group)
        elif type(order) is ClaimRoom:
            admission.room_claimed(group, order.bundles)
        else:
            admission.claim_dropped(group)

    def end(self, group: bytes) -> None:
        """The group is removed: nothing runs in it, or waits for it, any more."""
        self._admission.group_ended(group)

    def head_changed(self, *, remembers: bool) -> None:
        """The head that had the directory is gone, and another one has come, which has its directory, or has not."""
        self._admission.claims_dropped()
        if not remembers:
            for group in self._admission.resources.groups:
                self._admission.group_ended(bytes.fromhex(group))

    def held(self) -> list[HeldBundles]:
        """What this node has of groups."""
        return [
            HeldBundles(bytes.fromhex(group), prepared, committed)
            for group, prepared, committed in self._admission.resources.bundles()
        ]

    # ----------------------------------------------------------------------------------------------- from the head

    def _prepare(self, node: NodeId, group: TaskId, attempt: int, bundles: Any) -> None:
        self._head.check_is_head(node)
        if not isinstance(bundles, dict) or not all(type(index) is int and index >= 0 for index in bundles):
            raise ValueError(f"bundles to prepare are a dict, not {bundles!r:.60}")
        demands: dict[int, ResourceSet] = dict(
            zip(bundles, bundles_from(list(bundles.values())), strict=True)
        )
        try:
            taken = self._admission.bundles_prepared(group, demands)
        except ValueError as error:  # it has them: that the head does not know it is a fault of ours
            log.error("bundles of group %s were refused: %s", group.hex(), error)
            taken = False
        self._head.tell(m.BundlesPrepared(group, attempt, taken, self.free()))

    def _commit(self, node: NodeId, group: TaskId, indexes: Any) -> None:
        self._head.check_is_head(node)
        if not self._admission.resources.are_prepared(group.hex(), _indexes(indexes)):
            raise ValueError(f"bundles {indexes!r:.60} of group {group.hex()} are not prepared")
        self._admission.bundles_committed(group, indexes)

    def _return(self, node: NodeId, group: TaskId, indexes: Any) -> None:
        self._head.check_is_head(node)
        self._admission.bundles_returned(group, _indexes(indexes))

    def _end(self, node: NodeId, group: TaskId) -> None:
        self._head.check_is_head(node)
        self.end(group)

    def _claim(self, node: NodeId, group: TaskId, bundles: Any) -> None:
        self._head.check_is_head(node)
        self._admission.room_claimed(group, bundles_from(bundles))

    def _drop(self, node: NodeId, group: TaskId) -> None:
        self._head.check_is_head(node)
        self._admission.claim_dropped(group)


def _indexes(plain: Any) -> list[int]:
    if not isinstance(plain, list) or not all(type(index) is int for index in plain):
        raise ValueError(f"bundles are named by a list of numbers, not {plain!r:.60}")
    return plain
