"""Remote functions: how they are made, called and configured, and what they see where they run."""

import os
import sys
import time

import numpy as np
import pytest
import skate

from .rendezvous import Gate, Tally

pytestmark = [pytest.mark.usefixtures("cpu2"), pytest.mark.transport]

FACTOR = 3


@skate.remote
def add(a: int, b: int = 10, *rest: int, scale: int = 1, **named: int) -> int:
    return scale * (a + b + sum(rest) + sum(named.values()))


@skate.remote
def identity(value: object) -> object:
    return value


@skate.remote
def process_id() -> int:
    return os.getpid()


class TestCalls:
    def test_returns_a_ref_at_once(self, gate: Gate) -> None:
        @skate.remote
        def pass_gate() -> str:
            gate.wait()
            return "through"

        ref = pass_gate.remote()
        assert isinstance(ref, skate.ObjectRef)
        gate.open()
        assert skate.get(ref) == "through"

    def test_positional_named_default_and_variable_arguments(self) -> None:
        refs = [
            add.remote(1),
            add.remote(1, 2),
            add.remote(b=2, a=1),
            add.remote(1, 2, 3, 4),
            add.remote(1, 2, scale=5),
            add.remote(1, x=7, y=8),
            add.remote(*[1, 2, 3], scale=2, z=4),
        ]
        assert skate.get(refs) == [11, 3, 3, 10, 15, 26, 20]

    def test_runs_in_another_process(self) -> None:
        assert skate.get(process_id.remote()) != os.getpid()

    def test_two_at_the_same_time(self, tally: Tally) -> None:
        @skate.remote
        def meet() -> int:
            tally.meet(2)
            return os.getpid()

        assert len(set(skate.get([meet.remote(), meet.remote()]))) == 2

    def test_many(self) -> None:
        assert skate.get([identity.remote(i) for i in range(1_000)]) == list(range(1_000))

    def test_arguments_are_taken_as_they_are_then(self) -> None:
        numbers, array = [1], np.zeros(10)
        numbers_ref, array_ref = identity.remote(numbers), identity.remote(array)
        numbers.append(2)
        array[:] = 1
        assert skate.get(numbers_ref) == [1]
        assert skate.get(array_ref).sum() == 0

    @pytest.mark.parametrize("megabytes", [0.05, 1, 10])
    def test_large_arguments_and_results(self, megabytes: float) -> None:
        array = np.random.default_rng(0).random(int(megabytes * 125_000))
        np.testing.assert_array_equal(skate.get(identity.remote(array)), array)

    def test_an_argument_that_was_kept_never_changes(self) -> None:
        # The memory an argument came in must not be used again while a task's global still holds it.
        @skate.remote
        def keep(array: np.ndarray) -> bool:
            kept = sys.modules.setdefault("__kept__", [])
            kept.append((array, int(array[0])))
            return all((old == first).all() for old, first in kept)

        assert all(skate.get([keep.remote(np.full(100 * (1 + i % 3), i)) for i in range(300)]))


class TestSignatures:
    """Arguments are checked where the call is, not where the task runs."""

    @pytest.mark.parametrize(
        ("args", "kwargs"),
        [((), {}), ((1, 2, 3), {}), ((1,), {"a": 1}), ((1,), {"c": 2})],
        ids=["missing", "too many", "twice", "unknown"],
    )
    def test_wrong_arguments(self, args: tuple[int, ...], kwargs: dict[str, int]) -> None:
        @skate.remote
        def two(a: int, b: int = 0) -> None: ...

        with pytest.raises(TypeError):
            two.remote(*args, **kwargs)

    def test_a_missing_argument_is_named(self) -> None:
        with pytest.raises(TypeError, match="'a'"):
            add.remote(b=1)

    def test_keyword_only(self) -> None:
        @skate.remote
        def strict(*, a: int) -> int:
            return a

        assert skate.get(strict.remote(a=1)) == 1
        with pytest.raises(TypeError):
            strict.remote(1)

    def test_a_direct_call_says_what_to_write(self) -> None:
        with pytest.raises(TypeError, match=r"add\.remote\("):
            add(1, 2)


class TestDefinitions:
    def test_remote_is_a_function_too(self) -> None:
        def double(x: int) -> int:
            return 2 * x

        assert skate.get(skate.remote(double).remote(4)) == 8
        assert skate.get(skate.remote(num_cpus=2)(double).remote(4)) == 8
        assert double(4) == 8

    def test_lambda(self) -> None:
        assert skate.get(skate.remote(lambda x: x + 1).remote(1)) == 2

    def test_closure(self) -> None:
        def power(exponent: int) -> object:
            @skate.remote
            def raised(x: int) -> int:
                return x**exponent

            return raised

        assert skate.get([power(2).remote(3), power(3).remote(3)]) == [9, 27]

    def test_globals_and_helpers(self) -> None:
        @skate.remote
        def scaled(x: int) -> int:
            return FACTOR * x

        assert skate.get(scaled.remote(5)) == 15

    def test_redefining_takes_the_new_globals(self) -> None:
        results = []
        for value in (1, 2):
            namespace = {"skate": skate, "value": value}
            exec("@skate.remote\ndef read():\n    return value", namespace)
            results.append(skate.get(namespace["read"].remote()))
        assert results == [1, 2]

    def test_a_remote_function_in_a_closure(self) -> None:
        @skate.remote
        def outer(x: int) -> int:
            return skate.get(add.remote(x, 1))

        assert skate.get(outer.remote(1)) == 2

    def test_a_remote_function_as_an_argument(self) -> None:
        @skate.remote
        def call(function: object, x: int) -> int:
            return skate.get(function.remote(x, 1))

        assert skate.get(call.remote(add, 2)) == 3

    def test_it_may_call_itself(self) -> None:
        @skate.remote
        def factorial(n: int) -> int:
            return n * skate.get(factorial.remote(n - 1)) if n > 1 else 1

        assert skate.get(factorial.remote(4)) == 24

    def test_the_plain_function_is_still_there(self) -> None:
        assert add._function(1, 2) == 3

    def test_async_functions_are_refused_with_the_way_out(self) -> None:
        with pytest.raises(ValueError, match=r"asyncio\.run"):

            @skate.remote
            async def nope() -> None: ...

            nope.remote()

    @pytest.mark.parametrize("thing", [3, "f", None], ids=repr)
    def test_only_functions_and_classes(self, thing: object) -> None:
        with pytest.raises((TypeError, AssertionError)):
            skate.remote(thing)

    def test_not_twice(self) -> None:
        with pytest.raises(TypeError):
            skate.remote(add)

    def test_what_cannot_be_pickled_is_named(self) -> None:
        stream = sys.stdout.buffer

        @skate.remote
        def write() -> None:
            stream.write(b"")

        with pytest.raises(TypeError, match="stream"):
            write.remote()


class TestOptions:
    def test_change_one_call_only(self) -> None:
        @skate.remote(num_returns=1)
        def pair() -> tuple[int, int]:
            return 1, 2

        first, second = pair.options(num_returns=2).remote()
        assert skate.get([first, second]) == [1, 2]
        assert skate.get(pair.remote()) == (1, 2)

    def test_can_be_kept(self) -> None:
        small = add.options(num_cpus=0.5, name="small")
        assert skate.get([small.remote(1), small.remote(2)]) == [11, 12]

    @pytest.mark.parametrize(
        "options",
        [
            {"num_cpus": 0},
            {"num_cpus": 1.0, "num_gpus": 0},
            {"memory": 1_000_000},
            {"resources": {}},
            {"max_retries": -1, "retry_exceptions": True},
            {"retry_exceptions": (KeyError, OSError)},
            {"max_calls": 1},
            {"name": "a name"},
            {"scheduling_strategy": "DEFAULT"},
            {"scheduling_strategy": "SPREAD"},
            {"enable_task_events": False},
            {"runtime_env": None},
            {"num_returns": None, "num_cpus": None},
        ],
        ids=repr,
    )
    def test_that_there_are(self, options: dict[str, object]) -> None:
        decorate = {key: value for key, value in options.items() if key != "max_calls"}
        assert skate.get(add.options(**decorate).remote(1)) == 11
        assert skate.get(skate.remote(**options)(add._function).remote(1)) == 11

    @pytest.mark.parametrize("where", ["decorator", "options"])
    def test_an_unknown_one_raises_with_those_there_are(self, where: str) -> None:
        with pytest.raises(ValueError, match=r"num_cpu\b.*max_retries") as caught:
            add.options(num_cpu=1) if where == "options" else skate.remote(num_cpu=1)(add._function)
        assert "num_cpus" in str(caught.value)

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("num_cpus", -1),
            ("num_cpus", 0.00001),
            ("num_gpus", -0.5),
            ("memory", -1),
            ("num_returns", -1),
            ("max_retries", -2),
            ("max_calls", -1),
            ("resources", {"CPU": 1}),
            ("resources", {"GPU": 1}),
            ("resources", {"special": -1}),
            ("retry_exceptions", [3]),
        ],
    )
    def test_a_value_out_of_range(self, option: str, value: object) -> None:
        with pytest.raises(ValueError):
            skate.remote(**{option: value})(add._function)

    @pytest.mark.parametrize(
        ("option", "value"),
        [("num_cpus", "1"), ("max_retries", 1.5), ("retry_exceptions", 3), ("name", 3), ("resources", ["a"])],
    )
    def test_a_value_of_the_wrong_type(self, option: str, value: object) -> None:
        with pytest.raises(TypeError, match=option):
            add.options(**{option: value})

    def test_under_remote(self) -> None:
        assert skate.get(add._remote(args=(1,), kwargs={"scale": 2})) == 22
        assert skate.get(add._remote(args=[1, 2], num_cpus=0.5)) == 3
        assert add._remote((1,), num_returns=0) is None


class TestNumberOfReturns:
    def test_none(self, tally: Tally) -> None:
        @skate.remote(num_returns=0)
        def only_do() -> None:
            tally.add()

        assert only_do.remote() is None
        tally.meet(2)  # with the task

    def test_one_is_the_value_itself(self) -> None:
        assert skate.get(identity.remote((1, 2))) == (1, 2)

    @pytest.mark.parametrize("values", [(1, 2), [1, 2], range(1, 3)], ids=repr)
    def test_several(self, values: object) -> None:
        refs = identity.options(num_returns=2).remote(values)
        assert isinstance(refs, list)
        assert skate.get(refs) == [1, 2]

    def test_a_large_one_among_them(self) -> None:
        small, large = identity.options(num_returns=2).remote([1, np.ones(1_000_000)])
        assert skate.get(small) == 1
        assert skate.get(large).sum() == 1_000_000

    def test_a_hundred(self) -> None:
        assert skate.get(identity.options(num_returns=100).remote(list(range(100)))) == list(range(100))

    @pytest.mark.parametrize("values", [(1,), (1, 2, 3)], ids=repr)
    def test_a_wrong_number_of_values_says_so(self, values: tuple[int, ...]) -> None:
        for ref in identity.options(num_returns=2).remote(values):
            with pytest.raises(ValueError, match=rf"{len(values)}.*2|2.*{len(values)}"):
                skate.get(ref)

    def test_what_has_no_length(self) -> None:
        for ref in identity.options(num_returns=2).remote(3):
            with pytest.raises((TypeError, ValueError), match="int"):  # Ray: TypeError
                skate.get(ref)


class TestSurroundings:
    def test_the_working_directory(self) -> None:
        assert skate.get(skate.remote(lambda: os.getcwd()).remote()) == os.getcwd()

    def test_the_import_path(self) -> None:
        missing = set(sys.path) - set(skate.get(skate.remote(lambda: sys.path).remote()))
        assert not {path for path in missing if os.path.isdir(path)}

    def test_a_module_of_the_drivers(self) -> None:
        assert skate.get(skate.remote(lambda: Gate.__module__).remote()) == Gate.__module__

    def test_time_is_the_same_on_both_sides(self) -> None:
        before = time.monotonic()
        there = skate.get(skate.remote(lambda: time.monotonic()).remote())
        assert before <= there <= time.monotonic()


def test_environment_variables_of_a_function(cpu2) -> None:
    import os

    @skate.remote(runtime_env={"env_vars": {"SKATE_TEST_COLOUR": "green"}})
    def colour() -> str | None:
        return os.environ.get("SKATE_TEST_COLOUR")

    assert skate.get(colour.remote(), timeout=20) == "green"
    assert skate.get(colour.options(runtime_env={}).remote(), timeout=20) is None
