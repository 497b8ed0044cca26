"""kill -9 of the node manager, of its zygote, of both: the driver hears of it at once, and nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time

import pytest
import skate
from api.rendezvous import Gate, eventually
from leftovers import folders, segments, wait_for_nothing_left
from skate.exceptions import LocalNodeManagerDiedError
from skate.net import exchange

from .drivers import kill_at_once, lives

pytestmark = pytest.mark.timeout(40)


@skate.remote
def hold(gate: Gate) -> str:
    gate.wait()
    return "held"


@skate.remote
def pids_with_a_child() -> tuple[int, int]:
    """This worker's pid, and that of a process that it leaves behind in a session of its own."""
    return os.getpid(), subprocess.Popen(["sleep", "3600"], start_new_session=True).pid


@skate.remote
def one() -> int:
    return 1


def kill_node(facts: dict) -> None:
    os.kill(facts["pid"], signal.SIGKILL)


def kill_zygote(facts: dict) -> None:
    os.kill(facts["zygote_pid"], signal.SIGKILL)


def kill_both(facts: dict) -> None:
    kill_at_once(facts["pid"], facts["zygote_pid"])


every_death = pytest.mark.parametrize("kill", [kill_node, kill_zygote, kill_both])


@every_death
def test_a_get_that_waits_raises_at_once(skate_start, kill, gate: Gate) -> None:
    facts = skate_start()
    refs = [hold.remote(gate) for _ in range(100)]
    threading.Timer(0.2, kill, [facts]).start()
    started = time.monotonic()
    with pytest.raises(LocalNodeManagerDiedError, match=r"skate\.init\(\)"):
        skate.get(refs)
    assert time.monotonic() - started < 2


@every_death
def test_nothing_is_left_although_the_driver_lives_on(skate_start, kill) -> None:
    facts = skate_start(num_cpus=1)
    worker, child = skate.get(pids_with_a_child.remote())
    kill(facts)
    if kill is kill_both:
        eventually(lambda: not lives(worker), timeout_s=3)
        skate.shutdown()  # the driver is the only one left to clear up
    eventually(lambda: not (lives(worker) or lives(child) or segments() or folders()), timeout_s=3)


@every_death
def test_what_comes_after_raises_too_and_shutdown_and_init_start_again(skate_start, kill, gate: Gate) -> None:
    facts = skate_start()
    ready, pending = skate.put("ready"), hold.remote(gate)
    kill(facts)
    with pytest.raises(LocalNodeManagerDiedError):
        skate.get(pending, timeout=10)
    with pytest.raises(LocalNodeManagerDiedError):
        hold.remote(gate)
    with pytest.raises(LocalNodeManagerDiedError):
        skate.get(pending)
    assert skate.get(ready) == "ready"
    started = time.monotonic()
    skate.shutdown()
    assert time.monotonic() - started < 3
    skate_start()
    assert skate.get([one.remote() for _ in range(100)]) == [1] * 100


@every_death
def test_threads_that_wait_all_hear_of_it(skate_start, kill, gate: Gate) -> None:
    facts = skate_start()
    refs = [hold.remote(gate) for _ in range(8)]
    heard: list[str] = []

    def wait(ref: skate.ObjectRef) -> None:
        try:
            skate.get(ref)
        except LocalNodeManagerDiedError:
            heard.append("get")

    threads = [threading.Thread(target=wait, args=[ref]) for ref in refs]
    futures = [ref.future() for ref in refs]
    for thread in threads:
        thread.start()
    kill(facts)
    for thread in threads:
        thread.join(5)
    assert heard == ["get"] * 8
    for future in futures:
        assert isinstance(future.exception(timeout=5), LocalNodeManagerDiedError)


def test_after_both_have_died_with_their_driver_the_next_init_clears_up(start_driver, skate_start) -> None:
    driver = start_driver(
        """
        import os, subprocess, time
        import skate

        @skate.remote
        def family():
            return subprocess.Popen(["sleep", "3600"], start_new_session=True).pid

        facts = skate.init(num_cpus=1)
        print("facts", facts["pid"], facts["zygote_pid"], skate.get(family.remote()), flush=True)
        time.sleep(3600)
        """
    )
    node, zygote, child = map(int, driver.line("facts"))
    kill_at_once(driver.pid, node, zygote)
    driver.wait()
    assert lives(child)  # nobody is left who could know of it
    assert folders()  # (the segment may be gone: any session of this user that starts sweeps it)
    skate_start()
    assert not lives(child)
    skate.shutdown()
    wait_for_nothing_left()


def test_two_that_start_at_once_do_not_sweep_each_other(start_driver) -> None:
    drivers = [
        start_driver(
            """
            import skate
            for i in range(3):
                skate.init(num_cpus=1)
                assert skate.get(skate.remote(lambda: i).remote()) == i
                skate.shutdown()
            """
        )
        for _ in range(4)
    ]
    for driver in drivers:
        assert driver.wait() == 0, driver.output


def test_the_folder_of_a_dead_session_may_be_cleared_away_by_others(skate_start, start_driver) -> None:
    """Nobody holds its segment any more."""
    driver = start_driver(
        """
        import shutil, time
        import skate
        facts = skate.init(num_cpus=1)
        print("facts", facts["pid"], facts["zygote_pid"], facts["folder"], flush=True)
        time.sleep(3600)
        """
    )
    node, zygote, folder = driver.line("facts")
    kill_at_once(driver.pid, int(node), int(zygote))
    subprocess.run(["rm", "-r", folder], check=True)
    skate_start()
    assert len(segments()) == 1


@pytest.mark.parametrize("what", ["all", "door", "alive"])
def test_a_node_whose_folder_is_cleared_away_ends(skate_start, gate: Gate, what: str) -> None:
    """As cleaners of /tmp do: nobody could come to it any more, and nobody would find it to end it."""
    facts = skate_start(num_cpus=1)
    waiting = hold.remote(gate)
    if what == "all":
        shutil.rmtree(facts["folder"], ignore_errors=True)
    else:
        os.unlink(os.path.join(facts["folder"], what))
    with pytest.raises(LocalNodeManagerDiedError) as caught:
        skate.get(waiting, timeout=20)
    if exchange.wanted():  # what a process says last by ZeroMQ may not have come when it is gone
        assert "has removed" in str(caught.value)
    skate.shutdown()
    wait_for_nothing_left()
    skate_start(num_cpus=1)
    assert skate.get(one.remote(), timeout=20) == 1
