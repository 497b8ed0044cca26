"""What does a call cost where many actors live? Each answers by itself, so one that is called in turn has slept."""

from __future__ import annotations

from itertools import cycle, islice
from typing import Any

from perf.contenders.base import Contender
from perf.jobs import Actor, small_value
from perf.model import Row, measure
from perf.pace import Pace

CROWDS = (2, 10, 60, 250, 500)
IN_FLIGHT = 10_000


def _rows() -> list[Row]:
    rows = []
    for count in CROWDS:
        rows += [
            Row(f"calls one at a time, in turn over {count} actors", "calls/s", key=f"turn_{count}"),
            Row(f"calls over {count} actors, 10,000 in flight", "calls/s", key=f"flight_{count}"),
        ]
    return rows


@measure(
    *_rows(),
    Row("the same over 250, of the rate over 2", "%", key="flight_share"),
    Row("a task, one at a time, beside 500 actors", "tasks/s", key="task_beside"),
    needs={"actors", "tasks"},
    group="crowd",
    limit_s=300,
    most_rounds=3,
)
def crowd(contender: Contender, pace: Pace) -> tuple[float, ...]:
    get, get_all = contender.get, contender.get_all
    actors: list[Any] = []
    figures: list[float] = []
    in_flight: dict[int, float] = {}
    for count in CROWDS:
        actors += contender.actors(Actor, count - len(actors))
        submits = [contender.method(actor, "small_value") for actor in actors]
        get_all([submit() for submit in submits])
        turn = cycle(submits)

        def one(turn: Any = turn) -> None:
            get(next(turn)())

        def many(turn: Any = turn) -> None:
            get_all([submit() for submit in islice(turn, IN_FLIGHT)])

        figures.append(pace.rate(one))
        in_flight[count] = pace.rate(many, IN_FLIGHT)
        figures.append(in_flight[count])
    task = contender.task(small_value)
    return (*figures, 100 * in_flight[250] / in_flight[2], pace.rate(lambda: get(task())))
