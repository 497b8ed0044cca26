"""Which lease request a node grants, and on which of its workers. Nothing runs over the node's resources, ever.

Pure. State: the node's resources, the requests that wait, the leases that are granted, and the pool of workers. Events:
leases_requested, lease_returned, worker_ready, worker_died, worker_blocked, worker_unblocked, process_left, job_left,
and those of placement groups (bundles_…, room_claimed, group_ended). They only note what happened; `decide` then acts
on all of them, so that what arrives together is judged together. Effects are what `decide` returns.

Rules:

* A worker whose wait is over gets its CPUs back before anything new is granted of what it needs. Where only actors and
  placement groups hold them, which may be for ever, it goes on without: its lease is reclaimed, and ends soon.
* Among requests the more deeply nested go first, so that what blocked workers wait for can finish; equals take turns.
  One that has waited for long goes first once: a task that keeps submitting starves nobody.
* A request that must wait has leases of other classes and owners reclaimed: a thousand owners get their turns.
* What others were preferred to PASSED_OVER times, because it needs more at once than was ever free, has what it lacks
  kept for it; only owners that are blocked themselves, and so may hold what it waits for, still go first; and nested
  ones of other nodes, of which this one does not know whether they are blocked. Nothing is kept for what cannot be met
  while actors and placement groups hold what they hold: that may be for ever.
* What is asked for tasks with large arguments is granted only once these are here: see core.fetching.
* A worker blocked in `get` or `wait` lends its CPUs, not its GPUs.
* A lease for an actor is never reclaimed; one that only had to find a free CPU (`lends`) gives it back at once. Actors
  get workers after tasks do, whose leases wait before theirs.
* What a placement group claims waits in the line as a request does: leases are reclaimed for it, resources are kept.
  Once there is room whoever places groups prepares its bundles; that may be another node, so the room is kept until it
  has, or drops the claim.
* A lease is served by a worker of its kind alone (see Kind). What has served without GPUs sees none for ever.
* Workers are started only for leases whose resources are reserved, so there are never more than the resources allow
  plus those that are blocked. Idle ones beyond `keep_idle` are asked to leave; those of a job whose driver is gone end
  as soon as they are idle.

Invariants (`check`): what the live allocations hold is what the leases say; a worker has one lease at most; a lease has
a worker of its kind, or waits for one in `_waiting`; what lacks arguments wants a lease.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Final

from skate.core import fetching
from skate.core.bundles import BundledResources
from skate.core.leases import (
    PATIENCE_SECONDS,
    Effect,
    EndWorker,
    Environment,
    FailRequest,
    Grant,
    KillWorker,
    Kind,
    Lacks,
    LeaseRequest,
    NodeLease,
    PoolWorker,
    Reclaim,
    ResumeWorker,
    RetireWorker,
    RoomForBundles,
    StartWorker,
    WarnInfeasible,
)
from skate.core.request_table import RequestTable
from skate.core.resources import ResourceSet
from skate.ids import ProcessId, owner_of

#: workers in a row that may die before they are ready, until those who wait for them are told
START_ATTEMPTS: Final = 3
#: grants to others behind it in the line, until what a request lacks is kept for it
PASSED_OVER: Final = 10
#: seconds that an idle worker beyond `keep_idle` is kept
IDLE_SECONDS: Final = 1.0
#: the environment of what placement groups claim: no worker has it
_CLAIMED: Final[Environment] = (None, "claimed")


class Admission:
    """The scheduler of one node."""

    def __init__(
        self,
        resources: BundledResources,
        *,
        keep_idle: int,
        start_at_once: int,
        first_lease: int = 1,
        fetch_bytes: int = 0,
    ) -> None:
        """`first_lease`: the number of the first lease. No two nodes may count in the same range.

        `fetch_bytes`: of arguments, for what has no room yet.
        """
        self.resources = resources
        self.fetch_bytes = fetch_bytes
        #: idle workers that are kept warm
        self.keep_idle = keep_idle
        #: workers that may be starting at the same time
        self.start_at_once = start_at_once
        self._table = RequestTable()
        self.requests = self._table.all
        self.leases: dict[int, NodeLease] = {}
        self.workers: dict[ProcessId, PoolWorker] = {}
        # So that what an event costs does not grow with what it has nothing to do with (see RequestTable, too):
        #: leases that may be reclaimed, those of tasks
        self._of_tasks: dict[int, NodeLease] = {}
        self._blocked: dict[int, NodeLease] = {}
        self._idle: dict[Kind, list[PoolWorker]] = {}
        self._waiting: dict[Kind, deque[NodeLease]] = {}
        self._starting: dict[Kind, int] = {}
        #: kind -> workers that died before they were ready, since one was
        self._failures: dict[Kind, int] = {}
        self._resuming: deque[NodeLease] = deque()
        #: jobs whose drivers are gone, and which still have processes or actors
        self._left_jobs: set[Hashable] = set()
        #: something has happened since it was decided last; else there is nothing to decide before `look_at`
        self._news = True
        self.look_at: float | None = None
        self._effects: list[Effect] = []
        self._next_lease = first_lease - 1
        self._turn = 0

    # --------------------------------------------------------------------------------------------------- events

    def leases_requested(
        self,
        owner: ProcessId,
        class_id: int,
        demand: ResourceSet,
        depth: int,
        wanted: int,
        environment: Environment,
        *,
        allowed: bool = True,
        captures: bool = False,
        lacks: Lacks | None = None,
    ) -> None:
        """How many leases of the class the owner could use now, beyond those that it knows of.

        `allowed`: it may run on this node. `captures`: see LeaseRequest. `lacks`: its tasks have large arguments, and
        those of them are not here.
        """
        self._news = True
        request = self.requests.get((owner, class_id))
        if request is None:
            if lacks is not None and not wanted:
                return
            feasible = allowed and self.resources.feasible(demand)
            request = LeaseRequest(owner, class_id, demand, depth, environment, feasible, allowed)
            request.captures = captures
            self._table.add(request)
            if not feasible and demand.group is None:  # a group may be placed later: it warns itself
                self._effects.append(WarnInfeasible(request))
        elif allowed != request.allowed:  # the bundles of its group have come, or gone
            request.allowed = allowed
            request.feasible = allowed and self.resources.feasible(demand)
        request.depth = depth  # a worker asks for the same class from tasks of any depth
        if wanted and not request.wanted:
            self._turn += 1
            request.turn = self._turn
        wanted = max(0, wanted - request.reserved)
        if lacks is not None:
            self._effects += fetching.note_lacks(request, lacks, wanted)
        self._table.want(request, wanted)
        if not request.wanted:
            request.waits_since = 0.0
            self._forget_if_over(request)

    def arguments_fetched(self, owner: ProcessId, class_id: int) -> None:
        """What the request lacked is here, or cannot be had."""
        self._news = True
        request = self.requests.get((owner, class_id))
        if request is not None:
            fetching.note_fetched(request)

    def _forget_if_over(self, request: LeaseRequest) -> None:
        """A request for tasks goes when nothing is wanted or held for them."""
        if request.for_actor or request.wanted or request.reserved or request.held:
            return
        if self.requests.get((request.owner, request.class_id)) is request:
            self._table.drop((request.owner, request.class_id))
            self._effects = [
                effect
                for effect in self._effects
                if not isinstance(effect, WarnInfeasible) or effect.request is not request
            ]

    def actor_placed(
        self,
        actor: bytes,
        demand: ResourceSet,
        lends: bool,
        depth: int,
        environment: Environment,
        *,
        allowed: bool = True,
        captures: bool = False,
    ) -> None:
        """An actor needs a worker for itself. `process_left(actor)` takes that back, and the worker if it has one."""
        self.leases_requested(
            ProcessId(actor), 0, demand, depth, 1, environment, allowed=allowed, captures=captures
        )
        request = self.requests[ProcessId(actor), 0]
        request.for_actor = True
        request.lends = lends

    def lease_returned(self, lease_id: int, now: float) -> None:
        self._news = True
        lease = self.leases.get(lease_id)
        if lease is None:
            return  # the worker's death came first
        worker = lease.worker
        self._end(lease)
        if worker is not None:
            worker.lease = None
            self._set_idle(worker, now)

    def worker_ready(self, worker_id: ProcessId, kind: Kind, now: float) -> None:
        self._news = True
        if worker_id in self.workers:
            return  # it said so before
        self._started(kind)
        self._failures.pop(kind, None)
        worker = self.workers[worker_id] = PoolWorker(worker_id, kind, now)
        self._set_idle(worker, now)

    def worker_start_failed(self, kind: Kind) -> None:
        """A worker died before it was ready; `decide` starts another where one is still needed, a few times."""
        self._news = True
        self._started(kind)
        failures = self._failures[kind] = self._failures.get(kind, 0) + 1
        if failures < START_ATTEMPTS:
            return
        del self._failures[kind]
        for lease in list(self._waiting.get(kind, ())):
            self._table.want(lease.request, lease.request.wanted + 1)
            self._end(lease)
        for request in list(self._table.open.values()):
            if request.needs(kind):
                self._drop(request)
                self._effects.append(FailRequest(request))

    def worker_died(self, worker_id: ProcessId) -> None:
        self._news = True
        worker = self.workers.pop(worker_id, None)
        if worker is None:
            return
        if worker.lease is not None:
            self._end(worker.lease)
        elif worker in self._idle.get(worker.kind, ()):
            self._take_idle(worker)

    def worker_blocked(self, lease_id: int) -> None:
        self._news = True
        lease = self.leases.get(lease_id)
        if lease is not None and not lease.blocked:
            lease.blocked = True
            self._blocked[lease.id] = lease
            self.resources.release_cpus(lease.allocation)

    def worker_unblocked(self, lease_id: int) -> None:
        self._news = True
        lease = self.leases.get(lease_id)
        if lease is not None and lease.blocked:
            self._resuming.append(lease)

    def _drop(self, request: LeaseRequest) -> None:
        """Nobody wants it any more. Its leases are the caller's to end."""
        self._effects += fetching.stop_fetching(request)
        self._table.drop((request.owner, request.class_id))

    def process_left(self, process: ProcessId) -> None:
        """An owner is gone: its requests end, and workers that run its tasks are of no use any more."""
        self._news = True
        leaving = self._table.owners.get(process)
        if leaving is not None:
            for request in leaving.requests.values():
                self._effects += fetching.stop_fetching(request)
        owner = self._table.owner_left(process)
        if owner is None:
            return
        self._effects = [
            effect
            for effect in self._effects
            if not isinstance(effect, WarnInfeasible) or effect.request.owner != process
        ]
        for lease in owner.leases.values():
            worker = lease.worker
            self._end(lease)
            if worker is not None:
                worker.lease = None
                self.workers.pop(worker.id, None)
                ends = KillWorker if lease.request.for_actor else EndWorker
                self._effects.append(ends(worker.id, f"its owner {process.hex()} is gone"))

    # ------------------------------------------------------------------------------------------- placement groups

    def bundles_prepared(self, group: bytes, bundles: Mapping[int, ResourceSet]) -> bool:
        """Takes what the bundles need, all or nothing; whether it could."""
        self._news = True
        return self.resources.prepare(group.hex(), bundles)

    def bundles_committed(self, group: bytes, indexes: Iterable[int]) -> None:
        """The bundles may be used: requests that waited for them may be met."""
        self._news = True
        name = group.hex()
        self.resources.commit(name, indexes)
        for request in self._table.in_group.get(name, {}).values():
            request.feasible = request.allowed and self.resources.feasible(request.demand)
            self._table.want(request, request.wanted)

    def bundles_returned(self, group: bytes, indexes: Iterable[int]) -> None:
        """Bundles that were prepared, or refused, are not wanted."""
        self._news = True
        self.resources.unprepare(group.hex(), indexes)

    def room_claimed(self, group: bytes, bundles: tuple[ResourceSet, ...]) -> None:
        """Room is to be cleared for these bundles; replaces what the group claimed before."""
        self._news = True
        self.claim_dropped(group)
        units: dict[str, int] = {}
        for bundle in bundles:
            for name, amount in bundle.items():
                units[name] = units.get(name, 0) + amount
        claim = LeaseRequest(ProcessId(group), 0, ResourceSet(units), 0, _CLAIMED, True)
        claim.claims = bundles
        self._turn += 1
        claim.turn = self._turn
        self._table.add(claim)
        self._table.want(claim, 1)

    def claim_dropped(self, group: bytes) -> None:
        self._news = True
        key = (ProcessId(group), 0)
        if key in self.requests:
            self._table.owner_left(key[0])

    def claims_dropped(self) -> None:
        """Nobody claims any room any more."""
        self._news = True
        for key in [key for key, request in self.requests.items() if request.claims is not None]:
            self._table.owner_left(key[0])

    def group_ended(self, group: bytes) -> None:
        """The group is removed: tasks in it end, what waits for it is forgotten, its bundles are free.

        Whoever asked for it hears of the group's end from elsewhere, and ends actors that live in it.
        """
        self._news = True
        name = group.hex()
        requests = self._table.in_group.get(name, {})
        # Also leases whose request has failed since, and is no longer in the table.
        for lease in [each for each in self.leases.values() if each.request.demand.group == name]:
            worker, request = lease.worker, lease.request
            self._end(lease)
            if worker is None:
                continue
            worker.lease = None
            self.workers.pop(worker.id, None)
            if not request.for_actor:
                self._effects.append(KillWorker(worker.id, f"its placement group {name} was removed"))
        for request in list(requests.values()):
            self._drop(request)
        self.resources.remove_group(name)

    # -------------------------------------------------------------------------------------------------- decisions

    def decide(self, now: float) -> list[Effect]:
        """Acts on all that has happened since the last call. See `undecided`."""
        self._news = False
        unmet = self._grant(now, self._resume())
        self._match_workers()
        # Also leases that have just got their worker: no other event may come for long.
        self._reclaim_for_resuming()
        self._reclaim(unmet, now)
        self._start_workers()
        self._end_left()
        effects, self._effects = self._effects, []
        return effects

    def undecided(self, now: float) -> bool:
        """Whether `decide`, or `tick`, would find anything to do."""
        return self._news or (self.look_at is not None and self.look_at <= now)

    def prestart(self, number: int, environment: Environment) -> list[Effect]:
        """Starts `number` workers before anyone asks."""
        kind = Kind(*environment)
        self._starting[kind] = self._starting.get(kind, 0) + number
        return [StartWorker(kind)] * number

    def job_left(self, job: Hashable) -> None:
        """The driver of a job is gone: from now on its workers end as soon as nobody has a use for them.

        Its detached actors, and what they ask for, are served as before.
        """
        self._news = True
        self._left_jobs.add(job)

    def job_forgotten(self, job: Hashable) -> None:
        """A job that has left has no process any more, and nobody will ask for one."""
        self._left_jobs.discard(job)
        tables: tuple[dict[Kind, Any], ...] = (
            self._idle,
            self._waiting,
            self._starting,
            self._failures,
        )
        for table in tables:
            for kind in [kind for kind in table if kind.job == job]:
                del table[kind]

    def serves(self, job: Hashable) -> bool:
        """Whether anything is asked for by a program, or its owners have leases."""
        return any(
            request.environment[0] == job and (request.wanted or request.reserved)
            for request in self.requests.values()
        )

    def tick(self, now: float) -> float | None:
        """Asks workers that have been idle for long to leave; gives the time of the next such look, or None."""
        idle = [worker for workers in self._idle.values() for worker in workers if not worker.retiring]
        spare = sorted(idle, key=lambda worker: worker.idle_since)[: max(0, len(idle) - self.keep_idle)]
        due = None
        for worker in spare:
            at = worker.idle_since + IDLE_SECONDS
            if at <= now:
                worker.retiring = True
                self._take_idle(worker)
                self._effects.append(RetireWorker(worker.id))
            elif due is None or at < due:
                due = at
        for request in self._table.open.values():
            if request.is_patient(now):
                at = (request.waits_since or now) + PATIENCE_SECONDS
                due = at if due is None else min(due, at)
        self.look_at = due
        return due

    def retirement_declined(self, worker_id: ProcessId, now: float) -> None:
        """The worker still owns something: it stays."""
        self._news = True
        worker = self.workers.get(worker_id)
        if worker is not None and worker.retiring:
            worker.retiring = False
            self._set_idle(worker, now)

    def _resume(self) -> set[str | None]:
        """Has workers go on whose wait is over. Gives where the others wait for CPUs: groups, or None for the node."""
        short: set[str | None] = set()
        still: deque[NodeLease] = deque()
        for lease in self._resuming:
            if self.leases.get(lease.id) is not lease:
                continue
            pool = lease.request.demand.group
            if pool in short or not self._goes_on(lease):
                short.add(pool)
                still.append(lease)
        self._resuming = still
        return short

    def _goes_on(self, lease: NodeLease) -> bool:
        """Whether the lease's worker need not wait any longer."""
        if self.resources.reacquire_cpus(lease.allocation):
            lease.blocked = False
            del self._blocked[lease.id]
        elif self._holding_cpus(lease.request.demand.group):
            return False
        elif not lease.reclaimed:  # it has lent its CPUs for good
            lease.reclaimed = True
            self._effects.append(Reclaim(lease))
        self._effects.append(ResumeWorker(lease))
        return True

    def _grant(self, now: float, resuming: set[str | None]) -> list[LeaseRequest]:
        """Grants what fits, in turn; gives the requests that must wait. What needs CPUs of where workers wait for them
        to go on is not looked at."""
        if not self._table.open:
            return []
        for request in self._table.open.values():
            request.waits_since = request.waits_since or now
        short: set[ResourceSet] = set()
        lacking: list[LeaseRequest] = []
        waiting: list[LeaseRequest] = []
        #: names of resources that are kept for a request that was passed over too often
        kept: set[str] = set()
        #: bundles for which placement groups have been told that there is room
        room_for: list[ResourceSet] = []
        blocked = {lease.worker.id for lease in self._blocked.values() if lease.worker is not None}
        order = sorted(
            (
                request
                for request in self._table.open.values()
                if request.demand.group not in resuming or not request.demand.asks_of("CPU")
            ),
            key=lambda request: (request.is_patient(now), -request.depth, request.turn),
        )
        queue = deque(order)
        while queue:
            request = queue.popleft()
            if request.lacks:
                lacking.append(request)
                continue
            if request.demand in short:
                continue
            first = self._may_be_blocked(request, blocked)
            if not first and not kept.isdisjoint(request.demand):
                continue
            if request.claims is not None:
                self._look_for_room(request, waiting, kept, room_for)
                continue
            allocation = self.resources.allocate(request.demand)
            if allocation is not None and room_for and not first and not self.resources.has_room(room_for):
                self.resources.release(allocation)
                continue
            if allocation is None:
                short.add(request.demand)
                waiting.append(request)
                if request.passed >= PASSED_OVER:
                    kept |= self._to_keep(request.demand)
                continue
            for other in waiting:
                other.passed += 1
            request.passed = 0
            self._table.want(request, request.wanted - 1)
            request.waits_since = now if request.wanted else 0.0
            self._turn += 1
            request.turn = self._turn
            self._next_lease += 1
            lease = NodeLease(self._next_lease, request, allocation)
            self.leases[lease.id] = lease
            self._table.owners[request.owner].leases[lease.id] = lease
            if not request.for_actor:
                self._of_tasks[lease.id] = lease
            if request.lends:
                self.resources.release_cpus(lease.allocation)
            self._line_up(lease)
            if request.wanted:
                # equals take turns: behind the others of the same depth
                at = next((i for i, other in enumerate(queue) if other.depth < request.depth), len(queue))
                queue.insert(at, request)
        if lacking:
            ahead = sum(request.fetched for request in order if request.wanted and not request.lacks)
            self._effects += fetching.start_fetching(lacking, ahead, self.fetch_bytes, self.resources)
        return [request for request in order if request.wanted and not request.lacks]

    def _look_for_room(
        self, claim: LeaseRequest, waiting: list[LeaseRequest], kept: set[str], room_for: list[ResourceSet]
    ) -> None:
        """It is a claim's turn: says so, once, where there is room; else the claim waits as a request does."""
        assert claim.claims is not None
        if not self.resources.has_room(claim.claims):
            claim.told = False
            waiting.append(claim)
            if claim.passed >= PASSED_OVER:
                kept |= self._to_keep(claim.demand)
        else:
            together = [*room_for, *claim.claims]
            if self.resources.has_room(together):  # else it counts on what another one claims
                room_for[:] = together
            if not claim.told:
                claim.told = True
                self._news = True  # where the room is not taken, it is for others
                self._effects.append(RoomForBundles(claim.owner))

    def _may_be_blocked(self, request: LeaseRequest, blocked: set[ProcessId]) -> bool:
        return request.owner in blocked or (request.depth > 0 and owner_of(request.owner) not in self.workers)

    def _line_up(self, lease: NodeLease) -> None:
        """The lease waits for a worker: a task's before all actors'."""
        self._table.count(lease.request, reserved=1)
        waiting = self._waiting.setdefault(lease.kind, deque())
        if lease.request.for_actor or not waiting or not waiting[-1].request.for_actor:
            waiting.append(lease)
        else:
            waiting.insert(next(at for at, other in enumerate(waiting) if other.request.for_actor), lease)

    def _to_keep(self, demand: ResourceSet) -> set[str]:
        """Names of what is kept for `demand`: what is too little for it, if the end of tasks can make it enough.

        Only GPUs can be too little where there seem to be enough.
        """
        total, free = self.resources.all_units()
        lasting = self.resources.reserved_units()
        for lease in self.leases.values():
            if lease.request.for_actor and not lease.request.lends:
                for name, units in lease.allocation.request.items():
                    lasting[name] = lasting.get(name, 0) + units
        if any(total.get(name, 0) - lasting.get(name, 0) < units for name, units in demand.items()):
            return set()
        lacking = {name for name, units in demand.items() if free.get(name, 0) < units}
        return lacking or set(demand.only("GPU"))

    def _reclaim(self, unmet: list[LeaseRequest], now: float) -> None:
        """Asks for as many leases of others as there are requests that must wait."""
        open_reclaims = sum([lease.reclaimed for lease in self._of_tasks.values()]) if unmet else 0
        for request in unmet:
            if request.told:
                continue
            need = request.wanted - open_reclaims
            for lease in self._of_tasks.values():
                if need <= 0:
                    break
                if lease.reclaimed or lease.request is request or lease.worker is None or lease.blocked:
                    continue
                if request.depth < lease.request.depth and request.is_patient(now):
                    continue
                if not lease.request.demand.overlaps(request.demand):
                    continue
                lease.reclaimed = True
                open_reclaims += 1
                need -= 1
                self._effects.append(Reclaim(lease))

    def _holding_cpus(self, group: str | None) -> list[NodeLease]:
        """Leases of tasks that hold CPUs of a placement group, or of the node itself: they end."""
        return [
            lease
            for lease in self._of_tasks.values()
            if not lease.blocked
            and lease.request.demand.group == group
            and lease.request.demand.asks_of("CPU")
        ]

    def _reclaim_for_resuming(self) -> None:
        """Asks for a lease whose CPUs a worker needs to go on, one at a time in each place: one that this worker holds
        itself, if there is one."""
        seen: set[str | None] = set()
        for resuming in self._resuming:
            group = resuming.request.demand.group
            if group in seen:
                continue
            seen.add(group)
            holding = self._holding_cpus(group)
            if any(lease.reclaimed or lease.worker is None for lease in holding):
                continue  # one is on its way, or will be
            assert resuming.worker is not None
            own = [lease for lease in holding if lease.request.owner == resuming.worker.id]
            for lease in (own or holding)[:1]:
                lease.reclaimed = True
                self._effects.append(Reclaim(lease))

    def _match_workers(self) -> None:
        for kind, waiting in list(self._waiting.items()):
            idle = self._idle.get(kind)
            while waiting and idle:
                lease = waiting.popleft()
                self._table.count(lease.request, reserved=-1, held=1)
                worker = idle.pop()  # the one that was busy last: its caches are warm
                worker.lease = lease
                lease.worker = worker
                self._effects.append(Grant(lease))
            if not waiting:
                del self._waiting[kind]
            if idle is not None and not idle:
                del self._idle[kind]

    def _start_workers(self) -> None:
        starting = sum(self._starting.values())
        for kind, waiting in self._waiting.items():
            need = len(waiting) - self._starting.get(kind, 0)
            while need > 0 and starting < self.start_at_once:
                self._effects.append(StartWorker(kind))
                self._starting[kind] = self._starting.get(kind, 0) + 1
                starting += 1
                need -= 1

    def _end_left(self) -> None:
        """Ends idle workers of jobs whose drivers are gone."""
        if not self._left_jobs:
            return
        for kind in [kind for kind in self._idle if kind.job in self._left_jobs]:
            for worker in self._idle.pop(kind):
                del self.workers[worker.id]
                self._effects.append(EndWorker(worker.id, "its driver is gone"))

    def _started(self, kind: Kind) -> None:
        """One of the workers that were starting is ready, or has failed."""
        left = self._starting.pop(kind, 0) - 1
        if left > 0:
            self._starting[kind] = left

    def _set_idle(self, worker: PoolWorker, now: float) -> None:
        worker.idle_since = now
        self._idle.setdefault(worker.kind, []).append(worker)

    def _take_idle(self, worker: PoolWorker) -> None:
        idle = self._idle[worker.kind]
        idle.remove(worker)
        if not idle:
            del self._idle[worker.kind]

    def _end(self, lease: NodeLease) -> None:
        del self.leases[lease.id]
        self._of_tasks.pop(lease.id, None)
        self._blocked.pop(lease.id, None)
        owner = self._table.owners.get(lease.request.owner)
        if owner is not None:  # else it leaves
            del owner.leases[lease.id]
        self.resources.release(lease.allocation)
        if lease.worker is None:
            self._table.count(lease.request, reserved=-1)
            self._waiting[lease.kind].remove(lease)
        else:
            self._table.count(lease.request, held=-1)
        self._forget_if_over(lease.request)

    # --------------------------------------------------------------------------------------------------- reports

    def take_news(self) -> Iterable[tuple[ProcessId, int]]:
        """(owner, class) of what was asked for that stands otherwise than when this was called last, or is gone."""
        return self._table.take_news()

    def demands(self) -> list[tuple[dict[str, float], int, bool]]:
        """What waits: (resources, how many, feasible)."""
        return [
            (request.demand.to_dict(), request.wanted, request.feasible)
            for request in self.requests.values()
            if request.wanted and request.claims is None
        ]

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        self.resources.check()
        if {lease.allocation for lease in self.leases.values()} != self.resources.live:
            raise AssertionError("the leases do not hold what is allocated")
        self._check_tables()
        waiting = [lease for leases in self._waiting.values() for lease in leases]
        for lease in self.leases.values():
            if (lease.worker is None) != (lease in waiting):
                raise AssertionError(f"{lease} has {lease.worker}, and waits: {lease in waiting}")
            if lease.worker is not None and lease.worker.lease is not lease:
                raise AssertionError(f"{lease} has a worker that serves {lease.worker.lease}")
            if lease.worker is not None and lease.worker.kind != lease.kind:
                raise AssertionError(f"{lease} needs {lease.kind}, and has {lease.worker.kind}")
        idle = [worker for workers in self._idle.values() for worker in workers]
        for worker in self.workers.values():
            places = (worker.lease is not None) + (worker in idle) + worker.retiring
            if places != 1:
                raise AssertionError(f"worker {worker.id.hex()} stands in {places} places")

    def _check_tables(self) -> None:
        """What is kept so that nobody need look for it is what there is to find, and nothing of what is over."""
        requests, leases = self.requests, self.leases
        self._table.check()
        if not all(self._idle.values()) or not all(self._starting.values()):
            raise AssertionError(f"no worker idle or starting: {self._idle}, {self._starting}")
        for request in requests.values():
            if not (request.for_actor or request.wanted or request.reserved or request.held):
                raise AssertionError(f"{request} wants and has nothing")
        held = {lease.id: lease for has in self._table.owners.values() for lease in has.leases.values()}
        for table, kept, there in (
            ("leases of owners", held, leases),
            (
                "of tasks",
                self._of_tasks,
                {n: each for n, each in leases.items() if not each.request.for_actor},
            ),
            ("blocked", self._blocked, {n: each for n, each in leases.items() if each.blocked}),
        ):
            if kept != there:
                raise AssertionError(f"{table}: {kept}, and there are {there}")
        for request in requests.values():
            fetching.check(request)
            waits = [lease.worker is None for lease in leases.values() if lease.request is request]
            if (request.reserved, request.held) != (sum(waits), len(waits) - sum(waits)):
                raise AssertionError(
                    f"{sum(waits)} of {len(waits)} leases wait for workers, {request.reserved} were counted"
                )
