"""What every test goes by: nothing may be left behind, neither a process nor shared memory nor a session's folder.

And places where tests and their tasks meet.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from api.rendezvous import Gate, Tally
from leftovers import leftovers, wait_for_nothing_left  # before skate: it says where sessions lie

import skate  # isort: skip
from skate.net.exchange import VARIABLE as LANES  # isort: skip


def pytest_configure(config: pytest.Config) -> None:
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # a shell ran this in the background: drivers inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "transport: its messages go by every path; runs with lanes, and without"
    )
    config.addinivalue_line(
        "markers", "lanes: of lanes alone; does not run where the environment turns them off"
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("lanes") and os.environ.get(LANES) == "0":
        pytest.skip("there are no lanes")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("transport"):
        metafunc.parametrize("transport", ["lanes", "zeromq"], indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def transport(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sessions of tests that are marked with `transport` have lanes, or send every message by ZeroMQ."""
    with pytest.MonkeyPatch.context() as patch:
        if getattr(request, "param", "lanes") == "zeromq":
            patch.setenv(LANES, "0")
        yield


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test that leaves no runtime running, nothing of a session is left, and no descriptor either."""
    running = skate.is_initialized()
    before = leftovers()
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    if skate.is_initialized():
        if not running and "cpu2" not in request.fixturenames:
            skate.shutdown()
            raise AssertionError(
                "the test left skate running: use the fixture skate_start, or call shutdown()"
            )
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
def captured(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`captured()` gives all that was printed since the test began, on stdout and then on stderr, without colours.

    `capfd.readouterr` reads and then truncates: what another thread prints in between is lost. Both streams are files
    while it captures, so this reads those, and leaves what is there.
    """

    def so_far(*descriptors: int) -> str:
        texts = (os.pread(each, os.fstat(each).st_size, 0) for each in descriptors or (1, 2))
        return re.sub(r"\x1b\[[\d;]*m", "", b"".join(texts).decode(errors="replace"))

    return so_far


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Closed; opened at the end of the test, so that nothing waits for it forever."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


@pytest.fixture
def tally(tmp_path: Path) -> Tally:
    return Tally(tmp_path / "tally")
