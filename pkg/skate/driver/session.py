"""A driver's session: the node manager that `init` starts, and the runtime that talks to it.

State: the node manager's process and the driver's runtime, from `start` to `end`. The node manager watches this process
and ends with it, however it ends; this process watches the node manager, and fails what waits when it dies.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import warnings
from time import monotonic
from typing import Any, TextIO

from skate._c.refs import Waiter
from skate.exceptions import LocalNodeManagerDiedError
from skate.ids import NodeId, ProcessId, process_id
from skate.runtime import current
from skate.runtime.runtime import Runtime
from skate.store.local import LocalStore
from skate.wire import messages as m

log = logging.getLogger("skate")

#: seconds that a node manager may take to start, and to end
START_SECONDS = 60.0
END_SECONDS = 10.0
#: variables that make a BLAS start with one thread, so that the zygote stays single-threaded
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from skate.node.main import main; main()"


class Session:
    """One driver, its node manager and its runtime."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Starts a node manager; blocks until it is ready. RuntimeError, with what it said, where it does not start."""
        self._process = _spawn(config)
        self.facts = _read_facts(self._process) | {"owner_pid": os.getpid()}
        for text in self.facts["warnings"]:
            warnings.warn(text, RuntimeWarning, stacklevel=4)
        node = NodeId(bytes.fromhex(self.facts["node"]))
        me = ProcessId(bytes.fromhex(self.facts["driver"]))
        self.node = process_id(node, 0)
        store = LocalStore.attach(self.facts["segment"])
        self.runtime = Runtime(me, self.node, self.facts["folder"], store, "skate-pump")
        self._left = Waiter()
        self._left.missing = 1
        self._pidfd = os.pidfd_open(self._process.pid)
        self._ending = False
        runtime = self.runtime
        runtime.handle(m.Registered, lambda *_: None)
        runtime.handle(m.Log, self._print)
        runtime.handle(m.Left, lambda *_: runtime.finish(self._left))
        runtime.mailbox.watch(self._pidfd, self._node_died)
        current.set_runtime(
            runtime, current.Facts(node=node, job=config["job"]["id"], namespace=config["job"]["namespace"])
        )
        runtime.lock.acquire()
        try:
            runtime.post(self.node, m.Register("driver", os.getpid(), None))
            runtime.mailbox.flush()
        finally:
            runtime.release()
        runtime.start()
        self._defer_interrupts()

    def end(self) -> None:
        """Ends the node and all workers; what they printed is shown first. Blocks until the node's process is gone."""
        self._ending = True
        runtime = self.runtime
        if runtime.broken is None:
            runtime.lock.acquire()
            try:
                runtime.post(self.node, m.Leave("shutdown"))
            finally:
                runtime.release()
            runtime.pump.wait(self._left, runtime.lock, monotonic() + END_SECONDS)
        current.set_runtime(None, None)
        self._restore_interrupts()
        runtime.mailbox.unwatch(self._pidfd)
        os.close(self._pidfd)
        runtime.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            log.error("the node manager (pid %d) does not end; it is killed", self._process.pid)
            self._process.kill()
            self._process.wait()

    def _defer_interrupts(self) -> None:
        """Ctrl-C waits until the runtime's state is whole, unless the program has a handler of its own."""
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, self.runtime.on_interrupt)

    def _restore_interrupts(self) -> None:
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) == self.runtime.on_interrupt:
                signal.signal(signal.SIGINT, signal.default_int_handler)

    def _node_died(self) -> None:
        self.runtime.mailbox.unwatch(self._pidfd)
        status = self._process.poll()
        if not self._ending:
            self.runtime.fail_everything(
                LocalNodeManagerDiedError(
                    f"The node manager (pid {self._process.pid}) died with status {status}; all workers and objects "
                    "went with it. Call skate.shutdown() and skate.init() to start again."
                )
            )
        self.runtime.finish(self._left)

    def _print(self, _: ProcessId, source: str, name: str, pid: int, text: str) -> None:
        stream = sys.stderr if source == "stderr" else sys.stdout
        prefix = f"({name} pid={pid})" if name else f"(pid={pid})"
        self.runtime.later(lambda: _print_lines(stream, prefix, text))


def _print_lines(stream: TextIO, prefix: str, text: str) -> None:
    stream.write("".join([f"{prefix} {line}\n" for line in text.split("\n")]))
    stream.flush()


def _spawn(config: dict[str, Any]) -> subprocess.Popen[bytes]:
    path = [os.path.abspath(entry) if entry else os.getcwd() for entry in sys.path]
    environment = dict(os.environ)
    config["job"]["thread_variables"] = {name: environment.get(name) for name in THREAD_VARIABLES}
    config["job"]["sys_path"] = path
    for name in THREAD_VARIABLES:
        environment[name] = "1"
    process = subprocess.Popen(
        [sys.executable, "-c", _BOOT, json.dumps(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal is the driver's
        env=environment,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(config).encode())
    process.stdin.close()
    return process


def _read_facts(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
    line = process.stdout.readline() if ready else b""
    process.stdout.close()
    if not line:
        process.kill()
        status = process.wait()
        raise RuntimeError(
            f"the node manager did not start (status {status}, after at most {START_SECONDS:.0f} s). "
            "Does `python -c 'import skate, numpy, zmq'` work in this environment?"
        )
    facts: dict[str, Any] = json.loads(line)
    if "error" in facts:
        process.wait()
        raise RuntimeError(f"the node manager could not start:\n{facts['error']}")
    return facts


