"""The caller's side of actors: when a call leaves, and what becomes of calls whose actor dies.

Pure. State: an ActorLine for each actor that this process calls. Events: call_submitted, call_ready, call_withdrawn,
call_done, actor_state, tick. Effects out through `take_effects`.

Rules:

* The calls of an ordered line leave in the order in which they were submitted, also when an argument of an earlier one
  is not there yet. The others (actors with threads or an event loop) leave as soon as their arguments are there.
* Nothing leaves before the actor is ALIVE. What is submitted while it restarts waits where the call may be tried
  again, and fails at once where it may not.
* When the actor's process ends, what was pushed to it and not answered is lost. The node passes on what was answered
  before it says so, but for long answers: of those it knows only that they are `coming`. They are waited for, LATE
  seconds.

Invariants (`check`): a call is in one line's `waiting` or in flight in one life; an ordered line that is ALIVE has no
ready call in front.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

from skate.core.actors import ALIVE, AWAITED, DEAD, RESTARTING, STATE_NAMES
from skate.core.dispatch import LATE, PushTasks
from skate.core.machine import Machine
from skate.core.tasks import DONE, PUSHED, QUEUED, OwnedTask
from skate.ids import ActorId, ProcessId

#: calls in flight of one line at most; the others wait here, where they cost the actor nothing
MAX_IN_FLIGHT: Final = 10_000


class WatchActor(NamedTuple):
    """Effect: ask the node how the actor stands, now and from now on."""

    line: ActorLine


class FailCalls(NamedTuple):
    """Effect: these calls never left, and never will. They are DONE: whatever becomes of their arguments meanwhile."""

    line: ActorLine
    calls: list[OwnedTask]


class LoseCalls(NamedTuple):
    """Effect: the actor's process ended with these calls in it: they are tried again (`calls_again`), or fail."""

    line: ActorLine
    calls: list[OwnedTask]
    worker: ProcessId


Effect = PushTasks | WatchActor | FailCalls | LoseCalls


class Life:
    """One process of an actor, and what was pushed to it. Stands in the place of a lease.

    (It does not know its line, which knows it: the two would be a cycle. A call does, as its `queue`.)
    """

    __slots__ = ("closed", "coming", "in_flight", "worker")

    def __init__(self, worker: ProcessId) -> None:
        self.worker = worker
        #: pushed and not answered, in the order in which they were
        self.in_flight: dict[bytes, OwnedTask] = {}
        #: those that were answered at length before the process ended
        self.coming: set[bytes] = set()
        self.closed = False

    def closes(self) -> None:
        """The process is dead, and its last answers come: nothing is pushed to it any more."""
        self.closed = True


class ActorLine:
    """The calls of this process to one actor."""

    __slots__ = (
        "__weakref__",
        "actor",
        "cause",
        "class_name",
        "counts",
        "life",
        "max_pending",
        "name",
        "ordered",
        "state",
        "waiting",
        "watched",
    )

    def __init__(self, actor: ActorId, *, ordered: bool, max_pending: int, counts: bool) -> None:
        self.actor = actor
        self.ordered = ordered
        #: calls that may be pending; -1: any number
        self.max_pending = max_pending
        #: the handle keeps the actor alive
        self.counts = counts
        self.state = AWAITED
        #: why its last process ended
        self.cause: dict[str, Any] | None = None
        self.life: Life | None = None
        #: calls that have not left, in the order of submission
        self.waiting: OrderedDict[bytes, OwnedTask] = OrderedDict()
        self.watched = False
        #: for errors: what the program calls the actor
        self.class_name = ""
        self.name = ""

    @property
    def pending(self) -> int:
        """Calls that are not done."""
        return len(self.waiting) + (0 if self.life is None else len(self.life.in_flight))

    def __repr__(self) -> str:
        return f"<ActorLine of {self.actor.hex()} {STATE_NAMES[self.state]} pending={self.pending}>"


class Calls(Machine):
    """The lines of one process. Every method is called under the runtime's lock."""

    def __init__(self, effects: list[Any] | None = None) -> None:
        super().__init__(effects)
        #: handles and pending calls keep their lines
        self.lines: WeakValueDictionary[ActorId, ActorLine] = WeakValueDictionary()
        #: (when to stop waiting, a life that has ended, whose answers may still come)
        self._late: deque[tuple[float, Life]] = deque()

    def line_of(
        self, actor: ActorId, *, ordered: bool = True, max_pending: int = -1, counts: bool = True
    ) -> ActorLine:
        """The line of an actor; made where it is new."""
        line = self.lines.get(actor)
        if line is None:
            line = self.lines[actor] = ActorLine(
                actor, ordered=ordered, max_pending=max_pending, counts=counts
            )
        return line

    def watch(self, line: ActorLine) -> None:
        """Somebody needs to know how the actor stands."""
        if not line.watched:
            line.watched = True
            self._effects.append(WatchActor(line))

    # ---------------------------------------------------------------------------------------------------- events

    def call_submitted(self, line: ActorLine, call: OwnedTask, ready: bool) -> Life | None:
        """A call has its place in the line; `ready`: its arguments are there.

        Gives the life that it is pushed to at once, as most are, else None: then what becomes of it is an effect.
        """
        if ready:
            life = line.life
            if life is not None and not (line.waiting or life.closed) and len(life.in_flight) < MAX_IN_FLIGHT:
                call.state = PUSHED
                call.lease = life
                life.in_flight[call.id] = call
                return life
            call.state = QUEUED
        if line.state == DEAD or (line.state == RESTARTING and call.retries_left == 0):
            self._fail(line, [call])
            return None
        line.waiting[call.id] = call
        if line.state == AWAITED:
            self.watch(line)
        elif ready:
            self._feed(line)
        return None

    def call_ready(self, line: ActorLine, call: OwnedTask) -> None:
        """The arguments of a call are there."""
        if call.id in line.waiting:
            call.state = QUEUED
            self._feed(line)

    def call_withdrawn(self, line: ActorLine, call: OwnedTask) -> bool:
        """An argument has failed: a call that has not left ends without being made. False if it has ended already."""
        if call.state == DONE:
            return False
        del line.waiting[call.id]
        call.state = DONE
        self._feed(line)
        return True

    def call_done(self, life: Life, call: OwnedTask) -> None:
        """The actor has answered."""
        del life.in_flight[call.id]
        call.lease = None
        call.state = DONE
        line: Any = call.queue
        if line.waiting and line.life is life:
            self._feed(line)

    def calls_again(self, line: ActorLine, calls: Sequence[OwnedTask]) -> None:
        """Lost calls are tried again, before all that wait."""
        for call in reversed(calls):
            call.state = QUEUED
            line.waiting[call.id] = call
            line.waiting.move_to_end(call.id, last=False)
        self._feed(line)

    def actor_state(
        self,
        actor: ActorId,
        state: int,
        worker: ProcessId | None,
        cause: dict[str, Any] | None,
        now: float,
    ) -> None:
        """The node says how the actor stands."""
        line = self.lines.get(actor)
        if line is None or line.state == DEAD:
            return
        ended = line.life
        if ended is not None and ended.worker != worker:
            line.life = None
            self._end(ended, now)
        line.state = state
        line.cause = cause
        if state == ALIVE and line.life is None:
            assert worker is not None
            line.life = Life(worker)
            self._feed(line)
        elif state == DEAD and line.waiting:
            calls = list(line.waiting.values())
            line.waiting.clear()
            self._fail(line, calls)

    def tick(self, now: float) -> None:
        """Time has passed: answers that have not come by now will not come."""
        while self._late and (self._late[0][0] <= now or not self._late[0][1].in_flight):
            _, life = self._late.popleft()
            self._lose(life, list(life.in_flight.values()))

    def next_tick(self) -> float | None:
        """When `tick` has something to do next; None: not before another event."""
        return self._late[0][0] if self._late else None

    # ---------------------------------------------------------------------------------------------------- rules

    def _feed(self, line: ActorLine) -> None:
        """Pushes what may leave."""
        life = line.life
        if life is None or life.closed:
            return
        batch: list[OwnedTask] | None = None
        waiting = line.waiting
        room = MAX_IN_FLIGHT - len(life.in_flight)
        if line.ordered:
            while waiting and room > 0:
                call = next(iter(waiting.values()))
                if call.state != QUEUED:
                    return
                del waiting[call.id]
                batch = self._push(life, call, batch)
                room -= 1
            return
        for call in [call for call in waiting.values() if call.state == QUEUED][: max(0, room)]:
            del waiting[call.id]
            batch = self._push(life, call, batch)

    def _push(self, life: Life, call: OwnedTask, batch: list[OwnedTask] | None) -> list[OwnedTask]:
        call.state = PUSHED
        call.lease = life
        life.in_flight[call.id] = call
        if batch is None:
            batch = []
            self._effects.append(PushTasks(life, batch))
        batch.append(call)
        return batch

    def _end(self, life: Life, now: float) -> None:
        """A process of the actor is gone."""
        calls = list(life.in_flight.values())
        life.in_flight = {call.id: call for call in calls if call.id in life.coming}
        self._lose(life, [call for call in calls if call.id not in life.coming])
        if life.in_flight:
            self._late.append((now + LATE, life))

    def _fail(self, line: ActorLine, calls: list[OwnedTask]) -> None:
        for call in calls:
            call.state = DONE
        self._effects.append(FailCalls(line, calls))

    def _lose(self, life: Life, calls: list[OwnedTask]) -> None:
        for call in calls:
            life.in_flight.pop(call.id, None)
            call.lease = None
        if calls:
            line: Any = calls[0].queue
            self._effects.append(LoseCalls(line, calls, life.worker))

    # --------------------------------------------------------------------------------------------------- checks

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        seen: set[bytes] = set()
        lives = [life for _, life in self._late]
        for line in self.lines.values():
            if line.life is not None:
                lives.append(line.life)
            if (line.life is not None) != (line.state == ALIVE):
                raise AssertionError(f"{line} has life {line.life}")
            for call in line.waiting.values():
                if call.state in (PUSHED, DONE) or call.lease is not None or call.id in seen:
                    raise AssertionError(f"{call} waits in {line}")
                seen.add(call.id)
            if line.ordered and line.life is not None and line.waiting:
                head = next(iter(line.waiting.values()))
                full = line.life.closed or len(line.life.in_flight) >= MAX_IN_FLIGHT
                if head.state == QUEUED and not full:
                    raise AssertionError(f"{head} is ready, and has not left {line}")
        for life in lives:
            for call in life.in_flight.values():
                if call.state != PUSHED or call.lease is not life or call.id in seen:
                    raise AssertionError(f"{call} is in flight to {life.worker.hex()}")
                seen.add(call.id)
