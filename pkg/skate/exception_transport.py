"""Makes any exception fit to travel: dump it in one process, build it again in another.

Pickle's own way calls `type(exc)(*exc.args)`, which loses or garbles every class whose `__init__` takes other
arguments than it hands to `super().__init__`. Here an exception is built again without its `__init__`: by the
built-in class it stands on, from that class's own arguments, and then its attributes are put back. Classes
that define their own pickling (`__reduce__`, `__setstate__`, copyreg) keep it. What it was raised from, or while, comes
along (`__cause__`, `__context__`), which pickle leaves behind, if it can be pickled.

Owns no state. Callers: `skate.task_error`, and `skate._c.plain` for exceptions among values. `dump` never
raises for what a user's exception does: what cannot travel is named in its answer instead, since the task's
error must arrive whatever happens.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import traceback
from collections import ChainMap, deque
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple, cast

from skate import dependencies, reducers

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: set for classes made at run time, clear for built-in ones
_REPR_LIMIT_CHARS = 200
#: exceptions of a chain of causes and contexts that travel, the nearest first
_CHAIN_LIMIT = 16


class Dumped(NamedTuple):
    """An exception as bytes, as far as it could be."""

    data: bytes | None  #: None where not even the class could be pickled
    note: str  #: what was left behind and why; empty when all of it travels
    refs: tuple[Any, ...] = ()  #: the ObjectRefs inside


def dump(exc: BaseException) -> Dumped:
    """Pickle `exc` whole, else without its chain, or the attributes that cannot be pickled, else not at all."""
    chain = _chain(exc)
    try:
        return Dumped(*_pickle(exc, chain))
    except Exception as whole_error:
        if not chain:
            return _dump_what_travels(exc, whole_error)
    try:  # (its text tells of the chain all the same)
        return Dumped(*_pickle(exc))
    except Exception as own_error:
        return _dump_what_travels(exc, own_error)


def _chain(exc: BaseException) -> list[BaseException]:
    """Those that have a cause or context that is to travel: `exc`, and so on along the chain."""
    linked: list[BaseException] = []
    coming = deque([exc])
    seen = {id(exc)}
    while coming and len(linked) < _CHAIN_LIMIT:
        each = coming.popleft()
        links = [link for link in (each.__cause__, each.__context__) if link is not None]
        if links:
            linked.append(each)
        for link in links:
            if id(link) not in seen:
                seen.add(id(link))
                coming.append(link)
    return linked


def _linked(exc: BaseException, reduced: Any) -> Any:
    """What a `__reduce__` has returned for `exc`, with its links beside its state."""
    links = exc.__cause__, exc.__context__, exc.__suppress_context__
    made_by, args, state, items, pairs, set_state = (*reduced, None, None, None, None)[:6]
    return made_by, args, (links, state, set_state), items, pairs, _set_linked


def _set_linked(exc: BaseException, linked: tuple[Any, Any, Any]) -> None:
    links, state, set_state = linked
    if state is not None:
        if set_state is not None:
            set_state(exc, state)
        else:
            exc.__setstate__(state)  # that of BaseException, or the class's own
    exc.__cause__, exc.__context__, exc.__suppress_context__ = links


def load(data: bytes) -> BaseException:
    """The exception again. Raises what unpickling raises: the class may be missing here."""
    exc = pickle.loads(data)
    if not isinstance(exc, BaseException):  # a `__reduce__` of the user's may answer anything
        raise TypeError(f"the pickle of an exception gave a {type(exc).__name__}")
    return exc


def reduce(exc: BaseException) -> tuple:
    """What a `__reduce__` returns to have `exc` built again without its `__init__`."""
    return _blank, (type(exc), _native_args(exc)), _state(exc), None, None, _set_state


def rebuild(cls: type[BaseException], source: BaseException) -> BaseException:
    """A new `cls`, a subclass of `source`'s class, with the arguments and attributes of `source`.

    Runs no `__init__` of the user's. Raises whatever the built-in base's constructor raises.
    """
    return _build(cls, _native_args(source), _state(source))


def native_base(cls: type) -> type:
    """The built-in class whose memory layout `cls` has: OSError for a subclass of OSError, and so on."""
    while cls.__flags__ & _HEAP_TYPE:
        cls = cast(type, cls.__base__)
    return cls


def _native_reduce(exc: BaseException) -> Any:
    """(class, arguments) or (class, arguments, state), by the built-in base, past the user's `__reduce__`."""
    base: Any = native_base(type(exc))
    return base.__reduce__(exc)


def _native_args(exc: BaseException) -> tuple:
    return _native_reduce(exc)[1]


def _state(exc: BaseException) -> tuple[dict[str, Any], dict[str, Any]]:
    """(`__dict__`, what lives elsewhere: slots, and C members such as ImportError.name)."""
    reduced = _native_reduce(exc)
    own = dict(vars(exc))
    given = (reduced[2] or {}) if len(reduced) > 2 else {}
    members = {name: value for name, value in given.items() if name not in own}
    for name in dependencies.slot_names(type(exc)):
        if hasattr(exc, name):
            members[name] = getattr(exc, name)
    return own, members


def _blank(cls: type[BaseException], args: tuple) -> BaseException:
    """A `cls` with the C fields that its built-in base makes of `args`, and no attributes yet."""
    base: Any = native_base(cls)
    exc: BaseException = base.__new__(cls, *args)
    try:
        base.__init__(exc, *args)
    except TypeError:  # say a UnicodeDecodeError whose subclass never called super().__init__
        exc.args = args
    return exc


def _set_state(exc: BaseException, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Past every `__setattr__` and property of the user's: a frozen dataclass can be an exception too."""
    own, members = state
    vars(exc).update(own)
    for name, value in members.items():
        object.__setattr__(exc, name, value)


def pickles_as_usual(cls: type) -> bool:
    """Whether nobody below the built-in base has a say in how `cls` is pickled."""
    base = native_base(cls)
    return (
        cls.__reduce__ is base.__reduce__
        and cls.__reduce_ex__ is object.__reduce_ex__
        and getattr(cls, "__setstate__", None) is getattr(base, "__setstate__", None)
        and cls not in copyreg.dispatch_table
    )


@cache
def _pickler_class() -> type:
    from skate._c.refs import ObjectRef  # which imports this module

    class ExceptionPickler(dependencies.cloud_pickler()):
        def __init__(self, file: io.BytesIO, linked: list[BaseException]) -> None:
            super().__init__(file, protocol=5)
            self.dispatch_table = ChainMap(*self.dispatch_table.maps, reducers.table())
            self.refs: list[ObjectRef] = []
            self._linked = {id(exc) for exc in linked}

        def reducer_override(self, obj: Any) -> Any:
            if type(obj) is ObjectRef:
                self.refs.append(obj)
            if not isinstance(obj, BaseException):
                reduced = super().reducer_override(obj)
                return (
                    reducers.of_definition(obj, reduced) if isinstance(obj, type | FunctionType) else reduced
                )
            usual = pickles_as_usual(type(obj))
            if id(obj) not in self._linked:
                return reduce(obj) if usual else super().reducer_override(obj)
            reduced = reduce(obj) if usual else _reduced(obj)
            return _linked(obj, reduced) if type(reduced) is tuple else reduced

    return ExceptionPickler


def _reduced(exc: BaseException) -> Any:
    """As its class would have it."""
    registered: Any = copyreg.dispatch_table.get(type(exc))
    return exc.__reduce_ex__(5) if registered is None else registered(exc)


def _pickle(value: object, linked: list[BaseException] | None = None) -> tuple[bytes, str, tuple[Any, ...]]:
    """(the pickle, "", the ObjectRefs inside): Dumped's fields. `linked` are those whose causes and contexts count."""
    file = io.BytesIO()
    pickler = _pickler_class()(file, linked or [])
    pickler.dump(value)
    return file.getvalue(), "", tuple(pickler.refs)


def _dump_what_travels(exc: BaseException, whole_error: Exception) -> Dumped:
    """Leave out each attribute, and put the repr of each argument, that cannot be pickled by itself."""
    lost: list[str] = []
    try:
        args = tuple(_argument_or_repr(index, arg, lost) for index, arg in enumerate(_native_args(exc)))
        own, members = ({k: v for k, v in part.items() if _travels(k, v, lost)} for part in _state(exc))
        data, _, refs = _pickle(_Rebuilt(type(exc), args, (own, members)))
    except Exception as class_error:
        return Dumped(None, f"{_describe(whole_error)}; without its attributes: {_describe(class_error)}")
    return Dumped(data, "left behind: " + "; ".join(lost) if lost else _describe(whole_error), refs)


class _Rebuilt:
    """Stands for an exception to be built from parts; unpickles as the exception itself."""

    def __init__(self, cls: type[BaseException], args: tuple, state: tuple[dict, dict]) -> None:
        self.parts = cls, args, state

    def __reduce__(self) -> tuple:
        return _build, self.parts


def _build(cls: type[BaseException], args: tuple, state: tuple[dict, dict]) -> BaseException:
    exc = _blank(cls, args)
    _set_state(exc, state)
    return exc


def _argument_or_repr(index: int, arg: object, lost: list[str]) -> object:
    return arg if _travels(f"args[{index}]", arg, lost) else _short_repr(arg)


def _travels(name: str, value: object, lost: list[str]) -> bool:
    try:
        _pickle(value)
    except Exception as error:
        lost.append(f"{name} ({_describe(error)})")
        return False
    return True


def _describe(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


def _short_repr(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__}, whose repr() raised {type(error).__name__}>"
    return text if len(text) <= _REPR_LIMIT_CHARS else text[:_REPR_LIMIT_CHARS] + "…"
