"""Event loops in which refs are awaited: what has come is handed out in them, and they are woken by the inbox itself.

State, a loop: the refs awaited in it (how many), those that have come and were not handed out yet, and whether the loop
looks at the inbox before it sleeps again; callbacks of refs (`asyncio.wait`).

As long as refs are awaited, a loop looks at the inbox each turn, spins where that has paid, and then sleeps in its own
selector with the inbox's descriptor in it: a wait costs no other thread a wake-up. This asks nothing of a loop but
`call_soon` and `add_reader`; where it has no readers, or another thread reads the inbox, it is rung
(`call_soon_threadsafe`), once for all that came meanwhile.

An asyncio actor's loop reads the inbox in its selector (worker/actor), and is only handed what came.

Nothing here keeps a loop alive: a LoopInbox is held by who awaits in the loop, and by what the loop has yet to call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType
from weakref import ref as weakly

from skate._c import refs
from skate._c.refs import ObjectRef, Waiter
from skate._c.steps import Undisturbed, section
from skate.net.pump import ASLEEP, MORE

if TYPE_CHECKING:
    from skate.runtime.runtime import Runtime

log = logging.getLogger("skate")


class Loops:
    """The event loops in which this process's refs are awaited."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        #: id of a loop -> its LoopInbox, which holds the loop
        self._known: dict[int, ReferenceType[LoopInbox]] = {}

    def running(self) -> LoopInbox:
        """That of the loop which runs in this thread."""
        loop = asyncio.get_running_loop()
        known = self._known.get(id(loop))
        found = None if known is None else known()
        return LoopInbox(self._runtime, self._known, loop) if found is None else found

    def awaiting(self) -> list[LoopInbox]:
        """Those in which refs are awaited that have not come."""
        return [inbox for inbox in self._all() if inbox.number]

    def remove_done_callback(self, ref: ObjectRef, callback: Any) -> int:
        """Forgets a callback, in whatever loop it was to be called; gives how many there were."""
        return sum([inbox.remove_done_callback(ref, callback) for inbox in self._all()])

    def _all(self) -> list[LoopInbox]:
        return [inbox for known in list(self._known.values()) if (inbox := known()) is not None]

    def adopt(self, loop: asyncio.AbstractEventLoop) -> LoopInbox:
        """That of a loop which reads the inbox by itself, and calls `hand_out` before it sleeps."""
        return LoopInbox(self._runtime, self._known, loop, reads=True)


class LoopInbox:
    """The refs that are awaited in one loop."""

    __slots__ = (
        "__weakref__",
        "_arrived",
        "_callbacks",
        "_fd",
        "_known",
        "_reads",
        "_rings",
        "_runtime",
        "_turn",
        "looks",
        "loop",
        "number",
    )

    def __init__(
        self,
        runtime: Runtime,
        known: dict[int, ReferenceType[LoopInbox]],
        loop: asyncio.AbstractEventLoop,
        reads: bool = False,
    ) -> None:
        self._runtime = runtime
        self.loop = loop
        self._known = known
        #: refs that have not come
        self.number = 0
        #: what to call in the loop for those that have
        self._arrived: deque[Callable[[], object]] = deque()
        #: (object id, callback) -> what waits for the object, if anything does, until it is called
        self._callbacks: dict[tuple[bytes, Any], Waiter | None] = {}
        #: it hands out what came before it sleeps: nobody need ring
        self.looks = self._reads = reads
        self._turn = 0
        self._rings = False
        #: the inbox's descriptor, a copy, while the loop has it in its selector; -1: it has not
        self._fd = -1
        known[id(loop)] = weakly(self)

    def __del__(self) -> None:
        self._known.pop(id(self.loop), None)
        if self._fd >= 0:
            os.close(self._fd)  # the loop goes, too

    # ---------------------------------------------------------------------------------------------- who awaits

    def expect(self, ref: ObjectRef, call: Callable[[], object]) -> Waiter | None:
        """Has the loop call `call()` once the object is there. None where it is already. In the loop's thread."""
        with section:
            waiter = self._runtime.objects.watch(ref.entry, partial(self._on_arrival, call))
            if waiter is not None:
                self.number += 1
                if not self.looks:
                    self._look_next_turn()
        return waiter

    def give_up(self, ref: ObjectRef, waiter: Waiter) -> None:
        """Nobody awaits it any more. What has come is handed out all the same."""
        with section:
            with self._runtime.lock:
                if waiter.done:
                    return
                refs.unwatch([ref.entry], waiter)
            self.number -= 1
            if not self.number and self._fd >= 0:
                self._leave_selector()

    def add_done_callback(self, ref: ObjectRef, callback: Any, context: Any) -> None:
        """Has the loop call `callback(ref)` once the object is there. In the loop's thread."""
        key = (ref.entry.id, callback)
        call = partial(self.loop.call_soon, partial(self._call_back, key, ref), context=context)
        self._callbacks[key] = waiter = self.expect(ref, call)
        if waiter is None:
            call()

    def _call_back(self, key: tuple[bytes, Any], ref: ObjectRef) -> None:
        if key in self._callbacks:  # else it was removed
            del self._callbacks[key]
            key[1](ref)

    def remove_done_callback(self, ref: ObjectRef, callback: Any) -> int:
        """Forgets a callback; gives how many there were."""
        key = (ref.entry.id, callback)
        if key not in self._callbacks:
            return 0
        waiter = self._callbacks.pop(key)
        if waiter is not None:
            self.give_up(ref, waiter)
        return 1

    # ------------------------------------------------------------------------------------------- what has come

    def _on_arrival(self, call: Callable[[], object], _: Waiter) -> None:
        """Under the runtime's lock."""
        self._arrived.append(call)
        if self._rings or (self.looks and not self._runtime.pump.stands_in()):
            return  # (a loop that stops looking looks at what arrived once more)
        self._rings = True
        self._runtime.later(self._ring)

    def _ring(self) -> None:
        try:
            self.loop.call_soon_threadsafe(Undisturbed(self._on_ring))
        except RuntimeError:
            self._arrived.clear()
            log.debug("an event loop was closed while refs were awaited in it")

    def _on_ring(self) -> None:
        self.hand_out()
        if self._reads:
            return
        if self.looks:
            self._look_next_turn()  # an exception of a handler may have come in the way of its last look
        elif not self.number:
            self._leave_selector()

    def has_arrivals(self) -> bool:
        """Whether `hand_out` has something to do."""
        return bool(self._arrived)

    def hand_out(self) -> bool:
        """Calls what waits for what has come; whether anything did. In the loop's thread."""
        arrived = self._arrived
        if not arrived:
            return False
        with section:
            self._rings = False  # first: what arrives from here on rings again
            while arrived:
                call = arrived.popleft()
                self.number -= 1
                call()
        return True

    # ------------------------------------------------------------------------------------------------ the inbox

    def _look_next_turn(self) -> None:
        self.looks = True
        self._turn += 1
        self.loop.call_soon(Undisturbed(self._look), self._turn)

    def _look(self, turn: int, woken: bool = False) -> None:
        """Each turn, while refs are awaited: takes in what has come. Where nothing has, the loop is to sleep."""
        if turn != self._turn:
            return  # it was rung meanwhile
        seen = MORE  # also where what is called by the way raises
        try:
            seen = self._runtime.pump.look(woken) if self.number else ASLEEP
        finally:
            if self.hand_out() or (seen == MORE and not self._runtime.closed):
                self._look_next_turn()  # after what waited: that may await the next
            else:
                self._sleep(seen == ASLEEP)

    def _sleep(self, inbox_wakes: bool) -> None:
        self.looks = False
        if self._arrived:  # another thread saw no need to ring
            self._look_next_turn()
        elif not (inbox_wakes and self.number):
            self._leave_selector()
        elif self._fd < 0:
            self._join_selector()

    def _on_readable(self) -> None:
        if not self.looks:
            self.looks = True
            self._look(self._turn, True)

    def _join_selector(self) -> None:
        """The inbox wakes the loop. (By a descriptor of our own: that of a session that ends may be another's next.)"""
        try:
            fd = os.dup(self._runtime.mailbox.fileno())
        except OSError:
            return  # there are no more: the pump reads, and rings
        try:
            self.loop.add_reader(fd, Undisturbed(self._on_readable))
        except NotImplementedError:
            os.close(fd)
        else:
            self._fd = fd
            self._runtime.pump.sleepers.add(self)

    def _leave_selector(self) -> None:
        if self._fd < 0:
            return
        if self.loop.is_running() and asyncio._get_running_loop() is not self.loop:
            self._ring()  # a coroutine was dropped in another thread: the loop's own does it
            return
        fd, self._fd = self._fd, -1
        self._runtime.pump.sleepers.discard(self)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.remove_reader(fd)
        os.close(fd)
