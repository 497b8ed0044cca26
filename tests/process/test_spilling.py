"""A full store: objects go to disk and come back, whoever dies meanwhile; nothing is left when all is freed."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest
import skate
from api.rendezvous import Gate, eventually
from skate.exceptions import ObjectStoreFullError, OutOfDiskError
from skate.runtime import current
from skate.util.state import list_objects, store_report

pytestmark = pytest.mark.transport

MB = 1 << 20
STORE = 32 * MB


def numbers(nbytes: int, seed: int) -> np.ndarray:
    return np.full(nbytes // 8, seed, dtype=np.int64)


def spilled() -> dict[str, int]:
    assert current.runtime is not None
    return current.runtime.query("spilled")


def used() -> int:
    assert current.runtime is not None
    return current.runtime.store.usage()["used"]


def files(folder: Path | str) -> list[str]:
    return sorted(os.listdir(folder))


def spill_folder(info: Any) -> str:
    return os.path.join(info["folder"], "spill")


def nothing_left(folder: str) -> None:
    eventually(lambda: used() == 0 and spilled()["objects"] == 0)
    eventually(lambda: not files(folder))


def test_comes_back(skate_start: Callable[..., Any]) -> None:
    folder = spill_folder(skate_start(object_store_memory=STORE))
    refs = [skate.put(numbers(4 * MB, n)) for n in range(40)]
    assert spilled()["bytes"] > 4 * STORE - 2 * STORE
    order = list(range(40))
    random.Random(1).shuffle(order)
    for n in order:
        array = skate.get(refs[n])
        assert len(array) == 4 * MB // 8
        assert (array == n).all()
        assert not array.flags.writeable
    assert files(folder)
    del refs, array
    nothing_left(folder)


def test_each_object_is_written_once(skate_start: Callable[..., Any]) -> None:
    """Objects never change, so a copy on disk is good for as long as its object is wanted.

    However often they are read, by whom, and in what order, nothing is written again; and what is freed while the store
    has it goes from the disk, too.
    """
    folder = spill_folder(skate_start(num_cpus=1, object_store_memory=STORE))
    refs = [skate.put(numbers(4 * MB, n)) for n in range(20)]

    @skate.remote
    def first(refs: list[Any]) -> list[int]:
        return [int(skate.get(ref)[0]) for ref in refs]

    assert first_of(refs) == list(range(20))
    eventually(lambda: spilled()["objects"] + used() // (4 * MB) == 20)  # what was in use has left the store
    assert first_of(refs) == list(range(20))
    before = spilled()["spilled_bytes_ever"]
    assert before <= 20 * (4 * MB + 1000)
    for _ in range(3):
        assert first_of(refs) == list(range(20))
        assert first_of(refs[::-1]) == list(range(20))[::-1]
    assert skate.get(first.remote(refs)) == list(range(20))
    assert spilled()["spilled_bytes_ever"] <= 20 * (4 * MB + 1000)
    assert spilled()["restored_bytes_ever"] > 5 * before
    for _ in range(20):
        refs.pop()
    nothing_left(folder)


def first_of(refs: list[Any]) -> list[int]:
    return [int(skate.get(ref)[0]) for ref in refs]


def test_copies_of_what_the_store_has_give_way(skate_start: Callable[..., Any]) -> None:
    """A limit on the disk is no harder because files stay: those that only repeat the store go first."""
    folder = spill_folder(skate_start(object_store_memory=STORE, object_spilling_limit=30 * MB))
    old = [skate.put(numbers(4 * MB, n)) for n in range(7)]
    filler = [skate.put(numbers(4 * MB, n)) for n in range(7)]
    eventually(lambda: spilled()["objects"] >= 7)
    del filler
    held = skate.get(old)
    new = [skate.put(numbers(1 * MB, n)) for n in range(12)]
    assert first_of(old) == [int(array[0]) for array in held] == list(range(7))
    assert first_of(new) == list(range(12))
    del old, held, new
    nothing_left(folder)


def test_many_objects_share_a_file(skate_start: Callable[..., Any]) -> None:
    folder = spill_folder(skate_start(object_store_memory=STORE))
    refs = [skate.put(numbers(200_000, n)) for n in range(600)]
    assert spilled()["objects"] > 300
    assert len(files(folder)) < 10
    assert [int(skate.get(ref)[-1]) for ref in refs] == list(range(600))
    del refs
    nothing_left(folder)


def test_freed_on_disk(skate_start: Callable[..., Any]) -> None:
    folder = spill_folder(skate_start(object_store_memory=STORE))
    refs = [skate.put(numbers(4 * MB, n)) for n in range(20)]
    before = spilled()["objects"]
    assert before > 8
    for _ in range(10):
        del refs[0]  # the oldest: on disk
    assert spilled()["objects"] == before - 10
    assert [int(skate.get(ref)[0]) for ref in refs] == list(range(10, 20))
    del refs
    nothing_left(folder)


@skate.remote
def split(seed: int, parts: int) -> tuple[np.ndarray, ...]:
    values = np.random.default_rng(seed).integers(0, 1 << 40, 4 * MB // 8)
    return tuple(values[values % parts == part] for part in range(parts))


@skate.remote
def merge(part: int, parts: int, *pieces: np.ndarray) -> tuple[int, int]:
    merged = np.concatenate(pieces)
    merged.sort()
    assert (merged % parts == part).all()
    return len(merged), int(merged.sum())


def test_shuffle_of_four_times_the_store(skate_start: Callable[..., Any]) -> None:
    folder = spill_folder(skate_start(object_store_memory=STORE))
    maps, parts = 4 * STORE // (4 * MB), 16
    pieces = [split.options(num_returns=parts).remote(seed, parts) for seed in range(maps)]
    results = skate.get([merge.remote(part, parts, *[row[part] for row in pieces]) for part in range(parts)])
    expected = [np.random.default_rng(seed).integers(0, 1 << 40, 4 * MB // 8) for seed in range(maps)]
    assert spilled()["spilled_bytes_ever"] > 2 * STORE
    assert sum(count for count, _ in results) == sum(len(values) for values in expected)
    for part, (count, total) in enumerate(results):
        chosen = [values[values % parts == part] for values in expected]
        assert count == sum(map(len, chosen))
        assert total == sum(int(values.sum()) for values in chosen)
    del pieces
    nothing_left(folder)


def test_pinned_objects_stay(skate_start: Callable[..., Any]) -> None:
    skate_start(object_store_memory=STORE)
    held_refs = [skate.put(numbers(4 * MB, n)) for n in range(3)]
    held = skate.get(held_refs)
    refs = [skate.put(numbers(4 * MB, n)) for n in range(20)]
    pinned = {state.object_id: state for state in list_objects() if state.pinned_by}
    assert set(pinned) == {ref.hex() for ref in held_refs}
    assert all(state.pinned_by == (os.getpid(),) and not state.spilled for state in pinned.values())
    assert [int(array[0]) for array in held] == [0, 1, 2]
    assert [int(skate.get(ref)[0]) for ref in refs] == list(range(20))


def test_all_in_use(skate_start: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    """A put waits a bounded time, then says who holds what; a get needs no room; room that comes is taken."""
    skate_start(object_store_memory=STORE)
    on_disk = [skate.put(numbers(6 * MB, n)) for n in range(10)]
    held = [skate.get(skate.put(numbers(6 * MB, n))) for n in range(5)]
    with (
        caplog.at_level(logging.WARNING, "skate"),
        pytest.raises(ObjectStoreFullError, match="in use") as caught,
    ):
        skate.put(numbers(6 * MB, 0))
    assert len(caught.value.largest) == 5
    assert f"in use by pid {os.getpid()}" in str(caught.value)
    assert caught.value.needed_bytes > 6 * MB
    assert [int(skate.get(ref)[0]) for ref in on_disk] == list(range(10))
    eventually(lambda: "nearly full" in caplog.text)
    assert caplog.text.count("nearly full") == 1
    assert "Largest objects:" in caplog.text
    del held[0]
    assert int(skate.get(skate.put(numbers(6 * MB, 7)))[0]) == 7
    with pytest.raises(ObjectStoreFullError, match="larger than the whole store"):
        skate.put(numbers(STORE + MB, 0))


def test_room_that_comes_in_time(skate_start: Callable[..., Any], gate: Gate) -> None:
    skate_start(object_store_memory=STORE)

    @skate.remote
    def hold(array: np.ndarray, entered: str) -> int:
        Path(entered).touch()
        gate.wait()
        return int(array[0])

    entered = gate.path.with_name("entered")
    result = hold.remote(skate.put(numbers(24 * MB, 5)), str(entered))
    eventually(entered.exists)
    future = skate.put(1).future()
    assert future.result() == 1
    timer = Timer(1.0, gate.open)
    timer.start()
    ref = skate.put(numbers(24 * MB, 6))
    assert gate.path.exists()
    assert int(skate.get(ref)[0]) == 6
    assert skate.get(result) == 5
    timer.join()


def test_limit(skate_start: Callable[..., Any]) -> None:
    folder = spill_folder(skate_start(object_store_memory=STORE, object_spilling_limit=20 * MB))
    refs = []
    with pytest.raises(OutOfDiskError, match="may take"):
        for n in range(40):
            refs.append(skate.put(numbers(4 * MB, n)))
    assert 0 < sum(os.path.getsize(os.path.join(folder, name)) for name in files(folder)) <= 20 * MB
    assert [int(skate.get(ref)[0]) for ref in refs] == list(range(len(refs)))
    del refs
    nothing_left(folder)


def test_disk_full(skate_start: Callable[..., Any], small_disk: Path) -> None:
    skate_start(object_store_memory=STORE, object_spilling_directory=str(small_disk))
    refs = []
    with pytest.raises(OutOfDiskError, match="bytes free"):
        for n in range(40):
            refs.append(skate.put(numbers(4 * MB, n)))
    assert [int(skate.get(ref)[0]) for ref in refs] == list(range(len(refs)))
    (folder,) = small_disk.iterdir()
    assert files(folder)
    del refs
    nothing_left(str(folder))
    assert int(skate.get([skate.put(numbers(4 * MB, n)) for n in range(9)])[8][0]) == 8
    skate.shutdown()
    assert not list(small_disk.iterdir())


def test_disk_that_refuses(skate_start: Callable[..., Any], small_disk: Path) -> None:
    """Somebody else fills the disk while objects are written: what was written counts, the rest stays."""
    (small_disk / "theirs").write_bytes(bytes(11 * MB))
    skate_start(object_store_memory=STORE, object_spilling_directory=str(small_disk))
    refs = []
    with pytest.raises(OutOfDiskError):
        for n in range(40):
            refs.append(skate.put(numbers(3 * MB, n)))
            if n == 9:
                with pytest.raises(OSError, match="No space"), open(small_disk / "more", "wb") as more:
                    while True:
                        more.write(bytes(65536))
    assert [int(skate.get(ref)[0]) for ref in refs] == list(range(len(refs)))
    os.unlink(small_disk / "more")
    os.unlink(small_disk / "theirs")
    refs.append(skate.put(numbers(3 * MB, len(refs))))
    assert [int(skate.get(ref)[0]) for ref in refs] == list(range(len(refs)))
    skate.shutdown()  # before the file system goes
    assert not list(small_disk.iterdir())


def test_folder_of_choice_goes_with_a_killed_driver(start_driver: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    driver = start_driver(
        """
        import sys, time, numpy, skate
        skate.init(num_cpus=1, object_store_memory=1 << 25, object_spilling_directory=sys.argv[1])
        refs = [skate.put(numpy.ones(1 << 19)) for _ in range(20)]
        print("full")
        time.sleep(60)
        """,
        folder,
    )
    driver.line("full")
    (inside,) = folder.iterdir()
    assert files(inside)
    driver.kill()
    eventually(lambda: not list(folder.iterdir()))


def test_worker_killed_in_the_middle(skate_start: Callable[..., Any], tmp_path: Path) -> None:
    """Workers die while they put, get and wait for room; the tasks run again, and the store comes back to nothing."""
    folder = spill_folder(skate_start(object_store_memory=STORE, num_cpus=3))

    @skate.remote(max_retries=20)
    def grow(array: np.ndarray, seed: int) -> np.ndarray:
        (tmp_path / str(os.getpid())).touch()
        return array + seed

    @skate.remote(max_retries=20)
    def check(array: np.ndarray, seed: int) -> int:
        assert (array == seed + 1).all()
        return seed

    base = skate.put(numbers(2 * MB, 1))
    results = [check.remote(grow.remote(base, seed), seed) for seed in range(60)]
    rng = random.Random(3)
    for _ in range(6):
        skate.wait(results, num_returns=rng.randrange(1, 20), timeout=0.3)
        for name in rng.sample(files(tmp_path), 1) if files(tmp_path) else ():
            (tmp_path / name).unlink()
            try:
                os.kill(int(name), signal.SIGKILL)
            except ProcessLookupError:
                continue  # it had retired
    assert skate.get(results) == list(range(60))
    del base, results
    nothing_left(folder)


def test_dead_owner(skate_start: Callable[..., Any]) -> None:
    """What a worker owned is forgotten with it, in the store and on disk."""
    folder = spill_folder(skate_start(object_store_memory=STORE))

    @skate.remote(max_retries=0)
    def owner() -> tuple[int, list[Any]]:
        return os.getpid(), [skate.put(numbers(4 * MB, n)) for n in range(20)]

    pid, refs = skate.get(owner.remote())
    assert spilled()["objects"] > 8
    assert int(skate.get(refs[0])[0]) == 0
    os.kill(pid, signal.SIGKILL)
    nothing_left(folder)
    with pytest.raises(skate.exceptions.OwnerDiedError):
        skate.get(refs[1])


def test_waits_that_do_not_block(skate_start: Callable[..., Any]) -> None:
    """Futures and awaited refs of spilled objects: no reader of the inbox waits for itself."""
    folder = spill_folder(skate_start(object_store_memory=STORE))
    refs = [skate.put(numbers(4 * MB, n)) for n in range(20)]
    assert [int(ref.future().result(10)[0]) for ref in refs] == list(range(20))

    async def read(some: list[Any]) -> list[int]:
        return [int((await ref)[0]) for ref in some]

    assert asyncio.run(read(refs)) == list(range(20))
    del refs
    nothing_left(folder)


def test_node_killed_while_a_put_waits(skate_start: Callable[..., Any]) -> None:
    info = skate_start(object_store_memory=STORE)
    held = [skate.get(skate.put(numbers(6 * MB, n))) for n in range(5)]
    killer = Timer(0.5, os.kill, (info["pid"], signal.SIGKILL))
    killer.start()
    with pytest.raises(skate.exceptions.LocalNodeManagerDiedError):
        skate.put(numbers(6 * MB, 0))
    killer.join()
    assert int(held[4][-1]) == 4


def test_failed_results_leave_nothing(skate_start: Callable[..., Any]) -> None:
    """Of two values, of which one cannot be pickled, the other is there."""
    folder = spill_folder(skate_start(object_store_memory=STORE))

    @skate.remote(num_returns=2)
    def half() -> tuple[np.ndarray, Any]:
        return numbers(4 * MB, 1), (value for value in ())

    whole, failed = half.remote()
    assert skate.get(whole).nbytes == 4 * MB
    with pytest.raises(skate.exceptions.SerializationError):
        skate.get(failed)
    del whole, failed
    nothing_left(folder)


def test_listing(skate_start: Callable[..., Any]) -> None:
    info = skate_start(object_store_memory=STORE)
    refs = [skate.put(numbers((n + 1) * MB, n)) for n in range(12)]
    states = list_objects()
    assert [state.object_id for state in states] == [ref.hex() for ref in reversed(refs)]
    assert [state.object_size // MB for state in states] == list(range(12, 0, -1))
    assert {state.pid for state in states} == {state.creator_pid for state in states} == {os.getpid()}
    assert any(state.spilled for state in states)
    assert not all(state["spilled"] for state in states)
    assert len(list_objects(limit=3)) == 3
    assert list_objects(filters=[("object_id", "=", refs[0].hex())])[0].get("object_size") // MB == 1
    assert list_objects(filters=[("spilled", "!=", True), ("spilled", "=", True)]) == []
    with pytest.raises(ValueError, match="a filter is"):
        list_objects(filters=[("colour", "=", 1)])
    text = store_report()
    assert text.startswith("Object store: ")
    assert "on disk:" in text
    assert skate.util.state.list_objects(limit=0) == []
    assert info["node"] in states[0].owner
