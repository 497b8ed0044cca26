"""In which order an actor runs its calls: each caller's as it made them, and no caller waits for another.

An async actor promises no order at all: a call whose argument is late is overtaken by the next.
"""

import time

import skate


@skate.remote
class Counter:
    def __init__(self) -> None:
        self.value = 0

    def add(self, addition: int) -> int:
        self.value += addition
        return self.value


@skate.remote
class AsyncCounter:
    def __init__(self) -> None:
        self.value = 0

    async def add(self, addition: int) -> int:
        self.value += addition
        return self.value


@skate.remote
def delayed_resolution(value: int) -> int:
    time.sleep(1)
    return value


@skate.remote
def submitter(counter: Counter, value: int) -> int:
    return skate.get(counter.add.remote(value))


if __name__ == "__main__":
    skate.init(num_cpus=3)

    # One caller: in order, although the first call's argument comes late.
    counter = Counter.remote()
    value0 = counter.add.remote(delayed_resolution.remote(1))
    value1 = counter.add.remote(2)
    print("one submitter:", skate.get(value0), "then", skate.get(value1))

    # Two callers: the one whose argument is late does not hold up the other.
    counter = Counter.remote()
    value0 = submitter.remote(counter, delayed_resolution.remote(1))
    value1 = submitter.remote(counter, 2)
    (first,), (second,) = skate.wait([value0, value1], num_returns=1)
    print("two submitters, as they come:", skate.get(first), "then", skate.get(second))
    print("in the order they were asked for:", skate.get([value0, value1]))

    # An async actor: the later call overtakes the earlier one of the same caller.
    async_counter = AsyncCounter.remote()
    value0 = async_counter.add.remote(delayed_resolution.remote(1))
    value1 = async_counter.add.remote(2)
    print("an async actor:", skate.get(value0), "then", skate.get(value1))

    skate.shutdown()
