"""What actors take of a node: 1 CPU to be placed and none to run if nothing is said, else exactly what is said."""

import os

import pytest
import skate

from .rendezvous import Gate, Tally, eventually, gone


class Base:
    def hello(self) -> str:
        return "hello"

    def pid(self) -> int:
        return os.getpid()

    def devices(self) -> tuple[list[int], str | None]:
        return skate.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES")

    def threads(self) -> str | None:
        return os.environ.get("OMP_NUM_THREADS")

    def assigned(self) -> dict[str, float]:
        return skate.get_runtime_context().get_assigned_resources()


Actor = skate.remote(Base)


@skate.remote
def hold(gate: Gate, tally: Tally | None = None) -> None:
    if tally:
        tally.add()
    gate.wait()


@skate.remote
def double(x: int) -> int:
    return 2 * x


def free(name: str = "CPU") -> float:
    return skate.available_resources().get(name, 0)


class TestDefault:
    def test_any_number_on_one_cpu(self, skate_start) -> None:
        skate_start(num_cpus=1)
        actors = [Actor.remote() for _ in range(12)]
        assert skate.get([actor.hello.remote() for actor in actors]) == ["hello"] * 12
        eventually(lambda: free() == 1)
        assert skate.get(double.remote(2)) == 4

    def test_they_run_while_no_cpu_is_free(self, skate_start, gate: Gate, tally: Tally) -> None:
        skate_start(num_cpus=1)
        actor = Actor.remote()
        skate.get(actor.hello.remote())
        busy = hold.remote(gate, tally)
        eventually(lambda: tally.count)
        assert skate.get(actor.hello.remote()) == "hello"
        gate.open()
        skate.get(busy)

    def test_they_are_placed_when_a_cpu_is_free(self, skate_start, gate: Gate, tally: Tally) -> None:
        skate_start(num_cpus=1)
        busy = hold.remote(gate, tally)
        eventually(lambda: tally.count)
        ref = Actor.remote().hello.remote()
        with pytest.raises(skate.exceptions.GetTimeoutError):
            skate.get(ref, timeout=0.2)
        gate.open()
        assert skate.get([busy, ref]) == [None, "hello"]

    def test_they_are_not_placed_where_there_is_no_cpu(self, skate_start, warned_of) -> None:
        skate_start(num_cpus=0)
        ref = Actor.remote().hello.remote()
        warned_of("CPU")
        assert skate.wait([ref], timeout=0) == ([], [ref])

    def test_they_start_tasks_and_wait_for_them(self, skate_start) -> None:
        class Boss:
            def sum(self, n: int) -> int:
                return sum(skate.get([double.remote(i) for i in range(n)]))

        skate_start(num_cpus=1)
        bosses = [skate.remote(Boss).remote() for _ in range(3)]
        assert skate.get([boss.sum.remote(4) for boss in bosses]) == [12] * 3

    def test_they_make_actors_and_wait_for_them(self, skate_start) -> None:
        class Parent:
            def __init__(self, depth: int) -> None:
                self.child = skate.remote(Parent).remote(depth - 1) if depth else None

            def depth(self) -> int:
                return 1 + (skate.get(self.child.depth.remote()) if self.child else 0)

        skate_start(num_cpus=1)
        assert skate.get(skate.remote(Parent).remote(3).depth.remote()) == 4

    def test_a_task_makes_them_and_waits_for_them(self, skate_start) -> None:
        @skate.remote
        def make() -> list[str]:
            return skate.get([Actor.remote().hello.remote() for _ in range(3)])

        skate_start(num_cpus=1)
        assert skate.get(make.remote()) == ["hello"] * 3

    def test_they_hold_nothing(self, skate_start) -> None:
        skate_start(num_cpus=1)
        assert not skate.get(Actor.remote().assigned.remote()).get("CPU")


class TestSaid:
    def test_held_while_it_lives(self, skate_start) -> None:
        skate_start(num_cpus=2)
        actor = Actor.options(num_cpus=1).remote()
        pid = skate.get(actor.pid.remote())
        assert skate.get(actor.assigned.remote()) == {"CPU": 1}
        eventually(lambda: free() == 1)
        del actor
        eventually(lambda: free() == 2)
        eventually(lambda: gone(pid))

    def test_none_of_a_cpu(self, skate_start, gate: Gate, tally: Tally) -> None:
        skate_start(num_cpus=1)
        busy = hold.remote(gate, tally)
        eventually(lambda: tally.count)
        actors = [Actor.options(num_cpus=0).remote() for _ in range(3)]
        assert skate.get([actor.hello.remote() for actor in actors]) == ["hello"] * 3
        gate.open()
        skate.get(busy)

    def test_the_next_waits_until_one_ends(self, skate_start) -> None:
        skate_start(num_cpus=2)
        first, second = (Actor.options(num_cpus=1).remote() for _ in range(2))
        skate.get([first.hello.remote(), second.hello.remote()])
        third = Actor.options(num_cpus=1).remote()
        ref = third.hello.remote()
        with pytest.raises(skate.exceptions.GetTimeoutError):
            skate.get(ref, timeout=0.1)
        del first
        assert skate.get(ref) == "hello"

    def test_the_next_waits_until_one_is_killed(self, skate_start) -> None:
        skate_start(num_cpus=1)
        first = Actor.options(num_cpus=1).remote()
        skate.get(first.hello.remote())
        second = Actor.options(num_cpus=1).remote()
        skate.kill(first)
        assert skate.get(second.hello.remote()) == "hello"

    def test_fractions(self, skate_start) -> None:
        skate_start(num_cpus=1)
        actors = [Actor.options(num_cpus=0.25).remote() for _ in range(4)]
        assert skate.get([actor.hello.remote() for actor in actors]) == ["hello"] * 4
        assert skate.get(actors[0].assigned.remote()) == {"CPU": 0.25}
        eventually(lambda: free() == 0)
        fifth = Actor.options(num_cpus=0.0001).remote().hello.remote()
        with pytest.raises(skate.exceptions.GetTimeoutError):
            skate.get(fifth, timeout=0.1)
        del actors
        assert skate.get(fifth) == "hello"

    def test_resources_of_ones_own(self, skate_start) -> None:
        skate_start(num_cpus=2, resources={"special": 2})
        actors = [Actor.options(num_cpus=0, resources={"special": 1}).remote() for _ in range(2)]
        skate.get([actor.hello.remote() for actor in actors])
        eventually(lambda: free("special") == 0)
        assert free() == 2
        del actors
        eventually(lambda: free("special") == 2)

    def test_one_cpu_with_something_else(self, skate_start) -> None:
        # As in Ray: who says anything but memory, and no num_cpus, holds one CPU as well.
        skate_start(num_cpus=2, num_gpus=1, resources={"special": 1})
        for options in ({"resources": {"special": 1}}, {"num_gpus": 1}):
            actor = Actor.options(**options).remote()
            assert skate.get(actor.assigned.remote())["CPU"] == 1
            eventually(lambda: free() == 1)
            del actor
            eventually(lambda: free() == 2)

    def test_memory(self, skate_start) -> None:
        skate_start(num_cpus=2)
        total = free("memory")
        actor = Actor.options(memory=100_000_000).remote()
        skate.get(actor.hello.remote())
        eventually(lambda: free("memory") == total - 100_000_000)
        del actor
        eventually(lambda: free("memory") == total)

    def test_beside_tasks(self, skate_start) -> None:
        skate_start(num_cpus=2)
        actor = Actor.options(num_cpus=1).remote()
        skate.get(actor.hello.remote())
        assert skate.get([double.remote(i) for i in range(20)]) == [2 * i for i in range(20)]
        assert skate.get(actor.hello.remote()) == "hello"

    def test_idle_tasks_workers_make_room(self, skate_start) -> None:
        skate_start(num_cpus=2)
        skate.get([double.remote(i) for i in range(20)])
        actors = [Actor.options(num_cpus=1).remote() for _ in range(2)]
        assert skate.get([actor.hello.remote() for actor in actors]) == ["hello"] * 2

    def test_restarted_it_holds_the_same(self, skate_start) -> None:
        skate_start(num_cpus=2, num_gpus=2)
        options = {"num_cpus": 1, "num_gpus": 1, "max_restarts": 1, "max_task_retries": -1}
        actor = Actor.options(**options).remote()
        pid = skate.get(actor.pid.remote())
        os.kill(pid, 9)
        eventually(lambda: gone(pid))
        assert skate.get(actor.assigned.remote()) == {"CPU": 1, "GPU": 1}
        ids, visible = skate.get(actor.devices.remote())
        assert len(ids) == 1
        assert visible == str(ids[0])
        eventually(lambda: (free(), free("GPU")) == (1, 1))

    def test_threads_follow_num_cpus(self, skate_start, monkeypatch) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        skate_start(num_cpus=2)
        assert skate.get(Actor.options(num_cpus=2).remote().threads.remote()) == "2"


class TestGpus:
    def test_each_its_own(self, skate_start) -> None:
        skate_start(num_cpus=2, num_gpus=2)
        actors = [Actor.options(num_cpus=0, num_gpus=1).remote() for _ in range(2)]
        found = skate.get([actor.devices.remote() for actor in actors])
        assert sorted(ids for ids, _ in found) == [[0], [1]]
        assert all(visible == str(ids[0]) for ids, visible in found)
        assert skate.get([actor.devices.remote() for actor in actors]) == found

    def test_several_of_one(self, skate_start) -> None:
        skate_start(num_cpus=2, num_gpus=3)
        ids, visible = skate.get(Actor.options(num_cpus=0, num_gpus=3).remote().devices.remote())
        assert ids == [0, 1, 2]
        assert visible == "0,1,2"

    def test_halves_share_one(self, skate_start) -> None:
        skate_start(num_cpus=2, num_gpus=2)
        actors = [Actor.options(num_cpus=0, num_gpus=0.5).remote() for _ in range(4)]
        found = skate.get([actor.devices.remote() for actor in actors])
        assert sorted(ids for ids, _ in found) == [[0], [0], [1], [1]]

    def test_free_again_with_its_end(self, skate_start) -> None:
        skate_start(num_cpus=2, num_gpus=1)
        for _ in range(3):
            actor = Actor.options(num_cpus=0, num_gpus=1).remote()
            assert skate.get(actor.devices.remote()) == ([0], "0")
            del actor

    def test_none_for_who_says_none(self, skate_start) -> None:
        skate_start(num_cpus=2, num_gpus=1)
        assert skate.get(Actor.remote().devices.remote())[0] == []

    def test_not_shared_with_tasks(self, skate_start) -> None:
        @skate.remote(num_gpus=1, num_cpus=0)
        def devices() -> list[int]:
            return skate.get_gpu_ids()

        skate_start(num_cpus=2, num_gpus=2)
        actor = Actor.options(num_cpus=0, num_gpus=1).remote()
        ((mine,), _) = skate.get(actor.devices.remote())
        assert skate.get([devices.remote() for _ in range(3)]) == [[1 - mine]] * 3

    def test_more_than_one_must_be_whole(self, skate_start) -> None:
        skate_start(num_cpus=1, num_gpus=2)
        with pytest.raises(ValueError, match=r"1\.5"):
            Actor.options(num_gpus=1.5).remote()


class TestWhatNoNodeHas:
    def test_waits_and_warns(self, skate_start, warned_of) -> None:
        skate_start(num_cpus=2)
        actor = Actor.options(resources={"unobtainium": 1}).remote()
        ref = actor.hello.remote()
        warned_of("unobtainium")
        assert skate.wait([ref], timeout=0) == ([], [ref])

    def test_no_longer_once_it_is_killed(self, skate_start, warned_of) -> None:
        skate_start(num_cpus=2)
        actor = Actor.options(num_cpus=64).remote()
        ref = actor.hello.remote()
        warned_of("64")
        skate.kill(actor)
        with pytest.raises(skate.exceptions.ActorDiedError):
            skate.get(ref)
