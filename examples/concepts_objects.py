"""The object examples of the page "Ray's core concepts", one after the other; only the import is another."""

import time

import numpy as np
import skate
from skate.exceptions import GetTimeoutError


@skate.remote
def long_running_function() -> None:
    time.sleep(2)


@skate.remote
def sum_matrix(matrix: np.ndarray) -> float:
    return np.sum(matrix)


@skate.remote
def echo(a: int, b: int, c: int) -> None:
    """What a task prints appears in the driver, with the task's name and process before it."""
    print(a, b, c)


@skate.remote
def echo_and_get(x_list: list[skate.ObjectRef]) -> None:
    print("args:", x_list)
    print("values:", skate.get(x_list))


if __name__ == "__main__":
    skate.init(num_cpus=1)

    # Put, and get: one, or many.
    object_ref = skate.put(1)
    print("One:", skate.get(object_ref))
    print("Many:", skate.get([skate.put(i) for i in range(3)]))

    # A timeout, to return early from a `get` that takes too long.
    obj_ref = long_running_function.remote()
    try:
        skate.get(obj_ref, timeout=0.5)
    except GetTimeoutError:  # or the built-in TimeoutError, of which it is a subclass
        print("`get` timed out.")

    # A small matrix travels with the call; a large one is put once, and passed by reference.
    print("Sum of small matrix:", skate.get(sum_matrix.remote(np.ones((100, 100)))))
    matrix_ref = skate.put(np.ones((1000, 1000)))
    print("Sum of large matrix:", skate.get(sum_matrix.remote(matrix_ref)))

    # As arguments, references are replaced by values; inside a list they stay references.
    a, b, c = skate.put(1), skate.put(2), skate.put(3)
    skate.get(echo.remote(1, 2, 3))
    skate.get(echo.remote(a, b, c))
    skate.get(echo_and_get.remote([a, b, c]))

    # A function carries the references that it mentions.
    @skate.remote
    def print_via_capture() -> None:
        print(skate.get([a, b, c]))

    skate.get(print_via_capture.remote())

    time.sleep(0.5)  # let the last lines arrive
    skate.shutdown()
