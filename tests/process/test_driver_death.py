"""kill -9 of a driver leaves nothing: no process, no shared memory, no folder."""

from __future__ import annotations

import pytest
from api.rendezvous import eventually
from leftovers import leftovers, segments, wait_for_nothing_left

from .drivers import lives

pytestmark = [pytest.mark.timeout(40), pytest.mark.transport]

FAMILY = """
    import multiprocessing, os, subprocess, sys, time
    import numpy as np
    import skate

    def report(name, pid):
        print("started", name, pid, flush=True)

    def sleep_on():
        time.sleep(3600)

    def fork_a_daemon():
        # the old way: a session of its own, a parent that ends at once, and no exec
        read, write = os.pipe()
        if os.fork() == 0:
            os.setsid()
            child = os.fork()
            if child:
                os.write(write, b"%d" % child)
                os._exit(0)
            time.sleep(3600)
        return int(os.read(read, 20))

    def start_a_family():
        '''Starts processes of each kind that outlives its parent where nobody takes care; gives their pids.'''
        shell = subprocess.Popen(["sh", "-c", "sleep 3600 & echo $!; wait"], stdout=subprocess.PIPE)
        fork = multiprocessing.get_context("fork").Process(target=sleep_on)
        fork.start()
        session = subprocess.Popen(["sleep", "3600"], start_new_session=True)
        # a daemon that has a child: who kills the one makes an orphan of the other
        tree = subprocess.Popen(
            ["sh", "-c", "sleep 3600 & echo $!; wait"], start_new_session=True, stdout=subprocess.PIPE
        )
        return [
            shell.pid, int(shell.stdout.readline()), fork.pid, session.pid, tree.pid, int(tree.stdout.readline()),
            fork_a_daemon(),
        ]
"""


def test_in_the_middle_of_a_thousand_tasks(start_driver) -> None:
    driver = start_driver(
        """
        import time
        import numpy as np
        import skate

        @skate.remote
        def work(i, array):
            time.sleep(0.01)
            return array + i

        skate.init(num_cpus=2)
        array = skate.put(np.ones(1 << 20))
        refs = [work.remote(i, array) for i in range(1_000)]
        skate.wait(refs, num_returns=10)
        print("ready", flush=True)
        skate.get(refs)
        """
    )
    driver.line("ready")
    assert segments()
    driver.kill()
    wait_for_nothing_left()


def test_while_it_starts(start_driver) -> None:
    """At many moments of `init`, some before the node manager is there."""
    before = leftovers()
    for milliseconds in range(0, 400, 40):
        driver = start_driver(
            """
            import os, sys, threading, time
            import skate

            def end():
                time.sleep(int(sys.argv[1]) / 1000)
                os.kill(os.getpid(), 9)

            threading.Thread(target=end, daemon=True).start()
            skate.init(num_cpus=2)
            time.sleep(60)
            """,
            milliseconds,
        )
        driver.wait()
    wait_for_nothing_left(before)


def test_workers_take_their_families_along(start_driver) -> None:
    driver = start_driver(
        FAMILY
        + """
    @skate.remote
    def parent():
        return start_a_family()

    skate.init(num_cpus=1)
    print("family", *skate.get(parent.remote()), flush=True)
    time.sleep(3600)
    """
    )
    pids = [int(pid) for pid in driver.line("family")]
    assert all(map(lives, pids))
    driver.kill()
    wait_for_nothing_left()
    assert not any(map(lives, pids))


def test_a_dead_worker_takes_its_family_along_too(start_driver) -> None:
    """Also while its session goes on."""
    driver = start_driver(
        FAMILY
        + """
    @skate.remote(max_retries=0)
    def parent():
        print("family", *start_a_family(), flush=True)
        os._exit(1)

    skate.init(num_cpus=1)
    try:
        skate.get(parent.remote())
    except skate.exceptions.WorkerCrashedError:
        print("crashed", flush=True)
    time.sleep(3600)
    """
    )
    driver.line("crashed")
    family = eventually(lambda: [line for line in driver.output.splitlines() if " family " in line])
    pids = [int(word) for word in family[0].split("family")[1].split()]
    assert len(pids) == 7
    eventually(lambda: not any(map(lives, pids)), timeout_s=3)


def test_a_daemon_lives_as_long_as_its_worker(start_driver) -> None:
    """The death of one worker does not end what another, living one has started and let go."""
    driver = start_driver(
        FAMILY
        + """
    from api.rendezvous import Tally, eventually
    from pathlib import Path

    @skate.remote
    def parent(tally):
        pid = fork_a_daemon()
        tally.meet(2)
        tally.meet(4)
        time.sleep(0.2)
        os.kill(pid, 0)
        return "alive"

    @skate.remote(max_retries=0)
    def victim(tally):
        tally.meet(2)
        os._exit(1)

    skate.init(num_cpus=2)
    tally = Tally(Path("tally"))
    daemon, death = parent.remote(tally), victim.remote(tally)
    try:
        skate.get(death)
    except skate.exceptions.WorkerCrashedError:
        tally.add()
    print("daemon", skate.get(daemon), flush=True)
    """
    )
    assert driver.line("daemon") == ["alive"]
    assert driver.wait() == 0
