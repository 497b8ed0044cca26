"""The node's end of a worker's pipe: lines whole and in order, however they come; long ones are bounded."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest
from skate.node.logs import CUT, LINE_BYTES, READ_BYTES, TAIL_CHARACTERS, LineReader
from skate.worker.output import MARK


class Pipe:
    """A pipe and its reader; `said` is what that has emitted."""

    def __init__(self) -> None:
        ours, self.theirs = os.pipe()
        self.said: list[tuple[str, str]] = []
        self.reader = LineReader(ours, "stdout", lambda _, name, text: self.said.append((name, text)))

    def write(self, data: bytes) -> None:
        for at in range(0, len(data), READ_BYTES // 2):
            os.write(self.theirs, data[at : at + READ_BYTES // 2])
            assert self.reader.read()

    def lines(self) -> list[str]:
        return [line for _, text in self.said for line in text.split("\n")]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.theirs)
    made.reader.close()


def test_lines_are_whole_however_they_come(pipe: Pipe) -> None:
    chance = random.Random(1)
    lines = ["".join(chance.choices("ab✓\U0001f600", k=chance.randrange(200))) for _ in range(500)]
    data = "".join(line + "\n" for line in lines).encode()
    while data:
        size = chance.randrange(1, 3000)
        pipe.write(data[:size])
        data = data[size:]
    assert pipe.lines() == lines


def test_a_line_without_an_end_is_cut_and_marked_and_its_characters_are_whole(pipe: Pipe) -> None:
    """Of any length, in time that its length alone decides, and without more than one piece in memory."""
    line = "a✓é\U0001f600" * (2 * LINE_BYTES // 10)
    began = time.process_time()
    pipe.write(f"before\n{line}\nafter\n".encode())
    pipe.write(b"x" * (30 * LINE_BYTES))
    assert time.process_time() - began < 2
    assert pipe.reader._rest_bytes <= LINE_BYTES
    before, *pieces = pipe.lines()
    assert before == "before"
    last = pieces.index("after") - 1
    for piece in pieces[:last]:
        assert piece.endswith(CUT)
        assert len(piece.encode()) <= LINE_BYTES + READ_BYTES + 20
    assert "".join(piece.replace(CUT, "") for piece in pieces[: last + 1]) == line
    assert len(pieces) - last > 25


def test_the_name_of_a_task_is_not_cut(pipe: Pipe) -> None:
    """A task that ends without ending its line; the mark of the next comes wherever it comes."""
    for over in (-20, -10, -3, 0):
        pipe.said.clear()
        pipe.write(b"x" * (LINE_BYTES + over) + f"{MARK}somebody\n".encode() + b"hello\n")
        assert pipe.said[-1] == ("somebody", "hello")
        assert not any(MARK[:1] in line for line in pipe.lines())


def test_one_turn_takes_a_bounded_amount(pipe: Pipe) -> None:
    os.write(pipe.theirs, b"a\n" * 30_000)
    assert pipe.reader.read()
    assert sum(len(text) + 1 for _, text in pipe.said) <= READ_BYTES


def test_what_a_death_quotes_is_bounded(pipe: Pipe) -> None:
    pipe.write(b"y" * (3 * LINE_BYTES) + b"\nthe end\n")
    assert all(len(line) <= TAIL_CHARACTERS + len(CUT) for line in pipe.reader.tail)
    assert pipe.reader.tail[-1] == "the end"
