"""Many nodes: their starts, deaths and returns, and the drivers on them. Tells the checkers who has just run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from skate._c import frames
from skate.core.ledger import Record
from skate.ids import NODE_ID_BYTES, NodeId

from simulator.network import Network
from simulator.node import Node
from simulator.process import Driver, OwnerProcess
from simulator.world import World


class MemoryFile:
    """A head's state file: what is written stays, whoever dies."""

    named, path = True, "head.sqlite"

    def __init__(self) -> None:
        self._facts: dict[tuple[str, bytes], Any] = {}

    def records(self) -> list[Record]:
        return [Record(*key, _copy(body)) for key, body in self._facts.items()]

    def write(self, records: list[Record]) -> None:
        for kind, key, body in records:
            if body is None:
                self._facts.pop((kind, key), None)
            else:
                self._facts[kind, key] = _copy(body)

    def close(self, *, remove: bool = False) -> None: ...


def _copy(body: Any) -> Any:
    """As it comes back from a file."""
    [(_, (value,))] = frames.decode(frames.frame([frames.encode(1, b"X", (body,))]), [None, b"X"])
    return value


class Cluster:
    """The nodes of a world, the first of which is the head."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.network = Network(world)
        #: those that live, by id, in the order of their starts
        self.nodes: dict[NodeId, Node] = {}
        self.drivers: list[Driver] = []
        self.head_address = ""
        #: where the head writes down what it must know when it comes back; None: it comes back and knows nothing
        self.state: MemoryFile | None = None
        #: told of each process that has run; set by who checks
        self.on_step: Callable[[Any], None] | None = None
        #: how often the zygote has no memory for a process
        self.fork_failures = 0.0
        #: seconds from the moment that something comes for a process that sleeps until it runs. What comes meanwhile it
        #: takes in together with that; 0: each message has a turn of its own
        self.wake_up = 0.0
        self._pid = 1000
        self._hosts = 0

    def add_node(
        self, resources: Mapping[str, float], labels: Mapping[str, str] | None = None, address: str = ""
    ) -> Node:
        """Starts a node; the first is the head. It joins as the clock goes on. `address`: of one that was there."""
        if not address:
            self._hosts += 1
            address = f"10.{self._hosts >> 16 & 255}.{self._hosts >> 8 & 255}.{self._hosts & 255}:7000"
        head = self.head_address or None
        if head == address:
            head = None
        self.head_address = self.head_address or address
        node_id = NodeId(self.world.random.getrandbits(8 * NODE_ID_BYTES).to_bytes(NODE_ID_BYTES, "big"))
        node = Node(self, node_id, address, head, resources, labels or {})
        self.nodes[node_id] = node
        return node

    @property
    def head(self) -> Node | None:
        return next((node for node in self.living() if node.address == self.head_address), None)

    def living(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.alive]

    def joined(self) -> bool:
        """Whether all nodes that live know of one another, and of no others."""
        living = self.living()
        ids = {node.id for node in living}
        return all({row.node for row in node.manager.cluster.roster.living()} == ids for node in living)

    def owners(self) -> list[OwnerProcess]:
        """The drivers and workers that run."""
        return [process for node in self.living() for process in node.running.values()]

    def next_pid(self) -> int:
        self._pid += 1
        return self._pid

    def fork_fails(self) -> bool:
        return bool(self.fork_failures) and self.world.random.random() < self.fork_failures

    def stepped(self, process: Any) -> None:
        if self.on_step is not None:
            self.on_step(process)
