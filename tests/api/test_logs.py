"""What tasks print appears in the driver, with their name and process before it."""

import logging
import os
import re
import sys
import time

import pytest
import skate

pytestmark = pytest.mark.transport


@skate.remote
def say(*words: str) -> int:
    for word in words:
        print(word)
    return os.getpid()


def test_prefixed_with_name_and_process(skate_start, printed) -> None:
    skate_start()
    pid = skate.get(say.remote("hello"))
    assert f"(say pid={pid}) hello" in printed("hello")

    pid = skate.get(say.options(name="speaker").remote("hello again"))
    assert f"(speaker pid={pid}) hello again" in printed("hello again")


@pytest.mark.differs_from_ray("Ray folds lines that differ in a number only, and sometimes loses some")
def test_every_line_of_one_worker_in_order(skate_start, printed) -> None:
    skate_start(num_cpus=1)
    words = [f"line {i} of many" for i in range(2_000)]
    skate.get(say.remote(*words))
    lines = [line.split(") ", 1)[1] for line in printed(words[-1]) if line.startswith("(say pid=")]
    assert lines == words


def test_whatever_way_it_is_written(skate_start, printed) -> None:
    @skate.remote
    def write() -> None:
        print("by stderr", file=sys.stderr)
        logging.getLogger("a library").warning("by logging")
        os.write(1, b"by descriptor\n")
        os.system("echo by a child")
        print("several\nlines, the last without an end", end="")
        sys.stdout.flush()
        print("\nand done")

    skate_start()
    skate.get(write.remote())
    lines = printed("and done")
    for text in ("by stderr", "by logging", "several", "lines, the last without an end"):
        assert any(re.fullmatch(rf"\(write pid=\d+\) .*{text}", line) for line in printed(text)), lines
    for text in (
        "by descriptor",
        "by a child",
    ):  # past Python's streams, its process may be all that is known
        assert any(re.fullmatch(rf"\((write )?pid=\d+\) {text}", line) for line in printed(text)), lines


def test_a_task_that_fails_has_still_printed(skate_start, printed) -> None:
    @skate.remote(max_retries=0)
    def last_words() -> None:
        print("famous last words", flush=True)
        os._exit(1)

    skate_start()
    with pytest.raises(skate.exceptions.WorkerCrashedError):
        skate.get(last_words.remote())
    assert any("pid=" in line for line in printed("famous last words") if "famous" in line)


def test_a_task_that_runs_is_heard(skate_start, printed, gate) -> None:
    @skate.remote
    def speak_and_wait() -> None:
        print("still running")
        gate.wait()

    skate_start()
    ref = speak_and_wait.remote()
    printed("still running")
    assert skate.wait([ref], timeout=0) == ([], [ref])
    gate.open()
    skate.get(ref)


def test_can_be_turned_off(skate_start, captured) -> None:
    skate_start(log_to_driver=False)
    skate.get(say.remote("a secret"))
    time.sleep(1)  # nothing to wait for: it must not come
    assert "a secret" not in captured()


def test_the_driver_prints_as_before(skate_start, captured) -> None:
    skate_start()
    print("the driver's own")
    assert captured(1).endswith("the driver's own\n")
