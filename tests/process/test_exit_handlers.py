"""Workers run their exit handlers when their program, or their session, ends in order; and within a bounded time.

Coverage tools and libraries that clean up after themselves rely on it.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import skate
from api.rendezvous import eventually

from .commands import standing_node

pytestmark = pytest.mark.timeout(60)


@skate.remote
def registers(path: Path, seconds: float = 0.0) -> Any:
    """Its worker writes a file when it exits, after so many seconds. What it gives the worker owns."""

    def write() -> None:
        time.sleep(seconds)
        path.touch()
        print("the handler ran", flush=True)

    atexit.register(write)
    return skate.put("owned by the worker")


@skate.remote(num_cpus=0)
class Actor:
    def registers(self, path: Path) -> int:
        atexit.register(path.touch)
        return os.getpid()


def test_at_shutdown(
    skate_start: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Those of tasks and of actors; what is printed is shown, and a worker that others need something of ends, too."""
    skate_start(num_cpus=2, log_to_driver=True)
    held = skate.get(registers.remote(tmp_path / "task"))
    other = {"runtime_env": {"env_vars": {"A": "1"}}}
    skate.get(registers.options(**other).remote(tmp_path / "of another environment", 0.3), timeout=20)
    actor = Actor.remote()
    skate.get(actor.registers.remote(tmp_path / "actor"))
    skate.shutdown()
    assert {path.name for path in tmp_path.iterdir()} == {"task", "actor", "of another environment"}
    assert capfd.readouterr().out.count("the handler ran") == 2
    del held


def test_a_task_that_runs_holds_nothing_up(skate_start: Callable[..., Any], tmp_path: Path) -> None:
    skate_start(num_cpus=2)
    started = tmp_path / "started"

    @skate.remote
    def runs() -> None:
        started.touch()
        time.sleep(100)

    actor = Actor.remote()
    skate.get(actor.registers.remote(tmp_path / "idle"))
    running = runs.remote()
    eventually(started.exists)
    skate.shutdown()
    assert (tmp_path / "idle").exists()
    del running


def test_a_handler_that_does_not_end_holds_up_the_end_for_a_while_alone(
    skate_start: Callable[..., Any], tmp_path: Path
) -> None:
    skate_start(num_cpus=1)
    skate.get(registers.remote(tmp_path / "never", 1000))
    began = time.monotonic()
    skate.shutdown()
    assert time.monotonic() - began < 10
    assert not (tmp_path / "never").exists()


def test_when_a_program_leaves_a_node_that_stays(start_driver: Callable[..., Any], tmp_path: Path) -> None:
    with standing_node(2):
        program = start_driver(
            """
            import atexit, pathlib, skate, sys
            skate.init()
            folder = sys.argv[1]
            def register(name):
                atexit.register(pathlib.Path(folder, name).touch)
            skate.get(skate.remote(register).remote("left"))
            """,
            tmp_path,
        )
        assert program.wait() == 0
        eventually((tmp_path / "left").exists)
