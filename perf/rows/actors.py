"""How fast are calls of actors, how soon are actors there, and what is built on them?

Ray's own microbenchmarks, by its definitions (1:n, n:n), but with four actors on each side, whatever the machine has.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from typing import Any

from perf import procs
from perf.contenders.base import Contender
from perf.jobs import Actor, AsyncActor, Client
from perf.model import Measurement, Row, measure
from perf.pace import Pace

IN_FLIGHT = 1_000
ACTORS = 4
THREADS = 16
IDLE, SETTLE_S = 20, 1.0
ITEMS = 1_000
MB = 1e6


def _one_at_a_time(contender: Contender, pace: Pace, cls: type) -> float:
    actor = contender.actor(cls)
    submit, get = contender.method(actor, "small_value"), contender.get
    return pace.rate(lambda: get(submit()))


def _in_flight(contender: Contender, pace: Pace, actor: Any) -> float:
    submit, get_all = contender.method(actor, "small_value"), contender.get_all
    return pace.rate(lambda: get_all([submit() for _ in range(IN_FLIGHT)]), IN_FLIGHT)


def _by_clients(contender: Contender, pace: Pace, clients: int, method: str) -> float:
    """Each client calls each of four servers, all of them together 1,000 calls a client."""
    inside, servers = contender.inside(), contender.actors(Actor, ACTORS)
    submits = [contender.method(client, method) for client in contender.actors(Client, clients)]
    each = IN_FLIGHT // ACTORS
    return pace.rate(
        lambda: contender.get_all([submit(inside, servers, each) for submit in submits]),
        clients * ACTORS * each,
    )


@measure(Row("actor calls, one at a time", "calls/s", limit="limits.socket_ping_pong"), needs={"actors"})
def one_at_a_time(contender: Contender, pace: Pace) -> float:
    return _one_at_a_time(contender, pace, Actor)


@measure(Row("actor calls, 1,000 in flight", "calls/s", limit="limits.zmq_calls_16"), needs={"actors"})
def in_flight(contender: Contender, pace: Pace) -> float:
    return _in_flight(contender, pace, contender.actor(Actor))


@measure(
    Row("calls of 4 actors by one actor, 1,000 in flight", "calls/s"),
    needs={"actors", "handles", "nested refs"},
)
def one_to_many(contender: Contender, pace: Pace) -> float:
    return _by_clients(contender, pace, 1, "call")


@measure(
    Row("calls of 4 actors by 4 actors, 1,000 in flight each", "calls/s"),
    needs={"actors", "handles", "nested refs"},
)
def many_to_many(contender: Contender, pace: Pace) -> float:
    return _by_clients(contender, pace, ACTORS, "call")


@measure(
    Row("the same with an argument by ref", "calls/s"),
    needs={"actors", "handles", "nested refs"},
)
def many_to_many_ref(contender: Contender, pace: Pace) -> float:
    return _by_clients(contender, pace, ACTORS, "call_with_ref")


@measure(Row("threaded actor calls (16 threads), 1,000 in flight", "calls/s"), needs={"threads"})
def threaded(contender: Contender, pace: Pace) -> float:
    return _in_flight(contender, pace, contender.actor(Actor, threads=THREADS))


@measure(
    Row("async actor calls, one at a time", "calls/s", limit="limits.socket_ping_pong"),
    needs={"async actors"},
)
def async_one_at_a_time(contender: Contender, pace: Pace) -> float:
    return _one_at_a_time(contender, pace, AsyncActor)


@measure(
    Row("async actor calls, 1,000 in flight", "calls/s", limit="limits.zmq_calls_16"), needs={"async actors"}
)
def async_in_flight(contender: Contender, pace: Pace) -> float:
    return _in_flight(contender, pace, contender.actor(AsyncActor))


@measure(Row("async actor calls with an argument, 1,000 in flight", "calls/s"), needs={"async actors"})
def async_with_arguments(contender: Contender, pace: Pace) -> float:
    submit, get_all = contender.method(contender.actor(AsyncActor), "with_argument"), contender.get_all
    return pace.rate(lambda: get_all([submit(i) for i in range(IN_FLIGHT)]), IN_FLIGHT)


def _answered(contender: Contender, actors: list[Any]) -> list[Any]:
    """The same actors, when each has answered; those that share processes are of another kind."""
    if len(set(contender.get_all([contender.method(actor, "pid")() for actor in actors]))) != len(actors):
        raise NotImplementedError("its actors share processes")
    return actors


def _start(contender: Contender, count: int) -> float:
    """Seconds until each of so many has answered; the class has been used before."""
    contender.get(contender.method(contender.actor(Actor), "small_value")())
    start = time.perf_counter()
    _answered(contender, contender.actors(Actor, count))
    return time.perf_counter() - start


def _starting(count: int, limit_s: float) -> Measurement:
    @measure(
        Row(f"{count:,} actors, until each has answered", "s", "lower", key=f"start_{count}"),
        needs={"actors"},
        group=f"start {count}",  # a session of its own: none waits for another's end
        limit_s=limit_s,
        most_rounds=3,
    )
    def start(contender: Contender, pace: Pace) -> float:
        return _start(contender, count)

    return dataclasses.replace(start, name=f"actors.start_{count}")


start_10 = _starting(10, limit_s=90)
start_100 = _starting(100, limit_s=240)
start_1000 = _starting(1_000, limit_s=240)


@measure(
    Row("an idle actor: memory it adds (PSS)", "MB", "lower"),
    needs={"actors", "session"},
    group="idle",
    most_rounds=3,
)
def idle_memory(contender: Contender, pace: Pace) -> float:
    def settled() -> float:
        """All processes of the session: our parent, the warden, adopts those that daemonize."""
        time.sleep(SETTLE_S)
        return sum(procs.pss_bytes(pid) for pid in procs.descendants(os.getppid())) / MB

    first = _answered(contender, contender.actors(Actor, 2))
    before = settled()
    others = _answered(contender, contender.actors(Actor, IDLE))
    added = settled() - before
    del first, others
    return added / IDLE


@measure(Row("queue, an item put and got, one by one", "items/s"), needs={"queue"}, group="queue")
def queue_one_by_one(contender: Contender, pace: Pace) -> float:
    queue = contender.queue()
    put, get = queue.put, queue.get

    def there_and_back() -> None:
        put(1)
        if get() != 1:
            raise ValueError("another item came out")

    rate = pace.rate(there_and_back)
    queue.shutdown()
    return rate


@measure(Row("queue, items put and got in batches of 1,000", "items/s"), needs={"queue"}, group="queue")
def queue_batches(contender: Contender, pace: Pace) -> float:
    queue, items = contender.queue(), list(range(ITEMS))

    def there_and_back() -> None:
        queue.put_batch(items)
        if queue.get_batch(ITEMS) != items:
            raise ValueError("other items came out")

    rate = pace.rate(there_and_back, ITEMS)
    queue.shutdown()
    return rate


def square(x: int) -> int:
    return x * x


@measure(Row("Pool.map of 1,000 items, 2 processes", "items/s"), needs={"pool"}, group="pool")
def pool_map(contender: Contender, pace: Pace) -> float:
    pool, items, squares = contender.pool(2), range(ITEMS), [x * x for x in range(ITEMS)]

    def map_them() -> None:
        if pool.map(square, items) != squares:
            raise ValueError("other results came out")

    rate = pace.rate(map_them, ITEMS)
    pool.terminate()
    pool.join()
    return rate


def numbers(count: int) -> Iterator[int]:
    for i in range(count):  # noqa: UP028 (Ray sends into generators, which `yield from range()` cannot take)
        yield i


@measure(Row("items of a streaming generator, got one by one", "items/s"), needs={"streams"})
def streaming(contender: Contender, pace: Pace) -> float:
    stream, get = contender.stream(numbers), contender.get

    def read() -> None:
        for handle in stream(ITEMS):
            get(handle)

    return pace.rate(read, ITEMS)
