"""What a task needs decides how many run at once: CPUs, GPUs, or anything you can name and count.

Resources are logical: skate counts them, and does not ask the hardware. The two GPUs here need not exist.
"""

import os
import time

import skate


@skate.remote
def window() -> tuple[float, float]:
    """When this task ran."""
    start = time.time()
    time.sleep(0.1)
    return start, time.time()


@skate.remote(num_gpus=1)
def on_gpu() -> tuple[list[int], str]:
    time.sleep(0.2)
    return skate.get_gpu_ids(), os.environ["CUDA_VISIBLE_DEVICES"]


@skate.remote(num_gpus=0.5, num_cpus=0)
def on_half_a_gpu() -> list[int]:
    time.sleep(0.2)
    return skate.get_gpu_ids()


def most_at_once(windows: list[tuple[float, float]]) -> int:
    return max(sum(start <= moment < end for start, end in windows) for moment, _ in windows)


if __name__ == "__main__":
    skate.init(num_cpus=2, num_gpus=2, resources={"licence": 1})
    total = skate.cluster_resources()
    print({name: total[name] for name in ("CPU", "GPU", "licence")})

    for what, options in [
        ("whole CPUs", {"num_cpus": 1}),
        ("both CPUs", {"num_cpus": 2}),
        ("half a CPU", {"num_cpus": 0.5}),
        ("the one licence", {"num_cpus": 0, "resources": {"licence": 1}}),
    ]:
        task = window.options(**options)
        skate.get([task.remote() for _ in range(4)])  # let the workers start
        at_once = most_at_once(skate.get([task.remote() for _ in range(6)]))
        print(f"six tasks with {what}: at most {at_once} at once")

    # A GPU task is told which devices are its own. Two of them never share one; halves do.
    for ids, visible in sorted(skate.get([on_gpu.remote() for _ in range(2)])):
        print(f"a GPU of its own: {ids}, CUDA_VISIBLE_DEVICES={visible}")
    halves = skate.get([on_half_a_gpu.remote() for _ in range(4)])
    print("four halves of two GPUs:", sorted(halves))

    try:
        window.options(num_gpus=1.5).remote()
    except ValueError as error:
        print("refused:", error)

    skate.shutdown()
