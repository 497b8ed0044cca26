"""What is known of a callable before it is called: its name, the arguments that it takes, what a call of it gives.

A leaf. No state. What counts is what a call by hand would run: a wrapper made with functools.wraps takes the arguments
of its own, not those of what it wraps.
"""

from __future__ import annotations

import functools
import inspect
from types import FunctionType, MethodType
from typing import Any

#: of what does not tell which arguments it takes
ANY_ARGUMENTS = inspect.Signature(
    [
        inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
        inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
    ]
)


def name_of(function: Any) -> str:
    """What people call it: the function's name, behind a functools.partial, too; of other objects their class's."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


def body_of(function: Any) -> Any:
    """The function that a call runs: behind functools.partial, bound methods and objects with `__call__`."""
    while isinstance(function, functools.partial) or type(function) is MethodType:
        function = function.func if isinstance(function, functools.partial) else function.__func__
    if inspect.isroutine(function) or inspect.isclass(function):
        return function
    return inspect.getattr_static(type(function), "__call__", function)


def is_generator(function: Any) -> bool:
    """Whether a call of it gives a generator, of either kind."""
    body = body_of(function)
    return inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body)


def own_signature(function: Any) -> inspect.Signature:
    """The arguments that a call of it takes. ANY_ARGUMENTS where it does not tell."""
    try:
        return inspect.signature(_unwrapped(function))
    except (ValueError, TypeError):
        return ANY_ARGUMENTS


def plain_arity(function: Any, skip: int = 0) -> range | None:
    """How many positional arguments alone make a good call; None where only the signature can tell.

    `skip`: that many come by themselves (self).
    """
    if type(function) is MethodType:
        return plain_arity(function.__func__, skip + 1)
    code = getattr(function, "__code__", None)
    if code is None or code.co_kwonlyargcount:
        return None
    if hasattr(function, "__wrapped__") and type(function) is not FunctionType:
        return None  # it may pass itself off as what it wraps
    most = code.co_argcount - skip
    least = most - len(getattr(function, "__defaults__", None) or ())
    if code.co_flags & inspect.CO_VARARGS:
        return range(max(0, least), 1 << 31)
    return range(max(0, least), most + 1)


def _unwrapped(function: Any) -> Any:
    """Something that takes the same arguments, and that inspect does not follow to what it wraps.

    Raises ValueError for a wrapper of which nobody knows what it takes.
    """
    if type(function) is FunctionType:
        bare = FunctionType(
            function.__code__, {}, function.__name__, function.__defaults__, function.__closure__
        )
        bare.__kwdefaults__ = function.__kwdefaults__
        bare.__annotations__ = function.__annotations__
        return bare
    if type(function) is MethodType:
        return MethodType(_unwrapped(function.__func__), function.__self__)
    if isinstance(function, functools.partial):
        return functools.partial(_unwrapped(function.func), *function.args, **function.keywords)
    if isinstance(function, functools._lru_cache_wrapper):
        return _unwrapped(function.__wrapped__)
    if hasattr(function, "__wrapped__"):
        raise ValueError(f"{function!r} does not tell which arguments it takes")
    if not inspect.isroutine(function) and not inspect.isclass(function):
        call = inspect.getattr_static(type(function), "__call__", None)
        if type(call) is FunctionType:
            return MethodType(_unwrapped(call), function)
    return function
