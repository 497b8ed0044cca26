"""Where skate rests on more of its dependencies, or of Python, than their documentation promises: named here, once.

A release that changes one of these is met here. Tests: tests/unit/test_dependencies.py, which `tox -e oldest` runs with
the oldest releases that pyproject.toml allows, and CI with the newest.

cloudpickle   `Pickler.dispatch_table` is a ChainMap of type -> reducer, with a reducer of code objects that gives
              (callable, arguments); `Pickler.reducer_override` deals with functions and classes. Since 3.1.3 the
              reducer of code leaves out in which file it was written; older ones keep it.
copyreg       `_slotnames(cls)` lists the slots of a class and its bases, with private names as they are stored.
numpy         the dtype of an array of a native type is one object for the whole process, and is never freed.

Owns no state but caches. Imports cloudpickle and numpy at first use: most programs that import skate need neither.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from functools import cache
from types import CodeType
from typing import Any

from skate._c.steps import section

#: letters of numpy's native types
NATIVE_DTYPES = "?bBhHiIlLqQefdgFDG"


@cache
def cloud_pickler() -> Any:
    """A subclass of cloudpickle's Pickler under which code keeps the name of its file, so that tracebacks show it.

    cloudpickle's own class, which others in the process use, stays as it is.
    """
    with section:  # whoever comes in between would find half a module
        import cloudpickle

    theirs = cloudpickle.Pickler.dispatch_table
    reduce_code = theirs[CodeType]

    def reduce_named(code: CodeType) -> tuple[Any, ...]:
        # A copy of the name for each code object: whether two of them share a string would be seen in the pickle,
        # and functions are known by the digests of theirs.
        return _named_code, (*reduce_code(code), "".join(code.co_filename))

    class CloudPickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table = theirs.new_child({CodeType: reduce_named})

    return CloudPickler


def _named_code(make: Callable[..., CodeType], arguments: tuple[Any, ...], filename: str) -> CodeType:
    return make(*arguments).replace(co_filename=filename)


def slot_names(cls: type) -> list[str]:
    """The names of the attributes that instances of `cls` keep in slots."""
    return copyreg._slotnames(cls)  # type: ignore[attr-defined,no-any-return]


def native_dtypes() -> dict[str, Any]:
    """Letter -> the one dtype object of that native type."""
    with section:
        import numpy

    return {letter: numpy.dtype(letter) for letter in NATIVE_DTYPES}
