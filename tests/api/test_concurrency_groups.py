"""Concurrency groups: so many calls at once of each group of methods, in threads or in the event loop."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import pytest
import skate
from skate.exceptions import ActorDiedError

from .rendezvous import Gate, Tally, eventually, most_at_once

pytestmark = pytest.mark.usefixtures("cpu2")

GROUPS = {"io": 2, "compute": 4}


class Threads:
    @skate.method(concurrency_group="io")
    def io(self, tally: Tally, parties: int) -> str:
        tally.meet(parties)
        return "io"

    @skate.method(concurrency_group="compute")
    def compute(self, tally: Tally, parties: int) -> str:
        tally.meet(parties)
        return "compute"

    def default(self, tally: Tally, parties: int) -> str:
        tally.meet(parties)
        return "default"

    @skate.method(concurrency_group="io")
    def io_gate(self, gate: Gate, tally: Tally) -> str:
        tally.add()
        gate.wait()
        return "through"

    @skate.method(concurrency_group="io")
    def io_span(self) -> tuple[float, float]:
        return self.span()

    def span(self) -> tuple[float, float]:
        start = time.monotonic()
        time.sleep(0.01)
        return start, time.monotonic()

    def hello(self) -> str:
        return "hello"


class Coroutines:
    @skate.method(concurrency_group="io")
    async def io(self, tally: Tally, parties: int) -> str:
        return await self._meet(tally, parties, "io")

    @skate.method(concurrency_group="compute")
    async def compute(self, tally: Tally, parties: int) -> str:
        return await self._meet(tally, parties, "compute")

    async def default(self, tally: Tally, parties: int) -> str:
        return await self._meet(tally, parties, "default")

    async def _meet(self, tally: Tally, parties: int, name: str) -> str:
        tally.add()
        while tally.count < parties:
            await asyncio.sleep(0.005)
        return name

    @skate.method(concurrency_group="io")
    async def io_gate(self, gate: Gate, tally: Tally) -> str:
        tally.add()
        while not gate.is_open:
            await asyncio.sleep(0.005)
        return "through"

    @skate.method(concurrency_group="io")
    async def io_span(self) -> tuple[float, float]:
        return await self.span()

    async def span(self) -> tuple[float, float]:
        start = time.monotonic()
        await asyncio.sleep(0.01)
        return start, time.monotonic()

    async def hello(self) -> str:
        return "hello"


both = pytest.mark.parametrize("kind", [Threads, Coroutines])


def made(kind: type, **options: object) -> object:
    return skate.remote(concurrency_groups=GROUPS)(kind).options(**options).remote()


@both
def test_as_many_of_a_group_as_it_says(kind: type, tally: Tally) -> None:
    actor = made(kind)
    assert skate.get([actor.io.remote(tally, 2) for _ in range(2)]) == ["io"] * 2
    assert skate.get([actor.compute.remote(tally, 6) for _ in range(4)]) == ["compute"] * 4


@both
def test_and_no_more(kind: type) -> None:
    actor = made(kind)
    assert most_at_once(skate.get([actor.io_span.remote() for _ in range(12)])) <= 2


@both
def test_groups_run_beside_one_another(kind: type, tally: Tally) -> None:
    actor = made(kind)
    refs = [actor.io.remote(tally, 7) for _ in range(2)]
    refs += [actor.compute.remote(tally, 7) for _ in range(4)]
    refs += [actor.default.remote(tally, 7)]
    assert skate.get(refs) == ["io"] * 2 + ["compute"] * 4 + ["default"]


@both
def test_a_full_group_holds_up_no_other(kind: type, gate: Gate, tally: Tally) -> None:
    actor = made(kind)
    waiting = [actor.io_gate.remote(gate, tally) for _ in range(5)]
    eventually(lambda: tally.count == 2)
    assert skate.get([actor.hello.remote() for _ in range(10)]) == ["hello"] * 10
    assert tally.count == 2
    gate.open()
    assert skate.get(waiting) == ["through"] * 5


def test_the_default_group_of_threads_is_one_at_a_time() -> None:
    actor = made(Threads)
    assert most_at_once(skate.get([actor.span.remote() for _ in range(8)])) == 1


def test_that_of_coroutines_is_a_thousand_at_once(tally: Tally) -> None:
    actor = made(Coroutines)
    assert skate.get([actor.default.remote(tally, 50) for _ in range(50)]) == ["default"] * 50


@both
def test_max_concurrency_is_of_the_default_group(kind: type, tally: Tally) -> None:
    actor = made(kind, max_concurrency=3)
    assert skate.get([actor.default.remote(tally, 3) for _ in range(3)]) == ["default"] * 3
    assert most_at_once(skate.get([actor.span.remote() for _ in range(9)])) <= 3
    assert most_at_once(skate.get([actor.io_span.remote() for _ in range(6)])) <= 2


@both
def test_a_call_may_go_to_another_group(kind: type, tally: Tally) -> None:
    actor = made(kind)
    four = [actor.io.options(concurrency_group="compute").remote(tally, 4) for _ in range(4)]
    assert skate.get(four) == ["io"] * 4
    two = [actor.default.options(concurrency_group="io").remote(tally, 6) for _ in range(2)]
    assert skate.get(two) == ["default"] * 2


@both
def test_without_options_it_goes_to_its_own(kind: type) -> None:
    actor = made(kind)
    assert most_at_once(skate.get([actor.io_span.options().remote() for _ in range(8)])) <= 2


@both
def test_a_full_group_moved_away_from(kind: type, gate: Gate, tally: Tally) -> None:
    actor = made(kind)
    waiting = [actor.io_gate.remote(gate, tally) for _ in range(2)]
    eventually(lambda: tally.count == 2)
    moved = actor.io.options(concurrency_group="compute").remote(tally, 3)
    assert skate.get(moved) == "io"
    gate.open()
    assert skate.get(waiting) == ["through"] * 2


@both
def test_calls_of_tasks_count_too(kind: type) -> None:
    @skate.remote
    def call(actor: object) -> list[tuple[float, float]]:
        return skate.get([actor.io_span.remote() for _ in range(4)])

    actor = made(kind)
    spans = skate.get([call.remote(actor) for _ in range(3)])
    assert most_at_once([span for group in spans for span in group]) <= 2


def test_handles_know_them_wherever_they_go(tally: Tally) -> None:
    @skate.remote
    def call(actor: object, tally: Tally) -> list[str]:
        return skate.get(
            [actor.default.options(concurrency_group="compute").remote(tally, 4) for _ in range(4)]
        )

    assert skate.get(call.remote(made(Threads), tally)) == ["default"] * 4


@pytest.mark.differs_from_ray("an AssertionError without a word")
@both
def test_a_group_of_the_decorator_that_is_not_there(kind: type) -> None:
    with pytest.raises(ValueError, match=r"compute|io"):
        skate.remote(concurrency_groups={"other": 1})(kind).remote()


@pytest.mark.differs_from_ray("the call crashes the actor's process")
@both
def test_a_group_of_a_call_that_is_not_there(kind: type) -> None:
    actor = made(kind)
    with pytest.raises(ValueError, match="nowhere"):
        skate.get(actor.hello.options(concurrency_group="nowhere").remote())
    assert skate.get(actor.hello.remote()) == "hello"


def test_they_are_said_where_the_class_is() -> None:
    with pytest.raises(ValueError, match="concurrency_groups"):
        skate.remote(Threads).options(concurrency_groups=GROUPS)


class Blocking:
    """An asyncio actor whose calls block their threads."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.made_in = threading.get_ident()

    async def default(self) -> int:
        self.gate.wait()
        return threading.get_ident()

    @skate.method(concurrency_group="io")
    async def io(self) -> int:
        self.gate.wait()
        return threading.get_ident()

    @skate.method(concurrency_group="compute")
    async def where(self) -> tuple[int, int]:
        await asyncio.sleep(0)
        return threading.get_ident(), self.made_in

    @skate.method(concurrency_group="compute")
    def plain(self) -> int:
        return threading.get_ident()

    @skate.method(concurrency_group="compute")
    async def values(self) -> AsyncIterator[int]:
        for value in range(3):
            await asyncio.sleep(0)
            yield value

    @skate.method(concurrency_group="compute")
    async def awaits(self, refs: list[skate.ObjectRef]) -> object:
        return await refs[0]

    @skate.method(concurrency_group="compute")
    async def leave(self) -> None:
        skate.actor.exit_actor()

    async def hello(self) -> str:
        return "hello"


class TestWhatBlocksItsLoop:
    """Each group of an asyncio actor has a thread and a loop, so none that blocks stops another."""

    def test_stops_no_other_group(self, gate: Gate) -> None:
        actor = skate.remote(concurrency_groups=GROUPS)(Blocking).options(num_cpus=0).remote(gate)
        blocked = [actor.default.remote(), actor.io.remote()]
        there, made_in = skate.get(actor.where.remote(), timeout=20)
        assert skate.get(actor.plain.remote(), timeout=20) == there
        assert list(map(skate.get, actor.values.remote())) == [0, 1, 2]
        assert skate.get(actor.awaits.remote([skate.put("put")]), timeout=20) == "put"
        assert skate.wait(blocked, num_returns=1, timeout=0)[0] == []
        gate.open()
        default, io = skate.get(blocked, timeout=20)
        assert len({default, io, there}) == 3
        assert default == made_in, "the instance is made in the thread of the default group"

    def test_ends_with_the_call_when_the_actor_leaves(self, gate: Gate) -> None:
        actor = skate.remote(concurrency_groups=GROUPS)(Blocking).options(num_cpus=0).remote(gate)
        blocked = actor.io.remote()
        assert skate.get(actor.hello.remote(), timeout=20) == "hello"
        left = actor.leave.remote()
        gate.open()
        with pytest.raises(ActorDiedError, match="exit_actor"):
            skate.get(left, timeout=20)
        skate.wait([blocked], timeout=20)
