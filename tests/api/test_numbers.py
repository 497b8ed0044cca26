"""Numbers of any kind where a number is asked for, and timeouts as long as anybody likes."""

import threading
import time
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import skate
from skate.api.session import node_config
from skate.util import ActorPool, as_completed, map_unordered
from skate.util.executor import SkateExecutor
from skate.util.multiprocessing import Pool
from skate.util.placement_group import placement_group
from skate.util.queue import Queue

pytestmark = pytest.mark.usefixtures("cpu2")


@skate.remote(num_cpus=0)
def nap(_: Any = None) -> int:
    time.sleep(0.01)
    return 1


@skate.remote(num_cpus=0)
class Actor:
    def nap(self, _: Any = None) -> int:
        time.sleep(0.01)
        return 1


def fill(queue: Queue, timeout: Any) -> int:
    """Gets what another thread puts a moment later."""
    thread = threading.Timer(0.01, queue.put, (1,))
    thread.start()
    try:
        return queue.get(timeout=timeout)  # type: ignore[no-any-return]
    finally:
        thread.join()


def from_pool(pool: ActorPool, timeout: Any) -> int:
    pool.submit(lambda actor, value: actor.nap.remote(value), 1)
    return pool.get_next(timeout=timeout)  # type: ignore[no-any-return]


WAYS: dict[str, Callable[[Any], Any]] = {
    "get": lambda timeout: skate.get(nap.remote(), timeout=timeout),
    "wait": lambda timeout: len(skate.wait([nap.remote()], timeout=timeout)[0]),
    "future": lambda timeout: nap.remote().future().result(timeout=timeout),
    "as_completed": lambda timeout: next(as_completed([nap.remote()], timeout=timeout)),
    "map_unordered": lambda timeout: next(map_unordered(nap, [1], timeout=timeout)),
    "ActorPool": lambda timeout: from_pool(ActorPool([Actor.remote()]), timeout),
    "Queue": lambda timeout: fill(Queue(), timeout),
    "placement group": lambda timeout: placement_group([{"memory": 1}]).wait(timeout),
}


@pytest.mark.parametrize("way", WAYS)
def test_timeouts(way: str) -> None:
    """Months, what threading calls the longest, infinity; and numbers that are no float of Python's."""
    for timeout in (
        3e6,
        10**10,
        threading.TIMEOUT_MAX,
        float("inf"),
        np.float32(20),
        np.int64(20),
        Fraction(20),
    ):
        assert WAYS[way](timeout) == 1, timeout


def test_timeouts_of_pools() -> None:
    with Pool(1) as pool, SkateExecutor(max_workers=1) as executor:
        for timeout in (3e6, 10**10, threading.TIMEOUT_MAX, float("inf"), np.float32(20), Fraction(20)):
            assert pool.map_async(abs, [-1]).get(timeout=timeout) == [1]
            assert pool.imap(abs, [-1]).next(timeout=timeout) == 1
            assert executor.submit(abs, -1).result(timeout=timeout) == 1
            assert list(executor.map(abs, [-1], timeout=timeout)) == [1]


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32], ids=lambda kind: kind.__name__)
class TestCounts:
    def test_of_wait(self, kind: type) -> None:
        ready, rest = skate.wait([skate.put(i) for i in range(3)], num_returns=kind(2))
        assert (len(ready), len(rest)) == (2, 1)
        with pytest.raises(ValueError, match="num_returns"):
            skate.wait([skate.put(1)], num_returns=kind(0))

    def test_of_queues(self, kind: type) -> None:
        queue = Queue(maxsize=kind(2))
        queue.put_nowait_batch([1, 2])
        assert queue.full()
        assert queue.get_nowait_batch(kind(2)) == [1, 2]

    def test_of_pools(self, kind: type) -> None:
        with Pool(kind(1), maxtasksperchild=kind(2)) as pool:
            assert pool.map(abs, [-1, -2], chunksize=kind(1)) == [1, 2]
            assert list(pool.imap(abs, [-1, -2], chunksize=kind(2))) == [1, 2]
        with SkateExecutor(max_workers=kind(1)) as executor:
            assert list(executor.map(abs, [-1, -2], chunksize=kind(2))) == [1, 2]

    def test_of_helpers(self, kind: type) -> None:
        assert list(as_completed([nap.remote()], chunk_size=kind(1))) == [1]
        assert list(map_unordered(nap, [1], backpressure_size=kind(1), chunk_size=kind(1))) == [1]

    def test_of_options(self, kind: type) -> None:
        assert (
            skate.get(nap.options(num_cpus=kind(1), max_retries=kind(1), num_returns=kind(1)).remote()) == 1
        )
        grouped = skate.remote(concurrency_groups={"io": kind(2)}, num_cpus=0)(Actor._cls)
        assert skate.get(
            grouped.options(max_concurrency=kind(2)).remote().nap.options(concurrency_group="io").remote()
        )

    def test_of_groups(self, kind: type) -> None:
        group = placement_group([{"CPU": kind(1)}])
        assert (
            skate.get(nap.options(placement_group=group, placement_group_bundle_index=kind(0)).remote()) == 1
        )
        skate.util.remove_placement_group(group)


@pytest.mark.parametrize(
    "kind", [int, np.int64, np.float32, Decimal, Fraction], ids=lambda kind: kind.__name__
)
def test_amounts_of_a_node(kind: type) -> None:
    """What `init` was told can be written down."""
    config = node_config(
        num_cpus=kind(4),
        num_gpus=kind(0),
        resources={"special": kind(2)},
        memory=kind(1 << 30),
        object_store_memory=kind(100 << 20),
        object_spilling_limit=np.int64(7),
        lives_with="driver",
    )
    assert config["num_cpus"] == 4
    assert {type(config[name]) for name in ("num_cpus", "num_gpus", "memory")} <= {int, float}
    assert type(config["resources"]["special"]) in (int, float)
    assert type(config["spill_limit"]) is int
