"""What a process remembers is bounded by what is under way: each entry of a table leaves at some time.

The kind: somebody stops waiting, or something ends, and a table keeps its row until an unrelated thing happens. So rows
are counted, after many have come and gone; not bytes.
"""

import asyncio
import concurrent.futures as futures
import gc
from collections import deque
from weakref import WeakValueDictionary

import pytest
import skate
from skate._c.refs import Waiter
from skate.exceptions import ActorDiedError, GetTimeoutError
from skate.runtime import current
from skate.util import as_completed, map_unordered
from skate.util.placement_group import placement_group, remove_placement_group

from .rendezvous import Gate, eventually

pytestmark = pytest.mark.usefixtures("cpu2")

MANY = 300
#: the last ones are remembered, up to a limit
MEMORIES = {"references._dead", "actors._killed"}


@skate.remote
def wait_for(gate: Gate) -> None:
    gate.wait()


@skate.remote
def identity(value: object) -> object:
    return value


@skate.remote(num_cpus=0)
class Actor:
    def __init__(self, *_: object) -> None: ...

    def call(self, *_: object) -> int:
        return 1

    def leave(self) -> None:
        skate.actor.exit_actor()


def waiters(ref: skate.ObjectRef) -> int:
    found = ref.entry.waiters
    return 0 if found is None else 1 if type(found) is Waiter else len(found)


class TestWaiters:
    """Whoever stops waiting for a pending ref is forgotten at once."""

    def test_of_get_and_wait(self, gate: Gate) -> None:
        ref = wait_for.remote(gate)
        for _ in range(MANY):
            skate.wait([ref], timeout=0.0001)
            with pytest.raises(GetTimeoutError):
                skate.get(ref, timeout=0)
        assert waiters(ref) == 0
        gate.open()

    def test_of_awaiting(self, gate: Gate) -> None:
        ref = wait_for.remote(gate)

        async def give_up() -> None:
            for _ in range(MANY):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asyncio.ensure_future(ref), 0.0001)
                await asyncio.wait([ref], timeout=0.0001)
                task = asyncio.ensure_future(ref)
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])

        asyncio.run(give_up())
        assert waiters(ref) == 0
        assert not current.runtime.objects.loops._known
        gate.open()

    def test_of_futures_that_are_dropped_or_cancelled(self, gate: Gate) -> None:
        ref = wait_for.remote(gate)

        async def give_up() -> None:
            for _ in range(MANY // 10):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asyncio.wrap_future(ref.future()), 0.0001)

        for _ in range(MANY):
            ref.future()
            with pytest.raises(futures.TimeoutError):
                ref.future().result(timeout=0)
            assert ref.future().cancel()
            pair = [ref.future(), ref.future()]
            futures.wait(pair, timeout=0)
            with pytest.raises(futures.TimeoutError):
                next(futures.as_completed(pair, timeout=0))
        asyncio.run(give_up())
        del pair
        gc.collect()
        assert waiters(ref) == 0
        gate.open()
        assert ref.future().result(timeout=20) is None

    def test_a_future_is_dropped_in_the_middle_of_a_step(self, gate: Gate) -> None:
        ref = wait_for.remote(gate)
        dropped = [ref.future()]
        assert waiters(ref) == 0  # nothing waits where only the value is wanted
        assert not dropped[0].running()
        with current.runtime.lock:
            dropped.clear()
            assert waiters(ref) == 1
        assert waiters(ref) == 0
        gate.open()

    def test_a_cancelled_future_is_done_for_everybody(self, gate: Gate) -> None:
        ref = wait_for.remote(gate)
        future, called = ref.future(), []
        future.add_done_callback(called.append)
        assert future.cancel()
        assert future.cancel()
        assert called == [future]
        assert futures.wait([future], timeout=20).done == {future}
        assert next(futures.as_completed([future], timeout=20)) is future
        with pytest.raises(futures.CancelledError):
            future.result()
        assert waiters(ref) == 0
        gate.open()
        skate.get(ref, timeout=20)
        kept = ref.future()
        assert kept.result(timeout=20) is None
        assert not kept.cancel()

    def test_a_future_with_callbacks_is_not_abandoned(self, gate: Gate) -> None:
        """Nobody holds it but what it is to call."""
        ref = wait_for.remote(gate)
        called: list[object] = []
        ref.future().add_done_callback(lambda future: called.append(future.result()))
        gc.collect()
        assert waiters(ref) == 1
        gate.open()
        eventually(lambda: called == [None])

    def test_of_iterators_that_are_abandoned(self, gate: Gate) -> None:
        ref, ready = wait_for.remote(gate), skate.put(1)
        for _ in range(MANY):
            assert next(as_completed([ref, ready], chunk_size=1)) == 1
        unfinished = map_unordered(wait_for, [gate] * 3, chunk_size=1, timeout=0.0001)
        begun = as_completed([ref, ready], chunk_size=1)
        next(begun)
        assert waiters(ref) == 1
        del begun, unfinished
        assert waiters(ref) == 0
        gate.open()

    def test_of_waiting_in_a_cluster(self, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where `wait` counts what is elsewhere once it is here."""
        runtime = current.runtime
        monkeypatch.setattr(runtime, "in_cluster", True)
        ref = wait_for.remote(gate)
        for _ in range(MANY):
            skate.wait([ref], timeout=0.0001)
        assert waiters(ref) == 0
        assert not runtime.objects._arrivals._coming
        gate.open()

    def test_of_calls_of_dead_actors(self, gate: Gate) -> None:
        ref = wait_for.remote(gate)
        actor = Actor.remote()
        skate.get(actor.call.remote())
        skate.kill(actor)
        for _ in range(MANY):
            with pytest.raises(ActorDiedError):
                skate.get(actor.call.remote(ref), timeout=20)
        killed = [Actor.remote(ref) for _ in range(10)]
        for each in killed:
            skate.kill(each)
        eventually(lambda: waiters(ref) == 0)
        gate.open()

    def test_a_ref_given_twice_counts_twice(self, gate: Gate) -> None:
        ref = wait_for.remote(gate)
        other = identity.remote(1)
        with pytest.raises(GetTimeoutError):
            skate.get([ref, ref, other, ref], timeout=0.01)
        gate.open()
        assert skate.get([ref, ref, other, ref], timeout=20) == [None, None, 1, None]

    def test_of_borrowers_that_ask_again(self, gate: Gate) -> None:
        ref = wait_for.remote(gate)

        @skate.remote
        def ask(box: list) -> None:
            for _ in range(20):
                skate.wait(box, timeout=0.0001)

        for _ in range(20):
            skate.get(ask.remote([ref]), timeout=20)
        assert waiters(ref) <= 1
        gate.open()
        skate.get(ref, timeout=20)
        assert not current.runtime.objects._askers


def rows() -> dict[str, int]:
    """How many entries each table of the driver has."""
    gc.collect()
    runtime = current.runtime
    owners = {
        "references": runtime.references,
        "objects": runtime.objects,
        "submission": runtime.submission,
        "actors": runtime.actors,
        "groups": runtime.groups,
        "copies": runtime.copies,
        "copies.machine": runtime.copies.machine,
        "calls": runtime.actors.calls,
        "dispatcher": runtime.dispatcher,
        "mailbox": runtime.mailbox,
        "runtime": runtime,
    }
    return {
        f"{owner}.{name}": len(table)
        for owner, machine in owners.items()
        for name in dir(machine)
        if isinstance(table := getattr(machine, name), (dict, set, list, deque, WeakValueDictionary))
    }


def assert_settles_at(before: dict[str, int], spare: int = 0) -> None:
    """Waits until no table has more entries than `before`, but for `spare`, and for MEMORIES."""

    def grown() -> dict[str, tuple[int, int]]:
        return {
            name: (before[name], now)
            for name, now in rows().items()
            if now > before[name] + spare and name not in MEMORIES
        }

    try:
        eventually(lambda: not grown())
    except AssertionError:
        raise AssertionError(f"tables that grew: {grown()}") from None


@skate.remote
def call_through(handle: object) -> int:
    return skate.get(handle.call.remote())


@skate.remote
def call_by_name(name: str) -> int:
    return skate.get(skate.get_actor(name).call.remote())


@skate.remote
def most_functions_known() -> int:
    """How many functions this worker knows."""
    return max(len(each.by_id) for each in gc.get_objects() if type(each).__name__ == "Functions")


class TestTables:
    def test_after_many_of_everything(self) -> None:
        def churn(many: int) -> None:
            for number in range(many):
                skate.get(identity.remote(skate.put([number])), timeout=20)
            actors = [Actor.remote() for _ in range(min(many, 4))]
            skate.get([actor.call.remote() for actor in actors], timeout=60)

        churn(3)
        before = rows()
        churn(MANY)
        assert_settles_at(before, spare=4)

    def test_after_actors_that_end_in_every_way(self) -> None:
        """With names and without; killed, left, dropped; called from here, from tasks, by handles that outlive them."""

        def churn(run: int) -> None:
            named = [Actor.options(name=f"{run} {number}").remote() for number in range(4)]
            actors = [*named, *(Actor.remote() for _ in range(3))]
            skate.get([actor.call.remote() for actor in actors], timeout=60)
            skate.get([call_through.remote(actor) for actor in actors[::3]], timeout=60)
            skate.get([call_by_name.remote(f"{run} {number}") for number in (1, 2)], timeout=60)
            found = [skate.get_actor(f"{run} {number}") for number in range(4)]
            skate.get([actor.call.remote() for actor in found], timeout=60)
            for actor in (found[0], found[1], actors[4]):
                skate.kill(actor)
                with pytest.raises(ActorDiedError):
                    skate.get(actor.call.remote(), timeout=20)
            for actor in (found[2], actors[5]):
                with pytest.raises(ActorDiedError):
                    skate.get(actor.leave.remote(), timeout=20)
            for _ in range(2):
                detached = Actor.options(
                    name=f"{run} detached", lifetime="detached", get_if_exists=True
                ).remote()
                skate.get(detached.call.remote(), timeout=20)
            skate.kill(detached)

        churn(0)
        eventually(lambda: not current.runtime.actors.calls.lines and not current.runtime.dispatcher.leases)
        before = rows()
        churn(1)
        assert_settles_at(before, spare=2)  # (of workers and leases there may be more for a while)
        assert not current.runtime.actors.calls.lines

    def test_after_many_scheduling_classes(self) -> None:
        """A class that no function, task or lease uses any more is forgotten."""
        dispatcher = current.runtime.dispatcher
        skate.get(identity.remote(0), timeout=20)
        before = rows()
        kept = identity.options(num_cpus=0.5)
        for _ in range(2):
            made = [identity.options(num_cpus=number / 1000).remote(number) for number in range(1, MANY)]
            made.append(identity.options(scheduling_strategy="SPREAD").remote(0))
            made.append(identity.options(runtime_env={"env_vars": {"LEFT": "1"}}).remote(0))
            made.append(kept.remote(0))
            skate.get(made, timeout=60)
            eventually(lambda: len(dispatcher.queues) <= before["dispatcher.queues"] + 1)
        del made
        assert_settles_at(before, spare=4)

    def test_after_many_functions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A worker forgets those that it was sent long ago; what it is asked again it is sent again."""
        exports = current.runtime.submission._exports
        monkeypatch.setattr(exports, "_most", 20)
        first = skate.remote(lambda: "first")
        assert skate.get(first.remote(), timeout=20) == "first"
        for number in range(MANY // 3):
            assert skate.get(skate.remote(lambda number=number: number).remote(), timeout=20) == number
        assert skate.get([first.remote() for _ in range(10)], timeout=20) == ["first"] * 10
        assert all(len(known) <= 20 for known in exports.known.values())
        assert max(skate.get([most_functions_known.remote() for _ in range(10)], timeout=20)) <= 22

    def test_after_waiting_for_a_group_again_and_again(self) -> None:
        group = placement_group([{"CPU": 1000}])
        before = rows()
        for _ in range(MANY):
            assert not skate.wait([group.ready()], timeout=0)[0]
        assert not group.wait(0.01)
        assert_settles_at(before, spare=2)
        remove_placement_group(group)
        assert_settles_at(before)
