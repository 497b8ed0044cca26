"""What actors hold of objects, and for how long: a small store is never full for want of letting go."""

import gc
import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import skate
from skate.exceptions import ActorDiedError

from .rendezvous import Gate, eventually, gone

pytestmark = pytest.mark.transport

STORE_BYTES = 200_000_000
ARRAY_BYTES = 20_000_000
TIMES = 25


@pytest.fixture(scope="module", autouse=True)
def small_store() -> Iterator[None]:
    skate.init(num_cpus=2, object_store_memory=STORE_BYTES)
    yield
    skate.shutdown()


def array(value: int = 1) -> np.ndarray:
    return np.full(ARRAY_BYTES, value, np.uint8)


def is_empty() -> bool:
    """Whether nothing large is stored."""
    gc.collect()
    return not any(state.object_size >= ARRAY_BYTES for state in skate.util.state.list_objects())


@pytest.fixture(autouse=True)
def leaves_nothing(small_store: None) -> Iterator[None]:
    yield
    eventually(is_empty)


class Holder:
    def __init__(self, thing: object = None) -> None:
        self.thing = thing

    def hold(self, thing: object) -> None:
        self.thing = thing

    def get(self) -> object:
        return self.thing

    def size(self, thing: object) -> int:
        return skate.get(thing[0]).size if isinstance(thing, list) else thing.size

    def make(self, value: int) -> np.ndarray:
        return array(value)

    def put(self) -> list:
        return [skate.put(array())]

    def pass_gate(self, gate: Gate) -> None:
        gate.wait()

    def pid(self) -> int:
        return os.getpid()


Actor = skate.remote(Holder)


class TestOverAndOver:
    def test_results(self) -> None:
        actor = Actor.remote()
        for i in range(TIMES):
            assert skate.get(actor.make.remote(i))[0] == i

    def test_results_nobody_looks_at(self) -> None:
        actor = Actor.remote()
        for i in range(TIMES):
            actor.make.remote(i)
        assert skate.get(actor.make.remote(7))[0] == 7

    def test_arguments(self) -> None:
        actor = Actor.remote()
        for _ in range(TIMES):
            assert skate.get(actor.size.remote(array())) == ARRAY_BYTES

    def test_arguments_by_ref_and_in_lists(self) -> None:
        actor = Actor.remote()
        for i in range(TIMES):
            ref = skate.put(array())
            assert skate.get(actor.size.remote([ref] if i % 2 else ref)) == ARRAY_BYTES

    def test_the_state(self) -> None:
        actor = Actor.remote()
        for i in range(TIMES):
            skate.get(actor.hold.remote(array(i)))
        assert skate.get(actor.get.remote())[0] == TIMES - 1

    def test_refs_in_the_state(self) -> None:
        actor = Actor.remote()
        for i in range(TIMES):
            skate.get(actor.hold.remote([skate.put(array(i))]))
        assert skate.get(skate.get(actor.get.remote())[0])[0] == TIMES - 1

    def test_puts_of_the_actor(self) -> None:
        actor = Actor.remote()
        for _ in range(TIMES):
            (ref,) = skate.get(actor.put.remote())
            assert skate.get(ref).size == ARRAY_BYTES

    def test_actors_with_an_array_each(self) -> None:
        for i in range(TIMES):
            actor = Actor.remote(array(i))
            assert skate.get(actor.get.remote())[0] == i

    def test_items_of_a_generator(self) -> None:
        class Source:
            def arrays(self, n: int) -> Iterator[np.ndarray]:
                for i in range(n):
                    yield array(i)

        actor = skate.remote(Source).remote()
        arrays = actor.arrays.options(_generator_backpressure_num_objects=2)
        assert [skate.get(ref)[0] for ref in arrays.remote(TIMES)] == list(range(TIMES))


class TestUntilTheEnd:
    def test_of_the_actor(self) -> None:
        actor = Actor.remote([skate.put(array())])
        assert skate.get(actor.size.remote(skate.get(actor.get.remote()))) == ARRAY_BYTES
        del actor

    def test_also_when_it_is_killed(self) -> None:
        actor = Actor.remote([skate.put(array())])
        skate.get(actor.hold.remote([skate.put(array()), skate.put(array())]))
        skate.kill(actor)
        with pytest.raises(ActorDiedError):
            skate.get(actor.pid.remote())

    def test_also_when_it_dies_in_a_call(self) -> None:
        class Mortal(Holder):
            def die(self, *things: object) -> None:
                os.kill(os.getpid(), signal.SIGKILL)

        actor = skate.remote(Mortal).remote(array())
        with pytest.raises(ActorDiedError):
            skate.get(actor.die.remote(array(), skate.put(array()), [skate.put(array())]))

    def test_of_the_calls_that_it_did_not_come_to(self, gate: Gate) -> None:
        actor = Actor.remote()
        pid = skate.get(actor.pid.remote())
        refs = [actor.pass_gate.remote(gate), *(actor.size.remote(array()) for _ in range(4))]
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: gone(pid))
        for ref in refs:
            with pytest.raises(ActorDiedError):
                skate.get(ref)

    def test_of_a_constructor_that_failed(self) -> None:
        @skate.remote
        class Failing:
            def __init__(self, thing: object, refs: list) -> None:
                self.kept = skate.get(refs)
                raise LookupError("no")

            def hello(self) -> None: ...

        with pytest.raises(ActorDiedError):
            skate.get(Failing.remote(array(), [skate.put(array())]).hello.remote())

    def test_of_several_lives(self) -> None:
        actor = Actor.options(max_restarts=-1, max_task_retries=-1).remote(skate.put(array(3)))
        for _ in range(3):
            skate.get(actor.hold.remote([skate.put(array()), array()]))
            pid = skate.get(actor.pid.remote())
            os.kill(pid, signal.SIGKILL)
            eventually(lambda pid=pid: gone(pid))
            assert skate.get(actor.get.remote())[0] == 3

    def test_held_by_the_driver_alone(self) -> None:
        actor = Actor.remote()
        result = skate.get(actor.make.remote(5))
        pid = skate.get(actor.pid.remote())
        del actor
        eventually(lambda: gone(pid))
        assert result[-1] == 5
        del result


class TestWhoHolds:
    def test_an_argument_that_is_kept_stays_after_the_caller_lets_go(self) -> None:
        actor = Actor.remote()
        ref = skate.put(array(4))
        skate.get(actor.hold.remote([ref]))
        del ref
        for _ in range(TIMES):  # what was let go would be overwritten
            skate.put(array(0))
        assert skate.get(skate.get(actor.get.remote())[0])[0] == 4

    def test_a_ref_from_one_actor_to_another(self) -> None:
        first, second = Actor.remote(), Actor.remote()
        skate.get(first.hold.remote([skate.put(array(6))]))
        skate.get(second.hold.remote(skate.get(first.get.remote())))
        pid = skate.get(first.pid.remote())
        del first
        eventually(lambda: gone(pid))
        for _ in range(TIMES):
            skate.put(array(0))
        assert skate.get(skate.get(second.get.remote())[0])[0] == 6

    def test_a_ref_in_flight_to_an_actor_that_waits(self, gate: Gate) -> None:
        actor = Actor.remote()
        waiting = actor.pass_gate.remote(gate)
        sizes = [actor.size.remote([skate.put(array())]) for _ in range(3)]
        for _ in range(TIMES):
            skate.put(array(0))
        gate.open()
        assert skate.get([waiting, *sizes]) == [None, *[ARRAY_BYTES] * 3]

    def test_a_result_that_is_the_argument(self) -> None:
        class Echo:
            def echo(self, thing: object) -> object:
                return thing

        actor = skate.remote(Echo).remote()
        inner = skate.put(array(8))
        (again,) = skate.get(actor.echo.remote([inner]))
        assert again == inner
        del inner
        for _ in range(TIMES):
            skate.put(array(0))
        assert skate.get(again)[0] == 8
