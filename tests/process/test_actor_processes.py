"""Actors and the ends of everything around them: whatever dies, nothing is left, and who waits is told."""

from __future__ import annotations

import os
import signal

import pytest
from api.rendezvous import eventually
from leftovers import wait_for_nothing_left

from .drivers import lives

pytestmark = pytest.mark.timeout(60)

ACTORS = """
    import os, subprocess, sys, time
    import skate
    from skate.exceptions import *

    class Base:
        def __init__(self, other=None):
            self.other = other

        def pid(self):
            return os.getpid()

        def sleep(self):
            print("asleep", os.getpid(), flush=True)
            time.sleep(3600)

        def start(self):
            return subprocess.Popen(["sleep", "3600"], start_new_session=True).pid

    class Async(Base):
        async def wait(self):
            import asyncio
            await asyncio.sleep(3600)

    Actor, AsyncActor = skate.remote(Base), skate.remote(Async)

    def report(name, *pids):
        sys.stdout.write(" ".join(map(str, [name, *pids])) + "\\n")  # at once: what actors print is shown meanwhile
        sys.stdout.flush()
"""

ALL_KINDS = """
    skate.init(num_cpus=2)
    plain = Actor.remote()
    actors = [
        plain,
        Actor.remote(plain),
        Actor.options(name="named").remote(),
        Actor.options(name="stays", lifetime="detached").remote(),
        Actor.options(max_concurrency=4).remote(),
        Actor.options(max_restarts=-1, max_task_retries=-1).remote(),
        AsyncActor.remote(),
    ]
    pids = skate.get([actor.pid.remote() for actor in actors])
    busy = [actors[1].sleep.remote(), *(actors[4].sleep.remote() for _ in range(4)), actors[6].wait.remote()]
    report("actors", *pids, *skate.get([plain.start.remote(), actors[5].start.remote()]))
"""


def pids_of(driver, word: str = "actors") -> list[int]:
    return list(map(int, driver.line(word)))


def test_a_driver_that_is_killed_takes_them_all_along(start_driver) -> None:
    driver = start_driver(ACTORS + ALL_KINDS + "    skate.get(busy)\n")
    pids = pids_of(driver)
    assert len(set(pids)) == 9
    assert all(map(lives, pids))
    driver.kill()
    wait_for_nothing_left()
    assert not any(map(lives, pids))


@pytest.mark.parametrize("end", ["skate.shutdown()", "pass", "raise SystemExit(0)"])
def test_a_driver_that_ends_takes_them_all_along(start_driver, end: str) -> None:
    driver = start_driver(ACTORS + ALL_KINDS + f"    {end}\n")
    pids = pids_of(driver)
    assert driver.wait() == 0
    wait_for_nothing_left()
    assert not any(map(lives, pids))


def test_a_driver_that_is_killed_while_they_start(start_driver) -> None:
    driver = start_driver(
        ACTORS
        + """
    skate.init(num_cpus=2)
    first = Actor.remote()
    skate.get(first.pid.remote())
    actors = [Actor.remote(first) for _ in range(30)]
    refs = [actor.pid.remote() for actor in actors]
    report("starting")
    skate.get(refs)
    """
    )
    driver.line("starting")
    driver.kill()
    wait_for_nothing_left()


def test_a_driver_that_is_killed_while_they_restart(start_driver) -> None:
    driver = start_driver(
        ACTORS
        + """
    skate.init(num_cpus=2)
    actor = Actor.options(max_restarts=-1, max_task_retries=-1).remote()
    for i in range(1_000_000):
        os.kill(skate.get(actor.pid.remote()), 9)
        if i == 3:
            report("restarting")
    """
    )
    driver.line("restarting")
    driver.kill()
    wait_for_nothing_left()


def test_whoever_waits_hears_of_the_node_managers_end(start_driver) -> None:
    driver = start_driver(
        ACTORS
        + """
    skate.init(num_cpus=2)
    actor = Actor.options(max_restarts=-1, max_task_retries=-1).remote()
    report("actors", skate.get(actor.pid.remote()))
    refs = [actor.sleep.remote(), actor.pid.remote()]
    report("manager", skate.get(skate.remote(lambda: os.getppid()).remote()))
    for ref in refs:
        try:
            skate.get(ref)
        except (LocalNodeManagerDiedError, ActorError) as error:
            report("heard", type(error).__name__)
    try:
        skate.get(actor.pid.remote(), timeout=20)
    except (LocalNodeManagerDiedError, ActorError) as error:
        report("later", type(error).__name__)
    skate.shutdown()
    report("done")
    """
    )
    (pid,) = pids_of(driver)
    (zygote,) = pids_of(driver, "manager")
    os.kill(zygote, signal.SIGKILL)
    driver.line("heard")
    driver.line("later")
    driver.line("done")
    assert driver.wait() == 0
    eventually(lambda: not lives(pid))
    wait_for_nothing_left()


def test_interrupted_it_goes_on_and_so_do_they(start_driver) -> None:
    driver = start_driver(
        ACTORS
        + """
    skate.init(num_cpus=2)
    actor, other = Actor.remote(), Actor.remote()
    report("actors", *skate.get([actor.pid.remote(), other.pid.remote()]))
    ref = actor.sleep.remote()
    try:
        report("waiting")
        skate.get(ref)
    except KeyboardInterrupt:
        report("interrupted")
    report("again", skate.get(other.pid.remote()))
    skate.kill(actor)
    try:
        skate.get(ref)
    except ActorDiedError:
        report("dead")
    """
    )
    _, other = pids_of(driver)
    driver.line("waiting")
    driver.line("(Base")  # its line "asleep": the call runs
    driver.interrupt()
    driver.line("interrupted")
    assert pids_of(driver, "again") == [other]
    driver.line("dead")
    assert driver.wait() == 0
    wait_for_nothing_left()


def test_shutdown_and_a_new_session(start_driver) -> None:
    """Classes survive it; handles do not, and say so."""
    driver = start_driver(
        ACTORS
        + """
    pids = []
    for _ in range(3):
        skate.init(num_cpus=2)
        actor = Actor.options(name="the same").remote()
        pids.append(skate.get(actor.pid.remote()))
        skate.shutdown()
    skate.init(num_cpus=2)
    try:
        skate.get(actor.pid.remote(), timeout=10)
    except Exception as error:
        report("stale", type(error).__name__)
    report("actors", *pids)
    """
    )
    (error,) = driver.line("stale")
    assert error != "GetTimeoutError"
    pids = pids_of(driver)
    assert len(set(pids)) == 3
    assert driver.wait() == 0
    assert not any(map(lives, pids))
    wait_for_nothing_left()


def test_a_detached_one_outlives_its_maker_and_not_the_session(start_driver) -> None:
    driver = start_driver(
        ACTORS
        + """
    @skate.remote
    class Maker:
        def make(self):
            stays = Actor.options(name="stays", lifetime="detached").remote()
            goes = Actor.options(name="goes").remote()
            return [*skate.get([stays.pid.remote(), goes.pid.remote()]), self.pid()]

        def pid(self):
            return os.getpid()

    skate.init(num_cpus=2)
    maker = Maker.remote()
    stays, goes, maker_pid = skate.get(maker.make.remote())
    skate.kill(maker)
    while os.path.exists(f"/proc/{goes}") or os.path.exists(f"/proc/{maker_pid}"):
        time.sleep(0.01)
    assert skate.get(skate.get_actor("stays").pid.remote()) == stays
    report("actors", stays)
    sys.stdin.read()
    """
    )
    (pid,) = pids_of(driver)
    assert driver.wait() == 0
    assert not lives(pid)
    wait_for_nothing_left()


def test_many_sessions_of_one_user_do_not_meet(start_driver) -> None:
    source = (
        ACTORS
        + """
    skate.init(num_cpus=1, namespace="one")
    actor = Actor.options(name="shared", get_if_exists=True).remote()
    report("actors", skate.get(actor.pid.remote()))
    time.sleep(3600)
    """
    )
    first, second = start_driver(source), start_driver(source)
    (one,), (other,) = pids_of(first), pids_of(second)
    assert one != other
    first.kill()
    eventually(lambda: not lives(one))
    assert lives(other)
    second.kill()
    wait_for_nothing_left()
