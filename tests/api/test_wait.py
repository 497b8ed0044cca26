"""wait: what is ready, in which order, how many, how long, and what is refused."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import skate

from .rendezvous import Gate

pytestmark = [pytest.mark.usefixtures("cpu2"), pytest.mark.transport]


@skate.remote
def at_once(value: object = None) -> object:
    return value


@skate.remote
def pass_gate(gate: Gate) -> str:
    gate.wait()
    return "through"


@skate.remote
def fail() -> None:
    raise LookupError("nothing here")


def test_returns_when_one_is_ready(gate: Gate) -> None:
    slow, quick = pass_gate.remote(gate), at_once.remote()
    assert skate.wait([slow, quick]) == ([quick], [slow])


def test_a_timeout_gives_what_there_is_by_then(gate: Gate) -> None:
    slow, quick = pass_gate.remote(gate), skate.put(1)
    begin = time.monotonic()
    assert skate.wait([slow, quick], num_returns=2, timeout=0.2) == ([quick], [slow])
    assert 0.15 < time.monotonic() - begin < 5


def test_a_timeout_of_zero_looks_and_goes_on(gate: Gate) -> None:
    slow, quick = pass_gate.remote(gate), skate.put(1)
    assert skate.wait([slow], timeout=0) == ([], [slow])
    assert skate.wait([slow, quick], timeout=0) == ([quick], [slow])


@pytest.mark.parametrize("timeout", [3e6, 10**9, threading.TIMEOUT_MAX, 1e30, math.inf])
def test_a_timeout_as_good_as_for_ever(tmp_path: Path, timeout: float) -> None:
    """The system's own waits take only so many seconds; each way to wait takes any number, in two threads at once.

    (Of these one reads the inbox, and the other sleeps until it has read what both wait for.)
    """
    gate = Gate(tmp_path / "long")
    refs = [pass_gate.remote(gate) for _ in range(3)]
    pool = skate.util.multiprocessing.Pool(1)
    group = skate.util.placement_group([{"CPU": 0.001}])
    calls = [
        lambda: skate.get(refs[0], timeout=timeout),
        lambda: skate.wait(refs, timeout=timeout, num_returns=3)[1] == [],
        lambda: next(skate.util.as_completed(refs, timeout=timeout)),
        lambda: pool.apply_async(abs, (-1,)).get(timeout=timeout),
        lambda: pool.imap(abs, [-1]).next(timeout=timeout),
        lambda: group.wait(timeout),
    ]
    with ThreadPoolExecutor(len(calls)) as threads:
        answers = [threads.submit(call) for call in calls]
        gate.open()
        assert all(answer.result(60) for answer in answers)
    skate.util.remove_placement_group(group)
    pool.terminate()
    pool.join()


def test_what_is_late_is_ready_later(gate: Gate) -> None:
    ref = pass_gate.remote(gate)
    assert skate.wait([ref], timeout=0.05) == ([], [ref])
    gate.open()
    assert skate.wait([ref], timeout=20) == ([ref], [])


def test_ready_and_rest_keep_the_order_given(tmp_path: Path) -> None:
    gates = [Gate(tmp_path / str(i)) for i in range(2)]
    slow = [pass_gate.remote(gate) for gate in gates]
    quick = [skate.put(i) for i in range(3)]
    refs = [quick[2], slow[0], quick[0], slow[1], quick[1]]
    ready, rest = skate.wait(refs, num_returns=5, timeout=0.1)
    assert ready == [quick[2], quick[0], quick[1]]
    assert rest == slow
    for gate in gates:
        gate.open()
    assert skate.wait(refs, num_returns=5) == (refs, [])


def test_no_more_than_asked_for_come_back_as_ready() -> None:
    refs = [skate.put(i) for i in range(5)]
    ready, rest = skate.wait(refs, num_returns=3)
    assert (len(ready), len(rest)) == (3, 2)
    assert sorted(ready + rest, key=refs.index) == refs


@pytest.mark.differs_from_ray("Ray picks any of those that are ready")
def test_and_they_are_the_first() -> None:
    refs = [skate.put(i) for i in range(5)]
    assert skate.wait(refs) == (refs[:1], refs[1:])
    assert skate.wait(refs, num_returns=3) == (refs[:3], refs[3:])


def test_a_failed_task_is_ready() -> None:
    ref = fail.remote()
    assert skate.wait([ref], timeout=20) == ([ref], [])
    with pytest.raises(LookupError):
        skate.get(ref)


def test_ready_means_get_does_not_wait() -> None:
    ref = at_once.remote(b"x" * 1_000_000)
    ready, _ = skate.wait([ref], fetch_local=True)
    assert len(skate.get(ready[0], timeout=0)) == 1_000_000


def test_without_fetching() -> None:
    ref = at_once.remote("here")
    assert skate.wait([ref], fetch_local=False, timeout=20) == ([ref], [])


def test_one_by_one_until_none_is_left() -> None:
    rest, seen = [at_once.remote(i) for i in range(100)], set()
    while rest:
        (ready,), rest = skate.wait(rest)
        seen.add(skate.get(ready))
    assert seen == set(range(100))


def test_all_of_a_thousand() -> None:
    refs = [skate.put(i) for i in range(1_000)]
    assert skate.wait(refs, num_returns=1_000) == (refs, [])


def test_the_lists_are_new_and_the_input_stays() -> None:
    refs = [skate.put(i) for i in range(3)]
    before = list(refs)
    ready, rest = skate.wait(refs)
    ready.clear()
    rest.clear()
    assert refs == before


def test_in_a_task(gate: Gate) -> None:
    @skate.remote(num_cpus=0)
    def first_of(refs: list[skate.ObjectRef]) -> object:
        (ready,), _ = skate.wait(refs)
        return skate.get(ready)

    assert skate.get(first_of.remote([pass_gate.remote(gate), skate.put("mine")])) == "mine"


class TestRefuses:
    def test_a_bare_ref(self) -> None:
        with pytest.raises(TypeError, match="list"):
            skate.wait(skate.put(1))

    @pytest.mark.parametrize("make", [tuple, set, iter], ids=["tuple", "set", "iterator"])
    def test_what_is_no_list(self, make: type) -> None:
        with pytest.raises(TypeError, match="list"):
            skate.wait(make([skate.put(1)]))

    def test_what_is_no_ref(self) -> None:
        with pytest.raises(TypeError, match="int"):
            skate.wait([skate.put(1), 3])

    def test_duplicates(self) -> None:
        ref = skate.put(1)
        with pytest.raises(ValueError, match=r"unique|more than once"):
            skate.wait([ref, skate.put(2), ref])

    def test_more_than_there_are(self) -> None:
        with pytest.raises(ValueError, match="num_returns"):
            skate.wait([skate.put(1)], num_returns=2)

    @pytest.mark.parametrize("none", [0, -1])
    def test_fewer_than_one(self, none: int) -> None:
        with pytest.raises(ValueError, match=str(none)):
            skate.wait([skate.put(1)], num_returns=none)

    def test_a_negative_timeout(self) -> None:
        with pytest.raises(ValueError, match="timeout"):
            skate.wait([skate.put(1)], timeout=-1)


# Issue 2 says ValueError for "none", which we read as num_returns=0 above. An empty list is another thing:
# Ray 2.60 takes it, whatever num_returns says, and so do we.
@pytest.mark.parametrize("num_returns", [0, 1, 5])
def test_an_empty_list_is_ready(num_returns: int) -> None:
    assert skate.wait([], num_returns=num_returns) == ([], [])
