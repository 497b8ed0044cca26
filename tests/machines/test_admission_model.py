"""A node's admission under owners, workers and blocked tasks in any order: never over capacity, nobody forgotten.

The model counts with plain dictionaries what the leases that were granted hold, from the effects alone; and what the
bundles of placement groups take, and what runs in them.
"""

from __future__ import annotations

from typing import Any

from budgets import examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from skate._c.resources import UNITS_PER_ONE as ONE
from skate.core.admission import IDLE_SECONDS, START_ATTEMPTS, Admission
from skate.core.bundles import BundledResources
from skate.core.group_names import asked_of_group
from skate.core.leases import (
    EndWorker,
    FailRequest,
    FetchArguments,
    Grant,
    KillWorker,
    Kind,
    NodeLease,
    Reclaim,
    ResumeWorker,
    RetireWorker,
    RoomForBundles,
    StartWorker,
    StopFetching,
    WarnInfeasible,
)
from skate.core.resources import ResourceSet
from skate.ids import NodeId, ObjectId, ProcessId, process_id

OWNERS = [process_id(NodeId(b"node"), number) for number in (1, 2, 3)]
CAPACITY = {"CPU": 2 * ONE, "GPU": ONE, "x": 3 * ONE}
GROUPS = [b"g" * 16, b"h" * 16]
#: what groups are made of: index -> units
BUNDLES = [
    {0: {"CPU": ONE}},
    {0: {"CPU": ONE}, 1: {"GPU": ONE // 2}},
    {0: {"CPU": ONE, "x": ONE}, 1: {"CPU": ONE}},
    {0: {"GPU": ONE}},
    {0: {"CPU": 3 * ONE}},  # more than there is
]
IN_GROUPS = [
    asked_of_group(group.hex(), index, units)
    for group in GROUPS
    for index, units in [
        (-1, {"CPU": ONE}),
        (0, {"CPU": ONE // 2}),
        (1, {"GPU": ONE // 2}),
        (-1, {}),
        (1, {}),
    ]
]
DEMANDS = [
    {"CPU": ONE},
    {"CPU": ONE // 2},
    {"CPU": 2 * ONE},
    {"CPU": ONE, "x": ONE},
    {"GPU": ONE, "CPU": ONE},
    {"GPU": ONE // 2},
    {},
    {"CPU": 3 * ONE},  # more than there is
    {"nothing has this": 1},
    *IN_GROUPS,
]
PLAIN = ("job", ())
PLAIN_KIND = Kind(*PLAIN)
#: classes from here on are of tasks with large arguments
BRIEF = 1000
FETCH_BYTES = 100
ARGUMENT = ObjectId(b"argument" + bytes(12))
ENVIRONMENTS = (PLAIN, ("job", (("MODE", "1"),)), ("other job", ()))
JOBS = ("job", "other job")


class Node:
    """Admission, and what its effects make of the world."""

    def __init__(self, *, keep_idle: int = 2, start_at_once: int = 4) -> None:
        resources = BundledResources(CAPACITY, ["GPU-0"])
        self.admission = Admission(
            resources, keep_idle=keep_idle, start_at_once=start_at_once, fetch_bytes=FETCH_BYTES
        )
        #: of requests with large arguments: those that lack some, and those whose arguments are on their way
        self.lacking: set[tuple[ProcessId, int]] = set()
        #: leases that had their resources when it turned out that their tasks lack arguments
        self.early: set[int] = set()
        #: leases whose workers went on without the CPUs that they had lent, since bundles hold these
        self.without_cpus: set[int] = set()
        #: what came while the order to stop the fetching of it had not left yet
        self.crossed: set[tuple[ProcessId, int]] = set()
        self.fetching: set[tuple[ProcessId, int]] = set()
        self.now = 0.0
        self.serial = 100
        #: (owner, class) -> what was asked for and not granted
        self.wanted: dict[tuple[ProcessId, int], int] = {}
        self.demand: dict[tuple[ProcessId, int], dict[str, int]] = {}
        self.starting: list[Any] = []
        self.workers: dict[ProcessId, Any] = {}
        self.granted: dict[int, NodeLease] = {}
        #: leases whose workers wait in `get`, and those whose wait is over
        self.blocked: set[int] = set()
        self.resuming: set[int] = set()
        self.reclaimed: set[int] = set()
        self.retiring: set[ProcessId] = set()
        self.warned: list[tuple[ProcessId, int]] = []
        self.failed: list[tuple[ProcessId, int]] = []
        self.left_jobs: set[str] = set()
        #: those of whom admission has yet to say so
        self.failing: list[tuple[ProcessId, int]] = []
        #: group -> its bundles here, and which of them are committed
        self.bundles: dict[bytes, dict[int, dict[str, int]]] = {}
        self.committed: dict[bytes, set[int]] = {}
        self.claims: dict[bytes, tuple[ResourceSet, ...]] = {}
        #: groups that may prepare what they claim
        self.has_room: list[bytes] = []

    # -- effects

    def decide(self) -> list[Any]:
        effects = self.admission.decide(self.now)
        for effect in effects:
            getattr(self, f"do_{type(effect).__name__}")(effect)
        self.admission.check()
        if not self.admission.undecided(self.now):
            assert not self.admission.decide(self.now), "nothing has happened since"
        self.check_fetching()
        serving = {lease.worker.id for lease in self.granted.values() if lease.worker}
        for worker in self.workers.keys() - serving - self.retiring:
            assert self.workers[worker][0] not in self.left_jobs, "nobody has a use for it any more"
        return effects

    def do_StartWorker(self, effect: StartWorker) -> None:
        self.starting.append(effect.kind)

    def do_Grant(self, effect: Grant) -> None:
        lease = effect.lease
        key = (lease.request.owner, lease.request.class_id)
        assert lease.id not in self.granted, "granted twice"
        assert lease.worker is not None
        assert lease.worker.id in self.workers, "granted a worker that is gone"
        assert key not in self.lacking or lease.id in self.early, "granted before its arguments are here"
        assert lease.worker.id not in self.retiring
        devices = tuple(device for device, _ in lease.allocation.devices)
        assert self.workers[lease.worker.id] == Kind(*lease.request.environment, devices), "it sees others"
        assert lease.worker.id not in {other.worker.id for other in self.granted.values() if other.worker}
        self.wanted[key] = max(0, self.wanted[key] - 1)  # 0: it had changed its mind while the worker started
        self.granted[lease.id] = lease

    def do_Reclaim(self, effect: Reclaim) -> None:
        assert effect.lease.id in self.granted
        assert effect.lease.id not in self.reclaimed, "reclaimed twice"
        self.reclaimed.add(effect.lease.id)

    def do_ResumeWorker(self, effect: ResumeWorker) -> None:
        assert effect.lease.id in self.resuming, "a worker is resumed that does not wait for it"
        self.resuming.remove(effect.lease.id)
        self.blocked.remove(effect.lease.id)
        if not effect.lease.allocation.cpus_held:
            assert effect.lease.reclaimed, "it goes on without CPUs, and for as long as it likes"
            self.without_cpus.add(effect.lease.id)

    def do_EndWorker(self, effect: EndWorker) -> None:
        self.do_KillWorker(effect)

    def do_KillWorker(self, effect: EndWorker | KillWorker) -> None:
        self.lose(effect.worker)

    def do_RetireWorker(self, effect: RetireWorker) -> None:
        assert effect.worker not in self.retiring
        self.retiring.add(effect.worker)

    def do_WarnInfeasible(self, effect: WarnInfeasible) -> None:
        key = (effect.request.owner, effect.request.class_id)
        assert key not in self.warned, "warned twice"
        self.warned.append(key)

    def do_FailRequest(self, effect: FailRequest) -> None:
        key = (effect.request.owner, effect.request.class_id)
        self.failed.append(key)
        self.failing.remove(key)

    def do_RoomForBundles(self, effect: RoomForBundles) -> None:
        assert effect.group in self.claims
        self.has_room.append(effect.group)

    def do_FetchArguments(self, effect: FetchArguments) -> None:
        key = (effect.request.owner, effect.request.class_id)
        assert key in self.lacking
        assert key not in self.fetching, "fetched twice"
        self.fetching.add(key)

    def do_StopFetching(self, effect: StopFetching) -> None:
        key = (effect.request.owner, effect.request.class_id)
        if key in self.crossed:
            self.crossed.remove(key)
        else:
            self.fetching.remove(key)

    def check_fetching(self) -> None:
        """What could run but for its arguments waits for nothing else."""
        admission = self.admission
        wanted = {key: admission.requests[key] for key in self.lacking if admission.requests[key].feasible}
        assert self.fetching <= wanted.keys(), "fetched for nobody"
        if self.resuming:
            return
        fit = [request for request in wanted.values() if self.fits(request.demand)]
        assert not fit or self.fetching, f"{fit} could run"

    def fits(self, demand: ResourceSet) -> bool:
        allocation = self.admission.resources.allocate(demand)
        if allocation is not None:
            self.admission.resources.release(allocation)
        return allocation is not None

    # -- placement groups

    def prepare(self, group: bytes, bundles: dict[int, dict[str, int]]) -> bool:
        sets = {index: ResourceSet(units) for index, units in bundles.items()}
        before = self.admission.resources.available_dict()
        taken = self.admission.bundles_prepared(group, sets)
        if taken:
            self.bundles.setdefault(group, {}).update(bundles)
        else:
            assert self.admission.resources.available_dict() == before
        return taken

    def commit(self, group: bytes) -> None:
        indexes = set(self.bundles[group]) - self.committed.get(group, set())
        self.committed.setdefault(group, set()).update(indexes)
        self.admission.bundles_committed(group, indexes)

    def unprepare(self, group: bytes) -> None:
        self.admission.bundles_returned(group, self.bundles.get(group, {}))
        kept = self.committed.get(group, set())
        self.bundles[group] = {i: units for i, units in self.bundles.get(group, {}).items() if i in kept}

    def end_group(self, group: bytes) -> None:
        for lease in [lease for lease in self.granted.values() if lease.request.demand.group == group.hex()]:
            self.drop(lease.id)
        self.bundles.pop(group, None)
        self.committed.pop(group, None)
        self.admission.group_ended(group)
        for key in [key for key in self.wanted if ResourceSet(self.demand[key]).group == group.hex()]:
            assert key not in self.admission.requests
            self.forget(key)
        self.decide()
        assert group.hex() not in self.admission.resources.groups

    def drop_claim(self, group: bytes) -> None:
        self.claims.pop(group, None)
        self.admission.claim_dropped(group)

    # -- events

    def request(
        self,
        owner: ProcessId,
        class_id: int,
        units: dict[str, int],
        wanted: int,
        depth: int = 0,
        environment: Any = PLAIN,
        lacks: Any = None,
    ) -> None:
        """`lacks`: its tasks have large arguments, of which those are not on this node."""
        key = (owner, class_id)
        known = self.admission.requests.get(key)
        waited = known is not None and known.wanted > 0
        self.wanted[key] = wanted
        self.demand[key] = units
        self.admission.leases_requested(
            owner, class_id, ResourceSet(units), depth, wanted, environment, lacks=lacks
        )
        waits = key in self.admission.requests and self.admission.requests[key].wanted > 0
        if lacks and waits and not waited:
            self.lacking.add(key)
            self.early |= {
                lease.id
                for lease in self.admission.leases.values()
                if lease.request is self.admission.requests[key] and lease.worker is None
            }
        elif not lacks or not waits:
            self.lacking.discard(key)
        self.forget_those_over()

    def forget_those_over(self) -> None:
        """Requests for tasks with large arguments go when nothing is wanted, and held, for them."""
        for key in [key for key in self.wanted if key[1] >= BRIEF and key not in self.admission.requests]:
            held = [each for each in self.granted.values() if each.request.owner == key[0]]
            assert not self.wanted[key], "it is forgotten, and wants leases"
            assert not any(lease.request.class_id == key[1] for lease in held)
            self.forget(key)

    def fetched(self, key: tuple[ProcessId, int]) -> None:
        """Arguments are here, or cannot be had. Perhaps nobody wants them any more, and does not know it yet."""
        self.fetching.discard(key)
        request = self.admission.requests.get(key)
        if request is not None and request.fetching:
            self.lacking.remove(key)
        else:
            self.crossed.add(key)
        self.admission.arguments_fetched(*key)

    def forget(self, key: tuple[ProcessId, int]) -> None:
        self.wanted.pop(key, None)
        self.lacking.discard(key)
        if key in self.warned:
            self.warned.remove(key)

    def ready(self, kind: Kind) -> ProcessId:
        self.starting.remove(kind)
        self.serial += 1
        worker = process_id(NodeId(b"node"), self.serial)
        self.workers[worker] = kind
        self.admission.worker_ready(worker, kind, self.now)
        return worker

    def start_fails(self, kind: Kind) -> None:
        self.forget_those_over()
        self.starting.remove(kind)
        self.admission.worker_start_failed(kind)
        for key in [key for key in self.wanted if key not in self.admission.requests]:
            self.failing.append(key)
            self.forget(key)

    def give_back(self, lease_id: int) -> None:
        self.drop(lease_id)
        self.admission.lease_returned(lease_id, self.now)

    def drop(self, lease_id: int) -> None:
        self.granted.pop(lease_id, None)
        for known in (self.blocked, self.resuming, self.reclaimed):
            known.discard(lease_id)

    def lose(self, worker: ProcessId) -> None:
        self.workers.pop(worker, None)
        self.retiring.discard(worker)
        for lease in [lease for lease in self.granted.values() if lease.worker and lease.worker.id == worker]:
            self.drop(lease.id)

    def leaves(self, owner: ProcessId) -> None:
        for key in [key for key in self.wanted if key[0] == owner]:
            self.forget(key)
        self.admission.process_left(owner)

    def job_leaves(self, job: str) -> None:
        self.left_jobs.add(job)
        self.admission.job_left(job)

    # -- what must hold

    def used(self, name: str) -> int:
        """Units of the node itself: what leases hold, but for those in groups, and what bundles hold."""
        bundles = [units.get(name, 0) for group in self.bundles.values() for units in group.values()]
        return self.held(name, None) + sum(bundles)

    def held(self, name: str, group: str | None, index: int = -1) -> int:
        """Units of `name` that leases in the group hold (in the bundle, where one is named)."""
        return sum(
            lease.request.demand.plain().get(name, 0)
            for lease in self.granted.values()
            if lease.request.demand.group == group
            and index in (-1, lease.request.demand.index)
            and not (name == "CPU" and lease.id in self.blocked | self.without_cpus)
        )

    def check(self) -> None:
        self.admission.check()
        self.forget_those_over()
        for name, capacity in CAPACITY.items():
            assert self.used(name) <= capacity, f"{name}: {self.used(name)} of {capacity} are in use"
        for group, indexes in self.committed.items():
            bundles = {index: self.bundles[group][index] for index in indexes}
            for name in CAPACITY:
                assert self.held(name, group.hex()) <= sum(units.get(name, 0) for units in bundles.values())
                for index, units in bundles.items():
                    assert self.held(name, group.hex(), index) <= units.get(name, 0)
        for lease in self.granted.values():
            demand = lease.request.demand
            if demand.group is not None:
                assert bytes.fromhex(demand.group) in self.committed, "granted in a group that is not there"
        for key, request in self.admission.requests.items():
            if request.claims is None:
                assert request.wanted <= self.wanted[key]
            else:
                assert self.claims[request.owner] == request.claims

    # -- the end

    def serve_everybody(self, *, in_groups: bool = False) -> None:
        """Workers start, tasks end, leases go back; until nobody wants anything (in a placement group)."""
        for _ in range(200):
            self.decide()
            for key in list(self.fetching):
                self.fetched(key)
            for kind in list(self.starting):
                self.ready(kind)
            self.decide()
            for lease_id in self.blocked - self.resuming:
                self.resuming.add(lease_id)
                self.admission.worker_unblocked(lease_id)
            self.decide()
            for lease_id in list(self.granted):
                if lease_id not in self.blocked:
                    self.give_back(lease_id)
            self.check()
            open_keys = [
                key
                for key, wanted in self.wanted.items()
                if wanted and self.admission.requests[key].feasible
                if self.admission.requests[key].demand.group or not in_groups
            ]
            if not open_keys and not self.granted:
                return
        raise AssertionError(f"never granted: {open_keys}; never resumed: {self.resuming}")


class AdmissionModel(RuleBasedStateMachine):
    """Owners that want, use, lend, return and die; workers that start, fail, idle and die."""

    def __init__(self) -> None:
        super().__init__()
        self.node = Node()

    def granted(self, pick: int) -> int | None:
        ids = list(self.node.granted)
        return ids[pick % len(ids)] if ids else None

    picks = st.integers(0, 9)

    @rule(
        owner=st.sampled_from(OWNERS),
        demand=st.integers(0, len(DEMANDS) - 1),
        environment=st.sampled_from(ENVIRONMENTS),
        wanted=st.integers(0, 5),
        depth=st.integers(0, 2),
    )
    def request(self, owner: ProcessId, demand: int, environment: Any, wanted: int, depth: int) -> None:
        class_id = 1 + demand * len(ENVIRONMENTS) + ENVIRONMENTS.index(environment)
        self.node.request(owner, class_id, DEMANDS[demand], wanted, depth, environment)

    @rule(
        owner=st.sampled_from(OWNERS),
        demand=st.integers(0, len(DEMANDS) - 1),
        wanted=st.integers(0, 5),
        depth=st.integers(0, 2),
        nbytes=st.sampled_from([0, 1, FETCH_BYTES // 2, 2 * FETCH_BYTES]),
    )
    def request_with_arguments(
        self, owner: ProcessId, demand: int, wanted: int, depth: int, nbytes: int
    ) -> None:
        lacks = ((ARGUMENT, nbytes),) if nbytes else ()
        self.node.request(owner, BRIEF + demand, DEMANDS[demand], wanted, depth, lacks=lacks)

    @rule(pick=picks)
    def arguments_fetched(self, pick: int) -> None:
        keys = sorted(self.node.fetching)
        if keys:
            self.node.fetched(keys[pick % len(keys)])

    @rule()
    def decide(self) -> None:
        self.node.decide()

    @rule(pick=picks)
    def worker_ready(self, pick: int) -> None:
        if self.node.starting:
            self.node.ready(self.node.starting[pick % len(self.node.starting)])

    @rule(pick=picks)
    def worker_start_failed(self, pick: int) -> None:
        node = self.node
        if node.starting:
            node.start_fails(node.starting[pick % len(node.starting)])

    @rule(pick=picks)
    def lease_returned(self, pick: int) -> None:
        lease = self.granted(pick)
        if lease is not None and lease not in self.node.blocked:
            self.node.give_back(lease)

    @rule(pick=picks)
    def blocks(self, pick: int) -> None:
        lease = self.granted(pick)
        if lease is not None and lease not in self.node.blocked:
            self.node.blocked.add(lease)
            self.node.admission.worker_blocked(lease)

    @rule(pick=picks)
    def unblocks(self, pick: int) -> None:
        waiting = sorted(self.node.blocked - self.node.resuming)
        if waiting:
            lease = waiting[pick % len(waiting)]
            self.node.resuming.add(lease)
            self.node.admission.worker_unblocked(lease)

    @rule(pick=picks)
    def worker_dies(self, pick: int) -> None:
        workers = list(self.node.workers)
        if workers:
            worker = workers[pick % len(workers)]
            self.node.lose(worker)
            self.node.admission.worker_died(worker)

    @rule(owner=st.sampled_from(OWNERS))
    def owner_leaves(self, owner: ProcessId) -> None:
        self.node.leaves(owner)
        self.node.decide()
        assert not [lease for lease in self.node.granted.values() if lease.request.owner == owner]
        assert not [key for key in self.node.admission.requests if key[0] == owner]

    @rule(job=st.sampled_from(JOBS))
    def driver_leaves(self, job: str) -> None:
        """Its detached actors may live on, and ask for more."""
        self.node.job_leaves(job)

    @rule(seconds=st.sampled_from([0.1, IDLE_SECONDS, 10.0]))
    def time_passes(self, seconds: float) -> None:
        node = self.node
        node.now += seconds
        due = node.admission.tick(node.now)
        assert due is None or due > node.now
        node.decide()

    @rule(pick=picks, declines=st.booleans())
    def retiring_worker_answers(self, pick: int, declines: bool) -> None:
        node = self.node
        if not node.retiring:
            return
        worker = sorted(node.retiring)[pick % len(node.retiring)]
        if declines:
            node.retiring.discard(worker)
            node.admission.retirement_declined(worker, node.now)
        else:
            node.lose(worker)
            node.admission.worker_died(worker)

    @rule(
        number=st.integers(0, 20),
        data=st.sampled_from(["lease", "block", "unblock", "death", "decline", "leave"]),
    )
    def news_that_make_no_sense(self, number: int, data: str) -> None:
        """Unknown ids, and things said twice: refused in silence."""
        admission, lease, process = self.node.admission, 1000 + number, process_id(NodeId(b"none"), number)
        {
            "lease": lambda: admission.lease_returned(lease, self.node.now),
            "block": lambda: admission.worker_blocked(lease),
            "unblock": lambda: admission.worker_unblocked(lease),
            "death": lambda: admission.worker_died(process),
            "decline": lambda: admission.retirement_declined(process, self.node.now),
            "leave": lambda: admission.process_left(process),
        }[data]()

    @rule(pick=picks)
    def said_twice(self, pick: int) -> None:
        admission = self.node.admission
        for lease in sorted(self.node.blocked):
            admission.worker_blocked(lease)
        for lease in self.node.admission.leases.values():
            if not lease.blocked:
                admission.worker_unblocked(lease.id)
        workers = list(self.node.workers)
        if workers:
            worker = workers[pick % len(workers)]
            admission.worker_ready(worker, self.node.workers[worker], self.node.now)

    groups = st.sampled_from(GROUPS)

    @rule(group=groups, bundles=st.sampled_from(BUNDLES))
    def bundles_prepared(self, group: bytes, bundles: dict[int, dict[str, int]]) -> None:
        if not self.node.bundles.get(group):
            self.node.prepare(group, bundles)

    @rule(group=groups)
    def bundles_committed(self, group: bytes) -> None:
        if self.node.bundles.get(group):
            self.node.commit(group)

    @rule(group=groups)
    def bundles_returned(self, group: bytes) -> None:
        self.node.unprepare(group)

    @rule(group=groups)
    def group_ends(self, group: bytes) -> None:
        self.node.end_group(group)

    @rule(group=groups, bundles=st.sampled_from(BUNDLES[:4]))
    def room_claimed(self, group: bytes, bundles: dict[int, dict[str, int]]) -> None:
        claim = tuple(ResourceSet(units) for units in bundles.values())
        self.node.claims[group] = claim
        self.node.admission.room_claimed(group, claim)

    @rule(group=groups)
    def claim_dropped(self, group: bytes) -> None:
        self.node.drop_claim(group)

    @invariant()
    def within_capacity(self) -> None:
        self.node.check()

    def teardown(self) -> None:
        node = self.node
        for group in GROUPS:
            node.drop_claim(group)
        node.serve_everybody(in_groups=True)
        for group in GROUPS:
            node.end_group(group)
        node.serve_everybody()
        for owner in OWNERS:
            node.leaves(owner)
        node.decide()
        assert not node.admission.requests
        assert not node.admission.leases
        assert node.admission.resources.available_dict() == node.admission.resources.total_dict()
        for job in JOBS:
            node.job_leaves(job)
        for kind in list(node.starting):
            node.ready(kind)
        node.decide()
        assert node.workers.keys() == node.retiring
        for job in JOBS:
            node.admission.job_forgotten(job)
        for table in ("_idle", "_waiting", "_starting", "_failures", "_left_jobs"):
            assert not getattr(node.admission, table), f"{table} remembers what is gone"


# -------------------------------------------------------------------------------------------------- by example

FIRST, SECOND, THIRD = OWNERS
CPU = {"CPU": ONE}


def node_with_workers(number: int) -> Node:
    node = Node(start_at_once=number)
    for effect in node.admission.prestart(number, PLAIN):
        node.do_StartWorker(effect)
    for kind in list(node.starting):
        node.ready(kind)
    return node


def owners_of(effects: list[Any]) -> list[ProcessId]:
    return [effect.lease.request.owner for effect in effects if isinstance(effect, Grant)]


def lacks(nbytes: int) -> Any:
    return ((ARGUMENT, nbytes),)


def test_what_lacks_arguments_is_passed_over_and_keeps_its_place() -> None:
    node = node_with_workers(2)
    node.request(FIRST, BRIEF, {"CPU": 2 * ONE}, 1, lacks=lacks(10))
    node.request(SECOND, 1, CPU, 1)
    assert owners_of(node.decide()) == [SECOND]
    assert node.fetching == {(FIRST, BRIEF)}
    node.request(THIRD, 1, {"CPU": 2 * ONE}, 1)
    node.fetched((FIRST, BRIEF))
    assert owners_of(node.decide()) == []
    node.give_back(1)
    assert owners_of(node.decide()) == [FIRST]


def test_arguments_are_fetched_ahead_up_to_a_bound() -> None:
    node = node_with_workers(2)
    node.request(FIRST, 1, {"CPU": 2 * ONE}, 1)
    node.decide()
    for number in range(4):
        node.request(SECOND, BRIEF + number, CPU, 1, lacks=lacks(FETCH_BYTES * 2 // 5))
    node.decide()
    assert node.fetching == {(SECOND, BRIEF), (SECOND, BRIEF + 1)}
    for key in list(node.fetching):
        node.fetched(key)
    node.decide()
    assert not node.fetching, "those that are here count until they run"
    node.give_back(1)
    assert owners_of(node.decide()) == [SECOND, SECOND]
    assert node.fetching == {(SECOND, BRIEF + 2), (SECOND, BRIEF + 3)}


def test_what_could_run_is_fetched_whatever_waits_before_it() -> None:
    """All of the bound is taken by what waits for the GPU, which may wait for what needs a CPU alone."""
    node = node_with_workers(3)
    node.request(FIRST, 1, {"GPU": ONE}, 1)
    node.decide()
    node.request(SECOND, BRIEF, {"GPU": ONE}, 1, lacks=lacks(FETCH_BYTES))
    node.decide()
    node.fetched((SECOND, BRIEF))
    node.request(THIRD, BRIEF, CPU, 1, lacks=lacks(FETCH_BYTES))
    node.decide()
    assert node.fetching == {(THIRD, BRIEF)}


def test_who_wants_nothing_any_more_has_nothing_fetched_and_is_forgotten() -> None:
    node = node_with_workers(2)
    node.request(FIRST, BRIEF, CPU, 3, lacks=lacks(10))
    node.request(SECOND, BRIEF, CPU, 3, lacks=lacks(10))
    node.decide()
    assert len(node.fetching) == 2
    node.request(FIRST, BRIEF, CPU, 0, lacks=lacks(10))
    node.leaves(SECOND)
    node.decide()
    assert not node.fetching
    assert not node.admission.requests


def test_the_more_deeply_nested_go_first() -> None:
    node = node_with_workers(3)
    node.request(FIRST, 1, CPU, 2, depth=0)
    node.request(SECOND, 1, CPU, 1, depth=2)
    node.request(THIRD, 1, CPU, 1, depth=1)
    assert sorted(owners_of(node.decide())) == sorted([SECOND, THIRD])


def test_an_owner_that_is_nested_deeper_by_now_is_served_as_such() -> None:
    """A worker that serves another lease asks again for a class that it asked for before."""
    node = node_with_workers(3)
    node.request(FIRST, 1, CPU, 0, depth=1)
    node.request(SECOND, 1, CPU, 2, depth=2)
    node.request(FIRST, 1, CPU, 2, depth=3)
    assert owners_of(node.decide()) == [FIRST, FIRST]


def test_equals_take_turns() -> None:
    node = node_with_workers(2)
    for owner in OWNERS:
        node.request(owner, 1, CPU, 6)
    served = owners_of(node.decide())
    while any(node.wanted.values()):
        node.give_back(next(iter(node.granted)))
        served += owners_of(node.decide())
    for turn in range(0, 18, 3):
        assert sorted(served[turn : turn + 3]) == sorted(OWNERS)


def test_what_is_in_use_is_reclaimed_for_those_who_wait() -> None:
    node = node_with_workers(2)
    node.request(FIRST, 1, CPU, 10)
    node.decide()
    assert len(node.granted) == 2
    node.request(SECOND, 1, CPU, 1)
    (reclaim,) = [effect for effect in node.decide() if isinstance(effect, Reclaim)]
    assert not [effect for effect in node.decide() if isinstance(effect, Reclaim)], "one is enough"
    served: list[ProcessId] = []
    while SECOND not in served:
        node.give_back(reclaim.lease.id)
        effects = node.decide()
        served += owners_of(effects)
        assert len(served) <= 2, "it is the second's turn at last"
        (reclaim,) = [effect for effect in effects if isinstance(effect, Reclaim)] or [reclaim]


def test_a_large_request_is_not_starved_by_a_stream_of_small_ones() -> None:
    node = node_with_workers(2)
    for owner in (FIRST, SECOND):
        node.request(owner, 1, CPU, 1)
    node.decide()
    node.request(THIRD, 1, {"CPU": 2 * ONE}, 1)
    for _ in range(200):
        for owner in (FIRST, SECOND):
            if not node.wanted[owner, 1]:
                node.request(owner, 1, CPU, 1)
        lease = min(node.granted)
        node.give_back(lease)
        if THIRD in owners_of(node.decide()):
            return
    raise AssertionError("whoever wants both CPUs never gets them while others take one at a time")


def test_a_blocked_worker_lends_its_cpus_and_not_its_gpus() -> None:
    node = node_with_workers(3)
    node.request(FIRST, 1, {"CPU": 2 * ONE, "GPU": ONE}, 1)
    node.decide()
    node.ready(*node.starting)
    node.decide()
    (lease,) = node.granted
    node.request(SECOND, 1, {"GPU": ONE // 2}, 1)
    node.request(THIRD, 1, CPU, 2, depth=1)
    assert not owners_of(node.decide())
    node.blocked.add(lease)
    node.admission.worker_blocked(lease)
    assert owners_of(node.decide()) == [THIRD, THIRD]
    node.check()


def test_a_worker_goes_on_before_anything_new_is_granted() -> None:
    node = node_with_workers(4)
    node.request(FIRST, 1, {"CPU": 2 * ONE}, 1)
    node.decide()
    (lease,) = node.granted
    node.blocked.add(lease)
    node.admission.worker_blocked(lease)
    node.request(SECOND, 1, CPU, 10, depth=5)
    node.decide()
    node.resuming.add(lease)
    node.admission.worker_unblocked(lease)
    assert any(isinstance(effect, Reclaim) for effect in node.decide()), (
        "nobody is asked for the CPUs it waits for"
    )
    for other in [other for other in node.granted if other != lease]:
        assert lease in node.resuming
        node.give_back(other)
        assert not owners_of(node.decide())
    assert lease not in node.resuming


def test_a_worker_that_goes_on_has_what_just_got_its_worker_reclaimed() -> None:
    node = node_with_workers(1)
    node.request(FIRST, 1, {"CPU": 2 * ONE}, 1)
    node.decide()
    (lease,) = node.granted
    node.blocked.add(lease)
    node.admission.worker_blocked(lease)
    node.request(SECOND, 1, {"CPU": 2 * ONE}, 1)
    node.decide()
    (kind,) = node.starting
    node.ready(kind)
    node.resuming.add(lease)
    node.admission.worker_unblocked(lease)
    effects = node.decide()
    assert [type(effect) for effect in effects] == [Grant, Reclaim]
    assert effects[0].lease is effects[1].lease


def test_a_worker_whose_cpu_an_actor_or_a_group_has_goes_on_without_it() -> None:
    """They may have it for ever. Its lease is reclaimed, so it is not used for long."""
    for taken_by in ("actor", "group"):
        node = node_with_workers(2)
        node.request(FIRST, 1, CPU, 2)
        node.decide()
        for lease in node.granted:
            node.admission.worker_blocked(lease)
        if taken_by == "actor":
            actor = ProcessId(b"an actor of the first")
            node.admission.actor_placed(actor, ResourceSet({"CPU": 2 * ONE}), False, 0, PLAIN)
        else:
            assert node.admission.bundles_prepared(b"a group", {0: ResourceSet({"CPU": 2 * ONE})})
        node.decide()
        assert not node.admission.resources.all_units()[1].get("CPU")
        one, _ = node.granted
        node.admission.worker_unblocked(one)
        effects = node.admission.decide(node.now)
        assert [type(effect) for effect in effects if type(effect) is not StartWorker] == [
            Reclaim,
            ResumeWorker,
        ]
        node.admission.worker_blocked(one)
        node.admission.worker_unblocked(one)
        assert [type(effect) for effect in node.admission.decide(node.now)] == [ResumeWorker]
        node.admission.check()
        node.admission.lease_returned(one, node.now)
        node.admission.check()


def test_who_waits_for_the_cpus_of_the_node_holds_up_nobody_in_a_group() -> None:
    node = node_with_workers(3)
    group = b"a group".ljust(16)
    assert node.admission.bundles_prepared(group, {0: ResourceSet(CPU)})
    node.admission.bundles_committed(group, [0])
    node.request(FIRST, 1, CPU, 1)
    node.decide()
    (lease,) = node.granted
    node.admission.worker_blocked(lease)
    node.request(SECOND, 1, CPU, 1)
    assert owners_of(node.decide()) == [SECOND]
    node.admission.worker_unblocked(lease)
    in_group = ResourceSet(asked_of_group(group.hex(), -1, CPU))
    node.admission.leases_requested(THIRD, 1, in_group, 0, 1, PLAIN)
    effects = node.admission.decide(node.now)
    assert not any(isinstance(effect, ResumeWorker) for effect in effects), "the second has its CPU"
    assert [effect.lease.request.owner for effect in effects if isinstance(effect, Grant)] == [THIRD]


def test_an_infeasible_request_is_warned_about_once_and_waits() -> None:
    node = node_with_workers(1)
    node.request(FIRST, 1, {"CPU": 3 * ONE}, 1)
    assert node.decide() == [WarnInfeasible(node.admission.requests[FIRST, 1])]
    node.request(FIRST, 1, {"CPU": 3 * ONE}, 5)
    assert not node.decide()
    assert node.admission.demands() == [({"CPU": 3.0}, 5, False)]


def test_workers_that_never_start_end_in_an_error() -> None:
    node = Node(start_at_once=1)
    node.request(FIRST, 1, CPU, 2)
    node.request(SECOND, 1, CPU, 1, environment=ENVIRONMENTS[1])
    node.request(THIRD, 1, {"CPU": 3 * ONE}, 1)
    failed = []
    for _ in range(START_ATTEMPTS * 3):
        failed += [effect.request.owner for effect in node.decide() if isinstance(effect, FailRequest)]
        if PLAIN_KIND in node.starting:
            node.start_fails(PLAIN_KIND)
        elif node.starting:
            node.ready(node.starting[0])
    assert failed == [FIRST], (
        "and those of other environments, and what could not start anyway, are not concerned"
    )
    assert owners_of([Grant(lease) for lease in node.granted.values()]) == [SECOND]
    node.check()


def test_a_worker_that_starts_makes_the_failures_before_it_forgotten() -> None:
    node = Node(start_at_once=1)
    node.request(FIRST, 1, {"CPU": ONE // 10}, 10)
    for _ in range(5):
        for _ in range(START_ATTEMPTS - 1):
            node.decide()
            node.start_fails(PLAIN_KIND)
        node.decide()
        node.ready(PLAIN_KIND)
    assert not node.failed


def test_idle_workers_beyond_those_kept_are_asked_to_leave() -> None:
    node = node_with_workers(5)
    assert node.admission.tick(0.5) == IDLE_SECONDS
    node.now = IDLE_SECONDS
    node.admission.tick(node.now)
    assert len([effect for effect in node.decide() if isinstance(effect, RetireWorker)]) == 3


def test_whoever_leaves_frees_all_that_it_had() -> None:
    node = node_with_workers(2)
    node.request(FIRST, 1, {"CPU": ONE, "x": ONE}, 3)
    node.decide()
    workers = {lease.worker.id for lease in node.granted.values() if lease.worker}
    assert len(workers) == 2
    node.leaves(FIRST)
    assert {effect.worker for effect in node.decide() if isinstance(effect, EndWorker)} == workers
    assert node.admission.resources.available_dict() == node.admission.resources.total_dict()
    assert not node.admission.workers


def test_workers_of_a_job_that_left_serve_who_waits_and_end_then() -> None:
    """Those that were busy, or were starting, when the driver left as well."""
    node = node_with_workers(2)
    node.request(FIRST, 1, CPU, 1)
    node.request(SECOND, 1, CPU, 1, environment=ENVIRONMENTS[1])
    node.decide()
    node.job_leaves("job")
    node.decide()
    assert len(node.workers) == 1, "the idle one has ended"
    (lease,) = node.granted
    node.request(THIRD, 1, CPU, 1)
    node.give_back(lease)
    assert owners_of(node.decide()) == [THIRD], "it is not ended under one that waits"
    (lease,) = node.granted
    node.give_back(lease)
    node.decide()
    assert not node.workers
    node.ready(Kind(*ENVIRONMENTS[1]))
    node.decide()
    (lease,) = node.granted
    node.give_back(lease)
    node.decide()
    assert not node.workers
    assert not node.starting


AdmissionModel.TestCase.settings = settings(max_examples=examples(150), stateful_step_count=50, deadline=None)
TestAdmissionModel = AdmissionModel.TestCase


# ----------------------------------------------------------------------------------------------- placement groups

GROUP, OTHER = GROUPS
IN_GROUP = asked_of_group(GROUP.hex(), -1, CPU)


def test_requests_in_a_group_wait_for_its_bundles_and_run_in_them_alone() -> None:
    node = node_with_workers(3)
    node.request(FIRST, 1, IN_GROUP, 2)
    assert owners_of(node.decide()) == []
    assert node.warned == [], "it is not infeasible: its group is on its way"
    assert node.prepare(GROUP, {0: CPU})
    assert owners_of(node.decide()) == []
    node.commit(GROUP)
    assert owners_of(node.decide()) == [FIRST]
    node.request(SECOND, 1, CPU, 2)
    assert owners_of(node.decide()) == [SECOND], "one of two CPUs is the group's"
    node.give_back(1)
    assert owners_of(node.decide()) == [FIRST], "what is free in the group is for the group"


def test_bundles_are_taken_all_or_none() -> None:
    node = Node()
    assert not node.prepare(GROUP, {0: CPU, 1: {"CPU": 2 * ONE}})
    assert node.prepare(GROUP, {0: CPU, 1: CPU})
    assert not node.prepare(OTHER, {0: CPU})
    node.unprepare(GROUP)
    assert node.prepare(OTHER, {0: CPU})


def test_the_end_of_a_group_ends_what_runs_and_what_waits_in_it() -> None:
    node = node_with_workers(3)
    node.prepare(GROUP, {0: CPU})
    node.commit(GROUP)
    node.request(FIRST, 1, IN_GROUP, 2)
    node.admission.actor_placed(THIRD, ResourceSet(IN_GROUP), False, 0, PLAIN)
    node.wanted[THIRD, 0], node.demand[THIRD, 0] = 1, IN_GROUP
    assert owners_of(node.decide()) == [FIRST]
    (lease,) = node.granted.values()
    assert lease.worker is not None
    node.end_group(GROUP)
    assert lease.worker.id not in node.workers
    assert not node.admission.requests
    assert node.used("CPU") == 0


def test_an_actor_in_a_group_that_ends_has_no_lease_and_its_worker_is_left_to_who_made_it() -> None:
    node = node_with_workers(2)
    node.prepare(GROUP, {0: CPU})
    node.commit(GROUP)
    node.wanted[THIRD, 0], node.demand[THIRD, 0] = 1, IN_GROUP
    node.admission.actor_placed(THIRD, ResourceSet(IN_GROUP), False, 0, PLAIN)
    assert owners_of(node.decide()) == [THIRD]
    (lease,) = node.granted.values()
    assert lease.worker is not None
    node.admission.group_ended(GROUP)
    assert [effect for effect in node.admission.decide(0.0) if isinstance(effect, KillWorker)] == []
    assert not node.admission.leases
    assert lease.worker.id not in node.admission.workers
    node.admission.check()
    assert node.admission.resources.available_dict() == node.admission.resources.total_dict()


def test_room_that_is_claimed_is_kept_until_the_bundles_are_prepared() -> None:
    """Whoever prepares them may be far away. What fits beside them is granted."""
    node = node_with_workers(3)
    node.request(FIRST, 1, CPU, 1)
    node.decide()
    bundles = (ResourceSet({"CPU": 2 * ONE}),)
    node.admission.room_claimed(GROUP, bundles)
    node.claims[GROUP] = bundles
    node.decide()
    assert node.has_room == []
    node.give_back(1)
    node.decide()
    assert node.has_room == [GROUP]
    node.request(SECOND, 1, CPU, 1)
    node.request(SECOND, 2, {"x": ONE}, 1)
    assert owners_of(node.decide()) == [SECOND], "one needs no CPU"
    node.now += 10
    assert owners_of(node.decide()) == []
    assert node.has_room == [GROUP], "it is said once"
    assert node.prepare(GROUP, {0: {"CPU": 2 * ONE}})
    node.unprepare(GROUP)
    node.drop_claim(GROUP)
    assert owners_of(node.decide()) == [SECOND]


def test_nested_owners_of_other_nodes_go_before_room_that_is_kept() -> None:
    """They may be blocked in a task that holds what else is claimed."""
    node = node_with_workers(2)
    bundles = (ResourceSet({"CPU": 2 * ONE}),)
    node.admission.room_claimed(GROUP, bundles)
    node.claims[GROUP] = bundles
    node.decide()
    assert node.has_room == [GROUP]
    node.request(THIRD, 1, CPU, 1, depth=1)
    assert owners_of(node.decide()) == [THIRD]


def test_who_may_run_here_can_change_with_a_group() -> None:
    node = node_with_workers(1)
    for allowed, granted in ((False, []), (True, [FIRST])):
        node.wanted[FIRST, 1], node.demand[FIRST, 1] = 1, IN_GROUP
        if not allowed:
            node.prepare(GROUP, {0: CPU})
            node.commit(GROUP)
        node.admission.leases_requested(FIRST, 1, ResourceSet(IN_GROUP), 0, 1, PLAIN, allowed=allowed)
        assert owners_of(node.decide()) == granted


def test_a_task_in_a_group_lends_the_groups_cpu() -> None:
    node = node_with_workers(3)
    node.prepare(GROUP, {0: CPU})
    node.commit(GROUP)
    node.request(FIRST, 1, IN_GROUP, 1)
    node.decide()
    node.blocked.add(1)
    node.admission.worker_blocked(1)
    node.request(SECOND, 1, CPU, 2)
    node.request(THIRD, 1, IN_GROUP, 1, depth=1)
    assert sorted(owners_of(node.decide())) == [SECOND, THIRD]


def test_a_claim_has_idle_leases_given_back() -> None:
    node = node_with_workers(2)
    for owner in (FIRST, SECOND):
        node.request(owner, 1, CPU, 1)
    node.decide()
    claim = (ResourceSet(CPU), ResourceSet(CPU))
    node.claims[GROUP] = claim
    node.admission.room_claimed(GROUP, claim)
    for _ in range(2):
        node.decide()
        assert len(node.reclaimed) == 1
        node.give_back(min(node.reclaimed))
    node.decide()
    assert node.has_room == [GROUP]
    assert node.prepare(GROUP, {0: CPU, 1: CPU})
    node.drop_claim(GROUP)


def test_a_claim_is_not_passed_over_for_ever() -> None:
    """Tasks of one CPU each keep coming; the group needs two at once."""
    node = node_with_workers(2)
    claim = (ResourceSet({"CPU": 2 * ONE}),)
    node.request(FIRST, 1, CPU, 1000)
    node.decide()
    node.claims[GROUP] = claim
    node.admission.room_claimed(GROUP, claim)
    for _ in range(100):
        node.now += 0.01
        node.give_back(min(node.granted))
        node.decide()
        if node.has_room:
            break
    assert node.has_room == [GROUP]
    assert node.prepare(GROUP, {0: {"CPU": 2 * ONE}}), "what it was told is so"


def test_nothing_is_kept_for_what_a_group_or_an_actor_is_in_the_way_of() -> None:
    """A group, or an actor, may hold its CPU for ever; tasks that need one CPU must go on."""
    for lasting in ("group", "actor"):
        node = node_with_workers(2)
        if lasting == "group":
            node.prepare(GROUP, {0: CPU})
            node.commit(GROUP)
        else:
            node.wanted[THIRD, 0], node.demand[THIRD, 0] = 1, CPU
            node.admission.actor_placed(THIRD, ResourceSet(CPU), False, 0, PLAIN)
            assert owners_of(node.decide()) == [THIRD]
        node.request(FIRST, 1, {"CPU": 2 * ONE}, 1)
        node.request(SECOND, 1, CPU, 100)
        for _ in range(90):
            node.now += 0.01
            node.decide()
            (lease,) = [each for each in node.granted.values() if each.request.owner == SECOND]
            node.give_back(lease.id)


def test_a_worker_serves_what_sees_the_same_gpus() -> None:
    """What a library has found when it was imported stays true: no GPU, or these."""
    node = node_with_workers(1)
    (plain,) = node.workers
    for units, devices in (({"GPU": ONE}, ("GPU-0",)), (CPU, ()), ({"GPU": ONE // 2}, ("GPU-0",)), (CPU, ())):
        node.request(FIRST, 1, units, 1)
        node.decide()
        for kind in list(node.starting):
            node.ready(kind)
        node.decide()
        ((number, lease),) = node.granted.items()
        assert lease.worker is not None
        assert (lease.worker.id == plain) == (not devices)
        assert lease.worker.kind.devices == devices
        node.give_back(number)
        node.leaves(FIRST)
    assert len(node.workers) == 2
