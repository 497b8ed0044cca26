"""The table of actors' names against a plain dictionary."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from skate.core.names import NameTable
from skate.ids import ActorId, NodeId, TaskId, node_of, process_id

NODES = [NodeId(bytes([0, 0, 0, number])) for number in (1, 2)]
ACTORS = [
    ActorId(TaskId(process_id(node, 1) + number.to_bytes(8, "big"))) for node in NODES for number in range(4)
]
NAMES = st.sampled_from([("a", "x"), ("b", "x"), ("a", "y")])


class Names(RuleBasedStateMachine):
    """Actors, each of which asks for one name, end, alone or with their nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = NameTable()
        self.names: dict[tuple[str, str], ActorId] = {}

    @rule(actor=st.sampled_from(ACTORS), key=NAMES)
    def claims(self, actor: ActorId, key: tuple[str, str]) -> None:
        if actor in self.names.values() and self.names.get(key) != actor:
            return  # it has another name
        namespace, name = key
        other = self.table.claimed(actor, name, namespace, actor.hex())
        if key in self.names and self.names[key] != actor:
            assert other == (self.names[key], self.names[key].hex())
        else:
            assert other is None
            self.names[key] = actor

    @rule(actor=st.sampled_from(ACTORS), key=NAMES, ending=st.sampled_from(ACTORS))
    def claims_after(self, actor: ActorId, key: tuple[str, str], ending: ActorId) -> None:
        """Its maker knows that another one is bound to end, of which nobody has said so here."""
        if actor in self.names.values() or actor == ending:
            return
        other = self.table.claimed(actor, key[1], key[0], actor.hex(), ending)
        if self.names.get(key) in (None, ending):
            assert other is None
            self.names[key] = actor
            self.ends(ending)  # as its own node says in the end: its name is not its any more
        else:
            assert other == (self.names[key], self.names[key].hex())

    @rule(actor=st.sampled_from(ACTORS))
    def ends(self, actor: ActorId) -> None:
        self.table.ended(actor)
        self.names = {key: other for key, other in self.names.items() if other != actor}

    @rule(node=st.sampled_from(NODES))
    def node_dies(self, node: NodeId) -> None:
        self.table.node_died(node)
        self.names = {key: actor for key, actor in self.names.items() if node_of(actor) != node}

    @invariant()
    def agrees(self) -> None:
        self.table.check()
        assert self.table.listing() == sorted(self.names)
        for (namespace, name), actor in self.names.items():
            found = self.table.find(name, namespace)
            assert found is not None
            assert found.id == actor


TestNames = Names.TestCase
