"""put and get: values, arrays, time limits, and what is refused."""

import threading
import time
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import skate
from skate.exceptions import GetTimeoutError

from .rendezvous import Gate

pytestmark = [pytest.mark.usefixtures("cpu2"), pytest.mark.transport]

Point = namedtuple("Point", "x y")


@dataclass
class Box:
    content: object


@skate.remote
def identity(value: object) -> object:
    return value


@skate.remote
def pass_gate(gate: Gate) -> str:
    gate.wait()
    return "through"


@skate.remote
def fail() -> None:
    raise LookupError("nothing here")


VALUES = [
    None,
    False,
    0,
    -(2**200),
    1.5,
    float("inf"),
    "",
    "naïve ☃",
    b"",
    b"\x00" * 10,
    pytest.param(bytearray(b"abc"), marks=pytest.mark.differs_from_ray("Ray gives bytes")),
    (),
    (1, (2, (3,))),
    [1, "two", [3.0, None]],
    {"a": {1: {2: 3}}, ("t", 1): {4, 5}},
    frozenset({1, 2}),
    range(5),
    1 + 2j,
    Path("/some/where"),
    Point(1, 2),
    Box([1, 2]),
    Counter("abracadabra"),
    b"x" * 1_000_000,
    "y" * 1_000_000,
    list(range(100_000)),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}-{repr(value)[:12]}")
def test_values_come_back_equal(value: object) -> None:
    for back in (skate.get(skate.put(value)), skate.get(identity.remote(value))):
        assert back == value
        assert type(back) is type(value)


def test_functions_and_classes_are_values() -> None:
    assert skate.get(skate.put(lambda x: x + 1))(1) == 2
    assert skate.get(identity.remote(Box)).__name__ == "Box"


def test_what_is_put_is_put_as_it_is_then() -> None:
    numbers, array = [1, 2], np.arange(100_000)
    numbers_ref, array_ref = skate.put(numbers), skate.put(array)
    numbers.append(3)
    array[:] = 0
    assert skate.get(numbers_ref) == [1, 2]
    assert skate.get(array_ref)[-1] == 99_999


def test_every_get_gives_an_object_of_its_own() -> None:
    ref = skate.put([1, 2])
    skate.get(ref).append(3)
    assert skate.get(ref) == [1, 2]


class TestGet:
    def test_a_list_in_its_order(self) -> None:
        refs = [skate.put(i) for i in range(10)]
        assert skate.get(refs[::-1]) == list(range(9, -1, -1))

    def test_an_empty_list(self) -> None:
        assert skate.get([]) == []

    def test_one_ref_twice(self) -> None:
        ref = identity.remote("x")
        assert skate.get([ref, ref]) == ["x", "x"]
        assert skate.get(ref) == skate.get(ref) == "x"

    def test_a_thousand(self) -> None:
        assert skate.get([skate.put(i) for i in range(1_000)]) == list(range(1_000))

    @pytest.mark.differs_from_ray("Ray raises ValueError; issue 2 asks for TypeError")
    @pytest.mark.parametrize("wrong", [3, "ref", None, {}, b"\x00" * 28], ids=repr)
    def test_refuses_what_is_no_ref(self, wrong: object) -> None:
        with pytest.raises(TypeError, match=type(wrong).__name__):
            skate.get(wrong)

    @pytest.mark.differs_from_ray("Ray raises ValueError; issue 2 asks for TypeError")
    def test_refuses_a_tuple_of_refs(self) -> None:
        with pytest.raises(TypeError, match="tuple"):
            skate.get((skate.put(1),))

    def test_refuses_a_list_with_something_else_in_it(self) -> None:
        with pytest.raises(TypeError):
            skate.get([skate.put(1), 3])

    def test_refuses_a_list_of_lists(self) -> None:
        with pytest.raises(TypeError):
            skate.get([[skate.put(1)]])

    def test_from_many_threads_at_once(self) -> None:
        with ThreadPoolExecutor(8) as pool:
            results = pool.map(lambda i: skate.get(identity.remote(i)), range(64))
            assert list(results) == list(range(64))

    def test_a_thread_that_waits_holds_up_no_other(self, gate: Gate) -> None:
        blocked = pass_gate.remote(gate)
        got: list[str] = []
        thread = threading.Thread(target=lambda: got.append(skate.get(blocked)))
        thread.start()
        assert skate.get([identity.remote(i) for i in range(20)]) == list(range(20))
        gate.open()
        thread.join(20)
        assert got == ["through"]


class TestTimeLimits:
    def test_zero_gives_what_is_there(self) -> None:
        ref = skate.put("here")
        assert skate.get(ref, timeout=0) == "here"
        assert skate.get([ref, ref], timeout=0) == ["here", "here"]

    def test_zero_raises_for_what_is_not(self, gate: Gate) -> None:
        with pytest.raises(GetTimeoutError):
            skate.get(pass_gate.remote(gate), timeout=0)

    def test_a_late_value_raises_and_can_be_had_later(self, gate: Gate) -> None:
        ref = pass_gate.remote(gate)
        begin = time.monotonic()
        with pytest.raises(GetTimeoutError):
            skate.get(ref, timeout=0.2)
        assert 0.15 < time.monotonic() - begin < 5
        gate.open()
        assert skate.get(ref, timeout=20) == "through"

    def test_one_late_value_of_a_list_is_enough(self, gate: Gate) -> None:
        with pytest.raises(GetTimeoutError):
            skate.get([skate.put(1), pass_gate.remote(gate)], timeout=0.1)

    def test_the_error_is_the_builtin_one_too(self, gate: Gate) -> None:
        with pytest.raises(TimeoutError):
            skate.get(pass_gate.remote(gate), timeout=0.01)

    def test_a_value_in_time_is_not_waited_for_longer(self) -> None:
        begin = time.monotonic()
        assert skate.get(identity.remote(1), timeout=60) == 1
        assert time.monotonic() - begin < 30

    def test_a_failure_ends_a_list_at_once(self, gate: Gate) -> None:
        with pytest.raises(LookupError):
            skate.get([pass_gate.remote(gate), fail.remote()], timeout=20)


class TestPut:
    def test_refuses_a_ref(self) -> None:
        with pytest.raises(TypeError, match=r"list|\[ref\]"):
            skate.put(skate.put(1))

    def test_takes_a_ref_in_a_list(self) -> None:
        inner = skate.put(1)
        (back,) = skate.get(skate.put([inner]))
        assert back == inner
        assert skate.get(back) == 1

    def test_names_what_cannot_be_pickled(self) -> None:
        with pytest.raises(TypeError, match="lock") as caught:
            skate.put({"engine": [threading.Lock()]})
        assert "engine" in str(caught.value)

    def test_in_a_task(self) -> None:
        @skate.remote
        def put_and_get(value: int) -> int:
            return skate.get(skate.put(value))

        assert skate.get(put_and_get.remote(7)) == 7


class TestArrays:
    ARRAYS = (
        np.zeros(0),
        np.float32(1.5),
        np.array(3),
        np.arange(10, dtype=np.int8),
        np.arange(100_000, dtype=np.uint16).reshape(100, 10, 100),
        np.asfortranarray(np.arange(40_000.0).reshape(200, 200)),
        np.arange(40_000.0).reshape(200, 200)[::2, ::-3],
        np.array([("a", 1), ("b", 2)], dtype=[("name", "U5"), ("n", "i4")]),
        np.array([1, "two", None], dtype=object),
        np.array(["2020-01-01", "NaT"], dtype="datetime64[D]"),
        np.ones((1_000, 1_000), dtype=bool),
    )

    @pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
    def test_come_back_equal(self, array: np.ndarray) -> None:
        for back in (skate.get(skate.put(array)), skate.get(identity.remote(array))):
            np.testing.assert_array_equal(back, array)
            assert back.dtype == array.dtype
            assert back.shape == array.shape

    @pytest.mark.parametrize("size", [1_000_000, 8_000_000])
    def test_are_read_only(self, size: int) -> None:
        array = skate.get(skate.put(np.zeros(size, np.uint8)))
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        array.copy()[0] = 1

    def test_are_not_copied(self) -> None:
        ref = skate.put(np.zeros(1_000_000))
        assert np.shares_memory(skate.get(ref), skate.get(ref))

    def test_are_not_copied_inside_other_things(self) -> None:
        ref = skate.put({"left": np.zeros(100_000), "right": [np.ones(100_000)]})
        one, two = skate.get([ref, ref])
        assert np.shares_memory(one["left"], two["left"])
        assert np.shares_memory(one["right"][0], two["right"][0])

    def test_are_aligned_for_vector_instructions(self) -> None:
        for size in (200_001, 1_000_003):
            array = skate.get(skate.put(np.zeros(size, np.uint8)))
            assert array.ctypes.data % 64 == 0

    def test_stay_while_somebody_looks_at_them(self) -> None:
        view = skate.get(skate.put(np.arange(1_000_000)))[10:20]
        for i in range(20):  # whose memory would go to these, were it free
            skate.put(np.full(1_000_000, i))
        assert view.tolist() == list(range(10, 20))

    def test_travel_through_tasks(self) -> None:
        @skate.remote
        def twice(array: np.ndarray) -> np.ndarray:
            return array * 2

        array = np.arange(500_000)
        np.testing.assert_array_equal(skate.get(twice.remote(twice.remote(array))), array * 4)
