"""The names of the cluster's actors, as one node has to do with them.

State: on the head, and on a node that is in no cluster, the table of names; on others what processes have asked and the
head has not answered yet. Other managers ask the head with the messages with which processes ask their managers. When
the head is dead, another is told of the names that actors of this node have, and asked what was not answered.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, NamedTuple

from skate.core.names import NameTable
from skate.core.roster import Roster
from skate.ids import ActorId, NodeId, ProcessId, manager_of
from skate.wire import messages as m

#: what processes ask of the head in StateQuery
NAMES: Final = "named actors"

Answer = Callable[[Any], None]


class Question(NamedTuple):
    """What the head was asked."""

    message: Any
    answer: Answer


class NodeNames:
    """`post` sends a message, `named` gives the named actors of this node: (id, name, namespace, about)."""

    roster: Roster

    def __init__(
        self,
        node: NodeId,
        post: Callable[[ProcessId, Any], None],
        named: Callable[[], Iterable[tuple[ActorId, str, str, Any]]],
    ) -> None:
        self._me = node
        self._post = post
        self._named = named
        self.table = NameTable()
        self._tokens = itertools.count(1)
        self._asked: dict[int, Question] = {}
        #: the head that was asked
        self._head: NodeId | None = None
        #: from other node managers
        self.handlers: Final[dict[int, Callable[..., None]]] = {
            m.RegisterActor.code: self._claimed_there,  # type: ignore[attr-defined]
            m.FindActor.code: self._find_for,  # type: ignore[attr-defined]
            m.ReleaseActor.code: self._ended_there,  # type: ignore[attr-defined]
            m.StateQuery.code: self._list_for,  # type: ignore[attr-defined]
            m.StateReply.code: self._answered,  # type: ignore[attr-defined]
        }

    @property
    def _keeps(self) -> bool:
        """Whether the table is this node's."""
        return not self.roster.in_cluster or self.roster.head == self._me

    # -------------------------------------------------------------------------------------------- for this node

    def claim(self, actor: ActorId, name: str, namespace: str, about: Any, answer: Answer) -> None:
        """An actor of this node is to have the name. `answer` gets None, or (id, about) of who has it."""
        if self._keeps:
            answer(_plain(self.table.claimed(actor, name, namespace, about)))
        else:
            self._ask(lambda token: m.RegisterActor(token, actor, name, namespace, False, about), answer)

    def find(self, name: str, namespace: str, answer: Answer) -> None:
        """`answer` gets None, or (id, about) of who has the name."""
        if self._keeps:
            answer(_plain(self.table.find(name, namespace)))
        else:
            self._ask(lambda token: m.FindActor(token, name, namespace), answer)

    def list(self, answer: Answer) -> None:
        if self._keeps:
            answer(self.table.listing())
        else:
            self._ask(lambda token: m.StateQuery(token, NAMES), answer)

    def ended(self, actor: ActorId) -> None:
        """An actor of this node is dead, which may have had a name."""
        if self._keeps:
            self.table.ended(actor)
        else:
            self._tell(m.ReleaseActor(actor))

    def _ask(self, make: Callable[[int], Any], answer: Answer) -> None:
        token = next(self._tokens)
        question = self._asked[token] = Question(make(token), answer)
        self._tell(question.message)

    def _tell(self, message: Any) -> None:
        """Says it to the head, if there is one; another is told of everything when it comes."""
        head = self.roster.head
        if head is not None and head == self._head and not self.roster.is_dead(head):
            self._post(manager_of(head), message)

    def act(self) -> None:
        """Another head has come: it knows no names yet."""
        head = self.roster.head
        if head == self._head or head is None or self._keeps:
            return
        self._head = head
        for actor, name, namespace, about in self._named():
            self._post(manager_of(head), m.RegisterActor(0, actor, name, namespace, False, about))
        for question in self._asked.values():
            self._post(manager_of(head), question.message)

    def _answered(self, head: Any, token: int, value: Any) -> None:
        if head.id == manager_of(self.roster.head or b""):
            question = self._asked.pop(token, None)
            if question is not None:
                question.answer(value)

    # --------------------------------------------------------------------------------------- for other managers

    def _claimed_there(
        self, asker: Any, token: int, actor: ActorId, name: str, namespace: str, _: bool, about: Any
    ) -> None:
        if manager_of(actor) == asker.id and self._keeps:
            self._reply(asker.id, token, _plain(self.table.claimed(actor, name, namespace, about)))

    def _find_for(self, asker: Any, token: int, name: str, namespace: str) -> None:
        self._reply(asker.id, token, _plain(self.table.find(name, namespace)))

    def _list_for(self, asker: Any, token: int, what: str) -> None:
        if what == NAMES:
            self._reply(asker.id, token, self.table.listing())

    def _ended_there(self, asker: Any, actor: ActorId) -> None:
        if manager_of(actor) == asker.id:
            self.table.ended(actor)

    def _reply(self, to: ProcessId, token: int, value: Any) -> None:
        if token:
            self._post(to, m.StateReply(token, value))


def _plain(named: Any) -> Any:
    return None if named is None else (named.id, named.about)


def replying(post: Callable[[ProcessId, Any], None], process: ProcessId, token: int) -> Answer:
    """What sends an answer on to the process that asked."""
    return partial(_reply_to, post, process, token)


def _reply_to(post: Callable[[ProcessId, Any], None], process: ProcessId, token: int, value: Any) -> None:
    post(process, m.StateReply(token, value))
