"""Where skate rests on more of its dependencies, or of Python, than their documentation promises: named here, once.

A release that changes one of these is met here. Tests: tests/unit/test_dependencies.py, which `tox -e oldest` runs with
the oldest releases that pyproject.toml allows, and CI with the newest.

cloudpickle   `Pickler.dispatch_table` is a ChainMap of type -> reducer, with a reducer of code objects that gives
              (callable, arguments); `Pickler.reducer_override` deals with functions and classes. Since 3.1.3 the
              reducer of code leaves out in which file it was written; older ones keep it. Its reducer of a class gives
              (`_make_skeleton_class`, (…, name, bases, attributes given at the making, …), (attributes, {}), …), and
              the classes it has met are in `_DYNAMIC_CLASS_TRACKER_BY_CLASS`.
linecache     an entry of `cache` is (size, time, lines, name); one without a time came from no file, and is kept:
              a notebook's cell.
copyreg       `_slotnames(cls)` lists the slots of a class and its bases, with private names as they are stored.
numpy         the dtype of an array of a native type is one object for the whole process, and is never freed.

Owns no state but caches. Imports cloudpickle and numpy at first use: most programs that import skate need neither.
"""

from __future__ import annotations

import copyreg
import linecache
from collections.abc import Callable
from functools import cache
from types import CodeType
from typing import Any

from skate._c.steps import section

#: letters of numpy's native types
NATIVE_DTYPES = "?bBhHiIlLqQefdgFDG"
#: cells of notebooks whose source is kept for tracebacks
SOURCES_KEPT = 256


@cache
def cloud_pickler() -> Any:
    """A subclass of cloudpickle's Pickler under which code keeps the name of its file, so that tracebacks show it, and,
    where that is no file but a notebook's cell, the source.

    cloudpickle's own class, which others in the process use, stays as it is.
    """
    with section:  # whoever comes in between would find half a module
        import cloudpickle

    theirs = cloudpickle.Pickler.dispatch_table
    reduce_code = theirs[CodeType]

    def reduce_named(code: CodeType) -> tuple[Any, ...]:
        # A copy of the name for each code object: whether two of them share a string would be seen in the pickle,
        # and functions are known by the digests of theirs.
        return _named_code, (
            *reduce_code(code),
            "".join(code.co_filename),
            _source_without_file(code.co_filename),
        )

    class CloudPickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table = theirs.new_child({CodeType: reduce_named})

    return CloudPickler


#: name -> its entry in linecache, and its source as one string: the same one each time, which a pickle has once
_sources: dict[str, tuple[Any, str]] = {}
#: names of sources that have come from other processes, oldest first
_arrived_sources: dict[str, None] = {}


def is_without_file(name: str) -> bool:
    """Whether linecache knows the source of that name, though there is no file."""
    entry = linecache.cache.get(name)
    return entry is not None and len(entry) == 4 and entry[1] is None


def _source_without_file(name: str) -> str | None:
    if not is_without_file(name):
        return None
    entry = linecache.cache[name]
    known = _sources.get(name)
    if known is None or known[0] is not entry:
        if len(_sources) >= SOURCES_KEPT:
            _sources.clear()
        known = _sources[name] = entry, "".join(entry[2])  # type: ignore[misc]
    return known[1]


def _named_code(
    make: Callable[..., CodeType], arguments: tuple[Any, ...], filename: str, source: str | None = None
) -> CodeType:
    if source is not None and (filename in _arrived_sources or filename not in linecache.cache):
        _arrived_sources[filename] = None
        linecache.cache[filename] = len(source), None, source.splitlines(True), filename
        if len(_arrived_sources) > SOURCES_KEPT:
            oldest = next(iter(_arrived_sources))
            del _arrived_sources[oldest]
            linecache.cache.pop(oldest, None)
    return make(*arguments).replace(co_filename=filename)


@cache
def cloud_skeleton() -> Any:
    """What cloudpickle makes classes with, other than enums."""
    with section:
        from cloudpickle import cloudpickle
    return cloudpickle._make_skeleton_class


def class_numbered(number: str | None) -> type | None:
    """The class that travels under this number of cloudpickle's, if this process has it."""
    with section:
        from cloudpickle import cloudpickle
    return cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(number)  # type: ignore[no-any-return]


def is_importable(thing: Any) -> bool:
    """Whether other processes find it by the name of its module and its own."""
    with section:
        from cloudpickle import cloudpickle
    found = cloudpickle._lookup_module_and_qualname(thing)
    return found is not None and not cloudpickle._is_registered_pickle_by_value(found[0])


def own_slots(cls: type) -> list[str]:
    """The names under which the slots that `cls` itself has stand among its attributes."""
    member = type(_Slotted.slot)  # type: ignore[misc]
    return [name for name, value in vars(cls).items() if isinstance(value, member)]


class _Slotted:
    __slots__ = ("slot",)


def slot_names(cls: type) -> list[str]:
    """The names of the attributes that instances of `cls` keep in slots."""
    return copyreg._slotnames(cls)  # type: ignore[attr-defined,no-any-return]


def native_dtypes() -> dict[str, Any]:
    """Letter -> the one dtype object of that native type."""
    with section:
        import numpy

    return {letter: numpy.dtype(letter) for letter in NATIVE_DTYPES}
