"""What a node manager does so that whoever keeps something for the heirs of a dead process hears when all have spoken.

State: core.settling's rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from skate.core.settling import AskToSpeak, Settling
from skate.ids import NodeId, ProcessId, manager_of, node_of
from skate.node.cluster import NodeCluster
from skate.node.processes import Process
from skate.wire import messages as m


class Settlements:
    """Of one node. `processes` are those that live on it; `cluster` is set once there is one."""

    cluster: NodeCluster

    def __init__(
        self, node: NodeId, processes: Mapping[ProcessId, Process], post: Callable[[ProcessId, Any], None]
    ) -> None:
        self.machine = Settling()
        self._node = node
        self._processes = processes
        self._post = post
        #: what processes of this node say, and what other managers do
        self.from_processes: dict[int, Callable[..., None]] = {
            m.SettleDeath.code: self._asked,  # type: ignore[attr-defined]
            m.Spoken.code: self._spoken,  # type: ignore[attr-defined]
        }
        self.from_managers: dict[int, Callable[..., None]] = {
            m.Speak.code: self._asked_by_manager,  # type: ignore[attr-defined]
            m.Spoken.code: self._manager_spoken,  # type: ignore[attr-defined]
        }

    def _registered(self) -> list[ProcessId]:
        return [process.id for process in self._processes.values() if process.registered]

    def _asked(self, asker: Process, dead: ProcessId) -> None:
        if node_of(dead) != self._node or dead in self._processes:
            raise ValueError(f"{dead.hex()} is no dead process of this node")
        others = self.machine.known_to(dead)
        if others is None:
            others = [manager_of(row.node) for row in self.cluster.roster.living() if row.node != self._node]
        self.machine.asked(asker.id, dead, self._registered(), others)
        self._act()

    def _spoken(self, process: Process, number: int) -> None:
        self.machine.spoken(process.id, number)
        self._act()

    def _asked_by_manager(self, node: NodeId, number: int, dead: ProcessId) -> None:
        self.machine.asked(manager_of(node), dead, self._registered(), (), number)
        self._act()

    def _manager_spoken(self, node: NodeId, number: int) -> None:
        self.machine.spoken(manager_of(node), number)
        self._act()

    def process_died(self, process: ProcessId, acquaintances: list[NodeId]) -> None:
        """A process of this node is dead, and whoever is to hear of it was told."""
        self.machine.process_died(process, self._registered(), acquaintances)
        self._act()

    def node_died(self, node: NodeId) -> None:
        """Another node is dead: nobody there speaks any more."""
        self.machine.node_died(node)
        self._act()

    def _act(self) -> None:
        for effect in self.machine.take_effects():
            if type(effect) is AskToSpeak:
                self._post(effect.to, m.Speak(effect.number, effect.dead))
            elif effect.number is None:
                self._post(effect.to, m.DeathSettled(effect.dead))
            else:
                self._post(effect.to, m.Spoken(effect.number))
