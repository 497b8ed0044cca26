"""SIGKILL of an actor that answers, many times at moments of chance: what is retried is answered, and rightly."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.timeout(100), pytest.mark.transport]

KILLS = """
    import os, random, signal, sys, time
    import numpy as np
    import skate

    class Maker:
        def pid(self):
            return os.getpid()

        def make(self, size, number):
            return np.full(size, number)

    threads, size, rounds = map(int, sys.argv[1:])
    skate.init(num_cpus=2)
    always = dict(max_restarts=-1, max_task_retries=-1, max_concurrency=threads)
    maker = skate.remote(Maker).options(**always).remote()
    moments = random.Random(threads + size)
    for _ in range(rounds):
        pid = skate.get(maker.pid.remote(), timeout=20)
        refs = [maker.make.remote(size, i) for i in range(30)]
        time.sleep(moments.uniform(0, 0.006))
        os.kill(pid, signal.SIGKILL)
        assert [int(array[0]) for array in skate.get(refs, timeout=20)] == list(range(30))
    skate.shutdown()
    print("fine", flush=True)
"""


@pytest.mark.parametrize("size", [10, 30_000], ids=["small results", "large results"])
@pytest.mark.parametrize("threads", [1, 4])
def test_every_call_is_answered(start_driver, threads: int, size: int) -> None:
    driver = start_driver(KILLS, threads, size, 60)
    driver.line("fine", timeout=80)
    assert driver.wait() == 0
