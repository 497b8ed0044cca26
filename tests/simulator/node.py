"""A node: the product's NodeManager in its own loop, a zygote that starts simulated processes, a store in memory.

State: the processes that run and those that are being forked; what is to be done in the manager's next turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

from skate._c.resources import to_units
from skate.config import NODE_ID_LABEL
from skate.core.admission import Admission
from skate.core.bundles import BundledResources
from skate.core.roster import Row
from skate.ids import NodeId, ProcessId, process_id
from skate.net.exchange import Place
from skate.net.node_mailbox import NodeMailbox
from skate.node.manager import NodeManager
from skate.node.processes import Process
from skate.node.puller import Puller
from skate.node.settlements import Settlements
from skate.node.spiller import Spiller
from skate.store.local import LocalStore
from skate.wire import testament

from simulator.arena import MemoryArena
from simulator.network import SimNodeMailbox
from simulator.process import Driver, OwnerProcess, Worker

if TYPE_CHECKING:
    from simulator.cluster import Cluster
    from simulator.world import Fiber

#: seconds that a fork takes, at least and at most, and until a death is noticed
FORK: Final = (0.004, 0.02)
REAP: Final = (0.0002, 0.003)


class Memory(bytearray):
    """A testament's file: slices are bytes, as those of a mapping are. Once its process is dead nobody writes there."""

    frozen = False

    def __setitem__(self, key: Any, value: Any) -> None:
        if not self.frozen:
            super().__setitem__(key, value)

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return bytes(found) if isinstance(found, bytearray) else found

    def close(self) -> None: ...


class SimManager(NodeManager):
    """The product's node manager, whose workers are simulated processes."""

    sim: Node

    def __init__(self, sim: Node, *args: Any, **options: Any) -> None:
        self.sim = sim
        super().__init__(*args, **options)

    def _open_mailbox(self, lanes: Place | None) -> NodeMailbox:
        return SimNodeMailbox(self.sim.cluster.network, self.sim.call, self.me, self._deliver)

    def _fork(self, worker: Process) -> None:
        worker.testament = Memory(testament.BYTES)  # type: ignore[assignment]
        self.sim.send({"fork": worker.id.hex(), "job": worker.job.facts, "memory": worker.testament})

    def _end_workers(self) -> None:
        self.sim.kill_workers()

    def turn(self) -> None:
        self._turn()

    @property
    def running(self) -> bool:
        return self._running

    def zygote_said(self, message: dict[str, Any]) -> None:
        self._zygote_said(message)

    def let_in(self, pid: int, job: dict[str, Any]) -> dict[str, Any]:
        return self._adopt_driver(pid, {"job": job, "log_to_driver": False})

    def driver_is_gone(self, driver: ProcessId) -> None:
        """What its pidfd would tell."""
        process = self._drivers.get(driver)
        if process is not None and process.pidfd in self.mailbox._watched:
            self.mailbox._watched[process.pidfd]()

    # What checkers look at.

    @property
    def mailbox(self) -> SimNodeMailbox:
        assert isinstance(self._mailbox, SimNodeMailbox)
        return self._mailbox

    @property
    def admission(self) -> Admission:
        return self._admission

    @property
    def scheduling(self) -> Any:
        return self._scheduling

    @property
    def actors(self) -> Any:
        return self._actors

    @property
    def groups(self) -> Any:
        return self._groups

    @property
    def puller(self) -> Puller:
        return self._puller

    @property
    def settlements(self) -> Settlements:
        return self._settlements

    @property
    def strangers(self) -> Collection[ProcessId]:
        return self._strangers._known

    @property
    def jobs(self) -> Collection[str]:
        return self._jobs

    def bundles_held(self) -> dict[bytes, int]:
        """Placement group -> how many of its bundles this node has reserved."""
        pools = self._admission.resources._pools
        return {bytes.fromhex(name): len(pool.prepared) + len(pool.committed) for name, pool in pools.items()}


class Node:
    """One machine. It is the process of its node manager, too."""

    def __init__(
        self,
        cluster: Cluster,
        node: NodeId,
        address: str,
        head: str | None,
        resources: Mapping[str, float],
        labels: Mapping[str, str],
    ) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.id = node
        self.address = address
        self.alive = True
        self.busy = False
        self.ready: deque[Fiber] = deque()  # a node manager has none
        self.arena = MemoryArena()
        #: pid -> process, of those that run
        self.running: dict[int, OwnerProcess] = {}
        self._starting: dict[int, ProcessId] = {}
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._alarm: float | None = None
        self._waking = False
        self.manager = self._make_manager(head, resources, labels)
        cluster.network.receivers[process_id(node, 0)] = self.receive
        if head is None and cluster.state is not None:
            self.manager.come_back(cluster.state)  # type: ignore[arg-type]
        self.run()

    def _make_manager(
        self, head: str | None, resources: Mapping[str, float], labels: Mapping[str, str]
    ) -> SimManager:
        node, host = self.id, self.address.rpartition(":")
        units = {name: to_units(amount, name) for name, amount in resources.items()}
        all_labels = {NODE_ID_LABEL: node.hex()} | dict(labels)
        cpus = int(resources.get("CPU", 0))
        gpus = [str(number) for number in range(int(resources.get("GPU", 0)))]
        admission = Admission(
            BundledResources(units, gpus),
            keep_idle=max(1, cpus),
            start_at_once=4,
            first_lease=(int.from_bytes(node, "big") << 31) + 1,
        )
        store = LocalStore(self.arena)  # type: ignore[arg-type]
        spiller = Spiller("", store, self.arena, None)  # type: ignore[arg-type]
        puller = Puller(process_id(node, 0), "", self.arena, spiller)  # type: ignore[arg-type]
        row = Row(
            node=node, address="", hostname=host[0], pid=1, folder="", head=False, total=units, labels=all_labels,
            available=units, demands=[], alive=True, cause="",
        )  # fmt: skip
        return SimManager(
            self,
            node,
            "",
            store,
            spiller,
            puller,
            admission,
            self,
            {"node": node.hex(), "labels": all_labels, "lanes": None, "zygote_pid": 1},
            prestart=min(cpus, 2),
            starter=None,
            alone=False,
            row=row,
            cluster={"head": head, "key": None, "host": host[0], "port": int(host[2])},
        )

    def __repr__(self) -> str:
        return f"<node {self.id.hex()} at {self.address}>"

    # --------------------------------------------------------------------------------------------- its manager's loop

    def become_current(self) -> None:
        self.world.enter(None)

    def receive(self, message: Any) -> None:
        """Something of a process of this node has arrived."""
        self.call(self.manager.mailbox.take, message)

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Runs something in the manager's process, as if what it waits for had become readable."""
        if self.alive:
            self._calls.append((function, args))
            if self.busy or self._waking:
                return
            if self.cluster.wake_up:
                self._waking = True
                self.world.after(self.cluster.wake_up, self._wake)
            else:
                self.run()

    def _wake(self) -> None:
        self._waking = False
        if self._calls and self.alive:
            self.run()

    def run(self) -> None:
        """Turns of the manager's loop, until it would sleep."""
        manager, calls, mailbox = self.manager, self._calls, self.manager.mailbox
        self.busy = True
        try:
            while True:
                while calls:
                    function, args = calls.popleft()
                    function(*args)
                mailbox.slept = False
                while not mailbox.slept and manager.running:
                    manager.turn()
                if not manager.running:
                    self._end()
                    return
                if not calls:
                    break
        finally:
            self.busy = False
        if mailbox.timeout is not None:
            self._look_at(self.world.now + mailbox.timeout)
        self.cluster.stepped(self)

    def _look_at(self, time: float) -> None:
        if self._alarm is None or self._alarm <= self.world.now or time < self._alarm:
            self._alarm = max(time, self.world.now + 1e-6)
            self.world.at(self._alarm, self._timer, self._alarm)

    def _timer(self, time: float) -> None:
        if self.alive and self._alarm == time:
            self._alarm = None
            self.run()

    # ------------------------------------------------------------------------------------------------------- zygote

    def fileno(self) -> int:
        return -1

    def send(self, message: dict[str, Any]) -> None:
        """The node manager tells its zygote something."""
        world = self.world
        if "fork" in message:
            low, high = FORK
            pid = self.cluster.next_pid()
            me = ProcessId(bytes.fromhex(message["fork"]))
            if self.cluster.fork_fails():
                self.call(self.manager.zygote_said, {"unforked": message["fork"], "why": "no memory"})
                return
            self._starting[pid] = me
            delay = low + (high - low) * world.random.random()
            world.after(delay / 2, self.call, self.manager.zygote_said, {"forked": me.hex(), "pid": pid})
            world.after(delay, self._forked, me, pid, message["job"], message["memory"])
        elif "kill" in message:
            world.after(0.0, self.kill_process, message["kill"])

    def _forked(self, me: ProcessId, pid: int, job: dict[str, Any], memory: Memory) -> None:
        if self.alive and self._starting.pop(pid, None) is not None:
            self._run_process(Worker(self, me, pid, job, memory))

    def _run_process(self, process: OwnerProcess) -> None:
        if process.alive:  # it may have ended already
            self.running[process.pid] = process

    def kill_process(self, pid: int) -> None:
        """SIGKILL, as the zygote sends it."""
        process = self.running.get(pid)
        if process is not None:
            process.kill()
        elif self._starting.pop(pid, None) is not None:
            self._reap({"exited": pid, "status": -9})

    def process_ended(self, process: OwnerProcess, status: int) -> None:
        """A process of this node is no more."""
        self.running.pop(process.pid, None)
        if not self.alive:
            return
        if isinstance(process, Driver):
            self.world.after(REAP[0], self.call, self.manager.driver_is_gone, process.id)
        else:
            self._reap({"exited": process.pid, "status": status})

    def _reap(self, message: dict[str, Any]) -> None:
        low, high = REAP
        delay = low + (high - low) * self.world.random.random()
        self.world.after(delay, self.call, self.manager.zygote_said, message)

    # ------------------------------------------------------------------------------------------------------ drivers

    def start_driver(self, program: Callable[[], None], namespace: str = "sim") -> None:
        """A program on this machine; `cluster.drivers` has it as soon as it runs."""
        self.call(self._let_in, program, namespace)

    def _let_in(self, program: Callable[[], None], namespace: str) -> None:
        pid = self.cluster.next_pid()
        job = {
            "id": f"job{pid}", "namespace": namespace, "sys_path": [], "cwd": "/", "main_file": None,
            "thread_variables": {}, "logging_level": 20, "variables": [], "group_namespace": "",
        }  # fmt: skip
        facts = self.manager.let_in(pid, job)
        self.world.after(0.001, self._start_driver, bytes.fromhex(facts["driver"]), pid, job, program)

    def _start_driver(self, me: bytes, pid: int, job: dict[str, Any], program: Callable[[], None]) -> None:
        if self.alive:
            driver = Driver(self, ProcessId(me), pid, job, program)
            self.cluster.drivers.append(driver)
            self._run_process(driver)

    # ------------------------------------------------------------------------------------------------------- the end

    def kill_workers(self) -> None:
        for process in list(self.running.values()):
            process.kill()

    def kill(self, noticed_after: float) -> None:
        """The machine is gone, with all that ran on it; others see the connection end so many seconds later."""
        if self.alive:
            self.alive = False
            self.cluster.network.killed(process_id(self.id, 0))
            self.kill_workers()
            sockets = self.cluster.network.bound.get(self.address)
            if sockets is not None and sockets.node == self.id:
                sockets.died(noticed_after)
            self.manager.mailbox.closed = True
            self.cluster.network.forget(self.id)

    def _end(self) -> None:
        """The manager's loop has come to its end: the node takes leave."""
        self.manager.close()
        self.kill(noticed_after=0.001)
