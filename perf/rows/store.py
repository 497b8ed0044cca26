"""How does the object store do from 1 KB to 1 GB, for several processes at once, and when it is full?"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from perf import procs
from perf.contenders.base import Contender, Inside
from perf.model import Measurement, Row, measure
from perf.pace import Pace

GB, MB = 1e9, 1_000_000
#: sizes of one array, in bytes
SIZES = {
    "1 KB": 10**3,
    "10 KB": 10**4,
    "100 KB": 10**5,
    "1 MB": 10**6,
    "10 MB": 10**7,
    "100 MB": 10**8,
    "1 GB": 10**9,
}
PROCESSES = 4
#: seconds that each of several processes puts and gets
TOGETHER_S = 1.0
HAND_OVERS = 20
LARGE_BYTES = 800 * MB
READERS = 10
#: the store of the rows on spilling, what goes beyond it, and one array of it; bytes
SMALL_STORE, BEYOND, PIECE = 512 * MB, 1024 * MB, 8 * MB
#: seconds until all readers must be there
MEETING_S = 60.0


def array_of(nbytes: int) -> np.ndarray:
    return np.ones(nbytes, dtype=np.uint8)


def _one_process(label: str, size: int) -> Measurement:
    @measure(
        Row(f"put, one {label} array", "puts/s", key=f"put_{size}"),
        Row(f"get, one {label} array", "gets/s", key=f"get_{size}"),
        needs={"objects"},
        group="alone",
        most_rounds=1_000 if size < 10**8 else 2,
    )
    def alone(contender: Contender, pace: Pace) -> tuple[float, float]:
        put, get, array = contender.put, contender.get, array_of(size)
        puts = pace.rate(lambda: put(array))
        handle = put(array)
        return puts, pace.rate(lambda: get(handle))

    return alone


def put_and_get(inside: Inside, size: int, seconds: float) -> tuple[int, float, float]:
    """(how many were put and got, when it began, when it ended)"""
    array = array_of(size)
    inside.get(inside.put(array))
    count, start = 0, time.time()
    while time.time() - start < seconds:
        if inside.get(inside.put(array)).nbytes != size:
            raise ValueError("it did not come back whole")
        count += 1
    return count, start, time.time()


def _together(label: str, size: int) -> Measurement:
    @measure(
        Row(f"put and get {label}, {PROCESSES} processes", "times/s", key=f"together_{size}"),
        needs={"tasks", "nested refs"},
        group="together",
        num_cpus=PROCESSES,
        most_rounds=1_000 if size < 10**8 else 2,
    )
    def together(contender: Contender, pace: Pace) -> float:
        submit, inside = contender.task(put_and_get), contender.inside()
        spans = contender.get_all([submit(inside, size, TOGETHER_S) for _ in range(PROCESSES)])
        if max(start for _, start, _ in spans) > min(end for _, _, end in spans):
            raise NotImplementedError("the processes did not run at the same time")
        return sum(count / (end - start) for count, start, end in spans)

    return together


def _named(
    make: Callable[[str, int], Measurement], name: str, sizes: dict[str, int]
) -> dict[str, Measurement]:
    return {
        f"{name}_{size}": dataclasses.replace(make(label, size), name=f"store.{name}_{size}")
        for label, size in sizes.items()
    }


globals().update(_named(_one_process, "alone", SIZES))
globals().update(
    _named(_together, "together", {label: size for label, size in SIZES.items() if size < 10**9})
)


@measure(Row("get, one 800 MB array", "µs", "lower"), needs={"objects"}, group="large", most_rounds=3)
def get_large(contender: Contender, pace: Pace) -> float:
    get, handle = contender.get, contender.put(array_of(LARGE_BYTES))
    return 1e6 / pace.rate(lambda: get(handle))


def passed_on(array: np.ndarray) -> np.ndarray:
    return array


@measure(Row("10 MB array handed from task to task", "tasks/s"), needs={"tasks", "refs"}, group="chain")
def handed_on(contender: Contender, pace: Pace) -> float:
    submit, first = contender.task(passed_on), contender.put(array_of(10 * MB))

    def chain() -> None:
        handle = first
        for _ in range(HAND_OVERS):
            handle = submit(handle)
        if contender.get(handle).nbytes != 10 * MB:
            raise ValueError("it did not arrive whole")

    return pace.rate(chain, HAND_OVERS)


@measure(
    Row("spill: put what a full store has no room for", "GB/s", limit="store.file_write", key="spill"),
    Row("restore: get what was spilled", "GB/s", limit="store.file_read", key="restore"),
    needs={"objects"},
    group="full",
    num_cpus=0,
    most_rounds=3,
)
def full(contender: Contender, pace: Pace) -> tuple[float, float]:
    contender.start(1, store_bytes=SMALL_STORE)
    array = array_of(PIECE)
    old = [
        contender.put(array) for _ in range(SMALL_STORE // PIECE + 4)
    ]  # its pages are touched from here on
    del old[: len(old) // 2]
    handles = old + [contender.put(array) for _ in range((BEYOND - len(old) * PIECE) // PIECE)]
    os.sync()  # what others have written is on the disk: nobody pays for it here
    start = perf_counter()
    newer = [contender.put(array) for _ in range(BEYOND // PIECE)]
    spilled = BEYOND / GB / (perf_counter() - start)
    del newer
    start = perf_counter()
    for number in range(len(handles)):
        if contender.get(handles[number]).nbytes != PIECE:
            raise ValueError("it did not come back whole")
        handles[number] = None
    return spilled, len(handles) * PIECE / GB / (perf_counter() - start)


@measure(
    Row(
        "get, the second pass over twice what a store holds",
        "GB/s",
        limit="store.file_read",
        key="pass_again",
    ),
    needs={"objects"},
    group="full",
    num_cpus=0,
    most_rounds=3,
)
def again(contender: Contender, pace: Pace) -> float:
    contender.start(1, store_bytes=SMALL_STORE)
    array = array_of(PIECE)
    handles = [contender.put(array) for _ in range(BEYOND // PIECE)]
    for _ in range(2):
        start = perf_counter()
        for handle in handles:
            if contender.get(handle).nbytes != PIECE:
                raise ValueError("it did not come back whole")
    return BEYOND / GB / (perf_counter() - start)


@measure(
    Row("limit: write a plain file", "GB/s", key="file_write"),
    Row("limit: read it again", "GB/s", key="file_read"),
    needs={"machine"},
    group="full",
    most_rounds=3,
)
def plain_file(contender: Contender, pace: Pace) -> tuple[float, float]:
    array = array_of(PIECE)
    # Read, as a store is filled, into touched memory that no cache holds.
    target = memoryview(array_of(SMALL_STORE))
    with tempfile.TemporaryFile(prefix="limit-", buffering=0) as file:
        os.sync()
        start = perf_counter()
        for _ in range(BEYOND // PIECE):
            file.write(array)
        written = BEYOND / GB / (perf_counter() - start)
        file.seek(0)
        start = perf_counter()
        for number in range(BEYOND // PIECE):
            at = number * PIECE % SMALL_STORE
            file.readinto(target[at : at + PIECE])
        return written, BEYOND / GB / (perf_counter() - start)


def read_and_meet(array: np.ndarray, folder: str) -> int:
    """Touches every page, then holds the array until the meeting is over."""
    total = int(array[::512].sum())
    Path(folder, str(os.getpid())).touch()
    deadline = time.monotonic() + MEETING_S
    while not Path(folder, "over").exists():
        if time.monotonic() > deadline:
            raise TimeoutError("the meeting never ended")
        time.sleep(0.01)
    return total


@measure(
    Row(f"{READERS} workers read one 1 GB array: memory (PSS)", "GB", "lower"),
    needs={"tasks", "refs", "objects"},
    group="readers",
    num_cpus=READERS,
    most_rounds=2,
)
def readers_memory(contender: Contender, pace: Pace) -> float:
    submit = contender.task(read_and_meet)

    def memory() -> float:
        return sum(procs.pss_bytes(pid) for pid in procs.descendants(os.getppid()))

    with tempfile.TemporaryDirectory(prefix="readers-") as folder:
        before = memory()
        handle = contender.put(array_of(10**9))
        handles: list[Any] = [submit(handle, folder) for _ in range(READERS)]
        deadline = time.monotonic() + MEETING_S
        while len(os.listdir(folder)) < READERS:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(os.listdir(folder))} of {READERS} workers came")
            time.sleep(0.05)
        after = memory()
        Path(folder, "over").touch()
        contender.get_all(handles)
        return (after - before) / GB
