"""Values round-trip, arrays share their block, refs are noted, damage is refused, errors name the culprit."""

import collections
import dataclasses
import functools
import gc
import io
import itertools
import mmap
import pickle
import socket
import threading
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skate._c import plain
from skate.exceptions import SerializationError, SkateError
from skate.store import serialization
from skate.store.serialization import (
    arguments_error,
    deserialize,
    dump_function,
    explain,
    from_bytes,
    load_function,
    pack_into,
    packed_size,
    serialize,
    to_bytes,
    unpack,
)


class Ref:
    """Stands for ObjectRef, which lives elsewhere."""

    def __init__(self, name):
        self.name = name

    def __eq__(self, other):
        return isinstance(other, Ref) and self.name == other.name

    def __hash__(self):
        return hash(self.name)

    def __reduce__(self):
        if not plain.note_ref(self):
            raise RuntimeError("pickled by hand")
        return Ref, (self.name,)


@dataclasses.dataclass
class Point:
    x: int
    data: object


Pair = collections.namedtuple("Pair", "left right")


class SlotsOnly:
    __slots__ = ("a", "b")

    def __init__(self, a, b):
        self.a, self.b = a, b


class LeavesLockOut:
    def __init__(self, bad):
        self.lock = threading.Lock()
        self.bad = bad

    def __getstate__(self):
        return {"bad": self.bad}


def through_message(value):
    return from_bytes(to_bytes(serialize(value)))


def through_block(value):
    """As through the store: packed into a mapping, with room to spare, and viewed there."""
    serialized = serialize(value)
    block = mmap.mmap(-1, packed_size(serialized) + 100)
    assert pack_into(serialized, memoryview(block)) == packed_size(serialized)
    return unpack(memoryview(block)[: packed_size(serialized)].toreadonly())


def in_place(value):
    serialized = serialize(value)
    return deserialize(serialized.inband, serialized.buffers)


WAYS = [through_message, through_block, in_place]

# --- round trips -------------------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary()
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(), inner)
        | st.sets(st.integers())
        | st.frozensets(st.text())
    ),
    max_leaves=40,
)


@given(values)
@settings(deadline=None)
def test_plain_values(value):
    for way in WAYS:
        back = way(value)
        assert back == value
        assert type(back) is type(value)


@given(
    hnp.arrays(hnp.scalar_dtypes() | hnp.array_dtypes(), hnp.array_shapes(min_dims=0, min_side=0, max_side=5))
)
@settings(deadline=None)
def test_arrays_of_any_dtype_and_shape(array):
    for way in WAYS:
        for value in (array, array.T, np.asfortranarray(array), array[..., ::2] if array.ndim else array):
            back = way(value)
            assert back.dtype == value.dtype
            assert back.shape == value.shape
            assert back.tobytes() == value.tobytes()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "value",
    [
        np.array(3.5),
        np.zeros((0, 3)),
        np.zeros((3, 0), order="F"),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
        np.arange(100)[::-3],
        np.broadcast_to(np.arange(3), (4, 3)),
        np.arange(5, dtype=">i4"),
        np.array([(1, 2.0), (3, 4.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.array([("x", 1)], dtype=[("a", object), ("b", "i8")]),
        np.array([{"a": 1}, None, "x"], dtype=object),
        np.array(["2020-01-01", "2021-02-03"], dtype="M8[D]"),
        np.array([1, 2], dtype="m8[ns]")[::-1],
        np.array(["abc", "d"]),
        np.array([b"abc", b"d"]),
        np.ma.masked_array([1, 2, 3], [False, True, False]),
        np.arange(4).view(np.recarray),
        np.matrix([[1, 2]]),
    ],
    ids=lambda array: f"{type(array).__name__}-{array.dtype.str}-{array.shape}",
)
def test_awkward_arrays(way, value):
    back = way(value)
    assert type(back) is type(value)
    assert back.dtype == value.dtype
    np.testing.assert_array_equal(back, value)
    np.testing.assert_array_equal(way({"nested": [value]})["nested"][0], value)


@pytest.mark.parametrize("letter", "?bBhHiIlLqQefdgFDG")
def test_numpy_scalars(letter):
    value = np.dtype(letter).type(3)
    for way in WAYS:
        back = way(value)
        assert type(back) is type(value)
        assert back == value
        assert way([value])[0].dtype == value.dtype  # numpy's own pickle makes an int64 of a longlong


def test_dtype_metadata_is_kept():
    array = np.zeros(3, dtype=np.dtype("f8", metadata={"unit": "m"}))
    assert through_message(array).dtype.metadata == {"unit": "m"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [0, 10, 100_000])
def test_bytes_and_their_kin(way, size):
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    for value in (data, bytearray(data), {"in": data}):
        back = way(value)
        assert back == value
        assert type(back) is type(value)
    assert way(memoryview(data)) == data
    assert type(way(memoryview(data))) is bytes
    assert way(memoryview(data)[::2]) == data[::2]
    assert way(memoryview(np.zeros((2, 3), order="F"))) == bytes(48)


@pytest.mark.parametrize("way", WAYS)
def test_objects(way):
    assert way(Point(1, [np.arange(3)])).data[0].tolist() == [0, 1, 2]
    assert way(Pair(1, {"a": 2})) == Pair(1, {"a": 2})
    back = way(SlotsOnly(1, np.float32(2)))
    assert (back.a, back.b) == (1, 2)
    assert way(lambda x: x + 1)(1) == 2
    assert way([True, np.True_, collections.OrderedDict(a=1)]) == [True, np.True_, {"a": 1}]
    shared = [1]
    first, second = way((shared, shared))
    assert first is second


class NeedsTwo(Exception):
    def __init__(self, left, right):
        super().__init__(f"{left}-{right}")


def test_exceptions_as_values():
    back = through_message([NeedsTwo(1, 2), KeyError("k")])
    assert type(back[0]) is NeedsTwo
    assert back[0].args == ("1-2",)
    assert back[1].args == ("k",)


def test_cycles_and_depth():
    loop = [1]
    loop.append({"again": loop})
    back = through_message(loop)
    assert back[1]["again"] is back
    deep = []
    for _ in range(200):
        deep = [deep]
    assert through_message(deep) == deep


def test_long_lists_and_many_arrays():
    value = [np.full(3, i) for i in range(2000)] + list(range(10_000))
    back = through_block(value)
    assert back[1999].tolist() == [1999] * 3
    assert back[2000:] == value[2000:]


def test_pandas_frames():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]})
    pandas.testing.assert_frame_equal(through_block(frame), frame)


# --- memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "array", [np.arange(10.0), np.arange(3, dtype=">i4"), np.zeros((2, 2), order="F"), np.zeros(3, "M8[s]")]
)
def test_arrays_come_back_read_only(way, array):
    for back in (way(array), way({"a": array})["a"]):
        assert not back.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            back[0] = 1


def test_views_share_the_block_aligned_and_keep_it():
    serialized = serialize({"a": np.arange(1000), "b": np.arange(7, dtype="u1"), "c": np.ones(100)})
    block = mmap.mmap(-1, packed_size(serialized))
    pack_into(serialized, block)
    back = unpack(block)
    base = np.frombuffer(block, "u1").ctypes.data
    for array in back.values():
        assert (array.ctypes.data - base) % 64 == 0
        assert base <= array.ctypes.data < base + len(block)
    view = back["a"][10:20]
    del back, array
    gc.collect()
    with pytest.raises(BufferError):
        block.close()
    del view
    gc.collect()
    block.close()


def test_bare_arrays_keep_the_block_too():
    block = mmap.mmap(-1, 4096)
    pack_into(serialize(np.arange(10)), block)
    view = unpack(block)[2:3]
    with pytest.raises(BufferError):
        block.close()
    assert view.tolist() == [2]


def test_messages_never_alias_a_buffer_that_is_used_again():
    buffer = bytearray(to_bytes(serialize(np.arange(10))))
    back = from_bytes(memoryview(buffer))
    buffer[-80:] = bytes(80)
    assert back.tolist() == list(range(10))


def test_values_in_place_do_not_alias_writably():
    original = np.arange(10)
    assert not in_place(original).flags.writeable


def test_padding_tells_no_old_tales():
    value = {"a": np.ones(3, "u1"), "b": np.ones(3)}
    serialized = serialize(value)
    dirty, clean = bytearray(b"\xff" * packed_size(serialized)), bytearray(packed_size(serialized))
    pack_into(serialized, dirty)
    pack_into(serialized, clean)
    assert dirty == clean == to_bytes(serialized)


def test_a_small_destination_is_refused_untouched():
    serialized = serialize(np.arange(100))
    dest = bytearray(packed_size(serialized) - 1)
    with pytest.raises(ValueError, match="cannot pack"):
        pack_into(serialized, dest)
    assert not any(dest)
    with pytest.raises(BufferError):
        pack_into(serialized, bytes(10_000))


def test_large_copies():
    array = np.arange(1 << 19)
    np.testing.assert_array_equal(through_block([array, array[::-1]])[1], array[::-1])


def test_layout_over_4_gb():
    lengths = [3 << 30, 1, 5 << 30]
    offsets, total = plain.layout(100, lengths)
    assert offsets[0] == 16 + 3 * 8
    assert all(offset % 64 == 0 for offset in offsets[1:])
    assert total == offsets[3] + (5 << 30)
    assert total > 8 << 30


def test_size_of_a_3_gb_array():
    array = np.empty(3 << 30, "u1")  # never touched, so it takes no memory
    serialized = serialize(array)
    assert serialized.total_bytes == (3 << 30) + len(serialized.inband)
    assert packed_size(serialized) >= 3 << 30


@given(st.integers(0, 1000), st.lists(st.integers(0, 1000), max_size=10))
def test_layout_agrees_with_packed_size(inband, lengths):
    offsets, total = plain.layout(inband, lengths)
    ends = [start + length for start, length in zip(offsets, [inband, *lengths], strict=True)]
    assert all(start >= end for start, end in zip(offsets[1:], ends, strict=False))
    assert total == ends[-1]
    serialized = serialize([np.zeros(length, "u1") for length in lengths])
    sizes = [len(buffer.raw()) for buffer in serialized.buffers]
    assert (
        plain.layout(len(serialized.inband), sizes)[1] == packed_size(serialized) == len(to_bytes(serialized))
    )


# --- damage ------------------------------------------------------------------------------------------------


def test_truncated_blocks_are_refused():
    for value in ({"a": np.arange(10), "b": np.arange(3)}, np.arange(10), np.float64(1)):
        data = to_bytes(serialize(value))
        for length in range(len(data)):
            with pytest.raises((ValueError, EOFError, pickle.UnpicklingError)):
                from_bytes(data[:length])


@given(st.binary(max_size=64), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_damaged_headers_are_refused(tail, size, count):
    for data in (
        b"SKT1" + tail,
        b"SKT1" + count.to_bytes(4, "little") + size.to_bytes(8, "little") + tail,
        b"SKT1" + (1).to_bytes(4, "little") + (0).to_bytes(8, "little") + size.to_bytes(8, "little") + tail,
        *(bytes([tag]) + tail for tag in range(5)),
    ):
        try:
            from_bytes(data)
        except (ValueError, EOFError, pickle.UnpicklingError, TypeError):
            pass


@pytest.mark.parametrize("shape", [(2**63,), (5,), (2**62, 2**62), (0, 2**62, 2**62), (2**40,)])
def test_impossible_shapes_are_refused(shape):
    head = bytes((1, ord("d"), ord("C"), len(shape))) + b"".join(side.to_bytes(8, "little") for side in shape)
    for data in (b"", bytes(16)):
        with pytest.raises(ValueError):
            deserialize(head, [data])


def test_empty_is_refused():
    with pytest.raises(ValueError, match="empty"):
        from_bytes(b"")


# --- refs --------------------------------------------------------------------------------------------------


def test_refs_are_noted_in_order_once():
    a, b = Ref("a"), Ref("b")
    assert serialize({"x": [b, a], "y": Point(1, (a, Ref("b")))}).refs == [b, a]
    assert serialize(a).refs == [a]
    assert serialize([1, 2]).refs == []
    assert serialize(lambda: a).refs == [a]


def test_refs_of_registered_types_take_the_plain_way():
    class Registered(Ref):
        pass

    plain.register_plain_type(Registered)
    assert serialize([Registered("a"), (Registered("b"),)]).refs == [Ref("a"), Ref("b")]


def test_a_ref_pickled_by_hand_is_told_apart():
    with pytest.raises(RuntimeError, match="by hand"):
        pickle.dumps(Ref("a"))
    assert plain.note_ref(Ref("a")) is False
    with pytest.raises(SerializationError):
        serialize([Ref("a"), threading.Lock()])
    assert plain.note_ref(Ref("a")) is False


def test_nested_serialize_keeps_its_refs_to_itself():
    seen = []

    class Nests:
        def __reduce__(self):
            seen.append(serialize([Ref("inner")]).refs)
            with pytest.raises(SerializationError):
                serialize(threading.Lock())
            return str, ()

    assert serialize([Ref("before"), Nests(), Ref("after")]).refs == [Ref("before"), Ref("after")]
    assert seen == [[Ref("inner")]]


def test_refs_in_an_exceptions_attributes_are_noted():
    from skate.exceptions import TaskError

    error = ValueError("v")
    error.ref = Ref("held")
    assert serialize(TaskError.from_exception(error, "f", 1, "n")).refs == [Ref("held")]


def test_threads_do_not_see_each_others_refs():
    barrier = threading.Barrier(4)
    wrong = []

    class Waits:
        def __reduce__(self):
            barrier.wait(10)
            return str, ()

    def work(name):
        refs = serialize([Ref(name), Waits(), Ref(name + "2")]).refs
        if refs != [Ref(name), Ref(name + "2")]:
            wrong.append(refs)

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- errors ------------------------------------------------------------------------------------------------

lock = threading.Lock()


def uses_global():
    return lock


def refused(value, name="x"):
    with pytest.raises(SerializationError) as caught:
        serialize(value, f"argument {name!r} of f()", name)
    error = caught.value
    assert isinstance(error, TypeError)
    assert isinstance(error, SkateError)
    assert error.__cause__ is not None
    prefix = f"could not serialize argument {name!r} of f(): "
    assert str(error).startswith(prefix)
    return str(error).removeprefix(prefix)


def test_paths_through_containers_and_attributes():
    holder = Point(1, None)
    holder.lock = threading.Lock()
    text = refused({"fine": 1, "models": [1, 2, holder]})
    assert text.startswith(
        "x['models'][2].lock is a _thread.lock, and pickling it raised TypeError: cannot pickle"
    )
    assert "make it inside the task" in text


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (threading.Lock(), "x is a _thread.lock"),
        ((1, [threading.Lock()]), "x[1][0] is"),
        (Point(1, {"a": threading.Lock()}), "x.data['a'] is"),
        (SlotsOnly(1, threading.Lock()), "x.b is"),
        (Pair(1, threading.Lock()), "x[1] is"),
        (LeavesLockOut(threading.Lock()), "x.bad is"),
        (collections.OrderedDict(k=threading.Lock()), "x['k'] is"),
        (collections.deque([1, threading.Lock()]), "x[1] is"),
        (functools.partial(print, threading.Lock()), "x.args[0] is"),
        (np.array([1, threading.Lock()], dtype=object), "is a _thread.lock"),
        ([0] * 100_000 + [threading.Lock()], "x[100000] is"),
        ((i for i in range(3)), "pass list(...) of it"),
        ([io.TextIOWrapper(io.BytesIO())], "x[0] is a _io.TextIOWrapper"),
        ({threading.Lock(): 1}, "the key <unlocked _thread.lock"),
        ({threading.Lock()}, "the element <unlocked _thread.lock"),
        (ValueError(threading.Lock()), "x.args[0] is"),
        (uses_global, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_paths(value, path):
    if path is None:
        serialize(value)  # by reference: it is in an importable module
    else:
        assert path in refused(value)


def test_closure_and_global_variables():
    table = {"a": [threading.Lock()]}

    def helper():
        return table

    text = refused({"cb": helper}, "args")
    assert text.startswith("table['a'][0] is a _thread.lock")
    assert "table is a closure variable of test_closure_and_global_variables.<locals>.helper()." in text

    def outer():
        def inner():
            return lock

        return inner

    text = refused(outer)
    assert text.startswith("lock is a _thread.lock")
    assert "lock is a global variable that" in text

    def harmless(thing):
        return thing.lock

    serialize(harmless)


def test_methods_and_local_classes():
    class Local:
        shared = threading.Lock()

        def method(self):
            return 1

    assert "Local.shared is" in refused(Local, "Local")
    assert ".shared is a _thread.lock" in refused(Local())
    assert ".shared is a _thread.lock" in refused(Local().method)


def test_errors_raised_by_the_users_own_pickling():
    class Fails:
        def __getstate__(self):
            raise KeyError("no state today")

    text = refused([Fails()])
    assert "x[0] is a " in text
    assert "KeyError: 'no state today'" in text


def test_cycles_on_the_way_to_the_culprit():
    first, second = Point(1, None), Point(2, None)
    first.data, second.data = second, first
    second.sock = socket.socket()
    try:
        assert "x.data.sock is a socket.socket" in refused(first)
    finally:
        second.sock.close()


def test_deep_nesting_says_so():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert "nested too deeply" in refused(deep)


def test_explain_of_something_harmless_does_not_blame_a_part():
    assert "together with what holds it" in explain([1, 2], "x")


def test_the_search_is_bounded(monkeypatch):
    monkeypatch.setattr("skate.store.culprit.BUDGET_S", 0.0)
    assert "took too long" in refused([threading.Lock()])


def test_the_search_is_not_cut_short_by_other_work_of_the_machine(monkeypatch):
    """It looks at the CPU that it has had: the time that others have meanwhile says nothing about it."""
    hours = itertools.count(1, 0.5)
    monkeypatch.setattr("skate.store.culprit.monotonic", lambda: next(hours))
    assert "x[1]['a'].lock" in explain([1, {"a": types.SimpleNamespace(lock=threading.Lock())}], "x")


def test_the_search_ends_however_little_of_the_machine_it_gets(monkeypatch):
    monkeypatch.setattr("skate.store.culprit.PATIENCE_S", 0.0)
    assert "took too long" in refused([threading.Lock()])


def test_which_argument():
    args = {"x": 1, "y": {"m": threading.Lock()}}
    with pytest.raises(TypeError) as failure:
        plain.serialize(args)
    text = str(arguments_error(args, "f", failure.value))
    assert text.startswith("could not serialize argument 'y' of f(): y['m'] is a _thread.lock")


# --- functions ---------------------------------------------------------------------------------------------


def test_functions_are_called_by_their_content():
    def make(number):
        def local(x):
            return x + number

        return local

    one, same, other = dump_function(make(1)), dump_function(make(1)), dump_function(make(2))
    assert one.digest == same.digest != other.digest
    assert len(one.digest) == 16
    assert load_function(one.data)(1) == 2


def test_functions_name_the_refs_they_hold():
    ref = Ref("captured")
    assert dump_function(lambda: ref).refs == [ref]


def test_function_that_cannot_be_pickled():
    inner_lock = threading.Lock()

    def task():
        return inner_lock

    with pytest.raises(SerializationError, match=r"function .*task: inner_lock is a _thread.lock"):
        dump_function(task)


def test_large_functions_warn_and_larger_are_refused(monkeypatch, caplog):
    data = bytes(200_000)

    def task():
        return data

    monkeypatch.setattr(serialization, "FUNCTION_WARN_BYTES", 100_000)
    dump_function(task)
    assert "is large" in caplog.text
    monkeypatch.setattr(serialization, "FUNCTION_LIMIT_BYTES", 150_000)
    with pytest.raises(SerializationError, match=r"too large to send.*put\(\)"):
        dump_function(task)


def test_a_missing_module_comes_with_a_note():
    data = b"\x80\x05cno_such_module_here\nf\n."
    with pytest.raises(ModuleNotFoundError) as caught:
        load_function(data)
    assert "runtime_env" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    "value",
    [np.arange(1000.0), b"x" * 50_000, [np.zeros(100), "text"], {"a": 1}, 7, np.ones((30, 40)).T],
    ids=["array", "bytes", "list", "dict", "int", "transposed"],
)
def test_same_bytes(value):
    """True for what pack_into() writes; false for any other byte, length or layout."""
    serialized = serialize(value)
    block = bytearray(packed_size(serialized))
    pack_into(serialized, block)
    assert plain.same_bytes(serialized, bytes(block))
    assert plain.same_bytes(serialize(value), block)
    assert not plain.same_bytes(serialized, bytes(block) + b"x")
    assert not plain.same_bytes(serialized, bytes(block)[:-1])
    for at in {0, len(block) // 2, len(block) - 1}:
        if block[at] == 0 and serialized.buffers and at < len(block) // 2:
            continue  # padding
        block[at] ^= 1
        assert not plain.same_bytes(serialized, bytes(block))
        block[at] ^= 1


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.int16),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.array(2.5),
        np.zeros((2, 0)),
    ],
    ids=["flat", "fortran", "no dimension", "empty"],
)
def test_small_arrays_in_disguise_come_back_as_they_were(array: np.ndarray) -> None:
    serialize(array)  # numpy is found at the first array
    (back,) = from_bytes(to_bytes(serialize((plain.compact(array, 100_000),))))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.flags.f_contiguous == array.flags.f_contiguous
    assert np.array_equal(back, array)
    assert array.size == 0 or not back.flags.writeable


def test_a_failure_that_was_told_leaves_no_cycle() -> None:
    """An exception leads to its frames; a cycle of these with a memoryview is more than CPython clears."""

    class Strided:
        def __reduce_ex__(self, protocol: int) -> tuple:
            return bytes, (pickle.PickleBuffer(memoryview(bytearray(100))[::2]),)

    def fail() -> str:
        try:
            serialize([1, {"x": Strided()}])
        except SerializationError as error:
            return str(error)
        raise AssertionError("it was serialized")

    text = fail()
    assert "value[1]['x']" in text
    assert "not contiguous" in text
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        fail()
        gc.collect()
        assert not [
            found
            for found in gc.garbage
            if isinstance(found, (memoryview, pickle.PickleBuffer, BaseException))
        ]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
