"""What do tasks cost that depend on tasks, and tasks that wait for tasks they started?"""

from __future__ import annotations

from time import perf_counter

from perf.contenders.base import Contender, Inside
from perf.model import Row, measure
from perf.pace import Pace

LAYERS, WIDTH = 100, 100
DEPTH = 100


def one() -> int:
    return 1


def add(left: int, right: int) -> int:
    return left + right


def nest(inside: Inside, depth: int) -> int:
    """How many tasks this one is deep, itself counted; each gets its child before it returns."""
    return 1 if depth == 1 else 1 + inside.call(nest, inside, depth - 1)


@measure(Row("a graph of 10,000 tasks, 100 layers of 100", "tasks/s"), needs={"tasks", "refs"}, group="dag")
def layers(contender: Contender, pace: Pace) -> float:
    """Each task adds two neighbours of the layer before. Submitted whole, then one get of the last layer."""
    submit_one, submit_add = contender.task(one), contender.task(add)
    contender.get(submit_add(submit_one(), submit_one()))
    start = perf_counter()
    layer = [submit_one() for _ in range(WIDTH)]
    for _ in range(LAYERS - 1):
        layer = [submit_add(layer[i], layer[(i + 1) % WIDTH]) for i in range(WIDTH)]
    if contender.get_all(layer) != [2 ** (LAYERS - 1)] * WIDTH:
        raise ValueError("the graph gave a wrong result")
    return LAYERS * WIDTH / (perf_counter() - start)


@measure(
    Row("a nest of tasks 100 deep, on 1 CPU", "s", "lower"),
    needs={"tasks", "nesting"},
    group="nest",
    num_cpus=1,
    limit_s=240.0,
    most_rounds=2,
)
def nested(contender: Contender, pace: Pace) -> float:
    """The first nest of a session: it starts the workers it needs, as a program's first one does."""
    submit, inside = contender.task(nest), contender.inside()
    contender.get(submit(inside, 1))
    start = perf_counter()
    if contender.get(submit(inside, DEPTH)) != DEPTH:
        raise ValueError("the nest gave a wrong result")
    return perf_counter() - start
