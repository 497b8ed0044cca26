"""Generators, of tasks and of actors: refs to what they yield, as they yield it."""

# ruff: noqa: UP028 (loops where `yield from` would do: Ray sends into generators, which a range cannot take)
import asyncio
import functools
import gc
import os
import signal
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
import skate
from skate.exceptions import RayActorError, SerializationError, WorkerCrashedError
from skate.util.state import list_objects

from .rendezvous import Gate, Tally, eventually, gone

pytestmark = [pytest.mark.usefixtures("cpu2"), pytest.mark.transport]


@skate.remote
def count_to(n: int) -> Iterator[int]:
    for i in range(n):
        yield i


@skate.remote
def identity(value: object) -> object:
    return value


@skate.remote
def gated(n: int, gate: Gate) -> Iterator[int]:
    """The gate is before the last."""
    for i in range(n - 1):
        yield i
    gate.wait()
    yield n - 1


@skate.remote
def failing(n: int) -> Iterator[int]:
    for i in range(n):
        yield i
    raise LookupError(f"no more than {n}")


class Base:
    def __init__(self) -> None:
        self.yielded = 0

    def count_to(self, n: int) -> Iterator[int]:
        for i in range(n):
            self.yielded += 1
            yield i

    def gated(self, n: int, gate: Gate) -> Iterator[int]:
        for i in range(n - 1):
            yield i
        gate.wait()
        yield n - 1

    def failing(self, n: int) -> Iterator[int]:
        for i in range(n):
            yield i
        raise LookupError(f"no more than {n}")

    def tallied(self, n: int, tally: Tally) -> Iterator[int]:
        for i in range(n):
            tally.add()
            yield i

    def get(self) -> int:
        return self.yielded

    def pid(self) -> int:
        return os.getpid()


class Coroutines:
    def __init__(self) -> None:
        self.yielded = 0

    async def count_to(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            await asyncio.sleep(0)
            self.yielded += 1
            yield i

    async def gated(self, n: int, gate: Gate) -> AsyncIterator[int]:
        for i in range(n - 1):
            yield i
        while not gate.is_open:
            await asyncio.sleep(0.005)
        yield n - 1

    async def failing(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i
        raise LookupError(f"no more than {n}")

    async def tallied(self, n: int, tally: Tally) -> AsyncIterator[int]:
        for i in range(n):
            tally.add()
            yield i

    async def get(self) -> int:
        return self.yielded

    async def pid(self) -> int:
        return os.getpid()


class Streams:
    """The three that stream under one set of names: a task, an actor, an async actor."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.actor = {"actor": Base, "async": Coroutines}.get(kind)
        if self.actor:
            self.actor = skate.remote(self.actor).remote()

    def __getattr__(self, name: str) -> object:
        if self.actor:
            return getattr(self.actor, name)
        return {"count_to": count_to, "gated": gated, "failing": failing, "tallied": tallied}[name]


@skate.remote
def tallied(n: int, tally: Tally) -> Iterator[int]:
    for i in range(n):
        tally.add()
        yield i


@pytest.fixture(params=["task", "actor", "async"])
def stream(request) -> Streams:
    return Streams(request.param)


class TestIteration:
    def test_gives_refs_in_order(self, stream: Streams) -> None:
        generator = stream.count_to.remote(10)
        assert isinstance(generator, skate.ObjectRefGenerator)
        refs = list(generator)
        assert all(isinstance(ref, skate.ObjectRef) for ref in refs)
        assert skate.get(refs) == list(range(10))

    def test_as_they_are_yielded(self, stream: Streams, gate: Gate) -> None:
        generator = stream.gated.remote(4, gate)
        assert [skate.get(next(generator)) for _ in range(3)] == [0, 1, 2]
        assert not generator.next_ready()
        gate.open()
        assert [skate.get(ref) for ref in generator] == [3]

    def test_is_its_own_iterator_and_ends_for_good(self, stream: Streams) -> None:
        generator = stream.count_to.remote(1)
        assert iter(generator) is generator
        next(generator)
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(generator)

    def test_nothing_yielded(self, stream: Streams) -> None:
        assert list(stream.count_to.remote(0)) == []

    def test_a_thousand(self, stream: Streams) -> None:
        assert skate.get(list(stream.count_to.remote(1_000))) == list(range(1_000))

    @pytest.mark.differs_from_ray("it sends into generators, which a range, say, cannot take")
    def test_yield_from(self) -> None:
        @skate.remote
        def both(n: int) -> Iterator[int]:
            yield from range(n)
            yield from count_to._function(n)

        assert skate.get(list(both.remote(3))) == [0, 1, 2, 0, 1, 2]

    def test_async_for(self, stream: Streams) -> None:
        async def main() -> list[int]:
            return [await ref async for ref in stream.count_to.remote(10)]

        assert asyncio.run(main()) == list(range(10))

    def test_async_for_as_they_are_yielded(self, stream: Streams, gate: Gate) -> None:
        async def main() -> list[int]:
            generator = stream.gated.remote(4, gate)
            first = [await (await anext(generator)) for _ in range(3)]
            gate.open()
            return first + [await ref async for ref in generator]

        assert asyncio.run(main()) == [0, 1, 2, 3]

    def test_in_another_order_than_they_came(self, stream: Streams) -> None:
        refs = list(stream.count_to.remote(5))
        assert [skate.get(ref) for ref in reversed(refs)] == [4, 3, 2, 1, 0]

    def test_said(self, stream: Streams) -> None:
        generator = stream.count_to.options(num_returns="streaming").remote(3)
        assert skate.get(list(generator)) == [0, 1, 2]

    def test_ready_and_finished(self, stream: Streams, gate: Gate) -> None:
        generator = stream.gated.remote(2, gate)
        eventually(generator.next_ready)
        assert not generator.is_finished()
        assert skate.get(next(generator)) == 0
        assert not generator.next_ready()
        gate.open()
        skate.get(generator.completed())
        assert not generator.is_finished()
        assert skate.get(next(generator)) == 1
        eventually(generator.is_finished)
        assert not generator.next_ready()

    def test_wait_takes_it_among_refs(self, stream: Streams, gate: Gate) -> None:
        ready, waiting = stream.count_to.remote(1), stream.gated.remote(1, gate)
        assert skate.wait([waiting, ready], timeout=20) == ([ready], [waiting])
        ref = identity.remote(1)
        assert skate.wait([waiting, ref], timeout=20) == ([ref], [waiting])
        gate.open()
        assert skate.wait([waiting], timeout=20) == ([waiting], [])

    def test_several_at_once(self, stream: Streams) -> None:
        generators = [stream.count_to.remote(20) for _ in range(3)]
        pairs = list(zip(*generators, strict=True))
        assert skate.get([ref for pair in pairs for ref in pair]) == [i for i in range(20) for _ in range(3)]

    def test_its_refs_go_where_refs_go(self, stream: Streams) -> None:
        @skate.remote
        def double(x: int) -> int:
            return 2 * x

        @skate.remote
        def total(refs: list) -> int:
            return sum(skate.get(refs))

        assert skate.get([double.remote(ref) for ref in stream.count_to.remote(5)]) == [0, 2, 4, 6, 8]
        assert skate.get(total.remote(list(stream.count_to.remote(5)))) == 10

    def test_arguments_are_refs_too(self, stream: Streams) -> None:
        assert skate.get(list(stream.count_to.remote(identity.remote(3)))) == [0, 1, 2]


class TestValues:
    def test_of_all_kinds_and_sizes(self) -> None:
        @skate.remote
        def mixed() -> Iterator[object]:
            yield None
            yield {"a": [1]}
            yield np.ones(1_000_000)
            yield skate.ObjectRef
            yield np.zeros(10)

        values = skate.get(list(mixed.remote()))
        assert values[:2] == [None, {"a": [1]}]
        assert values[2].sum() == 1_000_000
        assert values[3] is skate.ObjectRef

    @pytest.mark.differs_from_ray("it may lose what such an item's ref stands for")
    def test_refs_among_them(self) -> None:
        @skate.remote
        def boxes() -> Iterator[list]:
            for i in range(3):
                yield [skate.put(i), identity.remote(10 * i)]

        assert [skate.get(skate.get(ref)) for ref in boxes.remote()] == [[0, 0], [1, 10], [2, 20]]

    def test_what_cannot_be_pickled(self) -> None:
        import threading

        @skate.remote
        def locks() -> Iterator[object]:
            yield 1
            yield threading.Lock()

        generator = locks.remote()
        assert skate.get(next(generator)) == 1
        with pytest.raises(TypeError, match="lock"):
            skate.get(next(generator))

    def test_it_is_read_where_it_was_made(self) -> None:
        generator = count_to.remote(2)
        with pytest.raises(TypeError):
            identity.remote(generator)
        assert skate.get(list(generator)) == [0, 1]

    def test_within_a_task(self) -> None:
        @skate.remote
        def outer(n: int) -> list[int]:
            return [skate.get(ref) for ref in count_to.remote(n)]

        @skate.remote
        def squares(n: int) -> Iterator[int]:
            for ref in count_to.remote(n):
                yield skate.get(ref) ** 2

        assert skate.get(outer.remote(5)) == [0, 1, 2, 3, 4]
        assert skate.get(list(squares.remote(5))) == [0, 1, 4, 9, 16]

    def test_within_an_async_actor(self) -> None:
        @skate.remote
        class Reader:
            async def read(self, n: int) -> list[int]:
                return [await ref async for ref in count_to.remote(n)]

        assert skate.get(Reader.remote().read.remote(5)) == [0, 1, 2, 3, 4]


class TestErrors:
    def test_in_the_middle(self, stream: Streams) -> None:
        refs = list(stream.failing.remote(3))
        assert len(refs) == 4
        assert skate.get(refs[:3]) == [0, 1, 2]
        with pytest.raises(LookupError, match="no more than 3"):
            skate.get(refs[3])

    def test_at_once(self, stream: Streams) -> None:
        generator = stream.failing.remote(0)
        with pytest.raises(LookupError):
            skate.get(next(generator))
        with pytest.raises(StopIteration):
            next(generator)

    def test_by_async_for(self, stream: Streams) -> None:
        async def main() -> list[int]:
            seen = []
            with pytest.raises(LookupError):
                async for ref in stream.failing.remote(2):
                    seen.append(await ref)
            return seen

        assert asyncio.run(main()) == [0, 1]

    def test_of_an_argument(self, stream: Streams) -> None:
        @skate.remote
        def fail() -> int:
            raise LookupError("early")

        generator = stream.count_to.remote(fail.remote())
        with pytest.raises(LookupError, match="early"):
            skate.get(next(generator))
        with pytest.raises(StopIteration):
            next(generator)

    def test_the_actor_lives_on(self) -> None:
        for kind in (Base, Coroutines):
            actor = skate.remote(kind).remote()
            list(actor.failing.remote(2))
            assert skate.get(list(actor.count_to.remote(2))) == [0, 1]

    def test_a_crash_in_the_middle(self) -> None:
        @skate.remote(max_retries=0)
        def crash() -> Iterator[int]:
            yield 1
            yield 2
            os._exit(1)

        generator = crash.remote()
        seen = []
        with pytest.raises(WorkerCrashedError):
            for ref in generator:
                seen.append(skate.get(ref))
        assert seen in ([], [1], [1, 2])  # those that had left when it died
        with pytest.raises(StopIteration):
            next(generator)

    def test_a_crash_that_is_tried_again(self, tally: Tally, gate: Gate) -> None:
        @skate.remote(max_retries=2)
        def crash() -> Iterator[int]:
            yield 1
            yield 2
            if tally.add() < 3:
                os._exit(1)
            yield 3

        assert [skate.get(ref) for ref in crash.remote()] == [1, 2, 3]
        assert tally.count == 3

    def test_exceptions_that_are_tried_again(self, tally: Tally) -> None:
        @skate.remote(max_retries=5, retry_exceptions=[LookupError])
        def flaky() -> Iterator[int]:
            yield 1
            if tally.add() < 3:
                raise LookupError
            yield 2

        assert [skate.get(ref) for ref in flaky.remote()] == [1, 2]
        assert tally.count == 3

    def test_no_more_often_than_asked(self, tally: Tally) -> None:
        @skate.remote(max_retries=2, retry_exceptions=True)
        def flaky() -> Iterator[int]:
            yield 1
            tally.add()
            raise LookupError("still")

        first, last = list(flaky.remote())
        assert skate.get(first) == 1
        with pytest.raises(LookupError, match="still"):
            skate.get(last)
        assert tally.count == 3

    def test_the_death_of_the_actor(self, gate: Gate) -> None:
        for kind in (Base, Coroutines):
            actor = skate.remote(kind).remote()
            pid = skate.get(actor.pid.remote())
            generator = actor.gated.remote(3, gate)
            assert [skate.get(next(generator)) for _ in range(2)] == [0, 1]
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(RayActorError):
                skate.get(next(generator))
            with pytest.raises(StopIteration):
                next(generator)

    def test_the_death_of_an_actor_that_comes_back(self, tally: Tally) -> None:
        class Fragile:
            def count(self) -> Iterator[int]:
                yield 1
                yield 2
                if tally.add() < 2:
                    os._exit(1)
                yield 3

        actor = skate.remote(Fragile).options(max_restarts=1, max_task_retries=1).remote()
        assert [skate.get(ref) for ref in actor.count.remote()] == [1, 2, 3]


class TestAbandoned:
    """Who stops reading leaves nothing behind: the items go, and so does what made them."""

    def test_in_the_middle(self, stream: Streams) -> None:
        generator = stream.count_to.remote(50)
        assert skate.get(next(generator)) == 0
        del generator
        assert skate.get(list(stream.count_to.remote(2))) == [0, 1]

    def test_before_the_first(self, stream: Streams) -> None:
        stream.count_to.remote(5)
        assert skate.get(list(stream.count_to.remote(2))) == [0, 1]

    def test_its_actor_ends_with_the_last_handle(self) -> None:
        for kind in (Base, Coroutines):
            actor = skate.remote(kind).remote()
            pid = skate.get(actor.pid.remote())
            generator = actor.count_to.remote(20)
            next(generator)
            del actor, generator
            eventually(lambda pid=pid: gone(pid))

    def test_the_actor_stays_for_a_reader(self, gate: Gate) -> None:
        actor = skate.remote(Base).remote()
        generator = actor.gated.remote(3, gate)
        del actor
        gate.open()
        assert skate.get(list(generator)) == [0, 1, 2]

    def test_one_that_was_held_back(self, stream: Streams, tally: Tally) -> None:
        held_back = stream.tallied.options(_generator_backpressure_num_objects=2)
        generator = held_back.remote(100, tally)
        assert skate.get(next(generator)) == 0
        del generator
        gc.collect()
        # It is neither in the way of the next one, nor does its worker keep a CPU.
        assert skate.get(list(stream.count_to.remote(2))) == [0, 1]

    def test_held_back_by_a_reader_that_has_died(self) -> None:
        """An actor outlives those who call it: it does not wait for a dead one to read on."""

        @skate.remote(max_retries=0, num_cpus=0)
        def begin_and_die(method: object) -> None:
            next(method.options(_generator_backpressure_num_objects=1).remote(100))
            os.kill(os.getpid(), signal.SIGKILL)

        for kind in (Base, Coroutines):
            actor = skate.remote(kind).remote()
            with pytest.raises(WorkerCrashedError):
                skate.get(begin_and_die.remote(actor.count_to))
            assert skate.get(actor.get.remote(), timeout=20) < 100

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.parametrize("ahead", [None, 1])
    def test_one_that_does_not_want_to_end(self, ahead: int | None) -> None:
        """It ignores GeneratorExit, or raises when it is closed: nobody hears of it, and its process goes on."""

        def stubborn() -> Iterator[bytes]:
            while True:
                try:
                    yield bytes(200_000)
                except GeneratorExit:
                    pass

        def angry() -> Iterator[bytes]:
            try:
                while True:
                    yield bytes(200_000)
            finally:
                raise RuntimeError("in its finally")

        class Actor:
            def stubborn(self) -> Iterator[bytes]:
                return stubborn()

            def angry(self) -> Iterator[bytes]:
                return angry()

            def get(self) -> int:
                return 1

        class AsyncActor(Actor):
            async def angry(self) -> AsyncIterator[bytes]:
                try:
                    while True:
                        yield bytes(200_000)
                finally:
                    raise RuntimeError("in its finally")

        actors = [skate.remote(kind).remote() for kind in (Actor, AsyncActor)]
        tasks = [skate.remote(function) for function in (stubborn, angry)]
        for method in [*tasks, actors[0].stubborn, actors[0].angry, actors[1].angry]:
            streamed = method.options(num_returns="streaming", _generator_backpressure_num_objects=ahead)
            generator = streamed.remote()
            assert len(skate.get(next(generator))) == 200_000
            del generator
            assert len(skate.get(method.options(num_returns=2).remote())) == 2
        assert skate.get([actor.get.remote() for actor in actors]) == [1, 1]
        eventually(lambda: not any(each.object_size > 100_000 for each in list_objects()))

    @pytest.mark.differs_from_ray("only the state of a cluster lists objects there")
    def test_large_items_leave_the_store(self) -> None:
        @skate.remote
        def arrays(n: int) -> Iterator[np.ndarray]:
            for i in range(n):
                yield np.full(1_000_000, i, np.uint8)

        whole, abandoned = arrays.remote(20), arrays.remote(20)
        next(abandoned)
        del abandoned
        assert sum(int(skate.get(ref)[0]) for ref in whole) == 190
        del whole
        gc.collect()
        eventually(
            lambda: not any(state.object_size >= 1_000_000 for state in skate.util.state.list_objects())
        )


class TestHeldBack:
    """`_generator_backpressure_num_objects=n`: never more than n items ahead of the reader."""

    @pytest.mark.parametrize("ahead", [1, 3])
    def test_never_further_ahead(self, stream: Streams, ahead: int, tally: Tally) -> None:
        generator = stream.tallied.options(_generator_backpressure_num_objects=ahead).remote(12, tally)
        for taken in range(12):
            eventually(lambda taken=taken: tally.count >= min(taken + 1, 12))
            skate.get(identity.remote(None))  # time enough for one that was not held back
            assert tally.count <= taken + ahead + 1
            assert skate.get(next(generator)) == taken
        with pytest.raises(StopIteration):
            next(generator)
        assert tally.count == 12

    def test_said_by_the_decorator(self, tally: Tally) -> None:
        @skate.remote(_generator_backpressure_num_objects=2)
        def slow() -> Iterator[int]:
            for i in range(10):
                tally.add()
                yield i

        @skate.remote
        class Slow:
            @skate.method(_generator_backpressure_num_objects=2)
            def count(self) -> Iterator[int]:
                for i in range(10):
                    tally.add()
                    yield i

        for submit in (slow.remote, Slow.remote().count.remote):
            before = tally.count
            generator = submit()
            eventually(lambda before=before: tally.count >= before + 2)
            skate.get(identity.remote(None))
            assert tally.count <= before + 3
            assert skate.get(list(generator)) == list(range(10))

    def test_an_endless_one(self) -> None:
        @skate.remote(_generator_backpressure_num_objects=3, num_cpus=0)
        def forever() -> Iterator[int]:
            number = 0
            while True:
                yield number
                number += 1

        generator = forever.remote()
        assert [skate.get(next(generator)) for _ in range(50)] == list(range(50))

    def test_none_at_all_is_refused(self) -> None:
        with pytest.raises(ValueError, match="_generator_backpressure_num_objects"):
            count_to.options(_generator_backpressure_num_objects=0).remote(1)

    @pytest.mark.parametrize("items", [1, 7])
    def test_a_crash_that_is_tried_again(self, tally: Tally, items: int) -> None:
        """The new attempt yields again what has been read: it need not wait for a reader that is further on."""

        @skate.remote(max_retries=1, _generator_backpressure_num_objects=2)
        def crash(read: list[Gate]) -> Iterator[int]:
            first = tally.add() == 1
            for i in range(10):
                if first and i == items:
                    read[0].wait()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield i

        read = Gate(tally.path.with_name("read"))
        generator = crash.remote([read])
        seen = [skate.get(next(generator)) for _ in range(items)]
        read.open()
        seen += [skate.get(ref) for ref in generator]
        assert seen == list(range(10))
        assert tally.count == 2

    def test_an_exception_that_is_tried_again(self, tally: Tally) -> None:
        class Flaky:
            def count(self) -> Iterator[int]:
                first = tally.add() == 1
                for i in range(10):
                    if first and i == 7:
                        raise LookupError
                    yield i

        class AsyncFlaky:
            async def count(self) -> AsyncIterator[int]:
                first = tally.add() % 2 == 1
                for i in range(10):
                    if first and i == 7:
                        raise LookupError
                    yield i

        for kind in (Flaky, AsyncFlaky):
            method = skate.remote(kind).remote().count
            generator = method.options(
                max_task_retries=1, retry_exceptions=True, _generator_backpressure_num_objects=2
            ).remote()
            assert [skate.get(ref) for ref in generator] == list(range(10))

    def test_dropped_while_its_actor_starts_again(self, tally: Tally, gate: Gate) -> None:
        class Fragile:
            def __init__(self, gate: Gate) -> None:
                if tally.add() == 2:
                    gate.wait()

            def count(self) -> Iterator[int]:
                for i in range(10):
                    if tally.count == 1 and i == 5:
                        os._exit(1)
                    yield i

            def lives(self) -> int:
                return tally.count

        actor = skate.remote(Fragile).options(max_restarts=1, max_task_retries=1).remote(gate)
        generator = actor.count.options(_generator_backpressure_num_objects=2).remote()
        for _ in range(4):
            next(generator)
        eventually(lambda: tally.count == 2)
        del generator
        gate.open()
        assert skate.get(actor.lives.remote()) == 2

    def test_an_async_actor_answers_meanwhile(self, tally: Tally) -> None:
        actor = skate.remote(Coroutines).remote()
        generator = actor.tallied.options(_generator_backpressure_num_objects=1).remote(5, tally)
        eventually(lambda: tally.count)
        assert skate.get(actor.get.remote()) == 0
        assert skate.get(list(generator)) == [0, 1, 2, 3, 4]


class TestActors:
    def test_one_after_the_other_in_a_sync_one(self) -> None:
        actor = skate.remote(Base).remote()
        generator = actor.count_to.remote(10)
        assert skate.get(actor.get.remote()) == 10
        assert skate.get(list(generator)) == list(range(10))

    def test_beside_one_another_in_an_async_one(self, gate: Gate) -> None:
        actor = skate.remote(Coroutines).remote()
        waiting = actor.gated.remote(2, gate)
        assert skate.get(next(waiting)) == 0
        assert skate.get(list(actor.count_to.remote(3))) == [0, 1, 2]
        gate.open()
        assert skate.get(list(waiting)) == [1]

    def test_beside_one_another_in_a_threaded_one(self, gate: Gate) -> None:
        actor = skate.remote(Base).options(max_concurrency=2).remote()
        waiting = actor.gated.remote(2, gate)
        assert skate.get(next(waiting)) == 0
        assert skate.get(list(actor.count_to.remote(3))) == [0, 1, 2]
        gate.open()
        assert skate.get(list(waiting)) == [1]

    def test_a_sync_generator_of_an_async_actor(self) -> None:
        class Mixed(Coroutines):
            def sync(self, n: int) -> Iterator[int]:
                for i in range(n):
                    yield i

        actor = skate.remote(Mixed).remote()
        assert skate.get(list(actor.sync.remote(3))) == [0, 1, 2]

    def test_decorated(self) -> None:
        class Decorated:
            @skate.method(num_returns="streaming")
            def count(self) -> Iterator[int]:
                for i in range(3):
                    yield i

        actor = skate.remote(Decorated).remote()
        assert skate.get(list(actor.count.remote())) == [0, 1, 2]

    def test_read_by_who_was_given_the_handle(self) -> None:
        @skate.remote
        def read(actor: object) -> list[int]:
            return [skate.get(ref) for ref in actor.count_to.remote(4)]

        for kind in (Base, Coroutines):
            assert skate.get(read.remote(skate.remote(kind).remote())) == [0, 1, 2, 3]


class TestOtherNumbersOfReturns:
    def test_a_number(self) -> None:
        refs = count_to.options(num_returns=3).remote(3)
        assert isinstance(refs, list)
        assert skate.get(refs) == [0, 1, 2]
        actor = skate.remote(Base).remote()
        assert skate.get(actor.count_to.options(num_returns=2).remote(2)) == [0, 1]

    def test_too_many_give_the_first(self, warned_of) -> None:
        actor, coroutines = skate.remote(Base).remote(), skate.remote(Coroutines).remote()
        for method in (count_to, actor.count_to, coroutines.count_to):
            for number in (1, 2):
                refs = method.options(num_returns=number).remote(4)
                assert skate.get([refs] if number == 1 else refs) == list(range(number))
                warned_of(f"count_to() was called with num_returns={number}, but it yielded more")
            assert method.options(num_returns=0).remote(1) is None
            warned_of("count_to() was called with num_returns=0, but it yielded more")

    def test_too_few_leave_an_error_for_the_missing(self) -> None:
        actor, coroutines = skate.remote(Base).remote(), skate.remote(Coroutines).remote()
        for method in (count_to, actor.count_to, coroutines.count_to):
            there, *missing = method.options(num_returns=3).remote(1)
            assert skate.get(there) == 0
            for ref in missing:
                with pytest.raises(ValueError, match="num_returns=3, but it gave 1 values"):
                    skate.get(ref)
            with pytest.raises(ValueError, match="num_returns=1, but it gave 0 values"):
                skate.get(method.options(num_returns=1).remote(0))

    @pytest.mark.parametrize("large", [False, True])
    def test_what_was_yielded_before_an_error_stays(self, large: bool) -> None:
        """With a number of returns, "dynamic", and a stream alike: the error is in the refs that have no value."""
        size = 300_000 if large else 3

        def gen(n: int) -> Iterator[bytes]:
            for i in range(n):
                yield bytes([i]) * size
            raise LookupError("no more")

        class Sync:
            def gen(self, n: int) -> Iterator[bytes]:
                yield from gen(n)

        class Async:
            async def gen(self, n: int) -> AsyncIterator[bytes]:
                for value in gen(n):
                    yield value

        methods = [skate.remote(gen), skate.remote(Sync).remote().gen, skate.remote(Async).remote().gen]
        for method in methods:
            fixed = method.options(num_returns=3).remote(2)
            dynamic = list(skate.get(method.options(num_returns="dynamic").remote(2)))
            for refs in (fixed, dynamic, list(method.remote(2))):
                assert len(refs) == 3
                assert skate.get(refs[:2]) == [bytes([0]) * size, bytes([1]) * size]
                with pytest.raises(LookupError, match="no more"):
                    skate.get(refs[2])
            assert len(skate.get(method.options(num_returns="dynamic").remote(0))) == 1

    def test_an_error_after_all_values_is_told(self, warned_of) -> None:
        assert skate.get(failing.options(num_returns=2).remote(2)) == [0, 1]
        warned_of("and then raised LookupError('no more than 2'), which no ref shows")

    def test_a_value_that_cannot_be_sent_costs_no_other(self) -> None:
        @skate.remote(num_returns=3)
        def values(kind: type) -> object:
            return kind([1, (i for i in ()), 3])

        for kind in (list, iter):
            first, second, third = values.remote(kind)
            assert skate.get(first) == 1
            for ref in (second, third):
                with pytest.raises(SerializationError):
                    skate.get(ref)

    def test_retries_keep_nothing_of_what_failed(self, tally: Tally) -> None:
        @skate.remote(num_returns=3, retry_exceptions=True, max_retries=2)
        def flaky() -> Iterator[np.ndarray]:
            attempt = tally.add()
            yield np.full(200_000, attempt)
            yield [skate.put(attempt)]
            if attempt < 3:
                raise LookupError
            yield attempt

        array, ref, last = skate.get(flaky.remote())
        assert (int(array[0]), skate.get(ref[0]), last) == (3, 3, 3)
        del array, ref
        eventually(lambda: not any(each.object_size > 1_000_000 for each in list_objects()))

    def test_dynamic(self) -> None:
        ref = count_to.options(num_returns="dynamic").remote(5)
        assert isinstance(ref, skate.ObjectRef)
        generator = skate.get(ref)
        assert len(generator) == 5
        assert [skate.get(item) for item in generator] == [0, 1, 2, 3, 4]

    def test_dynamic_in_a_task(self) -> None:
        @skate.remote
        def total(generator: object) -> int:
            return sum(skate.get(list(generator)))

        assert skate.get(total.remote(count_to.options(num_returns="dynamic").remote(5))) == 10

    def test_dynamic_of_an_actor(self) -> None:
        actor = skate.remote(Base).remote()
        ref = actor.count_to.options(num_returns="dynamic").remote(3)
        assert [skate.get(item) for item in skate.get(ref)] == [0, 1, 2]

    def test_dynamic_with_large_items(self) -> None:
        @skate.remote(num_returns="dynamic")
        def arrays() -> Iterator[np.ndarray]:
            for i in range(3):
                yield np.full(200_000, i)

        assert [int(skate.get(item)[0]) for item in skate.get(arrays.remote())] == [0, 1, 2]

    def test_dynamic_that_fails(self) -> None:
        with pytest.raises(LookupError):
            list(map(skate.get, skate.get(failing.options(num_returns="dynamic").remote(2))))

    def test_one_is_the_first_value_itself(self) -> None:
        assert skate.get(count_to.options(num_returns=1).remote(1)) == 0
        actor = skate.remote(Base).remote()
        assert skate.get(actor.count_to.options(num_returns=1).remote(1)) == 0

    @pytest.mark.parametrize("kind", ["streaming", "dynamic"])
    def test_needs_a_generator(self, kind: str) -> None:
        for method, args in (
            (identity, (1,)),
            (skate.remote(Base).remote().get, ()),
            (skate.remote(Coroutines).remote().get, ()),
        ):
            result = method.options(num_returns=kind).remote(*args)
            (failed,) = skate.get(result) if kind == "dynamic" else result
            with pytest.raises(ValueError, match="must be a generator"):
                skate.get(failed)

    def test_it_cannot_be_sent_to(self) -> None:
        generator = count_to.remote(1)
        for name, args in (("send", (1,)), ("throw", (ValueError,)), ("close", ())):
            with pytest.raises(NotImplementedError):
                getattr(generator, name)(*args)
        assert skate.get(list(generator)) == [0]


class TestReturned:
    """A generator that comes out of a function which is none itself: refused with the way out, or run if asked for."""

    @staticmethod
    def methods() -> list:
        def made(n: int) -> Iterator[int]:
            return (i * i for i in range(n))

        def partly(n: int) -> Iterator[int]:
            return functools.partial(count_to._function, n)()

        @functools.wraps(count_to._function)
        def wrapped(n: int) -> Iterator[int]:
            return count_to._function(n)

        class Plain:
            def made(self, n: int) -> Iterator[int]:
                return made(n)

        class Async(Plain):
            async def coroutine(self, n: int) -> Iterator[int]:
                return made(n)

        class Threaded(Plain):
            pass

        tasks = [skate.remote(function) for function in (made, partly, wrapped)]
        actors = [skate.remote(Plain), skate.remote(Async), skate.remote(Threaded).options(max_concurrency=2)]
        handles = [actor.remote() for actor in actors]
        return [*tasks, *[handle.made for handle in handles], handles[1].coroutine]

    def test_it_is_refused(self) -> None:
        for method in self.methods():
            with pytest.raises(
                TypeError, match=r"returned a generator.*num_returns='streaming'.*return a list"
            ):
                skate.get(method.remote(3))

    def test_the_way_out(self) -> None:
        for method in self.methods():
            assert len(skate.get(list(method.options(num_returns="streaming").remote(3)))) == 3
            assert len(skate.get(method.options(num_returns="dynamic").remote(3))) == 3
            assert len(skate.get(method.options(num_returns=3).remote(3))) == 3

    def test_an_async_one(self) -> None:
        async def values() -> AsyncIterator[int]:
            yield 1

        @skate.remote
        def task() -> object:
            return values()

        class Async:
            async def get(self) -> object:
                return values()

        for method in (task, skate.remote(Async).remote().get):
            with pytest.raises(TypeError, match="returned a generator"):
                skate.get(method.remote())


def test_get_of_a_generator_gives_it(stream: Streams) -> None:
    generator = stream.count_to.remote(3)
    assert skate.get(generator) is generator
    assert skate.get(generator, timeout=0) is generator
    assert [skate.get(ref) for ref in generator] == [0, 1, 2]
