"""The vectors in Cython against slow ones in Python, operation by operation; and the numbers at the edge."""

from __future__ import annotations

import math
import pickle
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from skate._c.resources import (
    MAX_UNITS,
    PREDEFINED,
    UNITS_PER_ONE,
    ResourceIndex,
    ResourceRequest,
    ResourceVector,
    first_fit,
    from_units,
    to_units,
)

# ----------------------------------------------------------------------------------------------- to_units


def reference_units(value: float | int) -> int:
    """The floor of the decimal spelling, digit by digit: no arithmetic that could round."""
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    assert not sign
    assert isinstance(exponent, int)
    text = "".join(map(str, digits))
    shift = exponent + 4
    if shift >= 0:
        return int(text + "0" * shift)
    return int(text[:shift] or "0")


@given(st.floats(min_value=0, max_value=1e14))
@example(0.0)
@example(5e-324)
@example(1e-5)
@example(0.00009999999999999999)
@example(1e14)
@example(0.29)
def test_a_float_is_the_floor_of_its_spelling(value: float) -> None:
    assert to_units(value) == reference_units(value)


@given(st.integers(min_value=0, max_value=10**14))
def test_an_int_is_exact(value: int) -> None:
    assert to_units(value) == value * UNITS_PER_ONE


@given(st.integers(min_value=0, max_value=10**14))
def test_every_multiple_of_a_unit_comes_back(units: int) -> None:
    assert to_units(from_units(units)) == units
    assert to_units(Decimal(units) / UNITS_PER_ONE) == units
    assert to_units(Fraction(units, UNITS_PER_ONE)) == units


@pytest.mark.parametrize("parts", range(1, 200))
def test_n_nth_parts_fit_in_one(parts: int) -> None:
    assert parts * to_units(1 / parts) <= UNITS_PER_ONE


def test_decimals_that_binary_has_not() -> None:
    for units in range(UNITS_PER_ONE + 1):
        assert to_units(units / UNITS_PER_ONE) == units


@pytest.mark.parametrize(
    ("value", "units"),
    [
        ("0.5", 5000),
        (" 2 ", 20_000),
        ("1e-4", 1),
        (Decimal("0.00019999"), 1),
        (Decimal("1e-999999"), 0),
        (Fraction(1, 3), 3333),
        (np.float64(0.1), 1000),
        (np.float32(0.1), 1000),
        (np.float16(0.1), 1000),
        (np.int64(7), 70_000),
        (np.uint8(7), 70_000),
        (10**14, MAX_UNITS),
        (-0.0, 0),
    ],
)
def test_other_kinds_of_number(value: object, units: int) -> None:
    assert to_units(value) == units  # type: ignore[arg-type]


def test_a_decimal_context_changes_nothing() -> None:
    with localcontext() as context:
        context.prec = 2
        assert to_units(1234.5678) == 12_345_678
        assert to_units(Decimal("1234.5678")) == 12_345_678


@pytest.mark.parametrize(
    "value",
    [
        -1,
        -0.0001,
        -5e-324,
        Decimal("-1e-999999"),
        Fraction(-1, 10**9),
        np.int64(-1),
        math.nan,
        math.inf,
        -math.inf,
        Decimal("nan"),
        Decimal("snan"),
        Decimal("Infinity"),
        "nan",
        "",
        "two",
        "-1",
        True,
        False,
        np.float32("nan"),
        10**14 + 1,
        1e300,
        Decimal("1e999999"),
        "1e999999",
        Fraction(10**15),
    ],
)
def test_a_bad_value_is_refused_by_name(value: object) -> None:
    with pytest.raises(ValueError, match="'num_cpus'"):
        to_units(value, "num_cpus")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, [], {}, 1j, object(), b"1"])
def test_what_is_no_number_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match="'x' must be a number, got"):
        to_units(value, "x")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ vectors

NAMES = [*PREDEFINED, *(f"custom{i}" for i in range(6))]
amounts = st.dictionaries(
    st.sampled_from(NAMES), st.one_of(st.integers(0, 30_000), st.just(MAX_UNITS)), max_size=len(NAMES)
)


class SlowVector:
    """What a ResourceVector does, as plainly as it can be said."""

    def __init__(self, units: dict[str, int]) -> None:
        self.total = {name: amount for name, amount in units.items() if amount}
        self.free = dict(self.total)

    def fits(self, request: dict[str, int]) -> bool:
        return all(self.free.get(name, 0) >= amount for name, amount in request.items())

    def could_fit(self, request: dict[str, int]) -> bool:
        return all(self.total.get(name, 0) >= amount for name, amount in request.items())

    def reserve(self, request: dict[str, int]) -> bool:
        if not self.fits(request):
            return False
        for name, amount in request.items():
            if amount:
                self.free[name] -= amount
        return True

    def release(self, request: dict[str, int]) -> bool:
        if any(a and self.free.get(n, 0) + a > self.total.get(n, 0) for n, a in request.items()):
            return False
        for name, amount in request.items():
            if amount:
                self.free[name] += amount
        return True

    def add(self, name: str, amount: int) -> bool:
        if self.total.get(name, 0) + amount > MAX_UNITS:
            return False
        if amount:
            self.total[name] = self.total.get(name, 0) + amount
            self.free[name] = self.free.get(name, 0) + amount
        return True

    def remove(self, name: str, amount: int) -> bool:
        if self.free.get(name, 0) < amount:
            return False
        if amount:
            self.total[name] -= amount
            self.free[name] -= amount
            if not self.total[name]:
                del self.total[name], self.free[name]
        return True

    def utilization(self) -> float:
        return max(((t - self.free[n]) / t for n, t in self.total.items()), default=0.0)


def attempt(operation: object, *args: object) -> bool:
    """False where the fast vector refuses, by its return value or by a ValueError."""
    try:
        return operation(*args) is not False  # type: ignore[operator]
    except ValueError:
        return False


operations = st.one_of(
    st.tuples(st.sampled_from(["fits", "could_fit", "reserve", "release"]), amounts),
    st.tuples(st.sampled_from(["add", "remove"]), st.tuples(st.sampled_from(NAMES), st.integers(0, 30_000))),
)


@given(amounts, st.lists(operations, max_size=40))
@settings(max_examples=300, deadline=None)
def test_fast_and_slow_vectors_agree(start: dict[str, int], steps: list[tuple[str, object]]) -> None:
    index = ResourceIndex()
    fast, slow = ResourceVector(index, start), SlowVector(start)
    for operation, argument in steps:
        if isinstance(argument, tuple):
            refused = not attempt(getattr(fast, operation), *argument)
            assert refused is not getattr(slow, operation)(*argument)
        else:
            done = attempt(getattr(fast, operation), ResourceRequest(index, argument))  # type: ignore[arg-type]
            assert done is getattr(slow, operation)(argument)
        assert fast.total_dict() == slow.total
        assert fast.as_dict() == {name: amount for name, amount in slow.free.items() if amount}
        assert fast.utilization() == pytest.approx(
            slow.utilization(), rel=1e-12
        )  # quotients of more than 53 bits
        for name in NAMES:
            assert fast.total(name) == slow.total.get(name, 0)
            assert fast.available(name) == slow.free.get(name, 0)


@given(st.lists(amounts, max_size=8), amounts, st.integers(0, 9))
@settings(deadline=None)
def test_first_fit_is_the_first_that_fits(
    places: list[dict[str, int]], asked: dict[str, int], start: int
) -> None:
    index = ResourceIndex()
    vectors = [ResourceVector(index, place) for place in places]
    slow = [SlowVector(place).fits(asked) for place in places]
    expected = next((i for i in range(start, len(slow)) if slow[i]), -1)
    assert first_fit(vectors, ResourceRequest(index, asked), start) == expected


@given(amounts, amounts, st.booleans())
def test_equality_is_by_name(one: dict[str, int], two: dict[str, int], same_index: bool) -> None:
    index = ResourceIndex()
    other_index = index if same_index else ResourceIndex(reversed(NAMES))
    assert (ResourceVector(index, one) == ResourceVector(other_index, two)) == (
        {n: a for n, a in one.items() if a} == {n: a for n, a in two.items() if a}
    )


def test_equality_sees_what_is_in_use() -> None:
    index = ResourceIndex()
    one, two = ResourceVector(index, {"CPU": 20_000}), ResourceVector(index, {"CPU": 20_000})
    half = ResourceRequest(index, {"CPU": 10_000})
    assert one.reserve(half)
    assert one != two
    assert one != ResourceVector(index, {"CPU": 10_000})
    one.release(half)
    assert one == two
    assert one != {"CPU": 20_000}


def test_a_copy_is_independent() -> None:
    index = ResourceIndex()
    vector = ResourceVector(index, {"CPU": 20_000, "x": 5})
    assert vector.reserve(ResourceRequest(index, {"CPU": 5_000}))
    twin = vector.copy()
    assert twin == vector
    twin.add("y", 7)
    assert twin.reserve(ResourceRequest(index, {"CPU": 15_000}))
    assert vector.as_dict() == {"CPU": 15_000, "x": 5}
    assert twin.as_dict() == {"x": 5, "y": 7}


def test_release_beyond_the_total_names_the_resource_and_changes_nothing() -> None:
    index = ResourceIndex()
    vector = ResourceVector(index, {"CPU": 20_000, "x": 5})
    assert vector.reserve(ResourceRequest(index, {"CPU": 5_000}))
    with pytest.raises(ValueError, match=r"releasing 0\.0001 of 'x'.*released twice"):
        vector.release(ResourceRequest(index, {"CPU": 5_000, "x": 1}))
    assert vector.as_dict() == {"CPU": 15_000, "x": 5}


def test_amounts_stay_inside_an_int64() -> None:
    index = ResourceIndex()
    vector = ResourceVector(index, {"CPU": MAX_UNITS})
    with pytest.raises(ValueError, match="CPU"):
        vector.add("CPU", 1)
    with pytest.raises(ValueError, match="exceed"):
        vector.release(ResourceRequest(index, {"CPU": MAX_UNITS}))
    for bad in (-1, MAX_UNITS + 1, 2**63, 2**200):
        with pytest.raises(ValueError, match="'x'"):
            ResourceVector(index, {"x": bad})
        with pytest.raises(ValueError, match="'x'"):
            ResourceRequest(index, {"x": bad})
    for wrong in (1.0, "1", None, True):
        with pytest.raises(TypeError, match="'x'"):
            ResourceRequest(index, {"x": wrong})  # type: ignore[dict-item]


def test_vectors_and_requests_of_two_indices_do_not_mix() -> None:
    vector = ResourceVector(ResourceIndex(), {"CPU": 1})
    request = ResourceRequest(ResourceIndex(), {"CPU": 1})
    for operation in (vector.fits, vector.could_fit, vector.reserve, vector.release):
        with pytest.raises(ValueError, match="another ResourceIndex"):
            operation(request)
    with pytest.raises(ValueError, match="another ResourceIndex"):
        first_fit([vector], request)


def test_a_forgotten_name_is_not_confused_with_the_next() -> None:
    index = ResourceIndex()
    vector = ResourceVector(index, {"group1": 5})
    old = ResourceRequest(index, {"group1": 5})
    vector.remove("group1", 5)
    index.forget("group1")
    index.forget("never seen")
    vector.add("group2", 5)
    assert not vector.fits(old)
    assert "group1" not in index
    assert "forgotten" in repr(old)
    vector.add("group1", 5)
    assert not vector.fits(old)
    assert vector.fits(ResourceRequest(index, {"group1": 5}))
    with pytest.raises(ValueError, match="predefined"):
        index.forget("CPU")


def test_names_that_come_and_go_leave_nothing_behind() -> None:
    index = ResourceIndex()
    vector = ResourceVector(index, {"CPU": 1})
    before = len(index)
    for i in range(1000):
        vector.add(f"group{i}", 5)
        vector.remove(f"group{i}", 5)
        index.forget(f"group{i}")
    assert len(index) == before
    assert vector.total_dict() == {"CPU": 1}


def test_the_kernel_refuses_what_is_no_vector() -> None:
    index = ResourceIndex()
    request = ResourceRequest(index, {})
    with pytest.raises(TypeError):
        first_fit([None], request)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="start"):
        first_fit([], request, -1)
    with pytest.raises(TypeError):
        ResourceVector(index).fits(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        pickle.dumps(ResourceVector(index))
    with pytest.raises(TypeError):
        hash(ResourceVector(index))
