"""A driver's life: forks, exits, threads, and many sessions one after the other."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import skate
from api.rendezvous import Gate, eventually
from leftovers import folders, processes, segments, wait_for_nothing_left
from skate.runtime import current
from skate.wire import messages as m

pytestmark = pytest.mark.timeout(60)


@skate.remote
def one(i: int = 1) -> int:
    return i


@skate.remote
def hold(gate: Gate) -> str:
    gate.wait()
    return "held"


class TestForks:
    """A driver that forks while skate runs: what the child does is none of its parent's session."""

    @pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "raise SystemExit", "1 / 0", "return"])
    def test_a_child_that_ends_ends_nothing_else(self, start_driver, end: str) -> None:
        driver = start_driver(
            f"""
            import os, sys
            import numpy as np
            import skate

            @skate.remote
            def one(i):
                return i

            def child(refs, array):
                {end}

            def main():
                skate.init(num_cpus=1)
                refs = [skate.put(np.full(1 << 20, i)) for i in range(4)]
                array = skate.get(refs[0])
                pending = [one.remote(i) for i in range(50)]
                for _ in range(3):
                    pid = os.fork()
                    if pid == 0:
                        return child(refs, array)
                    os.waitpid(pid, 0)
                assert skate.get(pending) == list(range(50))
                assert [skate.get(ref)[0] for ref in refs] == [0, 1, 2, 3]
                assert array.sum() == 0
                assert skate.get([one.remote(i) for i in range(50)]) == list(range(50))
                skate.shutdown()
                print("fine", flush=True)

            main()
            """
        )
        driver.wait()
        assert "fine" in driver.output, driver.output

    def test_refs_that_a_child_drops_stay_alive(self, skate_start) -> None:
        skate_start()
        refs = [skate.put(np.full(1 << 18, i)) for i in range(8)]
        arrays = skate.get(refs[:4])

        def drop() -> None:
            refs.clear()
            arrays.clear()
            gc.collect()

        child = multiprocessing.get_context("fork").Process(target=drop)
        child.start()
        child.join(20)
        assert child.exitcode == 0
        assert [int(skate.get(ref)[0]) for ref in refs] == list(range(8))
        assert [int(array.sum()) for array in arrays] == [i << 18 for i in range(4)]

    def test_a_child_may_start_a_session_of_its_own(self, skate_start) -> None:
        skate_start()
        mine = skate.get_runtime_context().get_node_id()

        def child(pipe) -> None:
            assert not skate.is_initialized()
            skate.init(num_cpus=1)
            pipe.send((skate.get_runtime_context().get_node_id(), skate.get(one.remote(7))))
            skate.shutdown()

        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=child, args=[theirs])
        process.start()
        assert ours.poll(20)
        node, value = ours.recv()
        process.join(20)
        assert value == 7
        assert node != mine
        assert skate.get(one.remote(8)) == 8

    def test_a_pool_of_forks_works_beside_it(self, skate_start) -> None:
        skate_start()
        pending = [one.remote(i) for i in range(200)]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(abs, range(-100, 0)) == list(range(100, 0, -1))
        assert skate.get(pending) == list(range(200))

    def test_tasks_may_fork(self, skate_start) -> None:
        @skate.remote
        def sum_in_processes(ref: list[skate.ObjectRef]) -> int:
            array = skate.get(ref[0])
            with multiprocessing.get_context("fork").Pool(2) as pool:
                return sum(pool.map(int, [array.sum(), 2, 3]))

        skate_start()
        ref = skate.put(np.ones(1 << 18, dtype=np.int64))
        assert (
            skate.get([sum_in_processes.remote([ref]) for _ in range(4)], timeout=40) == [(1 << 18) + 5] * 4
        )
        assert skate.get(ref).sum() == 1 << 18


class TestExits:
    def test_sys_exit_in_a_task_ends_its_worker(self, skate_start) -> None:
        @skate.remote(max_retries=0)
        def leave() -> None:
            sys.exit(3)

        skate_start()
        with pytest.raises(skate.exceptions.WorkerCrashedError, match="3"):
            skate.get(leave.remote())
        assert skate.get(one.remote()) == 1

    def test_a_worker_that_ends_by_itself_runs_its_atexit_handlers(self, skate_start, tmp_path: Path) -> None:
        @skate.remote(max_calls=1)
        def register(path: Path) -> int:
            import atexit

            atexit.register(path.touch)
            return os.getpid()

        skate_start()
        skate.get(register.remote(tmp_path / "ran"))
        eventually((tmp_path / "ran").exists)

    @pytest.mark.parametrize(
        "ending",
        [
            "pass",
            "sys.exit(0)",
            "os._exit(0)",
            "1 / 0",
            "threading.Thread(target=skate.get, args=[refs], daemon=True).start(); time.sleep(0.1)",
            "threading.Thread(target=submit_for_ever, daemon=True).start(); time.sleep(0.1)",
            "os.kill(os.getpid(), signal.SIGTERM); time.sleep(10)",
            "skate.get_runtime_context(); keep.extend(skate.get(put) for put in puts)",
        ],
    )
    def test_a_driver_that_ends_without_shutdown(self, start_driver, ending: str) -> None:
        driver = start_driver(
            f"""
            import os, signal, sys, threading, time
            import numpy as np
            import skate
            from api.rendezvous import Gate
            from pathlib import Path

            @skate.remote
            def hold(gate):
                gate.wait()

            def submit_for_ever():
                while True:
                    skate.get(skate.put(np.ones(1 << 18)))
                    skate.wait([hold.remote(gate)], timeout=0)

            gate, keep = Gate(Path("never")), []
            skate.init(num_cpus=2)
            puts = [skate.put(np.ones(1 << 20)) for _ in range(3)]
            refs = [hold.remote(gate) for _ in range(20)]
            skate.wait(refs, timeout=0.1)
            print("ending", flush=True)
            {ending}
            """
        )
        driver.line("ending")
        driver.wait(10)
        wait_for_nothing_left()
        assert "Fatal" not in driver.output, driver.output

    def test_threads_that_wait_hear_of_the_shutdown(self, skate_start, gate: Gate) -> None:
        skate_start()
        refs = [hold.remote(gate) for _ in range(4)]
        heard: list[BaseException] = []

        def wait(ref: skate.ObjectRef) -> None:
            try:
                skate.get(ref)
            except BaseException as error:
                heard.append(error)

        threads = [threading.Thread(target=wait, args=[ref]) for ref in refs]
        for thread in threads:
            thread.start()
        time.sleep(0.1)  # most of them sleep in get by then; those that do not must hear of it, too
        skate.shutdown()
        for thread in threads:
            thread.join(5)
        assert not any(thread.is_alive() for thread in threads)
        assert len(heard) == 4
        assert all(isinstance(error, (RuntimeError, ValueError)) for error in heard), heard


class TestManySessions:
    def test_twenty_in_a_row_leave_nothing(self) -> None:
        skate.init(num_cpus=1)  # what is loaded once stays
        skate.shutdown()
        me = psutil.Process()
        before = (me.num_fds(), threading.active_count(), me.num_threads(), len(processes()))
        for i in range(20):
            skate.init(num_cpus=1)
            if i % 2:
                assert skate.get(one.remote(i)) == i
                skate.get(skate.put(np.ones(1 << 18)))
            skate.shutdown()
        gc.collect()
        eventually(
            lambda: (me.num_fds(), threading.active_count(), me.num_threads(), len(processes())) <= before, 5
        )

    def test_memory_does_not_grow(self) -> None:
        me = psutil.Process()
        for i in range(9):
            skate.init(num_cpus=1)
            skate.get([one.remote(i) for i in range(200)])
            array = skate.get(skate.put(np.ones(1 << 20)))
            del array
            skate.shutdown()
            if i == 3:
                before = me.memory_info().rss
        gc.collect()
        assert me.memory_info().rss - before < 20 << 20

    def test_started_and_ended_by_different_threads(self) -> None:
        def run(function) -> None:
            errors: list[BaseException] = []

            def guarded() -> None:
                try:
                    function()
                except BaseException as error:
                    errors.append(error)

            thread = threading.Thread(target=guarded)
            thread.start()
            thread.join(20)
            assert not thread.is_alive()
            assert not errors

        run(lambda: skate.init(num_cpus=1))
        assert skate.get(one.remote(3)) == 3
        run(lambda: skate.get([one.remote(i) for i in range(100)]))
        run(skate.shutdown)
        assert not skate.is_initialized()

    def test_two_drivers_beside_each_other(self, start_driver) -> None:
        drivers = [
            start_driver(
                """
                import os, sys
                import skate

                @skate.remote
                def one(i):
                    return os.environ["OWNER"], i

                os.environ["OWNER"] = sys.argv[1]
                skate.init(num_cpus=2)
                assert skate.get([one.remote(i) for i in range(500)]) == [(sys.argv[1], i) for i in range(500)]
                """,
                owner,
            )
            for owner in range(3)
        ]
        for driver in drivers:
            assert driver.wait() == 0, driver.output


class TestThreads:
    def test_eight_that_submit_get_and_wait(self, skate_start) -> None:
        skate_start()
        results: dict[int, list[int]] = {}

        def work(number: int) -> None:
            mine = []
            for i in range(100):
                mine.append(skate.get(one.remote(i), timeout=30))
            mine += skate.get([one.remote(i) for i in range(100, 300)], timeout=30)
            rest = [one.remote(i) for i in range(300, 500)]
            values = {}
            order = {ref: i for i, ref in enumerate(rest, 300)}
            while rest:
                ready, rest = skate.wait(rest, num_returns=min(10, len(rest)), timeout=30)
                assert ready
                values |= {order[ref]: skate.get(ref) for ref in ready}
            results[number] = mine + [values[i] for i in range(300, 500)]

        threads = [threading.Thread(target=work, args=[i]) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50)
        assert results == {i: list(range(500)) for i in range(8)}

    def test_some_that_wait_while_others_come_and_go(self, skate_start, gate: Gate) -> None:
        """Whoever reads the inbox may leave at any moment; those that sleep must not be forgotten."""
        skate_start()
        held = hold.remote(gate)
        heard: list[str] = []
        sleepers = [threading.Thread(target=lambda: heard.append(skate.get(held))) for _ in range(4)]
        for thread in sleepers:
            thread.start()
        for i in range(200):
            assert skate.get(one.remote(i), timeout=10) == i
            if i % 20 == 0:
                with pytest.raises(skate.exceptions.GetTimeoutError):
                    skate.get(held, timeout=0.01)
        gate.open()
        for thread in sleepers:
            thread.join(10)
        assert heard == ["held"] * 4

    def test_a_computing_driver_answers_its_tasks(self, skate_start, tmp_path: Path) -> None:
        """A task gets a value that the driver owns, while the driver's only thread computes and never calls skate."""

        @skate.remote
        def read(refs: list[skate.ObjectRef], path: Path) -> None:
            path.write_text(str(skate.get(refs[0])))

        skate_start()
        path = tmp_path / "answer"
        ref = read.remote([one.remote(42)], path)
        deadline = time.monotonic() + 10
        while not path.exists() and time.monotonic() < deadline:
            sum(range(10_000))
        assert path.exists()
        skate.get(ref)
        assert path.read_text() == "42"


class TestNested:
    """A task starts programs that have sessions of their own. When the outer session ends, the inner node managers and
    their zygotes are killed together, and clear up nothing: who has killed them does."""

    SOURCE = """
        import multiprocessing, os, subprocess, sys, time
        import skate

        INNER = "import skate, time; skate.init(num_cpus=1); print(1, flush=True); time.sleep(1000)"

        @skate.remote
        def outer():
            def inner():
                queue.put(skate.get(skate.put(1)))
                time.sleep(1000)

            context = multiprocessing.get_context("fork")
            queue = context.Queue()
            context.Process(target=inner, daemon=True).start()
            program = subprocess.Popen([sys.executable, "-c", INNER], stdout=subprocess.PIPE, start_new_session=True)
            return queue.get(), int(program.stdout.readline())

        skate.init(num_cpus=1)
        current_session = skate.api.session._session
        assert skate.get(outer.remote()) == (1, 1)
        print("sessions", len(os.listdir(os.path.dirname(current_session.facts["folder"]))), flush=True)
        end = sys.argv[1]
        if end == "shutdown":
            skate.shutdown()
            print("ended", flush=True)
        else:
            os.kill(current_session.facts["pid"], 9)
        time.sleep(1000)
        """

    @pytest.mark.parametrize("end", ["shutdown", "node"])
    def test_nothing_is_left_of_the_inner_ones(self, start_driver, end: str) -> None:
        driver = start_driver(self.SOURCE, end)
        assert driver.line("sessions") == ["3"]
        eventually(lambda: not folders() and not segments())
        driver.kill()
        wait_for_nothing_left()


def test_a_node_that_is_behind_hears_a_driver_out(skate_start, caplog: pytest.LogCaptureFixture) -> None:
    """More than the lane has room for waits when the driver leaves: its last word comes after that, not never."""
    skate_start(num_cpus=1)
    runtime = current.runtime
    with runtime.lock:
        for _ in range(20_000):
            runtime.post(
                runtime.node, m.Resume(1)
            )  # not for a node, which says so in its log: that takes time
    skate.shutdown()
    assert "does not end" not in caplog.text
