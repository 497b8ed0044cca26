"""Actors, on the side of those who make and call them.

State: the lines of calls (core.calls), and the actors that this process has made and whose constructors may still need
their arguments. A handle that counts holds a ref to the actor's *token*, an object of its maker whose value nobody
reads: so whatever keeps objects alive keeps actors alive, in any process. When the token is freed, the actor ends.

An actor stands in the directory of the node whose process made it, so its id says whom to ask. That of a head's node
may come back on another one; node managers know where that is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from skate._c import refs
from skate._c.clock import monotonic
from skate._c.refs import FAILED, INLINE, ObjectEntry, ObjectRef, Waiter, watch
from skate._c.steps import section
from skate.core.actors import ALIVE, DEAD, PENDING, RESTARTING, killed_by
from skate.core.calls import ActorLine, Calls, Effect, FailCalls, LoseCalls, WatchActor
from skate.core.tasks import Function, OwnedTask
from skate.ids import ActorId, NodeId, ProcessId, manager_of, node_of, object_id, owner_of
from skate.runtime.arguments import inlined, pack_arguments
from skate.runtime.deaths import error_of
from skate.runtime.objects import pack_failure
from skate.wire import checks
from skate.wire import messages as m

if TYPE_CHECKING:
    from skate.runtime.runtime import Runtime

#: seconds for which an actor's maker may think about whether anybody holds a handle
ANSWER_SECONDS: Final = 5.0
#: actors that were killed from here and are remembered, for as long as their nodes may have yet to tell the head
KILLED_REMEMBERED: Final = 1_000


def token_of(actor: ActorId) -> bytes:
    """The id of the object that stands for the actor."""
    return object_id(actor, 0)


class Made:
    """An actor that this process has made, until its constructor needs its arguments no more."""

    __slots__ = ("dependencies", "line", "nested", "released", "spec", "waiter")

    def __init__(
        self,
        line: ActorLine,
        spec: dict[str, Any],
        dependencies: list[ObjectEntry] | None,
        nested: Sequence[ObjectEntry],
    ) -> None:
        self.line = line
        self.spec = spec
        self.dependencies = dependencies
        self.nested = nested
        #: what waits for the dependencies; None where they were there
        self.waiter: Waiter | None = None
        #: nobody holds a handle any more. Even so the constructor runs, once
        self.released = False


class New(NamedTuple):
    """An actor that is being made. The ref, to its token, is the first handle's."""

    made: Made
    ref: ObjectRef


class Claim:
    """The question to the node for an actor with a name.

    The actor is made with it, before anybody can find it by that name, ask for its token, and end it.
    """

    def __init__(
        self, new: Callable[[], New], name: str, namespace: str, detached: bool, about: Any, ending: bytes
    ) -> None:
        self._new = new
        self._fields = name, namespace, detached, (detached, about), ending
        self.new: New | None = None

    def __call__(self, token: int) -> m.RegisterActor:
        """Under the lock."""
        self.new = self._new()
        return m.RegisterActor(token, self.new.made.line.actor, *self._fields)


class Actors:
    """The actors that this process has made or calls."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._references = runtime.references
        self.calls = Calls(runtime.effects)
        self._made: dict[ActorId, Made] = {}
        #: nodes of heads that are dead, and whose directory is with another one, or will be
        self._heads: set[NodeId] = set()
        self._head_is_away = False
        #: actors that were killed from here, lately
        self._killed: dict[ActorId, None] = {}
        #: makers that have a question for a token to answer that was given up
        self._behind: set[ProcessId] = set()
        runtime.handle(m.HeadBack, self._head_back)
        runtime.handle(m.ActorState, self._state)
        runtime.handle(m.ActorMade, self._constructed)

    # ---------------------------------------------------------------------------------------------------- making

    def make(
        self,
        cls: Function,
        spec: dict[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        about: Any,
        name: str,
        namespace: str,
        detached: bool,
        ordered: bool,
        max_pending: int,
    ) -> tuple[ActorId, ObjectRef | None, Any]:
        """Has the node make an actor: (actor id, ref to its token, about). Blocks for an answer where it has a name.

        `spec` says how it runs (api.actor_class makes it), `about` what handles need. Where an actor of that name is
        there already: (its id, None, its `about`). Raises SerializationError.
        """
        runtime = self._runtime
        packed, dependencies, nested, _made = pack_arguments(runtime.objects, cls.name, args, kwargs)
        spec = spec | {"class": cls.id, "pickled": cls.pickled, "args": packed, "depth": runtime.depth}

        def make() -> New:
            return self._new(spec, dependencies, nested, ordered=ordered, max_pending=max_pending)

        new: New | None = None
        if name:
            new, other = self._claim(make, name, namespace, detached, about)
            if new is None:
                return other[0], None, other[1]
        with runtime.step:
            if new is None:
                new = make()
                actor = new.made.line.actor
                runtime.post(runtime.node, m.RegisterActor(0, actor, "", namespace, detached, None, b""))
            actor = new.made.line.actor
            if dependencies:
                new.made.waiter = runtime.objects.when_ready(
                    dependencies, partial(self._arguments_ready, actor)
                )
            if new.made.waiter is None:
                self._arguments_ready(actor)
        return actor, new.ref, about

    def _new(
        self,
        spec: dict[str, Any],
        dependencies: list[ObjectEntry] | None,
        nested: Sequence[ObjectEntry],
        *,
        ordered: bool,
        max_pending: int,
    ) -> New:
        """A new actor. Under the lock: the node relies on it that ids of actors come in order."""
        actor = ActorId(self._runtime.next_task_id())
        token = self._references.create(token_of(actor))
        token.state = INLINE
        token.value = b""
        token.contents = []  # so that its end is not this process's private matter
        line = self.calls.line_of(actor, ordered=ordered, max_pending=max_pending)
        line.state = PENDING
        line.watched = True
        made = self._made[actor] = Made(line, spec, dependencies, nested)
        self._runtime.objects.when_freed[token.id] = partial(self._released, actor)
        self._references.pin([*nested, *(dependencies or ())])
        return New(made, ObjectRef(token))

    def _claim(
        self, make: Callable[[], New], name: str, namespace: str, detached: bool, about: Any
    ) -> tuple[New | None, Any]:
        """(a new actor that has the name, None), or (None, (id, about) of the one that has it). Blocks."""
        ending = b""
        while True:
            claim = Claim(make, name, namespace, detached, about, ending)
            answer: Any = False
            with section:
                try:
                    answer = self._runtime.ask(claim)
                finally:
                    if answer is False and claim.new is not None:
                        self.kill(claim.new.made.line.actor, True)  # nobody waits for the answer any more
                    if answer is not None and claim.new is not None:
                        self._give_up(claim.new.made)  # for that reason, or because the name is another's
            if answer is None:
                return claim.new, None
            holder, (holder_is_detached, holder_about) = ActorId(answer[0]), answer[1]
            if not self._is_ending(holder, holder_is_detached):
                return None, (holder, holder_about)
            ending = holder

    def _give_up(self, made: Made) -> None:
        """There will be no such actor."""
        with self._runtime.lock:
            self._forget(made)
            self._runtime.act()

    def _arguments_ready(self, actor: ActorId, _: Any = None) -> None:
        made = self._made.get(actor)
        if made is None:
            return  # it was killed before it began
        post, node = self._runtime.post, self._runtime.node
        dependencies = made.dependencies
        for entry in dependencies or ():
            if entry.state == FAILED:
                self._add_contents(actor, self._references.contents_of(entry))
                post(node, m.MakeActor(actor, None, entry.value or b""))
                return
        values = inlined(dependencies) if dependencies else None
        post(node, m.MakeActor(actor, made.spec | {"dependencies": values}, b""))

    def _add_contents(self, actor: ActorId, contents: Any) -> None:
        """The refs inside what the actor failed with live by its token: so whoever may fail with that has them."""
        token = self._references.entries.get(token_of(actor))
        if token is not None and token.contents is not None and contents:
            token.contents += self._references.hold_contents(contents)
        elif contents:
            self._references.refuse_contents(contents)

    def _constructed(self, worker: ProcessId, actor: ActorId, kept: Any, contents: Any) -> None:
        """The constructor has read its arguments."""
        if kept:
            self._references.on_kept(checks.refs(kept), worker)
        if contents:
            self._add_contents(actor, checks.refs(contents))
        made = self._made.get(actor)
        if made is not None and not made.spec["max_restarts"]:
            self._let_go_of_arguments(made)

    def _forget(self, made: Made) -> None:
        """The constructor does not run any more, or nobody cares whether it does."""
        self._let_go_of_arguments(made)
        del self._made[made.line.actor]

    def _let_go_of_arguments(self, made: Made) -> None:
        if made.dependencies:
            if made.waiter is not None and not made.waiter.done:  # it was killed before it began
                refs.unwatch(made.dependencies, made.waiter)
            self._references.unpin(made.dependencies)
        if made.nested:
            self._references.unpin(made.nested)
        made.dependencies, made.nested = None, ()

    def _released(self, actor: ActorId) -> None:
        """The token is freed: nobody holds a handle, nothing is pending. Under the lock."""
        made = self._made.get(actor)
        if made is not None:
            made.released = True
            if made.line.state == ALIVE:
                self._forget(made)
        self._runtime.post(self._runtime.node, m.ReleaseActor(actor))

    # -------------------------------------------------------------------------------------------------- the node

    def _state(self, _: ProcessId, actor: ActorId, state: int, worker: Any, cause: Any) -> None:
        line = self.calls.lines.get(actor)
        life = line.life if line is not None else None
        self.calls.actor_state(actor, state, worker, cause, monotonic())
        if life is not None and life.worker != worker and self._references.has_died(life.worker):
            # What was posted since its death was heard of. Else it lives for a moment longer, and writes to its lane.
            self._runtime.mailbox.forget(life.worker)
        made = self._made.get(actor)
        if made is None:
            return
        if state == DEAD and cause and cause.get("kind") == "init":
            self._keep_arguments(made)
        if state == DEAD or (state == ALIVE and made.released):
            self._forget(made)

    def _keep_arguments(self, made: Made) -> None:
        """The constructor's error may hold refs from its arguments: these live by the token, too.

        (ActorMade, which says what is inside, comes from another process than the error, and may come after it.)
        """
        token = self._references.entries.get(token_of(made.line.actor))
        if token is not None and token.contents is not None:
            arguments = [*made.nested, *(made.dependencies or ())]
            self._references.pin(arguments)
            token.contents += arguments

    def node_died(self, node: NodeId, cause: str, now: float) -> None:
        """A node is gone, and with it the directory of the actors that its processes have made. Under the lock.

        The directory of a head may come back, with the actors that are detached.
        """
        report = json.loads(cause)
        text = f"The node that it was made on, {node.hex()}, is dead: {report.get('node_died', '')}."
        if "heads" in report:
            self._heads |= {NodeId(bytes.fromhex(head)) for head in report["heads"]}
            self._head_is_away = True
        for line in list(self.calls.lines.values()):
            if node_of(line.actor) == node and (line.counts or node not in self._heads):
                self.calls.actor_state(line.actor, DEAD, None, {"kind": "owner", "text": text}, now)

    def process_died(self, who: ProcessId | NodeId, now: float) -> None:
        """A process is gone, or a node. While there is no head, its directory does not say so. Under the lock."""
        self._behind = {maker for maker in self._behind if not maker.startswith(who)}
        if self._head_is_away:
            text = "Its process ended, and the head of the cluster, which would start it again, is away."
            for line in list(self.calls.lines.values()):
                if (
                    line.life is not None
                    and line.life.worker.startswith(who)
                    and node_of(line.actor) in self._heads
                ):
                    self.calls.actor_state(line.actor, RESTARTING, None, {"text": text}, now)

    def _head_back(self, _: ProcessId, former: Any) -> None:
        """A head has come: it knows of the detached actors of those that it follows; of others nobody does."""
        gone, self._heads, self._head_is_away = self._heads.difference(former), set(former), False
        for line in list(self.calls.lines.values()):
            if line.state == DEAD:
                continue
            if node_of(line.actor) in gone:
                cause = {
                    "kind": "owner",
                    "text": "The head of the cluster, in whose directory it stood, is gone.",
                }
                self.calls.actor_state(line.actor, DEAD, None, cause, monotonic())
            elif line.watched and node_of(line.actor) in self._heads:
                self._runtime.post(manager_of(line.actor), m.WatchActor(line.actor))

    def find(self, name: str, namespace: str) -> tuple[ActorId, Any] | None:
        """(actor id, about) of the actor that has the name, and is not bound to end. Blocks until that is known."""
        found = self._runtime.ask(lambda token: m.FindActor(token, name, namespace))
        if found is None:
            return None
        actor, (detached, about) = ActorId(found[0]), found[1]
        return None if self._is_ending(actor, detached) else (actor, about)

    def _is_ending(self, actor: ActorId, detached: bool) -> bool:
        """Whether an actor that still has its name is bound to end. Blocks until its maker answers, or is dead.

        Names are with the head, and who holds a handle is known to the actor's maker, by the token. What is said here
        reaches the maker before the question: so a handle that was dropped here before does not count any more. A maker
        that does not answer within ANSWER_SECONDS may have been stopped: then the name alone counts. When it goes on,
        its answer must not be taken for one to a later question.
        """
        runtime = self._runtime
        waiter = Waiter()
        maker, deadline = owner_of(actor), monotonic() + ANSWER_SECONDS
        if maker in self._behind:
            if not runtime.objects.hear_answers(maker, deadline):
                return False
            self._behind.discard(maker)
        with runtime.lock:
            line = self.calls.lines.get(actor)
            if actor in self._killed or (line is not None and line.state == DEAD):
                return True  # its own node may have yet to tell the head
            if detached:
                return False
            token = token_of(actor)
            if owner_of(actor) == runtime.me:
                return token not in self._references.entries
            ref = ObjectRef(self._references.borrowed(token))
            pending = watch([ref], waiter, 1)
            runtime.objects.ask_owners(pending)
            runtime.mailbox.flush()
        try:
            runtime.pump.wait(waiter, runtime.lock, deadline)
        finally:
            if not waiter.done:
                with runtime.lock:
                    refs.unwatch(pending, waiter)
                    self._behind.add(maker)
        if runtime.broken is not None:
            raise runtime.why_broken()
        return bool(ref.entry.state == FAILED)

    def kill(self, actor: ActorId, no_restart: bool) -> None:
        """Has the node kill the actor's process. Does not block."""
        runtime = self._runtime
        by = f"process {runtime.me.hex()}"
        now = monotonic()
        with runtime.lock:
            runtime.post(manager_of(actor), m.KillActor(actor, no_restart, by))
            if no_restart:  # no call from here may overtake it, nor a question for its name
                self._remember_killed(actor)
                self.calls.actor_state(actor, DEAD, None, killed_by(by), now)
                runtime.act()
            runtime.mailbox.flush()

    def _remember_killed(self, actor: ActorId) -> None:
        self._killed[actor] = None
        if len(self._killed) > KILLED_REMEMBERED:
            del self._killed[next(iter(self._killed))]

    # -------------------------------------------------------------------------------------------------- decisions

    def carry_out(self, effect: Effect) -> None:
        """Does what the calls' machine decided. Under the lock."""
        submission = self._runtime.submission
        if type(effect) is WatchActor:
            line = effect.line
            self._runtime.post(manager_of(line.actor), m.WatchActor(line.actor))
        elif type(effect) is FailCalls:
            self._fail(effect.line, effect.calls)
        else:
            assert type(effect) is LoseCalls
            again: list[OwnedTask] = []
            failed: list[OwnedTask] = []
            for call in effect.calls:
                keep = effect.line.state != DEAD and call.may_retry()
                (again if keep else failed).append(call)
                submission.free_results(call, effect.worker)
            self._fail(effect.line, failed)
            if again:
                self.calls.calls_again(effect.line, again)

    def _fail(self, line: ActorLine, calls: list[OwnedTask]) -> None:
        if not calls:
            return
        token = self._references.entries.get(token_of(line.actor))
        before = refs.unpickling_under(None if token is None or token.owned else token)
        try:
            _, error, inside = pack_failure(error_of(line))
        finally:
            refs.unpickling_under(before)
        contents: list[tuple[bytes, bytes]] = [(ref.entry.id, b"") for ref in inside]
        for call in calls:
            self._runtime.submission.finish(call, error, contents)
