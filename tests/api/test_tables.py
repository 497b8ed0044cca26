"""What a process remembers is bounded by what is under way: each entry of a table leaves at some time.

The kind: somebody stops waiting, or something ends, and a table keeps its row until an unrelated thing happens. So rows
are counted, after many have come and gone; not bytes.
"""

import asyncio
import gc

import pytest
import skate
from skate._c.refs import Waiter
from skate.exceptions import ActorDiedError, GetTimeoutError
from skate.runtime import current

from .rendezvous import Gate, eventually

pytestmark = pytest.mark.usefixtures("cpu2")

MANY = 300


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
        assert not current.runtime.objects._callbacks
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


class TestTables:
    def test_after_many_of_everything(self) -> None:
        runtime = current.runtime

        def rows() -> dict[str, int]:
            gc.collect()
            owners = {
                "references": runtime.references,
                "objects": runtime.objects,
                "submission": runtime.submission,
                "actors": runtime.actors,
                "calls": runtime.actors.calls,
                "dispatcher": runtime.dispatcher,
                "runtime": runtime,
            }
            return {
                f"{owner}.{name}": len(table)
                for owner, machine in owners.items()
                for name, table in vars(machine).items()
                if isinstance(table, (dict, set, list)) or name == "lines"
            }

        def churn(many: int) -> None:
            for number in range(many):
                skate.get(identity.remote(skate.put([number])), timeout=20)
            actors = [Actor.remote() for _ in range(min(many, 4))]
            skate.get([actor.call.remote() for actor in actors], timeout=60)

        churn(3)
        before = rows()
        churn(MANY)

        def grown() -> dict[str, tuple[int, int]]:
            return {name: (before[name], now) for name, now in rows().items() if now > before[name] + 4}

        try:
            eventually(lambda: not grown())
        except AssertionError:
            raise AssertionError(f"tables that grew: {grown()}") from None
