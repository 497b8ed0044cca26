"""skate.util.multiprocessing.Pool: what programs expect of multiprocessing.Pool."""

import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import skate
from skate.exceptions import ActorDiedError, SerializationError, TaskError
from skate.util.multiprocessing import Pool, TimeoutError

from .rendezvous import Gate, Tally, eventually, gone

pytestmark = pytest.mark.usefixtures("cpu2")


def square(number: int) -> int:
    return number * number


def add(a: int, b: int = 0, *, c: int = 0) -> int:
    return a + b + c


def pid(_: object = None) -> int:
    return os.getpid()


def through(gate: Gate) -> str:
    gate.wait()
    return "through"


def count(tally: Tally) -> int:
    return tally.add()


def inverse(number: int) -> float:
    return 1 / number


def die(_: object = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool
    pool.join()


class TestApply:
    def test_a_call(self, pool: Pool) -> None:
        assert pool.apply(add, (1, 2), {"c": 3}) == 6

    def test_keywords_by_either_name(self, pool: Pool) -> None:
        assert pool.apply(add, (1,), kwds={"c": 3}) == pool.apply(add, (1,), kwargs={"c": 3}) == 4

    def test_without_arguments(self, pool: Pool) -> None:
        assert pool.apply(pid) != os.getpid()
        assert pool.apply(pid, None, None) != os.getpid()

    def test_async(self, pool: Pool) -> None:
        result = pool.apply_async(add, (1, 2))
        assert result.get(timeout=20) == 3
        assert result.ready()
        assert result.successful()
        assert result.get() == 3

    @pytest.mark.parametrize(
        "function", [lambda x: x + 1, functools.partial(add, 1), (1).__add__, np.int64(1).__add__]
    )
    def test_all_that_can_be_called(self, pool: Pool, function) -> None:
        assert pool.apply(function, (4,)) == 5

    def test_a_ref_in_a_closure_lives_on(self, pool: Pool) -> None:
        ref = skate.put("kept")
        result = pool.apply_async(lambda: skate.get(ref))
        assert result.get() == "kept"

    def test_a_large_closure(self, pool: Pool) -> None:
        large = np.arange(100_000)
        assert pool.map(lambda i: int(large[i]), [1, 99_999]) == [1, 99_999]

    def test_the_processes_stay(self, pool: Pool) -> None:
        pids = {pool.apply(pid) for _ in range(10)}
        assert len(pids) <= 2

    def test_all_work_at_once(self, pool: Pool, tally: Tally) -> None:
        for result in [pool.apply_async(tally.meet, (2,)) for _ in range(2)]:
            result.get(timeout=20)

    def test_none_waits_behind_one_that_waits_for_it(self, pool: Pool, gate: Gate) -> None:
        waits = pool.apply_async(through, (gate,))
        others = [pool.apply_async(square, (i,)) for i in range(5)]
        opens = pool.apply_async(gate.open)
        opens.get(timeout=20)
        assert waits.get(timeout=20) == "through"
        assert [other.get() for other in others] == [0, 1, 4, 9, 16]

    def test_its_state_stays_in_its_process(self) -> None:
        def remember(memory=[]) -> int:  # noqa: B006
            memory.append(1)
            return len(memory)

        with Pool(1) as pool:
            assert [pool.apply(remember) for _ in range(3)] == [1, 2, 3]


class TestFailures:
    def test_an_exception(self, pool: Pool) -> None:
        result = pool.apply_async(inverse, (0,))
        with pytest.raises(ZeroDivisionError) as caught:
            result.get(timeout=20)
        assert isinstance(caught.value, TaskError)
        assert "inverse" in str(caught.value)
        assert not result.successful()

    def test_the_first_of_a_map(self, pool: Pool) -> None:
        def fail(number: int) -> None:
            if number >= 3:
                raise LookupError(f"at {number}")

        with pytest.raises(LookupError, match="at 3"):
            pool.map(fail, range(10), chunksize=2)

    def test_what_cannot_be_pickled(self, pool: Pool) -> None:
        lock = threading.Lock()
        with pytest.raises(SerializationError):
            pool.apply(square, (lock,))
        with pytest.raises(SerializationError):
            pool.apply(lambda: lock)
        with pytest.raises(SerializationError):
            pool.apply(threading.Lock)
        assert pool.apply(square, (3,)) == 9

    def test_a_process_that_dies(self, pool: Pool) -> None:
        with pytest.raises(ActorDiedError, match="SIGKILL"):
            pool.apply(die)
        assert pool.map(square, range(20)) == [i * i for i in range(20)]

    def test_one_that_exits(self, pool: Pool) -> None:
        with pytest.raises(ActorDiedError):
            pool.apply(os._exit, (3,))
        assert pool.apply(square, (3,)) == 9

    def test_all_die_again_and_again(self, pool: Pool) -> None:
        results = [pool.apply_async(die if i % 3 else square, (i,)) for i in range(9)]
        for i, result in enumerate(results):
            if i % 3:
                with pytest.raises(ActorDiedError):
                    result.get(timeout=30)
            else:
                assert result.get(timeout=30) == i * i


class TestMap:
    @pytest.mark.parametrize("chunksize", [None, 1, 3, 100])
    def test_in_order(self, pool: Pool, chunksize: int | None) -> None:
        assert pool.map(square, range(50), chunksize) == [i * i for i in range(50)]

    def test_of_an_iterator(self, pool: Pool) -> None:
        assert pool.map(square, iter(range(5))) == [0, 1, 4, 9, 16]

    def test_of_nothing(self, pool: Pool) -> None:
        assert pool.map(square, []) == []
        result = pool.map_async(square, [])
        assert result.ready()
        assert result.successful()

    def test_of_arrays(self, pool: Pool) -> None:
        results = pool.map(np.sum, [np.full(100_000, i) for i in range(4)])
        assert results == [0, 100_000, 200_000, 300_000]

    def test_refs_stay_refs(self, pool: Pool) -> None:
        assert pool.map(skate.get, [skate.put(i) for i in range(4)]) == [0, 1, 2, 3]

    def test_starmap(self, pool: Pool) -> None:
        assert pool.starmap(add, [(1, 2), (3, 4), (5,)]) == [3, 7, 5]
        assert pool.starmap_async(add, [(1, 2)] * 10, chunksize=3).get(timeout=20) == [3] * 10

    def test_chunks_by_default_a_quarter_of_the_share(self, pool: Pool) -> None:
        tasks = pool.map(lambda _: skate.get_runtime_context().get_task_id(), range(80))
        assert [len(list(group)) for _, group in itertools.groupby(tasks)] == [10] * 8

    def test_many(self, pool: Pool) -> None:
        assert sum(pool.map(square, range(10_000), chunksize=10)) == sum(i * i for i in range(10_000))

    def test_from_many_threads(self, pool: Pool) -> None:
        got: list[list[int]] = []
        threads = [
            threading.Thread(target=lambda: got.append(pool.map(square, range(100), 7))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == [[i * i for i in range(100)]] * 4

    def test_by_two_pools_at_once(self, pool: Pool) -> None:
        with Pool(2) as other:
            results = [each.map_async(square, range(200), 1) for each in (pool, other) * 3]
            assert [sum(result.get(timeout=50)) for result in results] == [sum(i * i for i in range(200))] * 6

    @pytest.mark.parametrize("chunksize", [0, -1, 1.5])
    def test_a_bad_chunksize(self, pool: Pool, chunksize: object) -> None:
        for way in (pool.map, pool.imap, pool.imap_unordered, pool.starmap):
            with pytest.raises(ValueError, match="chunksize"):
                way(square, [1], chunksize=chunksize)


class TestWaiting:
    def test_timeouts(self, pool: Pool, gate: Gate) -> None:
        assert TimeoutError is multiprocessing.TimeoutError
        result = pool.apply_async(through, (gate,))
        for timeout in (0, 0.05):
            with pytest.raises(multiprocessing.TimeoutError):
                result.get(timeout=timeout)
            result.wait(timeout)
        assert not result.ready()
        with pytest.raises(ValueError, match="not ready"):
            result.successful()
        gate.open()
        result.wait(20)
        assert result.ready()
        assert result.get() == "through"

    def test_a_map_that_nobody_waits_for_goes_on(self, pool: Pool, tally: Tally) -> None:
        result = pool.map_async(count, [tally] * 50, chunksize=1)
        eventually(lambda: tally.count == 50)
        eventually(result.ready)

    def test_a_task_that_waits_lends_its_cpus(self) -> None:
        @skate.remote
        def inner(number: int) -> int:
            return number + 1

        @skate.remote(num_cpus=2)
        def outer() -> list[int]:
            with Pool(2) as pool:
                return pool.map(lambda i: skate.get(inner.remote(i)), range(4))

        assert skate.get(outer.remote(), timeout=60) == [1, 2, 3, 4]


class TestCallbacks:
    def test_of_a_value(self, pool: Pool) -> None:
        got: list[object] = []
        pool.apply_async(square, (3,), callback=got.append)
        pool.map_async(square, range(4), callback=got.append)
        pool.starmap_async(add, [(1, 2)], callback=got.append)
        eventually(lambda: len(got) == 3)
        assert sorted(got, key=str) == sorted([9, [0, 1, 4, 9], [3]], key=str)

    def test_of_an_exception(self, pool: Pool) -> None:
        got: list[object] = []
        pool.apply_async(inverse, (0,), callback=lambda _: got.append("no"), error_callback=got.append)
        pool.map_async(inverse, [1, 0], error_callback=got.append)
        eventually(lambda: len(got) == 2)
        assert all(isinstance(error, ZeroDivisionError) for error in got)

    def test_one_after_the_other(self, pool: Pool) -> None:
        threads: set[int] = set()
        got: list[int] = []

        def callback(value: int) -> None:
            threads.add(threading.get_ident())
            got.append(value)

        for i in range(20):
            pool.apply_async(square, (i,), callback=callback)
        eventually(lambda: len(got) == 20)
        assert len(threads) == 1
        assert threading.get_ident() not in threads

    def test_one_may_use_the_pool(self, pool: Pool) -> None:
        got: list[int] = []
        pool.apply_async(square, (3,), callback=lambda value: got.append(pool.apply(square, (value,))))
        eventually(lambda: got == [81])

    def test_one_that_raises_stops_no_other(self, pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
        got: list[int] = []
        pool.apply_async(square, (3,), callback=lambda value: got[value])
        pool.apply_async(square, (4,), callback=got.append)
        eventually(lambda: got == [16] and "callback of a Pool raised" in caplog.text)

    def test_join_waits_for_them(self) -> None:
        got: list[int] = []
        pool = Pool(2)
        for i in range(10):
            pool.apply_async(square, (i,), callback=got.append)
        pool.close()
        pool.join()
        assert sorted(got) == [i * i for i in range(10)]

    def test_of_a_pool_that_is_not_kept(self) -> None:
        got: list[object] = []
        Pool(1).map_async(square, range(10), chunksize=1, callback=got.append)
        eventually(lambda: got == [[i * i for i in range(10)]])


class TestImap:
    @pytest.mark.parametrize("chunksize", [1, 3, 100])
    def test_in_order(self, pool: Pool, chunksize: int) -> None:
        assert list(pool.imap(square, range(100), chunksize)) == [i * i for i in range(100)]

    @pytest.mark.parametrize("chunksize", [1, 3, 100])
    def test_unordered(self, pool: Pool, chunksize: int) -> None:
        assert sorted(pool.imap_unordered(square, range(100), chunksize)) == [i * i for i in range(100)]

    @pytest.mark.parametrize("way", ["imap", "imap_unordered"])
    def test_of_nothing(self, pool: Pool, way: str) -> None:
        assert list(getattr(pool, way)(square, [])) == []

    def test_unordered_as_they_come(self, pool: Pool, gate: Gate) -> None:
        def call(item: int) -> int:
            if item == 0:
                gate.wait()
            return item

        results = pool.imap_unordered(call, range(4))
        assert [next(results) for _ in range(3)] == [1, 2, 3]
        gate.open()
        assert list(results) == [0]

    def test_ordered_whatever_is_done_first(self, pool: Pool, gate: Gate) -> None:
        def call(item: int) -> int:
            if item == 0:
                gate.wait()
            return item

        results = pool.imap(call, range(4))
        with pytest.raises(multiprocessing.TimeoutError):
            results.next(timeout=0.05)
        with pytest.raises(multiprocessing.TimeoutError):
            results.next(0)
        gate.open()
        assert results.next(timeout=20) == 0
        assert list(results) == [1, 2, 3]

    @pytest.mark.parametrize("way", ["imap", "imap_unordered"])
    def test_of_as_many_as_you_like(self, pool: Pool, way: str) -> None:
        results = getattr(pool, way)(square, itertools.count(), 2)
        assert len(set(itertools.islice(results, 200))) == 200

    def test_items_are_taken_as_results_are(self, pool: Pool) -> None:
        taken: list[int] = []

        def items() -> Iterator[int]:
            for i in range(1_000):
                taken.append(i)
                yield i

        results = pool.imap(square, items())
        assert next(results) == 0
        assert len(taken) < 50
        assert len(list(results)) == 999

    @pytest.mark.differs_from_ray("exceptions are given as results, not raised")
    @pytest.mark.parametrize("way", ["imap", "imap_unordered"])
    @pytest.mark.parametrize("chunksize", [1, 3])
    def test_a_failure_in_its_place(self, pool: Pool, way: str, chunksize: int) -> None:
        results = getattr(pool, way)(inverse, [1, 0, 2, 4], chunksize)
        got: list[object] = []
        while True:
            try:
                got.append(next(results))
            except ZeroDivisionError:
                got.append("error")
            except StopIteration:
                break
        if way == "imap":
            assert got == [1.0, "error", 0.5, 0.25]
        assert sorted(got, key=str) == [0.25, 0.5, 1.0, "error"]

    def test_an_input_that_raises(self, pool: Pool) -> None:
        def items() -> Iterator[int]:
            yield 1
            yield 2
            raise LookupError("no more of these")

        results = pool.imap(square, items(), 5)
        assert [next(results), next(results)] == [1, 4]
        with pytest.raises(LookupError, match="no more of these"):
            next(results)
        assert list(results) == []

    def test_an_item_that_cannot_be_pickled(self, pool: Pool) -> None:
        results = pool.imap(square, [1, threading.Lock(), 3])
        assert next(results) == 1
        with pytest.raises(SerializationError):
            next(results)
        assert list(results) == [9]

    def test_a_process_that_dies(self, pool: Pool) -> None:
        results = pool.imap(lambda i: die() if i == 1 else i, range(4))
        assert next(results) == 0
        with pytest.raises(ActorDiedError):
            next(results)
        assert list(results) == [2, 3]

    def test_by_several_threads(self, pool: Pool) -> None:
        results = pool.imap_unordered(square, range(100))
        got: list[int] = []
        threads = [threading.Thread(target=lambda: got.extend(results)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == [i * i for i in range(100)]


class TestProcesses:
    def test_as_many_as_cpus_by_default(self) -> None:
        with Pool() as pool:
            assert pool._crew.size == 2

    @pytest.mark.differs_from_ray("ValueError")
    def test_more_than_cpus(self, tally: Tally) -> None:
        with Pool(5) as pool:
            for result in [pool.apply_async(tally.meet, (5,)) for _ in range(5)]:
                result.get(timeout=30)

    def test_they_need_no_cpus(self, pool: Pool) -> None:
        assert skate.available_resources()["CPU"] == 2

    def test_unless_they_say_so(self) -> None:
        with Pool(2, ray_remote_args={"num_cpus": 0.5}) as pool:
            pool.apply(pid)
            assert skate.available_resources()["CPU"] == 1

    def test_an_initializer(self) -> None:
        def remember(*values: object) -> None:
            os.environ["REMEMBERED"] = str(values)

        with Pool(2, remember, (1, "two")) as pool:
            assert set(pool.map(os.getenv, ["REMEMBERED"] * 10, 1)) == {"(1, 'two')"}

    def test_an_initializer_that_raises(self) -> None:
        def broken() -> None:
            raise LookupError("in the initializer")

        with pytest.raises(ActorDiedError, match="in the initializer"):
            Pool(2, broken)

    def test_one_for_so_many_calls(self) -> None:
        with Pool(1, maxtasksperchild=2) as pool:
            pids = [pool.apply(pid) for _ in range(6)]
            assert [len(list(group)) for _, group in itertools.groupby(pids)] == [2, 2, 2]
            assert len(set(pids)) == 3
            eventually(lambda: gone(pids[0]))

    def test_a_chunk_counts_as_one(self) -> None:
        with Pool(1, maxtasksperchild=1) as pool:
            pids = pool.map(pid, range(9), chunksize=3)
            assert [len(list(group)) for _, group in itertools.groupby(pids)] == [3, 3, 3]

    def test_a_new_one_is_initialized_too(self) -> None:
        with Pool(1, os.putenv, ("SET", "yes"), maxtasksperchild=1) as pool:
            assert [pool.apply(os.system, ('test "$SET" = yes',)) for _ in range(3)] == [0, 0, 0]


class TestEnd:
    def test_close_and_join(self, tally: Tally) -> None:
        pool = Pool(2)
        pids = {pool.apply(pid) for _ in range(4)}
        results = pool.map_async(count, [tally] * 20, 1)
        pool.close()
        pool.join()
        assert results.ready()
        assert tally.count == 20
        eventually(lambda: all(gone(each) for each in pids))

    def test_no_calls_after_close(self, pool: Pool) -> None:
        pool.close()
        for way in (pool.map, pool.imap, pool.imap_unordered, pool.map_async, pool.starmap):
            with pytest.raises(ValueError, match="not running"):
                way(square, [1])
        with pytest.raises(ValueError, match="not running"):
            pool.apply(square, (1,))
        with pytest.raises(ValueError, match="not running"), pool:
            pass

    @pytest.mark.parametrize("way", ["imap", "imap_unordered"])
    def test_what_was_begun_goes_on_after_close(self, way: str) -> None:
        pool = Pool(2)
        results = getattr(pool, way)(square, iter(range(100)))
        pool.close()
        assert sorted(results) == [i * i for i in range(100)]
        pool.join()

    @pytest.mark.parametrize("way", ["imap", "imap_unordered"])
    def test_join_takes_the_rest_of_the_input(self, way: str, tally: Tally) -> None:
        pool = Pool(2)
        results = getattr(pool, way)(count, (tally for _ in range(100)))
        pool.close()
        pool.join()
        assert tally.count == 100
        assert len(list(results)) == 100

    def test_terminate(self, gate: Gate) -> None:
        pool = Pool(2)
        pids = {pool.apply(pid) for _ in range(4)}
        results = [pool.apply_async(through, (gate,)) for _ in range(4)]
        pool.terminate()
        pool.join()
        for result in results:
            with pytest.raises(ActorDiedError):
                result.get(timeout=20)
        with pytest.raises(ValueError, match="not running"):
            pool.apply(square, (1,))
        eventually(lambda: all(gone(each) for each in pids))

    def test_terminate_with_more_to_come(self) -> None:
        pool = Pool(2)
        results = pool.imap(square, itertools.count())
        assert next(results) == 0
        pool.terminate()
        pool.join()
        with pytest.raises(ActorDiedError):
            list(results)

    def test_leaving_the_with_block_terminates(self, gate: Gate) -> None:
        with Pool(1) as pool:
            result = pool.apply_async(through, (gate,))
        with pytest.raises(ActorDiedError):
            result.get(timeout=20)

    def test_again(self) -> None:
        pool = Pool(1)
        for _ in range(2):
            pool.close()
        for _ in range(2):
            pool.join()
        for _ in range(2):
            pool.terminate()
        pool.join()

    def test_join_of_one_that_runs(self, pool: Pool) -> None:
        with pytest.raises(ValueError, match="still running"):
            pool.join()

    def test_of_one_that_nobody_holds(self) -> None:
        pool = Pool(2)
        pids = {pool.apply(pid) for _ in range(4)}
        del pool
        eventually(lambda: all(gone(each) for each in pids))


class TestRefuses:
    @pytest.mark.parametrize("processes", [0, -1])
    def test_too_few_processes(self, processes: int) -> None:
        with pytest.raises(ValueError, match="processes"):
            Pool(processes)

    @pytest.mark.parametrize("processes", ["2", 1.5, True])
    def test_no_number_of_them(self, processes: object) -> None:
        with pytest.raises(TypeError, match="processes"):
            Pool(processes)

    def test_a_bad_maxtasksperchild(self) -> None:
        with pytest.raises(ValueError, match="maxtasksperchild"):
            Pool(1, maxtasksperchild=0)

    def test_an_initializer_that_cannot_be_called(self) -> None:
        with pytest.raises(TypeError, match="initializer"):
            Pool(1, 3)

    def test_a_name_for_all(self) -> None:
        with pytest.raises(ValueError, match="name"):
            Pool(1, ray_remote_args={"name": "one"})

    def test_a_context_does_nothing(self) -> None:
        with pytest.warns(RuntimeWarning, match="context"):
            Pool(1, context=multiprocessing.get_context("spawn")).terminate()

    def test_to_be_pickled(self, pool: Pool) -> None:
        with pytest.raises(SerializationError, match="cannot be passed"):
            skate.put(pool)
