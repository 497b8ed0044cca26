"""`ActorPool`: a number of actors that share out a number of calls.

State: the actors that have nothing to do; the submissions whose results are still to be fetched, oldest first, each
queued, running, or done; and calls whose results nobody wants any more, but whose actors are busy with them.

Invariants: an actor has one call at a time. Nothing is queued while an actor is idle. An actor is idle again when its
result is fetched; but where submissions are queued while somebody waits for results, it takes the next at once.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from skate._c.clock import monotonic
from skate._c.refs import FAILED, ObjectRef
from skate.api.actor_class import ActorClass
from skate.api.actor_handle import ActorHandle
from skate.api.objects import get, wait
from skate.exceptions import ActorDiedError, TaskError
from skate.util.checks import check_timeout

__all__ = ["ActorPool"]

#: calls an actor: (actor, value) -> the ref of its result, or a list of refs
Start = Callable[[Any, Any], Any]


class _Submission:
    """A call: queued until it has an actor, running until its refs are done."""

    __slots__ = ("actor", "dropped", "error", "fn", "refs", "single", "value")

    def __init__(self, fn: Start, value: Any) -> None:
        self.fn: Start | None = fn
        self.value = value
        #: whom it keeps busy
        self.actor: Any = None
        self.refs: list[ObjectRef] = []
        self.single = True
        #: what `fn` raised when its turn came
        self.error: Exception | None = None
        #: nobody will fetch its result
        self.dropped = False

    def start(self, actor: Any) -> None:
        """Calls the actor. Raises what `fn` raises, and TypeError where it gives no ref."""
        fn, self.fn = self.fn, None
        value, self.value = self.value, None
        assert fn is not None
        result = fn(actor, value)
        self.single = not isinstance(result, list)
        refs = [result] if self.single else result
        if not refs or not all(type(ref) is ObjectRef for ref in refs):
            raise TypeError(
                "ActorPool: fn(actor, value) must return what actor.method.remote(...) returns, an ObjectRef or a "
                f"list of them; it returned {result!r:.100}"
            )
        self.actor = actor
        self.refs = refs

    @property
    def queued(self) -> bool:
        return self.fn is not None

    @property
    def done(self) -> bool:
        return not self.queued and self.undone() is None

    def undone(self) -> ObjectRef | None:
        """One of its refs that has no value yet, as far as this process knows."""
        return next((ref for ref in self.refs if not ref.done()), None)

    @property
    def died_of_its_actor(self) -> bool:
        """Whether the actor that was called is dead. (It may also have failed because another one is.)"""
        errors = [ref.exception() for ref in self.refs if ref.entry.state == FAILED]
        return any(isinstance(error, ActorDiedError) and not isinstance(error, TaskError) for error in errors)


class ActorPool:
    """Shares calls out among `actors`, one at a time to each: ActorPool([A.remote(), A.remote()]).

    Where `fn` is asked for, it is a function (actor, value) that calls the actor and returns the ref, such as
    `lambda actor, value: actor.work.remote(value)`. An actor that dies leaves the pool. For one thread.
    """

    def __init__(self, actors: Iterable[Any]) -> None:
        if isinstance(actors, ActorHandle):
            raise TypeError("ActorPool() takes a list of actors, got a single one: write ActorPool([actor])")
        #: who has been so for longest comes first
        self._idle = list(actors)
        for index, actor in enumerate(self._idle):
            _check_actor(f"ActorPool(): item {index}", actor)
        #: by number, in the order submitted: what is to be fetched
        self._submissions: OrderedDict[int, _Submission] = OrderedDict()
        self._submitted = 0
        self._pending_submits: deque[_Submission] = deque()
        #: running, each with an actor of its own
        self._running: list[_Submission] = []
        #: counts the calls of `map`, each of which drops what was submitted before
        self._epoch = 0

    # ------------------------------------------------------------------------------------------------------ map

    def map(self, fn: Start, values: Iterable[Any]) -> Iterator[Any]:
        """Submits a call for each value, and gives an iterator of the results in the order of the values.

        What was submitted before and not fetched is dropped. `next()` blocks, and raises what a call raised.
        """
        return self._results(self._submit_all(fn, values), self.get_next)

    def map_unordered(self, fn: Start, values: Iterable[Any]) -> Iterator[Any]:
        """As `map`; results come as they are there."""
        return self._results(self._submit_all(fn, values), self.get_next_unordered)

    def _submit_all(self, fn: Start, values: Iterable[Any]) -> int:
        values = iter(values)
        self._drop_all()
        self._epoch += 1
        for value in values:
            self.submit(fn, value)
        return self._epoch

    def _results(self, epoch: int, fetch: Callable[[], Any]) -> Iterator[Any]:
        while epoch == self._epoch and self.has_next():
            yield fetch()
        if epoch != self._epoch:
            raise RuntimeError(
                "the rest of these results was dropped: map() or map_unordered() was called again on their ActorPool. "
                "Fetch all of one before the next, or use two pools."
            )

    # ----------------------------------------------------------------------------------------------- one by one

    def submit(self, fn: Start, value: Any) -> None:
        """Calls `fn(actor, value)` with an idle actor, or else as soon as one is. Does not block.

        Fetch the result with get_next() or get_next_unordered(). Raises what `fn` raises, where it is called now.
        """
        if not callable(fn):
            raise TypeError(f"ActorPool: fn must be a function (actor, value) -> ref, got {fn!r:.100}")
        submission = _Submission(fn, value)
        self._release_dropped()
        if self._idle:
            self._start(submission)
        else:
            self._pending_submits.append(submission)
        self._submissions[self._submitted] = submission
        self._submitted += 1

    def has_next(self) -> bool:
        """Whether there are results to fetch, now or later."""
        return bool(self._submissions)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The result of the oldest submission that was not fetched. Blocks; raises what the call raised.

        After `timeout` seconds it raises TimeoutError, and can be asked again; with `ignore_if_timedout`, that
        submission is dropped. (Its actor is free again when it is done with it.) Raises StopIteration where there is
        nothing to fetch, RuntimeError where there is no actor left to do the work.
        """
        self._check_next()
        number, oldest = next(iter(self._submissions.items()))
        deadline = _deadline("get_next", timeout)
        self._release_done()
        while not oldest.done:
            # While others are queued, any actor that gets done matters, not only this one's.
            if not self._wait(self._running if self._pending_submits else [oldest], deadline):
                raise self._timed_out(timeout, number if ignore_if_timedout else None)
        return self._fetch(number)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The result of any submission; of one that is done, if there is one. Otherwise as `get_next`."""
        self._check_next()
        deadline = _deadline("get_next_unordered", timeout)
        self._release_done()
        while (number := self._any_done()) is None:
            watched = [each for each in self._running if self._pending_submits or not each.dropped]
            if not self._wait(watched, deadline):
                oldest = next(iter(self._submissions))
                raise self._timed_out(timeout, oldest if ignore_if_timedout else None)
        return self._fetch(number)

    # --------------------------------------------------------------------------------------------------- actors

    def has_free(self) -> bool:
        """Whether an actor is idle, so that a call submitted now starts now."""
        self._release_dropped()
        return bool(self._idle)

    def pop_idle(self) -> Any:
        """Takes an idle actor out of the pool; None where none is idle."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: Any) -> None:
        """Adds an actor, idle. Raises ValueError for one that is in the pool, TypeError for what is no actor."""
        _check_actor("push()", actor)
        if actor in self._idle or any(actor == running.actor for running in self._running):
            raise ValueError(f"push(): {actor!r} is in this ActorPool already")
        self._idle.append(actor)
        self._start_queued()

    # ---------------------------------------------------------------------------------------------------- steps

    def _check_next(self) -> None:
        if not self._submissions:
            raise StopIteration("No more results to get: all that was submitted was fetched")

    def _any_done(self) -> int | None:
        """The oldest submission that is done."""
        for number, submission in self._submissions.items():
            if submission.queued:
                return None  # and so are those behind it
            if submission.done:
                return number
        return None

    def _wait(self, watched: list[_Submission], deadline: float | None) -> bool:
        """Blocks until one of the running calls `watched` is done, or the deadline has come: then False."""
        refs = [ref for each in watched if (ref := each.undone()) is not None]
        if not watched:
            raise RuntimeError(
                f"the ActorPool has no actors left, and {len(self._pending_submits)} submissions wait for one: its "
                "actors have died, or were taken out with pop_idle(). Add one with push()."
            )
        left = None if deadline is None else max(0.0, deadline - monotonic())
        ready = not refs or wait(list(dict.fromkeys(refs)), timeout=left)[0]
        self._release_done()
        return bool(ready)

    def _fetch(self, number: int) -> Any:
        submission = self._submissions.pop(number)
        if submission.actor is not None:
            self._release(submission)
        if submission.error is not None:
            raise submission.error
        values = get(submission.refs)
        return values[0] if submission.single else values

    def _start(self, submission: _Submission) -> None:
        actor = self._idle.pop(0)  # in turn: one that fails at once does not take every call
        try:
            submission.start(actor)
        except BaseException:
            self._idle.append(actor)
            raise
        self._running.append(submission)

    def _start_queued(self) -> None:
        while self._pending_submits and self._idle:
            submission = self._pending_submits.popleft()
            try:
                self._start(submission)
            except Exception as error:  # whoever fetches this result hears of it
                submission.error = error

    def _release(self, submission: _Submission) -> None:
        """The actor of a call that is done is idle again, unless it has died; it takes what is queued."""
        self._running.remove(submission)
        actor, submission.actor = submission.actor, None
        if not submission.died_of_its_actor:
            self._idle.append(actor)
        self._start_queued()

    def _release_dropped(self) -> None:
        """Actors that are done with dropped calls are idle again."""
        for submission in [each for each in self._running if each.dropped and each.done]:
            self._release(submission)

    def _release_done(self) -> None:
        """Where calls are queued, actors that are done take them, also those whose results were not fetched."""
        self._release_dropped()
        for submission in [each for each in self._running if each.done] if self._pending_submits else ():
            if self._pending_submits:
                self._release(submission)

    def _drop(self, number: int) -> None:
        """Nobody wants this result any more. Where its call runs, the actor is busy until it is done."""
        submission = self._submissions.pop(number)
        submission.dropped = True
        if submission.queued:
            self._pending_submits.remove(submission)

    def _drop_all(self) -> None:
        for number in list(self._submissions):
            self._drop(number)

    def _timed_out(self, timeout: float | None, dropped: int | None) -> TimeoutError:
        text = f"no result of the ActorPool within {timeout} s"
        if dropped is None:
            return TimeoutError(f"{text}; it can be asked for again")
        self._drop(dropped)
        return TimeoutError(f"{text}; the submission was dropped, as ignore_if_timedout says")


def _deadline(function: str, timeout: float | None) -> float | None:
    check_timeout(function, timeout)
    return None if timeout is None else monotonic() + timeout


def _check_actor(what: str, actor: Any) -> None:
    if not isinstance(actor, ActorHandle):
        hint = " Make an actor of the class with .remote()." if isinstance(actor, (ActorClass, type)) else ""
        raise TypeError(f"{what} must be the handle of an actor, got {actor!r:.100}.{hint}")
