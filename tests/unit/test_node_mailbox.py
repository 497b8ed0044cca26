"""A node manager's mailbox that holds back what it says until something is written down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from skate._c import frames
from skate.ids import NodeId, ProcessId, manager_of, process_id
from skate.net.mailbox import Mailbox
from skate.net.node_mailbox import NodeMailbox
from skate.wire import messages as m
from skate.wire.messages import encode

NODE = NodeId(b"node")
ELSEWHERE = process_id(NodeId(b"else"), 0)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[NodeMailbox, Mailbox, list[Any], list[Any]]]:
    """(a manager's mailbox, a process's, what the process hears, what is passed on to other nodes)"""
    heard: list[Any] = []
    passed_on: list[Any] = []
    manager = NodeMailbox(process_id(NODE, 0), str(tmp_path), lambda *_: None, None)
    manager.pass_on = lambda sender, to, frame, bulk: passed_on.append((sender, to, frame))
    process = Mailbox(
        process_id(NODE, 1), str(tmp_path), lambda sender, records: heard.append((sender, records)), None
    )
    yield manager, process, heard, passed_on
    manager.close()
    process.close()


def said(number: int) -> bytes:
    return encode(m.ReturnLease(number))


def test_nothing_leaves_before_what_it_follows_from_is_written(two: tuple) -> None:
    manager, process, heard, passed_on = two
    written: list[str] = []

    def write() -> None:
        assert not heard
        assert not passed_on
        written.append("written")

    manager.post(process.me, said(1))
    manager.hold(write)
    manager.hold(lambda: written.append("never: once is enough"))
    manager.post(process.me, said(2))
    stranger = ProcessId(b"else0007")
    manager.forward(process.me, stranger, frames.frame([said(3)]))
    manager.post(process.me, said(4))
    manager.post(ELSEWHERE, said(5))
    assert not process.read(0)
    assert written == []
    manager.flush()
    assert written == ["written"]
    assert [to for _, to, _ in passed_on] == [ELSEWHERE]
    while sum(len(records) for _, records in heard) < 4:
        process.read(5)
    in_order = [(sender, fields[0]) for sender, records in heard for _, fields in records]
    assert in_order == [(manager.me, 1), (manager.me, 2), (stranger, 3), (manager.me, 4)]
    assert manager_of(stranger) == ELSEWHERE
    manager.flush()
    assert written == ["written"]


def test_what_is_held_again_while_it_goes_out(two: tuple) -> None:
    """What is said when the first is written may be something new to write, and what comes after it waits for that."""
    manager, _, _, passed_on = two
    order: list[str] = []

    def pass_on(sender: ProcessId, to: ProcessId, frame: bytes, bulk: object) -> None:
        order.append(f"said {len(passed_on)}")
        passed_on.append(to)
        if len(passed_on) == 1:
            manager.hold(lambda: order.append("second"))

    manager.pass_on = pass_on
    manager.hold(lambda: order.append("first"))
    manager.post(ELSEWHERE, said(1))
    manager.post(ELSEWHERE, said(2))
    manager.flush()
    assert order == ["first", "said 0", "second", "said 1"]


def test_many_managers_are_sent_one_frame(two: tuple) -> None:
    manager, _, _, passed_on = two
    nodes = [NodeId(name) for name in (b"elsa", b"elsb", b"elsc")]
    written: list[str] = []
    manager.hold(lambda: written.append("written"))
    manager.post_to_managers(nodes, said(1))
    assert not passed_on
    manager.flush()
    assert written == ["written"]
    assert [(sender, to) for sender, to, _ in passed_on] == [(manager.me, manager_of(node)) for node in nodes]
    assert len({id(frame) for _, _, frame in passed_on}) == 1
    assert passed_on[0][2] == frames.frame([said(1)])
