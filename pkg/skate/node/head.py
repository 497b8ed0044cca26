"""What a node asks the head, and tells it: of names, of placement groups.

State: what was asked and is not answered. On the head itself, and on a node that is in no cluster, whoever would ask
has the answer (`is_here`). Managers ask the head with the messages with which processes ask their managers. When the
head is dead, another one is told, by who is in `on_new_head`, what it has to know, and asked what was not answered. So
what must not be lost with a head, nor while there is none, is asked, also where the answer says only that it is done.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from skate.core.roster import Roster
from skate.ids import NodeId, ProcessId, manager_of
from skate.wire import messages as m

Answer = Callable[[Any], None]


class Question(NamedTuple):
    """What the head was asked."""

    message: Any
    answer: Answer
    #: called instead when there is no head; None: another one is waited for
    away: Callable[[], None] | None


class HeadLink:
    """`post` sends a message. `roster` is set once the node has one."""

    roster: Roster

    def __init__(self, node: NodeId, post: Callable[[ProcessId, Any], None]) -> None:
        self._me = node
        self._post = post
        self._tokens = itertools.count(1)
        self._asked: dict[int, Question] = {}
        #: the head that was asked
        self._head: NodeId | None = None
        #: the one that has come last knows what the one before knew
        self.remembers = False
        self.on_new_head: list[Callable[[], None]] = []
        #: question -> what gives the answer to it; or nothing, where it is none of its questions
        self.answers: list[Callable[[str], Callable[[], Any] | None]] = []
        #: from other node managers
        self.handlers: Final[dict[int, Callable[..., None]]] = {
            m.StateQuery.code: self._query,  # type: ignore[attr-defined]
            m.StateReply.code: self._answered,  # type: ignore[attr-defined]
        }

    @property
    def is_here(self) -> bool:
        """Whether this node is the head."""
        return not self.roster.in_cluster or self.roster.head == self._me

    def ask(self, make: Callable[[int], Any], answer: Answer, away: Callable[[], None] | None = None) -> None:
        """Asks the head with the message that `make` makes of a token; another one, if it dies before it answers.

        `away`: nobody waits for another one, this is called instead.
        """
        if away is not None and (self._head is None or self.roster.is_dead(self._head)):
            away()
            return
        token = next(self._tokens)
        question = self._asked[token] = Question(make(token), answer, away)
        self.tell(question.message)

    def inquire(self, what: str, answer: Answer, away: Callable[[], None] | None = None) -> bool:
        """Has `answer` called with the answer to a question about what the head knows; False where it is none."""
        known = self._find(what)
        if known is None:
            return False
        if self.is_here:
            answer(known())
        else:
            self.ask(lambda token: m.StateQuery(token, what), answer, away)
        return True

    def node_died(self, node: NodeId) -> None:
        """Another node is dead, perhaps that of the head."""
        if node == self._head:
            for token, question in list(self._asked.items()):
                if question.away is not None:
                    del self._asked[token]
                    question.away()

    def tell(self, message: Any) -> None:
        """Says it to the head, if there is one; another is told of everything when it comes."""
        head = self.roster.head
        if head is not None and head == self._head and not self.roster.is_dead(head):
            self._post(manager_of(head), message)

    def act(self) -> None:
        """Another head has come, perhaps: it knows nothing yet, or what the last one knew."""
        head = self.roster.head
        if head == self._head or head is None or self.is_here:
            return
        self.remembers = self._head in self.roster.former
        self._head = head
        for tell in self.on_new_head:
            tell()
        for question in self._asked.values():
            self._post(manager_of(head), question.message)

    def check_is_head(self, node: NodeId) -> None:
        """ValueError where the node is not the head."""
        if node != self.roster.head:
            raise ValueError("only the head decides on placement groups")

    def _answered(self, head: Any, token: int, value: Any) -> None:
        if head.id == manager_of(self.roster.head or b""):
            question = self._asked.pop(token, None)
            if question is not None:
                question.answer(value)

    def _find(self, what: str) -> Callable[[], Any] | None:
        return next((known for answers in self.answers if (known := answers(what)) is not None), None)

    def _query(self, asker: Any, token: int, what: str) -> None:
        known = self._find(what)
        if known is not None and self.is_here:
            self.reply(asker.id, token, known())

    def reply(self, to: ProcessId, token: int, value: Any) -> None:
        """Answers a manager that has asked."""
        if token:
            self._post(to, m.StateReply(token, value))
