"""Fixtures of the API tests.

A file of tests uses either `cpu2`, one runtime for all of them, or `skate_start`, one for each; never both.
"""

from collections.abc import Callable, Iterator

import pytest
import skate

from .rendezvous import eventually


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "differs_from_ray(what Ray does): skate does otherwise, on purpose")


@pytest.fixture(scope="module")
def cpu2(transport: None) -> Iterator[None]:
    """A runtime of two CPUs, shared by the tests of a file. At its end, both must be free again."""
    skate.init(num_cpus=2)
    yield
    try:
        eventually(lambda: skate.available_resources().get("CPU") == 2)
    finally:
        skate.shutdown()


@pytest.fixture
def warned_of(captured: Callable[[], str], caplog: pytest.LogCaptureFixture) -> Callable[[str], str]:
    """Waits until a text was printed or logged, and gives all that was so far."""

    def until(text: str) -> str:
        return eventually(lambda: said if text in (said := captured() + caplog.text) else "")

    return until


@pytest.fixture
def printed(captured) -> Callable[[str], list[str]]:
    """Waits until a text was printed, and gives all lines so far, without colours."""

    def until(text: str) -> list[str]:
        eventually(lambda: text in captured())
        return captured().splitlines()

    return until
