"""An actor is an object that lives in a process of its own: what one call changes, the next one finds.

`Counter.remote()` returns a handle at once; `handle.method.remote()` returns a ref, as a task does. The process ends
when the last handle is gone.
"""

import os
import time

import skate


@skate.remote
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.value = start

    def increment(self, by: int = 1) -> int:
        self.value += by
        return self.value

    def process(self) -> int:
        return os.getpid()

    @skate.method(num_returns=2)
    def both(self) -> tuple[int, int]:
        return self.value, -self.value


@skate.remote
def count_ten(counter: Counter) -> None:
    """A handle is an argument like any other."""
    skate.get([counter.increment.remote() for _ in range(10)])


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


if __name__ == "__main__":
    skate.init(num_cpus=2)

    counter = Counter.remote()
    print("one after the other:", skate.get([counter.increment.remote() for _ in range(5)]))

    ten = [Counter.remote(100 * i) for i in range(10)]
    print("ten of them:", skate.get([each.increment.remote() for each in ten]))
    print("processes:", len(set(skate.get([each.process.remote() for each in ten]))))

    skate.get([count_ten.remote(counter) for _ in range(3)])
    plus, minus = counter.both.remote()
    print("counted by tasks:", skate.get(plus), "and its opposite:", skate.get(minus))

    # Whoever knows the name gets the same actor; whoever comes first makes it.
    shared = Counter.options(name="shared", get_if_exists=True).remote(1000)
    again = Counter.options(name="shared", get_if_exists=True).remote(9999)
    print("by name:", skate.get([again.increment.remote(), skate.get_actor("shared").increment.remote()]))

    try:
        counter.increment()
    except TypeError as error:
        print("called directly:", error)

    pid = skate.get(counter.process.remote())
    last = counter.increment.remote(by=70)
    del counter
    print("asked before the last handle went:", skate.get(last))
    while not ended(pid):
        time.sleep(0.01)
    print("and then the process ended")

    skate.shutdown()
