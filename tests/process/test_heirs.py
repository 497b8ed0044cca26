"""A ref that a process handed on before it was killed lives as long as whoever holds it.

The kind: whoever hands a ref on registers the receiver, and dies before it has; or what it said is lost in somebody's
mail. Here the one that hands on stops itself, so that it reads and says nothing more, and is killed; the receiver is
stopped meanwhile, so that it learns of the death last. The object's owner lives all the while.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import pytest
import skate
from api.rendezvous import Gate, eventually
from skate.net import exchange
from skate.runtime import current

pytestmark = [pytest.mark.timeout(60), pytest.mark.transport]


@pytest.fixture(scope="module", autouse=True)
def cpu4():
    skate.init(num_cpus=4)
    yield
    skate.shutdown()


@skate.remote(num_cpus=0, max_concurrency=3)
class Holder:
    """Keeps a box, and reads what is in it."""

    def __init__(self) -> None:
        self.box: Any = None
        self.giver = 0

    def pid(self) -> int:
        return os.getpid()

    def keep(self, box: Any, giver: int) -> None:
        self.box, self.giver = box, giver

    def keep_until(self, box: Any, giver: int, gate: Gate) -> None:
        self.keep(box, giver)
        gate.wait()

    def given(self) -> int:
        """The process that gave the box; 0: it has not come."""
        return self.giver

    def read(self) -> int:
        return int(skate.get(self.box[0], timeout=20)[0])

    def give_to(self, other: Any) -> None:
        hand_on(self.box, other, None)

    def make(self) -> Any:
        return [skate.put(np.full(50_000, 7))]

    def counts(self) -> list[int]:
        """Of each object of this process that others borrow, how many do."""
        runtime = current.runtime
        return [len(entry.borrowers) for entry in runtime.references.entries.values() if entry.borrowers]


def hand_on(box: Any, holder: Any, gate: Any) -> None:
    skate.get(holder.given.remote())  # from here on it is called without asking the node where it is
    if gate is None:
        holder.keep.remote(box, os.getpid())
    else:
        holder.keep_until.remote(box, os.getpid(), gate)
    stop()


def stop() -> None:
    """Stops this process, once all that it has said has left."""
    with current.runtime.lock:
        current.runtime.mailbox.flush()
    if not exchange.wanted():
        time.sleep(0.5)  # ZeroMQ's own thread sends; nothing tells when it has
    os.kill(os.getpid(), signal.SIGSTOP)


@skate.remote(num_cpus=0)
class Giver:
    def __init__(self) -> None:
        self.box: Any = None

    def take(self, box: Any) -> None:
        self.box = box

    def give(self, holder: Any, gate: Any) -> None:
        hand_on(self.box, holder, gate)

    def hand_on(self, box: Any, holder: Any, gate: Any) -> None:
        hand_on(box, holder, gate)

    def pass_through(self, box: Any, holder: Any) -> None:
        skate.get(holder.keep.remote(box, os.getpid()))

    def vouch(self, maker: Any, middle: Any, holder: Any) -> None:
        """Has `middle` hand on what this process lends it, and never reads what it says."""
        box = skate.get(maker.make.remote())
        skate.get(middle.ping.remote())
        middle.pass_through.remote(box, holder)
        stop()

    def ping(self) -> None: ...


task_that_hands_on = skate.remote(max_retries=0, num_cpus=0)(hand_on)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def kill(pid: int) -> None:
    """Ends a process, and returns once this one has dealt with its death."""
    deaths = len(current.runtime.references._dead)
    psutil.Process(pid).kill()
    eventually(lambda: len(current.runtime.references._dead) > deaths)


def given(holder: Any) -> int:
    return eventually(lambda: skate.get(holder.given.remote(), timeout=20))


@pytest.mark.parametrize("role", ["a task", "an actor that got it in the call", "an actor that had it"])
@pytest.mark.parametrize("runs", [False, True], ids=["kept", "kept by a call that runs"])
def test_what_the_dead_handed_on_lives(role: str, runs: bool, gate: Gate) -> None:
    holder = Holder.remote()
    pid = skate.get(holder.pid.remote(), timeout=20)
    x = skate.put(np.full(50_000, 7))
    key = x.binary()
    giver = Giver.remote() if role != "a task" else None
    until = gate if runs else None
    if role == "a task":
        done = task_that_hands_on.remote([x], holder, until)
    elif role == "an actor that had it":
        skate.get(giver.take.remote([x]), timeout=20)
        done = giver.give.remote(holder, until)
    else:
        done = giver.hand_on.remote([x], holder, until)
    del x
    who = given(holder)
    with stopped(pid):
        kill(who)
        with pytest.raises(skate.exceptions.SkateError):
            skate.get(done, timeout=20)
    assert skate.get(holder.read.remote(), timeout=20) == 7
    gate.open()
    del holder
    eventually(lambda: key not in current.runtime.references.entries)


def test_it_lives_though_the_heir_dies_as_well() -> None:
    """The one that got it from the dead has handed it on in the same way, and is killed before it could speak."""
    first, last = Holder.remote(), Holder.remote()
    pid = skate.get(last.pid.remote(), timeout=20)
    x = skate.put(np.full(50_000, 7))
    key = x.binary()
    task_that_hands_on.remote([x], first, None)
    del x
    giver = given(first)
    heir = skate.get(first.pid.remote(), timeout=20)
    first.give_to.remote(last)
    assert given(last) == heir
    with stopped(pid):
        kill(giver)
        kill(heir)
    assert skate.get(last.read.remote(), timeout=20) == 7
    del first, last
    eventually(lambda: key not in current.runtime.references.entries)


def test_it_lives_though_who_vouched_for_it_never_read_of_the_borrower() -> None:
    """The owner is `maker`; `voucher` lent the ref to `middle`, which handed it on and has let go of it since."""
    maker, voucher, middle, holder = Holder.remote(), Giver.remote(), Giver.remote(), Holder.remote()
    pid = skate.get(holder.pid.remote(), timeout=20)
    stops = skate.get(voucher.__ray_call__.remote(lambda _: os.getpid()), timeout=20)
    done = voucher.vouch.remote(maker, middle, holder)
    given(holder)
    eventually(lambda: psutil.Process(stops).status() == psutil.STATUS_STOPPED)
    skate.get(middle.ping.remote(), timeout=20)
    with stopped(pid):
        kill(stops)
        with pytest.raises(skate.exceptions.SkateError):
            skate.get(done, timeout=20)
        skate.get(maker.counts.remote(), timeout=20)
    assert skate.get(holder.read.remote(), timeout=20) == 7
    del holder
    eventually(lambda: skate.get(maker.counts.remote(), timeout=20) == [])


def test_nothing_is_kept_where_nobody_has_it() -> None:
    x = skate.put(np.full(50_000, 7))
    key = x.binary()
    giver = Giver.remote()
    skate.get(giver.take.remote([x]), timeout=20)
    del x
    pid = skate.get(giver.__ray_call__.remote(lambda _: os.getpid()), timeout=20)
    kill(pid)
    eventually(lambda: key not in current.runtime.references.entries)
    assert not current.runtime.references._unsettled
