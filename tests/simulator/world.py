"""Events in the order of their times, in one thread; fibers in which simulated programs block; the seed and the trace.

State: the clock, the events to come, who runs now, what went wrong. Nothing here knows of skate, but for the two slots
in which it keeps the runtime of "this process": they are set anew whenever another process runs.
"""

from __future__ import annotations

import heapq
import logging
import zlib
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Final, Protocol

from greenlet import GreenletExit, getcurrent, greenlet
from skate._c import refs
from skate.runtime import current

#: what the clock says at first: to the product 0.0 is "long ago"
START: Final = 1000.0

#: the world that runs; set by seams.replaced
_running: World | None = None


def sleep(seconds: float) -> None:
    """For simulated programs: blocks for so many simulated seconds."""
    world().sleep(seconds)


def world() -> World:
    """The world that runs."""
    assert _running is not None, "no world runs"
    return _running


def set_running(world: World | None) -> None:
    global _running
    _running = world


class Failed(AssertionError):
    """Something that must hold did not; the text says what, and when."""


class Runner(Protocol):
    """A process, as the world sees it."""

    alive: bool
    #: it runs, or takes in messages
    busy: bool
    #: its fibers that can go on
    ready: deque[Fiber]

    def become_current(self) -> None:
        """Makes its runtime the one of this process."""

    def run(self) -> None:
        """Something has come, or is due."""

    def end_fibers(self) -> None:
        """Nothing of it goes on."""


class World:
    """The clock and the events of one simulation."""

    def __init__(self, seed: int, *, traced: bool = True) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now = START
        #: whose code runs
        self.process: Runner | None = None
        #: which of its fibers; None where it takes in messages
        self.fiber: Fiber | None = None
        #: what programs have seen (workload.Ledger); opaque here
        self.ledger: Any = None
        #: what went wrong in the product's own code: it logs, and goes on
        self.mishaps: list[str] = []
        #: events done
        self.steps = 0
        #: a checksum of all that was sent, by whom, to whom, when
        self.trace = 0
        self._traced = traced
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0
        self._hub = getcurrent()
        self._fibers: dict[Fiber, None] = {}

    def monotonic(self) -> float:
        return self.now

    def monotonic_ns(self) -> int:
        return int(self.now * 1e9)

    @property
    def elapsed(self) -> float:
        return self.now - START

    # --------------------------------------------------------------------------------------------------- events

    def after(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        """Calls it so many simulated seconds from now, after all that is due before or was asked for earlier."""
        self.at(self.now + seconds, call, *args)

    def at(self, time: float, call: Callable[..., None], *args: Any) -> None:
        self._serial += 1
        heapq.heappush(self._events, (time, self._serial, call, args))

    def run_until(self, done: Callable[[], bool], deadline: float, every: int = 1) -> bool:
        """Does what is due until `done()`, asked after `every` events; False where the clock passes `deadline` before.

        Raises Failed where the product's code has met what it did not expect.
        """
        events = self._events
        while not (self.steps % every == 0 and done()):
            if not events or events[0][0] > deadline:
                self.now = max(self.now, deadline)
                return done()
            self.now, _, call, args = heapq.heappop(events)
            self.steps += 1
            call(*args)
            if self.mishaps:
                raise Failed(f"at {self.elapsed:.6f} s: {self.mishaps[0]}")
        return True

    def run_for(self, seconds: float) -> None:
        self.run_until(lambda: False, self.now + seconds, every=1 << 60)

    def note(self, frame: bytes, *ends: bytes) -> None:
        """A message leaves. Its length stands for it: cloudpickle gives classes random names, all of one length."""
        if self._traced:
            head = b"%d %d " % (int(self.now * 1e9), len(frame))
            self.trace = zlib.crc32(head + b"".join(ends), self.trace)

    # ---------------------------------------------------------------------------------------------- who runs now

    def enter(self, process: Runner | None) -> None:
        """What runs from here on is the process's."""
        self.process = process
        if process is None:
            refs.set_home(None, {}, b"")
            current.set_runtime(None, None)
        else:
            process.become_current()

    def close(self) -> None:
        """Ends all processes that have fibers, wherever these wait."""
        for fiber in list(self._fibers):
            fiber.process.end_fibers()
        self.enter(None)
        self._events.clear()

    # ----------------------------------------------------------------------------------------------------- fibers

    def spawn(self, process: Runner, main: Callable[[], None]) -> Fiber:
        """A thread of a process; it begins when it is resumed first."""
        fiber = Fiber(self, process, main)
        self._fibers[fiber] = None
        return fiber

    def sleep(self, seconds: float) -> None:
        """For programs: blocks the fiber that calls it."""
        fiber = self.fiber
        assert fiber is not None, "only a program can sleep"
        self.after(seconds, fiber.wake)
        fiber.wait()


class Fiber:
    """A thread of a simulated process. It runs until it waits, and goes on when it is woken."""

    def __init__(self, world: World, process: Runner, main: Callable[[], None]) -> None:
        self.process = process
        self._world = world
        self._main = main
        self._greenlet = greenlet(self._run, world._hub)
        self._woken = False
        self._ended = False

    def _run(self) -> None:
        try:
            self._main()
        except GreenletExit:
            pass
        finally:
            self._world._fibers.pop(self, None)

    def resume(self) -> None:
        """Runs it until it waits again. By its process."""
        if self._ended or self._greenlet.dead:
            return
        self._woken = False
        world = self._world
        world.fiber = self
        try:
            self._greenlet.switch()
        finally:
            world.fiber = None

    def wake(self, *_: Any) -> None:
        """It can go on: at once, where nothing of its process runs; else when that is done."""
        if self._woken or self._ended or not self.process.alive:
            return
        self._woken = True
        self.process.ready.append(self)
        if not self.process.busy:
            self.process.run()

    def wait(self) -> None:
        """Blocks until it is woken. In the fiber itself."""
        if self._ended:
            raise GreenletExit
        guard = refs.unpickling_under(None)  # which is this thread's, and the thread goes to others now
        self._world._hub.switch()
        refs.unpickling_under(guard)

    def where(self) -> str:
        """Where it waits: the functions of the program, the innermost last."""
        frame = self._greenlet.gr_frame
        found = []
        while frame is not None:
            found.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
            frame = frame.f_back
        return " > ".join(reversed(found))

    def end(self) -> None:
        """Its process is gone. What its code still does on the way out nobody sees."""
        self._ended = True
        self._world._fibers.pop(self, None)
        if self._greenlet and not self._greenlet.dead:
            before, self._world.fiber = self._world.fiber, self
            try:
                self._greenlet.throw(GreenletExit)
            finally:
                self._world.fiber = before


class Alarms(logging.Handler):
    """Takes what the product logs: an exception that it did not expect is a mishap."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.DEBUG)
        self._world = world
        self.lines: deque[str] = deque(maxlen=200)

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        self.lines.append(f"{self._world.elapsed:.6f} {record.levelname} {text}")
        if record.exc_info:
            self._world.mishaps.append(text)
