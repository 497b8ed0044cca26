"""A process that owns objects, a driver or a worker: the product's Runtime, and fibers in place of its threads.

What the pump's thread does in a real process, `run` does here: it takes in what has come, lets fibers go on that have
what they waited for, and sees to timers and to what is to leave before the process "sleeps".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from greenlet import GreenletExit
from skate._c import refs
from skate._c.refs import Waiter
from skate.ids import NodeId, ProcessId, process_id
from skate.net.exchange import Place
from skate.net.mailbox import Mailbox
from skate.net.pump import Pump
from skate.runtime import current
from skate.runtime.runtime import Runtime
from skate.store.local import LocalStore
from skate.wire import messages as m
from skate.wire import testament
from skate.worker.actor import become_actor
from skate.worker.executor import Executor

from simulator.arena import MemoryArena
from simulator.network import Network, SimMailbox
from simulator.world import Fiber, World

if TYPE_CHECKING:
    from simulator.node import Memory, Node

#: the status of a process that was killed
KILLED: Final = -9


class SimPump(Pump):
    """Who waits is a fiber: it stops, and goes on when its waiter is done."""

    def __init__(self, world: World, mailbox: Mailbox) -> None:
        self._world = world
        self._mailbox = mailbox

    def wait(self, waiter: Waiter, lock: Any, deadline: float | None) -> bool:
        world, fiber = self._world, self._world.fiber
        assert fiber is not None, "only a program may block"
        if deadline is not None and not waiter.done:
            world.at(deadline, fiber.wake)
        while not waiter.done:
            if deadline is not None and world.now >= deadline:
                return False
            waiter.callback = fiber.wake
            fiber.wait()
        return True

    def glance(self, now: float, interval: float) -> None: ...

    def may_sleep_on(self) -> bool:
        return False

    def another_thread_reads(self) -> bool:
        return False

    def start(self) -> None: ...

    def close(self, ending: bool = False) -> None: ...


class SimRuntime(Runtime):
    """The product's runtime, with simulated mail and no threads."""

    def __init__(
        self, world: World, network: Network, me: ProcessId, node: NodeId, arena: MemoryArena
    ) -> None:
        self._world, self._network = world, network
        super().__init__(me, process_id(node, 0), "", LocalStore(arena), "", None)  # type: ignore[arg-type]

    def open_mailbox(self, folder: str, lanes: Place | None) -> Mailbox:
        return SimMailbox(self._network, self.me, self.deliver)

    def make_pump(self, name: str) -> Pump:
        return SimPump(self._world, self.mailbox)


class OwnerProcess:
    """A simulated process with a runtime. `main` runs in its first fiber."""

    kind = ""

    def __init__(self, node: Node, me: ProcessId, pid: int, job: dict[str, Any]) -> None:
        self.node = node
        self.world = node.world
        self.id = me
        self.pid = pid
        self.job = job
        self.alive = True
        self.busy = False
        self.ready: deque[Fiber] = deque()
        self.runtime: SimRuntime | None = None
        self._facts: current.Facts | None = None
        self._inbox: deque[Any] = deque()
        self._alarm: float | None = None
        self._waking = False
        self._main = self.world.spawn(self, self._begin)
        self._main.wake()

    # ------------------------------------------------------------------------------------------------------ running

    def become_current(self) -> None:
        runtime = self.runtime
        if runtime is None:
            refs.set_home(None, {}, b"")
        else:
            refs.set_home(runtime, runtime.references.entries, self.id)
        current.runtime, current.facts = runtime, self._facts

    def where(self) -> str:
        """Where its program waits."""
        return self._main.where()

    def receive(self, message: Any) -> None:
        """Something has arrived."""
        if self.alive:
            self._inbox.append(message)
            if self.busy or self._waking:
                return
            if self.node.cluster.wake_up:
                self._waking = True
                self.world.after(self.node.cluster.wake_up, self._wake)
            else:
                self.run()

    def _wake(self) -> None:
        self._waking = False
        if self._inbox and self.alive:
            self.run()

    def run(self) -> None:
        """Does all that can be done now, and says when to look again."""
        world = self.world
        world.enter(self)
        self.busy = True
        try:
            inbox, ready = self._inbox, self.ready
            while inbox or ready:
                while inbox and self.runtime is not None:
                    self.runtime.mailbox.take(inbox.popleft())  # type: ignore[attr-defined]
                if ready:
                    ready.popleft().resume()
                if not self.alive:
                    return
            assert self.runtime is not None
            due = self.runtime.before_sleep()
            if due is not None:
                self._look_at(world.now + due)
        finally:
            self.busy = False
            world.enter(None)
        self.node.cluster.stepped(self)

    def _look_at(self, time: float) -> None:
        if self._alarm is None or self._alarm <= self.world.now or time < self._alarm:
            self._alarm = max(time, self.world.now + 1e-6)
            self.world.at(self._alarm, self._timer, self._alarm)

    def _timer(self, time: float) -> None:
        if self.alive and self._alarm == time:
            self._alarm = None
            self.run()

    def _begin(self) -> None:
        status = KILLED
        try:
            self.start()
            self.main()
            status = 0
        except SystemExit as request:
            status = request.code if isinstance(request.code, int) else 1
        except GreenletExit:
            return
        if self.alive:
            assert self.runtime is not None
            self.runtime.close()
            self.gone(status)

    def start(self) -> None:
        """Joins the node, as the process's first act."""
        runtime = self.runtime = SimRuntime(
            self.world, self.node.cluster.network, self.id, self.node.id, self.node.arena
        )
        self.world.enter(self)
        self.node.cluster.network.receivers[self.id] = self.receive
        runtime.handle(m.Registered, lambda *_: None)
        with runtime.lock:
            runtime.post(runtime.node, m.Register(self.kind, self.pid, None))
            runtime.mailbox.flush()

    def main(self) -> None:
        raise NotImplementedError

    # -------------------------------------------------------------------------------------------------------- death

    def kill(self) -> None:
        """SIGKILL: nothing of it runs any more. Not from inside a program."""
        if self.alive:
            self.node.cluster.network.killed(self.id)
            self.gone(KILLED)
            self.end_fibers()

    def end_fibers(self) -> None:
        if self.runtime is not None:
            self.runtime.mailbox.closed = True
            self.runtime.closed = True
        self._main.end()

    def gone(self, status: int) -> None:
        """It has ended; its node hears."""
        self.alive = False
        self.node.cluster.network.receivers.pop(self.id, None)
        self.node.process_ended(self, status)


class NoOutput:
    """What tasks print goes nowhere."""

    name = ""
    dirty = False

    def stay(self, name: str) -> None: ...

    def flush(self) -> None: ...


class Worker(OwnerProcess):
    """A worker: the product's executor runs in its fiber, until it is asked to leave or its actor ends."""

    kind = "worker"

    def __init__(self, node: Node, me: ProcessId, pid: int, job: dict[str, Any], memory: Memory) -> None:
        self._memory = memory
        super().__init__(node, me, pid, job)

    def main(self) -> None:
        assert self.runtime is not None
        executor = Executor(self.runtime, testament.Testament(self._memory), NoOutput(), become_actor)  # type: ignore[arg-type]
        self._facts = current.facts_of(self.job, self.node.id, executor)
        self.executor = executor
        self.world.enter(self)
        executor.run()

    def end_fibers(self) -> None:
        self._memory.frozen = True
        super().end_fibers()


class Driver(OwnerProcess):
    """A driver: it runs a program, and stays until it is told to leave."""

    kind = "driver"

    def __init__(
        self, node: Node, me: ProcessId, pid: int, job: dict[str, Any], program: Callable[[], None]
    ) -> None:
        self._program = program
        #: the program has come to its end
        self.finished = False
        self._leave = Waiter()
        self._leave.missing = 1
        self._left = Waiter()
        self._left.missing = 1
        super().__init__(node, me, pid, job)

    def main(self) -> None:
        runtime = self.runtime
        assert runtime is not None
        self._facts = current.facts_of(self.job, self.node.id)
        self.world.enter(self)
        runtime.handle(m.Log, lambda *_: None)
        runtime.handle(m.StoreWarning, lambda *_: None)
        runtime.handle(m.Left, lambda *_: runtime.finish(self._left))
        self._program()
        self.finished = True
        runtime.pump.wait(self._leave, runtime.lock, None)
        with runtime.lock:
            runtime.post(runtime.node, m.Leave("its program has ended"))
        runtime.pump.wait(self._left, runtime.lock, None)

    def leave(self) -> None:
        """Its program's process ends, as `shutdown` ends it. By the scenario."""
        assert self.runtime is not None
        self.runtime.finish(self._leave)
