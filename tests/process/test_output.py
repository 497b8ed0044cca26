"""What tasks print arrives complete and in order, whichever way it is written and however the worker ends."""

from __future__ import annotations

import re

import pytest
from api.rendezvous import eventually

from .drivers import Driver

pytestmark = [pytest.mark.timeout(60), pytest.mark.transport]

LINE = re.compile(r"\((?:(?P<name>\S+) )?pid=(?P<pid>\d+)\) ?(?P<text>.*)")


def printed(driver: Driver) -> dict[str, list[tuple[str, str]]]:
    """Pid -> (task name, text) of each line that a task has printed, in order. All of them have a prefix."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in driver.output.splitlines():
        match = LINE.fullmatch(line)
        assert match, f"a line without a prefix: {line!r}"
        found.setdefault(match["pid"], []).append((match["name"] or "", match["text"]))
    return found


def test_ten_thousand_lines_of_two_tasks(start_driver) -> None:
    driver = start_driver(
        """
        import skate

        @skate.remote
        def count(first, number):
            for i in range(first, first + number):
                print("line", i)

        skate.init(num_cpus=2)
        skate.get([count.remote(0, 5_000), count.remote(5_000, 5_000)])
        skate.shutdown()
        """
    )
    assert driver.wait() == 0
    lines = printed(driver)
    texts = [text for of_worker in lines.values() for _, text in of_worker]
    assert sorted(texts) == sorted(f"line {i}" for i in range(10_000))
    for of_worker in lines.values():
        for first in (0, 5_000):
            numbers = [
                int(text.split()[1]) for _, text in of_worker if first <= int(text.split()[1]) < first + 5_000
            ]
            assert numbers == sorted(numbers)
        assert {name for name, _ in of_worker} == {"count"}


def test_each_line_has_the_name_of_the_task_that_printed_it(start_driver) -> None:
    driver = start_driver(
        """
        import skate

        @skate.remote
        def say(word):
            print(word)

        skate.init(num_cpus=1)
        skate.get([say.options(name=f"task{i % 7}").remote(f"task{i % 7}") for i in range(500)])
        skate.shutdown()
        """
    )
    assert driver.wait() == 0
    lines = [line for of_worker in printed(driver).values() for line in of_worker]
    assert len(lines) == 500
    assert all(name == text for name, text in lines)


def test_what_is_written_past_python(start_driver) -> None:
    driver = start_driver(
        """
        import ctypes, os, subprocess, sys
        import skate

        @skate.remote
        def write():
            print("one, by print")
            os.write(1, b"two, by write\\n")
            subprocess.run(["echo", "three, by a child"])
            libc = ctypes.CDLL(None)
            libc.printf(b"four, by printf\\n")
            libc.fflush(None)
            sys.stdout.buffer.write(b"five, by buffer\\n")
            sys.stdout.buffer.flush()
            print("six, by print")

        skate.init(num_cpus=1)
        skate.get(write.remote())
        skate.shutdown()
        """
    )
    assert driver.wait() == 0
    (lines,) = printed(driver).values()
    assert [text.split(",")[0] for _, text in lines] == ["one", "two", "three", "four", "five", "six"]


def test_a_last_line_without_an_end(start_driver) -> None:
    driver = start_driver(
        """
        import sys
        import skate

        @skate.remote
        def begin():
            print("a line")
            print("half a line", end="")

        @skate.remote
        def go_on():
            print("another")

        skate.init(num_cpus=1)
        skate.get(begin.remote())
        skate.get(go_on.remote())
        skate.get(begin.remote())
        skate.shutdown()
        """
    )
    assert driver.wait() == 0
    (lines,) = printed(driver).values()
    assert "".join(text for _, text in lines) == "a linehalf a lineanothera linehalf a line"


@pytest.mark.parametrize(
    "end", ["os._exit(1)", "os.kill(os.getpid(), 9)", "sys.exit(3)", "ctypes.string_at(0)"]
)
def test_the_last_words_of_a_worker(start_driver, end: str) -> None:
    driver = start_driver(
        f"""
        import ctypes, os, sys
        import skate

        @skate.remote(max_retries=0)
        def die():
            for i in range(1_000):
                print("line", i)
            os.write(2, b"the end")
            {end}

        skate.init(num_cpus=1)
        try:
            skate.get(die.remote())
        except skate.exceptions.WorkerCrashedError:
            pass
        skate.shutdown()
        """
    )
    assert driver.wait() == 0
    (lines,) = printed(driver).values()
    texts = [text for _, text in lines]
    assert [text for text in texts if text.startswith("line")] == [f"line {i}" for i in range(1_000)]
    assert "the end" in texts


def test_what_is_printed_right_before_shutdown(start_driver) -> None:
    driver = start_driver(
        """
        import os
        import skate
        from api.rendezvous import Gate, eventually
        from pathlib import Path

        @skate.remote
        def talk(gate):
            for i in range(2_000):
                print("line", i)
            gate.open()
            gate_that_stays_shut = Gate(Path("shut"))
            gate_that_stays_shut.wait()

        skate.init(num_cpus=1)
        gate = Gate(Path("gate"))
        ref = talk.remote(gate)
        gate.wait()
        skate.shutdown()
        """
    )
    assert driver.wait() == 0
    (lines,) = printed(driver).values()
    assert [text for _, text in lines] == [f"line {i}" for i in range(2_000)]


def test_what_is_no_text(start_driver) -> None:
    """Bytes that are no UTF-8, carriage returns of a progress bar, a line of a megabyte: nothing breaks."""
    driver = start_driver(
        r"""
        import os, sys
        import skate

        @skate.remote
        def write():
            os.write(1, b"\xff\xfe\n")
            for i in range(10):
                sys.stderr.write(f"\r{i * 10}%")
            print("x" * 1_000_000)
            print("\x1e half a mark")
            print("done")

        skate.init(num_cpus=1)
        skate.get(write.remote())
        skate.shutdown()
        print("the driver lives")
        """
    )
    assert driver.wait() == 0
    assert "\\xff\\xfe" in driver.output
    assert "x" * 1_000_000 in driver.output
    assert "half a mark" in driver.output
    assert driver.output.endswith("the driver lives\n")


def test_a_driver_that_closes_its_output_goes_on(start_driver) -> None:
    driver = start_driver(
        """
        import os, sys
        import skate

        @skate.remote
        def talk(i):
            print("unheard", i)
            return i

        skate.init(num_cpus=1)
        out, sys.stdout = sys.stdout, None
        assert skate.get([talk.remote(i) for i in range(100)]) == list(range(100))
        sys.stdout = open(os.devnull, "w")
        sys.stdout.close()
        assert skate.get([talk.remote(i) for i in range(100)]) == list(range(100))
        sys.stdout = out
        skate.shutdown()
        print("fine")
        """
    )
    assert driver.wait() == 0, driver.output
    eventually(lambda: driver.output.endswith("fine\n"))
