"""The task and object examples of the page "Ray's core concepts": its code, only the import changed.

`import skate as ray` is that change. Where a test waits less long than the page, a comment says so.
The page's programs are in spec_page/, word for word; what follows here are its shorter pieces, in its order.
"""

import asyncio
import concurrent.futures
import importlib
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import skate as ray

from .rendezvous import eventually

PROGRAMS = Path(__file__).parent / "spec_page"


@pytest.mark.parametrize(
    ("program", "printed"),
    [
        ("square", "The final result is: [0, 1, 4, 9]\n"),
        ("matrices", "Matrix multiplication completed. Result shape: (1000, 1000)\n"),
        ("sum_matrix", "Sum of small matrix: 10000.0\nSum of large matrix: 1000000.0\n"),
    ],
)
def test_program(program: str, printed: str) -> None:
    command = [sys.executable, str(PROGRAMS / f"{program}.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed


@pytest.fixture
def lines_until(captured) -> Callable[[int], list[str]]:
    """Waits until tasks have printed so many lines, and gives them without colours, sorted."""

    def wait_for(count: int) -> list[str]:
        def lines() -> list[str]:
            return [line for line in captured(1).splitlines() if " pid=" in line]

        eventually(lambda: len(lines()) >= count)
        return sorted(lines())

    return wait_for


class TestTasks:
    def test_specifying_required_resources(self, skate_start) -> None:
        skate_start(num_cpus=4, num_gpus=2)

        # Specify required resources.
        @ray.remote(num_cpus=4, num_gpus=2)
        def my_function():
            return 1

        # Override the default resource requirements.
        ref = my_function.options(num_cpus=3).remote()

        assert ray.get([ref, my_function.remote()]) == [1, 1]

    def test_passing_object_refs_to_tasks(self, skate_start) -> None:
        skate_start()

        @ray.remote
        def my_function():
            return 1

        @ray.remote
        def function_with_an_argument(value):
            return value + 1

        obj_ref1 = my_function.remote()
        assert ray.get(obj_ref1) == 1

        # You can pass an object ref as an argument to another Ray task.
        obj_ref2 = function_with_an_argument.remote(obj_ref1)
        assert ray.get(obj_ref2) == 2

    def test_waiting_for_partial_results(self, skate_start, gate) -> None:
        skate_start()

        @ray.remote
        def slow_function(second):
            if second:
                gate.wait()
            return second

        object_refs = [slow_function.remote(i) for i in range(2)]
        # Return as soon as one of the tasks finished execution.
        ready_refs, remaining_refs = ray.wait(object_refs, num_returns=1, timeout=None)

        assert ready_refs == object_refs[:1]
        assert remaining_refs == object_refs[1:]
        gate.open()

    def test_options_for_retries_and_events(self, skate_start) -> None:
        skate_start()

        @ray.remote(max_retries=1, retry_exceptions=True)
        def f():
            return 1

        refs = [
            f.options(max_retries=0, retry_exceptions=False).remote(),
            f.options(enable_task_events=False).remote(),
        ]
        assert ray.get(refs) == [1, 1]


class TestAsyncio:
    def test_object_refs_with_get_and_wait(self, skate_start) -> None:
        skate_start()

        @ray.remote
        def some_task():
            return 1

        ray.get(some_task.remote())
        ray.wait([some_task.remote()])

    @pytest.mark.differs_from_ray(
        "The page's example fails on Ray since Python 3.11: asyncio.wait wants futures"
    )
    def test_object_refs_as_asyncio_futures(self, skate_start) -> None:
        skate_start()

        @ray.remote
        def some_task():
            return 1

        async def await_obj_ref():
            await some_task.remote()
            await asyncio.wait([some_task.remote()])

        asyncio.run(await_obj_ref())

    def test_the_future_object_itself(self, skate_start, capsys) -> None:
        skate_start()

        @ray.remote
        def some_task():
            return 1

        async def convert_to_asyncio_future():
            ref = some_task.remote()
            fut: asyncio.Future = asyncio.wrap_future(ref.future())
            print(await fut)

        asyncio.run(convert_to_asyncio_future())

        assert capsys.readouterr().out == "1\n"

    def test_object_refs_as_concurrent_futures(self, skate_start, capsys) -> None:
        skate_start()

        @ray.remote
        def some_task():
            return 1

        refs = [some_task.remote() for _ in range(4)]
        futs = [ref.future() for ref in refs]
        for fut in concurrent.futures.as_completed(futs):
            assert fut.done()
            print(fut.result())

        assert capsys.readouterr().out == "1\n1\n1\n1\n"

    def test_asyncio_for_remote_tasks(self, skate_start) -> None:
        skate_start()

        with pytest.raises(ValueError, match="async def"):

            @ray.remote
            async def f():
                pass

            f.remote()

        async def f():
            pass

        @ray.remote
        def wrapper():
            import asyncio

            asyncio.run(f())

        assert ray.get(wrapper.remote()) is None


class TestObjects:
    def test_put(self, skate_start) -> None:
        skate_start()

        # Put an object in Ray's object store.
        y = 1
        object_ref = ray.put(y)

        assert ray.get(object_ref) == 1

    def test_fetching_object_data(self, skate_start, capsys) -> None:
        skate_start()

        # Get the value of one object ref.
        obj_ref = ray.put(1)
        assert ray.get(obj_ref) == 1

        # Get the values of multiple object refs in parallel.
        assert ray.get([ray.put(i) for i in range(3)]) == [0, 1, 2]

        # You can also set a timeout to return early from a ``get``
        # that's blocking for too long.
        GetTimeoutError = importlib.import_module(f"{ray.__name__}.exceptions").GetTimeoutError
        # ``GetTimeoutError`` is a subclass of ``TimeoutError``.

        @ray.remote
        def long_running_function():
            time.sleep(8)

        obj_ref = long_running_function.remote()
        try:
            ray.get(obj_ref, timeout=0.4)  # the page waits for 4 s
        except GetTimeoutError:  # You can capture the standard "TimeoutError" instead
            print("`get` timed out.")

        assert capsys.readouterr().out == "`get` timed out.\n"

    def test_passing_objects_as_top_level_arguments(self, skate_start, lines_until) -> None:
        skate_start()

        @ray.remote
        def echo(a: int, b: int, c: int):
            """This function prints its input values to stdout."""
            print(a, b, c)

        # Passing the literal values (1, 2, 3) to `echo`.
        echo.remote(1, 2, 3)
        # -> prints "1 2 3"

        [line] = lines_until(1)
        assert re.fullmatch(r"\(echo pid=\d+\) 1 2 3", line)

        # Put the values (1, 2, 3) into Ray's object store.
        a, b, c = ray.put(1), ray.put(2), ray.put(3)

        # Passing an object as a top-level argument to `echo`. Ray will de-reference top-level
        # arguments, so `echo` will see the literal values (1, 2, 3) in this case as well.
        echo.remote(a, b, c)
        # -> prints "1 2 3"

        for line in lines_until(2):
            assert re.match(r"\(echo pid=\d+\) 1 2 3", line)

    def test_passing_objects_as_nested_arguments(self, skate_start, lines_until) -> None:
        skate_start()

        @ray.remote
        def echo_and_get(x_list):  # List[ObjectRef]
            """This function prints its input values to stdout."""
            print("args:", x_list)
            print("values:", ray.get(x_list))

        # Put the values (1, 2, 3) into Ray's object store.
        a, b, c = ray.put(1), ray.put(2), ray.put(3)

        # Passing an object as a nested argument to `echo_and_get`. Ray does not
        # de-reference nested args, so `echo_and_get` sees the references.
        echo_and_get.remote([a, b, c])
        # -> prints args: [ObjectRef(...), ObjectRef(...), ObjectRef(...)]
        #           values: [1, 2, 3]

        args, values = lines_until(2)
        assert re.fullmatch(r"\(echo_and_get pid=\d+\) args: \[(ObjectRef\(\w+\)(, )?){3}\]", args)
        assert re.fullmatch(r"\(echo_and_get pid=\d+\) values: \[1, 2, 3\]", values)

    def test_closure_capture_of_objects(self, skate_start, lines_until) -> None:
        skate_start()

        # Put the values (1, 2, 3) into Ray's object store.
        a, b, c = ray.put(1), ray.put(2), ray.put(3)

        @ray.remote
        def print_via_capture():
            """This function prints the values of (a, b, c) to stdout."""
            print(ray.get([a, b, c]))

        # Passing object references via closure-capture. Inside the `print_via_capture`
        # function, the global object refs (a, b, c) can be retrieved and printed.
        print_via_capture.remote()
        # -> prints [1, 2, 3]

        [line] = lines_until(1)
        assert re.fullmatch(r"\(print_via_capture pid=\d+\) \[1, 2, 3\]", line)


class TestScheduling:
    def test_default_and_spread(self, skate_start) -> None:
        skate_start()

        @ray.remote
        def func():
            return 1

        # If unspecified, "DEFAULT" scheduling strategy is used.
        unspecified = func.remote()
        # Explicitly set scheduling strategy to "DEFAULT".
        default = func.options(scheduling_strategy="DEFAULT").remote()

        @ray.remote(scheduling_strategy="SPREAD")
        def spread_func():
            return 2

        # Spread tasks across the cluster.
        spread = [spread_func.remote() for _ in range(10)]

        assert ray.get([unspecified, default, *spread]) == [1, 1] + [2] * 10

    def test_node_affinity(self, skate_start) -> None:
        skate_start()

        @ray.remote
        def node_affinity_func():
            return ray.get_runtime_context().get_node_id()

        # Only run the task on the local node.
        hard = node_affinity_func.options(
            scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                node_id=ray.get_runtime_context().get_node_id(),
                soft=False,
            )
        ).remote()

        # Run the two node_affinity_func tasks on the same node if possible.
        soft = node_affinity_func.options(
            scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                node_id=ray.get(node_affinity_func.remote()),
                soft=True,
            )
        ).remote()

        assert ray.get([hard, soft]) == [ray.get_runtime_context().get_node_id()] * 2

    def test_locality(self, skate_start) -> None:
        skate_start()

        @ray.remote
        def large_object_func():
            # Large object is stored in the local object store
            # and available in the distributed memory,
            # instead of returning inline directly to the caller.
            return [1] * (1024 * 1024)

        @ray.remote
        def small_object_func():
            # Small object is returned inline directly to the caller,
            # instead of storing in the distributed memory.
            return [1]

        @ray.remote
        def consume_func(data):
            return len(data)

        large_object = large_object_func.remote()
        small_object = small_object_func.remote()

        # Ray will try to run consume_func on the same node
        # where large_object_func runs.
        near = consume_func.remote(large_object)

        # Ray will try to spread consume_func across the entire cluster
        # instead of only running on the node where large_object_func runs.
        spread = [consume_func.options(scheduling_strategy="SPREAD").remote(large_object) for i in range(10)]

        # Ray won't consider locality for scheduling consume_func
        # since the argument is small and will be sent to the worker node inline directly.
        small = consume_func.remote(small_object)

        assert ray.get([near, *spread, small]) == [1024 * 1024] * 11 + [1]


class TestResources:
    def test_specifying_node_and_task_resources(self, skate_start) -> None:
        # This will start a Ray node with 3 logical cpus, 4 logical gpus,
        # 1 special_hardware resource and 1 custom_label resource.
        skate_start(num_cpus=3, num_gpus=4, resources={"special_hardware": 1, "custom_label": 1})

        # Specify the default resource requirements for this remote function.
        @ray.remote(num_cpus=2, num_gpus=2, resources={"special_hardware": 1})
        def func():
            return 1

        # You can override the default resource requirements.
        overridden = func.options(num_cpus=3, num_gpus=1, resources={"special_hardware": 0}).remote()

        @ray.remote(resources={"custom_label": 0.001})
        def labelled():
            return 2

        assert ray.get([func.remote(), overridden, labelled.remote()]) == [1, 1, 2]
        assert ray.cluster_resources()["CPU"] == 3

    def test_fractional_resource_requirements(self, skate_start) -> None:
        skate_start(num_cpus=1)

        @ray.remote(num_cpus=0.5)
        def io_bound_task():
            import time

            time.sleep(0.2)  # the page sleeps for 1 s
            return 2

        io_bound_task.remote()

        assert ray.get([io_bound_task.remote(), io_bound_task.remote()]) == [2, 2]

    def test_more_than_one_gpu_must_be_whole(self, skate_start) -> None:
        skate_start(num_cpus=1, num_gpus=4)
        with pytest.raises(ValueError, match=r"1\.5"):
            ray.remote(num_gpus=1.5)(lambda: None).remote()
