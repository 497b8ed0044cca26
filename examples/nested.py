"""Tasks that start tasks and wait for them, to any depth; on one CPU, too.

A task that waits gives its CPU back, so the tasks it waits for can run: recursion cannot starve itself.
"""

import os

import skate


@skate.remote
def quicksort(numbers: list[int]) -> list[int]:
    if len(numbers) <= 8:
        return sorted(numbers)
    pivot, *rest = numbers
    smaller = quicksort.remote([n for n in rest if n < pivot])
    larger = quicksort.remote([n for n in rest if n >= pivot])
    return [*skate.get(smaller), pivot, *skate.get(larger)]


@skate.remote
def chain(depth: int) -> list[int]:
    """The process of this task, and those of all below it."""
    below = skate.get(chain.remote(depth - 1)) if depth > 1 else []
    return [os.getpid(), *below]


if __name__ == "__main__":
    skate.init(num_cpus=1)
    print("CPUs:", skate.cluster_resources()["CPU"])

    shuffled = [(37 * n) % 61 for n in range(61)]
    print("sorted by tasks within tasks:", skate.get(quicksort.remote(shuffled)) == sorted(shuffled))

    pids = skate.get(chain.remote(6))
    print(f"six tasks deep, each waiting for the next: {len(set(pids))} processes")

    skate.shutdown()
