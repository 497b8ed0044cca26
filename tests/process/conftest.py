"""Fixtures of the process tests: programs that run beside the test."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import skate
from skate.cluster_utils import ClusterNode

from .clusters import Heads, Program
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


@pytest.fixture
def heads(tmp_path: Path) -> Iterator[Heads]:
    made = Heads(tmp_path)
    yield made
    skate.shutdown()
    made.cluster.shutdown()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[ClusterNode, str], Program]]:
    started: list[Program] = []

    def start(node: ClusterNode, text: str) -> Program:
        started.append(Program(node, tmp_path, text))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    if os.getuid() != 0:
        pytest.skip("only root can mount a small file system")
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "skate-test", str(place)], capture_output=True
    )
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)
