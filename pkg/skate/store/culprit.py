"""Finds the part of a value that cannot be pickled, and the path to it.

Owns no state. `skate.store.serialization` calls `explain` once pickling has failed, so speed matters
little, but the value may be huge or cyclic: each step pickles parts again to see which one fails, halving
long containers, until no part of what is left fails alone, or the budget is spent and the path so far is
the answer.

The parts of an object are what it gives to pickle (`__reduce_ex__`), so what a `__getstate__` leaves out is
not blamed. The parts of a function that travels by value are its closure, the globals it names, its
defaults and its attributes; of a class, its members.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from skate._c import plain
from skate._c.clock import monotonic, thread_time

#: seconds of CPU that the search may take; and in all, on a machine that has other work to do
BUDGET_S = 2.0
PATIENCE_S = 20.0
#: containers up to this long are tried part by part, longer ones by halves
ONE_BY_ONE = 32
MAX_DEPTH = 100
_REPR_LIMIT_CHARS = 120

_GLOBAL_OPS = frozenset({"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL"})
_LEAVE_OUT = (
    "Leave it out in the owner's __getstate__(), or give its class a __reduce__() that makes it again."
)
_HINTS: dict[str, str] = {
    "lock": "A lock belongs to one process: make it inside the task, or use an actor to share state.",
    "RLock": "A lock belongs to one process: make it inside the task, or use an actor to share state.",
    "generator": "A generator cannot leave its process: pass list(...) of it, or make it inside the task.",
    "coroutine": "A coroutine cannot leave its process: await it first and pass the result.",
    "async_generator": "An async generator cannot leave its process: make it inside the task.",
    "socket": "A connection belongs to one process: pass the address and connect inside the task.",
    "Connection": "A connection belongs to one process: pass the address and connect inside the task.",
    "TextIOWrapper": "An open file belongs to one process: pass its path and open it inside the task.",
    "BufferedReader": "An open file belongs to one process: pass its path and open it inside the task.",
    "BufferedWriter": "An open file belongs to one process: pass its path and open it inside the task.",
    "Thread": "A thread belongs to one process: start it inside the task.",
    "Future": "A future belongs to one process: wait for it and pass the result.",
    "Task": "An asyncio task belongs to one process: await it and pass the result.",
    "frame": "A frame belongs to one process: format it to text first.",
    "traceback": "A traceback belongs to one process: format it to text first (traceback.format_exc()).",
    "PickleBuffer": "Its memory is not contiguous: pickle a contiguous copy, say bytes(...) of what it views.",
    "weakref": "A weak reference cannot travel: pass the object itself.",
    "ReferenceType": "A weak reference cannot travel: pass the object itself.",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a value: its path and, where that begins anew (a function's variable), what it belongs to."""

    path: str
    value: object
    belongs: str = ""


def explain(value: object, root_name: str) -> str:
    """Where in `value` pickling fails, what is there, and what to do: "x['a'][2].lock is a _thread.lock …".

    Never raises for what the value does; runs the value's own pickling code.
    """
    if _too_deep(value):
        return f"{root_name} is nested too deeply to be pickled: flatten it, or pass its parts one by one."
    search = _Search(thread_time() + BUDGET_S, monotonic() + PATIENCE_S)
    part, notes = Part(root_name, value), []
    for _ in range(MAX_DEPTH):
        below = search.first_failing(part)
        if below is None:
            break
        part = below
        if part.belongs:
            notes.append(part.belongs)
    text = f"{part.path} is {_described(part.value)}, and {search.reason(part.value)}."
    if search.spent():
        text += " (The search for the part of it that fails took too long; it is somewhere in there.)"
    return " ".join([text, *(f"{note}." for note in reversed(notes)), _hint(part.value)])


class _Search:
    """One search: its deadlines, and the objects on the way down, so that a cycle is not walked twice."""

    def __init__(self, deadline: float, at_last: float) -> None:
        self._deadline = deadline
        self._at_last = at_last
        self._on_path: dict[int, object] = {}

    def spent(self) -> bool:
        return thread_time() > self._deadline or monotonic() > self._at_last

    def first_failing(self, part: Part) -> Part | None:
        """The first part of `part` that fails to pickle by itself, or None."""
        self._on_path[id(part.value)] = part.value
        try:
            parts = [below for below in _parts(part) if id(below.value) not in self._on_path]
        except Exception:  # its __reduce_ex__ raises, so the object itself is the culprit; reason() says how
            return None
        return self._bisect(parts)

    def _bisect(self, parts: Sequence[Part]) -> Part | None:
        while len(parts) > ONE_BY_ONE:
            half = len(parts) // 2
            if self.spent():
                return None
            parts = parts[:half] if _failure([below.value for below in parts[:half]]) else parts[half:]
        return next((below for below in parts if not self.spent() and _failure(below.value)), None)

    def reason(self, value: object) -> str:
        failure = _failure(value)
        if failure is None:  # only together with the rest, say by its sheer depth
            return "it fails only together with what holds it"
        return f"pickling it raised {failure.kind}" + (
            f": {failure.text.rstrip('.')}" if failure.text else ""
        )


class _Failure(NamedTuple):
    """What pickling raised, told: the exception leads to frames, and these to it and to memoryviews.

    Such a cycle must not be left to the garbage collector, which CPython lets clear memoryviews that are in use.
    """

    kind: str
    text: str  #: its first line
    too_deep: bool


def _failure(value: object) -> _Failure | None:
    try:
        plain.serialize(value)
    except Exception as error:
        too_deep = isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError)
        return _Failure(type(error).__name__, str(error).strip().partition("\n")[0], too_deep)
    return None


def _too_deep(value: object) -> bool:
    failure = _failure(value)
    return failure is not None and failure.too_deep


def _parts(part: Part) -> Iterator[Part]:
    """What is pickled along with `part`. Raises what the value's `__reduce_ex__` raises."""
    value = part.value
    for kind, parts_of in _PARTS_OF:
        if isinstance(value, kind):
            yield from parts_of(part.path, value)
            if type(value) is kind or kind in _WHOLE:
                return
            break
    yield from _reduced_parts(part.path, value)


def _dict_parts(path: str, value: dict) -> Iterator[Part]:
    for key, item in value.items():
        yield Part(f"{path}[{_short(key)}]", item)
        yield Part(f"the key {_short(key)} of {path}", key)


def _sequence_parts(path: str, value: Sequence[object]) -> Iterator[Part]:
    for index, item in enumerate(value):
        yield Part(f"{path}[{index}]", item)


def _set_parts(path: str, value: set | frozenset) -> Iterator[Part]:
    for item in value:
        yield Part(f"the element {_short(item)} of {path}", item)


def _partial_parts(path: str, value: functools.partial) -> Iterator[Part]:
    yield Part(f"{path}.func", value.func)
    yield Part(f"{path}.args", value.args)
    yield Part(f"{path}.keywords", value.keywords)


def _method_parts(path: str, value: types.MethodType) -> Iterator[Part]:
    yield Part(f"{path}.__self__", value.__self__)
    yield Part(f"{path}.__func__", value.__func__)


def _wrapper_parts(path: str, value: Any) -> Iterator[Part]:
    yield Part(path, value.__func__)


def _property_parts(path: str, value: property) -> Iterator[Part]:
    for name in ("fget", "fset", "fdel"):
        yield Part(f"{path}.{name}", getattr(value, name))


def _function_parts(path: str, function: types.FunctionType) -> Iterator[Part]:
    """Of a function that is pickled by value; one pickled by reference has none, its name is what fails."""
    owner = f"{function.__qualname__}()"
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            content = cell.cell_contents
        except ValueError:  # not yet assigned
            continue
        yield Part(name, content, f"{name} is a closure variable of {owner}")
    for name in _global_names(function.__code__):
        if name in function.__globals__:
            yield Part(name, function.__globals__[name], f"{name} is a global variable that {owner} uses")
    for index, default in enumerate(function.__defaults__ or ()):
        yield Part(f"{path}.__defaults__[{index}]", default)
    for name, default in (function.__kwdefaults__ or {}).items():
        yield Part(f"{path}.__kwdefaults__[{name!r}]", default)
    for name, attribute in vars(function).items():
        yield Part(f"{path}.{name}", attribute)


def _global_names(code: types.CodeType) -> Iterator[str]:
    """The globals that a function's code and inner functions refer to: what cloudpickle sends along."""
    yield from dict.fromkeys(step.argval for step in dis.get_instructions(code) if step.opname in _GLOBAL_OPS)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _class_parts(path: str, cls: type) -> Iterator[Part]:
    for base in cls.__bases__:
        yield Part(f"{path}'s base {base.__name__}", base)
    for name, member in vars(cls).items():
        if name not in ("__dict__", "__weakref__"):
            yield Part(f"{path}.{name}", member)


def _reduced_parts(path: str, value: Any) -> Iterator[Part]:
    """What `value` gives to pickle: constructor arguments, state, and the items of a container."""
    reduced = value.__reduce_ex__(5)
    if not isinstance(reduced, tuple):  # a global's name
        return
    function, args, state, items, pairs = (*reduced[:5], None, None, None)[:5]
    if getattr(function, "__module__", "") != "copyreg":  # copyreg.__newobj__(cls, *args) has the class first
        yield Part(f"{path}.__reduce__()[0]", function)
    if state is not None:
        yield from _state_parts(path, state)
    for index, arg in enumerate(args):
        if arg is not type(value):
            yield Part(_argument_path(path, value, index), arg)
    yield Part(f"type({path})", type(value))
    yield from _sequence_parts(path, tuple(items or ()))
    for key, item in pairs or ():
        yield Part(f"{path}[{_short(key)}]", item)


def _argument_path(path: str, value: object, index: int) -> str:
    if isinstance(value, BaseException):
        return f"{path}.args[{index}]"
    return f"argument {index} of {path}.__reduce__()"


def _state_parts(path: str, state: object) -> Iterator[Part]:
    """State is `__dict__`, or (`__dict__` or None, slots), or whatever `__getstate__` returned."""
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    if all(part is None or isinstance(part, dict) for part in parts):
        for attributes in parts:
            for name, attribute in (attributes or {}).items():  # type: ignore[union-attr,attr-defined]
                yield Part(f"{path}.{name}", attribute)
    else:
        yield Part(f"{path}.__getstate__()", state)


#: type -> its parts, the first that fits. Instances of a subclass have attributes beside these, so they are
#: asked for what they reduce to as well, but for the types in _WHOLE.
_PARTS_OF: list[tuple[type, Callable[[str, Any], Iterator[Part]]]] = [
    (dict, _dict_parts),
    (list, _sequence_parts),
    (tuple, _sequence_parts),
    (set, _set_parts),
    (frozenset, _set_parts),
    (functools.partial, _partial_parts),
    (types.FunctionType, _function_parts),
    (types.MethodType, _method_parts),
    (classmethod, _wrapper_parts),
    (staticmethod, _wrapper_parts),
    (property, _property_parts),
    (type, _class_parts),
]
_WHOLE = (functools.partial, types.FunctionType, types.MethodType, classmethod, staticmethod, property, type)


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__}, whose repr() raised {type(error).__name__}>"
    return text if len(text) <= _REPR_LIMIT_CHARS else text[:_REPR_LIMIT_CHARS] + "…"


def _described(value: object) -> str:
    kind = type(value)
    plain_name = kind.__module__ in ("builtins", "__main__")
    full = kind.__qualname__ if plain_name else f"{kind.__module__}.{kind.__qualname__}"
    return f"{'an' if full[:1].lower() in 'aeiou' else 'a'} {full}"


def _hint(value: object) -> str:
    for cls in type(value).__mro__:
        if cls.__name__ in _HINTS:
            return _HINTS[cls.__name__]
    return _LEAVE_OUT
