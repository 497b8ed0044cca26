"""Fixtures of the process tests: programs that run beside the test."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .drivers import Driver

TESTS = str(Path(__file__).parents[1])


@pytest.fixture
def start_driver(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """`start_driver(source, *arguments)` starts a program that uses skate; it is killed after the test."""
    started: list[Driver] = []

    def start(source: str, *arguments: object) -> Driver:
        script = tmp_path / f"driver{len(started)}.py"
        script.write_text(textwrap.dedent(source))
        paths = [TESTS, *filter(None, [os.environ.get("PYTHONPATH")])]
        with open(script.with_suffix(".out"), "w") as output:
            process = subprocess.Popen(
                [sys.executable, "-u", str(script), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                cwd=tmp_path,
            )
        driver = Driver(process, script.with_suffix(".out"))
        started.append(driver)
        return driver

    yield start
    for driver in started:
        driver.kill()
