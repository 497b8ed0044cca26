"""Starting a node manager, and coming in through its door. No state."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from typing import Any

from skate.net.cluster_key import KEY_VARIABLE
from skate.node.door import DOOR
from skate.node.zygote import NO_WORKER, WORKER_VARIABLE, receive, send

#: seconds that a node manager may take to start, and to let a driver in
START_SECONDS = 60.0
#: variables that make a BLAS start with one thread, so that the zygote stays single-threaded
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


class CannotJoin(RuntimeError):
    """The cluster did not let the node in, or there is none at that address."""


_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from skate.node.main import main; main()"


def module_path() -> list[str]:
    """sys.path, as it is in another working directory."""
    return [os.path.abspath(entry) if entry else os.getcwd() for entry in sys.path]


def enter(folder: str, job: dict[str, Any], log_to_driver: bool) -> dict[str, Any]:
    """Comes in through the door of the node whose session has this folder: its facts, and this driver's process id.

    Blocks until the node answers. ConnectionError where it does not let this process in.
    """
    job = job | {
        "sys_path": module_path(),
        "thread_variables": {name: os.environ.get(name) for name in THREAD_VARIABLES},
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.settimeout(START_SECONDS)
        door.connect(os.path.join(folder, DOOR))
        send(door, {"job": job, "log_to_driver": log_to_driver})
        facts, _ = receive(door)
    if facts is None:
        raise ConnectionError(
            f"the node of {folder} ended before it let this process in; its node.log may say why"
        )
    if "refused" in facts:
        raise ConnectionError(f"the node of {folder} does not let this process in. {facts['refused']}")
    return facts


def ask_nodes(folder: str) -> list[dict[str, Any]]:
    """The table of nodes, as the node whose session has this folder knows it: rows of core.roster.

    OSError where no node answers there; the text says why.
    """
    return _ask(folder, "nodes")


def ask_pending_groups(folder: str) -> list[Any]:
    """(bundles, strategy, feasible) of each placement group that waits. As `ask_nodes`; also OSError while the cluster
    has no head.
    """
    return _ask(folder, "pending groups")


def _ask(folder: str, table: str) -> list[Any]:
    """All rows of a table at the door. Blocks."""
    rows: list[Any] = []
    first: int | None = 0
    while first is not None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            door.settimeout(START_SECONDS)
            door.connect(os.path.join(folder, DOOR))
            send(door, {"ask": table, "from": first})
            answer, _ = receive(door)
        if answer is None or "rows" not in answer:
            why = answer.get("refused", answer) if answer else "it has ended"
            raise ConnectionError(f"the node of {folder} did not answer. {why}")
        rows += answer["rows"]
        first = answer["next"]
    return rows


def spawn(config: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Starts a node manager. `config` is api.session's `node_config`."""
    environment = dict(os.environ)
    for name in THREAD_VARIABLES:
        environment[name] = "1"
    environment[WORKER_VARIABLE] = NO_WORKER
    environment.pop(KEY_VARIABLE, None)  # workers inherit this; the node has it in its configuration
    process = subprocess.Popen(
        [sys.executable, "-c", _BOOT, json.dumps(module_path())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal is the driver's
        env=environment,
    )
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(config).encode())
        process.stdin.close()
    except BrokenPipeError:
        pass  # it has ended; read_facts says so
    return process


def read_facts(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What the node manager says of itself; blocks until it does. RuntimeError where it does not start, CannotJoin
    where its cluster does not let it in.
    """
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
        if facts.get("cannot_join"):
            raise CannotJoin(facts["error"])
        raise RuntimeError(f"the node manager could not start:\n{facts['error']}")
    return facts
