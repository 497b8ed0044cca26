"""init and shutdown: once, twice, not at all; and the program around them."""

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import skate


@skate.remote
def add(a: int, b: int) -> int:
    return a + b


@pytest.fixture
def run_program(tmp_path: Path) -> Callable[[str], str]:
    """Runs a program of its own, and gives what it printed on stdout."""

    def run(source: str) -> str:
        script = tmp_path / "program.py"
        script.write_text(textwrap.dedent(source))
        done = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, timeout=60, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


class TestInit:
    def test_starts_a_runtime(self, skate_start) -> None:
        assert not skate.is_initialized()
        skate_start(num_cpus=1)
        assert skate.is_initialized()
        assert skate.get(add.remote(1, 2)) == 3

    def test_twice_is_an_error(self, skate_start) -> None:
        skate_start(num_cpus=1)
        with pytest.raises(RuntimeError, match="ignore_reinit_error"):
            skate.init(num_cpus=1)
        assert skate.get(add.remote(1, 2)) == 3

    def test_unless_that_is_fine(self, skate_start) -> None:
        skate_start(num_cpus=1)
        skate.init(num_cpus=8, ignore_reinit_error=True)
        assert skate.cluster_resources()["CPU"] == 1

    def test_takes_what_ray_takes(self, skate_start) -> None:
        skate_start(
            num_cpus=1,
            address="local",
            include_dashboard=False,
            dashboard_host="127.0.0.1",
            dashboard_port=8265,
            configure_logging=True,
            logging_level="warning",
            labels={"zone": "here"},
            runtime_env={},
            _temp_dir=None,
        )
        assert skate.get(add.remote(1, 2)) == 3

    def test_refuses_what_it_does_not_know(self, skate_start) -> None:
        with pytest.raises(RuntimeError, match=r"'num_cpu'.*Did you mean 'num_cpus'\?"):
            skate_start(num_cpus=1, num_cpu=1)

    def test_a_variable_that_is_empty_is_not_set(self, skate_start, monkeypatch: pytest.MonkeyPatch) -> None:
        """Shells and compose files set variables to nothing."""
        for name in (
            "SKATE_ADDRESS",
            "RAY_ADDRESS",
            "SKATE_SPILL_DIR",
            "SKATE_LANES",
            "SKATE_CLUSTER_KEY",
            "SKATE_CLUSTER_KEY_FILE",
            "SKATE_scheduler_spread_threshold",
            "RAY_scheduler_top_k_absolute",
        ):
            monkeypatch.setenv(name, "")
        skate_start(num_cpus=1)
        assert skate.get(add.remote(1, 2)) == 3

    def test_is_a_context_too(self, skate_start) -> None:
        with skate_start(num_cpus=1):
            assert skate.get(add.remote(1, 2)) == 3
        assert not skate.is_initialized()

    def test_tells_where_it_is(self, skate_start) -> None:
        context = skate_start(num_cpus=1)
        assert context.address_info["node_id"] == skate.get_runtime_context().get_node_id()


class TestNamespaces:
    def test_as_given(self, skate_start) -> None:
        skate_start(num_cpus=1, namespace="mine")
        assert skate.get_runtime_context().namespace == "mine"

    def test_each_session_has_its_own_otherwise(self, skate_start) -> None:
        seen = set()
        for _ in range(2):
            skate_start(num_cpus=1)
            seen.add(skate.get_runtime_context().namespace)
            skate.shutdown()
        assert len(seen) == 2

    @pytest.mark.parametrize(("wrong", "error"), [(3, TypeError), (b"mine", TypeError), ("", ValueError)])
    def test_must_be_text(self, skate_start, wrong: object, error: type[Exception]) -> None:
        with pytest.raises(error, match="namespace"):
            skate_start(num_cpus=1, namespace=wrong)


class TestShutdown:
    def test_ends_it(self, skate_start) -> None:
        skate_start(num_cpus=1)
        skate.shutdown()
        assert not skate.is_initialized()

    def test_may_be_called_at_any_time(self) -> None:
        skate.shutdown()
        skate.shutdown()

    def test_functions_live_on(self, skate_start) -> None:
        for i in range(3):
            skate_start(num_cpus=1)
            assert skate.get(add.remote(i, 1)) == i + 1
            skate.shutdown()

    def test_old_refs_do_not(self, skate_start) -> None:
        skate_start(num_cpus=1)
        old = skate.put(np.zeros(1_000_000))
        skate.shutdown()
        skate_start(num_cpus=1)
        with pytest.raises(Exception, match=old.hex()):
            skate.get(old, timeout=5)

    def test_while_tasks_run(self, skate_start, gate) -> None:
        @skate.remote
        def hold() -> None:
            gate.wait()

        skate_start(num_cpus=1)
        pending = [hold.remote() for _ in range(10)]
        skate.shutdown()
        assert not skate.is_initialized()
        del pending


class TestFormerSession:
    """What is left of a session that was shut down is refused where it is used, wherever it stands."""

    def test_refs_are_refused(self, skate_start: Callable[..., object]) -> None:
        skate_start(num_cpus=1)

        @skate.remote
        def identity(*args: object, **kwargs: object) -> object:
            return args

        @skate.remote
        class Actor:
            def __init__(self, *args: object) -> None: ...

            def call(self, *args: object) -> None: ...

        async def awaited(ref: object) -> object:
            return await ref  # type: ignore[misc]

        @skate.remote
        def generate() -> Iterator[int]:
            yield 1

        old, stream = skate.put(1), generate.remote()
        skate.wait([stream.completed()])
        skate.shutdown()
        skate_start(num_cpus=1)
        actor = Actor.options(num_cpus=0).remote()

        @skate.remote
        def closure() -> object:
            return old

        for use in (
            lambda: identity.remote(old),
            lambda: identity.remote([{"x": (old,)}]),
            lambda: identity.remote(x=old),
            lambda: identity.remote(x=[old]),
            lambda: identity.remote(lambda: old),
            lambda: identity.remote(ValueError(old)),
            lambda: closure.remote(),
            lambda: skate.put([old]),
            lambda: Actor.remote(old),
            lambda: Actor.remote([old]),
            lambda: actor.call.remote(old),
            lambda: actor.call.remote([old]),
            lambda: skate.get(old),
            lambda: skate.get([skate.put(1), old]),
            lambda: skate.wait([skate.put(1), old], num_returns=2),
            lambda: next(stream),
            lambda: skate.wait([stream]),
            lambda: skate.get(stream.completed()),
            lambda: old.future(),
            lambda: old.exception(),
            lambda: asyncio.run(awaited(old)),
            lambda: asyncio.run(asyncio.wait_for(old, 1)),
        ):
            with pytest.raises(ValueError, match="was shut down"):
                use()


class TestWithoutInit:
    """The first call that needs a runtime starts it."""

    @pytest.mark.parametrize(
        "call",
        [
            lambda: skate.get(add.remote(1, 2)) == 3,
            lambda: skate.get(skate.put(3)) == 3,
            lambda: skate.wait([skate.put(3)]),
        ],
        ids=["remote", "put", "wait"],
    )
    @pytest.mark.usefixtures("skate_start")  # it shuts down
    def test_starts_by_itself(self, call: Callable[[], object]) -> None:
        assert call()
        assert skate.is_initialized()

    def test_looking_does_not(self) -> None:
        assert not skate.is_initialized()


class TestPrograms:
    def test_main_and_its_globals_reach_the_workers(self, run_program) -> None:
        output = run_program(
            """
            from dataclasses import dataclass
            import skate

            SCALE = 3

            @dataclass
            class Point:
                x: int

            def helper(point):
                return Point(SCALE * point.x)

            @skate.remote
            def scale(point):
                return helper(point)

            if __name__ == "__main__":
                skate.init(num_cpus=1)
                print(skate.get(scale.remote(Point(2))))
            """
        )
        assert output.splitlines()[-1] == "Point(x=6)"

    def test_a_module_beside_the_program(self, run_program, tmp_path: Path) -> None:
        (tmp_path / "beside.py").write_text("def triple(x):\n    return 3 * x\n")
        output = run_program(
            """
            import os
            import skate
            from beside import triple

            @skate.remote
            def use(x):
                return triple(x), os.getcwd()

            skate.init(num_cpus=1)
            result, folder = skate.get(use.remote(2))
            print(result, folder == os.getcwd())
            """
        )
        assert output.splitlines()[-1] == "6 True"

    def test_without_a_main_guard_the_program_runs_once(self, run_program) -> None:
        output = run_program(
            """
            import skate
            print("top of the program")
            skate.init(num_cpus=2)
            print(skate.get([skate.remote(lambda x: x * x).remote(x) for x in range(4)]))
            """
        )
        assert output.count("top of the program") == 1
        assert "[0, 1, 4, 9]" in output

    def test_ends_without_shutdown(self, run_program) -> None:
        assert "bye" in run_program(
            """
            import time
            import skate

            @skate.remote
            def forever():
                time.sleep(3600)

            skate.init(num_cpus=2)
            refs = [forever.remote() for _ in range(20)]
            skate.wait(refs, timeout=0.2)
            print("bye")
            """
        )

    def test_an_error_of_its_own_is_its_end(self, run_program) -> None:
        with pytest.raises(AssertionError, match="ZeroDivisionError"):
            run_program(
                """
                import skate
                skate.init(num_cpus=1)
                skate.get(skate.remote(lambda: 1 / 0).remote())
                """
            )
