"""SkateExecutor: what programs expect of a concurrent.futures.Executor."""

import concurrent.futures
import functools
import itertools
import operator
import os
import threading
import time
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, CancelledError, wait
from pathlib import Path

import pytest
import skate
from skate.exceptions import SerializationError, TaskError, WorkerCrashedError
from skate.util import SkateExecutor

from .rendezvous import Gate, Tally, eventually, most_at_once

pytestmark = pytest.mark.usefixtures("cpu2")


def square(number: int) -> int:
    return number * number


def through(gate: Gate, value: object = "through") -> object:
    gate.wait()
    return value


def counted(tally: Tally) -> int:
    return tally.add()


@pytest.fixture
def executor():
    with SkateExecutor() as executor:
        yield executor


class TestSubmit:
    def test_a_result(self, executor: SkateExecutor) -> None:
        future = executor.submit(square, 7)
        assert isinstance(future, concurrent.futures.Future)
        assert future.result(timeout=20) == 49
        assert future.done()
        assert not future.running()

    def test_it_runs_elsewhere(self, executor: SkateExecutor) -> None:
        assert executor.submit(os.getpid).result() != os.getpid()

    def test_keywords(self, executor: SkateExecutor) -> None:
        def call(*args: object, **kwargs: object) -> object:
            return args, kwargs

        assert executor.submit(call, 1, 2, fn=3, call=4).result() == ((1, 2), {"fn": 3, "call": 4})

    @pytest.mark.parametrize(
        ("function", "arguments", "result"),
        [
            (lambda x: x + 1, (1,), 2),
            (pow, (2, 3), 8),
            (functools.partial(operator.sub, 10), (3,), 7),
            ("a-b".split, ("-",), ["a", "b"]),
            (Path, ("/x",), Path("/x")),
            (operator.itemgetter(1), ("abc",), "b"),
        ],
    )
    def test_all_that_can_be_called(self, executor: SkateExecutor, function, arguments, result) -> None:
        assert executor.submit(function, *arguments).result() == result

    def test_methods_with_the_object_as_it_is(self, executor: SkateExecutor) -> None:
        class Holder:
            value = 1

            def read(self) -> int:
                return self.value

        holder = Holder()
        first = executor.submit(holder.read)
        holder.value = 2
        assert (first.result(), executor.submit(holder.read).result()) == (1, 2)

    def test_refs_arrive_as_values(self, executor: SkateExecutor) -> None:
        assert executor.submit(square, skate.put(5)).result() == 25

    def test_many(self, executor: SkateExecutor) -> None:
        futures = [executor.submit(square, i) for i in range(2_000)]
        assert [future.result() for future in futures] == [i * i for i in range(2_000)]

    def test_from_many_threads(self, executor: SkateExecutor) -> None:
        sums = []

        def submit() -> None:
            sums.append(sum(future.result() for future in [executor.submit(square, i) for i in range(200)]))

        threads = [threading.Thread(target=submit) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sums == [sum(i * i for i in range(200))] * 4

    def test_options_of_the_tasks(self) -> None:
        with SkateExecutor(num_cpus=0.5, runtime_env={"env_vars": {"COLOUR": "green"}}) as executor:
            assert executor.submit(os.getenv, "COLOUR").result() == "green"
            assert executor.submit(lambda: skate.get_runtime_context().get_assigned_resources()).result() == {
                "CPU": 0.5
            }

    def test_in_a_task(self) -> None:
        @skate.remote(num_cpus=2)
        def outer() -> int:
            with SkateExecutor() as executor:
                return sum(executor.submit(square, i).result() for i in range(5))

        assert skate.get(outer.remote(), timeout=60) == 30

    def test_shutdown_in_a_task_lends_its_cpus(self, tally: Tally) -> None:
        @skate.remote(num_cpus=2)
        def outer(tally: Tally) -> None:
            with SkateExecutor() as executor:
                for _ in range(5):
                    executor.submit(counted, tally)

        skate.get(outer.remote(tally), timeout=60)
        assert tally.count == 5

    def test_its_future_as_an_argument_of_await(self, executor: SkateExecutor) -> None:
        import asyncio

        async def main() -> object:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(executor, square, 6)

        assert asyncio.run(main()) == 36


class TestFailures:
    def test_an_exception(self, executor: SkateExecutor) -> None:
        def fail() -> None:
            raise LookupError("nothing here")

        future = executor.submit(fail)
        error = future.exception(timeout=20)
        assert isinstance(error, LookupError)
        assert isinstance(error, TaskError)
        with pytest.raises(LookupError, match="nothing here"):
            future.result()

    def test_wrong_arguments(self, executor: SkateExecutor) -> None:
        with pytest.raises(TypeError, match="square"):
            executor.submit(square, 1, 2).result()

    def test_what_cannot_be_pickled(self, executor: SkateExecutor) -> None:
        future = executor.submit(square, threading.Lock())
        assert isinstance(future.exception(), SerializationError)

    def test_a_worker_that_dies(self) -> None:
        with SkateExecutor(max_retries=0) as executor:
            with pytest.raises(WorkerCrashedError):
                executor.submit(os._exit, 3).result()
            assert executor.submit(square, 3).result() == 9

    def test_no_function(self, executor: SkateExecutor) -> None:
        with pytest.raises(TypeError, match="function"):
            executor.submit(3)


class TestWaiting:
    def test_a_timeout(self, executor: SkateExecutor, gate: Gate) -> None:
        future = executor.submit(through, gate)
        for ask in (future.result, future.exception):
            with pytest.raises(concurrent.futures.TimeoutError):
                ask(timeout=0.05)
            with pytest.raises(concurrent.futures.TimeoutError):
                ask(timeout=0)
        gate.open()
        assert future.result(timeout=20) == "through"

    def test_wait(self, executor: SkateExecutor, gate: Gate) -> None:
        slow, quick = executor.submit(through, gate), executor.submit(square, 2)
        done, _ = wait([slow, quick], timeout=20, return_when=FIRST_COMPLETED)
        assert done == {quick}
        gate.open()
        done, rest = wait([slow, quick], timeout=20, return_when=ALL_COMPLETED)
        assert (len(done), len(rest)) == (2, 0)

    def test_as_completed(self, executor: SkateExecutor, gate: Gate) -> None:
        slow, quick = executor.submit(through, gate), executor.submit(square, 2)
        order = concurrent.futures.as_completed([slow, quick], timeout=20)
        assert next(order) is quick
        gate.open()
        assert next(order) is slow

    def test_callbacks(self, executor: SkateExecutor) -> None:
        called = threading.Event()
        executor.submit(square, 3).add_done_callback(lambda future: called.set())
        assert called.wait(20)

    def test_a_callback_may_submit(self, executor: SkateExecutor) -> None:
        second: list[concurrent.futures.Future] = []
        called = threading.Event()

        def go_on(future: concurrent.futures.Future) -> None:
            second.append(executor.submit(square, future.result()))
            called.set()

        executor.submit(square, 3).add_done_callback(go_on)
        assert called.wait(20)
        assert second[0].result(timeout=20) == 81

    def test_several_threads_wait_for_one(self, executor: SkateExecutor, gate: Gate) -> None:
        future = executor.submit(through, gate)
        got: list[object] = []
        threads = [threading.Thread(target=lambda: got.append(future.result())) for _ in range(4)]
        for thread in threads:
            thread.start()
        gate.open()
        for thread in threads:
            thread.join(20)
        assert got == ["through"] * 4


class TestMap:
    def test_in_order(self, executor: SkateExecutor) -> None:
        assert list(executor.map(square, range(20))) == [i * i for i in range(20)]

    @pytest.mark.parametrize("chunksize", [2, 7, 100])
    def test_in_chunks(self, executor: SkateExecutor, chunksize: int) -> None:
        assert list(executor.map(square, range(20), chunksize=chunksize)) == [i * i for i in range(20)]

    def test_a_chunk_is_one_task(self, executor: SkateExecutor) -> None:
        def task(_: int) -> str | None:
            return skate.get_runtime_context().get_task_id()

        tasks = list(executor.map(task, range(9), chunksize=3))
        assert [len(set(tasks[i : i + 3])) for i in (0, 3, 6)] == [1, 1, 1]
        assert len(set(tasks)) == 3

    @pytest.mark.parametrize("chunksize", [1, 2])
    def test_of_several_iterables_to_the_end_of_the_shortest(
        self, executor: SkateExecutor, chunksize: int
    ) -> None:
        assert list(executor.map(pow, [1, 2, 3], itertools.repeat(2), chunksize=chunksize)) == [1, 4, 9]

    def test_it_begins_at_once(self, executor: SkateExecutor, tally: Tally) -> None:
        executor.map(counted, [tally] * 3)
        eventually(lambda: tally.count == 3)

    def test_a_failure_in_its_place(self, executor: SkateExecutor) -> None:
        results = executor.map(lambda x: 6 // x, [1, 2, 0, 3])
        assert [next(results), next(results)] == [6, 3]
        with pytest.raises(ZeroDivisionError):
            next(results)

    def test_a_timeout(self, executor: SkateExecutor, gate: Gate) -> None:
        results = executor.map(through, [gate], timeout=0.05)
        with pytest.raises(concurrent.futures.TimeoutError):
            next(results)
        gate.open()

    def test_short_items_travel_together(self, executor: SkateExecutor) -> None:
        """As many as take about 2 ms: found by what those took that have run."""

        def task(_: int) -> str | None:
            return skate.get_runtime_context().get_task_id()

        tasks = list(executor.map(task, range(5_000)))
        assert len(tasks) == 5_000
        assert len(set(tasks)) < 1_000

    def test_long_items_travel_alone(self, executor: SkateExecutor) -> None:
        def task(_: int) -> str | None:
            time.sleep(0.005)
            return skate.get_runtime_context().get_task_id()

        assert len(set(executor.map(task, range(20)))) == 20

    def test_each_item_ends_on_its_own(self, executor: SkateExecutor, tally: Tally) -> None:
        """Whatever travels with what: the results before a failure come, and what is behind it runs all the same."""

        def call(number: int) -> int:
            if number == 300:
                raise LookupError("number 300")
            if number > 900:
                tally.add()
            return number

        results = executor.map(call, range(1_000))
        assert [next(results) for _ in range(300)] == list(range(300))
        eventually(lambda: tally.count == 99)
        with pytest.raises(LookupError, match="number 300") as caught:
            next(results)
        assert isinstance(caught.value, TaskError)
        assert "in call" in str(caught.value)
        assert next(results, "end") == "end"

    def test_an_item_that_cannot_be_pickled_in_its_place(self, executor: SkateExecutor) -> None:
        items: list[object] = [*range(200), threading.Lock(), 7]
        results = executor.map(lambda x: x, items)
        assert [next(results) for _ in range(200)] == list(range(200))
        with pytest.raises(SerializationError):
            next(results)

    def test_refs_among_the_items_arrive_as_values(self, executor: SkateExecutor) -> None:
        refs = [skate.put(i) for i in range(50)]
        assert list(executor.map(pow, refs, itertools.repeat(2))) == [i * i for i in range(50)]

    def test_it_goes_on_though_nobody_takes_its_results(self, executor: SkateExecutor, tally: Tally) -> None:
        executor.map(counted, [tally] * 500)
        eventually(lambda: tally.count == 500)

    def test_shutdown_waits_for_all_of_it(self, tally: Tally) -> None:
        with SkateExecutor() as executor:
            executor.map(counted, [tally] * 500)
        assert tally.count == 500
        with SkateExecutor(max_workers=1) as executor:
            executor.map(counted, [tally] * 100)
        assert tally.count == 600

    def test_what_is_left_of_one_that_is_closed_does_not_run(
        self, executor: SkateExecutor, tally: Tally
    ) -> None:
        def slow(_: int) -> None:
            tally.add()
            time.sleep(0.005)

        results = executor.map(slow, range(200))
        next(results)
        results.close()
        executor.shutdown()
        assert tally.count < 50

    def test_of_nothing_and_of_one(self, executor: SkateExecutor) -> None:
        assert list(executor.map(square, [])) == []
        assert list(executor.map(square)) == []
        assert list(executor.map(square, [3])) == [9]

    def test_several_at_once_from_threads(self, executor: SkateExecutor) -> None:
        sums: list[int] = []

        def use() -> None:
            sums.append(sum(executor.map(square, range(500))))

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sums == [sum(i * i for i in range(500))] * 4

    @pytest.mark.parametrize("chunksize", [0, -1])
    def test_a_bad_chunksize(self, executor: SkateExecutor, chunksize: int) -> None:
        with pytest.raises(ValueError, match="chunksize"):
            executor.map(square, [1], chunksize=chunksize)


class TestCancel:
    def test_what_runs_cannot_be(self, gate: Gate) -> None:
        with SkateExecutor(max_workers=1) as executor:
            future = executor.submit(through, gate)
            assert future.running()
            assert not future.cancel()
            gate.open()
            assert future.result() == "through"

    def test_what_waits_never_runs(self, gate: Gate, tally: Tally) -> None:
        with SkateExecutor(max_workers=1) as executor:
            executor.submit(through, gate)
            waiting = [executor.submit(counted, tally) for _ in range(3)]
            assert not waiting[1].running()
            assert waiting[1].cancel()
            assert waiting[1].cancelled()
            with pytest.raises(CancelledError):
                waiting[1].result()
            gate.open()
        assert tally.count == 2
        assert sorted(future.result() for future in (waiting[0], waiting[2])) == [1, 2]

    def test_without_max_workers_a_few_are_handed_over(self, gate: Gate, tally: Tally) -> None:
        with SkateExecutor() as executor:
            futures = [executor.submit(through, gate) for _ in range(100)]
            cancelled = [future for future in futures if future.cancel()]
            assert len(cancelled) == 100 - 2 * 2  # twice what two CPUs run
            gate.open()
        assert all(future.done() for future in futures)

    def test_at_shutdown(self, gate: Gate, tally: Tally) -> None:
        executor = SkateExecutor(max_workers=1)
        begun = executor.submit(through, gate)
        waiting = [executor.submit(counted, tally) for _ in range(3)]
        executor.shutdown(wait=False, cancel_futures=True)
        assert all(future.cancelled() for future in waiting)
        assert not wait(waiting, timeout=20).not_done
        gate.open()
        assert begun.result(timeout=20) == "through"
        executor.shutdown()
        assert tally.count == 0


class TestLazy:
    """A future costs what its ref costs: nothing waits in its name until somebody asks for more than its value."""

    def test_nothing_waits_for_a_call(self, executor: SkateExecutor, gate: Gate) -> None:
        future = executor.submit(through, gate)
        assert future._ref.entry.waiters is None
        assert not future.done()
        assert future._ref.entry.waiters is None
        assert future.running()
        assert future._ref.entry.waiters is not None
        gate.open()
        assert future.result(timeout=20) == "through"

    def test_abandoned_futures_leave_nothing(self, executor: SkateExecutor, gate: Gate) -> None:
        """One waiter at most is left, however many they are: that of the backlog."""
        executor.submit(through, gate)
        futures = [executor.submit(through, gate) for _ in range(200)]
        entries = [entry for entry in executor._in_flight if entry.waiters is not None]
        waiters = {id(entry.waiters) for entry in entries}
        assert len(waiters) <= 1
        del futures
        gate.open()
        executor.shutdown()
        assert not executor._in_flight
        assert executor._watch is None

    def test_the_same_result_again(self, executor: SkateExecutor) -> None:
        future = executor.submit(lambda: [1])
        first = future.result(timeout=20)
        assert future.result() is first
        assert future.running() is False
        assert future.result() is first
        wait([future], timeout=20)
        assert future.result() is first

    def test_of_one_that_is_done_at_every_turn(self, executor: SkateExecutor) -> None:
        """What it is asked first makes no difference."""
        asks = [
            lambda future: future.done() or future.result(),
            lambda future: future.running(),
            lambda future: future.cancel(),
            lambda future: future.cancelled(),
            lambda future: future.exception(),
            lambda future: future.add_done_callback(lambda _: None),
            lambda future: wait([future], timeout=20),
            lambda future: next(concurrent.futures.as_completed([future], timeout=20)),
            repr,
        ]
        for ask in asks:
            for value in (1, "x" * 300_000):
                future = executor.submit(lambda value=value: value)
                ask(future)
                assert future.result(timeout=20) == value
                assert future.done()
                ask(future)
                assert future.exception() is None

    def test_result_ends_with_a_cancel_elsewhere(self, gate: Gate) -> None:
        with SkateExecutor(max_workers=1) as executor:
            executor.submit(through, gate)
            future = executor.submit(through, gate)
            ended: list[str] = []

            def read() -> None:
                with pytest.raises(CancelledError):
                    future.result(timeout=20)
                ended.append("cancelled")

            thread = threading.Thread(target=read)
            thread.start()
            eventually(lambda: future._waiting)
            assert future.cancel()
            thread.join(20)
            assert ended == ["cancelled"]
            gate.open()


class TestMaxWorkers:
    @pytest.mark.parametrize("most", [1, 2])
    def test_no_more_at_once(self, most: int) -> None:
        def span() -> tuple[float, float]:
            start = time.monotonic()
            time.sleep(0.01)
            return start, time.monotonic()

        with SkateExecutor(max_workers=most, num_cpus=0.1) as executor:
            futures = [executor.submit(span) for _ in range(10)]
            assert most_at_once([future.result() for future in futures]) <= most

    def test_and_as_many(self, tally: Tally) -> None:
        with SkateExecutor(max_workers=5, num_cpus=0.1) as executor:
            wait([executor.submit(tally.meet, 5) for _ in range(5)])

    def test_in_the_order_submitted(self, tmp_path: Path) -> None:
        def note(number: int) -> None:
            with (tmp_path / "order").open("a") as file:
                file.write(f"{number} ")

        with SkateExecutor(max_workers=1) as executor:
            for number in range(30):
                executor.submit(note, number)
        assert (tmp_path / "order").read_text().split() == [str(i) for i in range(30)]

    def test_short_calls_are_submitted_ahead(self) -> None:
        with SkateExecutor() as executor:
            wait([executor.submit(square, i) for i in range(3_000)])
            assert executor._pace.size > 4

    @pytest.mark.parametrize("most", [0, -1])
    def test_too_few(self, most: int) -> None:
        with pytest.raises(ValueError, match="max_workers"):
            SkateExecutor(max_workers=most)

    @pytest.mark.parametrize("most", [1.5, "2", True])
    def test_no_number(self, most: object) -> None:
        with pytest.raises(TypeError, match="max_workers"):
            SkateExecutor(max_workers=most)


class TestShutdown:
    def test_waits(self, tally: Tally) -> None:
        executor = SkateExecutor(max_workers=2)
        futures = [executor.submit(counted, tally) for _ in range(10)]
        executor.shutdown()
        assert tally.count == 10
        assert all(future.done() for future in futures)

    def test_does_not_wait_when_told_not_to(self, gate: Gate) -> None:
        executor = SkateExecutor()
        future = executor.submit(through, gate)
        executor.shutdown(wait=False)
        assert not future.done()
        gate.open()
        assert future.result(timeout=20) == "through"

    def test_again(self) -> None:
        executor = SkateExecutor()
        executor.shutdown()
        executor.shutdown()

    def test_no_calls_afterwards(self) -> None:
        executor = SkateExecutor()
        executor.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(square, 1)

    def test_of_one_that_did_nothing(self) -> None:
        with SkateExecutor():
            pass

    def test_its_thread_ends_with_the_backlog(self) -> None:
        with SkateExecutor(max_workers=1) as executor:
            wait([executor.submit(square, i) for i in range(20)])
            eventually(lambda: not any(thread.name == "skate-executor" for thread in threading.enumerate()))
            assert executor.submit(square, 3).result() == 9


class TestRefuses:
    def test_unknown_options(self) -> None:
        with pytest.raises(ValueError, match="num_cpu"):
            SkateExecutor(num_cpu=1)

    def test_num_returns(self) -> None:
        with pytest.raises(ValueError, match="num_returns"):
            SkateExecutor(num_returns=2)

    def test_coroutine_functions(self, executor: SkateExecutor) -> None:
        async def coroutine() -> None:
            pass

        with pytest.raises(ValueError, match="async def"):
            executor.submit(coroutine).result()
