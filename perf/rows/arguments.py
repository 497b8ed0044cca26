"""What does an argument cost that is handed over by value, small, middling and large?"""

from __future__ import annotations

import numpy as np

from perf.contenders.base import Contender
from perf.model import Row, measure
from perf.pace import Pace


def size_of(array: np.ndarray) -> int:
    return array.nbytes


def _tasks_with(contender: Contender, pace: Pace, size: int, in_flight: int) -> float:
    submit, get_all = contender.task(size_of), contender.get_all
    array = np.ones(size, dtype=np.uint8)

    def round_trip() -> None:
        if get_all([submit(array) for _ in range(in_flight)]) != [size] * in_flight:
            raise ValueError(f"an argument of {size} bytes did not arrive whole")

    return pace.rate(round_trip, in_flight)


@measure(Row("tasks with a 1 KB argument, 1,000 in flight", "tasks/s"), needs={"tasks"})
def kilobyte(contender: Contender, pace: Pace) -> float:
    return _tasks_with(contender, pace, 1_000, 1_000)


@measure(Row("tasks with a 100 KB argument, 100 in flight", "tasks/s"), needs={"tasks"})
def hundred_kilobytes(contender: Contender, pace: Pace) -> float:
    return _tasks_with(contender, pace, 100_000, 100)


@measure(Row("tasks with a 10 MB argument, 10 in flight", "tasks/s"), needs={"tasks"})
def ten_megabytes(contender: Contender, pace: Pace) -> float:
    return _tasks_with(contender, pace, 10_000_000, 10)
