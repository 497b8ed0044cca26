"""Who runs when: nothing over the limit, no short task behind a long one, everybody in turn."""

from __future__ import annotations

import time

import pytest
import skate
from api.rendezvous import Gate, eventually, most_at_once

pytestmark = pytest.mark.timeout(60)


@skate.remote
def span(seconds: float = 0.0) -> tuple[float, float]:
    """(when it began, when it ended): clocks of one machine agree."""
    start = time.monotonic()
    if seconds:
        time.sleep(seconds)
    return start, time.monotonic()


@skate.remote
def sometimes_long(i: int) -> tuple[float, float]:
    start = time.monotonic()
    if i % 100 == 99:
        time.sleep(0.5)
    return start, time.monotonic()


class TestShortTasks:
    @pytest.mark.parametrize("warm", [True, False], ids=["measured", "unknown"])
    @pytest.mark.parametrize("first", ["long", "short"])
    def test_never_stay_behind_a_long_one(self, skate_start, first: str, warm: bool) -> None:
        skate_start(num_cpus=2)
        if warm:
            skate.get([span.remote() for _ in range(200)])
        started = time.monotonic()
        short = [span.remote() for _ in range(500)] if first == "short" else []
        long = span.remote(2.0)
        short += [span.remote() for _ in range(1_000 - len(short))]
        skate.get(short, timeout=30)
        assert time.monotonic() - started < 1.7
        assert skate.wait([long], timeout=0) == ([], [long])
        skate.get(long)

    def test_of_a_function_that_is_sometimes_long(self, skate_start) -> None:
        """1,000 calls, ten of them 0.5 s: on two workers 2.5 s at best. None waits for more than the long ones cost."""
        skate_start(num_cpus=2)
        skate.get([sometimes_long.remote(0) for _ in range(200)])
        started = time.monotonic()
        spans = skate.get([sometimes_long.remote(i) for i in range(1_000)], timeout=40)
        assert time.monotonic() - started < 4.5
        assert most_at_once([each for each in spans if each[1] - each[0] > 0.1]) == 2

    def test_one_long_call_holds_up_nothing_but_itself(self, skate_start, gate: Gate) -> None:
        @skate.remote
        def maybe_hold(gate: Gate | None) -> None:
            if gate is not None:
                gate.wait()

        skate_start(num_cpus=2)
        skate.get([maybe_hold.remote(None) for _ in range(200)])
        refs = [maybe_hold.remote(gate if i == 100 else None) for i in range(1_000)]
        held = refs.pop(100)
        skate.get(refs, timeout=20)
        gate.open()
        skate.get(held)


class TestTheLimit:
    @pytest.mark.parametrize(
        ("options", "most"),
        [
            ({}, 2),
            ({"num_cpus": 2}, 1),
            ({"num_cpus": 0.5}, 4),
            ({"num_cpus": 0.3}, 6),
            ({"num_cpus": 0, "resources": {"licence": 1}}, 3),
            ({"num_cpus": 0.1, "resources": {"licence": 0.75}}, 4),
            ({"num_gpus": 0.5, "num_cpus": 0}, 2),
        ],
        ids=str,
    )
    def test_is_reached_and_not_passed(self, skate_start, options: dict, most: int) -> None:
        skate_start(num_cpus=2, num_gpus=1, resources={"licence": 3})
        spans = skate.get([span.options(**options).remote(0.02) for _ in range(10 * most)], timeout=30)
        assert most_at_once(spans) == most

    def test_holds_for_different_demands_together(self, skate_start) -> None:
        skate_start(num_cpus=2)
        demands = [0.25, 0.5, 1, 1.5, 2]
        refs = [(demand, span.options(num_cpus=demand).remote(0.01)) for _ in range(20) for demand in demands]
        runs = [(demand, *skate.get(ref, timeout=30)) for demand, ref in refs]
        for _, moment, _ in runs:
            assert sum(demand for demand, start, end in runs if start <= moment < end) <= 2

    def test_is_none_for_tasks_that_need_nothing(self, skate_start, gate: Gate, tally) -> None:
        """All of them run at once, while the CPU is taken."""

        @skate.remote
        def hold(gate: Gate) -> None:
            gate.wait()

        @skate.remote(num_cpus=0)
        def meet(tally, parties: int) -> None:
            tally.meet(parties)

        skate_start(num_cpus=1)
        held = hold.remote(gate)
        skate.get([meet.remote(tally, 8) for _ in range(8)], timeout=30)
        gate.open()
        skate.get(held)

    def test_holds_for_nested_tasks_too(self, skate_start) -> None:
        @skate.remote
        def branch() -> list[tuple[float, float]]:
            spans = skate.get([span.remote(0.005) for _ in range(5)])
            return [*spans, skate.get(span.remote(0.005))]

        skate_start(num_cpus=2)
        spans = [
            each for spans in skate.get([branch.remote() for _ in range(20)], timeout=40) for each in spans
        ]
        assert len(spans) == 120
        assert most_at_once(spans) <= 2


class TestTurns:
    def test_a_driver_is_not_starved_by_a_task_that_keeps_submitting(self, skate_start, gate: Gate) -> None:
        """What is nested deeper goes first, but not for ever."""

        @skate.remote(num_cpus=0)
        def submit(gate: Gate) -> int:
            submitted = 0
            while not gate.is_open:
                skate.get([span.remote(0.005) for _ in range(20)])
                submitted += 20
            return submitted

        skate_start(num_cpus=1)
        nested = submit.remote(gate)
        eventually(lambda: skate.available_resources().get("CPU", 0) == 0)
        assert len(skate.get([span.remote(0.005) for _ in range(5)], timeout=10)) == 5
        gate.open()
        assert skate.get(nested) > 0

    def test_owners_at_the_same_depth_share_alike(self, skate_start) -> None:
        @skate.remote(num_cpus=0)
        def submit() -> list[tuple[float, float]]:
            return sorted(skate.get([span.remote(0.005) for _ in range(100)]))

        skate_start(num_cpus=1)
        spans = skate.get([submit.remote(), submit.remote()], timeout=40)
        for mine, other in (spans, reversed(spans)):
            assert sum(start < other[-1][1] for start, _ in mine) > 50

    def test_classes_of_one_owner_take_turns(self, skate_start) -> None:
        """What asks for other resources is not left behind by a long queue."""
        skate_start(num_cpus=1)
        many = [span.remote(0.005) for _ in range(400)]
        other = span.options(num_cpus=0.5).remote()
        skate.wait([other], timeout=20)
        assert len(skate.wait(many, num_returns=len(many), timeout=0)[1]) > 100
        skate.get([*many, other], timeout=40)
