"""Starting and ending skate in this process: `init`, `shutdown`, `is_initialized`. State: the session, if one runs."""

from __future__ import annotations

import atexit
import difflib
import logging
import os
import secrets
import socket
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from skate._c.steps import let_in, section
from skate.options import as_index, check_runtime_env, check_variables_together
from skate.runtime import current
from skate.untouched import who_patched_threads

if TYPE_CHECKING:
    from skate.driver.session import Session
    from skate.runtime.runtime import Runtime

_session: Session | None = None
_lock = threading.RLock()
#: a session begins or ends, in the thread that holds the lock
_busy = False
#: the thread in which the program ends; 0: it goes on
_ends_in = 0

#: arguments of Ray's init that are taken and mean nothing here, or not yet
_IGNORED = {
    "include_dashboard": "there is no dashboard yet",
    "dashboard_host": "there is no dashboard yet",
    "dashboard_port": "there is no dashboard yet",
    "logging_config": "workers log as the driver's logging_level says",
    "log_to_driver_event_level": "there are no events yet",
    "runtime_env": "only its env_vars are set",
    "storage": "there is no storage",
    "_temp_dir": "set SKATE_TMPDIR in the environment",
    "_plasma_directory": "the store finds its place itself",
    "_node_ip_address": "give it to `skate start --node-ip-address`",
    "_system_config": "skate has no such settings",
    "_metrics_export_port": "there are no metrics yet",
    "_redis_password": "there is no Redis",
    "_redis_username": "there is no Redis",
    "_enable_object_reconstruction": "it will be always on",
    "job_config": "the job is described by init's own arguments",
    "configure_logging": "skate configures no logging of the driver",
    "logging_format": "skate configures no logging of the driver",
    "local_mode": "use num_cpus=1 and call the function itself to debug it",
}


class RuntimeInfo(dict[str, Any]):
    """What `init` returns: facts about the session, as a mapping; a context manager that shuts down at its end."""

    @property
    def address_info(self) -> dict[str, Any]:
        return dict(self)

    def __enter__(self) -> RuntimeInfo:
        return self

    def __exit__(self, *_: object) -> None:
        shutdown()

    def disconnect(self) -> None:
        shutdown()


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    memory: float | None = None,
    object_store_memory: int | None = None,
    object_spilling_directory: str | None = None,
    object_spilling_limit: int | None = None,
    labels: Mapping[str, str] | None = None,
    namespace: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    ignore_reinit_error: bool = False,
    log_to_driver: bool | Literal["raw"] = True,
    logging_level: int | str = logging.INFO,
    **ignored: Any,
) -> RuntimeInfo:
    """Starts skate on this machine, or comes to a node that runs. Blocks until it is ready, a few tenths of a second.

    address: "local" for a node of this program's own; "auto" for the newest one that `skate start` started here;
    "HOST:PORT" for the node of this machine that is in the cluster with that head; or the folder of a node's session.
    None: SKATE_ADDRESS (or RAY_ADDRESS), else as "auto" if `skate start` started one, else as "local".

    num_cpus, num_gpus, resources, memory (bytes) are what tasks may use together; by default what the machine has,
    and 70% of the available memory. object_store_memory is the size of the store in bytes (30% of it).
    A full store spills objects to files in object_spilling_directory (else SKATE_SPILL_DIR, else the session's folder),
    object_spilling_limit bytes at most, and never the last 5% of the disk.
    labels: of the node, for those who choose among nodes by labels.
    runtime_env: {"env_vars": {name: value}}: variables of all tasks and actors of this program; their own come on top.
    log_to_driver: whether what tasks print appears here. Control characters are escaped, but for tabs and colours;
    "raw" passes on all of them.

    Other arguments of Ray's `init` are accepted, with a warning that says what to do instead. Raises RuntimeError for
    what is no argument, where a node cannot start, and when skate runs already (unless ignore_reinit_error); ValueError
    and TypeError for bad values.
    """
    global _session
    if namespace is not None and not isinstance(namespace, str):
        raise TypeError(f"namespace must be a str or None, got {namespace!r}")
    if namespace == "":
        raise ValueError("namespace must not be empty; leave it out for a namespace of its own")
    if isinstance(log_to_driver, str) and log_to_driver != "raw":
        raise ValueError(f'log_to_driver must be True, False or "raw", got {log_to_driver!r}')
    environment = check_runtime_env("runtime_env", runtime_env) or {}
    variables = environment.get("env_vars") or {}
    check_variables_together(variables)
    unused = sorted(environment.keys() - {"env_vars"})
    _note_ignored(ignored | ({"runtime_env": unused} if unused else {}))
    _check_threads()
    with _turn():
        if _ends_in or sys.is_finalizing():
            raise RuntimeError("skate cannot be started any more: the program is over, and Python is ending")
        if current.runtime is not None:
            if ignore_reinit_error:
                return RuntimeInfo(_session.facts if _session else {})
            raise RuntimeError(
                "skate runs already in this process (init() was called, or .remote(), put() or get() started it). "
                "Call skate.shutdown() first, or pass ignore_reinit_error=True."
            )
        folder = _node_to_come_to(address)
        node: dict[str, Any] | str = folder or {}
        if folder is None:
            node = node_config(
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                resources=resources,
                memory=memory,
                object_store_memory=object_store_memory,
                object_spilling_directory=object_spilling_directory,
                object_spilling_limit=object_spilling_limit,
                labels=labels,
                lives_with="driver",
            )
        elif (num_cpus, num_gpus, resources, memory, object_store_memory, labels) != (None,) * 6:
            raise ValueError(
                "init() comes to a node that runs already: num_cpus, num_gpus, resources, memory, labels and "
                "object_store_memory were said when it was started. Leave them out, or init(address='local') for a "
                "node of this program's own."
            )
        from skate.driver import nodes
        from skate.driver.session import Session

        job = {
            "id": secrets.token_hex(4),
            "namespace": namespace or secrets.token_hex(16),
            "group_namespace": namespace or "",
            "cwd": nodes.working_directory(),
            "main_file": getattr(sys.modules.get("__main__"), "__file__", None),
            "logging_level": _level(logging_level),
            "variables": list(variables.items()),
        }
        atexit.register(_end_with_process)
        _session = Session(job, log_to_driver, node)
        return RuntimeInfo(
            _session.facts | {"hostname": socket.gethostname(), "node_id": _session.facts["node"]}
        )


def _check_threads() -> None:
    """RuntimeError where Python's threads are none."""
    patched = who_patched_threads()
    if patched:
        raise RuntimeError(
            f"{patched} has replaced Python's threads, which skate needs: its own would not run while the program "
            f"waits. Leave them as they are: {patched}'s monkey.patch_all(thread=False), or monkey_patch(thread=False)."
        )


def node_config(
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    memory: float | None = None,
    object_store_memory: int | None = None,
    object_spilling_directory: str | os.PathLike[str] | None = None,
    object_spilling_limit: int | None = None,
    labels: Mapping[str, str] | None = None,
    cluster: dict[str, Any] | None = None,
    lives_with: Literal["driver", "starter", "nobody"],
) -> dict[str, Any]:
    """The configuration of a node manager, checked. `cluster`: see driver.joining.

    lives_with: whose end ends it, that of its only driver, of this process, or of nobody.

    Raises ValueError and TypeError for bad values, here, in the caller's own process.
    """
    from skate.node.detect import default_resources
    from skate.options import check_labels

    asked = {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "resources": dict(resources or {}),
        "memory": memory,
        "object_store_memory": object_store_memory,
    }
    default_resources(**asked)  # type: ignore[arg-type]
    asked = {name: _plain_number(value) for name, value in asked.items() if name != "resources"} | {
        "resources": {name: _plain_number(value) for name, value in (resources or {}).items()}
    }
    return asked | {
        "spill_directory": _spill_directory(object_spilling_directory),
        "spill_limit": _spill_limit(object_spilling_limit),
        "labels": check_labels(labels),
        "cluster": cluster,
        "node_ip": "127.0.0.1" if cluster is None else cluster["host"],
        "lives_with": lives_with,
        "starter": os.getpid(),
    }


def _plain_number(number: Any) -> int | float | None:
    """A number of any kind, numpy's for one, as one that can be written down."""
    if number is None:
        return None
    whole = as_index(number)
    return float(number) if whole is None else whole


def _node_to_come_to(address: str | None) -> str | None:
    """The folder of the session to come to; None where this program gets a node of its own.

    As in Ray: an address, else SKATE_ADDRESS (or RAY_ADDRESS), else the newest node that `skate start` started here.
    ConnectionError where there is none, ValueError for what is no address.
    """
    from skate.node import sessions

    wanted = (
        address or os.environ.get("SKATE_ADDRESS") or os.environ.get("RAY_ADDRESS") or None
    )  # empty: not set
    if wanted == "local":
        return None
    if wanted in (None, "auto"):
        found = sessions.standing() or (sessions.open_to_drivers() if wanted else [])
        if found:
            return str(found[-1]["folder"])
        if wanted == "auto":
            raise ConnectionError(
                "init(address='auto'): no node runs on this machine that was started by `skate start`. Start one with "
                "`skate start --head`, or leave the address out."
            )
        return None
    assert wanted is not None
    if not os.path.isabs(wanted):
        from skate.driver.joining import node_in_cluster

        return node_in_cluster(wanted)
    if sessions.facts_of(wanted) is None:
        raise ConnectionError(f"init(address={wanted!r}): no node of this user runs there")
    return wanted


def _level(level: int | str) -> int:
    """A logging level as a number; names in any case. ValueError for what is none."""
    number = as_index(level)
    if number is None:
        number = logging.getLevelNamesMapping().get(str(level).upper())
    if number is None:
        raise ValueError(f"logging_level must be a level of the logging module, got {level!r}")
    return number


def _spill_directory(directory: str | os.PathLike[str] | None) -> str | None:
    chosen = os.fspath(directory) if directory is not None else os.environ.get("SKATE_SPILL_DIR") or None
    return None if chosen is None else os.path.abspath(chosen)


def _spill_limit(limit: int | None) -> int | None:
    if limit is None:
        return None
    count = as_index(limit)
    if count is None or count < 0:
        raise ValueError(f"object_spilling_limit must be a number of bytes, or None; got {limit!r}")
    return count


def _note_ignored(ignored: dict[str, Any]) -> None:
    for name, value in ignored.items():
        why = _IGNORED.get(name)
        if why is None and not name.startswith("_"):
            near = difflib.get_close_matches(name, ["address", *(init.__kwdefaults__ or ()), *_IGNORED], n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise RuntimeError(f"init() has no argument {name!r}.{guess}")
        if value:
            warnings.warn(
                f"init({name}=…) does nothing: {why or 'skate has no such setting'}",
                RuntimeWarning,
                stacklevel=3,
            )


def shutdown(_exiting_interpreter: bool = False) -> None:
    """Ends skate in this process: workers end, objects are freed, nothing is left. Harmless where it does not run."""
    global _session
    with _turn():
        session, _session = _session, None
        if session is None:
            return
        atexit.unregister(_end_with_process)
        if session.facts["owner_pid"] != os.getpid():
            return  # a fork of the driver: the session is not its own
        session.end(process_ends=_ends_in != 0)


def _end_with_process() -> None:
    """The program is over; what threads it still has are daemons, which end wherever they are."""
    global _ends_in
    _ends_in = threading.get_ident()
    shutdown()


@contextmanager
def _turn() -> Iterator[None]:
    """Sessions begin and end one after the other. In a section, which `Session` lets handlers in where it waits."""
    global _busy
    if _ends_in not in (0, threading.get_ident()):
        raise SystemExit  # a daemon thread of a program that is over ends without a word
    with section:
        let_in(_lock.acquire)
        try:
            if _busy:
                raise RuntimeError(
                    "skate is just being started or ended by this very thread: a finalizer or the handler of a signal "
                    "that comes in between cannot use it"
                )
            _busy = True
            try:
                yield
            finally:
                _busy = False
        finally:
            _lock.release()


def is_initialized() -> bool:
    """Whether skate runs in this process."""
    return current.runtime is not None


def session_folder() -> str | None:
    """The folder of the session of the node that this process came in through; None where skate does not run."""
    return None if _session is None else str(_session.facts["folder"])


def require_runtime() -> Runtime:
    """The runtime of this process; one of those who ask starts it, with default settings, where there is none."""
    while (runtime := current.runtime) is None:
        init(ignore_reinit_error=True)
    return runtime
