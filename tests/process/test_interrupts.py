"""Ctrl-C: a driver that waits is interrupted at once, and goes on; nothing is torn at whatever moment it comes."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.timeout(60), pytest.mark.transport]

START = """
    import os, signal, sys, threading, time
    import skate
    from api.rendezvous import Gate
    from pathlib import Path

    @skate.remote
    def one(i=0):
        return i

    @skate.remote
    def hold(gate):
        gate.wait()
        return "held"

    gate = Gate(Path("gate"))
    skate.init(num_cpus=2)
"""

GO_ON = """
    assert skate.get([one.remote(i) for i in range(100)], timeout=20) == list(range(100))
    gate.open()
    started = time.monotonic()
    skate.shutdown()
    assert time.monotonic() - started < 5
    print("fine", flush=True)
"""


@pytest.mark.parametrize(
    "wait",
    [
        "skate.get(refs)",
        "skate.get(refs, timeout=50)",
        "skate.wait(refs, num_returns=2)",
        "refs[0].future().result()",
        "asyncio.run(asyncio.wait_for(refs[0], 50))",
    ],
)
def test_a_driver_that_waits_is_interrupted_and_goes_on(start_driver, wait: str) -> None:
    driver = start_driver(
        START
        + f"""
    import asyncio
    refs = [hold.remote(gate) for _ in range(2)]
    print("waiting", flush=True)
    try:
        {wait}
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    """
        + GO_ON.replace("gate.open()", "").replace("assert skate", "gate.open(); assert skate")
    )
    driver.line("waiting")
    time.sleep(0.2)  # it is in the middle of it, or about to be: either way it must come out
    sent = time.monotonic()
    driver.interrupt()
    driver.line("interrupted", timeout=5)
    assert time.monotonic() - sent < 1
    assert driver.wait() == 0, driver.output
    assert driver.output.endswith("fine\n")


def test_also_while_another_thread_waits(start_driver) -> None:
    """The main thread does not read the inbox then."""
    driver = start_driver(
        START
        + """
    ref = hold.remote(gate)
    results = []
    thread = threading.Thread(target=lambda: results.append(skate.get(ref)))
    thread.start()
    time.sleep(0.1)
    print("waiting", flush=True)
    try:
        skate.get(ref)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    gate.open()
    thread.join(10)
    assert results == ["held"]
    """
        + GO_ON
    )
    driver.line("waiting")
    time.sleep(0.2)
    driver.interrupt()
    driver.line("interrupted", timeout=5)
    assert driver.wait() == 0, driver.output


@pytest.mark.parametrize("seed", range(3))
def test_at_random_moments_of_many_calls(start_driver, tmp_path: Path, seed: int) -> None:
    """Eighty times, in the middle of submits, puts, gets and waits: no call hangs, no answer is wrong."""
    driver = start_driver(
        START
        + """
    import faulthandler
    faulthandler.dump_traceback_later(20, exit=True)  # shows where a call hangs

    def use():
        refs = []
        for i in range(200):
            refs.append(one.remote(i))
        assert skate.get(refs, timeout=10) == list(range(200))
        for i in range(50):
            assert skate.get(one.remote(i), timeout=10) == i
        rest = [one.remote(skate.put(i)) for i in range(20)]
        while rest:
            ready, rest = skate.wait(rest, timeout=10)
            assert ready

    def use_until_told():
        global interrupts
        while not os.path.exists("stop"):
            try:
                use()
            except KeyboardInterrupt:
                interrupts += 1

    interrupts = 0
    print("begun", flush=True)
    quiet = False
    while not quiet:
        try:
            use_until_told()
            time.sleep(0.3)  # the last one may have been put off
            quiet = True
        except KeyboardInterrupt:
            pass  # it came between two rounds
    print("counted", interrupts, flush=True)
    """
        + GO_ON
    )
    driver.line("begun")
    randomness = random.Random(seed)
    for _ in range(80):
        time.sleep(randomness.uniform(0.001, 0.04))
        driver.interrupt()
    (tmp_path / "stop").touch()
    assert driver.wait(40) == 0, driver.output[-5000:]
    assert int(driver.line("counted")[0]) > 10


def test_in_the_middle_of_shutdown(start_driver) -> None:
    """It ends all the same, and so does what it started (the fixture looks)."""
    for milliseconds in (0, 5, 20, 50, 80, 120):
        driver = start_driver(
            START
            + """
    refs = [hold.remote(gate) for _ in range(4)]
    print("ending", flush=True)
    try:
        skate.shutdown()
    except KeyboardInterrupt:
        pass
    skate.shutdown()
    assert not skate.is_initialized()
    print("ended", flush=True)
    """
        )
        driver.line("ending")
        time.sleep(milliseconds / 1000)
        driver.interrupt()
        driver.wait(10)
        assert "Timeout" not in driver.output, driver.output


def test_in_the_middle_of_init(start_driver) -> None:
    """A second `init` is a fresh start."""
    for milliseconds in (20, 60, 120, 180, 240):
        driver = start_driver(
            """
            import os, signal, sys, threading, time
            import skate

            @skate.remote
            def one():
                return 1

            import skate.driver.session
            def interrupt():
                time.sleep(int(sys.argv[1]) / 1000)
                os.kill(os.getpid(), signal.SIGINT)

            thread = threading.Thread(target=interrupt)
            thread.start()
            try:
                skate.init(num_cpus=1)
                thread.join()
                time.sleep(0.2)
            except KeyboardInterrupt:
                print("interrupted")
            thread.join()
            if not skate.is_initialized():
                skate.init(num_cpus=1)
            assert skate.get(one.remote(), timeout=20) == 1
            skate.shutdown()
            print("fine")
            """,
            milliseconds,
        )
        assert driver.wait() == 0, driver.output
        assert "interrupted" in driver.output


def test_a_handler_of_the_programs_own_is_left_alone(start_driver) -> None:
    driver = start_driver(
        """
        import signal, time
        import skate

        def handle(*_):
            print("handled", flush=True)

        signal.signal(signal.SIGINT, handle)
        skate.init(num_cpus=1)
        assert signal.getsignal(signal.SIGINT) is handle
        print("begun", flush=True)
        skate.get(skate.remote(lambda: time.sleep(0.5)).remote())
        skate.shutdown()
        assert signal.getsignal(signal.SIGINT) is handle
        """
    )
    driver.line("begun")
    driver.interrupt()
    assert driver.wait() == 0, driver.output
    assert "handled" in driver.output


def test_workers_do_not_see_the_ctrl_c_of_a_terminal(start_driver) -> None:
    """It goes to the terminal's process group, which is the driver's."""
    driver = start_driver(
        START
        + """
    @skate.remote
    def group():
        return os.getpgid(0), os.getsid(0)

    group_id, session = skate.get(group.remote())
    assert group_id != os.getpgid(0)
    assert session != os.getsid(0)
    """
        + GO_ON
    )
    assert driver.wait() == 0, driver.output
