"""The node's end of a worker's pipe: lines whole and in order, however they come; long ones are bounded."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest
from skate._c import clock
from skate.node.logs import (
    CUT,
    LINE_BYTES,
    READ_BYTES,
    TAIL_CHARACTERS,
    UNFINISHED_SECONDS,
    LineReader,
    Unfinished,
)
from skate.worker.output import mark_of

MARK = mark_of("a secret")


class Pipe:
    """A pipe and its reader; `said` is what that has emitted."""

    def __init__(self) -> None:
        ours, self.theirs = os.pipe()
        self.said: list[tuple[str, str]] = []
        self.reader = LineReader(ours, "stdout", MARK, lambda _, name, text: self.said.append((name, text)))

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


class TestUnfinished:
    """A line that has no end is given out once it has stood for long enough, and each of its bytes once."""

    @pytest.fixture
    def unfinished(self, pipe: Pipe) -> Unfinished:
        def read(_: object, reader: LineReader) -> None:
            reader.read()
            unfinished.note(None, reader)

        unfinished = Unfinished(read)
        return unfinished

    def test_it_is_given_when_it_is_due(self, pipe: Pipe, unfinished: Unfinished) -> None:
        pipe.write(b"whole\nhalf")
        unfinished.note(None, pipe.reader)
        now = clock.monotonic()
        due = unfinished.step(now)
        assert due is not None
        assert now < due <= now + UNFINISHED_SECONDS
        assert pipe.lines() == ["whole"]
        unfinished.step(due)
        assert pipe.lines() == ["whole", "half"]
        assert unfinished.step(due) is None

    def test_what_has_come_meanwhile_counts(self, pipe: Pipe, unfinished: Unfinished) -> None:
        pipe.write(b"half")
        unfinished.note(None, pipe.reader)
        os.write(pipe.theirs, b" and its end\nnext")
        unfinished.step(clock.monotonic() + UNFINISHED_SECONDS)
        assert pipe.lines() == ["half and its end"]

    def test_its_end_is_no_line(self, pipe: Pipe) -> None:
        pipe.write(b"half")
        pipe.reader.give_unfinished()
        pipe.write(b"\nnext\n\nhalf")
        pipe.reader.give_unfinished()
        pipe.write(b" more\n")
        assert pipe.lines() == ["half", "next", "", "half", " more"]

    def test_no_character_and_no_mark_is_torn(self, pipe: Pipe) -> None:
        data = f"a✓\U0001f600{MARK}somebody\nb\x1ec".encode()
        for byte in data:
            pipe.write(bytes([byte]))
            pipe.reader.give_unfinished()
        assert "".join(text for name, text in pipe.said if not name) == "a✓\U0001f600"
        assert "".join(text for name, text in pipe.said if name == "somebody") == "b\x1ec"

    def test_a_pipe_that_is_not_read_is_left(self, pipe: Pipe, unfinished: Unfinished) -> None:
        pipe.write(b"half")
        unfinished.note(None, pipe.reader)
        unfinished.leave(pipe.reader)
        assert unfinished.step(clock.monotonic() + UNFINISHED_SECONDS) is None
        assert pipe.lines() == []


def test_only_the_marks_of_this_worker_count(pipe: Pipe) -> None:
    pipe.write(f"{mark_of('another')}forged\n{MARK[:-2]}:forged\nmine\n{MARK}real\nits\n".encode())
    assert [name for name, _ in pipe.said] == ["", "real"]
    assert pipe.said[-1] == ("real", "its")


def test_what_a_death_quotes_moves_no_cursor(pipe: Pipe) -> None:
    pipe.write(b"\x1b[2Jgone\n")
    assert pipe.reader.tail[-1] == "\\x1b[2Jgone"
