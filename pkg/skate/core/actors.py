"""The actors of a node: where each one lives, who watches it, whether it starts again, and until when it has its name.

Pure. State: an Actor for each that lives, is about to, or is dead and still held; the newest of each owner; why the
last ones died. Events are the methods below; effects come out through `take_effects`. Its life:

    AWAITED -> PENDING -> ALIVE -> DEAD
                  ^         |
                  '- RESTARTING   its process ended, and it may start again

AWAITED is an actor that somebody asks about before its owner's registration has come. PENDING and RESTARTING have no
worker while they wait for resources, and one while its constructor runs.

Rules:

* An actor ends with its owner, or when its owner says that nobody holds a handle any more, but not before its
  constructor has run, or failed, once; a detached one does not.
* A process that ends uses up one restart, also when it was killed with `no_restart=False`; not when the actor left on
  purpose, nor once nobody holds a handle. A constructor that raises is not tried again.
* An actor gives its name up as soon as it is bound to end, before its process has ended. (Who has a name is decided by
  core.names.)
* The ids of one owner come in order. So what is not known here and is no newer than its owner's newest, or has a dead
  owner, is dead; nothing need be remembered of it.

Invariants (`check`): who has a name is not bound to end; a worker houses one actor; an actor that is ALIVE has a
worker; a DEAD one has no watchers, for they were told, and is still held; no actor is newer than its owner's newest,
unless it is AWAITED.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from skate.core.machine import Machine
from skate.ids import ActorId, ProcessId, owner_of

AWAITED: Final = 0
PENDING: Final = 1
ALIVE: Final = 2
RESTARTING: Final = 3
DEAD: Final = 4
STATE_NAMES: Final = ("AWAITED", "PENDING_CREATION", "ALIVE", "RESTARTING", "DEAD")

#: dead actors of which it is remembered why they died, for handles that do not count
CAUSES_REMEMBERED: Final = 1_000


class Place(NamedTuple):
    """Effect: find a worker for the actor; `placed` or `unplaceable` follows."""

    actor: Actor


class Unplace(NamedTuple):
    """Effect: what the actor holds, and its process if it has one, is not needed any more."""

    actor: Actor


class Become(NamedTuple):
    """Effect: the actor's worker runs its constructor; `started` or `start_failed` follows."""

    actor: Actor


class EndGently(NamedTuple):
    """Effect: the actor's process finishes what it was asked, and ends."""

    actor: Actor


class KillProcess(NamedTuple):
    """Effect: the process ends at once."""

    worker: ProcessId
    why: str


class Tell(NamedTuple):
    """Effect: tell these processes how the actor stands."""

    actor: Actor
    watchers: tuple[ProcessId, ...]


class FreeName(NamedTuple):
    """Effect: the actor is dead, or bound to end: its name is free."""

    actor: Actor


class Keep(NamedTuple):
    """Effect: something has changed that is to be known of a detached actor when the node's directory comes back."""

    actor: Actor


Effect = Place | Unplace | Become | EndGently | KillProcess | Tell | FreeName | Keep
#: why an actor has ended that nobody held
_RELEASED: Final = {"kind": "released", "text": "It ended because nobody held a handle of it any more."}
_OF_THE_LIVING: Final = (Place, Become, EndGently)


def killed_by(by: str) -> dict[str, Any]:
    """The cause of an actor's death by `kill`."""
    return {"kind": "killed", "text": f"It was killed by skate.kill(), called in {by}."}


class Actor:
    """What the node knows of one actor."""

    __slots__ = (
        "about",
        "cause",
        "detached",
        "ending",
        "id",
        "name",
        "namespace",
        "owner",
        "released",
        "restarts",
        "restarts_left",
        "spec",
        "state",
        "watchers",
        "worker",
    )

    def __init__(self, actor_id: ActorId) -> None:
        self.id = actor_id
        self.owner = owner_of(actor_id)
        self.state = AWAITED
        self.name = ""
        self.namespace = ""
        self.detached = False
        #: nobody holds a handle any more, nor ever will
        self.released = False
        #: what a handle made from the name needs; opaque here
        self.about: Any = None
        #: how to make it; opaque here. None until its constructor's arguments are there
        self.spec: Any = None
        self.worker: ProcessId | None = None
        self.restarts = 0
        self.restarts_left = 0
        self.watchers: set[ProcessId] = set()
        #: why its process is about to end, where that is known: {"kind": …, "text": …}
        self.ending: dict[str, Any] | None = None
        #: why its last process ended
        self.cause: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<Actor {self.id.hex()} {STATE_NAMES[self.state]} {self.name}>"


class ActorDirectory(Machine):
    """All actors of a node."""

    def __init__(self) -> None:
        super().__init__()
        self.actors: dict[ActorId, Actor] = {}
        #: those that have a name, and are not bound to end
        self.named: dict[ActorId, Actor] = {}
        self._workers: dict[ProcessId, Actor] = {}
        #: owner -> its actors, in the order in which they were named first
        self._owned: dict[ProcessId, dict[ActorId, Actor]] = {}
        #: owner, while it lives -> the newest of its actors
        self._newest: dict[ProcessId, ActorId] = {}
        #: process -> the actors that it watches
        self._watched: dict[ProcessId, dict[ActorId, Actor]] = {}
        #: why the last ones died that are not among `actors` any more
        self._causes: dict[ActorId, dict[str, Any]] = {}

    def expected(self, actor_id: ActorId) -> None:
        """Its owner asks for an actor, and it is not sure yet that there will be one: its name may be taken.

        `registered` or `refused` follows, unless the owner ends first.
        """
        owner = owner_of(actor_id)
        self._newest[owner] = max(actor_id, self._newest.get(owner, actor_id))
        self._actor(actor_id)

    def refused(self, actor_id: ActorId) -> None:
        """There will be no such actor."""
        actor = self.actors.get(actor_id)
        if actor is not None:
            actor.released = True
            self._die(actor, {"kind": "unknown", "text": "It was never made: its name was taken."})

    def registered(self, actor_id: ActorId, name: str, namespace: str, detached: bool, about: Any) -> None:
        """A new actor; where it has a name, that is its own."""
        self.expected(actor_id)
        actor = self.actors[actor_id]
        if actor.state not in (AWAITED, DEAD):
            return  # it was said before
        self._add_watcher(actor, actor.owner)
        actor.name, actor.namespace, actor.detached, actor.about = name, namespace, detached, about
        if name:
            self.named[actor_id] = actor
        if actor.state == DEAD:  # it was killed by somebody whose word was faster
            assert actor.cause is not None
            self._die(actor, actor.cause)
            return
        actor.state = PENDING
        self._keep(actor)

    def described(self, actor_id: ActorId, spec: Any, max_restarts: int) -> None:
        """The constructor's arguments are there: the actor may be made."""
        actor = self.actors.get(actor_id)
        if actor is None or actor.state != PENDING or actor.spec is not None:
            return  # it was killed meanwhile
        actor.spec = spec
        actor.restarts_left = max_restarts
        self._keep(actor)
        self._effects.append(Place(actor))

    def undescribable(self, actor_id: ActorId, error: bytes) -> None:
        """An argument of the constructor has failed."""
        actor = self.actors.get(actor_id)
        if actor is not None and actor.state == PENDING:
            self._die(actor, {"kind": "init", "error": error})

    def released(self, actor_id: ActorId) -> None:
        """Nobody holds a handle any more. What it was asked before is done already: pending calls count as handles."""
        actor = self.actors.get(actor_id)
        if actor is None or actor.detached or actor.released:
            return
        actor.released = True
        if actor.state == DEAD:
            self._forget(actor)
            return
        if actor.state in (PENDING, ALIVE):
            self._free_name(actor)
            self._end_if_released(actor)
        else:
            self._die(actor, _RELEASED)

    # ------------------------------------------------------------------------------------------- a head comes back

    def recovered(
        self,
        actor_id: ActorId,
        name: str,
        namespace: str,
        about: Any,
        spec: Any,
        state: int,
        restarts: int,
        restarts_left: int,
        worker: ProcessId | None,
    ) -> None:
        """A detached actor as it stood when the last head died. `placed`, `process_left` or `resumed` follows."""
        actor = self._actor(actor_id)
        actor.detached = True
        actor.name, actor.namespace, actor.about, actor.spec = name, namespace, about, spec
        actor.state, actor.restarts, actor.restarts_left = state, restarts, restarts_left
        actor.worker = worker
        if name:
            self.named[actor_id] = actor
        if worker is not None:
            self._workers[worker] = actor

    def unrecoverable(self, actor_id: ActorId, why: str) -> None:
        """A detached actor of the last head that cannot be made any more."""
        self._remember(actor_id, {"kind": "crash", "text": why})

    def confirmed(self, actor_id: ActorId) -> None:
        """The actor's worker is there: it is told again what it is, in case it never was."""
        actor = self.actors.get(actor_id)
        if actor is not None and actor.worker is not None:
            self._effects.append(Become(actor))

    def resumed(self, actor_id: ActorId) -> None:
        """It had no worker when the last head died, and none turned up that it was given since."""
        actor = self.actors.get(actor_id)
        if actor is not None and actor.state in (PENDING, RESTARTING) and actor.worker is None:
            self._effects.append(Place(actor))

    # ----------------------------------------------------------------------------------------- what anybody says

    def watched(self, actor_id: ActorId, process: ProcessId, *, owner_lives: bool) -> None:
        """A process wants to know how the actor stands, now and from now on."""
        actor = self._find(actor_id, owner_lives=owner_lives)
        if actor is None:
            actor = Actor(actor_id)
            actor.state = DEAD
            actor.cause = self._causes.get(actor_id) or {
                "kind": "unknown",
                "text": "The process that made it is gone, or it ended long ago.",
            }
        elif actor.state != DEAD:
            self._add_watcher(actor, process)
        self._effects.append(Tell(actor, (process,)))

    def killed(self, actor_id: ActorId, no_restart: bool, by: str, *, owner_lives: bool) -> None:
        """`kill` was called."""
        actor = self._find(actor_id, owner_lives=owner_lives)
        if actor is None or actor.state == DEAD:
            return
        cause = killed_by(by)
        if no_restart:
            self._die(actor, cause)
        elif actor.worker is not None:
            actor.ending = cause
            self._effects.append(KillProcess(actor.worker, cause["text"]))

    # ----------------------------------------------------------------------------------------- what processes do

    def placed(self, actor_id: ActorId, worker: ProcessId) -> None:
        """The actor has a worker."""
        actor = self.actors.get(actor_id)
        if actor is None or actor.state not in (PENDING, RESTARTING) or actor.worker is not None:
            self._effects.append(KillProcess(worker, "its actor is not wanted any more"))
            return
        actor.worker = worker
        self._workers[worker] = actor
        self._keep(actor)
        self._effects.append(Become(actor))

    def unplaceable(self, actor_id: ActorId, why: str, kind: str = "crash") -> None:
        """No worker for the actor can be started; or ("unschedulable") there is no node on which it may be."""
        actor = self.actors.get(actor_id)
        if actor is not None and actor.state in (PENDING, RESTARTING):
            self._die(actor, {"kind": kind, "text": why})

    def evicted(self, actor_id: ActorId) -> None:
        """The placement group that the actor lived in is removed."""
        actor = self.actors.get(actor_id)
        if actor is not None and actor.state != DEAD:
            self._die(actor, {"kind": "evicted", "text": "It ended because its placement group was removed."})

    def workers(self) -> list[ProcessId]:
        """The processes in which actors are."""
        return list(self._workers)

    def started(self, worker: ProcessId, error: bytes) -> None:
        """The constructor has returned, or raised `error` (packed; empty: it has returned)."""
        actor = self._workers.get(worker)
        if actor is None or actor.state not in (PENDING, RESTARTING):
            return
        if error:
            self._die(actor, {"kind": "init", "error": error})
            return
        actor.state = ALIVE
        self._keep(actor)
        self._tell(actor)
        self._end_if_released(actor)

    def leaves(self, worker: ProcessId, why: str) -> None:
        """The actor ends itself on purpose; its process ends next."""
        actor = self._workers.get(worker)
        if actor is not None and actor.state != DEAD:
            actor.ending = {"kind": "exited", "text": why}
            if self._free_name(actor):
                self._keep(actor)

    def process_left(self, process: ProcessId, report: dict[str, Any] | None) -> None:
        """A process has ended: perhaps an actor's, perhaps an owner of actors. `report` says how."""
        for actor in self._watched.pop(process, {}).values():
            actor.watchers.discard(process)
        for actor in list(self._owned.get(process, {}).values()):
            if not actor.detached:
                if actor.state != DEAD:
                    text = f"Its owner, process {process.hex()}, which made it, is gone."
                    self._die(actor, {"kind": "owner", "text": text})
                self._forget(actor)
        self._newest.pop(process, None)
        housed = self._workers.pop(process, None)
        if housed is None or housed.worker != process:
            return
        housed.worker = None
        self._effects[:] = [  # what was to be said to the process
            effect
            for effect in self._effects
            if type(effect) not in (Become, EndGently) or effect[0] is not housed
        ]
        if housed.state == DEAD:
            return
        ending, housed.ending = housed.ending, None
        cause = dict(report or {}) | {"kind": "crash"} | (ending or {})
        may_restart = cause["kind"] in ("crash", "killed") and not housed.released
        if may_restart and housed.restarts_left:
            if housed.restarts_left > 0:
                housed.restarts_left -= 1
            housed.restarts += 1
            housed.state = RESTARTING
            housed.cause = cause
            self._keep(housed)
            self._tell(housed)
            self._effects.append(Place(housed))
        else:
            self._die(housed, cause)

    # ----------------------------------------------------------------------------------------------------- rules

    def _end_if_released(self, actor: Actor) -> None:
        if actor.released and actor.state == ALIVE:
            actor.ending = _RELEASED
            self._effects.append(EndGently(actor))

    def _find(self, actor_id: ActorId, *, owner_lives: bool) -> Actor | None:
        """The actor; also one whose registration has yet to come. None: it ended long ago."""
        actor = self.actors.get(actor_id)
        if actor is None and owner_lives and actor_id > self._newest.get(owner_of(actor_id), b""):
            actor = self._actor(actor_id)
        return actor

    def _actor(self, actor_id: ActorId) -> Actor:
        actor = self.actors.get(actor_id)
        if actor is None:
            actor = self.actors[actor_id] = Actor(actor_id)
            self._owned.setdefault(actor.owner, {})[actor_id] = actor
        return actor

    def _add_watcher(self, actor: Actor, process: ProcessId) -> None:
        actor.watchers.add(process)
        self._watched.setdefault(process, {})[actor.id] = actor

    def _keep(self, actor: Actor) -> None:
        if actor.detached:
            self._effects.append(Keep(actor))

    def _tell(self, actor: Actor) -> None:
        if actor.watchers:
            self._effects.append(Tell(actor, tuple(sorted(actor.watchers))))

    def _die(self, actor: Actor, cause: dict[str, Any]) -> None:
        self._effects[:] = [  # what was decided and not done yet is not wanted any more
            effect for effect in self._effects if type(effect) not in _OF_THE_LIVING or effect[0] is not actor
        ]
        actor.state = DEAD
        actor.cause = cause
        self._keep(actor)
        self._free_name(actor)  # first: who hears of the death may want it
        self._tell(actor)
        for watcher in actor.watchers:
            _remove(self._watched, watcher, actor)
        actor.watchers.clear()
        worker, actor.worker = actor.worker, None
        if worker is not None:
            self._workers.pop(worker, None)
            self._effects.append(KillProcess(worker, cause.get("text", "its constructor failed")))
        self._effects.append(Unplace(actor))
        actor.spec = None
        if actor.detached or actor.released:
            self._forget(actor)

    def _free_name(self, actor: Actor) -> bool:
        """Whether it had one."""
        if self.named.pop(actor.id, None) is None:
            return False
        actor.name = ""
        self._effects.append(FreeName(actor))
        return True

    def _forget(self, actor: Actor) -> None:
        """No handle that counts can ask about it any more."""
        if self.actors.pop(actor.id, None) is None:
            return
        _remove(self._owned, actor.owner, actor)
        if actor.cause is not None:
            self._remember(actor.id, actor.cause)

    def _remember(self, actor_id: ActorId, cause: dict[str, Any]) -> None:
        self._causes[actor_id] = cause
        if len(self._causes) > CAUSES_REMEMBERED:
            del self._causes[next(iter(self._causes))]

    # ---------------------------------------------------------------------------------------------------- checks

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        for actor in self.named.values():
            if not actor.name or actor.state == DEAD or actor.released:
                raise AssertionError(f"{actor} has a name")
            if self.actors.get(actor.id) is not actor:
                raise AssertionError(f"{actor} has a name, and is forgotten")
        for worker, actor in self._workers.items():
            if actor.worker != worker:
                raise AssertionError(f"{worker.hex()} houses {actor}, which lives elsewhere")
        owned = {actor.id: actor for actors in self._owned.values() for actor in actors.values()}
        if owned != self.actors or not all(self._owned.values()):
            raise AssertionError(f"owners have {owned}, and there are {self.actors}")
        watched = {(process, actor) for process, actors in self._watched.items() for actor in actors}
        if watched != {(process, actor.id) for actor in owned.values() for process in actor.watchers}:
            raise AssertionError(f"{watched} are watched, which is not what the actors say")
        for actor in self.actors.values():
            if actor.state == ALIVE and actor.worker is None:
                raise AssertionError(f"{actor} has no worker")
            if actor.state == DEAD and (actor.watchers or actor.worker is not None or actor.released):
                raise AssertionError(f"{actor} is dead and has watchers or a worker, or nobody holds it")
            known = actor.detached or actor.id <= self._newest.get(actor.owner, b"")
            if actor.state not in (AWAITED, DEAD) and not known:
                raise AssertionError(f"{actor} is newer than the newest of its owner")
            if actor.worker is not None and self._workers.get(actor.worker) is not actor:
                raise AssertionError(f"{actor} is not known to live in {actor.worker.hex()}")


def _remove(table: dict[ProcessId, dict[ActorId, Actor]], process: ProcessId, actor: Actor) -> None:
    actors = table[process]
    del actors[actor.id]
    if not actors:
        del table[process]
