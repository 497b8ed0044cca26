"""Which actor of the cluster has which name: the head's table, or that of a node that is in no cluster.

Pure. State: the names, and the actor that has each. Events: claimed, ended, node_died.

Invariant (`check`): a name has one actor, an actor one name.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from skate.ids import ActorId, NodeId, node_of


class Named(NamedTuple):
    """Who has a name."""

    id: ActorId
    #: what a handle made from the name needs; opaque here
    about: Any


class NameTable:
    """(namespace, name) -> who has it."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], Named] = {}
        self._of: dict[ActorId, tuple[str, str]] = {}

    def claimed(
        self, actor: ActorId, name: str, namespace: str, about: Any, ending: bytes = b""
    ) -> Named | None:
        """An actor is to have the name. Gives None, or who has it already.

        `ending` is an actor that is known to be bound to end, whose own node has yet to say so: it has no name then.
        """
        key = namespace, name
        other = self._names.get(key)
        if other is not None and other.id == ending:
            self.ended(other.id)
        elif other is not None:
            return None if other.id == actor else other
        self._names[key] = Named(actor, about)
        self._of[actor] = key
        return None

    def find(self, name: str, namespace: str) -> Named | None:
        return self._names.get((namespace, name))

    def ended(self, actor: ActorId) -> tuple[str, str] | None:
        """An actor is dead, or bound to end: its name is free, if it had one. Gives (namespace, name) then."""
        key = self._of.pop(actor, None)
        if key is not None:
            del self._names[key]
        return key

    def node_died(self, node: NodeId) -> list[tuple[str, str]]:
        """A node is dead, and with it the directory of the actors that were made there: gives what is free now."""
        return [key for key in map(self.ended, self.of_node(node)) if key is not None]

    def of_node(self, node: NodeId) -> list[ActorId]:
        """Those that were made on the node, and so stand in its directory."""
        return [actor for actor in self._of if node_of(actor) == node]

    def listing(self) -> list[tuple[str, str]]:
        """(namespace, name) of all."""
        return sorted(self._names)

    def check(self) -> None:
        """Raises AssertionError where the invariant does not hold."""
        if {named.id: key for key, named in self._names.items()} != self._of:
            raise AssertionError(f"{self._names} and {self._of} do not agree")
