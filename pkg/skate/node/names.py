"""The names of the cluster's actors, as one node has to do with them.

State: on the head, and on a node that is in no cluster, the table of names. Others ask the head (node.head); when that
is dead, another is told of the names that actors of this node have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from skate.core.names import NameTable
from skate.ids import ActorId, ProcessId, manager_of
from skate.node.head import Answer, HeadLink
from skate.wire import messages as m

#: what processes ask of the head in StateQuery
NAMES: Final = "named actors"


class NodeNames:
    """`named` gives the named actors of this node: (id, name, namespace, about)."""

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

    def claim(self, actor: ActorId, name: str, namespace: str, about: Any, answer: Answer) -> None:
        """An actor of this node is to have the name. `answer` gets None, or (id, about) of who has it."""
        if self._head.is_here:
            answer(_plain(self.table.claimed(actor, name, namespace, about)))
        else:
            self._head.ask(lambda token: m.RegisterActor(token, actor, name, namespace, False, about), answer)

    def find(self, name: str, namespace: str, answer: Answer) -> None:
        """`answer` gets None, or (id, about) of who has the name."""
        if self._head.is_here:
            answer(_plain(self.table.find(name, namespace)))
        else:
            self._head.ask(lambda token: m.FindActor(token, name, namespace), answer)

    def list(self, answer: Answer) -> None:
        if self._head.is_here:
            answer(self.table.listing())
        else:
            self._head.ask(lambda token: m.StateQuery(token, NAMES), answer)

    def ended(self, actor: ActorId) -> None:
        """An actor of this node is dead, which may have had a name."""
        if self._head.is_here:
            self.table.ended(actor)
        else:
            self._head.tell(m.ReleaseActor(actor))

    def _tell_of_all(self) -> None:
        """Another head has come: it knows no names yet."""
        for actor, name, namespace, about in self._named():
            self._head.tell(m.RegisterActor(0, actor, name, namespace, False, about))

    # --------------------------------------------------------------------------------------- for other managers

    def _claimed_there(
        self, asker: Any, token: int, actor: ActorId, name: str, namespace: str, _: bool, about: Any
    ) -> None:
        if manager_of(actor) == asker.id and self._head.is_here:
            self._head.reply(asker.id, token, _plain(self.table.claimed(actor, name, namespace, about)))

    def _find_for(self, asker: Any, token: int, name: str, namespace: str) -> None:
        self._head.reply(asker.id, token, _plain(self.table.find(name, namespace)))

    def _ended_there(self, asker: Any, actor: ActorId) -> None:
        if manager_of(actor) == asker.id:
            self.table.ended(actor)


def _plain(named: Any) -> Any:
    return None if named is None else (named.id, named.about)


def replying(post: Callable[[ProcessId, Any], None], process: ProcessId, token: int) -> Answer:
    """What sends an answer on to the process that asked."""
    return partial(_reply_to, post, process, token)


def _reply_to(post: Callable[[ProcessId, Any], None], process: ProcessId, token: int, value: Any) -> None:
    post(process, m.StateReply(token, value))
