"""ActorPool: calls shared out among actors, in order and not."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import skate
from skate.exceptions import ActorDiedError
from skate.util import ActorPool

from .rendezvous import Gate, Tally, eventually

pytestmark = pytest.mark.usefixtures("cpu2")


@skate.remote(num_cpus=0)
class Worker:
    def double(self, number: int) -> int:
        return 2 * number

    def through(self, gate: Gate, value: object = None) -> object:
        gate.wait()
        return value

    def meet(self, tally: Tally, parties: int) -> int:
        tally.meet(parties)
        return os.getpid()

    def pair(self, number: int) -> tuple[int, int]:
        return number, number + 1

    def fail(self, number: int) -> None:
        raise LookupError(f"nothing at {number}")

    def pid(self) -> int:
        return os.getpid()

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def double(actor: object, number: int) -> skate.ObjectRef:
    return actor.double.remote(number)


def through(actor: object, item: tuple[Gate, object]) -> skate.ObjectRef:
    return actor.through.remote(*item)


def die(actor: object, _: object) -> skate.ObjectRef:
    return actor.die.remote()


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[list[Gate]]:
    gates = [Gate(tmp_path / f"gate {number}") for number in range(4)]
    yield gates
    for gate in gates:
        gate.open()


@pytest.fixture
def pool() -> ActorPool:
    return ActorPool([Worker.remote() for _ in range(2)])


class TestMap:
    def test_in_order(self, pool: ActorPool) -> None:
        assert list(pool.map(double, range(20))) == [2 * i for i in range(20)]

    def test_unordered(self, pool: ActorPool) -> None:
        assert sorted(pool.map_unordered(double, range(20))) == [2 * i for i in range(20)]

    @pytest.mark.parametrize("way", ["map", "map_unordered"])
    def test_of_nothing(self, pool: ActorPool, way: str) -> None:
        assert list(getattr(pool, way)(double, [])) == []

    def test_an_iterator_of_values(self, pool: ActorPool) -> None:
        assert list(pool.map(double, iter(range(5)))) == [0, 2, 4, 6, 8]

    def test_it_begins_at_once(self, pool: ActorPool, tally: Tally) -> None:
        pool.map(lambda actor, value: actor.meet.remote(tally, 1), [1])
        eventually(lambda: tally.count == 1)

    def test_all_actors_work_at_once(self, pool: ActorPool, tally: Tally) -> None:
        assert len(set(pool.map(lambda actor, parties: actor.meet.remote(tally, parties), [2, 2]))) == 2

    def test_unordered_as_they_come(self, pool: ActorPool, gates: list[Gate]) -> None:
        results = pool.map_unordered(through, [(gates[0], "slow"), (gates[1], "quick"), (gates[2], "third")])
        gates[1].open()
        assert next(results) == "quick"
        gates[2].open()
        assert next(results) == "third"
        gates[0].open()
        assert next(results) == "slow"

    def test_ordered_whatever_is_done_first(self, pool: ActorPool, gates: list[Gate]) -> None:
        results = pool.map(through, [(gates[0], "slow"), (gates[1], "quick")])
        gates[1].open()
        gates[0].open()
        assert list(results) == ["slow", "quick"]

    @pytest.mark.differs_from_ray("an actor gets its next call when its last result is fetched")
    def test_a_slow_first_one_holds_up_no_others(
        self, pool: ActorPool, gates: list[Gate], tally: Tally
    ) -> None:
        def call(actor: object, item: object) -> skate.ObjectRef:
            return actor.meet.remote(tally, 1) if item else actor.through.remote(gates[0])

        results = pool.map(call, [0, 1, 2, 3, 4])

        def others_are_through() -> bool:
            with pytest.raises(TimeoutError):
                pool.get_next(timeout=0.05)  # waits for actors that are done, and gives them their next calls
            return tally.count == 4

        eventually(others_are_through)
        gates[0].open()
        assert next(results) is None
        assert len(list(results)) == 4

    def test_a_failure_in_its_place(self, pool: ActorPool) -> None:
        results = pool.map(
            lambda actor, i: actor.fail.remote(i) if i == 1 else actor.double.remote(i), range(3)
        )
        assert next(results) == 0
        with pytest.raises(LookupError, match="nothing at 1"):
            next(results)
        assert pool.get_next() == 4

    @pytest.mark.parametrize("way", ["map", "map_unordered"])
    def test_drops_what_was_submitted_before(self, pool: ActorPool, way: str, gates: list[Gate]) -> None:
        pool.submit(through, (gates[0], "dropped"))
        for number in range(5):
            pool.submit(double, 1_000 + number)
        assert sorted(getattr(pool, way)(double, range(5))) == [0, 2, 4, 6, 8]

    def test_the_rest_of_one_before(self, pool: ActorPool) -> None:
        first = pool.map(double, range(5))
        assert next(first) == 0
        second = pool.map(double, range(10, 13))
        with pytest.raises(RuntimeError, match="dropped"):
            next(first)
        assert list(second) == [20, 22, 24]


class TestOneByOne:
    def test_in_order(self, pool: ActorPool) -> None:
        for number in range(10):
            pool.submit(double, number)
        assert [pool.get_next() for _ in range(10)] == [2 * i for i in range(10)]
        assert not pool.has_next()

    def test_unordered(self, pool: ActorPool, gates: list[Gate]) -> None:
        pool.submit(through, (gates[0], "slow"))
        pool.submit(through, (gates[1], "quick"))
        gates[1].open()
        assert pool.get_next_unordered() == "quick"
        gates[0].open()
        assert pool.get_next_unordered() == "slow"

    def test_both_ways(self, pool: ActorPool, gates: list[Gate]) -> None:
        pool.submit(through, (gates[0], "first"))
        pool.submit(through, (gates[1], "second"))
        pool.submit(through, (gates[2], "third"))
        gates[1].open()
        assert pool.get_next_unordered() == "second"
        for gate in gates:
            gate.open()
        assert [pool.get_next(), pool.get_next()] == ["first", "third"]

    @pytest.mark.parametrize("way", ["get_next", "get_next_unordered"])
    def test_nothing_left(self, pool: ActorPool, way: str) -> None:
        with pytest.raises(StopIteration, match="No more results"):
            getattr(pool, way)()

    @pytest.mark.parametrize("way", ["get_next", "get_next_unordered"])
    def test_a_timeout(self, pool: ActorPool, way: str, gates: list[Gate]) -> None:
        pool.submit(through, (gates[0], "late"))
        for timeout in (0, 0.05):
            with pytest.raises(TimeoutError, match="asked for again"):
                getattr(pool, way)(timeout=timeout)
        gates[0].open()
        assert getattr(pool, way)(timeout=20) == "late"

    @pytest.mark.parametrize("way", ["get_next", "get_next_unordered"])
    def test_a_timeout_while_it_waits_for_an_actor(
        self, pool: ActorPool, way: str, gates: list[Gate]
    ) -> None:
        for gate in gates[:3]:
            pool.submit(through, (gate, gate.path.name))
        gates[0].open()
        assert getattr(pool, way)(timeout=20) == "gate 0"
        with pytest.raises(TimeoutError):
            getattr(pool, way)(timeout=0.05)
        gates[1].open()
        gates[2].open()
        assert sorted(getattr(pool, way)() for _ in range(2)) == ["gate 1", "gate 2"]

    @pytest.mark.parametrize("way", ["get_next", "get_next_unordered"])
    def test_a_timeout_that_drops_it(self, pool: ActorPool, way: str, gates: list[Gate]) -> None:
        pool.submit(through, (gates[0], "dropped"))
        pool.submit(through, (gates[1], "wanted"))
        with pytest.raises(TimeoutError, match="dropped"):
            getattr(pool, way)(timeout=0.05, ignore_if_timedout=True)
        gates[1].open()
        assert getattr(pool, way)() == "wanted"
        assert not pool.has_next()

    @pytest.mark.differs_from_ray("the actor counts as idle at once")
    def test_the_actor_of_a_dropped_call_is_busy_until_it_is_done(self, gates: list[Gate]) -> None:
        pool = ActorPool([Worker.remote()])
        pool.submit(through, (gates[0], "dropped"))
        with pytest.raises(TimeoutError):
            pool.get_next(timeout=0, ignore_if_timedout=True)
        assert not pool.has_free()
        pool.submit(double, 4)
        gates[0].open()
        assert pool.get_next() == 8
        assert pool.has_free()

    def test_a_submission_that_is_dropped_before_it_began_never_runs(
        self, gates: list[Gate], tally: Tally
    ) -> None:
        pool = ActorPool([Worker.remote()])
        pool.submit(through, (gates[0], "first"))
        with pytest.raises(TimeoutError):
            pool.get_next(timeout=0, ignore_if_timedout=True)
        pool.submit(lambda actor, _: actor.meet.remote(tally, 1), None)
        with pytest.raises(TimeoutError):
            pool.get_next(timeout=0, ignore_if_timedout=True)
        gates[0].open()
        pool.submit(double, 1)
        assert pool.get_next() == 2
        assert tally.count == 0

    def test_several_values(self, pool: ActorPool) -> None:
        for number in range(5):
            pool.submit(lambda actor, i: actor.pair.options(num_returns=2).remote(i), number)
        assert [pool.get_next() for _ in range(4)] == [[i, i + 1] for i in range(4)]
        assert pool.get_next_unordered(timeout=20) == [4, 5]

    def test_refs_of_tasks_will_do(self, pool: ActorPool) -> None:
        @skate.remote(num_cpus=0)
        def task(number: int) -> int:
            return -number

        pool.submit(lambda actor, number: task.remote(number), 3)
        assert pool.get_next() == -3


class TestActors:
    def test_they_take_turns(self) -> None:
        """One that fails at once is not the only one that is idle, so it does not take every call."""
        pool = ActorPool([Worker.remote() for _ in range(3)])
        pids = []
        for _ in range(6):
            pool.submit(lambda actor, _: actor.pid.remote(), None)
            pids.append(pool.get_next(timeout=20))
        assert pids[:3] == pids[3:]
        assert len(set(pids)) == 3

    def test_free_or_not(self, pool: ActorPool) -> None:
        assert pool.has_free()
        pool.submit(double, 1)
        assert pool.has_free()
        pool.submit(double, 2)
        assert not pool.has_free()  # until its result is fetched
        assert pool.get_next() == 2
        assert pool.has_free()
        pool.submit(double, 3)
        pool.submit(double, 4)
        assert not pool.has_free()
        assert [pool.get_next(), pool.get_next(), pool.get_next()] == [4, 6, 8]
        assert pool.has_free()
        assert not pool.has_next()

    def test_pop_idle(self) -> None:
        actors = [Worker.remote()]
        pool = ActorPool(actors)
        pool.submit(double, 1)
        assert pool.pop_idle() is None
        assert pool.get_next() == 2
        assert pool.pop_idle() == actors[0]
        assert pool.pop_idle() is None

    def test_push(self, gates: list[Gate]) -> None:
        pool = ActorPool([Worker.remote()])
        pool.submit(through, (gates[0], "first"))
        assert not pool.has_free()
        pool.push(Worker.remote())
        assert pool.has_free()

    def test_push_begins_what_is_queued(self, gates: list[Gate]) -> None:
        pool = ActorPool([])
        pool.submit(double, 1)
        assert pool.has_next()
        pool.push(Worker.remote())
        assert pool.get_next() == 2

    def test_push_of_one_that_is_in(self, gates: list[Gate]) -> None:
        actor = Worker.remote()
        pool = ActorPool([actor])
        with pytest.raises(ValueError, match="already"):
            pool.push(actor)
        pool.submit(through, (gates[0], "busy"))
        with pytest.raises(ValueError, match="already"):
            pool.push(actor)
        gates[0].open()

    def test_one_that_dies_leaves_the_pool(self, pool: ActorPool) -> None:
        pool.submit(die, None)
        with pytest.raises(ActorDiedError):
            pool.get_next()
        assert list(pool.map(double, range(6))) == [2 * i for i in range(6)]
        assert pool.pop_idle() is not None
        assert pool.pop_idle() is None

    def test_one_that_lives_stays_when_another_that_it_called_is_dead(self) -> None:
        @skate.remote(num_cpus=0)
        class Caller:
            def call(self, other: object) -> object:
                return skate.get(other.pid.remote())

        dead = Worker.remote()
        skate.get(dead.pid.remote())
        skate.kill(dead)
        pool = ActorPool([Caller.remote()])
        pool.submit(lambda actor, other: actor.call.remote(other), dead)
        with pytest.raises(ActorDiedError):
            pool.get_next()
        assert pool.has_free()

    @pytest.mark.parametrize("way", ["get_next", "get_next_unordered"])
    def test_none_is_left(self, way: str) -> None:
        pool = ActorPool([Worker.remote()])
        pool.submit(die, None)
        pool.submit(double, 4)
        with pytest.raises(ActorDiedError):
            getattr(pool, way)()
        assert pool.has_next()
        with pytest.raises(RuntimeError, match=r"no actors left.*push"):
            getattr(pool, way)()
        pool.push(Worker.remote())
        assert getattr(pool, way)() == 8

    def test_a_failed_call_does_not_cost_the_actor(self) -> None:
        pool = ActorPool([Worker.remote()])
        pool.submit(lambda actor, number: actor.fail.remote(number), 1)
        pool.submit(double, 2)
        with pytest.raises(LookupError):
            pool.get_next()
        assert pool.get_next() == 4


class TestFunctions:
    def test_one_that_raises_at_once(self, pool: ActorPool) -> None:
        def broken(actor: object, value: object) -> None:
            raise LookupError("in the driver")

        with pytest.raises(LookupError, match="in the driver"):
            pool.submit(broken, 1)
        assert list(pool.map(double, range(3))) == [0, 2, 4]

    def test_one_that_raises_when_its_turn_comes(self, gates: list[Gate]) -> None:
        def broken(actor: object, value: object) -> None:
            raise LookupError("in the driver")

        pool = ActorPool([Worker.remote()])
        pool.submit(double, 1)
        pool.submit(broken, 2)
        pool.submit(double, 3)
        assert pool.get_next() == 2
        with pytest.raises(LookupError, match="in the driver"):
            pool.get_next()
        assert pool.get_next() == 6

    @pytest.mark.parametrize("result", [None, 3, [], [3]])
    def test_one_that_gives_no_ref(self, pool: ActorPool, result: object) -> None:
        with pytest.raises(TypeError, match="ObjectRef"):
            pool.submit(lambda actor, value: result, 1)
        assert pool.has_free()
        assert not pool.has_next()


class TestRefuses:
    def test_a_single_actor(self) -> None:
        with pytest.raises(TypeError, match=r"ActorPool\(\[actor\]\)"):
            ActorPool(Worker.remote())

    @pytest.mark.parametrize(
        "make", [lambda: Worker, lambda: 3, lambda: Worker._cls], ids=["class", "number", "undecorated"]
    )
    def test_what_is_no_actor(self, make: Callable[[], object]) -> None:
        with pytest.raises(TypeError, match="handle of an actor"):
            ActorPool([make()])
        with pytest.raises(TypeError, match="handle of an actor"):
            ActorPool([]).push(make())

    def test_a_class_says_how(self) -> None:
        with pytest.raises(TypeError, match=r"\.remote\(\)"):
            ActorPool([Worker])

    def test_what_is_no_function(self, pool: ActorPool) -> None:
        with pytest.raises(TypeError, match="function"):
            pool.submit(3, 1)

    def test_values_that_cannot_be_iterated(self, pool: ActorPool) -> None:
        with pytest.raises(TypeError, match="iterable"):
            pool.map(double, 3)

    def test_a_negative_timeout(self, pool: ActorPool) -> None:
        pool.submit(double, 1)
        with pytest.raises(ValueError, match="timeout"):
            pool.get_next(timeout=-1)
        assert pool.get_next() == 2
