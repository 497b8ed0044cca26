"""Add up many large arrays two by two, in a tree of tasks, without this process touching one of them.

In a chain each sum waits for the one before. In a tree all sums of a level can run at once, a pair is added
as soon as both are there, so only log2(n) sums follow one another.
"""

import numpy as np
import skate

ARRAYS, LENGTH = 16, 500_000


@skate.remote
def make(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1_000, LENGTH)


@skate.remote
def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a + b


def reduce_as_tree(refs: list[skate.ObjectRef]) -> tuple[skate.ObjectRef, int]:
    """The root of the tree, and how many levels it has. Submits everything at once, waits for nothing."""
    levels = 0
    while len(refs) > 1:
        pairs = [add.remote(a, b) for a, b in zip(refs[::2], refs[1::2], strict=False)]
        refs = pairs + refs[len(pairs) * 2 :]  # an odd one goes up a level as it is
        levels += 1
    return refs[0], levels


def reduce_as_they_come(refs: list[skate.ObjectRef]) -> skate.ObjectRef:
    """Add any two that are ready: what is slow holds nobody up."""
    while len(refs) > 1:
        (a, b), rest = skate.wait(refs, num_returns=2)
        refs = [*rest, add.remote(a, b)]
    return refs[0]


if __name__ == "__main__":
    skate.init()

    root, levels = reduce_as_tree([make.remote(seed) for seed in range(ARRAYS)])
    total = skate.get(root)
    print(f"{ARRAYS} arrays of {LENGTH * 8 / 1e6:.0f} MB added in {levels} levels: {total.sum()}")

    again = skate.get(reduce_as_they_come([make.remote(seed) for seed in range(ARRAYS)]))
    print("as they come, the same:", np.array_equal(total, again))

    skate.shutdown()
