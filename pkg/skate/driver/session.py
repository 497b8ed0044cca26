"""A driver's session: the node manager that `init` starts or comes to, and the runtime that talks to it.

State: the driver's runtime, and the node manager's process where it was started here, until `end`. The node manager
watches this process, and ends with it (or lets go of it) however it ends; this process watches the node manager, and
fails what waits when it dies.
"""

from __future__ import annotations

import logging
import os
import subprocess
import warnings
from typing import Any

from skate._c.clock import monotonic, sleep
from skate._c.refs import Waiter
from skate._c.steps import let_in, section
from skate.driver import nodes
from skate.driver.output import Output
from skate.exceptions import LocalNodeManagerDiedError
from skate.ids import NodeId, ProcessId, process_id
from skate.net.exchange import Place
from skate.node.errors import CannotStart, of_limit
from skate.runtime import current, forks  # noqa: F401  (a fork forgets the runtime)
from skate.runtime.runtime import Runtime
from skate.store.local import LocalStore
from skate.wire import messages as m

log = logging.getLogger("skate")

#: seconds that a node manager may take to end
END_SECONDS = 10.0
#: until it is looked again whether a node that is behind with its mail has room for the last word
ROOM_SECONDS = 0.02


class Session:
    """One driver and its runtime; and its node manager, unless it came to one that was there."""

    def __init__(self, job: dict[str, Any], log_to_driver: bool | str, node: dict[str, Any] | str) -> None:
        """Starts a node manager with the configuration `node`, or comes to the one whose session has the folder `node`.

        Blocks until it is ready. RuntimeError that says why where it does not start.
        """
        with section:
            self._begin(job, log_to_driver, node)

    def _begin(self, job: dict[str, Any], log_to_driver: bool | str, node: dict[str, Any] | str) -> None:
        """In a section: a handler of a signal may raise where this waits for others, and Ctrl-C come there."""
        self._process: subprocess.Popen[bytes] | None = None
        folder = node
        if not isinstance(folder, str):
            self._process, facts = let_in(nodes.start, folder)
            folder = facts["folder"]
        try:
            self.facts = let_in(nodes.enter, folder, job, bool(log_to_driver)) | {
                "owner_pid": os.getpid(),
                "job": job["id"],
            }
            self._connect(job, raw=log_to_driver == "raw")
        except BaseException:
            if self._process is not None:
                self._process.kill()  # its zygote clears up
                self._process.wait()
            if hasattr(self, "runtime"):
                self._ending = True
                current.set_runtime(None, None)
                self.runtime.close()
            if hasattr(self, "_output"):
                self._output.close()
            raise

    def _connect(self, job: dict[str, Any], raw: bool) -> None:
        for text in self.facts["warnings"]:
            warnings.warn(text, RuntimeWarning, stacklevel=6)
        node = NodeId(bytes.fromhex(self.facts["node"]))
        me = ProcessId(bytes.fromhex(self.facts["driver"]))
        self.node = process_id(node, 0)
        store = LocalStore.attach(self.facts["segment"])
        lanes = Place.of(self.facts["lanes"])
        try:
            self.runtime = Runtime(me, self.node, self.facts["folder"], store, "skate-pump", lanes)
        except OSError as error:
            raise CannotStart(f"this program cannot speak to its node: {of_limit(error)}") from error
        self._left = Waiter()
        self._left.missing = 1
        self._left_because = ""
        self._pidfd = os.pidfd_open(self.facts["pid"])
        self._ending = False
        self._output = Output(self._shown, raw)
        runtime = self.runtime
        runtime.in_cluster = "address" in self.facts
        runtime.handle(m.Log, self._print)
        runtime.handle(m.Left, self._node_left)
        runtime.handle(m.StoreWarning, lambda _, text: log.warning("%s", text))
        runtime.mailbox.watch(self._pidfd, self._node_died)
        with runtime.lock:
            runtime.post(self.node, m.Register("driver", os.getpid(), None))
            runtime.mailbox.flush()
        runtime.start()
        # Last: from here on other threads may use it.
        current.set_runtime(runtime, current.facts_of(job, node))

    def end(self, process_ends: bool = False) -> None:
        """Ends the node and all workers, if the node is this driver's; what they printed is shown first.

        Blocks until the node's process is gone, or has let this driver go.

        Threads that wait for something get RuntimeError; where the process ends, they just end with it. Ctrl-C ends the
        node at once; all is cleared up even so.
        """
        self._ending = True
        with section:
            try:
                if self.runtime.broken is None:
                    self._take_leave()
            finally:
                self._close(process_ends)

    def _take_leave(self) -> None:
        runtime = self.runtime
        with runtime.lock:
            runtime.post(self.node, m.Leave("its driver has called shutdown()"))
            runtime.mailbox.flush()  # another thread may be asleep in the inbox: it sends nothing
        deadline = monotonic() + END_SECONDS
        while not self._leave_lanes() and monotonic() < deadline:
            runtime.pump.wait(self._left, runtime.lock, monotonic() + ROOM_SECONDS)
        runtime.pump.wait(self._left, runtime.lock, deadline)

    def _leave_lanes(self) -> bool:
        """Other threads may call on, until all is closed; False where the node has no room yet for what it is told."""
        runtime = self.runtime
        with runtime.lock:
            runtime.mailbox.flush()
            if runtime.mailbox.waits_for(self.node):
                return False
            runtime.mailbox.leave_lanes()
        return True

    def _close(self, process_ends: bool) -> None:
        runtime = self.runtime
        error = RuntimeError("skate was shut down: what was not ready by then never will be")
        if process_ends:
            runtime.end_quietly(error)
        else:
            runtime.fail_everything(error)
        current.set_runtime(None, None)
        runtime.mailbox.unwatch(self._pidfd)
        os.close(self._pidfd)
        runtime.close()
        self._output.close()
        if self._process is None:
            return
        if not (self._left.done and nodes.wait_for_end(self._process, END_SECONDS)):
            log.error("the node manager (pid %d) does not end; it is killed", self._process.pid)
            self._process.kill()
            self._process.wait()
        self._clear_up()

    def _clear_up(self) -> None:
        """Where the node manager was killed its zygote clears up; where that died too, this process does."""
        from skate.node import sessions

        deadline = monotonic() + END_SECONDS
        while os.path.exists(self.facts["folder"]) and monotonic() < deadline:
            sessions.sweep()
            sleep(0.01)

    def _node_left(self, _: ProcessId, reason: str) -> None:
        self._left_because = reason
        self.runtime.finish(self._left)

    def _node_died(self) -> None:
        self.runtime.mailbox.unwatch(self._pidfd)
        self.runtime.deliver(self.node, self.runtime.mailbox.last_words(self.node))  # it may have said why
        status = "" if self._process is None else f" with status {self._process.poll()}"
        if not self._ending:
            why = f"ended: {self._left_because}" if self._left_because else f"died{status}"
            self.runtime.fail_everything(
                LocalNodeManagerDiedError(
                    f"The node manager (pid {self.facts['pid']}) {why}. All workers and objects went with it. "
                    "Call skate.shutdown() and skate.init() to start again."
                )
            )
        self.runtime.finish(self._left)

    def _print(self, node: ProcessId, source: str, name: str, pid: int, text: str) -> None:
        self._output.show(node, source, name, pid, text)

    def _shown(self, node: ProcessId, characters: int) -> None:
        runtime = self.runtime
        with runtime.lock:
            if not self._ending:  # from here on the mailbox may be closed
                runtime.post(node, m.LogsShown(characters))
                runtime.mailbox.flush()
