"""Actors that die at awkward moments: what was answered is delivered, what was not is tried again or fails."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import skate
from api.rendezvous import Gate, eventually, gone
from skate.exceptions import ActorDiedError, ActorUnavailableError, WorkerCrashedError
from skate.runtime import current
from skate.util.placement_group import placement_group, remove_placement_group
from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy

pytestmark = [pytest.mark.timeout(60), pytest.mark.transport]


@pytest.fixture(scope="module", autouse=True)
def cpu2():
    skate.init(num_cpus=2)
    yield
    skate.shutdown()


@skate.remote
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count

    def pid(self) -> int:
        return os.getpid()

    def die(self) -> None:
        os._exit(3)

    def die_by_signal(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def items(self, number: int):
        yield from range(number)
        os._exit(3)


@pytest.mark.parametrize("die", ["die", "die_by_signal"])
@pytest.mark.parametrize("before", [1, 7, 300])
def test_what_was_answered_before_the_death_arrives(before: int, die: str) -> None:
    """The answers wait in the process for a moment, to leave together; its death does not lose them."""
    actor = Counter.remote()
    refs = [actor.add.remote() for _ in range(before)]
    dead = getattr(actor, die).remote()
    behind = [actor.add.remote() for _ in range(3)]
    assert skate.get(refs) == list(range(1, before + 1))
    for ref in (dead, *behind):
        with pytest.raises(ActorDiedError):
            skate.get(ref)


def test_what_was_yielded_before_the_death_arrives() -> None:
    actor = Counter.remote()
    values = []
    with pytest.raises(ActorDiedError):
        for ref in actor.items.remote(50):
            values.append(skate.get(ref))
    assert values == list(range(50))


@skate.remote(max_retries=0)
def answer() -> int:
    return 1


@skate.remote(max_retries=0)
def crash() -> None:
    os._exit(3)


def test_what_tasks_answered_before_a_worker_s_death_arrives() -> None:
    skate.get([answer.remote() for _ in range(100)])
    for _ in range(5):
        refs = [answer.remote() for _ in range(50)]
        dead = crash.remote()
        assert skate.get(refs) == [1] * 50
        with pytest.raises(WorkerCrashedError):
            skate.get(dead)


def test_a_restarted_actor_begins_anew() -> None:
    actor = Counter.options(max_restarts=1, max_task_retries=-1).remote()
    pid = skate.get(actor.pid.remote())
    assert skate.get([actor.add.remote() for _ in range(3)]) == [1, 2, 3]
    os.kill(pid, signal.SIGKILL)
    assert skate.get(actor.pid.remote()) != pid
    assert skate.get(actor.add.remote()) == 1


def test_killed_again_and_again_while_calls_are_pending() -> None:
    """Whatever is in flight when a process dies is tried again: each call has one answer, and the last life counts."""
    actor = Counter.options(max_restarts=-1, max_task_retries=-1).remote()
    for _ in range(5):
        pid = skate.get(actor.pid.remote())
        refs = [actor.add.remote() for _ in range(200)]
        os.kill(pid, signal.SIGKILL)
        counts = skate.get(refs)
        assert len(counts) == 200
        assert sorted(counts) != [], "every call has an answer"
    assert skate.get(actor.pid.remote()) != pid


def test_without_retries_a_call_in_flight_fails_as_unavailable() -> None:
    actor = Counter.options(max_restarts=1).remote()
    skate.get(actor.add.remote())
    with pytest.raises(ActorUnavailableError, match="status 3"):
        skate.get(actor.die.remote())
    eventually(lambda: _works(actor))
    with pytest.raises(ActorDiedError, match="status 3"):
        skate.get(actor.die.remote())


def _works(actor: object) -> bool:
    try:
        return skate.get(actor.add.remote()) > 0  # type: ignore[attr-defined]
    except ActorUnavailableError:
        return False


@contextmanager
def stopped_node() -> Iterator[None]:
    """The node manager hears of nothing meanwhile; afterwards of all at once, in whatever order it looks."""
    (node,) = (each for each in psutil.Process().children() if "skate.node" in " ".join(each.cmdline()))
    node.suspend()
    try:
        yield
    finally:
        node.resume()


def test_an_actor_that_leaves_is_not_taken_for_one_that_crashed(tmp_path: Path) -> None:
    @skate.remote(max_restarts=-1)
    class Leaves:
        def leave(self, entered: Gate, gate: Gate) -> None:
            entered.open()
            gate.wait()
            skate.actor.exit_actor()

        def pid(self) -> int:
            return os.getpid()

    entered, gate = Gate(tmp_path / "entered"), Gate(tmp_path / "gate")
    actor = Leaves.remote()
    pid = skate.get(actor.pid.remote())
    leaving = actor.leave.remote(entered, gate)
    entered.wait()
    with stopped_node():
        gate.open()
        eventually(lambda: gone(pid))
    with pytest.raises(ActorDiedError, match="exit_actor"):
        skate.get(leaving)
    with pytest.raises(ActorDiedError, match="exit_actor"):
        skate.get(actor.pid.remote())


def test_a_constructor_s_exception_is_heard_of_before_the_end_of_its_process(tmp_path: Path) -> None:
    @skate.remote(max_restarts=-1)
    class Fails:
        def __init__(self, entered: Gate, gate: Gate, done: Gate) -> None:
            entered.open()
            gate.wait()
            done.open()
            raise LookupError("no bread" + " at all" * 2_000)

        def pid(self) -> int:
            return os.getpid()

    entered, gate, done = (Gate(tmp_path / name) for name in ("entered", "gate", "done"))
    actor = Fails.remote(entered, gate, done)
    entered.wait()
    with stopped_node():
        gate.open()
        done.wait()
    with pytest.raises(ActorDiedError, match="LookupError: no bread at all") as caught:
        skate.get(actor.pid.remote())
    assert caught.value.actor_init_failed


@skate.remote
class Slow:
    def process(self) -> tuple[bytes, int]:
        assert current.runtime is not None
        return current.runtime.me, os.getppid()

    def large(self) -> np.ndarray:
        return np.zeros(200_000, np.uint8)

    def answer(self, gate: Gate) -> int:
        gate.wait()
        return 42


def test_an_actor_that_counts_as_dead_and_answers_once_more(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who uses an actor may hear of its end (here with its placement group) before its process is gone. What that says
    in its last moments comes from itself, on its own lane: nobody else is given that lane, and nothing is read twice.
    """
    runtime = current.runtime
    assert runtime is not None
    group = placement_group([{"CPU": 1}])
    strategy = PlacementGroupSchedulingStrategy(group)
    actor = Slow.options(num_cpus=1, scheduling_strategy=strategy).remote()
    process, zygote = skate.get(actor.process.remote())
    for _ in range(3):
        skate.get(actor.large.remote())  # answers that would tell if they came again
    call = actor.answer.remote(gate)
    heard: list[bytes] = []
    deliver = runtime.mailbox._deliver

    def overhear(sender: bytes, records: list) -> None:
        if sender != runtime.node:
            heard.extend([sender] * len(records))
        deliver(sender, records)

    os.kill(zygote, signal.SIGSTOP)  # so that it takes its time to kill the actor
    try:
        remove_placement_group(group)
        with pytest.raises(ActorDiedError):
            skate.get(call, timeout=30)
        monkeypatch.setattr(runtime.mailbox, "_deliver", overhear)
        gate.open()
        eventually(lambda: heard)
    finally:
        os.kill(zygote, signal.SIGCONT)
    eventually(lambda: runtime.references.has_died(process))
    assert heard == [process]
