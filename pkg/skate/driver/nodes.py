"""Starting a node manager, and coming in through its door. No state."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any, BinaryIO

from skate.net.cluster_key import KEY_VARIABLE
from skate.node.door import DOOR
from skate.node.errors import CannotJoin, CannotStart
from skate.node.inherited import open_standard_descriptors
from skate.node.interpreter import THREAD_VARIABLES, boot
from skate.node.zygote import NO_WORKER, WORKER_VARIABLE, receive, send
from skate.untouched import select

#: seconds that a node manager may take to start, and to let a driver in
START_SECONDS = 60.0
#: of the end of what a node manager has written that did not start
ERROR_BYTES = 2000


def module_path() -> list[str]:
    """sys.path, as it is in another working directory. What lies in one that was removed is not in it."""
    here = working_directory()
    entries = [entry for entry in sys.path if isinstance(entry, str)]  # as import does
    return [
        os.path.join(here or "", entry).rstrip("/") or "/"
        for entry in entries
        if here or os.path.isabs(entry)
    ]


def working_directory() -> str | None:
    """None: it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


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


def start(config: dict[str, Any]) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """Starts a node manager with api.session's `node_config`; its process, and what it says of itself. Blocks until it
    says so. CannotStart where it does not start, CannotJoin where its cluster does not let it in.
    """
    open_standard_descriptors()
    executable = find_python()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, open(os.memfd_create("skate-start"), "rb") as errors:
        with theirs:
            process = _spawn(executable, theirs.fileno(), errors.fileno())
        try:
            ours.settimeout(START_SECONDS)
            return process, _facts(ours, config)
        except (OSError, _Silent):
            process.kill()
            raise CannotStart(_why_silent(executable, process.wait(), errors)) from None
        except BaseException:
            process.kill()  # its zygote clears up
            process.wait()
            raise


class _Silent(Exception):
    """The node manager has ended and has not said why."""


def _facts(channel: socket.socket, config: dict[str, Any]) -> dict[str, Any]:
    """Says to a node manager what it is to be, and gives what it answers."""
    send(channel, config, (2,))  # where a failure later on is told
    facts, _ = receive(channel)
    if facts is None:
        raise _Silent
    if "error" in facts:
        raise (CannotJoin if facts.get("cannot_join") else CannotStart)(facts["error"])
    return facts


def _spawn(executable: str, channel: int, errors: int) -> subprocess.Popen[bytes]:
    """Begins the node manager's process. `errors` gets what it writes before it has a log; what it prints is lost."""
    environment = dict(os.environ)
    for name in THREAD_VARIABLES:
        environment[name] = "1"
    environment[WORKER_VARIABLE] = NO_WORKER
    environment.pop(KEY_VARIABLE, None)  # workers inherit this; the node has it in its configuration
    try:
        return subprocess.Popen(
            [executable, *boot("skate.node.main", module_path(), channel)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # Ctrl-C in a terminal is the driver's
            env=environment,
            pass_fds=(channel,),
        )
    except OSError as error:
        raise CannotStart(
            f"no process could be started for the node manager ({executable}, which is this program's sys.executable, "
            f"or stands for it): {error}. Is there memory for it, and may this user have another process?"
        ) from error


def find_python() -> str:
    """The interpreter for the node manager: this process's own. CannotStart where it cannot be found.

    In a program that embeds Python, sys.executable is that program, or nothing: what multiprocessing was told
    (set_executable) counts then, else the interpreter that lies where the embedded one has its modules.
    """
    from multiprocessing import spawn

    name = f"python{sys.version_info.major}.{sys.version_info.minor}{sys.abiflags}"
    places = [os.path.join(prefix, "bin", name) for prefix in (sys.prefix, sys.exec_prefix, sys.base_prefix)]
    for candidate in (sys.executable, spawn.get_executable(), *places):
        path = os.fsdecode(candidate or "")
        if "py" in os.path.basename(path).lower() and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise CannotStart(
        f"workers need a Python interpreter, and sys.executable names none: it is {sys.executable!r}. (No {name} lies "
        f"in {sys.prefix}/bin, either.) Where a program embeds Python, tell it before init(): "
        "multiprocessing.set_executable(path), of the Python whose packages the program uses"
    )


def _why_silent(executable: str, status: int, errors: BinaryIO) -> str:
    """A node manager has ended, or does not answer: what it wrote says most."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - ERROR_BYTES))
    said = errors.read().decode(errors="backslashreplace").strip()
    return (
        f"the node manager did not start (status {status}, after at most {START_SECONDS:.0f} s)"
        + (f". It wrote:\n{said}\n" if said else ", and wrote nothing. ")
        + f"It was to run in {executable} (sys.executable is {sys.executable!r}): "
        "does `python -c 'import skate, numpy, zmq'` work there?"
    )


def wait_for_end(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the process has ended by then. Blocks, by the machine's clock; subprocess asks one that may be frozen."""
    if process.poll() is not None:
        return True
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:  # somebody else has waited for it
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000)) and process.wait() is not None
    finally:
        os.close(pidfd)
