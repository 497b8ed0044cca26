"""What does a call consist of, and do waiting processes take cores from those that work?

The parts are skate's alone: its own modules, one after the other, in the process that measures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from perf import procs
from perf.contenders.base import Contender
from perf.model import Row, measure
from perf.pace import Pace

CALLS = 1_000
SETTLE_S, IDLE_S = 2.0, 5.0
WORK_S = 0.0001


class Idle:
    """An actor whose method does nothing."""

    def answer(self) -> None:
        return None

    def cpu_s(self) -> float:
        return time.process_time()


def busy() -> None:
    """100 µs of work."""
    end = time.perf_counter() + WORK_S
    while time.perf_counter() < end:
        pass


def who(wait_s: float) -> int:
    time.sleep(wait_s)
    return os.getpid()


def _microseconds(pace: Pace, call: Callable[[], Any]) -> float:
    return 1e6 / pace.rate(call)


@measure(
    Row("a call alone: submit to result", "µs", "lower", key="round_trip"),
    Row("of it: submit, on the caller", "µs", "lower", key="submit"),
    Row("of it: a get of what is there", "µs", "lower", key="get"),
    Row("of it: encode and decode both messages", "µs", "lower", key="frames"),
    Row("of it: write and read both in a lane", "µs", "lower", key="rings"),
    Row("many in flight: CPU of the caller, a call", "µs", "lower", key="caller"),
    Row("many in flight: CPU of the actor, a call", "µs", "lower", key="actor"),
    needs={"parts"},
    group="parts",
)
def parts(contender: Contender, pace: Pace) -> tuple[float, ...]:
    actor = contender.actor(Idle)
    submit, cpu_s = contender.method(actor, "answer"), contender.method(actor, "cpu_s")
    get, get_all = contender.get, contender.get_all
    round_trip = _microseconds(pace, lambda: get(submit()))
    submitting = 0.0
    rounds = 0
    here, there = time.process_time(), get(cpu_s())
    end = time.perf_counter() + pace.run_s
    while time.perf_counter() < end:
        start = time.perf_counter()
        refs = [submit() for _ in range(CALLS)]
        submitting += time.perf_counter() - start
        get_all(refs)
        rounds += 1
    calls = rounds * CALLS
    caller, there = time.process_time() - here, get(cpu_s()) - there
    ready = submit()
    get(ready)
    get_ready = _microseconds(pace, lambda: get(ready))
    return (
        round_trip,
        submitting / calls * 1e6,
        get_ready,
        _frames(pace),
        _rings(pace),
        caller / calls * 1e6,
        there / calls * 1e6,
    )


def _messages() -> tuple[Any, Any]:
    """A push and its answer, as an idle method's."""
    from skate.wire import messages as m

    task = bytes(range(16))
    return (
        m.PushTask(task, task, b"", None, 1, 0, "", 0),
        m.TaskDone(task, 1000, [(1, b"\x80\x05N.", None)], None),
    )


def _frames(pace: Pace) -> float:
    from skate._c import frames
    from skate.wire.messages import SCHEMAS, encode

    push, done = _messages()

    def both() -> None:
        frames.decode(frames.frame([encode(push)]), SCHEMAS)
        frames.decode(frames.frame([encode(done)]), SCHEMAS)

    return _microseconds(pace, both)


def _rings(pace: Pace) -> float:
    from skate._c import lanes
    from skate.wire.messages import SCHEMAS, encode

    fd = os.memfd_create("perf-lanes")
    os.ftruncate(fd, lanes.EXCHANGE_BYTES)
    shared = lanes.Exchange(fd)
    os.close(fd)
    inbox = shared.inbox(b"reader..", SCHEMAS, 1)
    lane = shared.lane(b"writer..", b"reader..", "")
    push, done = map(encode, _messages())

    def both() -> None:
        lane.write(push)
        inbox.take(1)
        lane.write(done)
        inbox.take(1)

    return _microseconds(pace, both)


@measure(
    Row("tasks of 100 µs, twice as many workers as cores", "tasks/s"),
    needs={"tasks"},
    group="crowded",
    num_cpus=2 * (os.cpu_count() or 1),
)
def crowded(contender: Contender, pace: Pace) -> float:
    submit, get_all = contender.task(busy), contender.get_all
    return pace.rate(lambda: get_all([submit() for _ in range(CALLS)]), CALLS)


@measure(
    Row("driver and 8 idle workers: CPU, of one core", "%", "lower", key="idle_workers"),
    needs={"session", "tasks"},
    group="idle",
    num_cpus=8,
)
def idle_workers(contender: Contender, pace: Pace) -> float:
    submit = contender.task(who)
    workers: set[int] = set()
    while len(workers) < 8:
        workers |= {contender.get(handle) for handle in [submit(0.2) for _ in range(8)]}
    time.sleep(SETTLE_S)
    # Our parent, the warden, adopts what daemonizes; so everything of this session is below it.
    before = {pid: procs.cpu_s(pid) for pid in procs.descendants(os.getppid())}
    time.sleep(IDLE_S)
    used = sum(procs.cpu_s(pid) - cpu_s for pid, cpu_s in before.items() if procs.name(pid) != "?")
    return 100 * used / IDLE_S
