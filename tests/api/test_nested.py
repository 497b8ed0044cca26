"""Tasks that start tasks and wait for them, mostly on one CPU: who waits gives way."""

import time
from typing import Any

import pytest
import skate
from skate.runtime import current

from .rendezvous import Gate, most_at_once

pytestmark = [pytest.mark.usefixtures("cpu1"), pytest.mark.transport]


@pytest.fixture(scope="module")
def cpu1(transport: None):
    skate.init(num_cpus=1, num_gpus=1)
    yield
    skate.shutdown()


@skate.remote
def identity(value: object) -> object:
    return value


def test_a_task_waits_for_a_task() -> None:
    @skate.remote
    def outer() -> object:
        return skate.get(identity.remote("inner"))

    assert skate.get(outer.remote()) == "inner"


def test_deep() -> None:
    @skate.remote
    def down(depth: int) -> int:
        return 1 + skate.get(down.remote(depth - 1)) if depth else 0

    assert skate.get(down.remote(20), timeout=100) == 20


def test_wide() -> None:
    @skate.remote
    def fan_out(n: int) -> int:
        return sum(skate.get([identity.remote(i) for i in range(n)]))

    assert skate.get(fan_out.remote(300)) == sum(range(300))


def test_a_tree() -> None:
    @skate.remote
    def fibonacci(n: int) -> int:
        if n < 2:
            return n
        return sum(skate.get([fibonacci.remote(n - 1), fibonacci.remote(n - 2)]))

    assert skate.get(fibonacci.remote(6), timeout=100) == 8


def test_wait_gives_way_too() -> None:
    @skate.remote
    def outer() -> int:
        rest, total = [identity.remote(i) for i in range(5)], 0
        while rest:
            (ready,), rest = skate.wait(rest)
            total += skate.get(ready)
        return total

    assert skate.get(outer.remote(), timeout=60) == 10


def test_many_that_each_wait() -> None:
    @skate.remote
    def g(i: int) -> int:
        return skate.get(identity.remote(i)) + 1

    @skate.remote
    def f(i: int) -> int:
        return skate.get(g.remote(i)) + 1

    # Every f may start before any g does, and each is a process that waits: 20 are enough to try it.
    assert skate.get([f.remote(i) for i in range(20)], timeout=100) == [i + 2 for i in range(20)]


def test_a_thousand_chains_of_three() -> None:
    @skate.remote
    def add_one(i: int) -> int:
        return i + 1

    refs = [add_one.remote(add_one.remote(add_one.remote(i))) for i in range(1_000)]
    assert skate.get(refs) == [i + 3 for i in range(1_000)]


def test_refs_of_the_parents_tasks_go_up() -> None:
    @skate.remote
    def start(n: int) -> list[skate.ObjectRef]:
        return [identity.remote(i) for i in range(n)]

    assert skate.get(skate.get(start.remote(5))) == list(range(5))


def test_refs_of_the_driver_go_down(gate: Gate) -> None:
    @skate.remote
    def through(gate: Gate) -> str:
        gate.wait()
        return "through"

    @skate.remote
    def outer(refs: list[skate.ObjectRef]) -> list[object]:
        return skate.get(refs)

    refs = [identity.remote(1), through.remote(gate)]
    result = outer.remote(refs)
    gate.open()
    assert skate.get(result) == [1, "through"]


def test_who_computes_never_shares_the_one_cpu() -> None:
    @skate.remote
    def leaf() -> tuple[float, float]:
        start = time.monotonic()
        time.sleep(0.02)
        return start, time.monotonic()

    @skate.remote
    def branch() -> list[tuple[float, float]]:
        spans = skate.get([leaf.remote() for _ in range(4)])
        start = time.monotonic()
        time.sleep(0.02)  # back from get, it holds the CPU again
        return [*spans, (start, time.monotonic())]

    spans = [span for spans in skate.get([branch.remote() for _ in range(3)]) for span in spans]
    assert len(spans) == 15
    assert most_at_once(spans) == 1


def test_a_task_waits_for_an_actor_that_takes_its_cpu() -> None:
    """The actor keeps the CPU for as long as the task has its handle: the task goes on even so."""

    @skate.remote(num_cpus=1)
    class Adder:
        def add(self, number: int) -> int:
            return number + 1

    @skate.remote
    def outer() -> int:
        adder = Adder.remote()
        return skate.get(adder.add.remote(skate.get(adder.add.remote(1))))

    assert skate.get(outer.remote(), timeout=60) == 3


def test_a_gpu_is_not_given_back() -> None:
    @skate.remote(num_cpus=0)
    def free_gpus() -> float:
        return skate.available_resources().get("GPU", 0)

    @skate.remote(num_gpus=1)
    def outer() -> float:
        return skate.get(free_gpus.remote())

    assert skate.get(outer.remote()) == 0


@skate.remote
def gives_way(refs: list[skate.ObjectRef], *_: object) -> bool:
    """Whether `get` of these lends the CPU."""
    assert current.runtime is not None
    objects, lent = current.runtime.objects, []
    lend = objects.blocking

    def blocking() -> Any:
        lent.append(True)
        return lend()

    objects.blocking = blocking
    try:
        skate.get(refs)
    finally:
        objects.blocking = lend
    return bool(lent)


def test_who_has_the_value_already_does_not_give_way() -> None:
    """It came as an argument, small or large; or it is in the store of the node."""
    small, large = identity.remote("small"), identity.remote(bytes(300_000))
    for ref in (small, large):
        assert not skate.get(gives_way.remote([ref], ref))
        assert not skate.get(gives_way.remote([ref, ref], ref, 1, [ref]))
    assert not skate.get(gives_way.remote([large]))
    assert not skate.get(gives_way.remote([skate.put(bytes(300_000)), large]))
    assert skate.get(gives_way.remote([identity.remote(1), large], small))


def test_a_put_in_a_task_outlives_it() -> None:
    @skate.remote
    def make() -> list[skate.ObjectRef]:
        return [skate.put("left behind")]

    (ref,) = skate.get(make.remote())
    assert skate.get(ref) == "left behind"


def test_what_fails_inside_comes_out() -> None:
    @skate.remote
    def inner() -> None:
        raise LookupError("deep down")

    @skate.remote
    def outer(depth: int) -> None:
        skate.get(outer.remote(depth - 1) if depth else inner.remote())

    with pytest.raises(LookupError, match="deep down"):
        skate.get(outer.remote(3), timeout=60)
