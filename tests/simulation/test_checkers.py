"""The checkers catch what they are there for: each test breaks something in the product, and some seed must notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("greenlet", reason="the simulator's programs block in greenlets: pip install skate[test]")

from simulator.scenario import run
from simulator.seams import is_compiled
from simulator.world import Failed
from skate.core.actors import ActorDirectory
from skate.core.admission import Admission
from skate.core.bundles import BundledResources
from skate.core.delivery import Incoming, Outgoing
from skate.core.dispatch import Dispatcher
from skate.core.references import References
from skate.runtime.submission import Submission

pytestmark = pytest.mark.skipif(
    is_compiled(), reason="compiled classes cannot be broken: see test_in_python.py"
)

SEEDS = range(60)


def caught(plan: str, *words: str) -> None:
    """Some seed fails with one of these words, and says how to run it again."""
    for seed in SEEDS:
        try:
            run(seed, plan=plan)
        except Failed as error:
            text = str(error)
            assert any(each in text for each in words), text
            assert f"python -m simulator {seed} --plan {plan}" in text
            return
    raise AssertionError(f"nobody has noticed in {len(SEEDS)} seeds")


def sometimes(monkeypatch: pytest.MonkeyPatch, of: type, method: str, instead: Callable[..., Any]) -> None:
    """`instead(number of the call, the method, self, arguments…)` stands for the method."""
    original = getattr(of, method)
    calls = iter(range(1, 1 << 60))
    monkeypatch.setattr(
        of, method, lambda self, *args, **named: instead(next(calls), original, self, *args, **named)
    )


def test_a_lease_that_is_lost_when_it_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    def returned(call: int, original: Any, self: Any, *args: Any) -> Any:
        return None if call % 7 == 0 else original(self, *args)

    sometimes(monkeypatch, Admission, "lease_returned", returned)
    caught("calm", "; leases: ")


def test_resources_that_are_not_released(monkeypatch: pytest.MonkeyPatch) -> None:
    def release(call: int, original: Any, self: Any, allocation: Any) -> None:
        if call % 5:
            original(self, allocation)

    sometimes(monkeypatch, BundledResources, "release", release)
    caught("calm", "the leases do not hold what is allocated")


def test_a_lease_that_is_granted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def granted(call: int, original: Any, self: Any, queue: Any, lease: int, worker: Any, now: float) -> Any:
        held = original(self, queue, lease, worker, now)
        return original(self, queue, lease, worker, now) if call % 5 == 0 else held

    sometimes(monkeypatch, Dispatcher, "lease_granted", granted)
    caught("calm", "dispatcher of")


def test_an_answer_that_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def done(call: int, original: Any, self: Any, *args: Any) -> None:
        if call % 50:
            original(self, *args)

    sometimes(monkeypatch, Submission, "_answered", done)
    caught("calm", "wait for ever", "; leases: ")


def test_frames_that_are_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that ends loses what is on its way."""

    def connected(self: Any) -> None:
        self._under_way.clear()
        self._bytes = 0

    monkeypatch.setattr(Outgoing, "on_connected", connected)
    caught("links", "are kept, of")


def test_frames_that_arrive_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def take(self: Any, number: int, size: int, now: float) -> bool:
        self._due = now
        self.number = max(self.number, number)
        return True

    monkeypatch.setattr(Incoming, "take", take)
    caught("links", "is not in the table")


def test_a_ref_that_is_never_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def dropped(call: int, original: Any, self: Any, entry: Any) -> None:
        if call % 20:
            original(self, entry)

    sometimes(monkeypatch, References, "on_dropped", dropped)
    caught("calm", "still knows")


def test_an_object_that_is_freed_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner forgets a borrower."""
    sometimes(monkeypatch, References, "on_borrower_added", lambda *_: None)
    caught("calm", "ReferenceCountingAssertionError")


def test_an_actor_that_lives_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is placed again when it is not dead."""

    def started(call: int, original: Any, self: Any, worker: Any, error: bytes) -> None:
        actor = self._workers.get(worker)
        original(self, worker, error)
        if actor is not None and call % 3 == 0:
            self.process_left(worker, {})

    sometimes(monkeypatch, ActorDirectory, "started", started)
    caught("calm", "lives in")


def test_bundles_that_a_removed_group_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BundledResources, "remove_group", lambda self, group: None)
    caught("calm", "wait for ever", "'bundle_group_")


def test_a_death_that_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def died(call: int, original: Any, self: Any, gone: Any, *fields: Any) -> None:
        if call % 3:
            original(self, gone, *fields)

    sometimes(monkeypatch, Submission, "worker_died", died)
    caught("workers", "wait for ever")


def test_what_nobody_expects_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product logs an exception that a message has raised, and goes on; here it counts."""

    def done(self: Any, *_: Any) -> None:
        raise RuntimeError("by the test")

    monkeypatch.setattr(Submission, "_tasks_returned", done)
    caught("calm", "could not be handled")
