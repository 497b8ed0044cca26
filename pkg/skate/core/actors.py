"""The actors of a node: where each one lives, who watches it, what its name is, whether it starts again.

Pure. State: an Actor for each id that anybody has named and that is not forgotten, and the table of names. Events are
the methods below; effects come out through `take_effects`. Its life:

    AWAITED -> PENDING -> ALIVE -> DEAD
                  ^         |
                  '- RESTARTING   its process ended, and it may start again

AWAITED is an actor that somebody asks about before its owner's registration has come. PENDING and RESTARTING have no
worker while they wait for resources, and one while its constructor runs.

Rules:

* An actor ends with its owner, or when its owner says that nobody holds a handle any more; a detached one does not.
* A process that ends uses up one restart, also when it was killed with `no_restart=False`; not when the actor left on
  purpose. A constructor that raises is not tried again.
* A name belongs to one actor until that is DEAD.

Invariants (`check`): a name leads to an actor that has it and is not DEAD; a worker houses one actor; an actor that is
ALIVE has a worker; a DEAD one has no watchers, for they were told.
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

#: dead actors that are remembered, for handles that do not count
DEAD_REMEMBERED: Final = 10_000


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


class Keep(NamedTuple):
    """Effect: something has changed that is to be known of a detached actor when the node's directory comes back."""

    actor: Actor


Effect = Place | Unplace | Become | EndGently | KillProcess | Tell | Keep
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
        self.names: dict[tuple[str, str], Actor] = {}
        self._workers: dict[ProcessId, Actor] = {}
        #: owner -> its actors, in the order in which they were named first
        self._owned: dict[ProcessId, dict[ActorId, Actor]] = {}
        #: process -> the actors that it watches
        self._watched: dict[ProcessId, dict[ActorId, Actor]] = {}
        self._dead: dict[ActorId, dict[str, Any] | None] = {}

    def registered(
        self, actor_id: ActorId, name: str, namespace: str, detached: bool, about: Any
    ) -> Actor | None:
        """A new actor. Gives None, or the living actor that has its name already: then nothing is registered."""
        if name:
            other = self.names.get((namespace, name))
            if other is not None:
                return other
        actor = self._actor(actor_id)
        if actor.state != AWAITED:
            return None  # it was said before, or its owner is gone already
        actor.state = PENDING
        actor.name, actor.namespace, actor.detached, actor.about = name, namespace, detached, about
        self._add_watcher(actor, actor.owner)
        if name:
            self.names[namespace, name] = actor
        self._keep(actor)
        return None

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
        if actor is None or actor.detached:
            return
        if actor.state == DEAD:
            self._forget(actor)
            return
        actor.ending = {"kind": "released", "text": "It ended because nobody held a handle of it any more."}
        if actor.state == ALIVE:
            self._effects.append(EndGently(actor))
        else:
            self._die(actor, actor.ending)
            self._forget(actor)

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
            self.names[namespace, name] = actor
        if worker is not None:
            self._workers[worker] = actor

    def unrecoverable(self, actor_id: ActorId, why: str) -> None:
        """A detached actor of the last head that cannot be made any more."""
        self._dead[actor_id] = {"kind": "crash", "text": why}

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

    def watched(self, actor_id: ActorId, process: ProcessId, *, awaited: bool, owner_lives: bool) -> None:
        """A process wants to know how the actor stands, now and from now on.

        `awaited`: its handle counts, so the actor is unknown only where its registration is still on the way.
        """
        actor = self.actors.get(actor_id)
        if actor is None:
            known = actor_id in self._dead
            if known or not awaited or not owner_lives:
                actor = Actor(actor_id)
                actor.state = DEAD
                actor.cause = self._dead.get(actor_id) or {
                    "kind": "unknown",
                    "text": "The process that made it is gone, or it ended long ago.",
                }
            else:
                actor = self._actor(actor_id)
        if actor.state != DEAD:
            self._add_watcher(actor, process)
        self._effects.append(Tell(actor, (process,)))

    def killed(self, actor_id: ActorId, no_restart: bool, by: str) -> None:
        """`kill` was called."""
        actor = self.actors.get(actor_id)
        if actor is None or actor.state == DEAD:
            return
        cause = killed_by(by)
        if no_restart:
            self._die(actor, cause)
        elif actor.worker is not None:
            actor.ending = cause
            self._effects.append(KillProcess(actor.worker, cause["text"]))

    def named(self, name: str, namespace: str) -> Actor | None:
        return self.names.get((namespace, name))

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

    def leaves(self, worker: ProcessId, why: str) -> None:
        """The actor ends itself on purpose; its process ends next."""
        actor = self._workers.get(worker)
        if actor is not None and actor.state != DEAD:
            actor.ending = {"kind": "exited", "text": why}

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
        may_restart = cause["kind"] in ("crash", "killed")
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
            if cause["kind"] == "released":
                self._forget(housed)

    # ----------------------------------------------------------------------------------------------------- rules

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
        self._tell(actor)
        for watcher in actor.watchers:
            _remove(self._watched, watcher, actor)
        actor.watchers.clear()
        if self.names.get((actor.namespace, actor.name)) is actor:
            del self.names[actor.namespace, actor.name]
        worker, actor.worker = actor.worker, None
        if worker is not None:
            self._workers.pop(worker, None)
            self._effects.append(KillProcess(worker, cause.get("text", "its constructor failed")))
        self._effects.append(Unplace(actor))
        actor.spec = None
        if actor.detached:
            self._forget(actor)

    def _forget(self, actor: Actor) -> None:
        """No handle that counts can ask about it any more."""
        if self.actors.pop(actor.id, None) is None:
            return
        _remove(self._owned, actor.owner, actor)
        self._dead[actor.id] = actor.cause
        if len(self._dead) > DEAD_REMEMBERED:
            del self._dead[next(iter(self._dead))]

    # ---------------------------------------------------------------------------------------------------- checks

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        for (namespace, name), actor in self.names.items():
            if (actor.namespace, actor.name) != (namespace, name) or actor.state == DEAD:
                raise AssertionError(f"the name {namespace}/{name} leads to {actor}")
            if self.actors.get(actor.id) is not actor:
                raise AssertionError(f"the name {name} leads to {actor}, which is forgotten")
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
            if actor.state == DEAD and (actor.watchers or actor.worker is not None):
                raise AssertionError(f"{actor} is dead and has watchers or a worker")
            if actor.worker is not None and self._workers.get(actor.worker) is not actor:
                raise AssertionError(f"{actor} is not known to live in {actor.worker.hex()}")


def _remove(table: dict[ProcessId, dict[ActorId, Actor]], process: ProcessId, actor: Actor) -> None:
    actors = table[process]
    del actors[actor.id]
    if not actors:
        del table[process]
