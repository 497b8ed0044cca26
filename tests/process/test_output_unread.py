"""The program's own output is in nobody's way: nobody reads it, it is closed, raises, cannot encode."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(60)

PROGRAM = """
import logging, os, sys, time
import skate

@skate.remote
def loud(stream, megabytes):
    for _ in range(megabytes):
        print(("x" * 99 + "\\n") * 10_000, file=getattr(sys, stream), flush=True)

@skate.remote
def say(*words):
    for word in words:
        print(word)
        print(word, file=sys.stderr)

@skate.remote
def quiet(x):
    return x

def works():
    assert skate.get([quiet.remote(i) for i in range(50)], timeout=20) == list(range(50))

skate.init(num_cpus=2)
"""


def run(program: str, directory: Path, **pipes: int) -> subprocess.Popen[str]:
    """A program in a process of its own; what it prints goes to files, but for `pipes`."""
    outputs = {name: pipes.get(name) or (directory / name).open("w") for name in ("stdout", "stderr")}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + textwrap.dedent(program)],
        text=True,
        cwd=directory,
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        **outputs,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("megabytes", [1, 40])
def test_a_pipe_that_nobody_reads(tmp_path: Path, stream: str, megabytes: int) -> None:
    """Little fits into what waits for the driver, much does not: all tasks go on, and the session ends."""
    child = run(
        f"""
        infeasible = quiet.options(resources=dict(nothing=1)).remote(quiet.remote(0))
        skate.get(loud.remote({stream!r}, {megabytes}), timeout=20)
        works()
        assert quiet.remote(3).future().result(timeout=20) == 3
        skate.shutdown()
        """,
        tmp_path,
        **{stream: subprocess.PIPE},
    )
    try:
        assert child.wait(30) == 0
    finally:
        child.kill()
        child.communicate()


def test_what_nobody_read_is_counted(tmp_path: Path) -> None:
    """Somebody reads again after a while: all lines that were printed have come, or are counted."""
    child = run(
        """
        skate.get(loud.remote("stdout", 40), timeout=20)
        print("DONE", file=sys.stderr, flush=True)
        while "lost" not in open("stderr").read():
            time.sleep(0.05)
        skate.shutdown()
        """,
        tmp_path,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    while "DONE" not in (tmp_path / "stderr").read_text():
        assert child.poll() is None
    lines = [line for line in child.stdout if line.strip().endswith("x" * 99)]
    assert child.wait(30) == 0
    (told,) = (line for line in (tmp_path / "stderr").read_text().splitlines() if "lost" in line)
    lost = next(int(word) for word in told.split(") ")[1].split() if word.isdigit())
    assert lost > 0
    # print() ends each million with an empty line of its own
    assert abs(len(lines) + lost - 400_000) <= 41


@pytest.mark.parametrize(
    "odd",
    [
        "write = property(lambda self: 1 / 0)",
        "def write(self, text): raise RuntimeError('no output')",
        "def write(self, text): raise SystemExit('no output')",
        "def write(self, text): raise KeyboardInterrupt",
        "def write(self, text): time.sleep(1000)",
        "def write(self, text): pass\n    def flush(self): raise OSError('no output')",
    ],
)
def test_a_stream_of_the_programs_own(tmp_path: Path, odd: str) -> None:
    """It raises whatever it likes, or never returns; what cannot be shown is said once on the other stream."""
    child = run(
        f"""
class Output:
    encoding = "utf-8"
    def flush(self): pass
    {odd}

sys.stdout = Output()
skate.get([say.remote("a", "b") for _ in range(5)], timeout=20)
works()
assert quiet.remote(3).future().result(timeout=20) == 3
skate.shutdown()
os._exit(0)
        """,
        tmp_path,
    )
    assert child.wait(30) == 0
    said = (tmp_path / "stderr").read_text()
    assert said.count("could not show something on stdout") == ("1000" not in odd), said


@pytest.mark.parametrize("gone", ["None", "open(os.devnull)", "closed"])
def test_no_stream_at_all(tmp_path: Path, gone: str) -> None:
    child = run(
        f"""
        closed = open(os.devnull, "w")
        closed.close()
        sys.stdout = {gone}
        skate.get(say.remote("a", "b"), timeout=20)
        works()
        skate.shutdown()
        sys.stdout = None
        """,
        tmp_path,
    )
    assert child.wait(30) == 0


@pytest.mark.parametrize("error", ["RuntimeError('no log')", "KeyboardInterrupt", "SystemExit(3)"])
def test_a_logging_handler_that_raises(tmp_path: Path, error: str) -> None:
    """Whatever skate warns of: here a request that nobody can meet."""
    child = run(
        f"""
        import threading
        told = threading.Event()
        class Handler(logging.Handler):
            def emit(self, record):
                told.set()
                raise {error}
        logging.getLogger().addHandler(Handler())
        infeasible = quiet.options(resources=dict(nothing=1)).remote(quiet.remote(0))
        skate.get(say.remote("a", "b"), timeout=20)
        works()
        assert told.wait(20)
        assert quiet.remote(3).future().result(timeout=20) == 3
        skate.shutdown()
        """,
        tmp_path,
    )
    assert child.wait(30) == 0
    assert "could not show something" in (tmp_path / "stderr").read_text()
    assert ") a" in (tmp_path / "stdout").read_text()


def test_what_cannot_be_encoded_is_escaped_and_costs_no_other_line(tmp_path: Path) -> None:
    child = run(
        """
        skate.get(say.remote("before", "a check mark \\u2713", "\\U0001f600" * 2000, "after"), timeout=20)
        skate.shutdown()
        """,
        tmp_path,
    )
    assert child.wait(30) == 0
    for stream in ("stdout", "stderr"):
        said = (tmp_path / stream).read_text("latin-1")
        for text in (") before\n", ") a check mark \\u2713\n", "\\U0001f600" * 2000, ") after\n"):
            assert text in said, stream


@pytest.mark.parametrize("descriptor", ["1", "1 / 0"], ids=["with a descriptor", "without"])
def test_a_stream_that_refuses_a_line_gets_the_others(tmp_path: Path, descriptor: str) -> None:
    child = run(
        f"""
class Output:
    encoding = "utf-8"
    def flush(self): pass
    def fileno(self): return {descriptor}
    def write(self, text):
        if "bad" in text:
            raise ValueError(text)
        os.write(1, text.encode())

sys.stdout = Output()
skate.get(say.remote("one", "bad", "two"), timeout=20)
skate.shutdown()
os._exit(0)
        """,
        tmp_path,
    )
    assert child.wait(30) == 0
    assert [line.split(") ")[1] for line in (tmp_path / "stdout").read_text().splitlines()] == ["one", "two"]
    assert "1 lines that tasks printed could not be shown on stdout" in (tmp_path / "stderr").read_text()
