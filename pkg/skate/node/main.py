"""The node manager's process, from its first line to its last.

`python -c …` starts it with a socket (see driver.nodes), by which its configuration comes: standard input and output
belong to whatever else runs when Python starts. It imports what workers need, forks the zygote while it still has one
thread, and only then opens other sockets. Its answer is how the driver reaches it, or what went wrong.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from typing import TYPE_CHECKING, Any, Final

from skate.node import inherited
from skate.node.errors import CannotJoin, CannotStart
from skate.node.zygote import adopt_orphans, end_children, fork_zygote, receive, remove_session, send

if TYPE_CHECKING:
    from skate._c.arena import Arena
    from skate.node.ledger import NodeLedger
    from skate.node.state_file import StateFile

log = logging.getLogger("skate.node")

#: of the end of a traceback, in what the starter is told
ERROR_CHARS: Final = 20_000
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def main(starter_fd: int) -> None:
    """Runs a node for whoever is at the other end of the socket `starter_fd`."""
    before = inherited.settle()
    os.set_inheritable(starter_fd, False)
    starter = socket.socket(fileno=starter_fd)
    starter.setblocking(True)
    config, terminal = receive(starter)
    assert config is not None
    try:
        _serve(config, before, starter, terminal)
    except Exception as error:
        log.exception("the node manager failed")
        try:
            send(starter, _failure(error))
        except OSError:  # the driver has had its answer: now the terminal is where a person may look
            for fd in terminal:
                os.write(fd, b"skate's node manager failed:\n" + traceback.format_exc().encode())
        sys.exit(1)


def _failure(error: Exception) -> dict[str, Any]:
    """What whoever started this process is told. A traceback is for what nobody has thought of."""
    if isinstance(error, CannotStart):
        return {"error": str(error), "cannot_join": isinstance(error, CannotJoin)}
    if (
        isinstance(error, MemoryError) or getattr(error, "errno", None) is not None
    ):  # of the system, or ZeroMQ
        return {"error": f"the node manager could not start: {error or 'no memory'}. {_way_out(error)}"}
    return {"error": "".join(traceback.format_exception(error))[-ERROR_CHARS:]}


def _way_out(error: Exception) -> str:
    """What to do about an error of the system's."""
    from skate.config import SESSIONS_FOLDER

    number = getattr(error, "errno", errno.ENOMEM)
    if SESSIONS_FOLDER in str(error) or number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return f"Set SKATE_TMPDIR to a folder with room: sessions have theirs in {SESSIONS_FOLDER}"
    if number in (errno.EMFILE, errno.ENFILE):
        return "Too few descriptors may be open: raise the limit (ulimit -n)"
    if number == errno.EFBIG:
        return "Files and shared memory may not be as large as they must be: raise the limit (ulimit -f)"
    if number in (errno.ENOMEM, errno.EAGAIN):
        return (
            "There is too little memory for another process, or too few processes may run (ulimit -v, ulimit -u, the "
            "container's limits): raise those, or ask for a smaller store by init(object_store_memory=…)"
        )
    return "Is this what the environment (paths, limits, permissions) is meant to be?"


def _serve(
    config: dict[str, Any], before: dict[str, Any], starter: socket.socket, terminal: list[int]
) -> None:
    import skate.worker.main
    from skate._c.resources import to_units
    from skate.config import NODE_ID_LABEL
    from skate.core.admission import Admission
    from skate.core.bundles import BundledResources
    from skate.core.roster import Row
    from skate.ids import new_node_id, process_id
    from skate.net import exchange
    from skate.net.cluster_key import KEY_FILE, write_key
    from skate.net.limits import allow_all_descriptors
    from skate.node import sessions
    from skate.node.detect import default_resources, detect_cpus
    from skate.node.manager import NodeManager
    from skate.node.puller import FETCH_SHARE, Puller
    from skate.node.spiller import Spiller
    from skate.store.local import LocalStore
    from skate.store.segment import create_segment

    node = new_node_id()
    cluster = config["cluster"]
    sessions.sweep()
    session = sessions.create(node.hex())
    segment = None
    state: StateFile | None = None
    ledger: NodeLedger | None = None
    try:
        _write_log_to(os.path.join(session.folder, "node.log"))
        totals, gpu_ids, store_bytes = default_resources(
            num_cpus=config["num_cpus"],
            num_gpus=config["num_gpus"],
            memory=config["memory"],
            object_store_memory=config["object_store_memory"],
            resources=config["resources"],
        )
        units = {name: to_units(amount, name) for name, amount in totals.items()}
        units["node:" + config["node_ip"]] = to_units(1, "node")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            segment = create_segment(session.name, store_bytes, session.folder)
        sessions.make_spill_folder(session, config["spill_directory"])
        lanes_fd, lanes = exchange.create(detect_cpus()) or (-1, None)
        worker_config = {
            "folder": session.folder,
            "segment": segment.path,
            "node": node.hex(),
            "lock_fd": session.lock_fd,
            "lanes": lanes,
            "inherited": before,
            "variables": {},
        }
        skate.worker.main.prepare()
        adopt_orphans()  # those of the zygote, should it be killed
        zygote_pid, channel = fork_zygote(
            worker_config, [starter.fileno(), *terminal, segment.fd, *([lanes_fd] if lanes else [])]
        )
        allow_all_descriptors()  # (workers have what the program has)
        if cluster is not None:
            _keep_freed_memory()
        if cluster is not None and "state" in cluster:
            state = _open_state(cluster)  # after the zygote was forked, which is to have no part in it
        arena = _make_arena(segment.fd, store_bytes)
        facts = {
            "session": session.name,
            "folder": session.folder,
            "segment": segment.path,
            "node": node.hex(),
            "pid": os.getpid(),
            "zygote_pid": zygote_pid,
            "store_bytes": store_bytes,
            "lanes": lanes and list(lanes),
            "stays": config["lives_with"] == "nobody",
            "open": config["lives_with"] != "driver",
            "started": time.time(),
            "labels": {NODE_ID_LABEL: node.hex()} | config["labels"],
            "warnings": [str(warning.message) for warning in caught],
        }
        cpus = int(totals.get("CPU", 0))
        admission = Admission(
            BundledResources(units, gpu_ids),
            keep_idle=max(1, cpus),
            start_at_once=max(4, 2 * (os.cpu_count() or 1)),
            fetch_bytes=store_bytes // FETCH_SHARE,
            first_lease=(int.from_bytes(node, "big") << 31) + 1,  # leases of all nodes differ
        )
        store = LocalStore(arena)
        spiller = Spiller(session.folder, store, arena, config["spill_limit"])
        puller = Puller(process_id(node, 0), session.folder, arena, spiller)
        row = Row(
            node=node,
            address="",
            hostname=socket.gethostname(),
            pid=os.getpid(),
            folder=session.folder,
            head=False,
            total=units,
            labels=facts["labels"],
            available=units,
            demands=[],
            alive=True,
            cause="",
        )
        manager = NodeManager(
            node,
            session.folder,
            store,
            spiller,
            puller,
            admission,
            channel,
            facts,
            prestart=max(1, min(cpus, os.cpu_count() or 1)),
            starter=None if config["lives_with"] == "nobody" else config["starter"],
            alone=config["lives_with"] == "driver",
            row=row,
            cluster=cluster,
        )

        def stop(*_: Any) -> None:
            if ledger is not None:
                ledger.stopped = True
            manager.end("it was told to stop")

        signal.signal(signal.SIGTERM, stop)
        if state is not None:
            facts["state_file"], facts["takes_up"] = state.path, bool(state.about)
            state.belongs_to(manager.cluster.address, cluster["key"])
            ledger = manager.come_back(state)
        if cluster is not None:
            try:
                manager.join()
            except CannotJoin:
                manager.close()
                raise
            facts["address"] = manager.cluster.address
            facts["head"] = cluster["head"] or manager.cluster.address
            facts["key_file"] = cluster["key_file"]
            if cluster["key"] is not None and cluster["key_file"] is None:
                facts["key_file"] = os.path.join(session.folder, KEY_FILE)
                write_key(facts["key_file"], cluster["key"])
        sessions.note_facts(session, facts)
        send(starter, facts)
        starter.close()
        if config["lives_with"] == "nobody":
            for fd in terminal:
                os.dup2(2, fd)  # it outlives the terminal; who reads that to its end need not wait
        manager.run()
    finally:
        if ledger is not None:
            ledger.close()
        elif state is not None:
            state.close(remove=not state.about)  # it never was a head's
        end_children()
        remove_session(session.folder, segment.path if segment else None)
        sessions.sweep()  # also what sessions left that tasks had begun: their zygotes ended with their node managers


def _make_arena(fd: int, store_bytes: int) -> Arena:
    """The store. CannotStart where the machine does not give so much memory."""
    from skate._c.arena import Arena, ArenaFull

    try:
        return Arena.create(fd, store_bytes)
    except (OSError, ArenaFull, MemoryError) as error:
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            raise  # a limit on files, not on memory
        raise CannotStart(
            f"an object store of {store_bytes >> 20} MB cannot be made: {error}. Give the machine (the container, "
            "ulimit -v) more memory, or ask for a smaller store by init(object_store_memory=…)"
        ) from error


def _keep_freed_memory() -> None:
    """Has malloc use again the buffers in which chunks of objects come, instead of mapping fresh pages for each: those
    cost as much as all the rest of a transfer."""
    from skate.core.pulls import ALL_BYTES, CHUNK_BYTES

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc's
        mallopt(_M_MMAP_THRESHOLD, 8 * CHUNK_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * ALL_BYTES)


def _open_state(cluster: dict[str, Any]) -> StateFile:
    """The state file of a head, and in `cluster` the address and the key that it had before."""
    from skate.node.state_file import open_state, port_of
    from skate.wire.cluster import parse_address

    asked = cluster["state"]
    state = open_state(asked["path"], fresh=asked["fresh"], port=cluster["port"])
    if asked["key_is_new"]:
        cluster["key"], cluster["key_file"] = state.key()
    state.check_key(cluster["key"])
    if state.about:
        cluster["port"] = port_of(state)
        if not asked["host_is_given"]:
            cluster["host"] = parse_address(state.about["address"])[0]
    return state


def _write_log_to(path: str) -> None:
    """Standard error becomes the file, standard input and output nothing."""
    log_fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log_fd, 2)
    os.close(log_fd)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
