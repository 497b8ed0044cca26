"""Actors: how they are made and called, where their handles go, and when their processes end."""

import asyncio
import copy
import importlib
import os
import threading
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import pytest
import skate
from skate.exceptions import RayActorError, RayTaskError, TaskError
from skate.runtime import current

from .rendezvous import Gate, Tally, eventually, gone, lives

pytestmark = [pytest.mark.usefixtures("cpu2"), pytest.mark.transport]


@skate.remote
class Counter:
    """The one that most tests use."""

    def __init__(self, value: int = 0, *, step: int = 1) -> None:
        self.value = value
        self.step = step

    def increment(self, times: int = 1, *more: int, extra: int = 0) -> int:
        self.value += self.step * (times + sum(more)) + extra
        return self.value

    def get(self) -> int:
        return self.value

    def pid(self) -> int:
        return os.getpid()

    def fail(self, error: Exception) -> None:
        raise error

    def pass_gate(self, gate: Gate) -> int:
        gate.wait()
        return self.increment()


class Plain:
    """Not remote."""

    def __init__(self, x: int) -> None:
        self.x = x

    def get(self) -> int:
        return self.x


@skate.remote
class Keeper:
    """Keeps whatever it is given."""

    def __init__(self, thing: object = None) -> None:
        self.thing = thing

    def put(self, thing: object) -> None:
        self.thing = thing

    def get(self) -> object:
        return self.thing

    def drop(self) -> None:
        self.thing = None

    def kind(self) -> str:
        thing = self.thing[0] if isinstance(self.thing, list) else self.thing
        return type(thing).__name__

    def pid(self) -> int:
        return os.getpid()


@skate.remote
def increment(counter: object, times: int = 1) -> int:
    return skate.get(counter.increment.remote(times))


def counter_and_pid() -> tuple[object, int]:
    counter = Counter.remote()
    return counter, skate.get(counter.pid.remote())


class TestMaking:
    def test_it_keeps_its_state(self) -> None:
        counter = Counter.remote()
        assert skate.get(counter.get.remote()) == 0
        counter.increment.remote()
        counter.increment.remote()
        assert skate.get(counter.get.remote()) == 2

    def test_each_has_a_process_and_a_state_of_its_own(self) -> None:
        counters = [Counter.remote(i) for i in range(3)]
        assert skate.get([c.increment.remote() for c in counters]) == [1, 2, 3]
        pids = skate.get([c.pid.remote() for c in counters])
        assert len({*pids, os.getpid()}) == 4
        assert skate.get([c.pid.remote() for c in counters]) == pids

    def test_returns_at_once(self, gate: Gate) -> None:
        @skate.remote
        class Slow:
            def __init__(self) -> None:
                gate.wait()

            def through(self) -> str:
                return "through"

        ref = Slow.remote().through.remote()
        assert skate.wait([ref], timeout=0) == ([], [ref])
        gate.open()
        assert skate.get(ref) == "through"

    def test_without_a_constructor(self) -> None:
        @skate.remote
        class Plain:
            def hello(self) -> str:
                return "hello"

        assert skate.get(Plain.remote().hello.remote()) == "hello"
        with pytest.raises(TypeError):
            Plain.remote(1)

    def test_arguments_of_the_constructor(self) -> None:
        made = [
            Counter.remote(),
            Counter.remote(5),
            Counter.remote(value=5),
            Counter.remote(5, step=10),
            Counter.remote(*[5], step=10),
        ]
        assert skate.get([c.increment.remote() for c in made]) == [1, 6, 6, 15, 15]

    def test_a_ref_becomes_its_value_but_not_inside_a_list(self) -> None:
        ref = skate.put(5)
        assert skate.get(Keeper.remote(ref).get.remote()) == 5
        assert skate.get(Keeper.remote(thing=ref).get.remote()) == 5
        assert skate.get(Keeper.remote([ref]).kind.remote()) == "ObjectRef"

    def test_it_waits_for_the_arguments_of_the_constructor(self, gate: Gate) -> None:
        @skate.remote
        def pass_gate() -> int:
            gate.wait()
            return 7

        ref = Counter.remote(pass_gate.remote()).increment.remote()
        assert skate.wait([ref], timeout=0) == ([], [ref])
        gate.open()
        assert skate.get(ref) == 8

    def test_a_large_argument_of_the_constructor(self) -> None:
        array = np.random.default_rng(0).random(500_000)
        np.testing.assert_array_equal(skate.get(Keeper.remote(array).get.remote()), array)

    def test_arguments_are_taken_as_they_are_then(self) -> None:
        numbers = [1]
        keeper = Keeper.remote(numbers)
        ref = keeper.get.remote()
        numbers.append(2)
        assert skate.get(ref) == [1]

    @pytest.mark.parametrize("args", [(1, 2), (1, 2, 3)], ids=repr)
    def test_wrong_arguments_raise_at_once(self, args: tuple[int, ...]) -> None:
        with pytest.raises(TypeError):
            Counter.remote(*args)
        with pytest.raises(TypeError, match="speed"):
            Counter.remote(speed=1)

    def test_a_missing_argument_is_named(self) -> None:
        @skate.remote
        class Needy:
            def __init__(self, something: int) -> None: ...

        with pytest.raises(TypeError, match="something"):
            Needy.remote()

    def test_remote_with_options(self) -> None:
        @skate.remote(num_cpus=0.5, max_restarts=1)
        class Small:
            def cpus(self) -> float:
                return skate.get_runtime_context().get_assigned_resources()["CPU"]

        assert skate.get(Small.remote().cpus.remote()) == 0.5
        assert skate.get(Small.options(num_cpus=0.25).remote().cpus.remote()) == 0.25

    def test_options_can_be_kept(self) -> None:
        small = Counter.options(num_cpus=0.5)
        counters = [small.remote(1), small.remote(2, step=5)]
        assert skate.get([c.increment.remote() for c in counters]) == [2, 7]

    def test_remote_is_a_function_too(self) -> None:
        assert skate.get(skate.remote(Plain).remote(3).get.remote()) == 3
        assert skate.get(skate.remote(num_cpus=0)(Plain).remote(4).get.remote()) == 4
        assert Plain(5).get() == 5

    def test_under_remote(self) -> None:
        counter = Counter._remote(args=[5], kwargs={"step": 2}, num_cpus=0.5)
        assert skate.get(counter.increment._remote(args=[2])) == 9

    def test_not_twice(self) -> None:
        with pytest.raises(TypeError):
            skate.remote(Counter)

    def test_a_direct_call_says_what_to_write(self) -> None:
        with pytest.raises(TypeError, match=r"Counter\.remote\("):
            Counter(1)

    @pytest.mark.parametrize("where", ["decorator", "options"])
    def test_an_unknown_option_raises_with_those_there_are(self, where: str) -> None:
        with pytest.raises(ValueError, match=r"num_cpu\b.*max_restarts"):
            Counter.options(num_cpu=1).remote() if where == "options" else skate.remote(num_cpu=1)(Plain)

    @pytest.mark.parametrize("option", ["num_returns", "max_retries", "max_calls", "retry_exceptions"])
    def test_options_of_tasks_are_refused(self, option: str) -> None:
        with pytest.raises(ValueError, match=option):
            Counter.options(**{option: 1})

    @pytest.mark.parametrize(
        ("option", "value"),
        [("max_restarts", -2), ("lifetime", "long"), ("num_cpus", -1), ("name", "")],
    )
    def test_a_value_out_of_range(self, option: str, value: object) -> None:
        with pytest.raises(ValueError, match=option):
            Counter.options(**{option: value}).remote()

    def test_what_cannot_be_pickled_is_named(self) -> None:
        with pytest.raises(TypeError, match="lock"):
            Counter.remote(threading.Lock())

        lock = threading.Lock()

        @skate.remote
        class Locked:
            def use(self) -> None:
                lock.acquire()

        with pytest.raises(TypeError, match="lock"):
            Locked.remote()

    def test_made_in_a_task_and_in_an_actor(self) -> None:
        @skate.remote
        def in_task() -> int:
            counter = Counter.remote(1)
            return skate.get(counter.increment.remote())

        @skate.remote
        class Parent:
            def __init__(self) -> None:
                self.child = Counter.remote(10)

            def ask(self) -> int:
                return skate.get(self.child.increment.remote())

        parent = Parent.remote()
        assert skate.get([in_task.remote(), parent.ask.remote(), parent.ask.remote()]) == [2, 11, 12]

    def test_environment_variables(self) -> None:
        @skate.remote(runtime_env={"env_vars": {"SKATE_TEST_COLOUR": "green"}})
        class Painter:
            def colour(self) -> str | None:
                return os.environ.get("SKATE_TEST_COLOUR")

        assert skate.get(Painter.remote().colour.remote(), timeout=30) == "green"

    def test_goes_on_while_the_program_does_something_else(self, tmp_path) -> None:
        """What is posted right after something else to the same process waits for no call of skate."""

        @skate.remote(num_cpus=0)
        class Opens:
            def __init__(self, gate: Gate) -> None:
                gate.open()

            def there(self) -> None:
                pass

        for number in range(3):
            dead = Opens.remote(Gate(tmp_path / f"{number}"))
            skate.get(dead.there.remote())
            skate.kill(dead)
            with pytest.raises(RayActorError):
                skate.get(dead.there.remote())
            gate = Gate(tmp_path / f"{number} again")
            eventually(current.runtime.pump.may_sleep_on)
            del dead  # its node hears of this, and has nothing to say to it
            actor = Opens.remote(gate)
            gate.wait()
            del actor


class TestClasses:
    def test_inheritance(self) -> None:
        class Animal:
            legs = 4

            def __init__(self, name: str) -> None:
                self.name = name

            def say(self) -> str:
                return f"{self.name} on {self.legs} legs: {self.sound()}"

            def sound(self) -> str:
                return "…"

        @skate.remote
        class Duck(Animal):
            legs = 2

            def __init__(self, name: str) -> None:
                super().__init__(name.title())

            def sound(self) -> str:
                return super().sound() + "quack"

        duck = Duck.remote("donald")
        assert skate.get([duck.say.remote(), duck.sound.remote()]) == [
            "Donald on 2 legs: …quack",
            "…quack",
        ]

    def test_a_remote_class_has_no_subclasses(self) -> None:
        with pytest.raises(TypeError):

            class More(Counter): ...

    def test_class_and_static_methods(self) -> None:
        @skate.remote
        class Mixed:
            made = 0

            def __init__(self) -> None:
                type(self).made += 1

            @classmethod
            def how_many(cls) -> int:
                return cls.made

            @staticmethod
            def double(x: int) -> int:
                return 2 * x

        mixed, another = Mixed.remote(), Mixed.remote()
        assert skate.get([mixed.double.remote(4), mixed.how_many.remote()]) == [8, 1]
        assert skate.get(another.how_many.remote()) == 1  # each process has its own class

    def test_properties_and_attributes_are_not_called(self) -> None:
        @skate.remote
        class Reserved:
            limit = 3

            @property
            def twice(self) -> int:
                return 2 * self.limit

            def read(self) -> int:
                return self.twice

        reserved = Reserved.remote()
        assert skate.get(reserved.read.remote()) == 6
        for name in ("twice", "limit"):
            with pytest.raises(AttributeError, match=name):
                getattr(reserved, name)

    def test_private_and_special_methods(self) -> None:
        @skate.remote
        class Callable:
            def __call__(self, x: int) -> int:
                return x + 1

            def _private(self, x: int) -> int:
                return x + 2

        callable_ = Callable.remote()
        assert skate.get([callable_.__call__.remote(1), callable_._private.remote(1)]) == [2, 3]

    def test_a_generic_one_and_a_dataclass(self) -> None:
        T = TypeVar("T")

        class Box(Generic[T]):
            def __init__(self, thing: T) -> None:
                self.thing = thing

            def open(self) -> T:
                return self.thing

        @dataclass
        class Point:
            x: int
            y: int = 2

            def norm(self) -> int:
                return self.x**2 + self.y**2

        assert skate.get(skate.remote(Box).remote("inside").open.remote()) == "inside"
        assert skate.get(skate.remote(Point).remote(1).norm.remote()) == 5

    def test_its_methods_call_one_another_as_usual(self) -> None:
        @skate.remote
        class Chain:
            def first(self) -> int:
                return self.second() + 1

            def second(self) -> int:
                return 1

        assert skate.get(Chain.remote().first.remote()) == 2

    def test_it_makes_others_of_its_own_class(self) -> None:
        @skate.remote
        class Node:
            def child(self) -> object:
                return Node.remote()

            def depth(self, n: int) -> int:
                return 1 + skate.get(Node.remote().depth.remote(n - 1)) if n else 0

        node = Node.remote()
        assert skate.get(node.depth.remote(2)) == 2
        assert skate.get(skate.get(node.child.remote()).depth.remote(1)) == 1

    def test_redefining_takes_the_new_globals(self) -> None:
        results = []
        for value in (1, 2):
            namespace = {"skate": skate, "value": value, "__name__": "redefined"}
            exec("@skate.remote\nclass Reader:\n    def read(self):\n        return value", namespace)
            results.append(skate.get(namespace["Reader"].remote().read.remote()))
        assert results == [1, 2]

    def test_a_class_travels(self) -> None:
        @skate.remote
        def make(cls: object) -> int:
            return skate.get(cls.remote(4).increment.remote())

        assert skate.get(make.remote(Counter)) == 5
        assert skate.get(make.remote(Counter.options(num_cpus=0.5))) == 5


class TestMethods:
    def test_arguments(self) -> None:
        counter = Counter.remote()
        refs = [
            counter.increment.remote(),
            counter.increment.remote(2),
            counter.increment.remote(times=3),
            counter.increment.remote(1, 1, 2, extra=10),
            counter.increment.remote(*[1], extra=1),
        ]
        assert skate.get(refs) == [1, 3, 6, 20, 22]

    def test_a_ref_becomes_its_value_but_not_inside_a_list(self) -> None:
        keeper, ref = Keeper.remote(), skate.put(5)
        keeper.put.remote(ref)
        assert skate.get(keeper.get.remote()) == 5
        keeper.put.remote([ref])
        assert skate.get(keeper.kind.remote()) == "ObjectRef"
        assert skate.get(skate.get(keeper.get.remote())) == [5]

    def test_on_the_results_of_tasks_and_of_actors(self) -> None:
        @skate.remote
        def double(x: int) -> int:
            return 2 * x

        counter, other = Counter.remote(), Counter.remote(100)
        first = counter.increment.remote(double.remote(2))
        assert skate.get(double.remote(other.increment.remote(first))) == 208

    @pytest.mark.parametrize("megabytes", [0.05, 1, 10])
    def test_large_arguments_and_results(self, megabytes: float) -> None:
        array = np.random.default_rng(0).random(int(megabytes * 125_000))
        keeper = Keeper.remote()
        keeper.put.remote(array)
        np.testing.assert_array_equal(skate.get(keeper.get.remote()), array)

    def test_an_argument_that_was_kept_never_changes(self) -> None:
        @skate.remote
        class Hoarder:
            def __init__(self) -> None:
                self.kept: list[tuple[np.ndarray, int]] = []

            def keep(self, array: np.ndarray) -> bool:
                self.kept.append((array, int(array[0])))
                return all((old == first).all() for old, first in self.kept)

        hoarder = Hoarder.remote()
        assert all(skate.get([hoarder.keep.remote(np.full(100 * (1 + i % 3), i)) for i in range(100)]))

    @pytest.mark.parametrize(
        ("args", "kwargs"),
        [((), {"time": 1}), ((1,), {"times": 1})],
        ids=["unknown", "twice"],
    )
    def test_wrong_arguments_raise_at_once(self, args: tuple[int, ...], kwargs: dict[str, int]) -> None:
        counter = Counter.remote()
        with pytest.raises(TypeError):
            counter.increment.remote(*args, **kwargs)
        with pytest.raises(TypeError):
            counter.get.remote(1)
        assert skate.get(counter.get.remote()) == 0

    def test_a_missing_argument_is_named(self) -> None:
        with pytest.raises(TypeError, match="thing"):
            Keeper.remote().put.remote()

    def test_a_direct_call_says_what_to_write(self) -> None:
        counter = Counter.remote()
        with pytest.raises(TypeError, match=r"increment\.remote\("):
            counter.increment()

    def test_an_unknown_one_raises_at_once(self) -> None:
        with pytest.raises(AttributeError, match="decrement"):
            Counter.remote().decrement.remote()

    def test_a_method_can_be_kept(self) -> None:
        counter = Counter.remote()
        once, twice = counter.increment, counter.increment.options(name="twice")
        assert skate.get([once.remote(), twice.remote(2)]) == [1, 3]

    def test_a_chain_without_a_handle(self) -> None:
        assert skate.get(Counter.remote(4).increment.remote()) == 5

    def test_an_exception_is_of_its_class_and_the_actor_lives_on(self) -> None:
        counter = Counter.remote(1)
        with pytest.raises(LookupError, match="nothing here") as caught:
            skate.get(counter.fail.remote(LookupError("nothing here")))
        assert isinstance(caught.value, RayTaskError)
        assert isinstance(caught.value, TaskError)
        assert not isinstance(caught.value, RayActorError)
        assert "Counter.fail" in str(caught.value)
        assert skate.get(counter.get.remote()) == 1

    def test_a_failed_argument_fails_the_call_and_no_other(self) -> None:
        counter = Counter.remote()
        failed = counter.increment.remote(counter.fail.remote(LookupError("early")))
        after = counter.increment.remote()
        with pytest.raises(LookupError, match="early"):
            skate.get(failed)
        assert skate.get(after) == 1

    def test_a_result_that_cannot_be_pickled(self) -> None:
        @skate.remote
        class Locked:
            def lock(self) -> threading.Lock:
                return threading.Lock()

            def hello(self) -> str:
                return "hello"

        locked = Locked.remote()
        with pytest.raises(TypeError, match="lock"):
            skate.get(locked.lock.remote())
        assert skate.get(locked.hello.remote()) == "hello"

    def test_waiting_for_some(self, gate: Gate) -> None:
        slow, fast = Counter.remote(), Counter.remote()
        refs = [slow.pass_gate.remote(gate), fast.increment.remote()]
        assert skate.wait(refs) == ([refs[1]], [refs[0]])
        with pytest.raises(skate.exceptions.GetTimeoutError):
            skate.get(refs[0], timeout=0)
        gate.open()
        assert skate.get(refs) == [1, 1]

    def test_await(self) -> None:
        counter = Counter.remote()

        async def main() -> list[int]:
            first = await counter.increment.remote()
            return [first, *await asyncio.gather(counter.increment.remote(), counter.increment.remote())]

        assert asyncio.run(main()) == [1, 2, 3]

    def test_many(self) -> None:
        counter = Counter.remote()
        assert skate.get([counter.increment.remote() for _ in range(2_000)]) == list(range(1, 2_001))

    def test_from_several_threads(self) -> None:
        counter = Counter.remote()

        def call() -> None:
            skate.get([counter.increment.remote() for _ in range(100)])

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert skate.get(counter.get.remote()) == 400

    def test_runs_tasks_and_waits_for_them(self) -> None:
        @skate.remote
        class Boss:
            def sum(self, n: int) -> int:
                square = skate.remote(lambda x: x * x)
                return sum(skate.get([square.remote(i) for i in range(n)]))

        assert skate.get(Boss.remote().sum.remote(10)) == 285

    def test_what_they_print_names_class_and_process(self, captured) -> None:
        @skate.remote
        class Speaker:
            def say(self, word: str) -> int:
                print(word)
                return os.getpid()

        pid = skate.get(Speaker.remote().say.remote("good day"))
        eventually(lambda: "good day" in captured())
        assert f"(Speaker pid={pid})" in captured()


class TestMethodDecorator:
    def test_num_returns(self) -> None:
        @skate.remote
        class Pair:
            @skate.method(num_returns=2)
            def pair(self, a: int, b: int) -> tuple[int, int]:
                return a, b

            @skate.method(num_returns=0)
            def nothing(self) -> None: ...

            @skate.method
            def plain(self) -> tuple[int, int]:
                return 1, 2

        pair = Pair.remote()
        first, second = pair.pair.remote(1, 2)
        assert skate.get([first, second]) == [1, 2]
        assert pair.nothing.remote() is None
        assert skate.get(pair.plain.remote()) == (1, 2)

    def test_options_change_one_call_only(self) -> None:
        keeper = Keeper.remote((1, 2, 3))
        refs = keeper.get.options(num_returns=3).remote()
        assert skate.get(refs) == [1, 2, 3]
        assert skate.get(keeper.get.remote()) == (1, 2, 3)
        assert keeper.get.options(num_returns=0).remote() is None

    def test_a_wrong_number_of_values_says_so(self) -> None:
        for ref in Keeper.remote((1, 2, 3)).get.options(num_returns=2).remote():
            with pytest.raises(ValueError, match=r"3.*2|2.*3"):
                skate.get(ref)

    def test_with_an_unknown_option(self) -> None:
        with pytest.raises((AssertionError, TypeError, ValueError), match="num_return"):
            skate.method(num_return=2)(lambda self: None)

    def test_the_name_of_one_call(self) -> None:
        @skate.remote
        class Named:
            def name(self) -> str:
                return skate.get_runtime_context().get_task_name()

        named = Named.remote()
        assert skate.get(named.name.options(name="another").remote()) == "another"
        assert skate.get(named.name.remote()) == "Named.name"

    def test_a_decorated_method_still_is_a_plain_one(self) -> None:
        class Plain:
            @skate.method(num_returns=2)
            def pair(self) -> tuple[int, int]:
                return 1, 2

        assert Plain().pair() == (1, 2)


class TestEveryActorHas:
    def test_ready(self) -> None:
        counter = Counter.remote()
        skate.get(counter.__ray_ready__.remote(), timeout=30)

    def test_call(self) -> None:
        counter = Counter.remote(5)
        assert skate.get(counter.__ray_call__.remote(lambda self, more: self.value + more, 1)) == 6

    def test_terminate(self) -> None:
        counter, pid = counter_and_pid()
        before = counter.increment.remote()
        counter.__ray_terminate__.remote()
        assert skate.get(before) == 1
        eventually(lambda: gone(pid))
        with pytest.raises(RayActorError):
            skate.get(counter.increment.remote())

    def test_terminate_runs_exit_handlers(self, tally: Tally) -> None:
        @skate.remote
        class Tidy:
            def __init__(self) -> None:
                import atexit

                atexit.register(tally.add)

            def pid(self) -> int:
                return os.getpid()

        tidy = Tidy.remote()
        pid = skate.get(tidy.pid.remote())
        tidy.__ray_terminate__.remote()
        eventually(lambda: gone(pid))
        assert tally.count == 1


class TestContext:
    def test_inside_an_actor(self) -> None:
        @skate.remote
        class Self:
            def ids(self) -> tuple[str, str]:
                context = skate.get_runtime_context()
                return context.get_actor_id(), context.get_job_id()

            def me(self) -> object:
                return skate.get_runtime_context().current_actor

            def restarted(self) -> bool:
                return skate.get_runtime_context().was_current_actor_reconstructed

        actor, other = Self.remote(), Self.remote()
        actor_id, job_id = skate.get(actor.ids.remote())
        assert bytes.fromhex(actor_id)
        assert actor_id == actor._actor_id.hex()
        assert job_id == skate.get_runtime_context().get_job_id()
        assert actor_id != skate.get(other.ids.remote())[0]
        assert skate.get(actor.me.remote()) == actor
        assert skate.get(actor.restarted.remote()) is False

    def test_outside(self) -> None:
        context = skate.get_runtime_context()
        assert context.get_actor_id() is None
        with pytest.raises(RuntimeError):
            context.current_actor  # noqa: B018
        get_actor_id = skate.remote(lambda: skate.get_runtime_context().get_actor_id())
        assert skate.get(get_actor_id.remote()) is None

    def test_every_call_is_a_task_of_its_own(self) -> None:
        @skate.remote
        class Self:
            def task_id(self) -> str:
                return skate.get_runtime_context().get_task_id()

        actor = Self.remote()
        assert len(set(skate.get([actor.task_id.remote() for _ in range(10)]))) == 10

    def test_it_calls_itself(self) -> None:
        @skate.remote
        class Countdown:
            def __init__(self) -> None:
                self.steps = 0

            def count(self, n: int) -> None:
                self.steps += 1
                if n:
                    skate.get_runtime_context().current_actor.count.remote(n - 1)

            def get(self) -> int:
                return self.steps

        actor = Countdown.remote()
        actor.count.remote(5)
        eventually(lambda: skate.get(actor.get.remote()) == 6)


class TestHandles:
    def test_what_they_are(self) -> None:
        counter, other = Counter.remote(), Counter.remote()
        assert isinstance(counter, importlib.import_module(f"{skate.__name__}.actor").ActorHandle)
        assert repr(counter) == f"Actor(Counter, {counter._actor_id.hex()})"
        assert {"increment", "get", "pid"} <= set(dir(counter))
        assert counter == counter
        assert counter != other
        assert len({counter, other, counter}) == 2

    def test_as_an_argument_of_a_task(self) -> None:
        counter = Counter.remote()
        skate.get([increment.remote(counter) for _ in range(6)])
        assert skate.get(counter.get.remote()) == 6

    def test_of_a_task_in_a_list_and_by_name(self) -> None:
        @skate.remote
        def everywhere(args: list, *, by_name: dict) -> None:
            skate.get([args[0].increment.remote(), by_name["it"].increment.remote()])

        counter = Counter.remote()
        skate.get(everywhere.remote([counter], by_name={"it": counter}))
        assert skate.get(counter.get.remote()) == 2

    def test_as_a_result(self) -> None:
        @skate.remote
        def make(value: int) -> object:
            return Counter.remote(value)

        counter = skate.get(make.remote(6))
        assert skate.get(counter.increment.remote()) == 7
        assert skate.get(increment.remote(counter)) == 8

    def test_as_a_result_of_an_actor(self) -> None:
        counter = Counter.remote()
        keeper = Keeper.remote(counter)
        again = skate.get(keeper.get.remote())
        assert again == counter
        assert hash(again) == hash(counter)
        assert skate.get([again.increment.remote(), counter.increment.remote()]) == [1, 2]

    def test_as_an_argument_of_a_ref(self) -> None:
        counter = Counter.remote()
        assert skate.get(increment.remote(skate.put(counter))) == 1

    def test_in_an_object(self) -> None:
        counter = Counter.remote()
        box = skate.put({"counters": [counter, counter]})
        first, second = skate.get(box)["counters"]
        assert skate.get([first.increment.remote(), second.increment.remote()]) == [1, 2]

    def test_in_a_closure_and_a_global(self) -> None:
        counter = Counter.remote()
        namespace = {"skate": skate, "counter": counter}
        exec("@skate.remote\ndef add():\n    return skate.get(counter.increment.remote())", namespace)

        @skate.remote
        def add() -> int:
            return skate.get(counter.increment.remote())

        assert skate.get([add.remote(), namespace["add"].remote()]) in ([1, 2], [2, 1])

    def test_kept_by_another_actor(self) -> None:
        @skate.remote
        class Caller:
            def __init__(self, counter: object) -> None:
                self.counter = counter

            def call(self) -> int:
                return skate.get(self.counter.increment.remote())

        counter = Counter.remote()
        callers = [Caller.remote(counter) for _ in range(2)]
        skate.get([c.call.remote() for c in callers * 3])
        assert skate.get(counter.get.remote()) == 6

    def test_through_many_hands(self) -> None:
        @skate.remote
        def pass_on(counter: object, hops: int) -> int:
            if not hops:
                return skate.get(counter.increment.remote())
            return skate.get(pass_on.remote(counter, hops - 1))

        assert skate.get(pass_on.remote(Counter.remote(), 4)) == 1

    def test_two_that_know_each_other(self) -> None:
        @skate.remote
        class Player:
            def __init__(self) -> None:
                self.hits = 0

            def meet(self, other: object) -> None:
                self.other = other

            def hit(self, rest: int) -> None:
                self.hits += 1
                if rest:
                    self.other.hit.remote(rest - 1)

            def score(self) -> int:
                return self.hits

        ping, pong = Player.remote(), Player.remote()
        skate.get([ping.meet.remote(pong), pong.meet.remote(ping)])
        ping.hit.remote(19)
        eventually(lambda: skate.get([ping.score.remote(), pong.score.remote()]) == [10, 10])
        # They hold each other, which no count of handles can end.
        skate.kill(ping)
        skate.kill(pong)

    def test_copies(self) -> None:
        counter = Counter.remote()
        for copied in (copy.copy(counter), copy.deepcopy([counter])[0]):
            assert copied == counter
            skate.get(copied.increment.remote())
        assert skate.get(counter.get.remote()) == 2


class TestEnd:
    """The process ends when the last handle is gone, wherever it was; what was asked before still runs."""

    def test_with_the_last_handle(self) -> None:
        counter, pid = counter_and_pid()
        again = copy.copy(counter)
        del counter
        assert skate.get(again.pid.remote()) == pid
        del again
        eventually(lambda: gone(pid))

    def test_not_before_what_was_asked(self, gate: Gate, tally: Tally) -> None:
        @skate.remote
        class Worker:
            def work(self, gate: Gate, tally: Tally) -> int:
                gate.wait()
                return tally.add()

            def pid(self) -> int:
                return os.getpid()

        worker = Worker.remote()
        pid = skate.get(worker.pid.remote())
        refs = [worker.work.remote(gate, tally) for _ in range(5)]
        worker.work.remote(gate, tally)  # whose result nobody wants
        del worker
        assert lives(pid)
        gate.open()
        assert skate.get(refs) == [1, 2, 3, 4, 5]
        eventually(lambda: gone(pid))
        assert tally.count == 6

    def test_not_before_a_call_whose_argument_is_late(self, gate: Gate) -> None:
        @skate.remote
        def pass_gate() -> int:
            gate.wait()
            return 4

        counter, pid = counter_and_pid()
        ref = counter.increment.remote(pass_gate.remote())
        del counter
        gate.open()
        assert skate.get(ref) == 4
        eventually(lambda: gone(pid))

    def test_while_it_is_still_being_made(self, gate: Gate, tally: Tally) -> None:
        @skate.remote
        class Slow:
            def __init__(self) -> None:
                gate.wait()

            def call(self) -> int:
                return tally.add()

        ref = Slow.remote().call.remote()
        Slow.remote()
        gate.open()
        assert skate.get(ref) == 1

    def test_a_handle_in_an_object_keeps_it(self) -> None:
        counter, pid = counter_and_pid()
        box = skate.put([counter])
        del counter
        assert skate.get(increment.remote(skate.get(box)[0])) == 1
        del box
        eventually(lambda: gone(pid))

    def test_a_handle_in_another_actor_keeps_it(self) -> None:
        counter, pid = counter_and_pid()
        keeper = Keeper.remote(counter)
        skate.get(keeper.pid.remote())
        del counter
        assert skate.get(increment.remote(skate.get(keeper.get.remote()))) == 1
        keeper.drop.remote()
        eventually(lambda: gone(pid))

    def test_the_end_of_the_actor_that_kept_it(self) -> None:
        counter, pid = counter_and_pid()
        keeper = Keeper.remote(counter)
        skate.get(keeper.pid.remote())
        del counter
        assert lives(pid)
        skate.kill(keeper)
        eventually(lambda: gone(pid))

    def test_a_handle_in_a_running_task_keeps_it(self, gate: Gate) -> None:
        @skate.remote
        def use_late(counter: object) -> int:
            gate.wait()
            return skate.get(counter.increment.remote())

        counter, pid = counter_and_pid()
        ref = use_late.remote(counter)
        del counter
        gate.open()
        assert skate.get(ref) == 1
        eventually(lambda: gone(pid))

    def test_a_handle_in_a_waiting_task_keeps_it(self, gate: Gate) -> None:
        @skate.remote
        def pass_gate() -> None:
            gate.wait()

        @skate.remote
        def use(counter: object, after: None) -> int:
            return skate.get(counter.increment.remote())

        counter, pid = counter_and_pid()
        ref = use.remote(counter, pass_gate.remote())
        del counter
        gate.open()
        assert skate.get(ref) == 1
        eventually(lambda: gone(pid))

    def test_a_result_that_holds_it_keeps_it(self) -> None:
        @skate.remote
        def make() -> tuple[object, int]:
            return counter_and_pid()

        ref = make.remote()
        counter, pid = skate.get(ref)
        del counter
        assert skate.get(skate.get(ref)[0].increment.remote()) == 1
        del ref
        eventually(lambda: gone(pid))

    def test_one_of_an_actor_that_ends(self) -> None:
        @skate.remote
        class Parent:
            def __init__(self) -> None:
                self.child = Counter.remote()

            def pids(self) -> list[int]:
                return [os.getpid(), skate.get(self.child.pid.remote())]

        parent = Parent.remote()
        pids = skate.get(parent.pids.remote())
        del parent
        eventually(lambda: all(map(gone, pids)))

    def test_what_it_started_ends_too(self) -> None:
        @skate.remote
        class Starter:
            def start(self) -> int:
                import subprocess

                self.process = subprocess.Popen(["sleep", "1000"])
                return self.process.pid

        starter = Starter.remote()
        pid = skate.get(starter.start.remote())
        assert lives(pid)
        del starter
        eventually(lambda: gone(pid))

    def test_many_one_after_the_other(self) -> None:
        pids = set()
        for _ in range(10):
            counter, pid = counter_and_pid()
            pids.add(pid)
            del counter
        assert len(pids) == 10  # a process is never used again
        eventually(lambda: all(map(gone, pids)))

    def test_many_at_once(self) -> None:
        counters = [Counter.remote(i) for i in range(10)]
        pids = skate.get([c.pid.remote() for c in counters])
        assert len(set(pids)) == 10
        del counters
        eventually(lambda: all(map(gone, pids)))

    def test_exit_handlers_run(self, tally: Tally) -> None:
        @skate.remote
        class Tidy:
            def __init__(self) -> None:
                import atexit

                atexit.register(tally.add)

            def pid(self) -> int:
                return os.getpid()

        tidy = Tidy.remote()
        pid = skate.get(tidy.pid.remote())
        del tidy
        eventually(lambda: gone(pid))
        assert tally.count == 1
