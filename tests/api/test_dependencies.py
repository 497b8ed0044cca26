"""Tasks over the results of tasks: any graph, whatever is ready first."""

import os
import random

import numpy as np
import pytest
import skate

from .rendezvous import Gate, Tally

pytestmark = [pytest.mark.usefixtures("cpu2"), pytest.mark.transport]


@skate.remote
def add(*numbers: int) -> int:
    return sum(numbers)


@skate.remote
def pass_gate(gate: Gate, value: int = 1) -> int:
    gate.wait()
    return value


@skate.remote
def fail() -> None:
    raise LookupError("nothing here")


def test_refs_become_values() -> None:
    assert skate.get(add.remote(add.remote(1, 2), skate.put(3), 4)) == 10


def test_named_refs_too() -> None:
    @skate.remote
    def subtract(a: int, *, b: int, **more: int) -> int:
        return a - b - sum(more.values())

    assert skate.get(subtract.remote(a=skate.put(10), b=add.remote(1, 2), c=skate.put(4))) == 3


def test_one_ref_many_times() -> None:
    one = add.remote(1)
    assert skate.get(add.remote(one, one, one)) == 3
    assert skate.get([add.remote(one, i) for i in range(50)]) == list(range(1, 51))


def test_a_chain() -> None:
    ref = skate.put(0)
    for _ in range(200):
        ref = add.remote(ref, 1)
    assert skate.get(ref) == 200


def test_a_diamond() -> None:
    top = add.remote(1)
    assert skate.get(add.remote(add.remote(top, 1), add.remote(top, 2))) == 5


def test_a_fan_in() -> None:
    assert skate.get(add.remote(*[add.remote(i) for i in range(500)])) == sum(range(500))


@pytest.mark.parametrize("seed", range(3))
def test_any_graph(seed: int) -> None:
    rng = random.Random(seed)
    values, refs = [1], [skate.put(1)]
    for _ in range(150):
        picks = [rng.randrange(len(refs)) for _ in range(rng.randrange(1, 5))]
        values.append(sum(values[i] for i in picks) % 1_000 + 1)
        refs.append(step.remote(*[refs[i] for i in picks]))
    order = list(range(len(refs)))
    rng.shuffle(order)
    assert skate.get([refs[i] for i in order]) == [values[i] for i in order]


@skate.remote
def step(*numbers: int) -> int:
    return sum(numbers) % 1_000 + 1


def test_nothing_starts_before_what_it_needs(gate: Gate, tally: Tally) -> None:
    @skate.remote
    def after(_: int) -> int:
        return tally.add()

    needs_gate = after.remote(pass_gate.remote(gate))
    assert skate.get(add.remote(1)) == 1
    assert skate.wait([needs_gate], timeout=0.2) == ([], [needs_gate])
    assert tally.count == 0
    gate.open()
    assert skate.get(needs_gate) == 1


def test_who_waits_for_arguments_takes_no_cpu(gate: Gate) -> None:
    slow = pass_gate.remote(gate)
    waiting = [add.remote(slow, i) for i in range(20)]
    assert skate.get([add.remote(i) for i in range(20)], timeout=30) == list(range(20))
    gate.open()
    assert skate.get(waiting) == [1 + i for i in range(20)]


def test_a_failed_argument_fails_the_task_without_running_it(tally: Tally) -> None:
    @skate.remote
    def count(_: object) -> int:
        return tally.add()

    last = count.remote(count.remote(fail.remote()))
    with pytest.raises(LookupError, match="nothing here"):
        skate.get(last)
    assert tally.count == 0


@skate.remote(max_retries=0)
def crash() -> None:
    os._exit(1)


def test_a_lost_argument_fails_the_call_as_a_task_error() -> None:
    """Whatever an argument is lost by, and however many calls lie between; that is the cause, and its class, too."""

    @skate.remote(num_cpus=0)
    class Actor:
        def take(self, value: object) -> object:
            return value

        def end(self) -> None:
            os._exit(1)

    ref = lost = crash.remote()
    for _ in range(300):
        ref = add.remote(ref)
    dead = Actor.remote()
    for taken, kind in [
        (add.remote(lost), skate.exceptions.WorkerCrashedError),
        (ref, skate.exceptions.WorkerCrashedError),
        (Actor.remote().take.remote(lost), skate.exceptions.WorkerCrashedError),
        (add.remote(dead.end.remote()), skate.exceptions.ActorDiedError),
        (next(add.options(num_returns="streaming").remote(lost)), skate.exceptions.WorkerCrashedError),
    ]:
        with pytest.raises(skate.exceptions.RayTaskError) as caught:
            skate.get(taken, timeout=20)
        assert isinstance(caught.value, kind)
        assert type(caught.value.cause) is kind
        assert caught.value.args == (caught.value.cause,)


def test_one_failed_argument_among_many() -> None:
    with pytest.raises(LookupError):
        skate.get(add.remote(1, add.remote(2), fail.remote(), skate.put(4)))


def test_refs_may_be_dropped_as_soon_as_they_are_passed(gate: Gate) -> None:
    ref = pass_gate.remote(gate, 5)
    for _ in range(10):
        ref = add.remote(ref, 1)  # drops the one before
    gate.open()
    assert skate.get(ref) == 15


def test_large_values_pass_from_task_to_task() -> None:
    @skate.remote
    def make(n: int) -> np.ndarray:
        return np.full(300_000, n)

    @skate.remote
    def merge(*arrays: np.ndarray) -> np.ndarray:
        return sum(arrays)

    level = [make.remote(n) for n in range(8)]
    while len(level) > 1:
        level = [merge.remote(a, b) for a, b in zip(level[::2], level[1::2], strict=True)]
    np.testing.assert_array_equal(skate.get(level[0]), np.full(300_000, 28))


def test_a_large_argument_used_by_many() -> None:
    @skate.remote
    def at(array: np.ndarray, i: int) -> int:
        return int(array[i])

    ref = skate.put(np.arange(1_000_000))
    assert skate.get([at.remote(ref, i) for i in range(100)]) == list(range(100))


def test_several_returns_go_different_ways() -> None:
    @skate.remote(num_returns=2)
    def halves(numbers: list[int]) -> tuple[list[int], list[int]]:
        middle = len(numbers) // 2
        return numbers[:middle], numbers[middle:]

    @skate.remote
    def largest(numbers: list[int]) -> int:
        return max(numbers)

    left, right = halves.remote([1, 9, 3, 4])
    assert skate.get([largest.remote(left), largest.remote(right)]) == [9, 4]
