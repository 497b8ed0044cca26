"""Refs that are awaited, in whatever event loop: it is woken by the inbox itself, and by it alone.

The kind of fault: a wait of a loop that ends only because some other thread looks now and then (the pump, each
millisecond); a loop that is never woken, since whoever was to wake it counted on another; and what is left behind by a
loop that was closed, or a wait that was cancelled. Each test is run by the loop of asyncio and by that of uvloop.
"""

import asyncio
import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import skate
from skate.net import pump
from skate.runtime import current

from .rendezvous import Gate, eventually

pytestmark = [pytest.mark.usefixtures("cpu2"), pytest.mark.transport]

Loop = asyncio.AbstractEventLoop


@skate.remote
def identity(value: object = None) -> object:
    return value


@skate.remote
def pass_gate(gate: Gate) -> str:
    gate.wait()
    return "through"


@skate.remote
def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@pytest.fixture(params=["asyncio", "uvloop"])
def new_loop(request: pytest.FixtureRequest) -> Callable[[], Loop]:
    if request.param == "asyncio":
        return asyncio.new_event_loop
    return pytest.importorskip("uvloop").new_event_loop  # type: ignore[no-any-return]


@pytest.fixture
def run(new_loop: Callable[[], Loop]) -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Runs a coroutine in a loop that is closed at the end of the test."""
    loop = new_loop()
    yield lambda coroutine: loop.run_until_complete(asyncio.wait_for(coroutine, 60))
    loop.close()


def known() -> int:
    """The event loops that this process's runtime knows of."""
    return len(current.runtime.objects.loops._known)


def sleepers() -> int:
    return len(current.runtime.pump.sleepers)


def in_threads(number: int, act: Callable[[], object]) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not failures


class TestWokenByTheInbox:
    def test_not_by_the_pump(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a pump that looks every half second only, a hundred waits take no longer."""

        async def main() -> float:
            await identity.remote()
            monkeypatch.setattr(pump, "PATIENCE", 0.5)
            began = time.monotonic()
            for i in range(100):
                assert await identity.remote(i) == i
                assert await sleep.remote(0.001) == 0.001  # longer than it spins
            return time.monotonic() - began

        assert run(main()) < 20

    def test_it_sleeps_on_it(self, run: Any, gate: Gate) -> None:
        async def main() -> object:
            ref = pass_gate.remote(gate)
            waiting = asyncio.ensure_future(ref_of(ref))
            while not sleepers():
                await asyncio.sleep(0.001)
            gate.open()
            return await waiting

        assert run(main()) == "through"
        assert not sleepers()

    def test_the_pump_reads_while_the_loop_is_busy(self, run: Any, gate: Gate) -> None:
        """It stands by, and takes in what the loop leaves lying: others are answered though a callback never ends."""
        got: list[object] = []
        other = threading.Event()

        async def main() -> None:
            waiting = asyncio.ensure_future(ref_of(pass_gate.remote(gate)))
            while not sleepers():
                await asyncio.sleep(0.001)
            future = identity.remote("x").future()
            future.add_done_callback(lambda done: (got.append(done.result()), other.set()))
            assert other.wait(20)  # blocks the loop
            gate.open()
            assert await waiting == "through"

        run(main())
        assert got == ["x"]

    def test_beside_a_thread_that_reads(self, run: Any) -> None:
        """What reads the inbox then hands the loop what is its own; once it stops, the loop is on its own again."""
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                assert skate.get(identity.remote(1)) == 1

        thread = threading.Thread(target=read)
        thread.start()

        async def main() -> list[object]:
            first = [await identity.remote(i) for i in range(30)]
            stop.set()
            return first + [await identity.remote(i) for i in range(30)]

        try:
            assert run(main()) == [*range(30), *range(30)]
        finally:
            stop.set()
            thread.join(20)

    def test_timers_of_the_runtime_run_meanwhile(self, run: Any, gate: Gate) -> None:
        """Leases without work go back, though nobody but a loop waits."""

        async def main() -> None:
            waiting = asyncio.ensure_future(ref_of(pass_gate.remote(gate)))
            await asyncio.gather(*[identity.remote(i) for i in range(20)])
            while len(current.runtime.dispatcher.leases) > 1:
                await asyncio.sleep(0.01)
            gate.open()
            await waiting

        run(main())

    def test_what_is_said_without_waiting_leaves(self, run: Any, gate: Gate, tmp_path: Any) -> None:
        async def main() -> None:
            waiting = asyncio.ensure_future(ref_of(pass_gate.remote(gate)))
            while not sleepers():
                await asyncio.sleep(0.001)
            kept = [touch.remote(str(tmp_path / str(i))) for i in range(5)]
            while len(os.listdir(tmp_path)) < 5:
                await asyncio.sleep(0.001)
            gate.open()
            await waiting
            del kept

        run(main())


async def ref_of(ref: Any) -> Any:
    return await ref


@skate.remote
def touch(path: str) -> None:
    with open(path, "w"):
        pass


class TestSeveralLoops:
    def test_in_threads(self, new_loop: Callable[[], Loop]) -> None:
        def act() -> None:
            loop = new_loop()

            async def main() -> None:
                for i in range(20):
                    assert await identity.remote(i) == i
                    assert await asyncio.gather(*[identity.remote(i) for i in range(10)]) == list(range(10))

            loop.run_until_complete(main())
            loop.close()

        in_threads(4, act)
        assert known() == sleepers() == 0

    def test_one_ends_while_another_sleeps(self, new_loop: Callable[[], Loop], gate: Gate) -> None:
        def act() -> None:
            loop = new_loop()
            assert loop.run_until_complete(ref_of(pass_gate.remote(gate))) == "through"
            loop.close()

        def act_once() -> None:
            eventually(lambda: sleepers() == 1)
            loop = new_loop()
            assert loop.run_until_complete(ref_of(identity.remote(1))) == 1
            loop.close()
            gate.open()

        acts = [act, act_once]
        in_threads(2, lambda: acts.pop()())

    def test_one_loop_run_again_and_again(self, new_loop: Callable[[], Loop]) -> None:
        """With refs pending in between, while the program computes, and calls."""
        loop = new_loop()

        async def later(ref: Any) -> Any:
            return await ref

        async def begin() -> Any:
            task = asyncio.ensure_future(later(sleep.remote(0.02)))
            await asyncio.sleep(0)
            return task

        for _ in range(5):
            task = loop.run_until_complete(begin())
            assert skate.get(identity.remote(1)) == 1
            assert loop.run_until_complete(task) == 0.02
        loop.close()
        assert known() == sleepers() == 0


class TestEnds:
    def test_a_cancelled_wait_leaves_nothing(self, run: Any, gate: Gate) -> None:
        async def main() -> None:
            ref = pass_gate.remote(gate)
            for _ in range(3):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(ref_of(ref), 0.01)
                assert ref.entry.waiters is None
                assert not sleepers()
            gate.open()
            assert await ref == "through"

        run(main())
        assert not known()

    def test_one_of_two_waits(self, run: Any, gate: Gate) -> None:
        async def main() -> None:
            ref = pass_gate.remote(gate)
            first, second = asyncio.ensure_future(ref_of(ref)), asyncio.ensure_future(ref_of(ref))
            await asyncio.sleep(0.01)
            first.cancel()
            await asyncio.sleep(0.01)
            gate.open()
            assert await second == "through"
            assert first.cancelled()

        run(main())

    def test_a_loop_that_is_closed_while_refs_are_pending(
        self, new_loop: Callable[[], Loop], gate: Gate
    ) -> None:
        """Nobody rings it, and nothing of it stays once the refs have come."""
        loop = new_loop()
        ref = pass_gate.remote(gate)

        async def main() -> None:
            asyncio.ensure_future(ref_of(ref)).set_name("left")
            ref.add_done_callback(lambda _: None)
            await asyncio.sleep(0.01)

        loop.run_until_complete(main())
        loop.close()
        gate.open()
        assert skate.get(ref) == "through"
        gone = weakref.ref(loop)
        del loop
        gc.collect()  # tasks that nobody ended are cycles
        eventually(lambda: gone() is None)
        assert known() == sleepers() == 0

    def test_a_loop_that_is_forgotten_while_refs_are_pending(
        self, new_loop: Callable[[], Loop], gate: Gate
    ) -> None:
        loop = new_loop()
        ref = pass_gate.remote(gate)

        async def main() -> None:
            asyncio.ensure_future(ref_of(ref)).set_name("left")
            await asyncio.sleep(0.05)

        loop.run_until_complete(main())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        assert ref.entry.waiters is None
        gate.open()
        assert skate.get(ref) == "through"

    def test_a_handler_of_a_signal_that_raises(self, new_loop: Callable[[], Loop], gate: Gate) -> None:
        """It comes out of the loop, which goes on with what it awaits: while it spins, sleeps, and in between."""
        loop = new_loop()
        if type(loop).__module__.startswith("uvloop"):
            loop.close()
            pytest.skip(
                "a loop of uvloop's own stays 'running' for ever where a handler raises, without skate too"
            )

        async def main() -> object:
            return await pass_gate.remote(gate)

        async def call_on() -> None:
            while True:
                await identity.remote(1)

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        task = loop.create_task(main())
        loop.run_until_complete(asyncio.sleep(0.01))
        try:
            for i in range(40):
                calling = loop.create_task(call_on() if i % 2 else asyncio.sleep(60))
                with pytest.raises(KeyboardInterrupt):
                    signal.setitimer(signal.ITIMER_REAL, 0.0001 + 0.0005 * i)
                    loop.run_until_complete(calling)
                calling.cancel()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        gate.open()
        assert loop.run_until_complete(asyncio.wait_for(task, 20)) == "through"
        loop.close()

    def test_no_descriptor_is_left(self, new_loop: Callable[[], Loop]) -> None:
        before = len(os.listdir("/proc/self/fd"))
        loop = new_loop()

        async def main() -> None:
            for _ in range(20):
                await sleep.remote(0.002)

        loop.run_until_complete(main())
        loop.close()
        del loop
        eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)


class TestInActors:
    def test_the_loop_of_an_asyncio_actor(self) -> None:
        @skate.remote
        class Caller:
            async def call(self, number: int) -> list[object]:
                one_by_one = [await identity.remote(i) for i in range(number)]
                return one_by_one + await asyncio.gather(*[identity.remote(i) for i in range(number)])

        assert skate.get(Caller.remote().call.remote(50), timeout=60) == [*range(50), *range(50)]

    def test_other_loops_in_an_asyncio_actor(self) -> None:
        @skate.remote
        class Caller:
            async def call(self) -> list[object]:
                async def main() -> list[object]:
                    return [await identity.remote(i) for i in range(20)]

                other = asyncio.get_running_loop().run_in_executor(None, asyncio.run, main())
                return await main() + await other

        assert skate.get(Caller.remote().call.remote(), timeout=60) == [*range(20), *range(20)]

    def test_a_loop_in_a_method_of_a_threaded_actor(self) -> None:
        @skate.remote(max_concurrency=3)
        class Caller:
            def call(self) -> list[object]:
                async def main() -> list[object]:
                    return [await identity.remote(i) for i in range(20)]

                return asyncio.run(main())

        actor = Caller.remote()
        assert skate.get([actor.call.remote() for _ in range(3)], timeout=60) == [list(range(20))] * 3
