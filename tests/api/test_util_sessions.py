"""skate.util across sessions: what starts one, and what is left of it after shutdown()."""

from collections.abc import Callable

import pytest
import skate
from skate.util import SkateExecutor
from skate.util.multiprocessing import Pool
from skate.util.queue import Queue

from .rendezvous import Gate

Start = Callable[..., object]


def through(gate: Gate) -> str:
    gate.wait()
    return "through"


@pytest.mark.parametrize(
    "make", [lambda: Pool(1), Queue, SkateExecutor], ids=["Pool", "Queue", "SkateExecutor"]
)
def test_each_starts_one(skate_start: Start, make: Callable[[], object]) -> None:
    made = make()
    assert skate.is_initialized()
    del made


def test_the_names_come_when_they_are_asked_for() -> None:
    assert set(skate.util.__all__) <= set(dir(skate.util))
    for name in skate.util.__all__:
        assert getattr(skate.util, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Actorpool'"):
        _ = skate.util.Actorpool


def test_a_pool(skate_start: Start, gate: Gate) -> None:
    skate_start()
    pool = Pool(2)
    results = [pool.apply_async(through, (gate,)) for _ in range(4)]
    skate.shutdown()
    for result in results:
        with pytest.raises(RuntimeError, match="shut down"):
            result.get(timeout=20)
    with pytest.raises(ValueError, match="shut down"):
        pool.apply(through, (gate,))
    pool.terminate()
    pool.join()
    assert not skate.is_initialized()


def test_an_executor(skate_start: Start, gate: Gate) -> None:
    skate_start()
    executor = SkateExecutor(max_workers=1)
    futures = [executor.submit(through, gate) for _ in range(3)]
    skate.shutdown()
    for future in futures:
        with pytest.raises(RuntimeError, match="shut down"):
            future.result(timeout=20)
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(through, gate)
    executor.shutdown()
    assert not skate.is_initialized()


def test_a_queue(skate_start: Start) -> None:
    skate_start()
    q = Queue()
    q.put(1)
    skate.shutdown()
    q.shutdown()
    assert not skate.is_initialized()


def test_classes_survive_a_session(skate_start: Start) -> None:
    for _ in range(2):
        skate_start()
        q = Queue()
        q.put_nowait_batch([1, 2])
        assert q.get_nowait_batch(2) == [1, 2]
        with Pool(1) as pool:
            assert pool.map(abs, [-1, -2]) == [1, 2]
        with SkateExecutor() as executor:
            assert list(executor.map(abs, [-1, -2])) == [1, 2]
        skate.shutdown()
