"""The runtime is called wherever Python runs code: in handlers of signals, finalizers, callbacks, and threads that end.

Such code comes in between two bytecodes of whatever its thread does, in the middle of the runtime's own work, too. It
may call the runtime there, and it may raise: no call hangs for it, and nothing of what others said is lost.
"""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.timeout(60)

START = """
    import asyncio, gc, os, signal, sys, threading, time
    import faulthandler
    import skate
    from skate._c import steps
    from skate.runtime import current

    faulthandler.dump_traceback_later(40, exit=True)  # shows where a call hangs

    @skate.remote
    def one(i=0):
        return i

    @skate.remote
    def nap(seconds):
        time.sleep(seconds)
        return seconds

    @skate.remote
    class Echo:
        def say(self, x=0):
            return x

    skate.init(num_cpus=2)
"""

GO_ON = """
    assert skate.get([one.remote(i) for i in range(100)], timeout=20) == list(range(100))
    assert steps.sections() == 0 and gc.isenabled()
    skate.shutdown()
    print("fine", flush=True)
"""

#: raises in the handler of a signal that comes at the n-th bytecode of a call, for each n until the call gets through
AT_EVERY_BYTECODE = """
    class Struck(Exception):
        pass

    def strike(*_):
        raise Struck

    signal.signal(signal.SIGUSR1, strike)
    echo = Echo.options(name="echo").remote()
    ready = skate.put([1])
    runtime = current.runtime

    def struck_at(n, call):
        seen = 0

        def trace(frame, event, arg):
            nonlocal seen
            frame.f_trace_opcodes = True
            if event == "opcode":
                seen += 1
                if seen == n:
                    sys.settrace(None)
                    signal.raise_signal(signal.SIGUSR1)
            return trace

        try:
            try:
                sys.settrace(trace)
                call()
            finally:
                sys.settrace(None)
            for _ in range(3):
                pass  # it came in a destructor, and was put off until that was over
        except Struck:
            pass
        except skate.exceptions.SerializationError as error:  # the pickle was interrupted
            assert type(error.__cause__) is Struck
        return seen >= n

    def entries():
        skate.get(one.remote())
        gc.collect()
        return len(runtime.references.entries), len(runtime.submission.tasks), len(runtime._queries)

    def check_all(call):
        call()
        before = entries()
        n = 1
        while n < 2000 and struck_at(n, call):  # how many there are depends on how long it waits
            assert steps.sections() == 0, n
            n += 1 if n < 500 else 7
        assert n > 1  # (compiled, the runtime has few bytecodes)
        assert skate.get([one.remote(7), echo.say.remote(8)], timeout=10) == [7, 8]
        deadline = time.monotonic() + 10
        while entries() > before:
            assert time.monotonic() < deadline, (entries(), before)
"""


@pytest.mark.parametrize(
    "call",
    [
        "skate.put([1, 2])",
        "skate.put(b'x' * 300_000)",
        "one.remote(1)",
        "skate.get(one.remote(1))",
        "skate.get(ready)",
        "skate.wait([one.remote(1)])",
        "skate.get(echo.say.remote(2))",
        "one.remote(1).future().result()",
        "skate.get_actor('echo')",
    ],
)
def test_a_handler_that_raises_at_any_bytecode_of_a_call_tears_nothing(start_driver, call: str) -> None:
    driver = start_driver(START + AT_EVERY_BYTECODE + f"    check_all(lambda: {call})\n" + GO_ON)
    assert driver.wait(50) == 0, driver.output[-3000:]
    assert "Exception ignored" not in driver.output, driver.output[-3000:]


@pytest.mark.parametrize(
    "wait",
    [
        "skate.get(nap.remote(0.6))",
        "skate.wait([nap.remote(0.6)])",
        "nap.remote(0.6).future().result()",
        "asyncio.run(asyncio.wait_for(nap.remote(0.6), 20))",
        "[skate.get(one.remote(i)) for i in range(1000)]",
        "[skate.put(i) for i in range(20_000)]",
        "[Echo.options(name=str(i)).remote() for i in range(10)]",
    ],
)
@pytest.mark.parametrize("where", ["driver", "task", "actor"])
def test_a_handler_may_wait_while_its_thread_waits(start_driver, where: str, wait: str) -> None:
    """In a task the CPU is lent once, however deep it waits."""
    driver = start_driver(
        START
        + f"""
    def interrupted():
        seen = []
        signal.signal(signal.SIGALRM, lambda *_: seen.append(skate.get(one.remote(1))))
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
        try:
            {wait}
            while not seen:
                time.sleep(0.01)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return seen

    class Waits:
        def method(self):
            return interrupted()

    if "{where}" == "driver":
        seen = interrupted()
    elif "{where}" == "task":
        seen = skate.get(skate.remote(interrupted).remote(), timeout=30)
    else:
        seen = skate.get(skate.remote(Waits).remote().method.remote(), timeout=30)
    assert set(seen) == {{1}}, seen
    """
        + GO_ON
    )
    assert driver.wait(50) == 0, driver.output[-3000:]


def test_a_handler_that_a_task_leaves_behind_ends_no_worker(start_driver) -> None:
    driver = start_driver(
        START
        + """
    @skate.remote
    def leaves_an_alarm():
        def late(*_):
            raise TimeoutError("too late")
        signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        return os.getpid()

    pid = skate.get(leaves_an_alarm.remote())
    time.sleep(0.3)
    os.kill(pid, 0)
    """
        + GO_ON
    )
    assert driver.wait(50) == 0, driver.output[-3000:]


def test_an_alarm_ends_the_wait_of_a_task(start_driver) -> None:
    driver = start_driver(
        START
        + """
    @skate.remote
    def impatient():
        def late(*_):
            raise TimeoutError("that took too long")
        signal.signal(signal.SIGALRM, late)
        for _ in range(3):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            try:
                skate.get(nap.remote(0.5))
            except TimeoutError:
                continue
            return "not late"
        return skate.get(one.remote(5))

    assert skate.get([impatient.remote() for _ in range(4)], timeout=30) == [5] * 4
    """
        + GO_ON
    )
    assert driver.wait(50) == 0, driver.output[-3000:]


@pytest.mark.parametrize("where", ["driver", "threads", "task", "actor", "threaded actor"])
def test_finalizers_that_the_collector_runs_use_the_runtime(start_driver, where: str) -> None:
    """Cycles die whenever something is allocated, in the runtime's own code, too."""
    driver = start_driver(
        START
        + f"""
    def storm(rounds=100):
        died = []
        gc.set_threshold(1)

        class Cycle:
            def __init__(self):
                self.me = self

            def __del__(self):
                kind = len(died) % 5
                died.append(kind)
                if kind == 0:
                    one.remote()
                elif kind == 1:
                    skate.put([1])
                elif kind == 2:
                    skate.get(one.remote())
                elif kind == 3:
                    skate.wait([one.remote()])
                else:
                    skate.put(b"x" * 200_000)

        for i in range(rounds):
            Cycle()
            assert skate.get(one.remote(i)) == i
            skate.wait([one.remote(skate.put(i))])
        if "thread" not in "{where}":  # (where several are at it, the collector waits for the steps of them all)
            assert len(died) > rounds // 2, len(died)
        deadline = time.monotonic() + 20
        while len(died) < rounds:  # another thread's collection may have them, and be at it
            gc.collect()
            assert time.monotonic() < deadline, len(died)
        return True

    class Storms:
        def method(self, rounds=100):
            return storm(rounds)

    if "{where}" == "driver":
        storm()
    elif "{where}" == "threads":
        threads = [threading.Thread(target=storm, args=(30,)) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    elif "{where}" == "task":
        assert skate.get(skate.remote(storm).remote(), timeout=40)
    elif "{where}" == "actor":
        assert skate.get(skate.remote(Storms).remote().method.remote(), timeout=40)
    else:
        actor = skate.remote(Storms).options(max_concurrency=8).remote()
        assert all(skate.get([actor.method.remote(5) for _ in range(20)], timeout=40))
    """
        + GO_ON
    )
    assert driver.wait(55) == 0, driver.output[-3000:]
    assert "Error" not in driver.output, driver.output[-3000:]


@pytest.mark.parametrize(
    "kind",
    ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "ValueError", "asyncio.CancelledError", "Own"],
)
def test_a_callback_that_raises_keeps_no_other_from_running(start_driver, kind: str) -> None:
    driver = start_driver(
        START
        + f"""
    class Own(BaseException):
        pass

    ran = []

    def bad(_):
        raise {kind}("on purpose")

    refs = [nap.remote(0.1) for _ in range(3)]
    futures = [ref.future() for ref in refs]
    for i, future in enumerate(futures):
        future.add_done_callback(bad)
        future.add_done_callback(lambda _, i=i: ran.append(i))
    try:
        skate.get(refs)
    except KeyboardInterrupt:
        assert {kind} is KeyboardInterrupt
    deadline = time.monotonic() + 10
    while sorted(ran) != [0, 1, 2]:
        assert time.monotonic() < deadline, ran
        try:
            time.sleep(0.01)
            skate.get(one.remote())
        except KeyboardInterrupt:
            pass
    assert [future.result() for future in futures] == [0.1] * 3
    """
        + GO_ON
    )
    assert driver.wait(50) == 0, driver.output[-3000:]


def test_a_callbacks_last_reference_is_dropped_where_a_finalizer_may_call(start_driver) -> None:
    driver = start_driver(
        START
        + """
    died = []

    class Calls:
        def __call__(self, _):
            pass

        def __del__(self):
            died.append(skate.get(one.remote(3)))

    async def main():
        ref = nap.remote(0.2)
        ref.add_done_callback(Calls())
        runtime_callbacks = current.runtime.objects.loops.running()._callbacks
        runtime_callbacks.clear()  # the ring holds the last reference
        return ref

    ref = asyncio.run(main())
    skate.get(ref)
    deadline = time.monotonic() + 10
    while died != [3]:
        assert time.monotonic() < deadline
        skate.get(one.remote())
        gc.collect()
    """
        + GO_ON
    )
    assert driver.wait(50) == 0, driver.output[-3000:]


def test_many_threads_make_the_first_call(start_driver) -> None:
    driver = start_driver(
        START.replace("skate.init(num_cpus=2)", "")
        + """
    together, said = threading.Barrier(32), []

    def call():
        together.wait()
        try:
            said.append(skate.get(one.remote(1), timeout=40))
        except BaseException as error:
            said.append(repr(error))

    threads = [threading.Thread(target=call) for _ in range(32)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert said == [1] * 32, said
    """
        + GO_ON
    )
    assert driver.wait(50) == 0, driver.output[-3000:]


@pytest.mark.parametrize(
    "wait",
    [
        "skate.get(nap.remote(100))",
        "skate.wait([nap.remote(100)])",
        "nap.remote(100).future().result()",
        "asyncio.run(asyncio.wait_for(nap.remote(100), 200))",
        "Queue().get()",
        "[skate.get(one.remote()) for _ in range(10**9)]",
        "[skate.put([i]) for i in range(10**9)]",
        "[Echo.options(name=f'{threading.get_ident()} {i}').remote() for i in range(10**9)]",
    ],
)
def test_a_daemon_ends_with_the_program_without_a_word(start_driver, wait: str) -> None:
    driver = start_driver(
        START
        + f"""
    from skate.util.queue import Queue

    def work():
        {wait}

    for _ in range(2):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(0.5)
    faulthandler.cancel_dump_traceback_later()
    """
    )
    assert driver.wait(30) == 0, driver.output[-3000:]
    assert driver.output == ""


@pytest.mark.parametrize("ended", ["skate.shutdown()", "pass"])
def test_a_finalizer_that_runs_when_python_ends_starts_nothing(start_driver, ended: str) -> None:
    driver = start_driver(
        START
        + f"""
    class Late:
        def __del__(self):
            skate.get(one.remote())

    late = Late()
    late.me = late
    faulthandler.cancel_dump_traceback_later()
    {ended}
    """
    )
    assert driver.wait(20) == 0, driver.output[-3000:]


def test_the_exception_of_a_ref_is_not_what_came_in_between(start_driver) -> None:
    driver = start_driver(
        START
        + """
    @skate.remote
    def fails():
        raise ValueError("as it should")

    bad, good, late = fails.remote(), one.remote(), nap.remote(0.5)
    skate.wait([bad, good], num_returns=2)
    assert type(bad.exception().cause) is ValueError and good.exception() is None
    try:
        late.exception()
    except asyncio.InvalidStateError:
        pass
    else:
        raise AssertionError
    """
        + GO_ON
    )
    assert driver.wait(50) == 0, driver.output[-3000:]


#: starts a thread that waits for mail, and waits for its end
JOINS = """
    came = []

    def joins(*_):
        thread = threading.Thread(target=lambda: came.append(skate.get(nap.remote(0.1), timeout=20)))
        thread.start()
        thread.join()
"""


@pytest.mark.parametrize("reader", ["the main thread", "nobody"])
@pytest.mark.parametrize("place", ["handler", "callback"])
def test_what_comes_in_between_may_wait_for_a_thread_that_waits(
    start_driver, place: str, reader: str
) -> None:
    """Whoever reads the inbox lets others read while it runs something of the program's."""
    begin = {
        "handler": "signal.signal(signal.SIGALRM, joins); signal.setitimer(signal.ITIMER_REAL, 0.1)",
        "callback": "future = nap.remote(0.1).future(); future.add_done_callback(joins)",
    }[place]
    wait = "skate.get(nap.remote(0.5))" if reader == "the main thread" else "pass"
    driver = start_driver(
        START
        + JOINS
        + f"""
    {begin}
    {wait}
    deadline = time.monotonic() + 20
    while not came:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    """
        + GO_ON
    )
    assert driver.wait(50) == 0, driver.output[-3000:]


def test_a_signal_that_only_sigwait_wants_waits_for_it(start_driver) -> None:
    """No thread of the runtime takes it in, for which it would end the process."""
    driver = start_driver(
        START
        + """
    skate.get(one.remote())
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    for _ in range(5):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.005)
        assert signal.sigwait({signal.SIGUSR1}) == signal.SIGUSR1

    masks = []
    future = nap.remote(0.1).future()
    future.add_done_callback(lambda _: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    while not masks:
        time.sleep(0.01)
    assert signal.SIGTERM not in masks[0]  # what a callback starts can be ended
    """
        + GO_ON
    )
    assert driver.wait(50) == 0, driver.output[-3000:]


def test_the_collector_stays_as_the_program_set_it(start_driver) -> None:
    driver = start_driver(
        START.replace("skate.init(num_cpus=2)", "")
        + """
    mine = 2**31 - 1, 4, 2_000_000_000
    gc.disable()
    gc.set_threshold(*mine)
    skate.init(num_cpus=2)
    seen = []
    future = nap.remote(0.1).future()
    future.add_done_callback(lambda _: seen.append((gc.get_threshold(), gc.isenabled())))
    skate.get([one.remote(i) for i in range(100)])
    skate.get(nap.remote(0.2))
    while not seen:
        time.sleep(0.01)
    assert seen == [(mine, False)], seen
    skate.shutdown()
    assert gc.get_threshold() == mine and not gc.isenabled()
    """
    )
    assert driver.wait(50) == 0, driver.output[-3000:]


@pytest.mark.parametrize("kind", ["task", "actor", "threaded", "asyncio"])
def test_no_exception_of_a_handler_ends_a_worker(start_driver, kind: str) -> None:
    """Whatever it is derived from; one that is raised while nothing runs is logged."""
    driver = start_driver(
        START
        + f"""
    class Odd(BaseException):
        pass

    def arm():
        strikes = []

        def strike(*_):
            strikes.append(os.getpid())
            if len(strikes) == 3:
                signal.setitimer(signal.ITIMER_REAL, 0)
            raise Odd

        signal.signal(signal.SIGALRM, strike)
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
        return strikes

    class Armed:
        def __init__(self):
            self.strikes = arm()

        def get_strikes(self):
            return self.strikes

    class Asyncio(Armed):
        async def wait(self):
            pass

    @skate.remote
    def armed():
        arm()
        return os.getpid()

    if "{kind}" == "task":
        pid = skate.get(armed.remote())
        time.sleep(0.6)
        os.kill(pid, 0)
    else:
        cls = skate.remote(Asyncio if "{kind}" == "asyncio" else Armed)
        actor = cls.options(max_concurrency=4 if "{kind}" == "threaded" else None, max_restarts=0).remote()
        strikes = []
        while len(strikes) < 3:
            try:
                strikes = skate.get(actor.get_strikes.remote(), timeout=20)
            except skate.exceptions.TaskError:
                pass  # it came while the call ran
            time.sleep(0.02)
    """
        + GO_ON
    )
    assert driver.wait(50) == 0, driver.output[-3000:]


def test_a_future_may_be_finished_by_what_interrupts_its_wait(start_driver) -> None:
    """Its first call imports the pickler, in the middle of which a handler comes, too."""
    driver = start_driver(
        START
        + """
    def again(*_):
        skate.get(one.remote())
        if not over:  # once more only now: on a busy machine they would nest without end
            signal.setitimer(signal.ITIMER_REAL, 0.0005)

    over = False
    signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
    for i in range(1000):
        assert one.remote(i).future().result() == i
    over = True
    """
        + GO_ON
    )
    assert driver.wait(50) == 0, driver.output[-3000:]


def test_a_result_whose_task_was_interrupted_is_not_left_in_the_store(start_driver) -> None:
    driver = start_driver(
        START
        + """
    @skate.remote(num_returns=2, max_retries=0)
    def two(first):
        def strike(*_):
            raise TimeoutError
        signal.signal(signal.SIGALRM, strike)

        class Strikes:
            def __reduce__(self):
                signal.raise_signal(signal.SIGALRM)
                return int, ()

        return first, Strikes()

    for _ in range(3):
        for ref in two.remote(b"x" * 300_000):
            try:
                skate.get(ref, timeout=20)
            except Exception:
                pass
    del ref
    deadline = time.monotonic() + 10
    while current.runtime.store.usage()["objects"]:
        assert time.monotonic() < deadline, current.runtime.store.objects()
        skate.get(one.remote())
    """
        + GO_ON
    )
    assert driver.wait(50) == 0, driver.output[-3000:]


@pytest.mark.parametrize(
    "waits", ["pass", "threading.Thread(target=skate.get, args=(nap.remote(100),), daemon=True).start()"]
)
def test_the_end_of_a_program_waits_for_no_callback(start_driver, waits: str) -> None:
    driver = start_driver(
        START
        + f"""
    faulthandler.cancel_dump_traceback_later()
    began = threading.Event()
    future = nap.remote(0.1).future()
    future.add_done_callback(lambda _: (began.set(), time.sleep(100)))
    {waits}
    began.wait()
    """
    )
    assert driver.wait(30) == 0, driver.output[-3000:]
    assert driver.output == ""
