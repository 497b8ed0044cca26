"""The node's side of actors: what core.actors decides, done; what its processes say, passed on to it.

State: the directory. Workers, of this node or another, come through node.scheduling, in which an actor is an owner
with one request of its own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from skate.core.actors import (
    ALIVE,
    Actor,
    ActorDirectory,
    Become,
    EndGently,
    FreeName,
    Keep,
    KillProcess,
    Place,
    Tell,
)
from skate.core.leases import NodeLease
from skate.core.policies import where_from
from skate.core.resources import ResourceSet
from skate.ids import ActorId, NodeId, ProcessId, manager_of, node_of, owner_of
from skate.node.head import HeadLink
from skate.node.names import NodeNames, replying
from skate.node.scheduling import Details, NodeScheduling
from skate.node.verdicts import granted_allocation, group_removed
from skate.wire import checks
from skate.wire import messages as m

log = logging.getLogger("skate.node")

Post = Callable[[ProcessId, Any], None]


class NodeActors:
    """The actors of a node.

    `head` answers for names, `post` sends a message, `kill` ends a process, `lives` tells whether one is there,
    `environment` says which workers an actor of this maker with these variables can live in, `is_gone` whether a
    placement group was removed, `on_end` hears of the end of each that is detached.
    """

    def __init__(
        self,
        head: HeadLink,
        scheduling: NodeScheduling,
        post: Post,
        kill: Callable[[ProcessId, str], None],
        lives: Callable[[ProcessId], bool],
        environment: Callable[[ProcessId, Any], Any],
        is_gone: Callable[[str], bool],
        on_end: Callable[[ActorId], None],
    ) -> None:
        self.directory = ActorDirectory()
        #: those of the whole cluster
        self.names = NodeNames(head, self.named)
        self._scheduling = scheduling
        self._post = post
        self._kill = kill
        self._lives = lives
        self._environment = environment
        self._is_gone = is_gone
        self._on_end = on_end
        #: of actors that have a worker: the lease's number, and what they may use
        self._leases: dict[ActorId, tuple[int, dict[str, Any]]] = {}
        directory = self.directory
        self.handlers: dict[int, Callable[..., None]] = {
            m.RegisterActor.code: self._register,  # type: ignore[attr-defined]
            m.MakeActor.code: self._make,  # type: ignore[attr-defined]
            m.ReleaseActor.code: self._release,  # type: ignore[attr-defined]
            m.WatchActor.code: self._watch,  # type: ignore[attr-defined]
            m.FindActor.code: self._find,  # type: ignore[attr-defined]
            m.KillActor.code: self._killed,  # type: ignore[attr-defined]
            m.ActorStarted.code: lambda worker, _, error: directory.started(worker.id, error),  # type: ignore[attr-defined]
            m.ActorLeaves.code: lambda worker, _, why: directory.leaves(worker.id, why),  # type: ignore[attr-defined]
        }

    # -------------------------------------------------------------------------------------------------- messages

    def _register(
        self,
        process: Any,
        token: int,
        actor: ActorId,
        name: str,
        namespace: str,
        detached: bool,
        about: Any,
        ending: bytes,
    ) -> None:
        if not self._is_owner(process, actor):
            return
        if not name:
            self.directory.registered(actor, "", namespace, detached, about)
            return
        self.directory.expected(actor)  # from here on somebody may find it by its name
        self.act()  # the name of one that is bound to end is free

        def answered(other: Any) -> None:
            if actor not in self.directory.actors:
                self.names.ended(actor)  # nobody waits for the answer
                return
            if other is None:
                self.directory.registered(actor, name, namespace, detached, about)
            else:
                self.directory.refused(actor)
            if token:
                self._post(process.id, m.StateReply(token, other))

        self.names.claim(actor, name, namespace, about, ending, answered)

    def _make(self, process: Any, actor: ActorId, spec: Any, error: bytes) -> None:
        if not self._is_owner(process, actor):
            return
        if error:
            self.directory.undescribable(actor, error)
        else:
            where_from(checks.actor(spec)["where"])
            spec["environment"] = self._environment(process.id, spec["environment"])
            made = self.directory.actors.get(actor)
            spec["detached"] = made is not None and made.detached
            self.directory.described(actor, spec, spec["max_restarts"])

    def _release(self, process: Any, actor: ActorId) -> None:
        if self._is_owner(process, actor):
            self.directory.released(actor)

    def _watch(self, process: Any, actor: ActorId) -> None:
        self.directory.watched(actor, process.id, owner_lives=self._lives(owner_of(actor)))

    def _killed(self, _: Any, actor: ActorId, no_restart: bool, by: str) -> None:
        self.directory.killed(actor, no_restart, by, owner_lives=self._lives(owner_of(actor)))

    def _find(self, process: Any, token: int, name: str, namespace: str) -> None:
        self.act()
        self.names.find(name, namespace, replying(self._post_if_it_lives, process.id, token))

    def _post_if_it_lives(self, process: ProcessId, message: Any) -> None:
        if self._lives(process):
            self._post(process, message)

    def _is_owner(self, process: Any, actor: ActorId) -> bool:
        if actor.startswith(process.id):
            return True
        log.warning(
            "process %s spoke for actor %s, which is not its own: refused", process.id.hex(), actor.hex()
        )
        return False

    # --------------------------------------------------------------------------------------------- from admission

    def granted(self, lease: NodeLease) -> None:
        """The actor that asked for this lease has its worker."""
        assert lease.worker is not None
        actor = ActorId(lease.request.owner)  # type: ignore[arg-type]
        self._leases[actor] = lease.id, granted_allocation(lease)
        self.directory.placed(actor, lease.worker.id)

    def housed(self, actor: ActorId, worker: ProcessId, lease: int, allocation: dict[str, Any]) -> None:
        """The actor had this lease of a worker when the last head died."""
        self._leases[actor] = lease, allocation
        spec = self.directory.actors[actor].spec
        demand, where = ResourceSet(spec["demand"]), where_from(spec["where"])
        self._scheduling.housed(ProcessId(actor), demand, where, node_of(worker))

    def placed_elsewhere(
        self, node: Any, actor: ActorId, worker: bytes, lease: int, may: Any, why: str
    ) -> None:
        """Another node has a worker for the actor, or cannot start one."""
        if node.id != manager_of(node.id):
            raise ValueError("only a node manager places actors")
        if not worker:
            if why:
                checks.report(why)
            self.failed(ProcessId(actor), why)
        elif manager_of(worker) == node.id:
            self._leases[actor] = lease, checks.allocation(may)
            self._scheduling.actor_placed(actor)
            self.directory.placed(actor, ProcessId(worker))

    def group_gone(self, identity: ProcessId, demand: ResourceSet) -> None:
        """The placement group in which the actor lives, or was to live, is removed."""
        actor = self.directory.actors.get(ActorId(identity))  # type: ignore[arg-type]
        if actor is not None and actor.worker is None:
            self.directory.unplaceable(actor.id, group_removed(demand), "unschedulable")
        elif actor is not None:
            self.directory.evicted(actor.id)

    def refused(self, actor: ProcessId, why: str) -> None:
        """There is no node on which the actor may be."""
        self.directory.unplaceable(ActorId(actor), why, "unschedulable")  # type: ignore[arg-type]

    def failed(self, actor: ProcessId, report: str) -> None:
        """No worker for the actor could be started."""
        why = json.loads(report).get("stderr_tail", "") if report else ""
        self.directory.unplaceable(
            ActorId(actor),  # type: ignore[arg-type]
            f"No process for it could be started. {why}".strip(),
        )

    def process_left(self, process: ProcessId, cause: str) -> None:
        """A process has ended."""
        self.directory.process_left(process, json.loads(cause))

    def node_left(self, node: NodeId, cause: str) -> None:
        """Another node is dead, with the workers in which actors were. Of the last head's, node.recovery tells."""
        if self.names.ledger is not None and node in self._scheduling.roster.former:
            return
        for worker in [worker for worker in self.directory.workers() if node_of(worker) == node]:
            self.process_left(worker, cause)

    # ----------------------------------------------------------------------------------------------------- effects

    def act(self) -> bool:
        """Does what the directory has decided; whether there was anything."""
        effects = self.directory.take_effects()
        for effect in effects:
            if type(effect) is Tell:
                self._tell(effect)
            elif type(effect) is Place:
                self._place(effect.actor)
            elif type(effect) is Become:
                self._become(effect.actor)
            elif type(effect) is EndGently:
                assert effect.actor.worker is not None
                self._post(effect.actor.worker, m.EndActor(effect.actor.id))
            elif type(effect) is KillProcess:
                self._kill(effect.worker, effect.why)
            elif type(effect) is FreeName:
                self.names.ended(effect.actor.id)
            elif type(effect) is Keep:
                if self.names.ledger is not None:
                    self.names.ledger.actor_changed(
                        effect.actor, *self._leases.get(effect.actor.id, (0, None))
                    )
            else:
                self._leases.pop(effect.actor.id, None)
                self._scheduling.owner_left(ProcessId(effect.actor.id))
                if effect.actor.detached:
                    self._on_end(effect.actor.id)
        return bool(effects)

    def _tell(self, effect: Tell) -> None:
        actor = effect.actor
        worker = actor.worker if actor.state == ALIVE else None
        notice = m.ActorState(actor.id, actor.state, worker, actor.cause)
        for watcher in effect.watchers:
            if self._lives(watcher):
                self._post(watcher, notice)

    def _place(self, actor: Actor) -> None:
        spec = actor.spec
        demand = ResourceSet(spec["demand"])
        if demand.group is not None and self._is_gone(demand.group):
            self.directory.unplaceable(actor.id, group_removed(demand), "unschedulable")
            return
        where = where_from(spec["where"])
        details = Details(
            spec["environment"], spec["depth"], where.captures, spec["lends"], detached=actor.detached
        )
        self._scheduling.wants(ProcessId(actor.id), 0, demand, where, 1, details, for_actor=True)

    def _become(self, actor: Actor) -> None:
        lease, allocation = self._leases[actor.id]
        assert actor.worker is not None
        if actor.spec["lends"]:
            allocation["resources"].pop("CPU", None)
        self._post(actor.worker, m.BecomeActor(actor.id, lease, allocation, actor.spec, actor.restarts))

    def any_of(self, job: str) -> bool:
        """Whether an actor of the job lives, or may live again."""
        specs = [actor.spec for actor in self.directory.actors.values()]
        return any(spec is not None and spec["environment"][0] == job for spec in specs)

    def named(self) -> list[tuple[ActorId, str, str, Any]]:
        return [
            (actor.id, actor.name, actor.namespace, actor.about) for actor in self.directory.named.values()
        ]
