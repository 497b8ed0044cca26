"""Does a short task ever wait behind a long one? One 5 s task among 1,000 short ones, two workers."""

from __future__ import annotations

import time

from perf.contenders.base import Contender
from perf.jobs import small_value
from perf.model import Row, measure
from perf.pace import Pace

LONG_S = 5.0
BEFORE, AFTER = 100, 900


def long_task() -> None:
    time.sleep(LONG_S)


@measure(Row("1,000 short tasks beside one of 5 s, two workers", "s", "lower"), needs={"tasks"})
def behind_a_long_one(contender: Contender, pace: Pace) -> float:
    """The long one comes after 100 short ones, when a pipeline that grew with them is at its deepest."""
    submit, submit_long = contender.task(small_value), contender.task(long_task)
    contender.get_all([submit() for _ in range(BEFORE)])  # both workers are up
    start = time.perf_counter()
    short = [submit() for _ in range(BEFORE)]
    long_one = submit_long()
    short += [submit() for _ in range(AFTER)]
    contender.get_all(short)
    elapsed = time.perf_counter() - start
    contender.get(long_one)
    return elapsed
