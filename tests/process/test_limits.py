"""Programs that may open few descriptors (`ulimit -n`): they work, or an error soon names the limit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import skate
number = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))
try:
    skate.init(num_cpus=2, log_to_driver=False)
    print("started", flush=True)
    assert skate.get([skate.remote(lambda: 7).remote() for _ in range(8)], timeout=30) == [7] * 8
    print("tasks", flush=True)
    class Actor:
        def answer(self):
            return 8
    actors = [skate.remote(num_cpus=0)(Actor).remote() for _ in range(int(sys.argv[2]))]
    assert skate.get([actor.answer.remote() for actor in actors], timeout=60) == [8] * len(actors)
    print("actors", flush=True)
    del actors
except (skate.exceptions.SkateError, RuntimeError) as error:
    print(type(error).__name__, error)
    if skate.is_initialized():
        assert skate.cluster_resources()["CPU"] == 2, "the node lives"
skate.shutdown()
print("ended")
"""


def printed(number: int, actors: int, lanes: bool) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(number), str(actors)],
        env=os.environ | {"SKATE_LANES": str(int(lanes))},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("ended\n")
    return done.stdout


@pytest.mark.parametrize("lanes", [True, False])
@pytest.mark.parametrize("number", [14, 24, 28, 48, 128])
def test_few_descriptors(number: int, lanes: bool) -> None:
    """ZeroMQ would end a process that has none left for those who connect: see net/limits."""
    said = printed(number, 30, lanes)
    assert ("started" in said) == (number >= 28)
    assert ("tasks" in said) == (number >= 48)
    assert "actors" in said or "ulimit -n" in said


def test_descriptors_for_an_ordinary_program() -> None:
    assert "\nactors\n" in printed(256, 25, lanes=True)


USED_UP = """
import os, resource, sys, threading, time
import cloudpickle
import skate
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
skate.init(num_cpus=2)
work = skate.remote(num_cpus=0)(lambda: time.sleep(0.2) or 7)
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
refs = [work.remote() for _ in range(4)]
def close_all():
    while held:
        os.close(held.pop())
if sys.argv[1] == "soon":
    timer = threading.Timer(1.5, close_all)
    timer.start()
else:
    try:
        skate.get(refs, timeout=30)
    except skate.exceptions.SkateSystemError as error:
        assert "ulimit -n" in str(error), error
        print("heard")
    if sys.argv[1] == "late":
        close_all()
if sys.argv[1] != "never":
    assert skate.get(refs, timeout=30) == [7] * 4
skate.shutdown()
print("ended")
"""


@pytest.mark.parametrize("when", ["soon", "late", "never"])
def test_a_program_that_has_used_up_its_descriptors(when: str) -> None:
    """What it says waits until there is one; who waits longer than a few seconds hears why. No traceback.

    (With lanes: a peer that connects to it by ZeroMQ meanwhile ends it, see net/limits.)
    """
    done = subprocess.run(
        [sys.executable, "-c", USED_UP, when],
        env=os.environ | {"SKATE_LANES": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == (["ended"] if when == "soon" else ["heard", "ended"])
    assert done.stderr.count("cannot be spoken to") == 1
    assert "Traceback" not in done.stderr
