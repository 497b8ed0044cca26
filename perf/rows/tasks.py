"""How fast do tasks that do nothing come and go? Ray's own microbenchmarks, by its definitions."""

from __future__ import annotations

from perf.contenders.base import Contender
from perf.jobs import Submitter, small_value
from perf.model import Row, measure
from perf.pace import Pace

IN_FLIGHT = 1_000


@measure(Row("tasks, one at a time", "tasks/s", limit="limits.socket_ping_pong"), needs={"tasks"})
def one_at_a_time(contender: Contender, pace: Pace) -> float:
    submit, get = contender.task(small_value), contender.get
    return pace.rate(lambda: get(submit()))


@measure(Row("tasks, 1,000 in flight", "tasks/s", limit="limits.zmq_calls_16"), needs={"tasks"})
def in_flight(contender: Contender, pace: Pace) -> float:
    submit, get_all = contender.task(small_value), contender.get_all
    return pace.rate(lambda: get_all([submit() for _ in range(IN_FLIGHT)]), IN_FLIGHT)


@measure(
    Row("tasks from 4 actors, 1,000 in flight each", "tasks/s"), needs={"tasks", "actors", "nested refs"}
)
def from_actors(contender: Contender, pace: Pace) -> float:
    inside = contender.inside()
    submits = [contender.method(contender.actor(Submitter), "submit_many") for _ in range(4)]
    return pace.rate(
        lambda: contender.get_all([submit(inside, IN_FLIGHT) for submit in submits]), 4 * IN_FLIGHT
    )
