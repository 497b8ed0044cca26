"""What goes wrong in a task comes out of `get`: as the exception it was, with the story of where.

And what may go right the second time is tried again: `max_retries` times when a worker died, and after an
exception of the task's own where `retry_exceptions` allows it.
"""

import os
import tempfile
from pathlib import Path

import skate
from skate.exceptions import TaskError, WorkerCrashedError


@skate.remote
def ratio(a: float, b: float) -> float:
    return a / b


@skate.remote
def percent(x: float) -> str:
    return f"{x:.0%}"


@skate.remote(max_retries=3, retry_exceptions=[ConnectionError])
def flaky(log: Path) -> str:
    """Fails twice. The file is its memory, since a task has none."""
    with log.open("a") as file:
        file.write("tried\n")
    attempt = len(log.read_text().splitlines())
    if attempt < 3:
        raise ConnectionError("nobody there")
    return f"answered at attempt {attempt}"


@skate.remote(max_retries=0)
def crash() -> None:
    os._exit(3)  # as a segmentation fault would: no exception, no goodbye


if __name__ == "__main__":
    skate.init(num_cpus=2)

    try:
        skate.get(ratio.remote(1, 0))
    except ZeroDivisionError as error:  # its own class ...
        print("caught as ZeroDivisionError; also a TaskError:", isinstance(error, TaskError))
        print("the last line of its story:", str(error).strip().splitlines()[-1])

    # An error passes down the graph; what depends on it never runs.
    try:
        skate.get(percent.remote(ratio.remote(1, 0)))
    except TaskError as error:
        print("at the end of a chain, the root cause:", type(error.cause).__name__)

    # One failure spoils nothing for the others.
    refs = [ratio.remote(1, divisor) for divisor in (4, 0, 2)]
    for ref in refs:
        try:
            print("result:", skate.get(ref))
        except ZeroDivisionError:
            print("result: none")

    with tempfile.TemporaryDirectory() as folder:
        print("retried:", skate.get(flaky.remote(Path(folder) / "attempts")))

    try:
        skate.get(crash.remote())
    except WorkerCrashedError as error:
        print("crashed:", type(error).__name__)
    print("and the runtime lives on:", skate.get(ratio.remote(1, 2)))

    skate.shutdown()
