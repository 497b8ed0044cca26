"""The names of the cluster's actors, as one node has to do with them.

State: on the head, and on a node that is in no cluster, the table of names. Others ask the head (node.head); when that
is dead, another is told of the names that actors of this node have. A head that writes down what it knows has its names
there before anybody hears of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from skate.core.names import Named, NameTable
from skate.ids import ActorId, NodeId, ProcessId, manager_of
from skate.node.head import Answer, HeadLink
from skate.wire import messages as m

if TYPE_CHECKING:
    from skate.node.ledger import NodeLedger

#: what is asked of the head in StateQuery: (namespace, name) of each living actor of the cluster that has a name
NAMES: Final = "named actors"


class NodeNames:
    """`named` gives the named actors of this node: (id, name, namespace, about)."""

    #: of a head that is to come back
    ledger: NodeLedger | None = None

    def __init__(self, head: HeadLink, named: Callable[[], Iterable[tuple[ActorId, str, str, Any]]]) -> None:
        self._head = head
        self._named = named
        self.table = NameTable()
        head.on_new_head.append(self._tell_of_all)
        head.answers.append(lambda what: self.table.listing if what == NAMES else None)
        #: from other node managers
        self.handlers: Final[dict[int, Callable[..., None]]] = {
            m.RegisterActor.code: self._claimed_there,  # type: ignore[attr-defined]
            m.FindActor.code: self._find_for,  # type: ignore[attr-defined]
            m.ReleaseActor.code: self._ended_there,  # type: ignore[attr-defined]
        }

    # -------------------------------------------------------------------------------------------- for this node

    def claim(
        self, actor: ActorId, name: str, namespace: str, about: Any, ending: bytes, answer: Answer
    ) -> None:
        """An actor of this node is to have the name. `answer` gets None, or (id, about) of who has it.

        Who is known to be `ending` has it no more.
        """
        if self._head.is_here:
            answer(_plain(self._claimed(actor, name, namespace, about, ending)))
        else:
            self._head.ask(
                lambda token: m.RegisterActor(token, actor, name, namespace, False, about, ending), answer
            )

    def find(self, name: str, namespace: str, answer: Answer) -> None:
        """`answer` gets None, or (id, about) of who has the name."""
        if self._head.is_here:
            answer(_plain(self.table.find(name, namespace)))
        else:
            self._head.ask(lambda token: m.FindActor(token, name, namespace), answer)

    def ended(self, actor: ActorId) -> None:
        """An actor of this node is dead, or bound to end: its name is free, if it still has one."""
        if self._head.is_here:
            self._ended(actor)
        else:
            self._head.tell(m.ReleaseActor(actor))

    def _claimed(self, actor: ActorId, name: str, namespace: str, about: Any, ending: bytes) -> Named | None:
        other = self.table.claimed(actor, name, namespace, about, ending)
        if other is None and self.ledger is not None:
            self.ledger.name_taken(actor, name, namespace, about)
        return other

    def _ended(self, actor: ActorId) -> None:
        key = self.table.ended(actor)
        if key is not None and self.ledger is not None:
            self.ledger.name_freed(key[1], key[0])

    def node_died(self, node: NodeId) -> None:
        """Another node is dead. Where a head was before, its actors are this node's."""
        if node not in self._head.roster.former:
            for namespace, name in self.table.node_died(node):
                if self.ledger is not None:
                    self.ledger.name_freed(name, namespace)

    def _tell_of_all(self) -> None:
        """Another head has come: it knows no names yet."""
        for actor, name, namespace, about in self._named():
            self._head.tell(m.RegisterActor(0, actor, name, namespace, False, about, b""))

    # --------------------------------------------------------------------------------------- for other managers

    def _claimed_there(
        self,
        asker: Any,
        token: int,
        actor: ActorId,
        name: str,
        namespace: str,
        _: bool,
        about: Any,
        ending: bytes,
    ) -> None:
        if manager_of(actor) == asker.id and self._head.is_here:
            self._head.reply(asker.id, token, _plain(self._claimed(actor, name, namespace, about, ending)))

    def _find_for(self, asker: Any, token: int, name: str, namespace: str) -> None:
        self._head.reply(asker.id, token, _plain(self.table.find(name, namespace)))

    def _ended_there(self, asker: Any, actor: ActorId) -> None:
        if manager_of(actor) == asker.id:
            self._ended(actor)

    def called(self, node: NodeId, named: Iterable[bytes]) -> None:
        """A node has told of all its names: what is not among them was given up while there was no head."""
        still = set(named)
        for actor in self.table.of_node(node):
            if actor not in still:
                self._ended(actor)


def _plain(named: Any) -> Any:
    return None if named is None else (named.id, named.about)


def replying(post: Callable[[ProcessId, Any], None], process: ProcessId, token: int) -> Answer:
    """What sends an answer on to the process that asked."""
    return partial(_reply_to, post, process, token)


def _reply_to(post: Callable[[ProcessId, Any], None], process: ProcessId, token: int, value: Any) -> None:
    post(process, m.StateReply(token, value))
