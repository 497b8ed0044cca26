"""What do futures cost: refs that are awaited, `ref.future()`, and executors of concurrent.futures' interface?"""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Callable
from typing import Any

from perf.contenders.base import Contender
from perf.jobs import identity, small_value
from perf.model import Row, measure
from perf.pace import Pace

IN_FLIGHT = 1_000
#: awaited one by one between two looks at the clock
EACH = 100
LOOPS = 3

Loop = asyncio.AbstractEventLoop


def _awaits(contender: Contender) -> Callable[[int], Any]:
    """A coroutine function that awaits so many tasks one by one."""
    submit, awaitable = contender.task(small_value), contender.awaitable

    async def one_by_one(number: int) -> None:
        for _ in range(number):
            await awaitable(submit())

    return one_by_one


def _one_by_one(contender: Contender, pace: Pace, new_loop: Callable[[], Loop]) -> float:
    loop, one_by_one = new_loop(), _awaits(contender)
    try:
        return pace.rate(lambda: loop.run_until_complete(one_by_one(EACH)), EACH)
    finally:
        loop.close()


def _gather(contender: Contender, pace: Pace, new_loop: Callable[[], Loop]) -> float:
    loop = new_loop()
    submit, awaitable = contender.task(small_value), contender.awaitable

    async def all_at_once() -> None:
        await asyncio.gather(*[awaitable(submit()) for _ in range(IN_FLIGHT)])

    try:
        return pace.rate(lambda: loop.run_until_complete(all_at_once()), IN_FLIGHT)
    finally:
        loop.close()


@measure(Row("await of a task, one at a time", "tasks/s"), needs={"tasks", "futures"})
def await_one(contender: Contender, pace: Pace) -> float:
    return _one_by_one(contender, pace, asyncio.new_event_loop)


@measure(Row("await of a task, one at a time, in uvloop's loop", "tasks/s"), needs={"tasks", "futures"})
def await_one_uvloop(contender: Contender, pace: Pace) -> float:
    return _one_by_one(contender, pace, _uvloop())


@measure(Row("await of a task, one at a time in each of 3 loops", "tasks/s"), needs={"tasks", "futures"})
def await_in_threads(contender: Contender, pace: Pace) -> float:
    one_by_one = _awaits(contender)

    def act() -> None:
        threads = [threading.Thread(target=asyncio.run, args=(one_by_one(10 * EACH),)) for _ in range(LOOPS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return pace.rate(act, LOOPS * 10 * EACH)


@measure(Row("gather of 1,000 tasks", "tasks/s"), needs={"tasks", "futures"})
def gather(contender: Contender, pace: Pace) -> float:
    return _gather(contender, pace, asyncio.new_event_loop)


@measure(Row("gather of 1,000 tasks in uvloop's loop", "tasks/s"), needs={"tasks", "futures"})
def gather_uvloop(contender: Contender, pace: Pace) -> float:
    return _gather(contender, pace, _uvloop())


@measure(Row("future().result() of a task, one at a time", "tasks/s"), needs={"tasks", "futures"})
def result_one(contender: Contender, pace: Pace) -> float:
    submit, future = contender.task(small_value), contender.future
    return pace.rate(lambda: future(submit()).result())


@measure(Row("executor: submit of 1,000, then their results", "tasks/s"), needs={"executor"})
def submit(contender: Contender, pace: Pace) -> float:
    with contender.executor() as executor:
        return pace.rate(
            lambda: [future.result() for future in [executor.submit(identity, i) for i in range(IN_FLIGHT)]],
            IN_FLIGHT,
        )


@measure(Row("executor: map of 1,000 items", "items/s"), needs={"executor"})
def map_items(contender: Contender, pace: Pace) -> float:
    with contender.executor() as executor:
        return pace.rate(lambda: list(executor.map(identity, range(IN_FLIGHT))), IN_FLIGHT)


def _uvloop() -> Callable[[], Loop]:
    try:
        return importlib.import_module("uvloop").new_event_loop  # type: ignore[no-any-return]
    except ImportError:
        raise NotImplementedError("uvloop is not installed") from None
