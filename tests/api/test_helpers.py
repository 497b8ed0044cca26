"""as_completed and map_unordered: results as they come."""

import gc
import itertools
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import skate
from skate.exceptions import TaskError
from skate.util import as_completed, map_unordered

from .rendezvous import Gate, Tally, eventually

pytestmark = pytest.mark.usefixtures("cpu2")


@skate.remote
def identity(value: object) -> object:
    return value


@skate.remote
def fail(value: object = None) -> None:
    raise LookupError(f"nothing at {value}")


@skate.remote(num_cpus=0)
def late(gate: Gate, value: object) -> object:
    gate.wait()
    return value


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[list[Gate]]:
    gates = [Gate(tmp_path / f"gate {number}") for number in range(5)]
    yield gates
    for gate in gates:
        gate.open()


class TestAsCompleted:
    def test_each_as_soon_as_it_is_there(self, gates: list[Gate]) -> None:
        results = as_completed([late.remote(gate, i) for i, gate in enumerate(gates)], chunk_size=1)
        for number in (3, 0, 4, 1, 2):
            gates[number].open()
            assert next(results) == number
        assert list(results) == []

    def test_chunks_in_the_order_given(self, gates: list[Gate]) -> None:
        results = as_completed([late.remote(gate, i) for i, gate in enumerate(gates)], chunk_size=2)
        gates[3].open()
        gates[1].open()
        assert [next(results), next(results)] == [1, 3]
        gates[4].open()
        gates[0].open()
        assert [next(results), next(results)] == [0, 4]
        gates[2].open()
        assert list(results) == [2]

    def test_a_chunk_larger_than_what_there_is(self) -> None:
        assert list(as_completed([identity.remote(i) for i in range(3)], chunk_size=100)) == [0, 1, 2]

    def test_all_of_many(self) -> None:
        assert sorted(as_completed([identity.remote(i) for i in range(1_000)])) == list(range(1_000))

    def test_refs_instead_of_values(self) -> None:
        refs = [identity.remote(i) for i in range(20)]
        got = list(as_completed(refs, yield_obj_refs=True))
        assert sorted(got, key=refs.index) == refs

    def test_what_is_there_already(self) -> None:
        refs = [skate.put(i) for i in range(25)]
        assert list(as_completed(refs)) == list(range(25))

    @pytest.mark.parametrize("make", [tuple, iter])
    def test_of_any_iterable(self, make: type) -> None:
        assert list(as_completed(make([skate.put(1), skate.put(2)]))) == [1, 2]

    def test_of_nothing(self) -> None:
        assert list(as_completed([])) == []

    def test_the_list_stays_as_it_was(self) -> None:
        refs = [skate.put(i) for i in range(3)]
        before = list(refs)
        assert list(as_completed(refs)) == [0, 1, 2]
        assert refs == before

    def test_a_timeout_lets_a_chunk_be_short(self, gates: list[Gate]) -> None:
        refs = [identity.remote("quick"), late.remote(gates[0], "slow")]
        results = as_completed(refs, chunk_size=2, timeout=0.05)
        assert next(results) == "quick"
        gates[0].open()
        assert next(results) == "slow"

    def test_a_timeout_is_no_error(self, gates: list[Gate]) -> None:
        @skate.remote(num_cpus=0)
        def open_after(gate: Gate, tally: Tally) -> None:
            tally.meet(1)
            gate.open()

        tally = Tally(gates[0].path.with_name("tally"))
        results = as_completed([late.remote(gates[0], "slow")], timeout=0)
        open_after.remote(gates[0], tally)
        assert list(results) == ["slow"]

    def test_of_borrowed_refs(self, gates: list[Gate]) -> None:
        @skate.remote(num_cpus=0)
        def collect(refs: list) -> list[object]:
            return sorted(as_completed(refs, chunk_size=1))

        result = collect.remote([late.remote(gates[0], 0), skate.put(1), identity.remote(2)])
        gates[0].open()
        assert skate.get(result) == [0, 1, 2]

    def test_a_failure_comes_in_its_place(self) -> None:
        refs = [identity.remote(0), fail.remote(1), identity.remote(2)]
        skate.wait(refs, num_returns=3)
        results = as_completed(refs)
        assert next(results) == 0
        with pytest.raises(LookupError, match="nothing at 1") as caught:
            next(results)
        assert isinstance(caught.value, TaskError)

    def test_with_refs_each_failure_can_be_caught(self) -> None:
        refs = [fail.remote(i) if i % 2 else identity.remote(i) for i in range(6)]
        got = []
        for ref in as_completed(refs, yield_obj_refs=True):
            try:
                got.append(skate.get(ref))
            except LookupError:
                got.append(-1)
        assert sorted(got) == [-1, -1, -1, 0, 2, 4]

    def test_large_values(self) -> None:
        refs = [identity.remote(bytes([i]) * 1_000_000) for i in range(5)]
        assert sorted(value[0] for value in as_completed(refs)) == list(range(5))

    def test_a_task_that_waits_in_it_lends_its_cpus(self) -> None:
        @skate.remote(num_cpus=2)
        def outer() -> list[object]:
            return sorted(as_completed([identity.remote(i) for i in range(4)]))

        assert skate.get(outer.remote(), timeout=60) == [0, 1, 2, 3]

    def test_values_go_as_they_are_used(self) -> None:
        class Marked:
            pass

        def used() -> Iterator[weakref.ref]:
            for value in as_completed([skate.put([Marked()]) for _ in range(3)], chunk_size=1):
                yield weakref.ref(value[0])

        marks = list(used())
        gc.collect()
        assert [mark() for mark in marks] == [None] * 3

    def test_leaving_early(self, gates: list[Gate]) -> None:
        refs = [identity.remote(0), late.remote(gates[0], 1)]
        results = as_completed(refs, chunk_size=1)
        assert next(results) == 0
        results.close()
        gates[0].open()
        assert skate.get(refs) == [0, 1]

    class TestRefuses:
        def test_a_single_ref(self) -> None:
            with pytest.raises(TypeError, match=r"as_completed\(\[ref\]\)"):
                as_completed(skate.put(1))

        def test_what_is_no_ref(self) -> None:
            with pytest.raises(TypeError, match="int"):
                as_completed([skate.put(1), 3])

        def test_duplicates(self) -> None:
            ref = skate.put(1)
            with pytest.raises(ValueError, match="more than once"):
                as_completed([ref, ref])

        @pytest.mark.parametrize("chunk_size", [0, -1, 1.5, None])
        def test_a_bad_chunk_size(self, chunk_size: object) -> None:
            with pytest.raises(ValueError, match="chunk_size"):
                as_completed([skate.put(1)], chunk_size=chunk_size)

        def test_a_negative_timeout(self) -> None:
            with pytest.raises(ValueError, match="timeout"):
                as_completed([skate.put(1)], timeout=-1)

        def test_num_returns(self) -> None:
            with pytest.raises(ValueError, match="chunk_size=2"):
                as_completed([skate.put(1)], num_returns=2)


class TestMapUnordered:
    def test_all(self) -> None:
        assert sorted(map_unordered(identity, range(300))) == list(range(300))

    def test_as_they_come(self, gates: list[Gate]) -> None:
        @skate.remote(num_cpus=0)
        def through(item: tuple[Gate, int]) -> int:
            item[0].wait()
            return item[1]

        results = map_unordered(through, [(gate, i) for i, gate in enumerate(gates)], chunk_size=1)
        for number in (2, 4, 0, 3, 1):
            gates[number].open()
            assert next(results) == number

    def test_backpressure(self, gates: list[Gate], tally: Tally) -> None:
        @skate.remote(num_cpus=0)
        def count(item: tuple[Tally, Gate, int]) -> int:
            item[0].add()
            if item[2]:
                item[1].wait()
            return item[2]

        taken: list[int] = []

        def items() -> Iterator[tuple[Tally, Gate, int]]:
            for i in range(10):
                taken.append(i)
                yield tally, gates[0], i

        results = map_unordered(count, items(), backpressure_size=3, chunk_size=1)
        assert taken == []
        assert next(results) == 0
        assert taken == [0, 1, 2]
        eventually(lambda: tally.count == 3)
        gates[0].open()
        assert sorted(results) == list(range(1, 10))
        assert taken == list(range(10))

    def test_of_as_many_items_as_you_like(self) -> None:
        results = map_unordered(identity, itertools.count(), backpressure_size=5, chunk_size=2)
        assert len(set(itertools.islice(results, 50))) == 50

    def test_without_backpressure(self) -> None:
        assert sorted(map_unordered(identity, range(50), backpressure_size=None)) == list(range(50))

    def test_chunks_larger_than_what_is_in_flight(self) -> None:
        got = map_unordered(identity, range(20), backpressure_size=2, chunk_size=50)
        assert sorted(got) == list(range(20))

    def test_of_nothing(self) -> None:
        assert list(map_unordered(identity, [])) == []

    def test_refs_instead_of_values(self) -> None:
        refs = list(map_unordered(identity, range(5), yield_obj_refs=True))
        assert sorted(skate.get(refs)) == list(range(5))

    def test_a_failure(self) -> None:
        with pytest.raises(LookupError, match="nothing at 7"):
            list(map_unordered(fail, [7]))

    def test_an_input_that_raises(self) -> None:
        def items() -> Iterator[int]:
            yield 1
            raise LookupError("no more of these")

        with pytest.raises(LookupError, match="no more of these"):
            list(map_unordered(identity, items()))

    def test_by_a_method_of_an_actor(self) -> None:
        @skate.remote
        class Doubler:
            def double(self, number: int) -> int:
                return 2 * number

        assert sorted(map_unordered(Doubler.remote().double, range(5))) == [0, 2, 4, 6, 8]

    class TestRefuses:
        def test_a_plain_function(self) -> None:
            with pytest.raises(TypeError, match="remote function"):
                map_unordered(len, ["a"])

        def test_what_cannot_be_iterated(self) -> None:
            with pytest.raises(TypeError, match="iterable"):
                map_unordered(identity, 3)

        def test_functions_of_several_values(self) -> None:
            two = identity.options(num_returns=2)
            with pytest.raises(TypeError, match="one ObjectRef"):
                list(map_unordered(two, [(1, 2)]))

        @pytest.mark.parametrize("size", [0, -1])
        def test_a_bad_backpressure_size(self, size: int) -> None:
            with pytest.raises(ValueError, match="backpressure_size"):
                map_unordered(identity, [1], backpressure_size=size)

        def test_a_bad_chunk_size(self) -> None:
            with pytest.raises(ValueError, match="chunk_size"):
                map_unordered(identity, [1], chunk_size=0)

        def test_num_returns(self) -> None:
            with pytest.raises(ValueError, match="chunk_size=2"):
                map_unordered(identity, [1], num_returns=2)
