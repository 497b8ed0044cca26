"""Fixtures of the API tests.

A file of tests uses either `cpu2`, one runtime for all of them, or `skate_start`, one for each; never both.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import skate

from .rendezvous import Gate, Tally, eventually


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "differs_from_ray(what Ray does): skate does otherwise, on purpose")


@pytest.fixture(scope="module")
def cpu2() -> Iterator[None]:
    """A runtime of two CPUs, shared by the tests of a file. At its end, both must be free again."""
    skate.init(num_cpus=2)
    yield
    try:
        eventually(lambda: skate.available_resources().get("CPU") == 2)
    finally:
        skate.shutdown()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Closed; opened at the end of the test, so that nothing waits for it forever."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


@pytest.fixture
def tally(tmp_path: Path) -> Tally:
    return Tally(tmp_path / "tally")
