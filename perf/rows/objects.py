"""How fast do objects go into the store, come out of it, and get ready?"""

from __future__ import annotations

import mmap
from time import perf_counter
from typing import Any

import numpy as np

from perf.contenders.base import Contender, Inside
from perf.jobs import small_value
from perf.model import Row, measure
from perf.pace import Pace

REFS_IN_OBJECT = 10_000
WAITED_FOR = 1_000
LARGE_BYTES = 800_000_000
GB = 1e9


def put_many(inside: Inside, count: int) -> list[Any]:
    return [inside.put(1) for _ in range(count)]


def put_and_forget(inside: Inside, count: int) -> None:
    for _ in range(count):
        inside.put(0)


def large_array() -> np.ndarray:
    return np.ones(LARGE_BYTES // 8, dtype=np.int64)


@measure(Row("put, small", "puts/s", limit="limits.dict_insert"), needs={"objects"})
def put_small(contender: Contender, pace: Pace) -> float:
    put = contender.put
    return pace.rate(lambda: put(0))


@measure(Row("get, small, again and again", "gets/s", limit="limits.dict_look_up"), needs={"objects"})
def get_small(contender: Contender, pace: Pace) -> float:
    get, handle = contender.get, contender.put(0)
    return pace.rate(lambda: get(handle))


@measure(Row("put, small, 100 each in 10 tasks", "puts/s"), needs={"tasks", "nested refs"})
def put_in_tasks(contender: Contender, pace: Pace) -> float:
    submit, inside = contender.task(put_and_forget), contender.inside()
    return pace.rate(lambda: contender.get_all([submit(inside, 100) for _ in range(10)]), 1_000)


@measure(Row("get an object that holds 10,000 refs", "gets/s"), needs={"tasks", "nested refs"})
def get_refs(contender: Contender, pace: Pace) -> float:
    handle = contender.task(put_many)(contender.inside(), REFS_IN_OBJECT)
    if len(contender.get(handle)) != REFS_IN_OBJECT:
        raise ValueError("not all refs came back")
    return pace.rate(lambda: contender.get(handle))


@measure(Row("wait for 1,000 refs one by one", "times/s"), needs={"wait", "tasks"})
def wait_one_by_one(contender: Contender, pace: Pace) -> float:
    submit, wait = contender.task(small_value), contender.wait

    def wait_for_all() -> None:
        waiting = [submit() for _ in range(WAITED_FOR)]
        for number in range(WAITED_FOR):
            # One request to fetch each object will do, as in Ray's own row.
            _, waiting = wait(waiting, fetch_local=number == 0)

    return pace.rate(wait_for_all)


@measure(
    Row("put, one 800 MB array, the first", "GB/s", limit="objects.memcpy_fresh", key="put_large_first"),
    Row("put, one 800 MB array, steady", "GB/s", limit="objects.memcpy_touched", key="put_large"),
    needs={"objects"},
    group="large",
)
def put_large(contender: Contender, pace: Pace) -> tuple[float, float]:
    array, put = large_array(), contender.put
    put(0)
    start = perf_counter()
    put(array)
    first = LARGE_BYTES / GB / (perf_counter() - start)
    return first, pace.rate(lambda: put(array), LARGE_BYTES / GB)


@measure(Row("limit: memcpy into fresh shared pages", "GB/s"), needs={"machine"}, group="large")
def memcpy_fresh(contender: Contender, pace: Pace) -> float:
    array = large_array()
    with mmap.mmap(-1, array.nbytes) as pages:
        target = np.frombuffer(pages, dtype=array.dtype)
        start = perf_counter()
        np.copyto(target, array)
        elapsed = perf_counter() - start
        del target  # or the map cannot be closed
    return LARGE_BYTES / GB / elapsed


@measure(Row("limit: memcpy into touched pages", "GB/s"), needs={"machine"}, group="large")
def memcpy_touched(contender: Contender, pace: Pace) -> float:
    array = large_array()
    target = np.zeros_like(array)
    return pace.rate(lambda: np.copyto(target, array), LARGE_BYTES / GB)
