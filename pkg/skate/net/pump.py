"""Who reads the inbox: whoever waits does, and a background thread when nobody has for a millisecond.

State: the right to read (`_reading`), held by one thread at a time. A thread that waits for something reads the inbox
itself, so a loop of `get(f.remote())` wakes no other thread. When no thread of the program has read for PATIENCE
seconds, the pump thread takes over, so a program that computes for a minute still answers its peers. It gives the right
up as soon as somebody wants it.

An event loop in which refs are awaited (runtime/loops) looks at the inbox each turn, and then sleeps on it in its own
selector. It does not hold the right meanwhile: what else wakes it, a timer perhaps, may keep it busy for long. So the
pump stands by, and takes in what has lain there for PATIENCE seconds.

The pump thread is in one of three places:

    reading       it holds the right and sleeps in the inbox's epoll
    standing by   event loops are woken by the inbox: it sleeps until they leave mail lying, or a timer is due
    resting       it sleeps on an alarm, and when that goes off looks whether somebody reads, or has lately

No wake-up is lost: whoever stops reading sets the alarm, PATIENCE seconds from then, unless it is set (`_leave`). And
no thread is woken for nothing: who is about to sleep in the inbox clears it (Mailbox.fall_asleep). So a process that
is woken for one call runs one thread for it, not two.

Whoever has the right to read is in a section (skate._c.steps), and runs nothing of the program's: neither handlers of
signals nor finalizers, nor callbacks of what has come. For these it gives the right up, and asks for it anew
afterwards. So they may do anything, and wait for whatever they like, another thread that waits for mail included.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakSet

from skate._c import clock
from skate._c import steps as sections
from skate._c.alarm import Alarm
from skate._c.refs import Waiter
from skate._c.steps import Steps, leave_signals, let_in, run_handlers
from skate.config import Deadline
from skate.net.mailbox import Mailbox

log = logging.getLogger("skate.net")

#: seconds without a reader after which the pump takes over
PATIENCE = 0.001
#: seconds that the end of the process waits for a callback that runs in the pump thread
CALLBACK_SECONDS = 0.5
#: seconds that are slept at a time by whoever waits longer: the system takes no number however large
LONGEST_SLEEP = 86_400.0

#: what an event loop hears that has looked at the inbox: there may be more; nothing is there, and the inbox wakes it;
#: another thread reads
MORE: Final = 0
ASLEEP: Final = 1
ANOTHERS: Final = 2


class Pump:
    """Hands the right to read `mailbox` round.

    `before_sleep()` is called by whoever is about to sleep in the inbox: it sends what waits, runs the timers, and
    returns for how many seconds the sleep may last (None: until something comes). `steps` is the lock that it takes,
    and that taking in takes: what that puts off runs when the right is given up.
    """

    def __init__(
        self, mailbox: Mailbox, before_sleep: Callable[[], float | None], steps: Steps, name: str
    ) -> None:
        self._mailbox = mailbox
        self._steps = steps
        self._before_sleep = before_sleep
        self._reading = threading.Lock()
        #: the thread that holds it; 0: none
        self._reader = 0
        self._pump_reads = False
        self._wanted = 0  # program threads that wait for the pump to give up the right
        self._ousted = False
        #: event loops whose selectors have the inbox in them
        self.sleepers: WeakSet[Any] = WeakSet()
        #: others are to ring where something comes: nobody reads, but somebody sleeps on the inbox
        self._rung = False
        self._standing_by = False
        #: what the pump rests on
        self._alarm = mailbox.alarm = Alarm()
        self._closed = False
        #: the process ends: threads that wait are to end without a word
        self._ending = False
        self.last_read = clock.monotonic()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    # ----------------------------------------------------------------------------------- threads of the program

    def wait(self, waiter: Waiter, lock: Steps, deadline: Deadline) -> bool:
        """Blocks until `waiter` is done (True) or the clock passes `deadline` (False). Not under `lock`.

        `lock` guards the waiter's callback, which this sets where another thread reads meanwhile.
        """
        sections.enter_section()
        try:
            return self._wait(waiter, lock, deadline)
        finally:
            sections.leave_section()

    def _wait(self, waiter: Waiter, lock: Steps, deadline: Deadline) -> bool:
        while not waiter.done:
            if sections.interrupted():
                run_handlers()
                continue
            timeout = None
            if deadline is not None:
                timeout = min(deadline - clock.monotonic(), LONGEST_SLEEP)
                if timeout <= 0:
                    return False
            if self._closed:
                raise self._gone()
            if self._reading.acquire(False):
                self._begin_reading()
                self._read_until(waiter, deadline)
            elif self._pump_reads and not self._wanted:
                self._oust(waiter, deadline)
            else:
                self._sleep(waiter, lock, timeout)
        return True

    def _gone(self) -> BaseException:
        """What a thread that waits gets when this is closed. (SystemExit ends a thread without a word.)"""
        return SystemExit() if self._ending else RuntimeError("skate was shut down while this thread waited")

    def glance(self, now: float, interval: float) -> None:
        """Called by a busy thread now and then: takes in what has come, without blocking, and keeps the pump away."""
        if self._pump_reads:
            if not self._ousted:
                self._ousted = True
                self._mailbox.poke()
        elif now - self.last_read >= interval:
            self._read_now()

    def _read_now(self) -> None:
        sections.enter_section()
        try:
            if self._reading.acquire(False):
                self._begin_reading()
                try:
                    self._mailbox.read(0)
                finally:
                    self._leave()
        finally:
            sections.leave_section()

    def take(self) -> bool:
        """Gives a thread of the program the right to read until it calls `give_up`; False while another one has it.

        For an event loop, which reads whenever it would sleep. Blocks no longer than the pump needs to step aside. In a
        section.
        """
        if self._reading.acquire(False):
            self._begin_reading()
            return True
        return self._pump_reads and not self._wanted and self._take_from_pump()

    def give_up(self) -> None:
        """Ends what `take` began."""
        self._leave()

    def look(self, woken: bool) -> int:
        """For an event loop that sleeps on the inbox: takes in what has come; MORE, ASLEEP or ANOTHERS. In a section.

        `woken`: the inbox's descriptor is readable. Does not block but to spin, and until the pump steps aside.
        """
        if not self.take():
            return MORE if self._pump_reads else ANOTHERS  # (the pump is about to step aside)
        mailbox = self._mailbox
        try:
            if woken:
                mailbox.serve()
                return MORE
            if mailbox.spin():
                return MORE
            self._before_sleep()
            if mailbox.read(0) or self._steps.has_put_off():
                return MORE
            self._rung = mailbox.fall_asleep(True)
            return ASLEEP if self._rung else MORE
        finally:
            self._leave()

    def runs_here(self) -> bool:
        """This is the pump's thread."""
        return threading.current_thread() is self._thread

    def stands_in(self) -> bool:
        """The pump's thread reads, as nobody else did."""
        return self._pump_reads or self._standing_by

    def may_sleep_on(self) -> bool:
        """Whoever reads may be asleep, and nothing was said to it: what waits to leave would wait until it wakes."""
        return not self._ousted if self._pump_reads else self._reader != 0 or self._standing_by

    def another_thread_reads(self) -> bool:
        """A thread of the program other than this one has the right to read, and may be asleep with it."""
        return self._reading.locked() and not self._pump_reads and self._reader != threading.get_ident()

    def _read_until(self, waiter: Waiter, deadline: Deadline) -> None:
        """With the right to read: reads until the waiter is done, the deadline has passed, or something of the
        program's is to run; gives the right up.
        """
        try:
            self._read_on(waiter, deadline)
        finally:
            self._leave()

    def _read_on(self, waiter: Waiter, deadline: Deadline) -> None:
        mailbox, steps = self._mailbox, self._steps
        while not (waiter.done or self._closed or steps.has_put_off() or sections.interrupted()):
            if mailbox.spin():
                continue
            held = mailbox.waits
            timeout = self._before_sleep()
            if waiter.done or steps.has_put_off():
                return  # what was waited for was a timer's
            if held and mailbox.spin():
                continue
            mailbox.check_descriptors()
            if deadline is not None:
                left = min(deadline - clock.monotonic(), LONGEST_SLEEP)
                if left <= 0:
                    return
                timeout = left if timeout is None else min(left, timeout)
            mailbox.read(timeout)

    def _oust(self, waiter: Waiter, deadline: Deadline) -> None:
        if self._take_from_pump():
            self._read_until(waiter, deadline)

    def _take_from_pump(self) -> bool:
        """Has the pump step aside; False where another thread of the program was faster, which may read for long."""
        self._wanted += 1
        try:
            self._mailbox.poke()
            taken = self._reading.acquire(timeout=PATIENCE)
        finally:
            self._wanted -= 1
        if taken:
            self._begin_reading()
        return taken

    def _sleep(self, waiter: Waiter, lock: Steps, timeout: float | None) -> None:
        """Another thread reads, and wakes this one; when it stops, the pump or the next waiting thread does."""
        alarm = threading.Lock()
        alarm.acquire()
        with lock:
            if waiter.done:
                return
            waiter.callback = lambda _: alarm.release()
        let_in(alarm.acquire, True, -1 if timeout is None else timeout)

    def _begin_reading(self) -> None:
        """This thread has got the right."""
        self._reader = threading.get_ident()
        if self._rung:
            self._rung = False
            self._mailbox.wake_up()
        self._steps.begin_reading()

    def _leave(self) -> None:
        """Gives the right up; then runs what was put off, and raises what that raises."""
        self.last_read = clock.monotonic()
        self._reader = 0
        self._reading.release()
        if not (self._alarm.is_set or (self._rung and self._standing_by)):
            self._alarm.set(PATIENCE)
        self._steps.end_reading()

    def _end_reading(self) -> None:
        """(Compiled, a method of a C type has no bound object.)"""
        self._steps.end_reading()

    # -------------------------------------------------------------------------------------------- the pump thread

    def _run(self) -> None:
        leave_signals()
        sections.enter_section()
        try:
            self._read_by_turns()
        finally:
            sections.leave_section()

    def _read_by_turns(self) -> None:
        while not self._closed:
            if (
                self._wanted
                or clock.monotonic() - self.last_read < PATIENCE
                or not self._reading.acquire(False)
            ):
                self._unless_closed(self._before_sleep)
                self._rest()
                continue
            if self.sleepers:
                self._unless_closed(self._stand_by)
                continue
            self._pump_reads = True
            self._begin_reading()
            try:
                self._unless_closed(self._read_until_wanted)
            finally:
                self._pump_reads = False
                if self._ousted:
                    self._ousted = False
                    self.last_read = clock.monotonic()
                self._reader = 0
                self._reading.release()
                self._unless_closed(self._end_reading)

    def _read_until_wanted(self) -> None:
        steps = self._steps
        while not (self._wanted or self._ousted or self._closed):
            timeout = self._before_sleep()
            if steps.has_put_off():
                return
            self._mailbox.read(timeout, False)

    def _stand_by(self) -> None:
        """With the right to read: takes in what lies there, then leaves what comes to those who sleep on the inbox."""
        self._standing_by = True  # first: from here on mail of others leaves at once
        timeout: float | None = 0.0
        try:
            self._begin_reading()
            try:
                timeout = self._before_sleep()
                self._rung = not self._mailbox.serve() and self._mailbox.fall_asleep(True)
            finally:
                self._reader = 0
                self._reading.release()
                self._end_reading()
            if self._rung and not self._closed:
                self._alarm.stand_by(self._mailbox.fileno(), timeout, PATIENCE)
        finally:
            self._standing_by = False

    def _unless_closed(self, act: Callable[[], object]) -> None:
        """`act()`; what it raises, a callback of the program's perhaps, does not end the thread."""
        try:
            act()
        except BaseException:
            if not self._closed:
                log.exception("the pump thread failed; it goes on")

    def _rest(self) -> None:
        """Sleeps until it is time to look again. While somebody reads it is that thread that says when (`_leave`)."""
        if not self._reading.locked():
            self._alarm.set(PATIENCE)
        if not self._closed:
            self._alarm.sleep()

    # --------------------------------------------------------------------------------------------------- closing

    def close(self, ending: bool = False) -> None:
        """Ends the pump thread. Blocks until the right to read is free.

        Threads that wait get RuntimeError; where the process is `ending`, they end, or never wake.
        """
        self._ending = ending
        self._closed = True
        self._alarm.set(0)
        self._mailbox.poke()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(CALLBACK_SECONDS if ending else None)
        if not self._thread.is_alive():
            self._alarm.close()
        self._reading.acquire()  # never released: nobody reads a closed mailbox
