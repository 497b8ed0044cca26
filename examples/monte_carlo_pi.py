"""Pi by throwing darts: many independent tasks, their estimates pooled as they come in.

Each task has a seed of its own, so the answer does not depend on how many CPUs there are or who ran what.
"""

import math

import numpy as np
import skate

TASKS, DARTS = 60, 500_000


@skate.remote
def throw(seed: int, darts: int) -> int:
    """How many of the darts thrown at the unit square land inside the quarter circle."""
    x, y = np.random.default_rng(seed).random((2, darts))
    return int(np.count_nonzero(x * x + y * y < 1))


if __name__ == "__main__":
    skate.init()

    pending = [throw.remote(seed, DARTS) for seed in range(TASKS)]
    inside = thrown = 0
    while pending:
        ready, pending = skate.wait(pending, num_returns=min(15, len(pending)))
        inside += sum(skate.get(ready))
        thrown += len(ready) * DARTS
        estimate = 4 * inside / thrown
        error = 4 * math.sqrt(inside / thrown * (1 - inside / thrown) / thrown)
        print(f"{thrown / 1e6:5.1f} million darts: {estimate:.5f} ± {error:.5f}")

    print(f"pi is {estimate:.3f}, and off by {abs(estimate - math.pi):.5f}")

    skate.shutdown()
