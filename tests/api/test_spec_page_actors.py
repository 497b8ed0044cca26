"""The actor examples of the page "Ray's core concepts": its code, only the import changed (see test_spec_page.py).

The page's programs are in spec_page/, word for word; what follows are its shorter pieces, in its order.
"""

import asyncio
import re
import subprocess
import sys
import time
from collections import Counter as Count
from collections.abc import Callable
from pathlib import Path

import pytest
import skate as ray

from .rendezvous import eventually

PROGRAMS = Path(__file__).parent / "spec_page"


def output_of(program: str) -> str:
    command = [sys.executable, str(PROGRAMS / f"{program}.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("program", "printed"),
    [
        ("counter", "0\n2\n"),
        ("in_order", "1\n3\n"),
        ("two_submitters", "3\n2\n"),
        ("async_counter", "3\n2\n"),
    ],
)
def test_program(program: str, printed: str) -> None:
    assert output_of(program) == printed


def test_messages_from_three_workers() -> None:
    lines = output_of("messages").splitlines()
    assert lines
    assert all(line.startswith("New messages: ['Message ") for line in lines)
    found = re.findall(r"Message (\d) from worker (\d)\.", "\n".join(lines))
    assert Count(found) == Count((str(i), str(worker)) for i in range(5) for worker in range(3))
    for worker in "012":  # each one's in the order it sent them
        assert [i for i, who in found if who == worker] == list("01234")


@pytest.fixture
def lines_of(captured) -> Callable[[str, int], list[str]]:
    """Waits until actors of a class have printed so many lines, and gives them in order, without the prefix."""

    def wait_for(class_name: str, count: int) -> list[str]:
        prefix = re.compile(rf"\({class_name} pid=\d+\) ")

        def lines() -> list[str]:
            return [prefix.sub("", line) for line in captured(1).splitlines() if prefix.match(line)]

        eventually(lambda: len(lines()) >= count)
        return lines()

    return wait_for


@ray.remote
class Counter:
    """The page's counter, with the methods that its pieces call."""

    def __init__(self):
        self.value = 0

    def increment(self):
        self.value += 1
        return self.value

    def get_counter(self):
        return self.value


class TestActors:
    def test_specifying_required_resources(self, skate_start) -> None:
        skate_start(num_cpus=2, num_gpus=1)

        # Specify required resources for an actor.
        @ray.remote(num_cpus=2, num_gpus=0.5)
        class Actor:
            def resources(self):
                return ray.get_runtime_context().get_assigned_resources()

        actor = Actor.remote()
        assert ray.get(actor.resources.remote()) == {"CPU": 2, "GPU": 0.5}

    def test_calling_the_actor(self, skate_start, capsys) -> None:
        skate_start()
        counter = Counter.remote()

        # Call the actor.
        obj_ref = counter.increment.remote()
        print(ray.get(obj_ref))

        assert capsys.readouterr().out == "1\n"

    def test_ten_counters(self, skate_start, capsys) -> None:
        skate_start()

        # Create ten Counter actors.
        counters = [Counter.remote() for _ in range(10)]

        # Increment each Counter once and get the results. These tasks all happen in
        # parallel.
        results = ray.get([c.increment.remote() for c in counters])
        print(results)

        # Increment the first Counter five times. These tasks are executed serially
        # and share state.
        results = ray.get([counters[0].increment.remote() for _ in range(5)])
        print(results)

        assert capsys.readouterr().out == "[1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n[2, 3, 4, 5, 6]\n"

    def test_passing_around_actor_handles(self, skate_start) -> None:
        skate_start(num_cpus=3)

        @ray.remote
        def f(counter):
            for _ in range(10):
                time.sleep(0.01)  # the page sleeps for 0.1 s
                counter.increment.remote()

        counter = Counter.remote()

        # Start some tasks that use the actor.
        [f.remote(counter) for _ in range(3)]

        # Print the counter value. (The page prints ten; here, until all have come.)
        seen = []
        eventually(lambda: seen.append(ray.get(counter.get_counter.remote())) or seen[-1] == 30)
        assert seen == sorted(seen)


class TestAsyncio:
    def test_async_actor(self, skate_start, lines_of) -> None:
        skate_start()

        @ray.remote
        class AsyncActor:
            # multiple invocation of this method can be running in
            # the event loop at the same time
            async def run_concurrent(self):
                print("started")
                await asyncio.sleep(0.3)  # concurrent workload here (for 2 s on the page)
                print("finished")

        actor = AsyncActor.remote()

        # regular ray.get
        ray.get([actor.run_concurrent.remote() for _ in range(4)])

        assert lines_of("AsyncActor", 8) == ["started"] * 4 + ["finished"] * 4

        # async ray.get
        async def async_get():
            await actor.run_concurrent.remote()

        asyncio.run(async_get())

        assert lines_of("AsyncActor", 10)[8:] == ["started", "finished"]

    def test_defining_an_async_actor(self, skate_start, lines_of) -> None:
        skate_start()

        @ray.remote
        class AsyncActor:
            async def run_task(self):
                print("started")
                await asyncio.sleep(0.3)  # Network, I/O task here (for 2 s on the page)
                print("ended")

        actor = AsyncActor.remote()
        # All 5 tasks should start at once. After 2 second they should all finish.
        # they should finish at the same time
        ray.get([actor.run_task.remote() for _ in range(5)])

        assert lines_of("AsyncActor", 10) == ["started"] * 5 + ["ended"] * 5

    def test_setting_concurrency(self, skate_start, lines_of) -> None:
        skate_start()

        @ray.remote
        class AsyncActor:
            async def run_task(self):
                print("started")
                await asyncio.sleep(0.1)  # Network, I/O task here (for 1 s on the page)
                print("ended")

        actor = AsyncActor.options(max_concurrency=2).remote()

        # Only 2 tasks will be running concurrently. Once 2 finish, the next 2 should run.
        ray.get([actor.run_task.remote() for _ in range(8)])

        lines = lines_of("AsyncActor", 16)
        assert Count(lines) == {"started": 8, "ended": 8}
        running = 0
        for line in lines:
            running += 1 if line == "started" else -1
            assert 0 <= running <= 2

    def test_threaded_actor(self, skate_start, lines_of) -> None:
        skate_start()

        @ray.remote
        class ThreadedActor:
            def task_1(self):
                print("I'm running in a thread!")

            def task_2(self):
                print("I'm running in another thread!")

        a = ThreadedActor.options(max_concurrency=2).remote()
        ray.get([a.task_1.remote(), a.task_2.remote()])

        assert sorted(lines_of("ThreadedActor", 2)) == [
            "I'm running in a thread!",
            "I'm running in another thread!",
        ]


class TestConcurrencyGroups:
    def test_defining_them(self, skate_start) -> None:
        skate_start()

        @ray.remote(concurrency_groups={"io": 2, "compute": 4})
        class AsyncIOActor:
            def __init__(self):
                pass

            @ray.method(concurrency_group="io")
            async def f1(self):
                pass

            @ray.method(concurrency_group="io")
            async def f2(self):
                pass

            @ray.method(concurrency_group="compute")
            async def f3(self):
                pass

            @ray.method(concurrency_group="compute")
            async def f4(self):
                pass

            async def f5(self):
                pass

        a = AsyncIOActor.remote()
        refs = [
            a.f1.remote(),  # executed in the "io" group.
            a.f2.remote(),  # executed in the "io" group.
            a.f3.remote(),  # executed in the "compute" group.
            a.f4.remote(),  # executed in the "compute" group.
            a.f5.remote(),  # executed in the default group.
            # Executed in the "io" group (as defined in the actor class).
            a.f2.options().remote(),
            # Executed in the "compute" group.
            a.f2.options(concurrency_group="compute").remote(),
        ]
        assert ray.get(refs) == [None] * 7

    def test_the_default_group(self, skate_start) -> None:
        skate_start()

        @ray.remote(concurrency_groups={"io": 2})
        class AsyncIOActor:
            async def f1(self):
                pass

        actor = AsyncIOActor.options(max_concurrency=10).remote()
        assert ray.get(actor.f1.remote()) is None


class TestObjects:
    def test_passing_objects_to_actors(self, skate_start) -> None:
        skate_start()

        @ray.remote
        class Actor:
            def __init__(self, arg):
                self.arg = arg

            def method(self, arg):
                return [type(self.arg), type(arg)]

        obj = ray.put(2)

        # Examples of passing objects to actor constructors.
        actor_handle = Actor.remote(obj)  # by-value
        assert ray.get(actor_handle.method.remote(obj)) == [int, int]
        actor_handle = Actor.remote([obj])  # by-reference
        assert ray.get(actor_handle.method.remote([obj])) == [list, list]


class TestScheduling:
    def test_default_and_zero_cpus(self, skate_start) -> None:
        skate_start()

        @ray.remote(num_cpus=1)
        class Actor:
            def ping(self):
                return ray.get_runtime_context().get_assigned_resources().get("CPU", 0)

        # If unspecified, "DEFAULT" scheduling strategy is used.
        actor = Actor.remote()
        assert ray.get(actor.ping.remote()) == 1
        # Explicitly set scheduling strategy to "DEFAULT".
        actor = Actor.options(scheduling_strategy="DEFAULT").remote()
        assert ray.get(actor.ping.remote()) == 1

        # Zero-CPU (and no other resources) actors are randomly assigned to nodes.
        actor = Actor.options(num_cpus=0).remote()
        assert ray.get(actor.ping.remote()) == 0

    def test_spread(self, skate_start) -> None:
        skate_start(num_cpus=10)

        @ray.remote(num_cpus=1)
        class SpreadActor:
            def ping(self):
                return 1

        # Spread actors across the cluster.
        actors = [SpreadActor.options(scheduling_strategy="SPREAD").remote() for _ in range(10)]
        assert ray.get([actor.ping.remote() for actor in actors]) == [1] * 10

    def test_node_affinity(self, skate_start) -> None:
        skate_start()

        @ray.remote(num_cpus=1)
        class NodeAffinityActor:
            def node(self):
                return ray.get_runtime_context().get_node_id()

        # Only run the actor on the local node.
        actor = NodeAffinityActor.options(
            scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                node_id=ray.get_runtime_context().get_node_id(),
                soft=False,
            )
        ).remote()
        assert ray.get(actor.node.remote()) == ray.get_runtime_context().get_node_id()


class TestResources:
    def test_overriding_the_default_requirements(self, skate_start) -> None:
        skate_start(num_cpus=1, num_gpus=1)

        @ray.remote(num_cpus=0, num_gpus=1)
        class Actor:
            def resources(self):
                return ray.get_runtime_context().get_assigned_resources()

        # You can override the default resource requirements for actors as well.
        actor = Actor.options(num_cpus=1, num_gpus=0).remote()
        assert ray.get(actor.resources.remote()) == {"CPU": 1}

    def test_two_actors_share_a_gpu(self, skate_start, lines_of) -> None:
        skate_start(num_cpus=3, num_gpus=4)

        @ray.remote(num_gpus=0.5)
        class IOActor:
            def ping(self):
                import os

                print(f"CUDA_VISIBLE_DEVICES: {os.environ['CUDA_VISIBLE_DEVICES']}")

        # Two actors can share the same GPU.
        io_actor1 = IOActor.remote()
        io_actor2 = IOActor.remote()
        ray.get(io_actor1.ping.remote())
        ray.get(io_actor2.ping.remote())
        # Output:
        # (IOActor pid=96328) CUDA_VISIBLE_DEVICES: 1
        # (IOActor pid=96329) CUDA_VISIBLE_DEVICES: 1

        first, second = lines_of("IOActor", 2)
        assert re.fullmatch(r"CUDA_VISIBLE_DEVICES: \d", first)
        assert first == second
