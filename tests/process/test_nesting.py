"""Tasks that wait for tasks, by the thousand, on one CPU: they end, with a bounded number of processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import skate
from api.rendezvous import Gate, eventually
from skate.api.session import require_runtime

from .drivers import lives

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("cpu1"), pytest.mark.transport]


@pytest.fixture(scope="module")
def cpu1(transport: None) -> Iterator[None]:
    skate.init(num_cpus=1)
    yield
    skate.shutdown()


@pytest.fixture(autouse=True)
def accounts_are_whole() -> Iterator[None]:
    """After each test: all that the node has is free, and the workers that were too many have gone."""
    yield
    eventually(lambda: skate.available_resources().get("CPU") == 1)
    eventually(lambda: workers() <= 3)


@skate.remote
def h(i: int) -> int:
    return i + 1


@skate.remote
def g(i: int) -> int:
    return skate.get(h.remote(i)) + 1


@skate.remote
def f(i: int) -> int:
    return skate.get(g.remote(i)) + 1


@skate.remote
def down(depth: int) -> int:
    return skate.get(down.remote(depth - 1)) + 1 if depth else 0


def workers() -> int:
    """How many worker processes the node has."""
    return sum(kind == "worker" for _, _, kind, _ in require_runtime().query("workers"))


@contextmanager
def most_workers() -> Iterator[list[int]]:
    """Counts them all the while; the list's only item is the largest number."""
    most, stop = [0], threading.Event()

    def count() -> None:
        while not stop.wait(0.02):
            most[0] = max(most[0], workers())

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()


def test_a_thousand_chains_of_calls_end_with_few_workers() -> None:
    """What is deeper goes first, so only few chains are begun and not done at any moment."""
    with most_workers() as most:
        assert skate.get([f.remote(i) for i in range(1_000)], timeout=50) == [i + 3 for i in range(1_000)]
    assert most[0] <= 40


def test_a_hundred_deep_nest_has_a_worker_a_level() -> None:
    with most_workers() as most:
        assert skate.get(down.remote(100), timeout=50) == 100
    assert most[0] <= 105


def test_nests_beside_each_other() -> None:
    with most_workers() as most:
        assert skate.get([down.remote(10) for _ in range(10)], timeout=50) == [10] * 10
    assert most[0] <= 60


def test_many_that_wait_for_the_same_late_task(gate: Gate) -> None:
    """Each worker that waits lends its CPU, so all of them may be begun; when the wait is over, they take turns."""

    @skate.remote(num_cpus=0)
    def late(gate: Gate) -> str:
        gate.wait()
        return "late"

    @skate.remote
    def wait_for(refs: list[skate.ObjectRef]) -> tuple[str, float, float]:
        value = skate.get(refs[0])
        start = time.monotonic()
        time.sleep(0.01)
        return value, start, time.monotonic()

    ref = late.remote(gate)
    waiting = [wait_for.remote([ref]) for _ in range(20)]
    eventually(lambda: workers() >= 10)
    gate.open()
    spans = sorted(span for _, *span in skate.get(waiting, timeout=30))
    assert len(spans) == 20
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_a_blocked_worker_that_is_killed_gives_back_what_it_has_lent(gate: Gate, tmp_path: Path) -> None:
    @skate.remote(max_retries=0)
    def wait_for(refs: list[skate.ObjectRef], path: Path) -> None:
        path.write_text(str(os.getpid()))
        skate.get(refs)

    @skate.remote
    def hold(gate: Gate) -> None:
        gate.wait()

    path = tmp_path / "pid"
    held = hold.remote(gate)
    waiting = wait_for.options(num_cpus=0).remote([held], path)
    pid = int(eventually(lambda: path.exists() and path.read_text()))
    os.kill(pid, 9)
    with pytest.raises(skate.exceptions.WorkerCrashedError):
        skate.get(waiting)
    gate.open()
    skate.get(held)


def test_tasks_whose_parent_died_are_ended(gate: Gate, tmp_path: Path) -> None:
    """Nobody is left who could want their results."""

    @skate.remote
    def child(path: Path, gate: Gate) -> None:
        path.write_text(str(os.getpid()))
        gate.wait()

    @skate.remote(max_retries=0)
    def parent(path: Path, gate: Gate) -> None:
        ref = child.remote(path, gate)
        threading.Thread(target=lambda: (eventually(path.exists), os._exit(3))).start()
        skate.get(ref)

    with pytest.raises(skate.exceptions.WorkerCrashedError, match="3"):
        skate.get(parent.remote(tmp_path / "pid", gate), timeout=20)
    eventually(lambda: not lives(int((tmp_path / "pid").read_text())))
