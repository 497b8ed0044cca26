"""What a node's admission keeps (requests, leases, workers of the pool), and what it decides (effects).

No state. Who makes and changes these is core.admission alone.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, NamedTuple

from skate.core.resources import Allocation, ResourceSet
from skate.ids import ObjectId, ProcessId

#: (job, variables): what an owner says of the workers that it needs: the program that they are of, and what is set
Environment = tuple[Hashable, Hashable]

#: (object id, bytes) of objects that are not here
Lacks = tuple[tuple[ObjectId, int], ...]

#: seconds after which a request that was granted nothing goes first once, however shallow its owner is
PATIENCE_SECONDS: Final = 0.2


class Kind(NamedTuple):
    """What tells workers apart: a lease is served by a worker of its kind, and by no other.

    The GPUs are part of it, since what a library has found of them when it was imported stays true in that process.
    """

    job: Hashable
    variables: Hashable
    #: ids of the GPUs that it sees
    devices: tuple[str, ...] = ()


class StartWorker(NamedTuple):
    """Effect: fork a worker of this kind; `worker_ready` or `worker_start_failed` follows."""

    kind: Kind


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


class EndWorker(NamedTuple):
    """Effect: end a worker of tasks that nobody needs any more; in order, if it runs none."""

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


class RoomForBundles(NamedTuple):
    """Effect: what was claimed for a placement group could be prepared now."""

    group: bytes


class FetchArguments(NamedTuple):
    """Effect: bring what the request lacks to this node's store; `arguments_fetched` follows."""

    request: LeaseRequest


class StopFetching(NamedTuple):
    """Effect: what the request lacks is not wanted here any more."""

    request: LeaseRequest


Effect = (
    EndWorker
    | FailRequest
    | StartWorker
    | Grant
    | Reclaim
    | ResumeWorker
    | KillWorker
    | RetireWorker
    | WarnInfeasible
    | RoomForBundles
    | FetchArguments
    | StopFetching
)


class LeaseRequest:
    """How many leases of one class an owner could still use."""

    __slots__ = (
        "allowed",
        "brief",
        "captures",
        "claims",
        "class_id",
        "demand",
        "depth",
        "environment",
        "feasible",
        "fetched",
        "fetching",
        "for_actor",
        "held",
        "lacks",
        "lends",
        "owner",
        "passed",
        "reserved",
        "told",
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
        allowed: bool = True,
    ) -> None:
        self.owner = owner
        self.class_id = class_id
        self.demand = demand
        self.depth = depth
        self.environment = environment
        self.feasible = feasible
        #: the node is one of those on which it may run
        self.allowed = allowed
        #: tasks of what runs in it go to its placement group, too
        self.captures = False
        #: the bundles that it claims room for; None of a request for workers
        self.claims: tuple[ResourceSet, ...] | None = None
        #: whoever claims it knows that there is room
        self.told = False
        #: its owner is the actor that will live in the worker
        self.for_actor = False
        #: it holds no CPU once it is granted
        self.lends = False
        #: it is for tasks with large arguments, and goes when they are done
        self.brief = False
        #: those of the arguments that are to be brought to this node first: (object id, bytes)
        self.lacks: Lacks = ()
        self.fetching = False
        #: bytes that were brought here for it
        self.fetched = 0
        self.wanted = 0
        #: leases that have their resources, and no worker yet
        self.reserved = 0
        #: leases that have their workers
        self.held = 0
        #: when it was granted something last, or came up
        self.waits_since = 0.0
        #: requests with the lowest number go first among equally deep ones
        self.turn = 0
        #: grants to requests behind it since it was served last
        self.passed = 0

    def needs(self, kind: Kind) -> bool:
        """Whether a worker of that kind could serve it."""
        return self.environment == kind[:2] and bool(self.demand.asks_of("GPU")) == bool(kind.devices)

    def is_patient(self, now: float) -> bool:
        """It has not waited for long: what is nested deeper goes first."""
        return not self.waits_since or now < self.waits_since + PATIENCE_SECONDS


class NodeLease:
    """Resources and a worker, given to an owner."""

    __slots__ = ("allocation", "blocked", "id", "kind", "reclaimed", "request", "worker")

    def __init__(self, lease_id: int, request: LeaseRequest, allocation: Allocation) -> None:
        self.id = lease_id
        self.request = request
        self.allocation = allocation
        #: of the worker that can serve it
        self.kind = Kind(*request.environment, tuple(allocation.device_ids))
        #: None until one has started
        self.worker: PoolWorker | None = None
        self.reclaimed = False
        #: its worker waits in `get`, or has waited and waits for its CPUs
        self.blocked = False

    def __repr__(self) -> str:
        return f"<NodeLease {self.id} {self.request.demand} for {self.request.owner.hex()}>"


class PoolWorker:
    """A worker process as the node sees it."""

    __slots__ = ("id", "idle_since", "kind", "lease", "retiring")

    def __init__(self, worker_id: ProcessId, kind: Kind, now: float) -> None:
        self.id = worker_id
        self.kind = kind
        self.lease: NodeLease | None = None
        self.idle_since = now
        self.retiring = False


class Owner:
    """What one process, or one actor, has asked for and has."""

    __slots__ = ("leases", "requests")

    def __init__(self) -> None:
        self.requests: dict[int, LeaseRequest] = {}
        self.leases: dict[int, NodeLease] = {}
