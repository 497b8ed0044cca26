"""Which other nodes have to hear when a process of this node dies: those that it was in touch with, and who asked.

Pure. State: for each living process of this node, the nodes; and for each of them its processes. A process that was
never in touch with another node costs nothing. Who asks about a process that is dead already is answered at once, by
whoever knows that it is.
"""

from __future__ import annotations

from skate.ids import NodeId, ProcessId


class Acquaintances:
    """Of the processes of one node."""

    def __init__(self) -> None:
        self._nodes: dict[ProcessId, set[NodeId]] = {}

    def met(self, process: ProcessId, node: NodeId) -> None:
        """A process of this node has to do with one of that node."""
        nodes = self._nodes.get(process)
        if nodes is None:
            nodes = self._nodes[process] = set()
        nodes.add(node)

    def on_process_died(self, process: ProcessId) -> list[NodeId]:
        """Who has to hear of it; it is forgotten."""
        return sorted(self._nodes.pop(process, ()))

    def on_node_died(self, node: NodeId) -> None:
        """Nobody there has to hear of anything any more."""
        for process, nodes in list(self._nodes.items()):
            nodes.discard(node)
            if not nodes:
                del self._nodes[process]
