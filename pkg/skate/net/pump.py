"""Who reads the inbox: whoever waits does, and a background thread when nobody has for a millisecond.

State: the right to read (`_reading`), held by one thread at a time. A thread that waits for something reads the inbox
itself, so a loop of `get(f.remote())` wakes no other thread. When no thread of the program has read for PATIENCE
seconds, the pump thread takes over, so a program that computes for a minute still answers its peers. It gives the right
up as soon as somebody wants it.

The pump thread is in one of three places:

    reading    it holds the right and sleeps in the inbox's epoll
    watching   somebody has read lately: it looks every PATIENCE seconds whether that is still so
    resting    somebody has been reading for a while: it sleeps until that thread leaves

No wake-up is lost: whoever stops reading while the pump rests wakes it (`_leave`), and while it watches it looks again
by itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from skate._c import clock
from skate._c.lanes import check_signals
from skate._c.refs import Waiter
from skate.net.mailbox import Mailbox

log = logging.getLogger("skate.net")

#: seconds without a reader after which the pump takes over
PATIENCE = 0.001
#: looks at a thread that reads and reads, before the pump goes to rest
LOOKS = 5
#: seconds between two looks of a pump that rests
REST_SECONDS = 0.5
#: seconds that are slept at a time by whoever waits longer: the system takes no number however large
LONGEST_SLEEP = 86_400.0


class Pump:
    """Hands the right to read `mailbox` round.

    `before_sleep()` is called by whoever is about to sleep in the inbox: it sends what waits, runs the timers, and
    returns for how many seconds the sleep may last (None: until something comes).
    """

    def __init__(self, mailbox: Mailbox, before_sleep: Callable[[], float | None], name: str) -> None:
        self._mailbox = mailbox
        self._before_sleep = before_sleep
        self._reading = threading.Lock()
        #: the thread that holds it; 0: none
        self._reader = 0
        self._pump_reads = False
        self._wanted = 0  # program threads that wait for the pump to give up the right
        self._ousted = False
        self._resting = False
        self._awake = threading.Event()
        self._closed = False
        self.last_read = clock.monotonic()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    # ----------------------------------------------------------------------------------- threads of the program

    def wait(self, waiter: Waiter, lock: threading.Lock, deadline: float | None) -> bool:
        """Blocks until `waiter` is done (True) or the clock passes `deadline` (False). Not under `lock`.

        `lock` guards the waiter's callback, which this sets where another thread reads meanwhile.
        """
        while not waiter.done:
            timeout = None
            if deadline is not None:
                timeout = min(deadline - clock.monotonic(), LONGEST_SLEEP)
                if timeout <= 0:
                    return False
            if self._closed:
                raise RuntimeError("skate was shut down while this thread waited")
            if self._reading.acquire(False):
                self._reader = threading.get_ident()
                self._read_until(waiter, deadline)
            elif self._reader == threading.get_ident():  # a callback that waits: it goes on reading
                self._read_on(waiter, deadline)
            elif self._pump_reads and not self._wanted:
                self._oust(waiter, deadline)
            else:
                self._sleep(waiter, lock, timeout)
        return True

    def glance(self, now: float, interval: float) -> None:
        """Called by a busy thread now and then: takes in what has come, without blocking, and keeps the pump away."""
        if self._pump_reads:
            if not self._ousted:
                self._ousted = True
                self._mailbox.poke()
        elif now - self.last_read >= interval and self._reading.acquire(False):
            self._reader = threading.get_ident()
            try:
                self._mailbox.read(0)
            finally:
                self._leave()

    def take(self) -> bool:
        """Gives a thread of the program the right to read until it calls `give_up`; False while another one has it.

        For an event loop, which reads whenever it would sleep. Blocks no longer than the pump needs to step aside.
        """
        if self._reading.acquire(False):
            self._reader = threading.get_ident()
            return True
        return self._pump_reads and not self._wanted and self._take_from_pump()

    def give_up(self) -> None:
        """Ends what `take` began."""
        self._leave()

    @property
    def program_reads(self) -> bool:
        """A thread of the program, not the pump, has the right to read."""
        return self._reading.locked() and not self._pump_reads

    def may_sleep_on(self) -> bool:
        """Whoever reads may be asleep, and nothing was said to it: what waits to leave would wait until it wakes."""
        return not self._ousted if self._pump_reads else self._reader != 0

    def another_thread_reads(self) -> bool:
        """A thread of the program other than this one has the right to read, and may be asleep with it."""
        return self.program_reads and self._reader != threading.get_ident()

    def _read_until(self, waiter: Waiter, deadline: float | None) -> None:
        """With the right to read: reads until the waiter is done or the deadline has passed; gives the right up."""
        try:
            self._read_on(waiter, deadline)
        finally:
            self._leave()

    def _read_on(self, waiter: Waiter, deadline: float | None) -> None:
        mailbox = self._mailbox
        while not waiter.done and not self._closed:
            if mailbox.spin():
                continue
            timeout = self._before_sleep()
            if waiter.done:
                return  # what was waited for was a timer's
            if deadline is not None:
                left = min(deadline - clock.monotonic(), LONGEST_SLEEP)
                if left <= 0:
                    return
                timeout = left if timeout is None else min(left, timeout)
            mailbox.read(timeout)

    def _oust(self, waiter: Waiter, deadline: float | None) -> None:
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
            self._reader = threading.get_ident()
        return taken

    def _sleep(self, waiter: Waiter, lock: threading.Lock, timeout: float | None) -> None:
        """Another thread reads, and wakes this one; when it stops, the pump or the next waiting thread does."""
        alarm = threading.Lock()
        alarm.acquire()
        with lock:
            if waiter.done:
                return
            waiter.callback = lambda _: alarm.release()
        check_signals()
        alarm.acquire(timeout=-1 if timeout is None else timeout)

    def _leave(self) -> None:
        self.last_read = clock.monotonic()
        self._reader = 0
        self._reading.release()
        if self._resting:
            self._awake.set()

    # -------------------------------------------------------------------------------------------- the pump thread

    def _run(self) -> None:
        looks = 0
        while not self._closed:
            if (
                self._wanted
                or clock.monotonic() - self.last_read < PATIENCE
                or not self._reading.acquire(False)
            ):
                looks = looks + 1 if self._reading.locked() else 0
                if looks > LOOKS:
                    self._rest()
                    looks = 0
                else:
                    self._awake.wait(PATIENCE)
                    self._awake.clear()
                    self._before_sleep()
                continue
            looks = 0
            self._pump_reads = True
            self._reader = threading.get_ident()
            try:
                while not (self._wanted or self._ousted or self._closed):
                    self._mailbox.read(self._before_sleep(), idle=False)
            except Exception:
                if not self._closed:
                    log.exception("the pump thread failed; it goes on")
            finally:
                self._pump_reads = False
                if self._ousted:
                    self._ousted = False
                    self.last_read = clock.monotonic()
                self._reader = 0
                self._reading.release()

    def _rest(self) -> None:
        self._awake.clear()
        self._resting = True
        # Whoever reads wakes us when it leaves; it may be interrupted just before it does.
        while self._reading.locked() and not self._awake.wait(REST_SECONDS):
            pass
        self._resting = False
        self._awake.clear()

    # --------------------------------------------------------------------------------------------------- closing

    def close(self) -> None:
        """Ends the pump thread; threads that wait get RuntimeError. Blocks until the right to read is free."""
        self._closed = True
        self._awake.set()
        self._mailbox.poke()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        self._reading.acquire()  # never released: nobody reads a closed mailbox
