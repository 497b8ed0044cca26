"""An owner frees an object: what becomes of the copies that it does not count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from skate._c.refs import FAILED, INLINE, PENDING, STORED
from skate.ids import NodeId, ObjectId, TaskId, manager_of, object_id, process_id
from skate.runtime.copies import OwnedCopies
from skate.wire import messages as m

HOME, OTHER = NodeId(b"home"), NodeId(b"away")
ME, WORKER = process_id(HOME, 1), process_id(OTHER, 2)
OBJECT = object_id(TaskId(ME + bytes(8)), 0)


class Owner:
    """As much of a runtime as copies need."""

    def __init__(self, state: int) -> None:
        self.said: list[Any] = []
        self.entry = SimpleNamespace(id=OBJECT, state=state, value=None, literal=None)
        self.me, self.node, self.effects = ME, manager_of(HOME), []
        self.references = SimpleNamespace(entries={OBJECT: self.entry})
        self.deleted: list[bytes] = []
        self.store = SimpleNamespace(delete=lambda identifier: self.deleted.append(identifier) or True)
        self.objects: Any = SimpleNamespace(when_freed={}, _runtime=self)
        self.copies = OwnedCopies(self)  # type: ignore[arg-type]

    def handle(self, *_: Any) -> None: ...

    def post(self, to: Any, message: Any) -> None:
        self.said.append((to, message))

    def free(self, identifier: bytes) -> None:
        self.copies.free(identifier)

    def let_go(self, state: int) -> None:
        """As Objects does when the value is free. (Which is compiled, and takes no stand-in.)"""
        self.entry.state = state
        if state == STORED:
            self.free(OBJECT)
        elif state == FAILED:
            self.copies.free_remains(OBJECT)
        if OBJECT in self.objects.when_freed:
            self.objects.when_freed.pop(OBJECT)()


@pytest.mark.parametrize("state", [INLINE, FAILED, STORED])
def test_what_an_attempt_made_in_vain_goes_with_the_object(state: int) -> None:
    """Whatever came of the attempt that counts."""
    owner = Owner(PENDING)
    owner.copies.discard(OBJECT, WORKER)
    owner.let_go(state)
    assert owner.said == [(manager_of(OTHER), m.DropCopy(ObjectId(OBJECT)))]
    assert not owner.copies.machine.placed
    assert not owner.objects.when_freed


def test_at_home_it_goes_before_the_next_attempt_begins() -> None:
    """A message to the node manager could come after what that has made, and drop it."""
    owner = Owner(PENDING)
    owner.copies.discard(OBJECT, process_id(HOME, 2))
    owner.copies.drop_unanswered(OBJECT, process_id(HOME, 3))
    assert owner.deleted == [OBJECT]
    assert owner.said == []


def test_what_arrives_of_a_lost_object_goes_with_it() -> None:
    """A node had all of it, and had not said so yet, when the last node that it could be read from died."""
    owner = Owner(STORED)
    owner.copies.made_by(OBJECT, process_id(NodeId(b"dead"), 2))
    owner.copies.machine.on_asked(OBJECT, OTHER, 1)
    assert owner.copies.machine.on_node_died(NodeId(b"dead"), "killed") == [OBJECT]
    owner.entry.state = FAILED
    owner.copies._made(manager_of(OTHER), ObjectId(OBJECT))
    owner.let_go(FAILED)
    assert owner.said == [(manager_of(OTHER), m.DropCopy(ObjectId(OBJECT)))]
    assert not owner.copies.machine.placed
