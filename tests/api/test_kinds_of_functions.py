"""What may be made remote besides plain functions, and whose arguments count: those that a call by hand takes."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import skate

pytestmark = pytest.mark.usefixtures("cpu2")


def pair(a: Any, b: Any) -> tuple[Any, Any]:
    return a, b


class Call:
    """Its attributes are named as some of a remote function's."""

    def __init__(self) -> None:
        self._name = self.options = self._function = 1

    def __call__(self, b: Any) -> tuple[Any, Any]:
        return self._function, b

    def method(self, b: Any) -> tuple[Any, Any]:
        return 1, b


class Count:
    def __call__(self, n: int) -> Iterator[int]:
        yield from range(n)


def attempts(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, attempts: int = 3) -> Any:
        return function(*args, attempts)

    return wrapper


@pytest.mark.parametrize(
    "function",
    [
        functools.partial(pair, 1),
        functools.partial(functools.partial(pair), 1),
        Call(),
        Call().method,
        functools.partial(Call()),
    ],
    ids=["partial", "partial of a partial", "object", "bound method", "partial of an object"],
)
def test_all_that_can_be_called(function: Callable[..., Any]) -> None:
    remote = skate.remote(function)
    assert skate.get([remote.remote(2), remote.options(num_cpus=0.5).remote(b=2)]) == [(1, 2)] * 2
    with pytest.raises(TypeError):
        remote.remote(2, 3, 4)
    assert "remote function" in repr(remote)


def test_what_is_written_in_c() -> None:
    assert skate.get([skate.remote(len).remote("abc"), skate.remote(np.add).remote(1, 2)]) == [3, 3]


def test_an_object_that_yields() -> None:
    assert [skate.get(ref) for ref in skate.remote(Count()).remote(3)] == [0, 1, 2]
    assert [skate.get(ref) for ref in skate.remote(functools.partial(Count(), 2)).remote()] == [0, 1]


def test_their_names() -> None:
    @skate.remote
    def fail(a: int) -> None:
        raise ValueError(a)

    with pytest.raises(skate.exceptions.TaskError, match=r"^fail\(\) failed"):
        skate.get(skate.remote(functools.partial(fail._function, 1)).remote())


def test_no_async_function_however_it_is_wrapped() -> None:
    class Slow:
        async def __call__(self) -> None: ...

    for function in (Slow(), functools.partial(Slow()), Slow().__call__):
        with pytest.raises(ValueError, match="async def"):
            skate.remote(function)


class TestWrappers:
    """Of a functools.wraps wrapper, its own arguments count, not those of what it wraps."""

    @pytest.mark.parametrize(("keywords", "right"), [({}, (1, 3)), ({"attempts": 5}, (1, 5))], ids=str)
    def test_of_functions_and_methods(self, keywords: dict, right: tuple) -> None:
        @skate.remote
        @attempts
        def wrapped(a: Any, b: Any) -> tuple[Any, Any]:
            return a, b

        class Actor:
            @attempts
            def pair(self, a: Any, b: Any) -> tuple[Any, Any]:
                return a, b

        actor = skate.remote(Actor).options(num_cpus=0).remote()
        assert skate.get([wrapped.remote(1, **keywords), actor.pair.remote(1, **keywords)]) == [right] * 2

    def test_whose_kind_is_their_own(self) -> None:
        """A coroutine function around a plain one, a generator around one that is none."""

        def later(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            async def wrapper(*args: Any) -> Any:
                return function(*args)

            return wrapper

        def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            def wrapper(*args: Any) -> Iterator[Any]:
                yield from function(*args)

            return wrapper

        class Actor:
            @later
            def double(self, x: int) -> int:
                return 2 * x

            @one_by_one
            def count(self, n: int) -> range:
                return range(n)

        actor = skate.remote(Actor).options(num_cpus=0).remote()
        assert skate.get(actor.double.remote(3)) == 6
        assert [skate.get(ref) for ref in actor.count.remote(3)] == [0, 1, 2]

    def test_of_a_constructor(self) -> None:
        def with_seven(init: Callable[..., None]) -> Callable[..., None]:
            @functools.wraps(init)
            def wrapper(self: Any) -> None:
                init(self, 7)

            return wrapper

        @skate.remote(num_cpus=0)
        class Actor:
            @with_seven
            def __init__(self, number: int) -> None:
                self.number = number

            def get(self) -> int:
                return self.number

        assert skate.get(Actor.remote().get.remote()) == 7
        with pytest.raises(TypeError):
            Actor.remote(8)
