"""What skate.dependencies takes for granted, with the releases that are installed: `tox -e oldest` has the oldest."""

from __future__ import annotations

import io
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import cloudpickle
import numpy
import pytest
from skate import dependencies, exception_transport
from skate._c import plain
from skate.store.serialization import dump_function, load_function

#: what a program may write, each with all the code that it leads to pickled by value
WRITTEN = """
import functools, dataclasses

def function(): pass
function_with_more = lambda a=(lambda: 1), *, b=(lambda: 2): [x for x in (lambda: 3, a, b)]
def generator(): yield
async def coroutine(): pass
async def agenerator(): yield
def outer():
    variable = lambda: 4
    def closure():
        def deeper(): return variable()
        return deeper
    return closure
closure = outer()
def uses_a_global(): return function()
partial = functools.partial(function)
@functools.wraps(function)
def wrapper(): return function()

class Class:
    def method(self): pass
    @classmethod
    def of_the_class(cls): pass
    @staticmethod
    def static(): pass
    @property
    def property(self): pass
    class Within:
        async def method(self): pass
class Derived(Class):
    def method(self): return super().method()
@dataclasses.dataclass
class Data:
    number: int = 0
    def method(self): pass
bound = Class().method
"""
KINDS = (
    "function", "function_with_more", "generator", "coroutine", "agenerator", "closure", "uses_a_global", "partial",
    "wrapper", "Class", "Derived", "Data", "bound",
)  # fmt: skip


def codes(value: Any, seen: set[int]) -> Iterator[CodeType]:
    """All code that a function or class leads to."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, CodeType):
        yield value
        for constant in value.co_consts:
            yield from codes(constant, seen)
    elif isinstance(value, types.FunctionType):
        yield from codes(value.__code__, seen)
        for cell in value.__closure__ or ():
            yield from codes(cell.cell_contents, seen)
        for other in (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()):
            yield from codes(other, seen)
        for name in value.__code__.co_names:
            yield from codes(value.__globals__.get(name), seen)
    elif isinstance(value, type):
        for base in value.__bases__:
            yield from codes(base, seen)
        for member in vars(value).values():
            yield from codes(member, seen)
    else:
        for name in ("__func__", "fget", "func", "__self__"):
            if hasattr(value, name):
                yield from codes(getattr(value, name), seen)


def through_functions(value: Any) -> Any:
    return load_function(dump_function(value).data)


def through_values(value: Any) -> Any:
    return plain.unpack(plain.to_bytes(plain.serialize([value, {1: value}])))[0]


def through_exceptions(value: Any) -> Any:
    data = exception_transport.dump(Exception(value)).data
    assert data is not None
    return exception_transport.load(data).args[0]


class TestCode:
    """A remote traceback names the file, whatever was pickled by value, wherever it was written."""

    @pytest.mark.parametrize("travels", [through_functions, through_values, through_exceptions])
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("filename", ["/home/me/program.py", "<ipython-input-3-0123456789ab>"])
    def test_keeps_the_name_of_its_file(self, filename: str, kind: str, travels: Callable[..., Any]) -> None:
        written: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(WRITTEN, filename, "exec"), written)
        there = [code for code in codes(travels(written[kind]), set()) if "dataclass" not in code.co_qualname]
        names = {code.co_filename for code in there}
        assert filename in names
        assert "<dynamic-code>" not in names

    def test_of_a_module_that_is_pickled_by_value(self) -> None:
        module = types.ModuleType("mine")
        sys.modules["mine"] = module
        exec(compile(WRITTEN, "/home/me/mine.py", "exec"), vars(module))
        cloudpickle.register_pickle_by_value(module)
        try:
            for kind in KINDS:
                there = codes(through_functions(getattr(module, kind)), set())
                assert "/home/me/mine.py" in {code.co_filename for code in there}
        finally:
            cloudpickle.unregister_pickle_by_value(module)
            del sys.modules["mine"]

    def test_lines_and_names_are_those_of_the_program(self) -> None:
        written: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(WRITTEN, "/home/me/program.py", "exec"), written)
        here, there = written["outer"].__code__, through_functions(written["outer"]).__code__
        assert there == here
        assert (there.co_qualname, list(there.co_lines())) == (here.co_qualname, list(here.co_lines()))

    def test_pickles_alike_after_a_journey(self) -> None:
        """Functions are known by the digests of their pickles: one that was sent on is not another one.

        Where cloudpickle sees to that; the older ones do not.
        """
        written: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(WRITTEN, "/home/me/program.py", "exec"), written)
        theirs = cloudpickle.dumps(written["outer"])
        if cloudpickle.dumps(cloudpickle.loads(theirs)) != theirs:
            pytest.skip("this cloudpickle pickles functions in more than one way")
        once = dump_function(written["outer"])
        assert dump_function(load_function(once.data)).digest == once.digest

    def test_cloudpickle_itself_stays_as_it_is(self) -> None:
        """Another library of the program may use it, in the same process and in others that have no skate."""
        program = (
            "import cloudpickle, sys; f = eval(compile('lambda: 1', '/a/file.py', 'eval'));"
            "print(cloudpickle.dumps(f).hex())"
        )
        before = program.replace(
            "; f", "; import skate; from skate import dependencies; dependencies.cloud_pickler(); f"
        )
        alone, beside = [
            subprocess.run([sys.executable, "-c", text], capture_output=True, check=True, timeout=60).stdout
            for text in (program, before)
        ]
        assert alone == beside


def test_slots_of_all_bases_under_the_names_they_have() -> None:
    class Base:
        __slots__ = ("__private", "a")

    class Derived(Base):
        __slots__ = ("b",)

    assert sorted(dependencies.slot_names(Derived)) == ["_Base__private", "a", "b"]


def test_native_dtypes_are_one_object_each() -> None:
    for letter, dtype in dependencies.native_dtypes().items():
        assert numpy.zeros(3, letter).dtype is dtype
        assert numpy.frombuffer(bytes(dtype.itemsize), dtype).dtype is dtype


def test_classes_by_value() -> None:
    """What skate.reducers rests on: how cloudpickle reduces a class, and the numbers that classes travel under."""

    class Local:
        __slots__ = ("__hidden", "seen")

    pickler = dependencies.cloud_pickler()(io.BytesIO())
    make, arguments, state, _, _, fill = pickler.reducer_override(Local)
    assert make is dependencies.cloud_skeleton()
    _, name, bases, given, number, _ = arguments
    assert (name, bases) == ("Local", (object,))
    assert isinstance(given, dict)
    assert isinstance(state[0], dict)
    assert callable(fill)
    assert dependencies.class_numbered(number) is Local
    assert dependencies.class_numbered("another") is None
    assert sorted(dependencies.own_slots(Local)) == ["_Local__hidden", "seen"]
    assert dependencies.is_importable(io.BytesIO)
    assert not dependencies.is_importable(Local)
