"""What a worker writes down before its death is what its node manager reads after it."""

from __future__ import annotations

import mmap

from hypothesis import given, settings
from hypothesis import strategies as st
from skate.ids import NodeId, ProcessId, process_id
from skate.wire import testament
from skate.wire.testament import LONGEST

OWNERS = [process_id(NodeId(b"node"), number) for number in (1, 2)]


def new() -> tuple[mmap.mmap, testament.Testament]:
    memory = mmap.mmap(-1, testament.BYTES)
    return memory, testament.Testament(memory)


def test_of_a_worker_that_did_nothing() -> None:
    memory, _ = new()
    assert testament.running(memory) == b""
    assert testament.answers(memory) == (0, [])


def test_the_task_that_runs() -> None:
    memory, worker = new()
    worker.begins(b"t" * 16)
    assert testament.running(memory) == b"t" * 16
    worker.answered(7)
    assert testament.running(memory) == b""
    assert testament.answers(memory)[0] == 7
    worker.new_lease()
    assert testament.answers(memory)[0] == 0


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(OWNERS), st.integers(0, LONGEST + 1)), max_size=60))
def test_the_latest_answers_are_read_in_order(notes: list[tuple[ProcessId, int]]) -> None:
    memory, worker = new()
    noted = []
    for number, (owner, size) in enumerate(notes):
        record = number.to_bytes(2, "big") * (size // 2 + 1)
        record = record[:size]
        if worker.note(owner, number, record):
            noted.append((owner, number, record))
        else:
            assert size > LONGEST
        _, found = testament.answers(memory)
        assert found == noted[len(noted) - len(found) :]
        kept = sum(len(record) for *_, record in found)
        assert len(found) == len(noted) or kept > 8_000, "the last answers are kept"


@settings(max_examples=50)
@given(st.binary(min_size=64, max_size=64))
def test_any_bytes_are_read_without_an_error(header: bytes) -> None:
    """A worker may write anything into its own file."""
    memory, _ = new()
    memory[: len(header)] = header
    testament.answers(memory)
