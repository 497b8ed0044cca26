"""Threaded actors: `max_concurrency=n` runs up to n calls at once, each in a thread."""

import os
import threading
import time

import pytest
import skate
from skate.exceptions import ActorDiedError

from .rendezvous import Gate, Tally, eventually, gone, most_at_once

pytestmark = [pytest.mark.usefixtures("cpu2"), pytest.mark.transport]


class Threads:
    def __init__(self) -> None:
        self.total = 0
        self.lock = threading.Lock()

    def meet(self, tally: Tally, parties: int) -> tuple[int, int]:
        tally.meet(parties)
        return os.getpid(), threading.get_ident()

    def add(self, number: int = 1) -> int:
        with self.lock:
            self.total += number
            return self.total

    def span(self) -> tuple[float, float]:
        start = time.monotonic()
        time.sleep(0.01)
        return start, time.monotonic()

    def pass_gate(self, gate: Gate) -> str:
        gate.wait()
        return "through"

    def fail(self) -> None:
        raise LookupError("in a thread")

    def pid(self) -> int:
        return os.getpid()


def of(number: int) -> object:
    return skate.remote(Threads).options(max_concurrency=number).remote()


def test_so_many_at_once(tally: Tally) -> None:
    actor = of(4)
    where = skate.get([actor.meet.remote(tally, 4) for _ in range(4)])
    assert len({pid for pid, _ in where}) == 1
    assert len({thread for _, thread in where}) == 4


def test_and_no_more() -> None:
    actor = of(3)
    spans = skate.get([actor.span.remote() for _ in range(30)])
    assert most_at_once(spans) <= 3


def test_one_is_one_at_a_time_in_order() -> None:
    actor = of(1)
    assert skate.get([actor.add.remote() for _ in range(100)]) == list(range(1, 101))
    assert most_at_once(skate.get([actor.span.remote() for _ in range(10)])) == 1


def test_said_by_the_decorator(tally: Tally) -> None:
    actor = skate.remote(max_concurrency=2)(Threads).remote()
    assert len(set(skate.get([actor.meet.remote(tally, 2) for _ in range(2)]))) == 2


def test_from_several_callers(tally: Tally) -> None:
    @skate.remote
    def call(actor: object) -> object:
        return skate.get(actor.meet.remote(tally, 3))

    actor = of(3)
    calls = [call.remote(actor), call.remote(actor), actor.meet.remote(tally, 3)]
    assert len(set(skate.get(calls))) == 3


def test_they_share_its_state() -> None:
    actor = of(8)
    skate.get([actor.add.remote(i) for i in range(200)])
    assert skate.get(actor.add.remote(0)) == sum(range(200))


def test_one_that_waits_holds_up_no_other(gate: Gate) -> None:
    actor = of(2)
    slow = actor.pass_gate.remote(gate)
    assert skate.get([actor.add.remote() for _ in range(20)])[-1] in range(1, 21)
    assert skate.wait([slow], timeout=0) == ([], [slow])
    gate.open()
    assert skate.get(slow) == "through"


def test_all_that_wait_hold_up_the_next(gate: Gate, tally: Tally) -> None:
    actor = of(2)
    slow = [actor.pass_gate.remote(gate) for _ in range(2)]
    last = actor.add.remote()
    other = of(1)
    skate.get(other.add.remote())  # time enough for a call that had a thread
    assert skate.wait([last], timeout=0) == ([], [last])
    gate.open()
    assert skate.get([*slow, last]) == ["through", "through", 1]


def test_get_in_a_thread_blocks_that_thread_only(gate: Gate) -> None:
    @skate.remote
    def pass_gate() -> str:
        gate.wait()
        return "task"

    class Getter(Threads):
        def get(self, refs: list) -> object:
            return skate.get(refs[0])

    actor = skate.remote(Getter).options(max_concurrency=2).remote()
    waiting = actor.get.remote([pass_gate.remote()])
    assert skate.get(actor.add.remote()) == 1
    gate.open()
    assert skate.get(waiting) == "task"


def test_tasks_from_several_threads_at_once() -> None:
    @skate.remote
    def double(x: int) -> int:
        return 2 * x

    class Boss:
        def work(self, n: int) -> int:
            return sum(skate.get([double.remote(n + i) for i in range(10)]))

    actor = skate.remote(Boss).options(max_concurrency=4).remote()
    assert skate.get([actor.work.remote(n) for n in range(8)]) == [20 * n + 90 for n in range(8)]


def test_it_may_call_itself_and_wait() -> None:
    @skate.remote(max_concurrency=3)
    class Self:
        def down(self, n: int) -> int:
            me = skate.get_runtime_context().current_actor
            return 1 + skate.get(me.down.remote(n - 1)) if n else 0

    assert skate.get(Self.remote().down.remote(2)) == 2


def test_each_call_knows_its_own_id_and_name(tally: Tally) -> None:
    @skate.remote(max_concurrency=2)
    class Self:
        def ids(self) -> tuple[str, str, str]:
            context = skate.get_runtime_context()
            before = context.get_task_id()
            tally.meet(2)
            return before, context.get_task_id(), context.get_task_name()

    actor = Self.remote()
    refs = [actor.ids.options(name=name).remote() for name in ("one", "two")]
    (a, a_again, one), (b, b_again, two) = skate.get(refs)
    assert a == a_again != b == b_again
    assert (one, two) == ("one", "two")


def test_an_exception_is_of_its_call_only(gate: Gate) -> None:
    actor = of(2)
    slow, failed = actor.pass_gate.remote(gate), actor.fail.remote()
    with pytest.raises(LookupError, match="in a thread"):
        skate.get(failed)
    gate.open()
    assert skate.get(slow) == "through"


def test_the_last_handle_goes_while_threads_run(gate: Gate) -> None:
    actor = of(3)
    pid = skate.get(actor.pid.remote())
    refs = [actor.pass_gate.remote(gate) for _ in range(6)]
    del actor
    gate.open()
    assert skate.get(refs) == ["through"] * 6
    eventually(lambda: gone(pid))


def test_killed_while_threads_run(gate: Gate, tally: Tally) -> None:
    actor = of(3)
    pid = skate.get(actor.pid.remote())
    running = [actor.meet.remote(tally, 4) for _ in range(3)]
    eventually(lambda: tally.count == 3)
    skate.kill(actor)
    for ref in running:
        with pytest.raises(ActorDiedError):
            skate.get(ref)
    eventually(lambda: gone(pid))


def test_exit_lets_the_others_finish(gate: Gate, tally: Tally) -> None:
    class Leaver(Threads):
        def leave(self) -> None:
            skate.actor.exit_actor()

        def work(self, gate: Gate, tally: Tally) -> str:
            tally.add()
            gate.wait()
            return "finished"

    actor = skate.remote(Leaver).options(max_concurrency=2).remote()
    pid = skate.get(actor.pid.remote())
    working = actor.work.remote(gate, tally)
    eventually(lambda: tally.count)
    left = actor.leave.remote()
    gate.open()
    assert skate.get(working) == "finished"
    with pytest.raises(ActorDiedError):
        skate.get(left)
    eventually(lambda: gone(pid))
