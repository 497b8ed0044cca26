"""What travels, at what cost, and as what: arrays of every kind, other libraries' values, definitions of `__main__`.

The kinds: a value's bytes go into the store once and out of band, whatever class they are in; a part of something
takes its own size; a definition that travels by value comes back as the program has it; what pickle refuses although it
is made of what travels (a cache, a slot, a context variable) travels.
"""

from __future__ import annotations

import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skate
from skate._c import plain
from skate.store.serialization import from_bytes, serialize, to_bytes

Subprocess = Callable[..., Any]
LARGE = 200_000


class Signal(np.ndarray):
    """A subclass of the plainest kind."""

    unit = "V"


def there_and_back(value: Any) -> Any:
    return from_bytes(to_bytes(serialize(value)))


def weighs_one_copy(value: Any, nbytes: int) -> plain.Serialized:
    """The pickle is small, and the bytes lie beside it, once."""
    packed = serialize(value)
    assert len(packed.inband) < 5_000
    assert nbytes <= packed.total_bytes < nbytes * 9 // 8 + 10_000
    return packed


def recarray() -> np.recarray:
    return np.rec.array(np.zeros(LARGE // 16, [("a", "f8"), ("b", "i8")]))


def memmap() -> np.ndarray:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        made = np.memmap(file.name, np.float64, "w+", shape=(LARGE // 8,))
        made[:] = 3
    return made


ARRAYS = {
    "recarray": recarray,
    "memmap": memmap,
    "matrix": lambda: np.asmatrix(np.arange(LARGE // 8, dtype="f8").reshape(100, -1)),
    "subclass": lambda: np.arange(LARGE // 8).view(Signal),
    "subclass, transposed": lambda: np.arange(LARGE // 8).reshape(10, 50, -1).transpose(1, 0, 2).view(Signal),
    "transposed": lambda: np.arange(LARGE // 8).reshape(10, 50, -1).transpose(1, 2, 0),
    "of Fortran's order": lambda: np.asfortranarray(np.arange(LARGE // 8).reshape(100, -1)),
    "dates": lambda: np.arange(LARGE // 8).astype("M8[s]").reshape(10, 50, -1).transpose(2, 0, 1),
    "masked": lambda: np.ma.masked_less(np.arange(LARGE // 8), 5),
    "structures": lambda: np.zeros((50, LARGE // 800), [("a", "f8"), ("b", "i8")]).T,
}


@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: {"in": [value]}], ids=["bare", "inside"])
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_are_shared(kind: str, wrap: Callable[[Any], Any]) -> None:
    """Of every class that adds no pickling of its own: read-only views of the block, with class, type, strides."""
    sent = ARRAYS[kind]()
    weighs_one_copy(wrap(sent), sent.nbytes)
    back = there_and_back(wrap(sent))
    back = back["in"][0] if isinstance(back, dict) else back
    assert type(back) is type(sent)
    assert (back.dtype, back.shape) == (sent.dtype, sent.shape)
    assert back.strides == sent.strides
    assert np.array_equal(np.asarray(back), np.asarray(sent))
    data = back.data if isinstance(back, np.ma.MaskedArray) else back
    assert not data.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(data).ravel(order="K").view("u1")[0] = 1
    if isinstance(sent, np.ma.MaskedArray):
        assert (back.mask == sent.mask).all()
        assert back.fill_value == sent.fill_value


@pytest.mark.parametrize(
    "sent",
    [
        np.zeros((0, 3)).view(Signal),
        np.array([None, "a"], object).view(Signal),
        np.array(5.0).view(Signal),
        np.arange(10)[::-1],
        np.arange(24).reshape(4, 6)[:, ::2].view(Signal),
        np.broadcast_to(np.arange(3), (4, 3)),
        np.ma.masked_all((0,)),
        np.array([], "M8[s]"),
        np.zeros((3, 1, 2)).transpose(2, 1, 0),
    ],
    ids=repr,
)
def test_odd_arrays(sent: np.ndarray) -> None:
    back = there_and_back([sent])[0]
    assert type(back) is type(sent)
    assert (back.dtype, back.shape) == (sent.dtype, sent.shape)
    assert np.array_equal(np.asarray(back), np.asarray(sent))


class Informed(np.ndarray):
    """A subclass that pickles an attribute of its own, as numpy's documentation has it."""

    def __reduce__(self) -> Any:
        make, arguments, state = super().__reduce__()  # type: ignore[misc]
        return make, arguments, (*state, self.info)  # type: ignore[attr-defined]

    def __setstate__(self, state: Any) -> None:
        self.info = state[-1]
        super().__setstate__(state[:-1])


def test_pickling_of_a_subclass_counts() -> None:
    sent = np.arange(5).view(Informed)
    sent.info = "of its own"
    back = there_and_back(sent)
    assert (back.info, back.tolist()) == ("of its own", [0, 1, 2, 3, 4])


def test_parts_take_their_own_size() -> None:
    """A slice of an arrow table, batch, array; of what a polars frame has; a view of a buffer."""
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"number": np.arange(200_000), "text": pa.array(["abcdefgh", None] * 100_000)})
    mixed = pa.chunked_array(
        [pa.array(["a", "b"] * 50_000).dictionary_encode(), pa.array(["c"]).dictionary_encode()]
    )
    for whole in (
        table, table.combine_chunks().to_batches()[0], table["text"], table["number"].combine_chunks(), mixed,
        pa.array([[1, 2], [3]] * 50_000), pa.array([{"a": 1}, None] * 50_000), pa.array([True, None] * 100_000),
    ):  # fmt: skip
        part = whole.slice(1000, 100)
        assert serialize(part).total_bytes < 30_000
        for sent in (whole, part, whole.slice(5, 0)):
            back = there_and_back([sent])[0]
            assert type(back) is type(sent)
            assert back.equals(sent)
    weighs_one_copy(table, table.nbytes)
    view = memoryview(bytes(range(256)) * 1000)[100:200]
    assert serialize(view).total_bytes < 200
    assert serialize([view]).total_bytes < 1000
    assert there_and_back([view]) == [bytes(view)]
    assert serialize(np.arange(100_000)[500:600]).total_bytes < 1000
    assert serialize(pa.py_buffer(bytes(100_000)).slice(5, 10)).total_bytes < 1000


@pytest.fixture(scope="module")
def polars() -> Any:
    """With the descriptors open that it keeps."""
    library = pytest.importorskip("polars")
    library.DataFrame({"a": [1]}).lazy().collect()
    return library


def test_polars_frames(polars: Any) -> None:
    pl = polars
    frame = pl.DataFrame({"a": range(50_000), "b": ["some text"] * 50_000, "c": [None, 1.5] * 25_000})
    weighs_one_copy(frame.drop("b"), 50_000 * 8 * 2)
    assert there_and_back([frame])[0].equals(frame)
    assert there_and_back(frame["b"]).equals(frame["b"])
    assert there_and_back(frame["b"]).name == "b"
    assert serialize(frame.slice(10, 5)).total_bytes < 5_000
    assert there_and_back(frame.lazy().filter(pl.col("a") < 3)).collect().equals(frame.head(3))


def test_tensors() -> None:
    """A private writable copy of its own size; or, where the user says so, a view of the store."""
    torch = pytest.importorskip("torch")
    whole = torch.arange(100_000, dtype=torch.float32).reshape(10, 100, 100)
    for sent in (whole, whole.transpose(0, 2), whole[3], whole.bfloat16(), torch.zeros(0), whole[:, ::2]):
        back = there_and_back([sent])[0]
        assert torch.equal(back, sent)
        assert back.dtype == sent.dtype
        back += 1
    assert there_and_back(whole.transpose(0, 2)).stride() == whole.transpose(0, 2).stride()
    assert serialize(whole[3, :5, :5]).total_bytes < 5_000
    weighs_one_copy(whole, 400_000)


def test_standard_arrays() -> None:
    sent = array.array("d", range(LARGE // 8))
    weighs_one_copy([sent], LARGE)
    back = there_and_back([sent])[0]
    assert back == sent
    back.append(1.0)
    assert there_and_back(array.array("i")) == array.array("i")


def test_an_argument_is_pickled_once(cpu2: None) -> None:
    """Whatever it is and however it is passed: its own pickling code runs once a call, and the bytes are there once."""
    times = 0

    class Counted:
        def __init__(self, n: int) -> None:
            self.data = bytes(n)

        def __reduce__(self) -> Any:
            nonlocal times
            times += 1
            return Counted, (1,), {"data": self.data}

    @skate.remote
    def sizes(*args: Any, **kwargs: Any) -> list[int]:
        return [len(value.data) for value in [*args, *kwargs.values()] if hasattr(value, "data")]

    @skate.remote
    class Holder:
        def __init__(self, value: Any) -> None:
            self.value = value

        def size(self, *others: Any) -> int:
            return len(self.value.data) + sum(len(other.data) for other in others)

    big, small = Counted(LARGE), Counted(10)
    for args, kwargs, expected in (
        ((big,), {}, [LARGE]),
        ((), {"x": big}, [LARGE]),
        ((big, [1]), {}, [LARGE]),
        ((small, big), {"y": [1]}, [10, LARGE]),
        ((small, small, small), {"z": big}, [10, 10, 10, LARGE]),
        ((small, np.zeros(LARGE, "u1")), {}, [10, LARGE]),
    ):
        times = 0
        assert skate.get(sizes.remote(*args, **kwargs)) == expected
        assert times == len([value for value in [*args, *kwargs.values()] if isinstance(value, Counted)])
    times = 0
    holder = Holder.remote(big)
    assert skate.get(holder.size.remote(small, big)) == 2 * LARGE + 10
    assert times == 3


def test_refs_inside_what_is_pickled_by_itself(cpu2: None) -> None:
    """A ref in an object of a class that only cloudpickle can do stays a ref, and keeps its value."""

    class Box:
        def __init__(self, ref: Any) -> None:
            self.ref = ref

    @skate.remote
    def opened(box: Any, *more: Any) -> list[Any]:
        return [skate.get(each.ref) for each in (box, *more)]

    assert skate.get(opened.remote(Box(skate.put(1)), Box(skate.put(2)))) == [1, 2]


DEFINITIONS = """
    import contextvars, dataclasses, enum, functools, multiprocessing, concurrent.futures, sys, typing
    import skate

    skate.init(num_cpus=1)
    same = skate.remote(lambda x: x)

    # --- classes stay as the program has them
    class Model:
        count = 0
        registry = {}
        def name(self):
            return "first"

    class Colour(enum.Enum):
        RED = 1
        @property
        def text(self):
            return "first"

    make = skate.remote(lambda: (Model(), Colour.RED))
    skate.get(make.remote())
    Model.count = 100
    Model.registry["x"] = 1
    Model.name = lambda self: "second"
    Colour.text = property(lambda self: "second")
    model, colour = skate.get(make.remote())
    assert type(model) is Model and colour is Colour.RED
    assert (Model.count, Model.registry, model.name(), colour.text) == (100, {"x": 1}, "second", "second")
    # ... and what the program changes is what tasks see
    assert skate.get(skate.remote(lambda model: (model.count, model.name())).remote(Model())) == (100, "second")

    # --- slots
    class Tuple:
        __slots__ = ("a",)
    class Text:
        __slots__ = "a"
    class Private:
        __slots__ = ("__b", "a")
        def b(self, *value):
            if value:
                self.__b = value[0]
            return self.__b
    class Child(Tuple):
        __slots__ = ("b",)
    class Loose(Tuple):
        pass
    class Weak:
        __slots__ = ("a", "__weakref__", "__dict__")
    class Described:
        __slots__ = {"a": "what it is"}
    @dataclasses.dataclass(slots=True)
    class Data:
        a: int = 0
    @dataclasses.dataclass(frozen=True, slots=True)
    class Frozen:
        a: int = 0
    class Pair(typing.NamedTuple):
        a: int = 0
    class Number(int):
        __slots__ = ()
    class Numbers(list):
        __slots__ = ("name",)

    @skate.remote
    def told(x):
        return x, hasattr(x, "__dict__")

    for kind in (Tuple, Text, Private, Child, Loose, Weak, Described, Data):
        sent = kind()
        sent.a = 1
        got, loose = skate.get(told.remote(sent))
        assert type(got) is kind and got.a == 1
        assert loose == hasattr(sent, "__dict__"), kind
    private = Private()
    private.b(5)
    assert skate.get(same.remote(private)).b() == 5
    assert skate.get(same.remote(Frozen(3))) == Frozen(3)
    for sent in (Pair(3), Number(4)):
        got, loose = skate.get(told.remote(sent))
        assert type(got) is type(sent) and got == sent and not loose
    numbers = Numbers([1])
    numbers.name = "one"
    assert skate.get(same.remote(numbers)).name == "one"

    # --- classes of errors
    class Problem(Exception):
        seen = 0
    @skate.remote
    def fail():
        raise Problem("x")
    for _ in range(3):
        try:
            skate.get(fail.remote())
        except Problem:
            Problem.seen += 1
    assert Problem.seen == 3

    # --- caches
    @functools.lru_cache(maxsize=10)
    def fib(n):
        return n if n < 2 else fib(n - 1) + fib(n - 2)
    fib(5)

    class Lazy:
        def __init__(self, n):
            self.n = n
        @functools.cached_property
        def twice(self):
            return 2 * self.n
        @functools.cache
        def plus(self, m):
            return self.n + m

    assert skate.get(skate.remote(lambda: (fib(30), fib.cache_parameters()["maxsize"])).remote()) == (832040, 10)
    assert skate.get(skate.remote(lambda: Lazy(4).twice).remote()) == 8
    assert skate.get(same.remote(Lazy(4))).twice == 8
    assert skate.get(skate.remote(lambda x: x.plus(2)).remote(Lazy(4))) == 6
    assert skate.get(same.remote(functools.lru_cache(int)))(("7")) == 7

    # --- context variables
    depth = contextvars.ContextVar("depth", default=7)
    bare = contextvars.ContextVar("bare")
    def deeper():
        token = depth.set(depth.get() + 1)
        try:
            return depth.get()
        finally:
            depth.reset(token)
    assert skate.get(skate.remote(deeper).remote()) == 8
    depth.set(50)
    assert skate.get(skate.remote(lambda: (depth.get(), bare.get("none"))).remote()) == (7, "none")
    assert skate.get(same.remote([depth, bare])) == [depth, bare]

    # --- singledispatch
    @functools.singledispatch
    def described(x):
        return "something"
    @described.register
    def _(x: int):
        return f"the integer {x}"
    @described.register
    def _(x: list):
        return [described(each) for each in x]
    class Text2:
        @functools.singledispatchmethod
        def of(self, x):
            return "something"
        @of.register
        def _(self, x: int):
            return "an integer"
    assert skate.get(skate.remote(described).remote([1, "a", [2]])) == ["the integer 1", "something", ["the integer 2"]]
    assert skate.get(skate.remote(lambda: described.__name__).remote()) == "described"
    assert skate.get(skate.remote(lambda: (Text2().of(1), Text2().of("a"))).remote()) == ("an integer", "something")

    # --- multiprocessing in a task
    def square(x):
        return x * x
    class Point:
        def __init__(self, x):
            self.x = x
        def moved(self):
            return Point(self.x + 1)
    def moved(point):
        return point.moved()

    def pooled(n):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            first = pool.map(square, range(n))
            points = pool.map(moved, [Point(i) for i in range(n)])
            assert type(points[0]) is Point
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            second = list(pool.map(square, range(n)))
        assert first == second
        return first, [point.x for point in points]

    assert skate.get(skate.remote(pooled).remote(4)) == ([0, 1, 4, 9], [1, 2, 3, 4])
    print("all well")
"""


def test_definitions_of_main(tmp_path: Path) -> None:
    """Of a program's `__main__`, which travels by value: what pickle and cloudpickle refuse or garble, one by one."""
    import subprocess
    import sys
    import textwrap

    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(DEFINITIONS))
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "all well"), done.stderr
