"""A worker's process, from the fork to its end."""

from __future__ import annotations

import atexit
import logging
import mmap
import os
import pickle
import random
import sys
from multiprocessing.reduction import ForkingPickler
from types import FunctionType
from typing import Any

from skate.ids import NodeId, ProcessId, process_id
from skate.net.exchange import Place
from skate.node.errors import of_limit
from skate.node.inherited import restore
from skate.node.interpreter import THREAD_VARIABLES
from skate.runtime import current, forks  # noqa: F401  (a fork forgets the runtime)
from skate.runtime.runtime import Runtime
from skate.store.local import LocalStore
from skate.store.serialization import dump_function
from skate.wire import messages as m
from skate.wire import testament
from skate.worker import threads
from skate.worker.actor import become_actor
from skate.worker.executor import Executor
from skate.worker.output import TaskOutput


def prepare() -> None:
    """What is the same in all workers, done once in the process that forks them."""
    import cloudpickle  # noqa: F401
    import numpy  # noqa: F401
    import zmq  # noqa: F401

    threads.find()
    ForkingPickler.reducer_override = _definition_by_value  # type: ignore[attr-defined]


def _definition_by_value(pickler: ForkingPickler, value: Any) -> Any:
    """For multiprocessing in a task: definitions of the program's `__main__`, which this process's own has not got."""
    if isinstance(value, type | FunctionType) and value.__module__ == "__main__":
        return pickle.loads, (dump_function(value).data,)
    return NotImplemented


def run_worker(identity: bytes, config: dict[str, Any]) -> int:
    """Runs a worker in the forked process; returns its exit status. `config` is node.main's `worker_config`."""
    me = ProcessId(identity)
    job = config["job"]
    restore(config["inherited"])
    own = config["variables"]
    _see_what_the_driver_sees(job, own)
    _restore_threads(job["thread_variables"] | {name: own[name] for name in THREAD_VARIABLES if name in own})
    _be_random()
    output = TaskOutput(config["secret"])
    logging.basicConfig(level=job["logging_level"], format="%(levelname)s %(name)s: %(message)s", force=True)
    with open(os.path.join(config["folder"], f"{me.hex()}.now"), "rb+") as file:
        memory = mmap.mmap(file.fileno(), testament.BYTES)
    node = NodeId(bytes.fromhex(config["node"]))
    manager = process_id(node, 0)
    lanes = Place.of(config["lanes"])
    store = LocalStore.attach(config["segment"])
    try:
        runtime = Runtime(me, manager, config["folder"], store, "skate-pump", lanes)
    except OSError as error:
        print(f"this worker cannot speak to its node: {of_limit(error)}", file=sys.stderr)
        return 1
    executor = Executor(runtime, testament.Testament(memory), output, become_actor)
    current.set_runtime(runtime, current.facts_of(job, node, executor))
    with runtime.lock:
        runtime.post(manager, m.Register("worker", os.getpid(), None))
        runtime.mailbox.flush()
    runtime.start()
    try:
        executor.run()
    finally:
        atexit._run_exitfuncs()
        executor.let_go_of_actor()
        sys.stdout.flush()
        sys.stderr.flush()
        runtime.end_quietly(RuntimeError("this worker ends"))
        runtime.close()
    return 0


def _see_what_the_driver_sees(job: dict[str, Any], variables: dict[str, str]) -> None:
    """The driver's sys.path and working directory, so that its modules are found; after PYTHONPATH of the env_vars."""
    sys.path[:] = job["sys_path"]
    sys.argv = [""]
    try:
        if job["cwd"] is not None:  # the driver's was removed: this process has no better one
            os.chdir(job["cwd"])
    except OSError as error:
        print(f"the driver's working directory cannot be entered: {error}", file=sys.stderr)
    if variables.get("PYTHONPATH"):
        sys.path[:0] = [os.path.abspath(entry) for entry in variables["PYTHONPATH"].split(os.pathsep)]
    main = sys.modules["__main__"]
    if job["main_file"]:
        main.__file__ = job["main_file"]


def _restore_threads(variables: dict[str, str | None]) -> None:
    """The zygote was told to load BLAS with one thread; what the user's environment says counts again from here on."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    threads.begin()


def _be_random() -> None:
    """Workers are copies of the zygote, random number generators included: each starts its own."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
