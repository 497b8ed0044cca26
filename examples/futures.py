"""`ref.future()` is a `concurrent.futures.Future`: what takes those, takes tasks."""

import time
from concurrent.futures import FIRST_EXCEPTION, as_completed, wait

import skate


@skate.remote
def work(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@skate.remote
def fail() -> None:
    raise LookupError("nothing here")


if __name__ == "__main__":
    skate.init(num_cpus=3)

    skate.get([work.remote(0.1) for _ in range(3)])  # let three workers start
    futures = [work.remote(seconds).future() for seconds in (1.0, 0.5, 0.0)]
    for future in as_completed(futures):
        print("done:", future.result())

    # Callbacks run when the value is there.
    future = work.remote(0.1).future()
    future.add_done_callback(lambda done: print("called back with:", done.result()))
    future.result()

    slow = work.remote(1.5).future()
    done, not_done = wait([fail.remote().future(), slow], return_when=FIRST_EXCEPTION)
    (failed,) = done
    print(f"{type(failed.exception().cause).__name__} while {len(not_done)} still ran")

    skate.shutdown()
