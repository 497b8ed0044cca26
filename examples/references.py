"""Three ways to hand a task a reference: as an argument, inside of something, and by closure.

A reference that is itself an argument is replaced by its value before the task starts. Inside a list, a
dictionary or any object it arrives as the reference it is: the task decides whether, and when, to get the
value.
"""

import time
from dataclasses import dataclass

import skate


@dataclass
class Order:
    customer: str
    basket: skate.ObjectRef  #: a list of prices


@skate.remote
def describe(value: object) -> str:
    return type(value).__name__


@skate.remote
def total(order: Order) -> str:
    return f"{order.customer} pays {sum(skate.get(order.basket)):.2f}"


@skate.remote
def slow_prices() -> list[float]:
    time.sleep(0.5)
    return [9.99, 0.01]


@skate.remote
def quickest(refs: list[skate.ObjectRef]) -> str:
    """Started before its second input exists, and done without it."""
    (first,), _ = skate.wait(refs, num_returns=1)
    return f"{skate.get(first)} was there first"


@skate.remote
def deposit() -> list[skate.ObjectRef]:
    """References can be returned; the objects live as long as someone holds them, though the task is over."""
    return [skate.put("left by a task that has ended")]


if __name__ == "__main__":
    skate.init(num_cpus=2)

    prices = skate.put([3.50, 2.25])
    print("as an argument:", skate.get(describe.remote(prices)))
    print("in a list:", skate.get(describe.remote([prices])), "of ObjectRef")
    print("in an object:", skate.get(total.remote(Order("Ada", prices))))
    print("not there yet:", skate.get(quickest.remote([slow_prices.remote(), prices])))

    # By closure: the function carries the reference with it, and keeps the object alive.
    @skate.remote
    def cheapest() -> float:
        return min(skate.get(prices))

    print("by closure:", skate.get(cheapest.remote()))

    (inner,) = skate.get(deposit.remote())
    print("returned:", skate.get(inner))

    skate.shutdown()
