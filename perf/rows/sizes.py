"""Is there a size at which values get dear? 8 bytes to 4 MB in steps of 2, in every way that a value travels.

Of each way: the microseconds of each size, the best of many turns, and the worst step: the cost of a byte of a size, of
that of the size before. A value twice as large may take 2.6 times as long.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from perf.contenders.base import Contender
from perf.model import Measurement, Row, measure
from perf.pace import Pace

SIZES = tuple(8 << step for step in range(20))
#: of a stream
ITEMS = 10
#: calls of one size before the next has its turn take about so long
TURN_S = 0.002


class Echo:
    def echo(self, value: Any) -> Any:
        return value


class Reader:
    def length(self, inside: Any, box: list[Any]) -> int:
        return len(inside.get(box[0]))


def make(size: int) -> np.ndarray:
    return np.zeros(size, np.uint8)


def length(value: Any) -> int:
    return len(value)


def stream_of(size: int) -> Iterator[np.ndarray]:
    value = np.zeros(size, np.uint8)
    for _ in range(ITEMS):
        yield value


def _by_argument(contender: Contender) -> Callable[[int], object]:
    submit, get = contender.task(length), contender.get
    return lambda size: get(submit(np.zeros(size, np.uint8)))


def _as_result(contender: Contender) -> Callable[[int], object]:
    submit, get = contender.task(make), contender.get
    return lambda size: get(submit(size))


def _there_and_back(wrap: Callable[[int], Any]) -> Callable[[Contender], Callable[[int], object]]:
    def way(contender: Contender) -> Callable[[int], object]:
        submit, get = contender.method(contender.actor(Echo), "echo"), contender.get
        return lambda size: get(submit(wrap(size)))

    return way


def _put_and_get(contender: Contender) -> Callable[[int], object]:
    put, get = contender.put, contender.get
    values = {size: np.zeros(size, np.uint8) for size in SIZES}
    return lambda size: get(put(values[size]))


def _borrowed(contender: Contender) -> Callable[[int], object]:
    submit, get, put = contender.method(contender.actor(Reader), "length"), contender.get, contender.put
    inside = contender.inside()
    values = {size: np.zeros(size, np.uint8) for size in SIZES}
    return lambda size: get(submit(inside, [put(values[size])]))


def _as_stream(contender: Contender) -> Callable[[int], object]:
    stream, get = contender.stream(stream_of), contender.get

    def read(size: int) -> None:
        for handle in stream(size):
            get(handle)

    return read


def _best_of_each(pace: Pace, call: Callable[[int], object]) -> list[float]:
    """Microseconds of one call, for each size: the sizes have turns, and the best turn counts."""
    best = dict.fromkeys(SIZES, float("inf"))
    end = time.perf_counter() + pace.warm_s + 4 * pace.run_s
    while time.perf_counter() < end or float("inf") in best.values():
        for size in SIZES:
            count = 1 if best[size] > TURN_S else int(TURN_S / best[size])
            start = time.perf_counter()
            for _ in range(count):
                call(size)
            best[size] = min(best[size], (time.perf_counter() - start) / count)
    return [1e6 * best[size] for size in SIZES]


def _called(size: int) -> str:
    for unit, above in (("MB", 1 << 20), ("KB", 1 << 10)):
        if size >= above:
            return f"{size // above} {unit}"
    return f"{size} bytes"


def _sweep(
    key: str, title: str, way: Callable[[Contender], Callable[[int], object]], needs: set[str]
) -> Measurement:
    @measure(
        *(Row(f"{title}: {_called(size)}", "µs", "lower", key=f"{key}_{size}") for size in SIZES),
        Row(f"{title}: the worst step, a byte", "×", "lower", key=f"{key}_step"),
        needs=needs,
        limit_s=120,
        most_rounds=3,
    )
    def sweep(contender: Contender, pace: Pace) -> tuple[float, ...]:
        took = _best_of_each(pace, way(contender))
        return (*took, max(after / before / 2 for before, after in pairwise(took)))

    return dataclasses.replace(sweep, name=f"sizes.{key}")


WAYS: dict[str, tuple[str, Callable[[Contender], Callable[[int], object]], set[str]]] = {
    "argument": ("a task with an array", _by_argument, {"tasks"}),
    "result": ("a task that returns an array", _as_result, {"tasks"}),
    "echo": ("an actor gives an array back", _there_and_back(lambda n: np.zeros(n, np.uint8)), {"actors"}),
    "dict": ("… a dict of one", _there_and_back(lambda n: {"a": np.zeros(n, np.uint8), "b": 1}), {"actors"}),
    "bytes": ("… bytes", _there_and_back(bytes), {"actors"}),
    "str": ("… a str", _there_and_back(lambda n: "x" * n), {"actors"}),
    "put": ("put and get of an array", _put_and_get, {"objects"}),
    "borrowed": ("an actor gets what is put", _borrowed, {"actors", "nested refs", "objects"}),
    "stream": ("a stream of 10 arrays", _as_stream, {"streams"}),
}
argument, result, echo, in_dict, as_bytes, as_str, put, borrowed, stream = (
    _sweep(key, title, way, needs) for key, (title, way, needs) in WAYS.items()
)
