"""Processes of other nodes, as far as they have to do with this node manager.

State: which of them have spoken to it. What such a process may say is in `handlers`, as what this node's own processes
may say is in the manager's. When one is dead, or its whole node, what it asked of this node is taken back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from skate.ids import NodeId, ProcessId, node_of

log = logging.getLogger("skate.node")


class Stranger(NamedTuple):
    """A process of another node, where the manager's handlers expect one of its own."""

    id: ProcessId


class Strangers:
    """`handlers`: code -> what to call with the stranger and the fields. `gone(process, cause)`: it has left."""

    def __init__(
        self, handlers: Mapping[int, Callable[..., None]], gone: Callable[[ProcessId, str], None]
    ) -> None:
        self._handlers = handlers
        self._gone = gone
        self._known: dict[ProcessId, Stranger] = {}

    def __contains__(self, process: ProcessId) -> bool:
        """Whether it has spoken to this node manager, and lives as far as that knows."""
        return process in self._known

    def introduce(self, process: ProcessId) -> None:
        """Its node manager speaks for it."""
        self._known.setdefault(process, Stranger(process))

    def dismiss(self, owner: ProcessId) -> None:
        """An actor that its node manager spoke for is gone, and what it asked for is taken back already."""
        self._known.pop(owner, None)

    def deliver(self, sender: ProcessId, records: list[tuple[int, tuple[Any, ...]]]) -> None:
        """A process of another node says something to this node manager."""
        stranger = self._known.setdefault(sender, Stranger(sender))
        for code, fields in records:
            handler = self._handlers.get(code)
            if handler is None:
                log.warning("process %s of another node sent message %d: refused", sender.hex(), code)
                continue
            try:
                handler(stranger, *fields)
            except ValueError as error:
                log.warning("refused message %d from process %s: %s", code, sender.hex(), error)
            except Exception:
                log.exception("message %d from process %s could not be handled", code, sender.hex())

    def on_process_died(self, process: ProcessId, cause: str) -> None:
        if self._known.pop(process, None) is not None:
            self._gone(process, cause)

    def on_node_died(self, node: NodeId, cause: str) -> None:
        for process in [process for process in self._known if node_of(process) == node]:
            self.on_process_died(process, cause)
