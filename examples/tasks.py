"""A task is a function call that runs in another process, while the program goes on.

`square.remote(3)` returns at once, with a reference to a result yet to come; `skate.get` waits for it.
"""

import os
import time

import skate


@skate.remote
def square(x: int) -> int:
    return x * x


@skate.remote
def nap(seconds: float) -> int:
    """Sleep, and say which process did."""
    time.sleep(seconds)
    return os.getpid()


if __name__ == "__main__":
    skate.init(num_cpus=4)  # logical CPUs: how many such tasks may run at once, whatever the machine has

    ref = square.remote(3)
    print("a reference:", ref)
    print("its value:", skate.get(ref))
    print("several at once:", skate.get([square.remote(x) for x in range(4)]))

    skate.get([nap.remote(0.1) for _ in range(4)])  # let four workers start
    begin = time.perf_counter()
    workers = skate.get([nap.remote(0.5) for _ in range(4)])
    took = time.perf_counter() - begin
    print(f"four naps of 0.5 s took {took:.1f} s, in {len(set(workers))} processes")

    # A task's options can be changed for one call.
    print("named:", skate.get(square.options(name="the square of twelve").remote(12)))

    skate.shutdown()
