"""Refs: what they are, where they can be hidden, and how long what they stand for lives."""

import gc
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import skate

from .rendezvous import Gate, eventually

pytestmark = pytest.mark.transport

STORE_BYTES = 200_000_000
ARRAY_BYTES = 20_000_000


@pytest.fixture(scope="module", autouse=True)
def small_store() -> Iterator[None]:
    skate.init(num_cpus=2, object_store_memory=STORE_BYTES)
    yield
    skate.shutdown()


@dataclass
class Holder:
    ref: skate.ObjectRef


@skate.remote
def identity(value: object) -> object:
    return value


@skate.remote
def get_it(holder: object) -> object:
    """The value of the ref inside of whatever it is in."""
    match holder:
        case Holder(ref) | [ref, *_] | {"ref": ref}:
            return get_it._function(ref)
        case skate.ObjectRef():
            return skate.get(holder)
        case _:
            return holder


def array() -> np.ndarray:
    return np.ones(ARRAY_BYTES, np.uint8)


class TestIdentity:
    def test_equal_and_hashed_by_id(self) -> None:
        a, b = skate.put(1), skate.put(1)
        assert a == a
        assert a != b
        assert a != a.hex()
        assert len({a, b, a}) == 2
        assert {a: "a"}[a] == "a"

    def test_a_copy_from_elsewhere_is_equal(self) -> None:
        ref = skate.put(1)
        (back,) = skate.get(identity.remote([ref]))
        assert back == ref
        assert hash(back) == hash(ref)

    def test_hex_and_binary(self) -> None:
        ref = skate.put(1)
        assert bytes.fromhex(ref.hex()) == ref.binary()
        assert len({skate.put(1).binary() for _ in range(100)}) == 100

    def test_repr(self) -> None:
        ref = skate.put(1)
        assert repr(ref) == str(ref) == f"ObjectRef({ref.hex()})"

    def test_made_by_hand(self) -> None:
        ref = skate.put(1)
        assert skate.ObjectRef(ref.binary()) == ref

    def test_is_a_type_for_annotations(self) -> None:
        assert isinstance(skate.put(1), skate.ObjectRef)
        assert skate.ObjectRef[int]


class TestHiddenInOtherThings:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda ref: [ref],
            lambda ref: [ref, ref],
            lambda ref: {"ref": ref},
            lambda ref: [[{"ref": [ref]}]],
            Holder,
            lambda ref: [Holder([ref])],
        ],
        ids=["list", "twice", "dict", "deep", "object", "object in a list"],
    )
    def test_they_arrive_as_refs(self, wrap: object) -> None:
        assert skate.get(get_it.remote(wrap(skate.put("hidden")))) == "hidden"

    def test_in_an_array_of_objects(self) -> None:
        refs = np.array([skate.put(i) for i in range(3)], dtype=object)
        back = skate.get(identity.remote(refs))
        assert skate.get(list(back)) == [0, 1, 2]

    def test_in_a_closure(self) -> None:
        def reader() -> object:
            ref = skate.put(array())
            return skate.remote(lambda: int(skate.get(ref).sum()))

        read = reader()
        assert skate.get([read.remote(), read.remote()]) == [ARRAY_BYTES, ARRAY_BYTES]

    def test_in_a_default_argument(self) -> None:
        @skate.remote
        def read(ref: skate.ObjectRef = skate.put("default")) -> str:  # noqa: B008
            return skate.get(ref) if isinstance(ref, skate.ObjectRef) else ref

        assert skate.get(read.remote()) == "default"

    def test_in_objects(self) -> None:
        ref = skate.put("core")
        for _ in range(5):
            ref = skate.put([ref])
        for _ in range(5):
            (ref,) = skate.get(ref)
        assert skate.get(ref) == "core"

    def test_in_results(self) -> None:
        @skate.remote
        def put_three() -> list[skate.ObjectRef]:
            return [skate.put(i) for i in range(3)]

        assert skate.get(skate.get(put_three.remote())) == [0, 1, 2]

    def test_a_result_that_is_a_ref_stays_one(self) -> None:
        @skate.remote
        def start() -> skate.ObjectRef:
            return identity.remote("inner")

        inner = skate.get(start.remote())
        assert isinstance(inner, skate.ObjectRef)
        assert skate.get(inner) == "inner"

    def test_before_their_value_is_there(self, gate: Gate) -> None:
        @skate.remote(num_cpus=0)
        def pass_gate() -> str:
            gate.wait()
            return "through"

        ref = pass_gate.remote()
        through = get_it.remote([ref])
        gate.open()
        assert skate.get(through) == "through"

    def test_a_thousand_in_one_object(self) -> None:
        refs = skate.get(skate.put([skate.put(i) for i in range(1_000)]))
        assert skate.get(refs) == list(range(1_000))


def test_a_get_that_fails_leaves_nothing_to_the_garbage_collector() -> None:
    """Its exception leads to the frames that it came through, and these to the refs: nothing may lead back to it."""

    class Held:
        """Something that the caller's frame holds, as it does refs."""

    @skate.remote(max_retries=0)
    def crash() -> None:
        os._exit(1)

    def get_it_here(held: Held) -> None:
        with pytest.raises(skate.exceptions.WorkerCrashedError):
            skate.get(crash.remote())

    gc.disable()
    try:
        held = Held()
        freed = weakref.ref(held)
        get_it_here(held)
        del held
        assert freed() is None
    finally:
        gc.enable()


class TestLife:
    """In a store with room for nine: what nobody holds makes room, what somebody holds stays."""

    def test_put_over_and_over(self) -> None:
        for _ in range(30):
            ref = skate.put(array())
        assert skate.get(ref).sum() == ARRAY_BYTES

    def test_results_over_and_over(self) -> None:
        make = skate.remote(array)
        for _ in range(30):
            assert skate.get(make.remote()).size == ARRAY_BYTES

    def test_arguments_over_and_over(self) -> None:
        size = skate.remote(lambda big: big.size)
        for _ in range(30):
            assert skate.get(size.remote(array())) == ARRAY_BYTES

    def test_puts_within_tasks_over_and_over(self) -> None:
        @skate.remote
        def put_and_forget() -> int:
            return skate.get(skate.put(array())).size

        for _ in range(30):
            assert skate.get(put_and_forget.remote()) == ARRAY_BYTES

    def test_results_nobody_looks_at(self) -> None:
        make = skate.remote(array)
        for _ in range(30):
            make.remote()
        assert skate.get(make.remote()).size == ARRAY_BYTES

    def test_of_an_argument_that_is_on_its_way(self, gate: Gate) -> None:
        @skate.remote
        def size_behind_gate(big: list[skate.ObjectRef]) -> int:
            gate.wait()
            return skate.get(big[0]).size

        held = size_behind_gate.remote([skate.put(array())])
        self.test_put_over_and_over()
        gate.open()
        assert skate.get(held) == ARRAY_BYTES

    def test_lent_from_task_to_task(self, gate: Gate) -> None:
        # driver → outer → inner, each dropping its own ref while inner still waits to use it.
        @skate.remote
        def inner(refs: list[skate.ObjectRef]) -> int:
            gate.wait()
            return skate.get(refs[0]).size

        @skate.remote
        def outer(refs: list[skate.ObjectRef]) -> list[skate.ObjectRef]:
            return [inner.remote(refs)]

        (size,) = skate.get(outer.remote([skate.put(array())]))
        self.test_put_over_and_over()
        gate.open()
        assert skate.get(size) == ARRAY_BYTES

    def test_kept_by_an_object_that_holds_it(self) -> None:
        box = skate.put([skate.put(array())])
        self.test_put_over_and_over()
        assert skate.get(skate.get(box)[0]).sum() == ARRAY_BYTES

    def test_kept_by_a_task_that_is_over(self) -> None:
        @skate.remote
        def make() -> list[skate.ObjectRef]:
            return [skate.put(array())]

        box = make.remote()
        self.test_put_over_and_over()
        assert skate.get(skate.get(box)[0]).sum() == ARRAY_BYTES

    def test_the_store_is_back_at_its_base_line(self) -> None:
        def free() -> float:
            return skate.available_resources()["object_store_memory"]

        gc.collect()
        # Not all of it: a function that carries a ref may keep its object for as long as the session lasts.
        base_line = STORE_BYTES - 2 * ARRAY_BYTES
        eventually(lambda: free() >= base_line)
        refs = [skate.put(array()) for _ in range(5)]
        eventually(lambda: free() <= STORE_BYTES - 5 * ARRAY_BYTES)
        del refs
        eventually(lambda: free() >= base_line)
