"""How fast are calls of one actor's methods?"""

from __future__ import annotations

from perf.contenders.base import Contender
from perf.model import Row, measure
from perf.pace import Pace

IN_FLIGHT = 1_000


class Actor:
    def small_value(self) -> bytes:
        return b"ok"


class AsyncActor:
    async def small_value(self) -> bytes:
        return b"ok"


def _in_flight(contender: Contender, pace: Pace, cls: type) -> float:
    actor = contender.actor(cls)
    submit, get_all = contender.method(actor, "small_value"), contender.get_all
    return pace.rate(lambda: get_all([submit() for _ in range(IN_FLIGHT)]), IN_FLIGHT)


@measure(Row("actor calls, one at a time", "calls/s", limit="limits.socket_ping_pong"), needs={"actors"})
def one_at_a_time(contender: Contender, pace: Pace) -> float:
    actor = contender.actor(Actor)
    submit, get = contender.method(actor, "small_value"), contender.get
    return pace.rate(lambda: get(submit()))


@measure(Row("actor calls, 1,000 in flight", "calls/s", limit="limits.zmq_calls_16"), needs={"actors"})
def in_flight(contender: Contender, pace: Pace) -> float:
    return _in_flight(contender, pace, Actor)


@measure(Row("async actor calls, 1,000 in flight", "calls/s", limit="limits.zmq_calls_16"), needs={"actors"})
def async_in_flight(contender: Contender, pace: Pace) -> float:
    return _in_flight(contender, pace, AsyncActor)
