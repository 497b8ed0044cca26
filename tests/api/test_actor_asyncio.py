"""Async actors: a class with an `async def` method runs its coroutines in one event loop."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar

import pytest
import skate
from skate.exceptions import ActorDiedError, TaskError

from .rendezvous import Gate, Tally, eventually, gone, most_at_once

pytestmark = [pytest.mark.usefixtures("cpu2"), pytest.mark.transport]


@skate.remote
def identity(value: object) -> object:
    return value


@skate.remote(num_cpus=0)
def late(gate: Gate, value: object) -> object:
    gate.wait()
    return value


class Base:
    """Coroutines that wait for one another: only those of one loop ever get past."""

    def __init__(self) -> None:
        self.here = 0
        self.running = 0
        self.most = 0
        self.all_here = asyncio.Event()
        self.total = 0

    async def meet(self, parties: int) -> tuple[int, int]:
        self.here += 1
        if self.here >= parties:
            self.all_here.set()
        await self.all_here.wait()
        return os.getpid(), threading.get_ident()

    async def span(self) -> tuple[float, float]:
        start = time.monotonic()
        await asyncio.sleep(0.01)
        return start, time.monotonic()

    async def pass_gate(self, gate: Gate, tally: Tally | None = None) -> int:
        """How many were in here at most."""
        if tally:
            tally.add()
        self.running += 1
        self.most = max(self.most, self.running)
        while not gate.is_open:
            await asyncio.sleep(0.02)
        self.running -= 1
        return self.most

    async def add(self, number: int = 1) -> int:
        self.total += number
        return self.total

    def add_now(self, number: int = 1) -> int:
        self.total += number
        return self.total

    async def fail(self) -> None:
        await asyncio.sleep(0)
        raise LookupError("in a coroutine")

    async def pid(self) -> int:
        return os.getpid()

    async def wait_for(self, refs: list) -> object:
        return await refs[0]


Async = skate.remote(Base)


class TestConcurrency:
    def test_in_one_loop(self) -> None:
        actor = Async.remote()
        assert len(set(skate.get([actor.meet.remote(50) for _ in range(50)]))) == 1

    def test_one_that_waits_holds_up_no_other(self, gate: Gate) -> None:
        actor = Async.remote()
        slow = actor.pass_gate.remote(gate)
        assert skate.get([actor.add.remote() for _ in range(10)]) == list(range(1, 11))
        assert skate.wait([slow], timeout=0) == ([], [slow])
        gate.open()
        assert skate.get(slow) == 1

    @pytest.mark.parametrize("limit", [1, 2, 5])
    def test_up_to_max_concurrency(self, limit: int) -> None:
        actor = Async.options(max_concurrency=limit).remote()
        spans = skate.get([actor.span.remote() for _ in range(4 * limit)])
        assert most_at_once(spans) <= limit

    @pytest.mark.parametrize("limit", [2, 5])
    def test_and_as_many_as_that(self, limit: int) -> None:
        actor = Async.options(max_concurrency=limit).remote()
        assert len(set(skate.get([actor.meet.remote(limit) for _ in range(limit)]))) == 1

    def test_a_thousand_unless_told_otherwise(self, gate: Gate, tally: Tally) -> None:
        actor = Async.remote()
        refs = [actor.pass_gate.remote(gate, tally) for _ in range(1_100)]
        eventually(lambda: tally.count == 1_000)
        gate.open()
        assert max(skate.get(refs)) == 1_000
        assert tally.count == 1_100

    def test_many(self) -> None:
        actor = Async.remote()
        assert sorted(skate.get([actor.add.remote() for _ in range(2_000)])) == list(range(1, 2_001))

    def test_from_several_callers(self) -> None:
        @skate.remote
        def call(actor: object) -> object:
            return skate.get(actor.meet.remote(3))

        actor = Async.remote()
        calls = [call.remote(actor), call.remote(actor), actor.meet.remote(3)]
        assert len(set(skate.get(calls))) == 1


class TestSyncMethods:
    """One `async def` makes the whole class async; its sync methods still are methods."""

    def test_they_run_and_share_the_state(self) -> None:
        actor = Async.remote()
        refs = [actor.add.remote() if i % 2 else actor.add_now.remote() for i in range(100)]
        assert sorted(skate.get(refs)) == list(range(1, 101))

    def test_they_do_not_stop_other_calls_from_being_received(self, gate: Gate) -> None:
        class Blocking(Base):
            def block(self, gate: Gate) -> str:
                gate.wait()
                return "through"

        actor = skate.remote(Blocking).remote()
        skate.get(actor.add.remote(0))
        blocked = actor.block.remote(gate)
        refs = [actor.add.remote() for _ in range(20)]
        gate.open()
        assert skate.get(blocked) == "through"
        assert sorted(skate.get(refs)) == list(range(1, 21))

    def test_one_at_a_time(self) -> None:
        class Spans(Base):
            def span_now(self) -> tuple[float, float]:
                start = time.monotonic()
                time.sleep(0.005)
                return start, time.monotonic()

        actor = skate.remote(Spans).remote()
        assert most_at_once(skate.get([actor.span_now.remote() for _ in range(10)])) == 1


class TestLoop:
    def test_the_same_for_all_calls(self) -> None:
        @skate.remote
        class Loops:
            async def which(self) -> int:
                return id(asyncio.get_running_loop())

        actor = Loops.remote()
        assert len(set(skate.get([actor.which.remote() for _ in range(10)]))) == 1

    def test_what_a_call_leaves_running_goes_on(self) -> None:
        @skate.remote
        class Background:
            def __init__(self) -> None:
                self.ticks = 0

            async def start(self) -> None:
                self.task = asyncio.create_task(self.tick())

            async def tick(self) -> None:
                while True:
                    self.ticks += 1
                    await asyncio.sleep(0.001)

            async def get(self) -> int:
                return self.ticks

        actor = Background.remote()
        skate.get(actor.start.remote())
        eventually(lambda: skate.get(actor.get.remote()) >= 5)

    def test_an_exception_is_of_its_call_only(self) -> None:
        actor = Async.remote()
        failed, meeting = actor.fail.remote(), [actor.meet.remote(2) for _ in range(2)]
        with pytest.raises(LookupError, match="in a coroutine") as caught:
            skate.get(failed)
        assert isinstance(caught.value, TaskError)
        skate.get(meeting)

    def test_a_timeout_inside(self, gate: Gate) -> None:
        @skate.remote
        class Patient:
            async def wait_for(self, refs: list) -> str:
                try:
                    await asyncio.wait_for(asyncio.wrap_future(refs[0].future()), timeout=0.05)
                except TimeoutError:
                    return "gave up"
                return "had it"

        actor, ref = Patient.remote(), late.remote(gate, None)
        assert skate.get(actor.wait_for.remote([ref])) == "gave up"
        gate.open()
        skate.get(ref)
        assert skate.get(actor.wait_for.remote([ref])) == "had it"

    def test_what_a_call_sets_in_its_context_is_its_own(self) -> None:
        @skate.remote(max_concurrency=1)
        class Setter:
            def __init__(self) -> None:
                self.variable: ContextVar[int] = ContextVar("variable", default=-1)

            async def swap(self, value: int) -> int:
                before = self.variable.get()
                self.variable.set(value)
                await asyncio.sleep(0)
                return before

        setter = Setter.remote()
        assert skate.get([setter.swap.remote(i) for i in range(20)]) == [-1] * 20

    def test_each_call_knows_its_own_id_and_name(self) -> None:
        @skate.remote
        class Self:
            def __init__(self) -> None:
                self.here = 0

            async def ids(self) -> tuple[str, str, str]:
                context = skate.get_runtime_context()
                before = context.get_task_id()
                self.here += 1
                while self.here < 2:
                    await asyncio.sleep(0.001)
                return before, context.get_task_id(), context.get_task_name()

        actor = Self.remote()
        refs = [actor.ids.options(name=name).remote() for name in ("one", "two")]
        (a, a_again, one), (b, b_again, two) = skate.get(refs)
        assert a == a_again != b == b_again
        assert (one, two) == ("one", "two")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio has eager tasks from Python 3.12 on")
class TestEagerTasks:
    def test_calls_that_never_wait_and_calls_that_do(self) -> None:
        @skate.remote(max_concurrency=3)
        class Eager:
            def __init__(self) -> None:
                asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

            async def at_once(self, number: int) -> int:
                return number

            async def later(self, number: int) -> int:
                await asyncio.sleep(0)
                return number

        actor = Eager.remote()
        calls = [(actor.later if number % 3 else actor.at_once).remote(number) for number in range(5_000)]
        assert skate.get(calls) == list(range(5_000))


class TestAwait:
    def test_a_task(self) -> None:
        @skate.remote
        class Boss:
            async def ask(self, n: int) -> int:
                return sum(await asyncio.gather(*(identity.remote(i) for i in range(n))))

        boss = Boss.remote()
        assert skate.get([boss.ask.remote(n) for n in range(10)]) == [sum(range(n)) for n in range(10)]

    def test_a_ref_it_was_given(self, gate: Gate) -> None:
        actor = Async.remote()
        waiting = actor.wait_for.remote([late.remote(gate, "late")])
        assert skate.get(actor.add.remote()) == 1
        gate.open()
        assert skate.get(waiting) == "late"

    def test_another_actor_and_itself(self) -> None:
        @skate.remote
        class Node:
            async def down(self, other: object, n: int) -> int:
                me = skate.get_runtime_context().current_actor
                return 1 + await other.down.remote(me, n - 1) if n else 0

        a, b = Node.remote(), Node.remote()
        assert skate.get([a.down.remote(b, 5), a.down.remote(a, 5)]) == [5, 5]

    def test_a_failure(self) -> None:
        @skate.remote
        def fail() -> None:
            raise LookupError("in a task")

        @skate.remote
        class Catcher:
            async def catch(self) -> str:
                try:
                    await fail.remote()
                except LookupError as error:
                    return type(error).__name__
                return "nothing"

        assert "LookupError" in skate.get(Catcher.remote().catch.remote())

    def test_from_the_loop_of_the_driver(self) -> None:
        async def main() -> list[int]:
            actor = Async.remote()
            return await asyncio.gather(*(actor.add.remote() for _ in range(20)))

        assert sorted(asyncio.run(main())) == list(range(1, 21))

    def test_in_a_sync_actor(self) -> None:
        @skate.remote
        class Sync:
            def run(self) -> object:
                async def main() -> object:
                    return await identity.remote("awaited")

                return asyncio.run(main())

        assert skate.get(Sync.remote().run.remote()) == "awaited"


class TestBlocking:
    @pytest.fixture
    def heard(self, captured) -> Callable[[str], bool]:
        return lambda text: text in captured()

    def test_get_warns(self, heard: Callable[[str], bool]) -> None:
        @skate.remote
        class Impatient:
            async def ask(self) -> object:
                return skate.get(identity.remote("it works"))

        assert skate.get(Impatient.remote().ask.remote()) == "it works"
        eventually(lambda: heard(".get inside async actor"))

    @pytest.mark.differs_from_ray("said to the debug log only")
    def test_wait_warns(self, heard: Callable[[str], bool]) -> None:
        @skate.remote
        class Impatient:
            async def ask(self) -> object:
                (ready,), _ = skate.wait([identity.remote("it works")])
                return await ready

        assert skate.get(Impatient.remote().ask.remote()) == "it works"
        eventually(lambda: heard(".wait inside async"))


class TestEnd:
    def test_the_last_handle_goes_while_coroutines_run(self, gate: Gate) -> None:
        actor = Async.remote()
        pid = skate.get(actor.pid.remote())
        refs = [actor.pass_gate.remote(gate) for _ in range(5)]
        del actor
        gate.open()
        assert set(skate.get(refs)) <= set(range(1, 6))
        eventually(lambda: gone(pid))

    def test_killed_while_coroutines_run(self, gate: Gate, tally: Tally) -> None:
        actor = Async.remote()
        pid = skate.get(actor.pid.remote())
        refs = [actor.pass_gate.remote(gate, tally) for _ in range(5)]
        eventually(lambda: tally.count == 5)
        skate.kill(actor)
        for ref in refs:
            with pytest.raises(ActorDiedError):
                skate.get(ref)
        eventually(lambda: gone(pid))

    def test_exit(self) -> None:
        class Leaver(Base):
            async def leave(self) -> None:
                skate.actor.exit_actor()

        actor = skate.remote(Leaver).remote()
        pid = skate.get(actor.pid.remote())
        left = actor.leave.remote()
        with pytest.raises(ActorDiedError):
            skate.get(left)
        eventually(lambda: gone(pid))
        with pytest.raises(ActorDiedError):
            skate.get(actor.add.remote())
