"""What a callable takes is what a call by hand takes, whatever it wraps, and however it is made."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from skate.callables import body_of, is_generator, name_of, own_signature, plain_arity


def two(a: Any, b: Any) -> Any:
    return a, b


def attempts(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator whose function has one argument less, and a keyword of its own."""

    @functools.wraps(function)
    def wrapper(*args: Any, attempts: int = 3) -> Any:
        return function(*args, attempts)

    return wrapper


def with_one(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(a: Any) -> Any:
        return function(a, 1)

    return wrapper


class Adder:
    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, m: int) -> int:
        return self.n + m

    def add(self, m: int, *, twice: bool = False) -> int:
        return self.n + m * (1 + twice)

    @classmethod
    def make(cls, n: int) -> "Adder":
        return cls(n)

    @with_one
    def both(self, m: int) -> int:
        return self.n + m


class Wrapped(Adder):
    @with_one
    def __call__(self, m: int, k: int) -> int:
        return m + k


CALLABLES = [
    two,
    attempts(two),
    with_one(two),
    functools.lru_cache(two),
    functools.lru_cache(attempts(two)),
    functools.partial(two, 1),
    functools.partial(two, b=1),
    functools.partial(functools.partial(two, 1), 2),
    functools.partial(attempts(two), 1),
    functools.partial(two, 1, 2, 3),
    Adder(1),
    Adder(1).add,
    Adder.make,
    functools.partial(Adder(1).add, twice=True),
    Adder(1).both,
    Wrapped(1),
    lambda *args: args,
    lambda a=1, /, *, b=2: (a, b),
]


@pytest.mark.parametrize("function", CALLABLES, ids=name_of)
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((1,), {}),
        ((1, 2), {}),
        ((1, 2, 3), {}),
        ((), {"b": 1}),
        ((1,), {"b": 2}),
        ((1,), {"m": 2}),
        ((1,), {"twice": True}),
        ((1,), {"attempts": 2}),
    ],
    ids=str,
)
def test_it_takes_what_a_call_takes(function: Callable[..., Any], args: tuple, kwargs: dict) -> None:
    """A signature may let too much through, where something in between takes all; it refuses nothing that works."""
    try:
        function(*args, **kwargs)
        works = True
    except TypeError:
        works = False
    takes = plain_arity(function)
    if works:
        own_signature(function).bind(*args, **kwargs)
        assert kwargs or takes is None or len(args) in takes
    elif takes is not None and not kwargs and type(function) is type(two) and not has_catch_all(function):
        assert len(args) not in takes


def has_catch_all(function: Callable[..., Any]) -> bool:
    return any(each.kind is each.VAR_POSITIONAL for each in own_signature(function).parameters.values())


def test_what_it_refuses_is_the_wrappers_own() -> None:
    for function in (
        with_one(two),
        functools.partial(two, 1),
        Adder(1),
        Wrapped(1),
        functools.lru_cache(with_one(two)),
    ):
        with pytest.raises(TypeError):
            own_signature(function).bind(1, 2)
    assert list(own_signature(attempts(two)).parameters) == ["args", "attempts"]


def test_names() -> None:
    assert [
        name_of(each) for each in (two, attempts(two), functools.partial(functools.partial(two, 1)), len)
    ] == [
        "two",
        "two",
        "two",
        "len",
    ]
    assert name_of(Adder(1)) == "Adder"
    assert name_of(Adder(1).add) == "add"


def test_generators() -> None:
    class Count:
        def __call__(self, n: int) -> Any:
            yield from range(n)

    def count(n: int) -> Any:
        yield from range(n)

    async def slowly(n: int) -> Any:
        yield n

    assert all(map(is_generator, (count, functools.partial(count, 1), Count(), Count().__call__, slowly)))
    assert not any(map(is_generator, (two, Adder(1), Adder, len, functools.lru_cache(two))))
    assert inspect.isfunction(body_of(functools.partial(Count().__call__, 3)))
