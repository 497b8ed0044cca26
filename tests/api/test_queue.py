"""Queue: order, room, waiting, batches, what items may be, and that none is lost."""

import asyncio
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import skate
from skate.exceptions import ActorDiedError, SerializationError, WorkerCrashedError
from skate.util.queue import Empty, Full, Queue

from .rendezvous import eventually

pytestmark = [pytest.mark.usefixtures("cpu2"), pytest.mark.transport]

MakeQueue = Callable[..., Queue]


@pytest.fixture
def make() -> Iterator[MakeQueue]:
    """Queue(...), shut down at the end."""
    made: list[Queue] = []

    def make(*args: object, **kwargs: object) -> Queue:
        made.append(Queue(*args, **kwargs))
        return made[-1]

    yield make
    for each in made:
        each.shutdown(force=True)


@skate.remote(num_cpus=0)
def take(q: Queue, number: int) -> list[object]:
    return [q.get() for _ in range(number)]


@skate.remote(num_cpus=0)
def give(q: Queue, items: list[object]) -> None:
    for item in items:
        q.put(item)


def waiting(q: Queue, gets: int = 0, puts: int = 0) -> None:
    """Returns when so many calls wait in the queue's actor."""

    def look(actor: object) -> tuple[int, int]:
        return len(actor._gets), len(actor._puts)

    eventually(lambda: skate.get(q.actor.__ray_call__.remote(look)) == (gets, puts))


class TestItems:
    def test_first_in_first_out(self, make: MakeQueue) -> None:
        q = make()
        for item in range(10):
            q.put(item)
        assert [q.get() for _ in range(10)] == list(range(10))

    @pytest.mark.parametrize(
        "item", [None, True, 1.5, "text", b"bytes", (), [1, [2]], {"a": {"b": None}}, 2**100, {1}, range(3)]
    )
    def test_values(self, make: MakeQueue, item: object) -> None:
        q = make()
        q.put(item)
        q.put_nowait_batch([item, item])
        assert [q.get(), *q.get_nowait_batch(2)] == [item] * 3

    def test_instances_of_classes_that_only_we_know(self, make: MakeQueue) -> None:
        @dataclass
        class Job:
            name: str

        q = make()
        q.put(Job("one"))
        q.put_nowait_batch([Job("two"), Job("three")])
        assert [q.get().name for _ in range(3)] == ["one", "two", "three"]

    def test_functions(self, make: MakeQueue) -> None:
        q, factor = make(), 3
        q.put(lambda x: factor * x)
        assert q.get()(5) == 15

    @pytest.mark.parametrize("size", [10, 200_000])
    def test_arrays(self, make: MakeQueue, size: int) -> None:
        q, array = make(), np.arange(size)
        q.put(array)
        q.put_nowait_batch([array, {"inside": array}])
        assert np.array_equal(q.get(), array)
        both = q.get_nowait_batch(2)
        assert np.array_equal(both[0], array)
        assert np.array_equal(both[1]["inside"], array)

    def test_large_bytes(self, make: MakeQueue) -> None:
        q, item = make(), bytes(range(256)) * 10_000
        q.put(item)
        q.put_nowait_batch([item, 1])
        assert q.get() == item
        assert q.get_nowait_batch(2) == [item, 1]

    def test_an_item_is_as_it_was_when_it_was_put(self, make: MakeQueue) -> None:
        q, item = make(), [1]
        q.put(item)
        item.append(2)
        assert q.get() == [1]

    def test_a_ref_arrives_as_its_value(self, make: MakeQueue) -> None:
        q = make()
        q.put(skate.put("value"))
        assert q.get() == "value"

    def test_refs_inside_stay_refs_and_stay_alive(self, make: MakeQueue) -> None:
        q = make()
        q.put([skate.put("in a list")])
        q.put_nowait_batch([skate.put("in a batch"), 1])
        assert skate.get(q.get()[0]) == "in a list"
        ref, one = q.get_nowait_batch(2)
        assert (skate.get(ref), one) == ("in a batch", 1)

    def test_handles_of_actors_stay_alive(self, make: MakeQueue) -> None:
        @skate.remote
        class Echo:
            def echo(self, value: object) -> object:
                return value

        q = make()
        q.put(Echo.remote())
        assert skate.get(q.get().echo.remote("still here")) == "still here"

    def test_a_queue_in_a_queue(self, make: MakeQueue) -> None:
        outer, inner = make(), make()
        outer.put(inner)
        inner.put(1)
        assert outer.get().get() == 1

    def test_what_cannot_be_pickled(self, make: MakeQueue) -> None:
        q = make()
        for put in (q.put, q.put_nowait, lambda item: q.put_nowait_batch([item])):
            with pytest.raises(SerializationError, match="item"):
                put(threading.Lock())
        assert q.empty()


class TestSize:
    def test_all_the_words_for_it(self, make: MakeQueue) -> None:
        q = make(2)
        assert (q.size(), q.qsize(), len(q), q.empty(), q.full()) == (0, 0, 0, True, False)
        q.put(1)
        assert (q.size(), q.qsize(), len(q), q.empty(), q.full()) == (1, 1, 1, False, False)
        q.put(1)
        assert (q.size(), q.qsize(), len(q), q.empty(), q.full()) == (2, 2, 2, False, True)

    def test_batches_count_for_all_they_hold(self, make: MakeQueue) -> None:
        q = make()
        q.put_nowait_batch(range(10))
        q.get()
        assert q.size() == 9
        q.get_nowait_batch(4)
        assert q.size() == 5

    @pytest.mark.parametrize("maxsize", [0, -1])
    def test_without_a_limit(self, make: MakeQueue, maxsize: int) -> None:
        q = make(maxsize)
        q.put_nowait_batch(range(10_000))
        assert not q.full()
        q.put_nowait(1)


class TestRoom:
    def test_nowait(self, make: MakeQueue) -> None:
        q = make(1)
        q.put_nowait("first")
        for put in (q.put_nowait, lambda item: q.put(item, block=False)):
            with pytest.raises(Full) as caught:
                put("second")
            assert isinstance(caught.value, queue.Full)
        assert q.get() == "first"

    def test_a_timeout(self, make: MakeQueue) -> None:
        q = make(1)
        q.put(1)
        begin = time.monotonic()
        with pytest.raises(Full, match=r"0\.1 s"):
            q.put(2, timeout=0.1)
        assert time.monotonic() - begin > 0.09
        with pytest.raises(Full):
            q.put(3, timeout=0)
        assert q.get_nowait_batch(1) == [1]
        assert q.empty()

    def test_waits_for_room(self, make: MakeQueue) -> None:
        q = make(1)
        q.put(1)
        late = give.remote(q, [2])
        waiting(q, puts=1)
        assert q.get() == 1
        skate.get(late)
        assert q.get() == 2

    def test_who_waits_for_room_comes_before_who_comes_later(self, make: MakeQueue) -> None:
        q = make(2)
        q.put_nowait_batch([1, 2])
        late = give.remote(q, [3])
        waiting(q, puts=1)
        assert q.get() == 1
        with pytest.raises(Full):
            q.put_nowait(4)
        assert q.get_nowait_batch(2) == [2, 3]
        skate.get(late)

    def test_a_batch_makes_room_for_several(self, make: MakeQueue) -> None:
        q = make(3)
        q.put_nowait_batch([1, 2, 3])
        late = [give.remote(q, [item]) for item in (4, 5, 6, 7)]
        waiting(q, puts=4)
        assert q.get_nowait_batch(3) == [1, 2, 3]
        waiting(q, puts=1)
        assert len({q.get() for _ in range(4)} & {4, 5, 6, 7}) == 4
        skate.get(late)

    def test_a_batch_fits_or_does_not(self, make: MakeQueue) -> None:
        q = make(3)
        q.put(1)
        with pytest.raises(Full, match=r"3 items.* of 1"):
            q.put_nowait_batch([2, 3, 4])
        assert q.size() == 1
        q.put_nowait_batch([2, 3])
        assert q.get_nowait_batch(3) == [1, 2, 3]


class TestNothing:
    def test_nowait(self, make: MakeQueue) -> None:
        q = make()
        for get in (q.get_nowait, lambda: q.get(block=False)):
            with pytest.raises(Empty) as caught:
                get()
            assert isinstance(caught.value, queue.Empty)

    def test_a_timeout(self, make: MakeQueue) -> None:
        q = make()
        begin = time.monotonic()
        with pytest.raises(Empty, match=r"0\.1 s"):
            q.get(timeout=0.1)
        assert time.monotonic() - begin > 0.09
        with pytest.raises(Empty):
            q.get(timeout=0)
        q.put("not for those who gave up")
        assert q.get() == "not for those who gave up"

    def test_waits_for_an_item(self, make: MakeQueue) -> None:
        q = make()
        late = take.remote(q, 1)
        waiting(q, gets=1)
        q.put("item")
        assert skate.get(late) == ["item"]

    def test_who_waited_longest_is_served_first(self, make: MakeQueue) -> None:
        q = make()
        late = []
        for number in range(1, 4):
            late.append(take.remote(q, 1))
            waiting(q, gets=number)
        for item in range(3):
            q.put(item)
        assert skate.get(late) == [[0], [1], [2]]

    def test_a_batch_serves_several(self, make: MakeQueue) -> None:
        q = make()
        late = [take.remote(q, 1) for _ in range(3)]
        waiting(q, gets=3)
        q.put_nowait_batch([1, 2, 3, 4])
        assert sorted(item for (item,) in skate.get(late)) == [1, 2, 3]
        assert q.get() == 4

    def test_as_many_as_asked_for_or_none(self, make: MakeQueue) -> None:
        q = make()
        q.put_nowait_batch([1, 2])
        with pytest.raises(Empty, match=r"3 items.* of 2"):
            q.get_nowait_batch(3)
        assert q.get_nowait_batch(2) == [1, 2]


class TestBatches:
    @pytest.mark.parametrize("size", [1, 2, 3, 7, 60])
    def test_of_other_sizes_than_they_came_in(self, make: MakeQueue, size: int) -> None:
        q, items = make(), iter(range(60))
        for number in (1, 5, 20, 4, 30):
            q.put_nowait_batch([next(items) for _ in range(number)])
        got = []
        while not q.empty():
            got += q.get_nowait_batch(min(size, q.size()))
        assert got == list(range(60))

    def test_mixed_with_single_ones(self, make: MakeQueue) -> None:
        q = make()
        q.put("a")
        q.put_nowait_batch(["b", ["c"]])
        q.put({"d": 1})
        q.put_nowait_batch([np.arange(100_000), "f"])
        assert q.get_nowait_batch(2) == ["a", "b"]
        assert q.get() == ["c"]
        last = q.get_nowait_batch(3)
        assert last[0] == {"d": 1}
        assert last[1].size == 100_000
        assert last[2] == "f"

    def test_of_many(self, make: MakeQueue) -> None:
        q = make()
        q.put_nowait_batch(range(100_000))
        assert q.get_nowait_batch(50_000) == list(range(50_000))
        assert q.get_nowait_batch(50_000) == list(range(50_000, 100_000))

    @pytest.mark.parametrize("iterable", [range, tuple, dict.fromkeys, iter])
    def test_any_iterable(self, make: MakeQueue, iterable: Callable[[Any], Iterable[int]]) -> None:
        q = make()
        q.put_nowait_batch(iterable(3 if iterable is range else [0, 1, 2]))
        assert q.get_nowait_batch(3) == [0, 1, 2]

    def test_of_nothing(self, make: MakeQueue) -> None:
        q = make()
        q.put_nowait_batch([])
        assert q.get_nowait_batch(0) == []
        assert q.empty()

    def test_items_are_pickled_together(self, make: MakeQueue) -> None:
        q, same = make(), [1]
        q.put_nowait_batch([same, same])
        first, second = q.get_nowait_batch(2)
        assert first is second

    def test_the_actor_need_not_know_their_classes(self, make: MakeQueue) -> None:
        q = make()
        q.put(NotInWorkers(1))
        q.put_nowait_batch([NotInWorkers(2), NotInWorkers(3)])
        assert q.get().number == 1
        assert [item.number for item in q.get_nowait_batch(2)] == [2, 3]

    def test_where_it_must_open_a_batch_it_cannot_the_batch_stays(self, make: MakeQueue) -> None:
        q = make()
        q.put_nowait_batch([NotInWorkers(2), NotInWorkers(3)])
        with pytest.raises(LookupError, match="only the driver"):
            q.get()
        assert [item.number for item in q.get_nowait_batch(2)] == [2, 3]


class NotInWorkers:
    """Cannot be unpickled but in the driver."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple:
        return _in_the_driver_only, (self.number,)


def _in_the_driver_only(number: int) -> NotInWorkers:
    if skate.get_runtime_context().worker_mode != "driver":
        raise LookupError("only the driver knows this")
    return NotInWorkers(number)


class TestAcrossProcesses:
    def test_producers_and_consumers(self, make: MakeQueue) -> None:
        q = make(10)
        producers = [give.remote(q, [(p, i) for i in range(50)]) for p in range(3)]
        consumers = [take.remote(q, 50) for _ in range(3)]
        skate.get(producers)
        lists = skate.get(consumers)
        assert sorted(item for got in lists for item in got) == [(p, i) for p in range(3) for i in range(50)]
        for got in lists:  # each producer's items come in its order, whoever gets them
            for p in range(3):
                mine = [i for producer, i in got if producer == p]
                assert mine == sorted(mine)

    def test_what_was_put_is_there_for_whoever_hears_of_it(self, make: MakeQueue) -> None:
        q = make()
        for item in range(50):
            skate.get(give.remote(q, [item]))
            assert q.get_nowait() == item

    def test_it_can_be_pickled(self, make: MakeQueue) -> None:
        q = make(7)
        other = pickle.loads(pickle.dumps(q))
        q.put(1)
        assert (other.maxsize, other.get()) == (7, 1)

    def test_it_ends_with_its_last_handle(self) -> None:
        name = "ends with its last handle"
        q = Queue(actor_options={"name": name})
        q.put(1)
        assert name in skate.util.list_named_actors()
        del q
        eventually(lambda: name not in skate.util.list_named_actors())

    def test_a_process_that_died_waiting_takes_nothing(self, make: MakeQueue) -> None:
        @skate.remote(num_cpus=0, max_retries=0)
        def wait_and_die(q: Queue) -> None:
            threading.Thread(
                target=lambda: (waiting(q, gets=1), os.kill(os.getpid(), signal.SIGKILL))
            ).start()
            q.get()

        q = make()
        with pytest.raises(WorkerCrashedError):
            skate.get(wait_and_die.remote(q))
        q.put("for the living")
        assert q.get(timeout=20) == "for the living"

    def test_it_needs_no_cpu(self, make: MakeQueue) -> None:
        @skate.remote(num_cpus=2)
        def with_all_cpus() -> int:
            q = Queue()
            q.put(1)
            return q.get()

        assert skate.get(with_all_cpus.remote(), timeout=60) == 1

    def test_options_of_its_actor(self, make: MakeQueue) -> None:
        q = make(actor_options={"name": "a queue", "num_cpus": 1})
        q.put(1)
        assert skate.get_actor("a queue") == q.actor
        assert skate.available_resources()["CPU"] == 1

    def test_more_waiting_gets_than_calls_run_at_once_by_default(self, make: MakeQueue) -> None:
        q = make()

        async def main() -> int:
            gets = [asyncio.create_task(q.get_async()) for _ in range(1_500)]
            await asyncio.sleep(0)
            for start in range(0, 1_500, 100):
                q.put_nowait_batch(range(start, start + 100))
            return sum(await asyncio.gather(*gets))

        assert asyncio.run(main()) == sum(range(1_500))


class TestAsync:
    def test_put_and_get(self, make: MakeQueue) -> None:
        q = make(2)

        async def produce() -> None:
            for item in range(20):
                await q.put_async(item)

        async def main() -> list[int]:
            producer = asyncio.create_task(produce())
            items = [await q.get_async() for _ in range(20)]
            await producer
            return items

        assert asyncio.run(main()) == list(range(20))

    def test_full_and_empty(self, make: MakeQueue) -> None:
        q = make(1)

        async def main() -> None:
            for attempt in ({"block": False}, {"timeout": 0.05}):
                with pytest.raises(Empty):
                    await q.get_async(**attempt)
            await q.put_async(1)
            for attempt in ({"block": False}, {"timeout": 0.05}):
                with pytest.raises(Full):
                    await q.put_async(2, **attempt)
            assert await q.get_async(block=False) == 1

        asyncio.run(main())

    def test_in_an_actor(self, make: MakeQueue) -> None:
        @skate.remote
        class Consumer:
            async def run(self, q: Queue, number: int) -> list[object]:
                return [await q.get_async() for _ in range(number)]

        q, consumer = make(), Consumer.remote()
        got = consumer.run.remote(q, 5)
        for item in range(5):
            q.put(item)
        assert skate.get(got) == list(range(5))

    def test_a_cancelled_get_takes_nothing(self, make: MakeQueue) -> None:
        q = make()

        async def main() -> None:
            for _ in range(20):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(q.get_async(), 0.001)

        asyncio.run(main())
        waiting(q, gets=0)
        q.put_nowait_batch(range(5))
        assert q.get_nowait_batch(5) == list(range(5))

    def test_no_item_is_lost_to_gets_that_are_cancelled_at_any_moment(self, make: MakeQueue) -> None:
        q, number = make(), 300
        got: list[object] = []

        async def consume() -> None:
            pause = 0.0
            while len(got) < number:
                pause = (pause + 0.00007) % 0.002
                try:
                    got.append(await asyncio.wait_for(q.get_async(), pause))
                except TimeoutError:
                    pass

        produced = give.remote(q, list(range(number)))
        asyncio.run(asyncio.wait_for(consume(), 50))
        skate.get(produced)
        assert sorted(got) == list(range(number))

    def test_a_cancelled_put_puts_nothing(self, make: MakeQueue) -> None:
        q = make(1)
        q.put("first")

        async def main() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(q.put_async("second"), 0.05)

        asyncio.run(main())
        waiting(q, puts=0)
        assert q.get() == "first"
        assert q.empty()


def test_ctrl_c_takes_nothing(make: MakeQueue) -> None:
    q = make()
    q.size()
    main = threading.main_thread().ident

    def press() -> None:
        waiting(q, gets=1)
        signal.pthread_kill(main, signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        q.get()
    presser.join()
    waiting(q, gets=0)
    q.put("still here")
    assert q.get(timeout=20) == "still here"


class TestShutdown:
    @pytest.mark.parametrize("force", [False, True])
    def test_what_waits_and_what_comes_fails(self, make: MakeQueue, force: bool) -> None:
        q = make()
        other = pickle.loads(pickle.dumps(q))
        late = take.remote(q, 1)
        waiting(q, gets=1)
        begin = time.monotonic()
        q.shutdown(force=force)
        assert time.monotonic() - begin < 4  # seconds of grace are for the actor, not for those who wait
        with pytest.raises(ActorDiedError):
            skate.get(late)
        with pytest.raises(ActorDiedError):
            other.put(1)

    def test_its_own_handle_says_why(self, make: MakeQueue) -> None:
        q = make()
        q.shutdown()
        for use in (q.get, q.size, q.get_nowait, lambda: q.put(1), lambda: q.put_nowait_batch([1])):
            with pytest.raises(RuntimeError, match="shut down"):
                use()

    def test_again(self, make: MakeQueue) -> None:
        q = make()
        q.shutdown()
        q.shutdown(force=True)


class TestRefuses:
    @pytest.mark.parametrize("maxsize", [1.5, "1", None])
    def test_a_maxsize_that_is_no_number(self, maxsize: object) -> None:
        with pytest.raises(TypeError, match="maxsize"):
            Queue(maxsize)

    def test_options_that_are_no_dict(self) -> None:
        with pytest.raises(TypeError, match="actor_options"):
            Queue(actor_options=["num_cpus"])

    def test_unknown_options(self) -> None:
        with pytest.raises(ValueError, match="num_cpu"):
            Queue(actor_options={"num_cpu": 1})

    def test_a_negative_timeout(self, make: MakeQueue) -> None:
        q = make()
        with pytest.raises(ValueError, match="timeout"):
            q.get(timeout=-1)
        with pytest.raises(ValueError, match="timeout"):
            q.put(1, timeout=-1)

        async def main() -> None:
            with pytest.raises(ValueError, match="timeout"):
                await q.get_async(timeout=-1)
            with pytest.raises(ValueError, match="timeout"):
                await q.put_async(1, timeout=-1)

        asyncio.run(main())

    def test_a_batch_that_is_none(self, make: MakeQueue) -> None:
        with pytest.raises(TypeError, match="iterable"):
            make().put_nowait_batch(3)

    def test_a_number_that_is_none(self, make: MakeQueue) -> None:
        q = make()
        with pytest.raises(TypeError, match="number"):
            q.get_nowait_batch("3")
        with pytest.raises(ValueError, match="negative"):
            q.get_nowait_batch(-1)
