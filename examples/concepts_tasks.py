"""The task examples of the page "Ray's core concepts", one after the other; only the import is another."""

import time

import numpy as np
import skate


@skate.remote
def square(x: int) -> int:
    return x * x


# What a task needs.
@skate.remote(num_cpus=4, num_gpus=2)
def my_function() -> int:
    return 1


# A reference among the arguments: the task sees its value.
@skate.remote
def function_with_an_argument(value: int) -> int:
    return value + 1


# Tasks that depend on tasks.
@skate.remote
def create_matrix(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng().normal(size=size)


@skate.remote
def multiply_matrices(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.dot(x, y)


@skate.remote
def slow_function(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


if __name__ == "__main__":
    skate.init(num_cpus=4, num_gpus=2)

    futures = [square.remote(i) for i in range(4)]
    print("The final result is:", skate.get(futures))

    # The requirements can be changed for a call.
    print("With 3 CPUs and 2 GPUs:", skate.get(my_function.options(num_cpus=3).remote()))

    obj_ref1 = my_function.remote()
    obj_ref2 = function_with_an_argument.remote(obj_ref1)
    print("A task on a task's result:", skate.get(obj_ref2))

    x_id = create_matrix.remote((1000, 1000))
    y_id = create_matrix.remote((1000, 1000))
    z = skate.get(multiply_matrices.remote(x_id, y_id))
    print("Matrix multiplication completed. Result shape:", z.shape)

    # As soon as one of the tasks has ended.
    object_refs = [slow_function.remote(seconds) for seconds in (0.0, 0.5)]
    ready_refs, remaining_refs = skate.wait(object_refs, num_returns=1, timeout=None)
    print("Ready:", len(ready_refs), "Remaining:", len(remaining_refs))

    skate.shutdown()
