"""Large objects live once, in shared memory, and every process on the machine reads them there.

`skate.put` copies an array in; `skate.get` copies nothing out: it gives a read-only view. To change it, copy.
"""

import time

import numpy as np
import skate


@skate.remote
def column_sum(matrix: np.ndarray, column: int) -> float:
    # The argument is a view of the same memory in every worker: 100 tasks do not mean 100 copies.
    assert not matrix.flags.writeable
    return float(matrix[:, column].sum())


@skate.remote
def ones(rows: int) -> np.ndarray:
    """A large result goes to shared memory, too; what comes back is a reference."""
    return np.ones((rows, 1_000))


if __name__ == "__main__":
    skate.init(object_store_memory=500_000_000)

    matrix = np.arange(10_000_000, dtype=np.float64).reshape(-1, 100)
    ref = skate.put(matrix)
    print(f"put once: {matrix.nbytes / 1e6:.0f} MB")

    sums = skate.get([column_sum.remote(ref, column) for column in range(100)])
    print("100 tasks read it, and agree:", np.array_equal(sums, matrix.sum(axis=0)))

    begin = time.perf_counter()
    views = [skate.get(ref) for _ in range(100)]
    took_ms = 1e3 * (time.perf_counter() - begin)
    print(f"100 times get is {100 * matrix.nbytes / 1e9:.0f} GB, or {took_ms:.0f} ms")
    print("all of them one memory:", all(np.shares_memory(view, views[0]) for view in views))

    try:
        views[0][0, 0] = 1
    except ValueError as error:
        print("read-only:", error)
    mine = views[0].copy()
    mine[0, 0] = 1
    print("a copy is mine to change:", mine[0, 0], "while the object stays", skate.get(ref)[0, 0])

    # A large result passes from task to task without passing through here.
    print("from task to task:", skate.get(column_sum.remote(ones.remote(20_000), 0)))

    # When the last reference and the last view are gone, so are the bytes: 20 × 80 MB in a store of 500 MB.
    del views, mine
    for _ in range(20):
        ref = skate.put(matrix)
    print("put again 20 times:", skate.get(ref).shape)

    skate.shutdown()
