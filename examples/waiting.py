"""Use results as they come, not in the order they were asked for; and keep only so many in flight.

`skate.wait(refs, num_returns=1)` returns as soon as one is ready: the ready ones, and the rest.
"""

import time

import skate


@skate.remote
def cook(dish: str, seconds: float) -> str:
    time.sleep(seconds)
    return dish


@skate.remote
def double(x: int) -> int:
    return 2 * x


def in_flight(limit: int, numbers: range) -> int:
    """Add up many results with never more than `limit` tasks submitted at a time."""
    total, pending = 0, []
    for number in numbers:
        if len(pending) == limit:
            ready, pending = skate.wait(pending, num_returns=1)
            total += sum(skate.get(ready))
        pending.append(double.remote(number))
    return total + sum(skate.get(pending))


if __name__ == "__main__":
    skate.init(num_cpus=3)

    orders = [cook.remote("roast", 1.2), cook.remote("soup", 0.6), cook.remote("salad", 0.0)]
    while orders:
        (served,), orders = skate.wait(orders, num_returns=1)
        print(f"served: {skate.get(served)}, still cooking: {len(orders)}")

    # With a timeout, what is not ready by then is among the rest.
    stew = cook.remote("stew", 1.0)
    ready, rest = skate.wait([stew], timeout=0.1)
    print(f"after 0.1 s: {len(ready)} ready, {len(rest)} not")
    try:
        skate.get(stew, timeout=0.1)
    except TimeoutError as error:
        print(f"get gave up: {type(error).__name__}")
    print(f"patience: {skate.get(stew)}")

    print("the sum of 100 results, 8 in flight:", in_flight(8, range(100)))

    skate.shutdown()
