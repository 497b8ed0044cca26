"""Arrays of tens of megabytes between processes: nothing is lost, nothing leaks, whoever dies."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skate
from api.rendezvous import Gate, eventually
from skate.api.session import require_runtime

pytestmark = pytest.mark.timeout(60)

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def cpu4() -> Iterator[None]:
    skate.init(num_cpus=4, object_store_memory=512 * MEGABYTE)
    yield
    skate.shutdown()


@pytest.fixture(autouse=True)
def store_is_empty(cpu4: None) -> Iterator[None]:
    """After each test the store holds what it held before: nothing."""
    yield
    eventually(lambda: used() == 0, timeout_s=5)


def used() -> int:
    """Bytes in the store."""
    return int(require_runtime().query("store")["used"])


@skate.remote
def make(seed: int, megabytes: int) -> np.ndarray:
    return np.full(megabytes * MEGABYTE // 8, seed, dtype=np.int64)


@skate.remote
def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    size = min(len(a), len(b))
    return a[:size] + b[:size]


@skate.remote
def total(array: np.ndarray) -> int:
    return int(array.sum())


def test_four_processes_exchange_arrays() -> None:
    sizes = [10, 20, 30, 50]
    for _ in range(3):
        made = [make.remote(i, sizes[i % 4]) for i in range(6)]
        sums = [add.remote(made[i], made[i - 1]) for i in range(6)]
        totals = skate.get([total.remote(each) for each in sums], timeout=30)
        expected = [
            (i + (i - 1) % 6) * min(sizes[i % 4], sizes[(i - 1) % 6 % 4]) * MEGABYTE // 8 for i in range(6)
        ]
        assert totals == expected
        del made, sums


def test_loops_return_to_the_base_line() -> None:
    for i in range(40):
        array = skate.get(make.remote(i, 20))
        assert array[0] == i
    del array
    for i in range(40):
        ref = skate.put(np.full(20 * MEGABYTE, i % 100, dtype=np.int8))
        assert skate.get(total.remote(ref)) == (i % 100) * 20 * MEGABYTE
        del ref


def test_a_nested_ring_of_processes() -> None:
    """Each passes on a ref that it has borrowed to the next, inside a list."""

    @skate.remote
    def pass_on(refs: list[skate.ObjectRef], steps: int) -> int:
        if steps == 0:
            return int(skate.get(refs[0]).sum())
        own = skate.put(skate.get(refs[0]) + 1)
        return skate.get(pass_on.remote([own], steps - 1))

    start = [skate.put(np.zeros(10 * MEGABYTE // 8)) for _ in range(3)]
    results = skate.get([pass_on.remote([ref], 6) for ref in start], timeout=40)
    assert results == [6 * 10 * MEGABYTE // 8] * 3


def test_a_view_keeps_its_bytes_after_the_last_ref() -> None:
    view = skate.get(skate.put(np.arange(MEGABYTE)))[1000:2000]
    others = [skate.put(np.zeros(MEGABYTE)) for _ in range(20)]
    assert view[0] == 1000
    assert view.sum() == sum(range(1000, 2000))
    del others
    assert used() > 0
    del view


def test_a_worker_that_is_killed_gives_its_pins_back(gate: Gate, tmp_path: Path) -> None:
    @skate.remote(max_retries=0)
    def read_and_hold(refs: list[skate.ObjectRef], path: Path, gate: Gate) -> None:
        views = skate.get(refs)
        path.write_text(str(os.getpid()))
        gate.wait()
        del views

    refs = [skate.put(np.zeros(20 * MEGABYTE // 8)) for _ in range(3)]
    task = read_and_hold.remote(refs, tmp_path / "pid", gate)
    pid = int(eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    del refs
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(skate.exceptions.WorkerCrashedError):
        skate.get(task)


def test_a_worker_that_is_killed_takes_what_it_owned_along(gate: Gate, tmp_path: Path) -> None:
    @skate.remote(max_retries=0)
    def put_and_hold(path: Path, gate: Gate) -> None:
        refs = [skate.put(np.zeros(20 * MEGABYTE // 8)) for _ in range(3)]
        path.write_text(str(os.getpid()))
        gate.wait()
        del refs

    task = put_and_hold.remote(tmp_path / "pid", gate)
    pid = int(eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    assert used() > 50 * MEGABYTE
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(skate.exceptions.WorkerCrashedError):
        skate.get(task)


def test_workers_that_die_while_they_return_arrays_leave_nothing(tmp_path: Path) -> None:
    """Killed at random moments, in the middle of a put, say; those that are retried come through."""

    @skate.remote(max_retries=-1)
    def big(path: Path) -> np.ndarray:
        with path.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return np.ones(10 * MEGABYTE // 8)

    randomness = random.Random(5)
    path = tmp_path / "pids"
    refs = [big.remote(path) for _ in range(30)]
    for kills in range(8):
        eventually(lambda kills=kills: path.exists() and len(path.read_text().split()) > kills)
        skate.wait(refs, timeout=randomness.uniform(0, 0.02))
        try:
            os.kill(int(path.read_text().split()[-1]), signal.SIGKILL)
        except ProcessLookupError:
            continue  # it had been killed already
    for ref in refs:
        assert skate.get(ref, timeout=30).sum() == 10 * MEGABYTE // 8
    del ref
    refs.clear()


def test_results_that_nobody_wants_any_more_are_freed(gate: Gate) -> None:
    @skate.remote
    def late(gate: Gate) -> np.ndarray:
        gate.wait()
        return np.zeros(20 * MEGABYTE // 8)

    refs = [late.remote(gate) for _ in range(3)]
    skate.wait(refs, timeout=0.1)
    del refs
    gate.open()


def test_errors_and_wrong_numbers_of_results_leave_nothing() -> None:
    @skate.remote(num_returns=3)
    def two() -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(MEGABYTE), np.ones(MEGABYTE)

    @skate.remote
    def fail(array: np.ndarray) -> None:
        raise ValueError(array)

    with pytest.raises(ValueError, match="3"):
        skate.get(two.remote()[0])
    with pytest.raises(ValueError):
        skate.get(fail.remote(np.zeros(MEGABYTE)))
