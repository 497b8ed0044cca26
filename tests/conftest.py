"""What every test goes by: nothing may be left behind, neither a process nor shared memory nor a session's folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import skate
from skate.config import SESSIONS_FOLDER

#: seconds that what a test started may take to end
GRACE_SECONDS = 5.0


def leftovers() -> list[str]:
    """Processes, segments and folders of sessions that this process started and that have ended."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if "skate.node.main" in command:
            found.append(f"process {process.pid}: {process.status()} {command[:60]}")
    prefix = f"skate-{os.getuid()}-"
    found += [f"segment {name}" for name in os.listdir("/dev/shm") if name.startswith(prefix)]
    if os.path.isdir(SESSIONS_FOLDER):
        found += [f"folder {name}" for name in os.listdir(SESSIONS_FOLDER)]
    return found


def wait_for_nothing_left(before: set[str]) -> None:
    """Raises AssertionError where something new is still there after GRACE_SECONDS."""
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        left = set(leftovers()) - before
        if not left:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"left behind: {sorted(left)}")
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test that leaves no runtime running, nothing of a session is left, and no descriptor either."""
    running = skate.is_initialized()
    before = set(leftovers())
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    if skate.is_initialized():
        if not running and "cpu2" not in request.fixturenames:
            skate.shutdown()
            raise AssertionError("the test left skate running: use the fixture skate_start, or call shutdown()")
        return
    if running:
        return
    wait_for_nothing_left(before)
    now = len(os.listdir("/proc/self/fd"))
    if now > descriptors + 2:
        raise AssertionError(f"the test left {now - descriptors} descriptors open")


@pytest.fixture
def skate_start() -> Iterator[Callable[..., Any]]:
    """`skate_start(num_cpus=2, ...)` starts skate; it is shut down after the test."""

    def start(**arguments: Any) -> Any:
        return skate.init(**({"num_cpus": 2} | arguments))

    yield start
    skate.shutdown()


@pytest.fixture
def run_driver(tmp_path: Path) -> Callable[..., Any]:
    """Runs a program in a process of its own: `run_driver(source)` gives the finished process."""
    import subprocess
    import sys

    def run(source: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "driver.py"
        script.write_text(source)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [*os.environ.get("PYTHONPATH", "").split(os.pathsep)]))}
        return subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, timeout=timeout, env=environment, check=False
        )

    return run
