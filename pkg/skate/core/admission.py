"""Which lease request a node grants, and on which of its workers. Nothing runs over the node's resources, ever.

Pure. State: the node's resources, the requests that wait, the leases that are granted, and the pool of workers. Events:
leases_requested, lease_returned, worker_ready, worker_died, worker_blocked, worker_unblocked, process_left, job_left.
They only note what happened; `decide` then acts on all of them, so that what arrives together is judged together.
Effects are what `decide` returns.

Rules:

* A worker whose wait is over gets its CPUs back before anything new is granted.
* Among requests the more deeply nested go first, so that what blocked workers wait for can finish; equals take turns.
  One that has waited for long goes first once: a task that keeps submitting starves nobody.
* A request that must wait has leases of other classes and owners reclaimed: a thousand owners get their turns.
* What others were preferred to PASSED_OVER times, because it needs more at once than was ever free, has what it lacks
  kept for it; only owners that are blocked themselves, and so may hold what it waits for, still go first.
* A worker blocked in `get` or `wait` lends its CPUs, not its GPUs.
* A lease for an actor is never reclaimed; one that only had to find a free CPU (`lends`) gives it back at once. Actors
  get workers after tasks do, whose leases wait before theirs.
* Workers are started only for leases whose resources are reserved, so there are never more than the resources allow
  plus those that are blocked. Idle ones beyond `keep_idle` are asked to leave; those of a job whose driver is gone end
  as soon as they are idle.

Invariants (`check`): what the live allocations hold is what the leases say; a worker has one lease at most; a lease has
a worker, or waits for one in `_waiting`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Any, Final, NamedTuple

from skate.core.resources import Allocation, NodeResources, ResourceSet
from skate.ids import ProcessId

#: (job, variables): what tells workers apart, and of a worker which program it is of
Environment = tuple[Hashable, Hashable]

#: workers in a row that may die before they are ready, until those who wait for them are told
START_ATTEMPTS: Final = 3
#: seconds after which a request that was granted nothing goes first once, however shallow its owner is
PATIENCE_SECONDS: Final = 0.2
#: grants to others behind it in the line, until what a request lacks is kept for it
PASSED_OVER: Final = 10
#: seconds that an idle worker beyond `keep_idle` is kept
IDLE_SECONDS: Final = 1.0


class StartWorker(NamedTuple):
    """Effect: fork a worker for this environment; `worker_ready` or `worker_start_failed` follows."""

    environment: Environment


class Grant(NamedTuple):
    """Effect: tell the owner about its lease."""

    lease: NodeLease


class Reclaim(NamedTuple):
    """Effect: tell the owner that others wait for this lease."""

    lease: NodeLease


class ResumeWorker(NamedTuple):
    """Effect: the worker has its CPUs again."""

    lease: NodeLease


class KillWorker(NamedTuple):
    """Effect: end a worker whose owner is gone."""

    worker: ProcessId
    why: str


class RetireWorker(NamedTuple):
    """Effect: ask an idle worker to end, if it owns nothing."""

    worker: ProcessId


class WarnInfeasible(NamedTuple):
    """Effect: tell the owner that no node can ever meet its demand."""

    request: LeaseRequest


class FailRequest(NamedTuple):
    """Effect: tell the owner that no worker for its request can be started."""

    request: LeaseRequest


Effect = (
    FailRequest | StartWorker | Grant | Reclaim | ResumeWorker | KillWorker | RetireWorker | WarnInfeasible
)


class LeaseRequest:
    """How many leases of one class an owner could still use."""

    __slots__ = (
        "class_id",
        "demand",
        "depth",
        "environment",
        "feasible",
        "for_actor",
        "lends",
        "owner",
        "passed",
        "turn",
        "waits_since",
        "wanted",
    )

    def __init__(
        self,
        owner: ProcessId,
        class_id: int,
        demand: ResourceSet,
        depth: int,
        environment: Environment,
        feasible: bool,
    ) -> None:
        self.owner = owner
        self.class_id = class_id
        self.demand = demand
        self.depth = depth
        self.environment = environment
        self.feasible = feasible
        #: its owner is the actor that will live in the worker
        self.for_actor = False
        #: it holds no CPU once it is granted
        self.lends = False
        self.wanted = 0
        #: when it was granted something last, or came up
        self.waits_since = 0.0
        #: requests with the lowest number go first among equally deep ones
        self.turn = 0
        #: grants to requests behind it since it was served last
        self.passed = 0

    def is_patient(self, now: float) -> bool:
        """It has not waited for long: what is nested deeper goes first."""
        return not self.waits_since or now < self.waits_since + PATIENCE_SECONDS


class NodeLease:
    """Resources and a worker, given to an owner."""

    __slots__ = ("allocation", "blocked", "id", "reclaimed", "request", "worker")

    def __init__(self, lease_id: int, request: LeaseRequest, allocation: Allocation) -> None:
        self.id = lease_id
        self.request = request
        self.allocation = allocation
        #: None until one has started
        self.worker: PoolWorker | None = None
        self.reclaimed = False
        #: its worker waits in `get`, or has waited and waits for its CPUs
        self.blocked = False

    def __repr__(self) -> str:
        return f"<NodeLease {self.id} {self.request.demand} for {self.request.owner.hex()}>"


class PoolWorker:
    """A worker process as the node sees it."""

    __slots__ = ("environment", "id", "idle_since", "lease", "retiring")

    def __init__(self, worker_id: ProcessId, environment: Environment, now: float) -> None:
        self.id = worker_id
        self.environment = environment
        self.lease: NodeLease | None = None
        self.idle_since = now
        self.retiring = False


class Admission:
    """The scheduler of one node."""

    def __init__(self, resources: NodeResources, *, keep_idle: int, start_at_once: int) -> None:
        self.resources = resources
        #: idle workers that are kept warm
        self.keep_idle = keep_idle
        #: workers that may be starting at the same time
        self.start_at_once = start_at_once
        self.requests: dict[tuple[ProcessId, int], LeaseRequest] = {}
        self.leases: dict[int, NodeLease] = {}
        self.workers: dict[ProcessId, PoolWorker] = {}
        self._idle: dict[Environment, list[PoolWorker]] = {}
        self._waiting: dict[Environment, deque[NodeLease]] = {}
        self._starting: dict[Environment, int] = {}
        #: environment -> workers that died before they were ready, since one was
        self._failures: dict[Environment, int] = {}
        self._resuming: deque[NodeLease] = deque()
        #: jobs whose drivers are gone, and which still have processes or actors
        self._left_jobs: set[Hashable] = set()
        self._effects: list[Effect] = []
        self._next_lease = 0
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
    ) -> None:
        """How many leases of the class the owner could use now, beyond those that it knows of."""
        key = (owner, class_id)
        request = self.requests.get(key)
        if request is None:
            feasible = self.resources.feasible(demand)
            request = self.requests[key] = LeaseRequest(owner, class_id, demand, depth, environment, feasible)
            if not feasible:
                self._effects.append(WarnInfeasible(request))
        request.depth = depth  # a worker asks for the same class from tasks of any depth
        if wanted and not request.wanted:
            self._turn += 1
            request.turn = self._turn
        reserved = sum(1 for lease in self._waiting.get(environment, ()) if lease.request is request)
        request.wanted = max(0, wanted - reserved)
        if not request.wanted:
            request.waits_since = 0.0

    def actor_placed(
        self, actor: bytes, demand: ResourceSet, lends: bool, depth: int, environment: Environment
    ) -> None:
        """An actor needs a worker for itself. `process_left(actor)` takes that back, and the worker if it has one."""
        self.leases_requested(ProcessId(actor), 0, demand, depth, 1, environment)
        request = self.requests[ProcessId(actor), 0]
        request.for_actor = True
        request.lends = lends

    def lease_returned(self, lease_id: int, now: float) -> None:
        lease = self.leases.get(lease_id)
        if lease is None:
            return  # the worker's death came first
        worker = lease.worker
        self._end(lease)
        if worker is not None:
            worker.lease = None
            self._set_idle(worker, now)

    def worker_ready(self, worker_id: ProcessId, environment: Environment, now: float) -> None:
        if worker_id in self.workers:
            return  # it said so before
        self._started(environment)
        self._failures.pop(environment, None)
        worker = self.workers[worker_id] = PoolWorker(worker_id, environment, now)
        self._set_idle(worker, now)

    def worker_start_failed(self, environment: Environment) -> None:
        """A worker died before it was ready; `decide` starts another where one is still needed, a few times."""
        self._started(environment)
        failures = self._failures[environment] = self._failures.get(environment, 0) + 1
        if failures < START_ATTEMPTS:
            return
        del self._failures[environment]
        for lease in list(self._waiting.get(environment, ())):
            self._end(lease)
            lease.request.wanted += 1
        for key, request in list(self.requests.items()):
            if request.environment == environment and request.wanted and request.feasible:
                del self.requests[key]
                self._effects.append(FailRequest(request))

    def worker_died(self, worker_id: ProcessId) -> None:
        worker = self.workers.pop(worker_id, None)
        if worker is None:
            return
        if worker.lease is not None:
            self._end(worker.lease)
        elif worker in self._idle.get(worker.environment, ()):
            self._idle[worker.environment].remove(worker)

    def worker_blocked(self, lease_id: int) -> None:
        lease = self.leases.get(lease_id)
        if lease is not None and not lease.blocked:
            lease.blocked = True
            self.resources.release_cpus(lease.allocation)

    def worker_unblocked(self, lease_id: int) -> None:
        lease = self.leases.get(lease_id)
        if lease is not None and lease.blocked:
            self._resuming.append(lease)

    def process_left(self, process: ProcessId) -> None:
        """An owner is gone: its requests end, and workers that run its tasks are of no use any more."""
        for key in [key for key in self.requests if key[0] == process]:
            del self.requests[key]
        self._effects = [
            effect
            for effect in self._effects
            if not isinstance(effect, WarnInfeasible) or effect.request.owner != process
        ]
        for lease in [lease for lease in self.leases.values() if lease.request.owner == process]:
            worker = lease.worker
            self._end(lease)
            if worker is not None:
                worker.lease = None
                self.workers.pop(worker.id, None)
                self._effects.append(KillWorker(worker.id, f"its owner {process.hex()} is gone"))

    # -------------------------------------------------------------------------------------------------- decisions

    def decide(self, now: float) -> list[Effect]:
        """Acts on all that has happened since the last call."""
        self._resume()
        unmet = [] if self._resuming else self._grant(now)
        self._match_workers()
        self._reclaim(
            unmet, now
        )  # also leases that have just got their worker: no other event may come for long
        self._start_workers()
        self._end_left()
        effects, self._effects = self._effects, []
        return effects

    def prestart(self, number: int, environment: Environment) -> list[Effect]:
        """Starts `number` workers before anyone asks."""
        self._starting[environment] = self._starting.get(environment, 0) + number
        return [StartWorker(environment)] * number

    def job_left(self, job: Hashable) -> None:
        """The driver of a job is gone: from now on its workers end as soon as nobody has a use for them.

        Its detached actors, and what they ask for, are served as before.
        """
        self._left_jobs.add(job)

    def job_forgotten(self, job: Hashable) -> None:
        """A job that has left has no process any more, and nobody will ask for one."""
        self._left_jobs.discard(job)
        tables: tuple[dict[Environment, Any], ...] = (
            self._idle,
            self._waiting,
            self._starting,
            self._failures,
        )
        for table in tables:
            for environment in [environment for environment in table if environment[0] == job]:
                del table[environment]

    def tick(self, now: float) -> float | None:
        """Asks workers that have been idle for long to leave; gives the time of the next such look, or None."""
        idle = [worker for workers in self._idle.values() for worker in workers if not worker.retiring]
        spare = sorted(idle, key=lambda worker: worker.idle_since)[: max(0, len(idle) - self.keep_idle)]
        due = None
        for worker in spare:
            at = worker.idle_since + IDLE_SECONDS
            if at <= now:
                worker.retiring = True
                self._idle[worker.environment].remove(worker)
                self._effects.append(RetireWorker(worker.id))
            elif due is None or at < due:
                due = at
        for request in self.requests.values():
            if request.wanted and request.feasible and request.is_patient(now):
                at = (request.waits_since or now) + PATIENCE_SECONDS
                due = at if due is None else min(due, at)
        return due

    def retirement_declined(self, worker_id: ProcessId, now: float) -> None:
        """The worker still owns something: it stays."""
        worker = self.workers.get(worker_id)
        if worker is not None and worker.retiring:
            worker.retiring = False
            self._set_idle(worker, now)

    def _resume(self) -> None:
        while self._resuming:
            lease = self._resuming[0]
            if self.leases.get(lease.id) is lease:
                if not self.resources.reacquire_cpus(lease.allocation):
                    self._reclaim_for(lease)
                    return
                lease.blocked = False
                self._effects.append(ResumeWorker(lease))
            self._resuming.popleft()

    def _grant(self, now: float) -> list[LeaseRequest]:
        """Grants what fits, in turn; gives the requests that must wait."""
        open_requests = [request for request in self.requests.values() if request.wanted and request.feasible]
        if not open_requests:
            return []
        for request in open_requests:
            request.waits_since = request.waits_since or now
        short: set[ResourceSet] = set()
        waiting: list[LeaseRequest] = []
        #: names of resources that are kept for a request that was passed over too often
        kept: set[str] = set()
        blocked = {
            lease.worker.id for lease in self.leases.values() if lease.blocked and lease.worker is not None
        }
        order = sorted(
            open_requests, key=lambda request: (request.is_patient(now), -request.depth, request.turn)
        )
        queue = deque(order)
        while queue:
            request = queue.popleft()
            if request.demand in short:
                continue
            if request.owner not in blocked and not kept.isdisjoint(request.demand):
                continue
            allocation = self.resources.allocate(request.demand)
            if allocation is None:
                short.add(request.demand)
                waiting.append(request)
                if request.passed >= PASSED_OVER:
                    kept |= self._lacking(request.demand)
                continue
            for other in waiting:
                other.passed += 1
            request.passed = 0
            request.wanted -= 1
            request.waits_since = now if request.wanted else 0.0
            self._turn += 1
            request.turn = self._turn
            self._next_lease += 1
            lease = NodeLease(self._next_lease, request, allocation)
            self.leases[lease.id] = lease
            if request.lends:
                self.resources.release_cpus(lease.allocation)
            self._line_up(lease)
            if request.wanted:
                # equals take turns: behind the others of the same depth
                at = next((i for i, other in enumerate(queue) if other.depth < request.depth), len(queue))
                queue.insert(at, request)
        return [request for request in order if request.wanted]

    def _line_up(self, lease: NodeLease) -> None:
        """The lease waits for a worker: a task's before all actors'."""
        waiting = self._waiting.setdefault(lease.request.environment, deque())
        if lease.request.for_actor or not waiting or not waiting[-1].request.for_actor:
            waiting.append(lease)
        else:
            waiting.insert(next(at for at, other in enumerate(waiting) if other.request.for_actor), lease)

    def _lacking(self, demand: ResourceSet) -> set[str]:
        """Names of what is too little for `demand`; only GPUs can be too little where there seem to be enough."""
        free = self.resources.available_dict()
        return {name for name, amount in demand.to_dict().items() if free.get(name, 0.0) < amount} or {"GPU"}

    def _reclaim(self, unmet: list[LeaseRequest], now: float) -> None:
        """Asks for as many leases of others as there are requests that must wait."""
        for request in unmet:
            open_reclaims = sum(1 for lease in self.leases.values() if lease.reclaimed)
            need = request.wanted - open_reclaims
            for lease in self.leases.values():
                if need <= 0:
                    break
                if lease.reclaimed or lease.request is request or lease.worker is None or lease.blocked:
                    continue
                if lease.request.for_actor:
                    continue
                if request.depth < lease.request.depth and request.is_patient(now):
                    continue
                if not any(lease.request.demand.get(name) for name in request.demand):
                    continue
                lease.reclaimed = True
                need -= 1
                self._effects.append(Reclaim(lease))

    def _reclaim_for(self, resuming: NodeLease) -> None:
        """Asks for a lease whose CPUs a worker needs to go on: one that this worker holds itself, if there is one."""
        assert resuming.worker is not None
        holds_cpu = [
            lease
            for lease in self.leases.values()
            if lease.worker is not None
            and not lease.blocked
            and not lease.request.for_actor
            and lease.request.demand.get("CPU")
        ]
        if any(lease.reclaimed for lease in holds_cpu):
            return  # one is on its way
        own = [lease for lease in holds_cpu if lease.request.owner == resuming.worker.id]
        for lease in (own or holds_cpu)[:1]:
            lease.reclaimed = True
            self._effects.append(Reclaim(lease))

    def _match_workers(self) -> None:
        for environment, waiting in self._waiting.items():
            idle = self._idle.get(environment)
            while waiting and idle:
                lease = waiting.popleft()
                worker = idle.pop()  # the one that was busy last: its caches are warm
                worker.lease = lease
                lease.worker = worker
                self._effects.append(Grant(lease))

    def _start_workers(self) -> None:
        starting = sum(self._starting.values())
        for environment, waiting in self._waiting.items():
            need = len(waiting) - self._starting.get(environment, 0)
            while need > 0 and starting < self.start_at_once:
                self._effects.append(StartWorker(environment))
                self._starting[environment] = self._starting.get(environment, 0) + 1
                starting += 1
                need -= 1

    def _end_left(self) -> None:
        """Ends idle workers of jobs whose drivers are gone."""
        if not self._left_jobs:
            return
        for environment, idle in self._idle.items():
            if environment[0] in self._left_jobs:
                for worker in idle:
                    del self.workers[worker.id]
                    self._effects.append(KillWorker(worker.id, "its driver is gone"))
                idle.clear()

    def _started(self, environment: Environment) -> None:
        """One of the workers that were starting is ready, or has failed."""
        self._starting[environment] = max(0, self._starting.get(environment, 0) - 1)

    def _set_idle(self, worker: PoolWorker, now: float) -> None:
        worker.idle_since = now
        self._idle.setdefault(worker.environment, []).append(worker)

    def _end(self, lease: NodeLease) -> None:
        del self.leases[lease.id]
        self.resources.release(lease.allocation)
        if lease.worker is None:
            self._waiting[lease.request.environment].remove(lease)

    # --------------------------------------------------------------------------------------------------- reports

    def demands(self) -> list[tuple[dict[str, float], int, bool]]:
        """What waits: (resources, how many, feasible)."""
        return [
            (request.demand.to_dict(), request.wanted, request.feasible)
            for request in self.requests.values()
            if request.wanted
        ]

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        self.resources.check()
        if {lease.allocation for lease in self.leases.values()} != self.resources.live:
            raise AssertionError("the leases do not hold what is allocated")
        waiting = [lease for leases in self._waiting.values() for lease in leases]
        for lease in self.leases.values():
            if (lease.worker is None) != (lease in waiting):
                raise AssertionError(f"{lease} has {lease.worker}, and waits: {lease in waiting}")
            if lease.worker is not None and lease.worker.lease is not lease:
                raise AssertionError(f"{lease} has a worker that serves {lease.worker.lease}")
        idle = [worker for workers in self._idle.values() for worker in workers]
        for worker in self.workers.values():
            places = (worker.lease is not None) + (worker in idle) + worker.retiring
            if places != 1:
                raise AssertionError(f"worker {worker.id.hex()} stands in {places} places")
