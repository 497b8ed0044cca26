"""A large argument given by value to many calls is stored once, and what a call gets is what it was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skate
from api.rendezvous import Gate, eventually
from skate.runtime import current

pytestmark = pytest.mark.transport

MB = 1 << 20


def objects() -> int:
    assert current.runtime is not None
    return current.runtime.store.usage()["objects"]


@skate.remote
def total(gate: Gate, array: Any) -> int:
    gate.wait()
    return int(np.asarray(array).sum())


MAKERS = {"array": np.ones, "bytes": bytes, "dict": lambda n: {"a": np.ones(n), "b": [1]}}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_stored_once(skate_start: Callable[..., Any], gate: Gate, make: Callable[[int], Any]) -> None:
    skate_start()
    value = make(MB)

    @skate.remote
    def wait(gate: Gate, value: Any) -> Any:
        gate.wait()
        return value["a"].sum() if isinstance(value, dict) else sum(value[:10])

    results = [wait.remote(gate, value) for _ in range(20)]
    assert objects() == 1
    gate.open()
    assert len(set(skate.get(results))) == 1
    eventually(lambda: objects() == 0)


def test_changed_between_calls(skate_start: Callable[..., Any], gate: Gate) -> None:
    """Each call gets the bytes of its moment, though address, shape and dtype stay the same."""
    skate_start()
    array = np.zeros(MB // 8, np.int64)
    results = []
    for n in range(10):
        array[n * 1000] = 1
        results += [total.remote(gate, array), total.remote(gate, array)]
    assert objects() == 10
    array[:] = 7
    gate.open()
    assert skate.get(results) == [n for n in range(1, 11) for _ in range(2)]
    eventually(lambda: objects() == 0)


def test_nan_and_views(skate_start: Callable[..., Any], gate: Gate) -> None:
    """Bytes are compared, not values: NaN is the same as before, -0.0 is not 0.0, a transposed array is another."""
    skate_start()
    array = np.full((512, 512), np.nan)
    results = [total.remote(gate, array) for _ in range(3)]
    assert objects() == 1
    array[:] = 0.0
    results += [total.remote(gate, array)]
    array[:] = -0.0
    results += [total.remote(gate, array)]
    assert objects() == 3
    array = array.T
    array.flags.writeable = False
    results += [total.remote(gate, array) for _ in range(2)]
    assert objects() == 4
    gate.open()
    skate.wait(results, num_returns=len(results))
    eventually(lambda: objects() == 0)


def test_address_used_again(skate_start: Callable[..., Any], gate: Gate) -> None:
    skate_start()
    results = []
    for n in range(30):
        results.append(total.remote(gate, np.full(MB // 8, n)))  # often at the address of the one before
    gate.open()
    assert skate.get(results) == [n * MB // 8 for n in range(30)]


def test_spilled_meanwhile(skate_start: Callable[..., Any], gate: Gate) -> None:
    skate_start(object_store_memory=32 * MB)
    array = np.ones(MB, np.int64)
    results = [total.remote(gate, array) for _ in range(5)]
    refs = [skate.put(np.full(MB, n)) for n in range(8)]
    results += [total.remote(gate, array) for _ in range(5)]
    gate.open()
    assert skate.get(results) == [MB] * 10
    assert [int(skate.get(ref)[0]) for ref in refs] == list(range(8))
