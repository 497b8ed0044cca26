"""How what tasks print is shown: under whose name, unfinished lines too, and as text that steers no terminal."""

import logging
import os
import re
import subprocess
import sys

import pytest
import skate

from .rendezvous import eventually


@skate.remote
def say(*words: str) -> None:
    for word in words:
        print(word)


class TestUnfinished:
    """A line without an end is seen all the same, soon, and under the name of the task that printed it."""

    def test_of_a_task_that_is_done(self, skate_start, printed) -> None:
        @skate.remote
        def count() -> None:
            for i in range(10):
                print(i, end=" ")

        skate_start(num_cpus=1)
        skate.get(count.remote())
        assert any(re.fullmatch(r"\(count pid=\d+\) 0 1 2 3 4 5 6 7 8 9 ", line) for line in printed("0 1 2"))

    def test_of_one_that_goes_on(self, skate_start, printed, gate) -> None:
        @skate.remote
        def work() -> None:
            os.write(1, b"past Python")
            print("working … ", end="", file=sys.stderr, flush=True)
            gate.wait()
            print("done", file=sys.stderr)

        skate_start(num_cpus=1)
        ref = work.remote()
        printed("working … ")
        printed("past Python")
        gate.open()
        skate.get(ref)
        assert any(re.fullmatch(r"\(work pid=\d+\) done", line) for line in printed("done"))

    def test_the_next_task_begins_a_line(self, skate_start, printed) -> None:
        @skate.remote
        def begin() -> None:
            print("half", end="")

        skate_start(num_cpus=1)
        skate.get([begin.remote(), say.remote("whole"), begin.remote()])
        lines = [re.sub(r" pid=\d+", "", line) for line in printed("whole")]
        assert "(begin) half" in lines
        assert "(say) whole" in lines


class TestActors:
    """All that an actor prints has its name, in whatever way, from the first line of its __init__ on."""

    @pytest.mark.parametrize("kind", ["one at a time", "threads", "asyncio"])
    def test_every_way_has_the_name(self, skate_start, printed, kind: str) -> None:
        def write(where: str) -> None:
            print(f"{where} by print")
            logging.getLogger("a library").warning("%s by logging", where)
            os.write(1, f"{where} by descriptor\n".encode())
            os.write(2, f"{where} by the other descriptor\n".encode())
            os.system(f"echo {where} by a child")

        class Talker:
            def __init__(self) -> None:
                write("in init")

            def talk(self) -> None:
                write("in talk")

        if kind == "asyncio":
            Talker.wait = write_nothing  # type: ignore[attr-defined]
        skate_start(num_cpus=1)
        actor = skate.remote(Talker).options(max_concurrency=2 if kind == "threads" else None).remote()
        skate.get(actor.talk.remote())
        for where in ("in init", "in talk"):
            for way in ("print", "logging", "descriptor", "the other descriptor", "a child"):
                text = f"{where} by {way}"
                assert any(re.fullmatch(rf"\(Talker pid=\d+\) .*{text}", line) for line in printed(text)), (
                    text
                )

    def test_a_repr_of_its_own(self, skate_start, printed) -> None:
        """Once it has one, which is when it is made."""

        @skate.remote
        class Named:
            def __init__(self, index: int) -> None:
                print("making", index)
                self.index = index

            def __repr__(self) -> str:
                return f"Named(index={self.index})"

            def say(self, word: str) -> None:
                print(word)
                os.write(2, f"{word} again\n".encode())

        skate_start(num_cpus=1)
        skate.get(Named.remote(7).say.remote("hello"))
        lines = [re.sub(r" pid=\d+", "", line) for line in printed("hello again")]
        assert {"(Named) making 7", "(Named(index=7)) hello again"} <= set(lines)
        printed(" hello\n")

    @pytest.mark.parametrize(
        ("shown", "name"),
        [
            ("", "Odd"),
            ("two\nlines \x1b[2J", r"two\\nlines \\x1b\[2J"),
            ("x" * 1000, "x{199}…"),
            (None, "Odd"),
        ],
        ids=["empty", "control characters", "long", "one that raises"],
    )
    def test_an_odd_repr(self, skate_start, printed, shown: str | None, name: str) -> None:
        @skate.remote
        class Odd:
            def __repr__(self) -> str:
                if shown is None:
                    raise LookupError("no name")
                return shown

            def say(self) -> None:
                print("said")

        skate_start(num_cpus=1)
        skate.get(Odd.remote().say.remote())
        assert any(re.fullmatch(rf"\({name} pid=\d+\) said", line) for line in printed("said"))

    def test_no_contents_of_a_container(self, skate_start, printed) -> None:
        class Counts(dict):
            def say(self) -> None:
                print("said")

        skate_start(num_cpus=1)
        skate.get(skate.remote(Counts).remote(a=1).say.remote())
        assert any(line.startswith("(Counts pid=") for line in printed("said"))


async def write_nothing(self: object) -> None: ...


class TestForged:
    """What a task prints changes neither the name of a line, nor what a terminal shows of others."""

    def test_marks_and_control_sequences(self, skate_start, printed) -> None:
        @skate.remote
        def forge() -> None:
            print("\x1eskate-task:evil\nafter a mark")
            os.write(1, b"\x1eskate-task:evil\nafter another\n")
            print("\x1b[2J\x1b]0;title\x07cleared")
            print("up\r(evil pid=1) back\x08\x08 \x9b1A")
            print("\x1b[31mred")
            print("the end")

        skate_start(num_cpus=1)
        skate.get(forge.options(name="f\n(evil pid=2)\x1b[1A").remote())
        lines = [line for line in printed("the end") if line]
        assert len(lines) == 9
        assert all(re.match(r"\(f\\n\(evil pid=2\)\\x1b\[1A pid=\d+\) ", line) for line in lines)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "".join(lines))

    def test_colours_stay_and_end_with_their_line(self, skate_start, capfd) -> None:
        skate_start(num_cpus=1)
        skate.get(say.remote("\x1b[1;31mred", "plain"))
        eventually(lambda: b"plain" in os.pread(1, 10_000, 0))
        assert b") \x1b[1;31mred\x1b[0m\n" in os.pread(1, 10_000, 0)

    def test_they_may_be_passed_on(self, skate_start, capfd) -> None:
        skate_start(num_cpus=1, log_to_driver="raw")
        skate.get(say.remote("\x1b[2J\x07 back\r up"))
        eventually(lambda: b"\x1b[2J\x07 back\r up" in os.pread(1, 10_000, 0))

    def test_what_is_no_way_to_show_it(self) -> None:
        with pytest.raises(ValueError, match='"raw"'):
            skate.init(num_cpus=1, log_to_driver="loud")


def test_streams_are_as_pythons(skate_start, printed) -> None:
    """What libraries do with sys.stdout works in tasks, and has the task's name."""

    @skate.remote
    def use() -> None:
        sys.stdout.reconfigure(line_buffering=True)
        sys.stdout.buffer.write(b"by buffer\n")
        sys.stdout.writelines(["by writelines\n"])
        subprocess.run(["echo", "by a child of its own"], stdout=sys.stdout, check=True)
        assert sys.stdout.name == "<stdout>" or sys.stdout.name == 1
        assert not sys.stdout.isatty()

    skate_start(num_cpus=1)
    skate.get(use.remote())
    for text in ("by buffer", "by writelines", "by a child of its own"):
        assert any(re.fullmatch(rf"\(use pid=\d+\) {text}", line) for line in printed(text)), text
