"""Resources: what a node has, what a task takes, and that nothing ever runs over the limit."""

import os
import re
import time

import pytest
import skate

from .rendezvous import Gate, Tally, eventually, most_at_once


@skate.remote
def span(seconds: float = 0.05) -> tuple[float, float]:
    """When it ran."""
    start = time.monotonic()
    time.sleep(seconds)
    return start, time.monotonic()


@skate.remote
def meet(tally: Tally, parties: int) -> None:
    tally.meet(parties)


@skate.remote
def hold(gate: Gate) -> None:
    gate.wait()


@skate.remote
def devices() -> tuple[list[int], str | None]:
    return skate.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES")


@skate.remote
def devices_together(tally: Tally, parties: int) -> list[int]:
    tally.meet(parties)
    return skate.get_gpu_ids()


@skate.remote
def threads() -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


class TestTotals:
    def test_as_asked_for(self, skate_start) -> None:
        skate_start(num_cpus=3, num_gpus=2, resources={"special": 5, "label": 1}, object_store_memory=10**8)
        total = skate.cluster_resources()
        assert total["CPU"] == 3
        assert total["GPU"] == 2
        assert total["special"] == 5
        assert total["label"] == 1
        assert total["object_store_memory"] == 10**8
        assert skate.available_resources() == total

    def test_as_detected(self, skate_start, monkeypatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        skate_start(num_cpus=None)
        total = skate.cluster_resources()
        assert 1 <= total["CPU"] <= os.cpu_count()
        assert "GPU" not in total
        assert total["memory"] > 1_000_000
        assert total["object_store_memory"] > 1_000_000

    def test_nodes(self, skate_start) -> None:
        skate_start(num_cpus=2, resources={"special": 1})
        (node,) = skate.nodes()
        assert node["Alive"]
        assert node["Resources"]["CPU"] == 2
        assert node["Resources"]["special"] == 1
        assert node["NodeID"] == skate.get_runtime_context().get_node_id()

    def test_what_is_used_up_is_left_out(self, skate_start, gate: Gate) -> None:
        skate_start(num_cpus=2, resources={"special": 1})
        task = hold.options(num_cpus=0.5, resources={"special": 1}).remote(gate)
        eventually(lambda: "special" not in skate.available_resources())
        assert skate.available_resources()["CPU"] == 1.5
        assert skate.cluster_resources()["special"] == 1
        gate.open()
        skate.get(task)
        eventually(lambda: skate.available_resources() == skate.cluster_resources())

    @pytest.mark.parametrize("wrong", [{"num_cpus": -1}, {"resources": {"special": -1}}], ids=repr)
    def test_negative_ones_are_refused(self, skate_start, wrong: dict[str, object]) -> None:
        with pytest.raises(ValueError):
            skate_start(**wrong)
        assert not skate.is_initialized()


class TestLimits:
    """One runtime after another would be slow: each test looks at several requests."""

    @pytest.fixture(autouse=True)
    def start(self, skate_start) -> None:
        skate_start(num_cpus=2, num_gpus=1, resources={"special": 3})

    def test_never_over(self) -> None:
        for options, limit in [
            ({"num_cpus": 1}, 2),
            ({"num_cpus": 2}, 1),
            ({"num_cpus": 0.75}, 2),
            ({"num_cpus": 0, "num_gpus": 1}, 1),
            ({"num_cpus": 0, "resources": {"special": 2}}, 1),
        ]:
            spans = skate.get([span.options(**options).remote() for _ in range(6)])
            assert most_at_once(spans) <= limit, options

    def test_never_over_when_mixed(self) -> None:
        whole = [span.remote() for _ in range(6)]
        both = [span.options(num_cpus=2).remote() for _ in range(3)]
        halves = [span.options(num_cpus=0.5).remote() for _ in range(6)]
        weighted = [
            *((1.0, *when) for when in skate.get(whole)),
            *((2.0, *when) for when in skate.get(both)),
            *((0.5, *when) for when in skate.get(halves)),
        ]
        for _, moment, _ in weighted:
            assert sum(cpus for cpus, start, end in weighted if start <= moment < end) <= 2

    @pytest.mark.parametrize(
        ("options", "parties"),
        [
            ({"num_cpus": 1}, 2),
            ({"num_cpus": 0.5}, 4),
            ({"num_cpus": 0.3}, 6),
            ({"num_cpus": 0}, 5),
            ({"num_cpus": 0, "num_gpus": 0.25}, 4),
            ({"num_cpus": 0, "resources": {"special": 1}}, 3),
            ({"num_cpus": 0, "resources": {"special": 0.0001}}, 5),
        ],
        ids=repr,
    )
    def test_as_many_as_fit_run_together(self, options: dict, parties: int, tally: Tally) -> None:
        skate.get([meet.options(**options).remote(tally, parties) for _ in range(parties)], timeout=60)

    def test_no_cpu_needed_none_waited_for(self, gate: Gate) -> None:
        busy = [hold.remote(gate) for _ in range(2)]
        eventually(lambda: "CPU" not in skate.available_resources())
        skate.get(span.options(num_cpus=0).remote(), timeout=30)
        gate.open()
        skate.get(busy)

    def test_a_large_request_is_not_starved_by_small_ones(self) -> None:
        small = [span.options(num_cpus=0.5).remote(0.01) for _ in range(50)]
        large = span.options(num_cpus=2).remote()
        skate.get([large, *small], timeout=60)

    def test_zero_of_something_is_none_of_it(self) -> None:
        skate.get(span.options(resources={"missing": 0}, num_gpus=0).remote(), timeout=30)


class TestGpus:
    def test_ids_and_visible_devices(self, skate_start, tally: Tally) -> None:
        skate_start(num_cpus=4, num_gpus=2)
        assert skate.get_gpu_ids() == []
        assert skate.get(devices.remote())[0] == []

        ids, visible = skate.get(devices.options(num_gpus=2).remote())
        assert ids == [0, 1]
        assert visible == "0,1"

        ids, visible = skate.get(devices.options(num_gpus=1).remote())
        assert visible == ",".join(map(str, ids))

        together = [devices_together.options(num_gpus=1).remote(tally, 2) for _ in range(2)]
        assert sorted(skate.get(together)) == [[0], [1]]

    def test_fractions_pack_onto_one_device(self, skate_start, tally: Tally) -> None:
        skate_start(num_cpus=4, num_gpus=2)
        together = [devices_together.options(num_gpus=0.5).remote(tally, 4) for _ in range(4)]
        assert sorted(skate.get(together)) == [[0], [0], [1], [1]]

    def test_a_whole_one_and_halves_never_share(self, skate_start, tally: Tally) -> None:
        skate_start(num_cpus=4, num_gpus=2)
        amounts = [0.5, 1, 0.5]
        together = [devices_together.options(num_gpus=n).remote(tally, 3) for n in amounts]
        (half,), (whole,), (other_half,) = skate.get(together, timeout=60)
        assert half == other_half != whole

    @pytest.mark.parametrize(
        "options",
        [{"num_gpus": 1.5}, *({"resources": {name: 2.5}} for name in ("TPU", "neuron_cores", "HPU"))],
    )
    def test_more_than_one_must_be_whole(self, skate_start, options) -> None:
        """Of all that comes as devices. It is refused at the call, not where the function or class is defined."""
        task, actor = devices.options(**options), skate.remote(type("A", (), {})).options(**options)
        skate_start(num_cpus=1, num_gpus=2, resources={"TPU": 4, "mine": 4})
        for asked in (task, actor):
            with pytest.raises(ValueError, match=r"over 1 must be a whole number, got (1|2)\.5"):
                asked.remote()
        assert skate.get(devices.options(num_gpus=0, resources={"TPU": 0.5, "mine": 2.5}).remote())[0] == []

    def test_those_the_driver_may_see(self, skate_start, monkeypatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "uuid1,uuid2")
        skate_start(num_cpus=1, num_gpus=2)
        ids, visible = skate.get(devices.options(num_gpus=2).remote())
        assert sorted(ids) == ["uuid1", "uuid2"]
        assert visible == ",".join(ids)

    def test_what_a_process_saw_first_it_sees_for_ever(self, skate_start) -> None:
        """Libraries look for GPUs once. So a worker serves tasks and actors without GPUs, or those with the same."""
        skate_start(num_cpus=1, num_gpus=2)
        seen = skate.remote(max_calls=0)(lambda: (os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]))
        counts = [0, 1, 0, 0.5, 2, 0, 1, 0.5, 2]
        by_worker: dict[int, set[str]] = {}
        for num_gpus in counts:
            pid, visible = skate.get(seen.options(num_gpus=num_gpus).remote())
            assert bool(visible) == bool(num_gpus)
            by_worker.setdefault(pid, set()).add(visible)

        @skate.remote(num_gpus=1)
        class Actor:
            def seen(self) -> tuple[int, str]:
                return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]

        pid, visible = skate.get(Actor.remote().seen.remote())
        by_worker.setdefault(pid, set()).add(visible)
        assert all(len(visible) == 1 for visible in by_worker.values()), by_worker


class TestThreads:
    def test_follow_num_cpus(self, skate_start, monkeypatch) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        skate_start(num_cpus=3)
        for num_cpus, expected in [(1, "1"), (3, "3"), (0.5, "1"), (2, "2")]:
            assert skate.get(threads.options(num_cpus=num_cpus).remote()) == expected

    def test_unless_they_are_set(self, skate_start, monkeypatch) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        skate_start(num_cpus=2)
        assert skate.get(threads.remote()) == "7"


class TestWhatNoNodeHas:
    """It waits, in case a node comes that has it; but not in silence."""

    def test_waits_and_warns(self, skate_start, warned_of) -> None:
        skate_start(num_cpus=2)
        ref = span.options(resources={"unobtainium": 3}).remote()
        warned_of("unobtainium")
        assert skate.wait([ref], timeout=0) == ([], [ref])

    @pytest.mark.differs_from_ray("Ray names the demand only")
    def test_the_warning_says_what_there_is(self, skate_start, warned_of) -> None:
        skate_start(num_cpus=2)
        ref = span.options(num_cpus=64).remote()
        assert re.search(r"'CPU': 64\b.*'CPU': 2\b", warned_of("64"), re.DOTALL)
        del ref
