"""The node manager: grants leases, starts and buries workers, passes on what they print.

State: the processes it knows and the jobs they belong to, the admission machine, the zygotes. What decides is
core.admission (and core.actors); this module reads sockets, pipes and pidfds, and does what they say. One thread.

A driver comes through the door (node.door), brings its job, and gets its process id. A node that `init` started lets in
the process that called it alone, and ends with it; one that `skate start` started goes on until it is told to end.

What dies, and how it is noticed: a worker, by the zygote that reaps it; a driver, by its pidfd; the zygote, by the end
of its channel; this process, by the zygote (end of the channel) and by drivers (pidfd). Other nodes: see node.cluster.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import secrets
import socket
from collections.abc import Container, Iterable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from skate._c.clock import monotonic
from skate._c.resources import to_units
from skate.core.admission import Admission
from skate.core.leases import (
    Effect,
    EndWorker,
    FailRequest,
    FetchArguments,
    Grant,
    KillWorker,
    Kind,
    Reclaim,
    ResumeWorker,
    RetireWorker,
    RoomForBundles,
    StartWorker,
    StopFetching,
    WarnInfeasible,
)
from skate.core.policies import where_from
from skate.core.resources import ResourceSet
from skate.core.roster import Row
from skate.ids import NodeId, ProcessId, manager_of, node_of, owner_of, process_id
from skate.net.exchange import Place
from skate.net.limits import check_descriptors
from skate.net.node_mailbox import NodeMailbox
from skate.node.actors import NodeActors
from skate.node.bundles import NodeBundles
from skate.node.cluster import JOIN_SECONDS, TURNED_AWAY_SECONDS, Hooks, NodeCluster
from skate.node.door import Answer, Door, Refused, some_rows
from skate.node.errors import CannotJoin, of_limit
from skate.node.groups import PENDING_GROUPS, NodeGroups
from skate.node.groups import Hooks as GroupHooks
from skate.node.head import HeadLink
from skate.node.ledger import NodeLedger
from skate.node.logs import LineReader, Unfinished
from skate.node.names import replying
from skate.node.processes import Job, Process, environment_of
from skate.node.puller import Puller
from skate.node.recovery import HeadRecovery, Survivors
from skate.node.scheduling import Details, NodeScheduling, arguments_from
from skate.node.scheduling import Hooks as SchedulingHooks
from skate.node.settlements import Settlements
from skate.node.spiller import Spiller
from skate.node.state import NodeState
from skate.node.strangers import Stranger, Strangers
from skate.node.verdicts import granted_allocation, group_removed, none_can
from skate.node.zygote import end_children
from skate.node.zygotes import Zygotes
from skate.store.local import LocalStore
from skate.wire import checks, testament
from skate.wire import messages as m
from skate.wire.messages import encode
from skate.worker.output import mark_of

if TYPE_CHECKING:
    from skate.node.state_file import StateFile

log = logging.getLogger("skate.node")

#: seconds that a driver which has left has to read that it may go
LEAVE_SECONDS = 0.5
#: seconds that a worker's exit handlers may take
EXIT_SECONDS = 3.0
#: descriptors that a worker takes here, its pipes, its connection and that to it; and that are kept for others
WORKER_DESCRIPTORS = 5
SPARE_DESCRIPTORS = 4
#: kinds of demands that other nodes are told of
DEMANDS = 100


class NodeManager:
    """The manager of one node; `run` returns when it is to end."""

    def __init__(
        self,
        node: NodeId,
        folder: str,
        store: LocalStore,
        spiller: Spiller,
        puller: Puller,
        admission: Admission,
        zygote: socket.socket,
        session: dict[str, Any],
        *,
        prestart: int,
        starter: int | None,
        alone: bool,
        row: Row,
        cluster: dict[str, Any] | None,
    ) -> None:
        """`starter`: the node ends with this process, and is for it `alone`. `row` is what the node tells of itself,
        `cluster` how it is in one, see node.cluster."""
        self.node = node
        self.me = process_id(node, 0)
        self._folder = folder
        self._store = store
        self._spiller = spiller
        self._puller = puller
        self._admission = admission
        self._session = session
        #: workers forked for a driver before it asks
        self._prestart = prestart
        #: the process that this node is for alone, and ends with; None: it serves all drivers, and goes on without any
        self._starter = starter if alone else None
        #: job id -> job, also after its driver has left, while detached actors of it live, and may start again
        self._jobs: dict[str, Job] = {}
        self._processes: dict[ProcessId, Process] = {}
        self._unfinished = Unfinished(self._read)
        self._drivers: dict[ProcessId, Process] = {}
        #: drivers that have left -> until when they may read what was said to them last
        self._leaving: dict[ProcessId, float] = {}
        #: workers that run their exit handlers -> until when they may
        self._exiting: dict[ProcessId, float] = {}
        self._by_pid: dict[int, Process] = {}
        self._serial = 0
        self._running = True
        #: the node's end was asked for: workers end in order, too
        self._in_order = False
        #: why the node ends
        self._why = ""
        #: something has happened in this turn that another one must follow
        self._undecided = False
        #: how the last worker died that never became ready
        self._last_failure = ""
        self._oom_kills = _oom_kills()
        self._handlers = {
            m.Register.code: self._register,  # type: ignore[attr-defined]
            m.RequestLeases.code: self._request_leases,  # type: ignore[attr-defined]
            m.ReturnLease.code: self._return_lease,  # type: ignore[attr-defined]
            m.Blocked.code: self._blocked,  # type: ignore[attr-defined]
            m.Unblocked.code: self._unblocked,  # type: ignore[attr-defined]
            m.StateQuery.code: self._state_query,  # type: ignore[attr-defined]
            m.StillUsed.code: self._still_used,  # type: ignore[attr-defined]
            m.MakeRoom.code: spiller.make_room,  # type: ignore[attr-defined]
            m.Restore.code: spiller.restore,  # type: ignore[attr-defined]
            m.ForgetSpilled.code: spiller.forget,  # type: ignore[attr-defined]
            m.Leave.code: self._leave,  # type: ignore[attr-defined]
            m.LogsShown.code: self._logs_shown,  # type: ignore[attr-defined]
        }
        lives, labels = self._processes.__contains__, session["labels"]
        self._head = HeadLink(node, self._post)
        self._groups = NodeGroups(node, labels, NodeBundles(admission, self._head), self._head, self._post)
        self._scheduling = NodeScheduling(node, labels, admission)
        self._actors = NodeActors(
            self._head,
            self._scheduling,
            self._post,
            self._kill_id,
            self._may_live,
            self._environment,
            self._groups.is_gone,
            self._groups.life_ended,
        )
        self._settlements = Settlements(node, self._processes, self._post)
        self._handlers |= self._actors.handlers | self._groups.handlers | puller.from_owners
        self._handlers |= self._settlements.from_processes
        actors = self._actors.handlers
        self._strangers = Strangers(
            {
                m.WatchActor.code: actors[m.WatchActor.code],  # type: ignore[attr-defined]
                m.KillActor.code: actors[m.KillActor.code],  # type: ignore[attr-defined]
                m.WatchProcess.code: self._watch_process,  # type: ignore[attr-defined]
                m.ReturnLease.code: self._return_lease,  # type: ignore[attr-defined]
                m.ActorStarted.code: actors[m.ActorStarted.code],  # type: ignore[attr-defined]
                m.ActorLeaves.code: actors[m.ActorLeaves.code],  # type: ignore[attr-defined]
                m.EndWorker.code: self._end_worker,  # type: ignore[attr-defined]
                m.LogsShown.code: self._logs_shown,  # type: ignore[attr-defined]
                m.ActorPlaced.code: self._actors.placed_elsewhere,  # type: ignore[attr-defined]
            }
            | self._scheduling.handlers
            | self._head.handlers
            | self._actors.names.handlers
            | puller.from_owners,
            self._stranger_gone,
        )
        self._mailbox = self._open_mailbox(Place.of(session["lanes"]))
        hooks = Hooks(
            lives=lives,
            deliver=self._strangers.deliver,
            process_died=self._stranger_died,
            node_died=self._node_died,
            end=self._end,
            measure=self._measure,
            reported=self._groups.node_reported,
            tell_all=self._tell_all,
            head_came=self._head.act,
        )
        try:
            self.cluster = NodeCluster(row, cluster, self._mailbox, hooks)
        except BaseException:
            self._mailbox.close()
            raise
        self._scheduling.roster = self._head.roster = self.cluster.roster
        self._settlements.cluster = self.cluster
        self.cluster.survivors = Survivors(self._head, self._scheduling, self._actors, self._groups)
        self._scheduling.hooks = SchedulingHooks(
            post=self._post,
            facts=lambda job: self._jobs[job].facts,
            adopt=self._adopt_job,
            acquaint=self.cluster.acquaint,
            introduce=self._strangers.introduce,
            dismiss=self._strangers.dismiss,
            lacks=puller.lacks,
            refused=self._refused,
            group_gone=self._actors.group_gone,
            offered=self._groups.offered,
        )
        self._groups.hooks = GroupHooks(lives, self.cluster.is_member, self._scheduling)
        self._state = NodeState(admission, store, spiller, labels, self._workers, self.cluster.rows, self)
        self._zygotes = Zygotes(
            zygote, self._mailbox.watch, self._mailbox.unwatch, self._zygote_said, self._lost_with_zygote
        )
        self._door = Door(folder, self._mailbox, self._answer_visitor, self._robbed)
        if starter is not None:
            self._mailbox.watch(os.pidfd_open(starter), lambda: self._end("who started it is gone"))
        spiller.join(self._mailbox, self.warn_drivers)
        self.cluster.handle(
            puller.from_managers
            | self._groups.from_managers
            | self._settlements.from_managers
            | {m.RollCall.code: self._called}  # type: ignore[attr-defined]
        )
        post_bulk = self._mailbox.post_bulk
        puller.join(self._post, post_bulk, self._arguments_fetched, in_cluster=cluster is not None)

    def _open_mailbox(self, lanes: Place | None) -> NodeMailbox:
        """The sockets and lanes of this process. (A simulation has others.)"""
        return NodeMailbox(self.me, self._folder, self._deliver, lanes)

    # ----------------------------------------------------------------------------------------------------- loop

    def come_back(self, file: StateFile) -> NodeLedger:
        """As head: takes up what the last head has left in the file, and writes there what the next one must know."""
        ledger = NodeLedger(file, self._mailbox, lambda job: self._jobs[job].facts, self.warn_drivers)
        self._actors.names.ledger = self._groups.ledger = ledger
        recovery = HeadRecovery(
            self.node, ledger, self._actors, self._groups, self._jobs, self._adopt_job, self._post
        )
        self.cluster.come_back(ledger, recovery)
        return ledger

    def _called(self, node: NodeId, named: Any, housed: Any, bundles: Any, made: Any) -> None:
        """To the head: another node says what it has."""
        names, lives = checks.actors(named), checks.housed(housed, node)
        self._groups.called(node, bundles, made)
        self._actors.names.called(node, names)
        if self.cluster.recovery is not None:
            self.cluster.recovery.called(node, lives)

    def join(self) -> None:
        """Serves until this node is in its cluster. CannotJoin, with the reason, where it is not let in."""
        deadline = monotonic() + JOIN_SECONDS
        while not self.cluster.joined:
            if not self._running:
                raise CannotJoin(self.cluster.roster.refused or self._why)
            now = monotonic()
            if self.cluster.turned_away:  # a few times, so that the other side sees who it is
                deadline = min(deadline, now + TURNED_AWAY_SECONDS)
            if now >= deadline:
                raise CannotJoin(self.cluster.why_not_joined())
            self._turn(deadline)

    def run(self) -> None:
        """Serves until the node is to end, then ends all workers."""
        while self._running:
            self._turn()
        self.close()

    def close(self) -> None:
        """Ends all workers, and takes leave of the cluster."""
        self._spiller.close()
        self._end_workers()
        self._door.close()
        self.cluster.close(self._why)
        self._mailbox.close()

    def _turn(self, until: float | None = None) -> None:
        """Does what is to be done, and sleeps until something comes, or the clock says `until`."""
        now = monotonic()
        self._actors.act()
        self._groups.act()  # first: what has become free is theirs before it is granted
        self._scheduling.act()
        self._undecided = False
        if self._admission.undecided(now):
            self._decide(now)
        if self._actors.act() | self._groups.act() or self._undecided:
            return  # admission may have more to decide
        self._forget_jobs()
        looks = (
            self._admission.look_at,
            until,
            self._spiller.step(now),
            self._door.step(now),
            self.cluster.step(now),
            self._unlink_who_left(now),
            self._kill_who_stays(now),
            self._wait_for_output(now),
        )
        if self._scheduling.act() or self._groups.undecided or self._undecided:
            return  # the table of nodes has changed, or a node has died
        times = [time for time in looks if time is not None]
        self._mailbox.flush()
        if self._mailbox.look_at is not None:
            times.append(self._mailbox.look_at)
        if self._running:
            self._mailbox.read(max(0.0, min(times) - now) if times else None)

    def _decide(self, now: float) -> None:
        """Has admission act on what has happened."""
        self._admission.tick(now)
        effects = self._admission.decide(now)
        # Before the leases themselves leave: an owner that has one says what it wants beyond it, and its node manager
        # must not count that lease once more as one on its way.
        self._scheduling.tell()
        for effect in effects:
            self._carry_out(effect)

    def end(self, why: str) -> None:
        """Has `run` end. From a signal handler, too."""
        self._in_order = True
        self._end(why)
        self._mailbox.poke()

    def _answer_visitor(self, pid: int, message: dict[str, Any], answer: Answer) -> None:
        """Has `answer` called with what somebody at the door is told: a driver, or one who asks for a table."""
        what, first = message.get("ask"), int(message.get("from", 0))
        if what is None:
            answer(self._adopt_driver(pid, message))
        elif what == "nodes":
            answer(some_rows(self.cluster.rows(), first))
        elif what != PENDING_GROUPS:
            raise Refused(f"There is no table of {what!r:.60}.")
        else:
            self._head.inquire(
                what,
                lambda rows: answer(some_rows(rows, first)),
                away=lambda: answer({"refused": "The head of the cluster is away."}),
            )

    def _adopt_driver(self, pid: int, message: dict[str, Any]) -> dict[str, Any]:
        """Makes a process id for a driver; its death is noticed from here on. Refused: the node is another's."""
        if self._starter not in (None, pid):
            raise Refused(
                f"This node is that of process {self._starter}, whose init() started it, and ends with it. "
                "Leave the address out for a node of your own, or start one for many programs with "
                "`skate start --head`."
            )
        job, log_to_driver = Job(message["job"]), message["log_to_driver"]
        pidfd = os.pidfd_open(pid)
        driver = self._new_process("driver", job)
        self._drivers[driver.id] = driver
        job.of_driver(driver.id, log_to_driver)
        driver.pid = pid
        driver.pidfd = pidfd
        self._jobs[job.id] = job
        self._mailbox.watch(pidfd, lambda: self._driver_left(driver, "its driver is gone"))
        for effect in self._admission.prestart(
            self._prestart, environment_of(job.id, job.facts["variables"])
        ):
            self._carry_out(effect)
        return self._session | {"driver": driver.id.hex()}

    def _driver_left(self, driver: Process, why: str, last_words: float = 0.0) -> None:
        """`last_words`: seconds that it has to read what was said to it last."""
        if self._starter is not None:
            self._end(why)
            return
        self._mailbox.unwatch(driver.pidfd)
        os.close(driver.pidfd)
        log.info("driver %d has left: %s", driver.pid, why)
        self._deliver(driver.id, self._mailbox.last_words(driver.id))
        cause = json.dumps({"pid": driver.pid, "node": self.node.hex(), "exit_status": None})
        self._forget(driver, m.ProcessDied(driver.id, cause, b"", 0), last_words)
        self._job_left(driver.job)

    def _job_left(self, job: Job) -> None:
        job.left = True
        self._read_on(job.output.give_up())
        self._groups.life_ended(job.driver)
        self._admission.job_left(job.id)

    def _adopt_job(self, facts: dict[str, Any]) -> None:
        """A program of another node is to have workers here: its driver's end must be heard of."""
        if facts["id"] not in self._jobs:
            job = self._jobs[facts["id"]] = Job(facts)
            if self.cluster.roster.is_dead(node_of(job.driver)):
                self._job_left(job)  # whoever asks has yet to hear of that, or is a detached actor
            else:
                self._post(manager_of(job.driver), m.WatchProcess(job.driver))

    def _strangers_left(self, gone: bytes) -> None:
        """Perhaps drivers of programs that have workers here: `gone` is a process or a node."""
        for job in self._jobs.values():
            if job.driver.startswith(gone) and not job.left:
                self._job_left(job)

    def _new_process(self, kind: str, job: Job) -> Process:
        self._serial += 1
        process = Process(process_id(self.node, self._serial), kind, job)
        self._processes[process.id] = process
        job.processes += 1
        return process

    def _remove(self, process: Process) -> None:
        del self._processes[process.id]
        self._drivers.pop(process.id, None)
        self._exiting.pop(process.id, None)
        process.job.processes -= 1

    def _forget_jobs(self) -> None:
        """Jobs whose drivers have left go with the last process, and the last actor that may still get one."""
        for job in [job for job in self._jobs.values() if job.left and not job.processes]:
            if not self._actors.any_of(job.id) and not self._admission.serves(job.id):
                log.info("nothing is left of job %s", job.id)
                del self._jobs[job.id]
                self._admission.job_forgotten(job.id)
                self._zygotes.job_forgotten(job.id)

    # ------------------------------------------------------------------------------------------------- messages

    def _deliver(self, sender: ProcessId, records: list[tuple[int, tuple[Any, ...]]]) -> None:
        process = self._processes.get(sender)
        if process is None:
            log.warning("a message from process %s, which is not of this session, was refused", sender.hex())
            return
        for code, fields in records:
            handler: Any = self._handlers.get(code)
            if handler is None:
                log.warning("process %s sent message %d, which is not for a node manager", sender.hex(), code)
                continue
            try:
                handler(process, *fields)
            except ValueError as error:
                log.warning("refused message %d from process %s: %s", code, sender.hex(), error)
            except Exception:
                log.exception("message %d from process %s could not be handled", code, sender.hex())

    def _watch_process(self, stranger: Stranger, process: ProcessId) -> None:
        self.cluster.watch(stranger.id, process)

    def _may_live(self, process: ProcessId) -> bool:
        """Whether the process lives, as far as this node knows."""
        if self._mailbox.is_elsewhere(process):
            return process in self._strangers
        return process in self._processes

    def _post(self, to: ProcessId, message: Any) -> None:
        self._mailbox.post(to, encode(message))

    def _register(self, process: Process, kind: str, pid: int, job: Any) -> None:
        process.registered = True
        self._post(process.id, m.Registered(self._session))
        if process.kind == "worker":
            self._admission.worker_ready(process.id, process.worker_kind, monotonic())

    def _request_leases(
        self,
        process: Process,
        class_id: int,
        demand: Any,
        depth: int,
        wanted: int,
        environment: Any,
        where: Any,
        arguments: Any,
    ) -> None:
        asked = ResourceSet(checks.amounts(demand))
        if asked.group is not None and self._groups.is_gone(asked.group):
            self._post(process.id, m.Unschedulable(class_id, True, group_removed(asked)))
            return
        place = None if where is None else where_from(where)
        captures = place is not None and place.captures
        lacks, near = arguments_from(arguments)
        workers = environment_of(process.job.id, environment)
        details = Details(workers, depth, captures, arguments=lacks)
        self._scheduling.wants(process.id, class_id, asked, place, wanted, details, near=near)

    def _arguments_fetched(self, owner: ProcessId, class_id: int) -> None:
        self._admission.arguments_fetched(owner, class_id)
        self._undecided = True

    def _refused(self, owner: ProcessId, class_id: int, why: str, for_actor: bool) -> None:
        """What was asked for can run nowhere, ever."""
        if for_actor:
            self._actors.refused(owner, why)
        else:
            self._post(owner, m.Unschedulable(class_id, False, why))

    def _return_lease(self, process: Process | Stranger, lease: int) -> None:
        granted = self._admission.leases.get(lease)
        if granted is not None and granted.request.owner != process.id:
            raise ValueError(f"lease {lease} is another owner's")
        self._admission.lease_returned(lease, monotonic())

    def _blocked(self, process: Process, lease: int) -> None:
        self._admission.worker_blocked(lease)

    def _unblocked(self, process: Process, lease: int) -> None:
        self._admission.worker_unblocked(lease)

    def _still_used(self, process: Process, reason: str) -> None:
        self._admission.retirement_declined(process.id, monotonic())

    def _state_query(self, process: Process, token: int, what: str) -> None:
        self._actors.act()  # names of actors are claimed before the head is asked for a list of them
        if not self._head.inquire(what, replying(self._post_if_it_lives, process.id, token)):
            self._post(process.id, m.StateReply(token, self._state.answer(what)))

    def _post_if_it_lives(self, process: ProcessId, message: Any) -> None:
        if process in self._processes:
            self._post(process, message)

    def _measure(self) -> tuple[dict[str, int], dict[str, int], list[Any]]:
        """(units that there are, those that are free, what waits) on this node."""
        total, available = self._admission.resources.all_units()
        used = to_units(self._store.usage()["used"], "object_store_memory")
        available["object_store_memory"] = max(0, available.get("object_store_memory", 0) - used)
        return total, available, self._admission.demands()[:DEMANDS]

    def _leave(self, process: Process, reason: str) -> None:
        if self._starter is None:
            self._post(process.id, m.Left(reason))
            self._mailbox.flush()
        self._in_order = self._starter is not None
        self._driver_left(process, reason, LEAVE_SECONDS)

    # -------------------------------------------------------------------------------------------------- decisions

    def _carry_out(self, effect: Effect) -> None:
        if type(effect) is StartWorker:
            self._start_worker(effect.kind)
        elif type(effect) is Grant:
            lease = effect.lease
            assert lease.worker is not None
            if lease.request.for_actor and self._scheduling.is_foreign(lease.request.owner):
                self._scheduling.actor_granted(lease)
                return
            if lease.request.for_actor:
                self._actors.granted(lease)
                return
            request = lease.request
            allocation = granted_allocation(lease)
            self._post(request.owner, m.LeaseGranted(request.class_id, lease.id, lease.worker.id, allocation))
        elif type(effect) is Reclaim:
            self._post(effect.lease.request.owner, m.ReclaimLease(effect.lease.id))
        elif type(effect) is ResumeWorker:
            assert effect.lease.worker is not None
            self._post(effect.lease.worker.id, m.Resume(effect.lease.id))
        elif type(effect) is FetchArguments:
            self._puller.fetch(effect.request)
        elif type(effect) is StopFetching:
            self._puller.stop(effect.request)
        elif type(effect) is RetireWorker:
            self._post(effect.worker, m.ExitIfUnused("idle"))
        elif type(effect) is KillWorker:
            self._kill_id(effect.worker, effect.why)
        elif type(effect) is EndWorker:
            if effect.worker in self._processes:
                self._end_in_order(self._processes[effect.worker], effect.why)
        elif type(effect) is RoomForBundles:
            self._groups.room_made()
        elif type(effect) is FailRequest and effect.request.for_actor:
            if self._scheduling.is_foreign(effect.request.owner):
                self._scheduling.actor_failed(effect.request, self._last_failure)
            else:
                self._actors.failed(effect.request.owner, self._last_failure)
        elif type(effect) is FailRequest:
            self._post(effect.request.owner, m.LeasesFailed(effect.request.class_id, self._last_failure))
        else:
            assert type(effect) is WarnInfeasible
            request = effect.request
            total, others = self._admission.resources.total_dict(), self.cluster.roster.others
            text = none_can(request, total, self._session["labels"], others)
            # An actor's request is told to the process that made the actor: its id begins the actor's.
            self._post(owner_of(request.owner), m.Infeasible(request.class_id, text))

    def _start_worker(self, kind: Kind) -> None:
        worker = self._new_process("worker", self._jobs[str(kind.job)])
        worker.worker_kind = kind
        try:
            self._fork(worker)
        except OSError as error:  # no descriptors, no memory, a full disk
            self._remove(worker)
            self._start_failed(
                worker, self._report(worker, None, f"no process could be forked: {of_limit(error)}")
            )

    def _fork(self, worker: Process) -> None:
        """Has the zygote fork the worker, which writes to two pipes and to its testament. OSError leaves nothing."""
        # Each that has started and not yet connected takes some: where none are left then, ZeroMQ ends this process.
        starting = sum(not each.registered for each in self._processes.values())
        check_descriptors(SPARE_DESCRIPTORS + starting * WORKER_DESCRIPTORS)
        with ExitStack() as undo, ExitStack() as passed_on:
            path = os.path.join(self._folder, f"{worker.id.hex()}.now")
            with open(path, "wb+") as file:
                undo.callback(os.unlink, path)
                os.posix_fallocate(
                    file.fileno(), 0, testament.BYTES
                )  # on a full disk, writing would be a SIGBUS
                worker.testament = mmap.mmap(file.fileno(), testament.BYTES)
            undo.callback(worker.testament.close)
            ends = []
            worker.secret = secrets.token_hex(8)
            for source in ("stdout", "stderr"):
                ours, theirs = os.pipe()
                passed_on.callback(os.close, theirs)
                ends.append(theirs)
                mark = mark_of(worker.secret)
                reader = LineReader(ours, source, mark, lambda *line: self._printed(worker, *line))
                undo.callback(self._close, worker, reader)
                worker.readers.append(reader)
                self._read_on([(worker, reader)])
            self._zygotes.fork(worker, (ends[0], ends[1]))
            undo.pop_all()

    def _start_failed(self, worker: Process, cause: str) -> None:
        """A worker has ended before it was ready, or never began: admission tries again, or gives up."""
        log.error("a worker never became ready: %s", cause)
        self._last_failure = cause
        self._admission.worker_start_failed(worker.worker_kind)
        self._undecided = True

    def _report(self, worker: Process, status: int | None, stderr_tail: str) -> str:
        """How a worker has ended (None: it never began), for the error that its end raises."""
        return json.dumps(
            {
                "pid": worker.pid or None,
                "node": self.node.hex(),
                "exit_status": status,
                "stderr_tail": stderr_tail,
                "why": worker.killed_because,
                "likely_oom": status == -9 and not worker.killed_because and self._out_of_memory(),
            }
        )

    def _environment(self, maker: ProcessId, variables: Any) -> Any:
        """The environment of an actor that this process makes."""
        return environment_of(self._processes[maker].job.id, variables)

    def _workers(self) -> list[tuple[ProcessId, int, str, bool]]:
        """(id, pid, kind, ready) of each process of the node."""
        return [(each.id, each.pid, each.kind, each.registered) for each in self._processes.values()]

    def _kill_id(self, process: ProcessId, why: str) -> None:
        if process in self._processes:
            self._kill(self._processes[process], why)
        elif self._mailbox.is_elsewhere(process):
            self._post(manager_of(process), m.EndWorker(process, why))

    def _end_worker(self, stranger: Stranger, worker: ProcessId, why: str) -> None:
        """The manager of another node has an actor in this worker, and it is not needed."""
        pooled = self._admission.workers.get(worker)
        lease = None if pooled is None else pooled.lease
        process = self._processes.get(worker)
        another = lease is not None and self.cluster.roster.home(lease.request.owner) != stranger.id
        if (
            process is None or another
        ):  # (where its lease has ended, with its placement group, the process has not yet)
            raise ValueError(f"worker {worker.hex()} has no actor of that node's")
        self._kill(process, why)

    def _kill(self, process: Process, why: str) -> None:
        process.killed_because = why
        if process.pid:
            self._zygotes.kill(process)

    def _end_in_order(self, worker: Process, why: str) -> None:
        """Has a worker run its exit handlers and end; kills one that runs a task, or takes too long."""
        assert worker.testament is not None
        if not worker.registered or testament.running(worker.testament):
            self._kill(worker, why)
            return
        worker.killed_because = why
        self._exiting[worker.id] = monotonic() + EXIT_SECONDS
        self._post(worker.id, m.Left(why))

    def _kill_who_stays(self, now: float) -> float | None:
        """Gives the time of the next look, or None."""
        if not self._exiting:
            return None
        for worker in [worker for worker, until in self._exiting.items() if until <= now]:
            del self._exiting[worker]
            self._kill(self._processes[worker], "its exit handlers did not end")
        return min(self._exiting.values(), default=None)

    # ----------------------------------------------------------------------------------------------------- logs

    def _read(self, worker: Process, reader: LineReader) -> None:
        if not reader.read():
            self._close(worker, reader)
        elif worker.job.output.hold_up((worker, reader), monotonic()):
            self._mailbox.unwatch(reader.fd)
            self._unfinished.leave(reader)
        else:
            self._unfinished.note(worker, reader)

    def _read_on(self, readers: Iterable[tuple[Process, LineReader]]) -> None:
        for worker, reader in readers:
            self._mailbox.watch(reader.fd, partial(self._read, worker, reader))
            self._unfinished.note(worker, reader)

    def _close(self, worker: Process, reader: LineReader) -> None:
        if reader.open:
            worker.job.output.closed((worker, reader))
            self._unfinished.leave(reader)
            self._mailbox.unwatch(reader.fd)
            reader.close()

    def _printed(self, worker: Process, source: str, name: str, text: str) -> None:
        job = worker.job
        if job.left or not job.log_to_driver:
            return
        driver = self._drivers.get(job.driver)
        listens = self._mailbox.is_elsewhere(job.driver) or (driver is not None and driver.registered)
        if listens and job.output.sent(text):
            self._post(job.driver, m.Log(source, name, worker.pid, text))

    def _logs_shown(self, driver: Process | Stranger, characters: int) -> None:
        for job in self._jobs.values():
            if job.driver == driver.id:
                self._read_on(job.output.shown(characters, monotonic()))
                lost = job.output.take_lost()
                if lost:
                    text = f"{lost} lines that tasks printed are lost: for too long nobody had read those before them"
                    self._post(job.driver, m.Log("stderr", "", os.getpid(), text))

    def _wait_for_output(self, now: float) -> float | None:
        """Gives up drivers that show nothing, and shows unfinished lines; gives the time of the next look, or None."""
        due = self._unfinished.step(now)
        for job in self._jobs.values():
            waited = job.output.tick(now)
            if waited:
                log.warning("the driver of job %s does not show what its tasks print: it is dropped", job.id)
                self._read_on(waited)
            if job.output.deadline is not None:
                due = job.output.deadline if due is None else min(due, job.output.deadline)
        return due

    def warn_drivers(self, text: str) -> None:
        """Has drivers show their users a warning about the store."""
        log.warning("%s", text)
        for driver in self._drivers.values():
            if driver.registered:
                self._post(driver.id, m.StoreWarning(text))

    # --------------------------------------------------------------------------------------------------- deaths

    def _zygote_said(self, message: dict[str, Any] | None) -> None:
        if message is None:
            self._exiting.clear()
            self._end(f"its zygote (pid {self._session['zygote_pid']}) died, and all workers with it")
        elif "forked" in message:
            process = self._processes[ProcessId(bytes.fromhex(message["forked"]))]
            process.pid = message["pid"]
            self._by_pid[process.pid] = process
            if process.killed_because:
                self._kill(process, process.killed_because)
        elif "exited" in message:
            self._bury(self._by_pid.pop(message["exited"]), message["status"])
        elif "unforked" in message:
            worker = self._processes[ProcessId(bytes.fromhex(message["unforked"]))]
            self._bury(worker, None, f"no process could be forked: {message['why']}")

    def _lost_with_zygote(self, worker: Process, why: str) -> None:
        self._by_pid.pop(worker.pid, None)
        self._bury(worker, None, why)

    def _robbed(self, path: str) -> None:
        self._end(f"somebody, perhaps a cleaner of temporary folders, has removed {path}")

    def _end(self, why: str) -> None:
        log.info("the node ends: %s", why)
        self._why = self._why or why
        self._running = False

    def _bury(self, worker: Process, status: int | None, why: str = "") -> None:
        """A worker has ended: everybody hears of it, and what it held is taken back."""
        self._deliver(worker.id, self._mailbox.last_words(worker.id))
        assert worker.testament is not None
        running = testament.running(worker.testament)
        answered, answers = testament.answers(worker.testament)
        worker.testament.close()
        for to, _, record in answers:
            if to == manager_of(to):
                self._mailbox.deliver_late(worker.id, to, record)
        stderr_tail = why
        for reader in worker.readers:
            reader.drain()
            self._close(worker, reader)
            if reader.tail and reader is worker.readers[1]:
                stderr_tail = "\n".join(reader.tail)
        for name in (f"{worker.id.hex()}.now", worker.id.hex()):
            try:
                os.unlink(os.path.join(self._folder, name))
            except FileNotFoundError:
                pass  # it died before it opened its inbox
        cause = self._report(worker, status, stderr_tail)
        self._zygotes.buried(worker)
        if worker.registered:
            self._admission.worker_died(worker.id)
        else:
            self._start_failed(worker, cause)
        for owner, attempt, record in answers:
            if owner != manager_of(owner) and (owner in self._processes or self._mailbox.is_elsewhere(owner)):
                self._post(owner, m.LateAnswer(worker.id, attempt, record))
        self._forget(worker, m.ProcessDied(worker.id, cause, running, answered))

    def _forget(self, process: Process, notice: m.ProcessDied, last_words: float = 0.0) -> None:
        """A process is gone: what it held is taken back, and everybody hears of it."""
        self._remove(process)
        self._leaving[process.id] = monotonic() + last_words
        if not last_words:
            self._unlink(process.id)
        owners = _Owners(self.node, self._processes)
        self._store.bury(process.pid, owners)
        self._spiller.process_left(process.id, owners)
        self._puller.process_left(process.id)
        self._scheduling.owner_left(process.id)
        self._groups.process_left(process.id)
        self._tell_all(notice)
        self._settlements.process_died(process.id, self.cluster.tell_of_death(notice))
        self._actors.process_left(process.id, notice.cause)

    def _unlink(self, process: ProcessId) -> None:
        """Nothing will be said to the process any more."""
        del self._leaving[process]
        self._mailbox.forget(process)
        self._mailbox.bury(process, self._processes.keys() | self._leaving.keys() | {self.me})

    def _unlink_who_left(self, now: float) -> float | None:
        """Gives the time of the next look, or None."""
        if not self._leaving:
            return None
        for process in [process for process, until in self._leaving.items() if until <= now]:
            self._unlink(process)
        return min(self._leaving.values(), default=None)

    def _tell_all(self, notice: Any) -> None:
        record = encode(notice)
        for process in self._processes.values():
            if process.registered:
                self._mailbox.post(process.id, record)

    def _stranger_died(self, notice: m.ProcessDied) -> None:
        """A process of another node is gone."""
        self._tell_all(notice)
        self._puller.owner_died(notice.process, "its owner is dead.")
        self._drop_objects(notice.process)
        self._strangers.on_process_died(notice.process, notice.cause)
        self._groups.process_left(notice.process)
        self._actors.process_left(notice.process, notice.cause)
        self._strangers_left(notice.process)

    def _node_died(self, notice: m.NodeDied) -> None:
        """Another node is gone, and all its processes."""
        self._undecided = True  # what its owners had here is free
        self._tell_all(notice)
        self._head.node_died(notice.node)
        self._settlements.node_died(notice.node)
        self._puller.node_died(notice.node, json.loads(notice.cause)["node_died"])
        self._drop_objects(notice.node)
        self._strangers.on_node_died(notice.node, notice.cause)
        self._scheduling.node_died(notice.node)
        self._groups.node_died(notice.node)
        self._actors.node_left(notice.node, notice.cause)
        self._actors.names.node_died(notice.node)
        self._strangers_left(notice.node)

    def _drop_objects(self, gone: bytes) -> None:
        """Copies, and results, whose owners are of another node and dead."""
        owners = _AllBut(gone)
        self._store.drop_orphans(owners)
        self._spiller.owners_left(owners)

    def _stranger_gone(self, process: ProcessId, cause: str) -> None:
        """What it asked of this node is taken back."""
        self._scheduling.foreign_owner_left(process)
        self._actors.process_left(process, cause)

    def _out_of_memory(self) -> bool:
        before, self._oom_kills = self._oom_kills, _oom_kills()
        return self._oom_kills > before

    # ---------------------------------------------------------------------------------------------------- the end

    def _end_workers(self) -> None:
        """Ends all workers, and sends drivers that still live what was printed last."""
        if self._in_order:
            for process in list(self._processes.values()):
                if process.kind == "worker":
                    self._end_in_order(process, self._why)
            while (until := self._kill_who_stays(monotonic())) is not None:
                self._mailbox.flush()
                self._mailbox.read(max(0.0, until - monotonic()))
        self._zygotes.end()
        end_children()  # what a killed zygote has left us
        for process in list(self._processes.values()):
            for reader in process.readers:
                reader.drain()
                self._close(process, reader)
        for process in self._processes.values():
            if process.kind == "worker":
                self._mailbox.forget(process.id)  # else closing would wait for somebody to read it
            elif process.registered:
                self._post(process.id, m.Left(self._why))
        self._mailbox.flush()


class _Owners:
    """Whose objects stay when a process of this node has died: what lives here, and all of other nodes."""

    def __init__(self, node: NodeId, living: Container[ProcessId]) -> None:
        self._node = node
        self._living = living

    def __contains__(self, owner: Any) -> bool:
        return node_of(owner) != self._node or owner in self._living


class _AllBut:
    """All processes but one that is dead, or those of a dead node."""

    def __init__(self, gone: bytes) -> None:
        self._gone = gone

    def __contains__(self, owner: Any) -> bool:
        return not owner.startswith(self._gone)


def _oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since it booted."""
    try:
        with open("/proc/vmstat") as vmstat:
            return next((int(line.split()[1]) for line in vmstat if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0
