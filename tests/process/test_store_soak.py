"""Four processes put and get objects of random sizes, more than the store holds; at the end it is as it was before."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import skate
from api.rendezvous import eventually
from budgets import SOAK_OPERATIONS
from skate.runtime import current

PROCESSES = 4
STORE = 64 << 20
#: bytes; the largest four fit into the store beside what their processes hold
SMALLEST, LARGEST = 1 << 10, 4 << 20
HELD = 40


@skate.remote
def soak(seed: int, operations: int) -> dict[str, int]:
    """Puts, gets, drops and passes on; every array must be what it was put as."""
    rng = random.Random(seed)
    held: list[tuple[Any, int, int]] = []
    counts = {"put": 0, "get": 0}
    for number in range(operations):
        if not held or (len(held) < HELD and rng.random() < 0.5):
            size = int(SMALLEST * (LARGEST / SMALLEST) ** rng.random()) // 8
            held.append((skate.put(np.full(size, number, np.int64)), size, number))
            counts["put"] += 1
            continue
        ref, size, value = held[rng.randrange(len(held))]
        array = skate.get(ref)
        if len(array) != size or array[0] != value or array[-1] != value:
            raise AssertionError(f"{array[:1]} * {len(array)} was put as {value} * {size}")
        counts["get"] += 1
        if rng.random() < 0.5 or len(held) == HELD:
            held.pop(rng.randrange(len(held)))
    return counts


def test_returns_to_base_line(skate_start: Callable[..., Any]) -> None:
    info = skate_start(num_cpus=PROCESSES, object_store_memory=STORE)
    runtime = current.runtime
    assert runtime is not None
    counts = skate.get([soak.remote(seed, SOAK_OPERATIONS // PROCESSES) for seed in range(PROCESSES)])
    assert sum(count["put"] for count in counts) > SOAK_OPERATIONS // 4
    assert sum(count["get"] for count in counts) > SOAK_OPERATIONS // 4
    eventually(lambda: runtime.store.usage()["used"] == 0)
    eventually(lambda: runtime.query("spilled")["objects"] == 0)
    eventually(lambda: not os.listdir(os.path.join(info["folder"], "spill")))
    usage = runtime.store.usage()
    assert usage["objects"] == usage["pinned"] == 0
    assert usage["free_blocks"] <= 1
