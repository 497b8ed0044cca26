"""The zygote: a single-threaded process that has imported what workers need, and forks them.

State: its children. It holds no ZeroMQ context and no thread, so a fork of it is safe. It is the undertaker as well: it
reaps the workers (so their exit status is exact), ends what a dead worker has started, and when the node manager dies
it ends everything and removes the session's folder and segment.

What a worker has started is known by its process group; and, where it has left that group, by the worker's id in the
environment that the kernel shows of it (children inherit it, with and without exec). Orphans come to the zygote,
since it is a subreaper.

It talks to the node manager over a socket pair that keeps message borders:

    node -> zygote   {"fork": process id, "job": {...}, "secret": …} with the write ends of two pipes; {"kill": pid};
                     {"end": 1}; {"zygote": {...}} with a file for what it writes, and its end of a channel of its own
    zygote -> node   {"forked": process id, "pid": pid}; {"exited": pid, "status": n}; {"ended": 1};
                     {"unforked": process id, "why": text}

The end of that stream is the death notice, in both directions.

Workers with environment variables of their own (env_vars) are forked by a zygote of their own: a new interpreter, begun
with these, since much is read when Python, the C library or numpy begins, and never again. It is a child of the first
zygote, dies with it, and ends when the node manager closes its channel. What the session leaves is the first one's.
"""

from __future__ import annotations

import array
import ctypes
import errno
import gc
import json
import os
import select
import shutil
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

from skate.config import SPILL_FOLDER
from skate.node import inherited
from skate.node.errors import of_limit
from skate.node.interpreter import THREAD_VARIABLES, boot, expanded

#: bytes of the longest message
MESSAGE_BYTES = 1 << 17
#: descriptors that come with a message: what a worker writes to, its standard output and error
PIPES = 2
#: names the worker that a process descends from
WORKER_VARIABLE = "SKATE_WORKER_ID"
#: what stands there in the zygote, to be written over in a worker
NO_WORKER = "0" * 16

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)
_libc.getenv.restype = ctypes.c_void_p


def die_with_parent(parent: int) -> None:
    """The kernel kills this process when `parent`, which forked it, ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it ended before we asked


def send(channel: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """One message; blocks while the other side's queue is full."""
    data = json.dumps(message).encode()
    if fds:
        channel.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
    else:
        channel.send(data)


def receive(channel: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """(message, descriptors that came with it); None at the end of the stream."""
    data, fds, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, PIPES)
    return (json.loads(data) if data else None), fds


def receive_now(channel: socket.socket) -> dict[str, Any] | None:
    """As `receive`, of messages that bring no descriptors; BlockingIOError where none has come."""
    data = channel.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
    return json.loads(data) if data else None


class Zygote:
    """Forks, reaps and buries."""

    def __init__(self, channel: socket.socket, config: dict[str, Any]) -> None:
        """`config`: see node.main's `worker_config`. Without "lock_fd" it is not the node's first."""
        self._channel = channel
        self._config = config
        self._workers: dict[int, str] = {}  # pid -> process id
        self._node_lives = True
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def run(self) -> NoReturn:
        """Serves until the node manager says `end` or dies."""
        adopt_orphans()
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        try:
            while self._step(poll):
                pass
        except ConnectionError:
            self._node_lives = False
        end_children()
        if self._node_lives:
            send(self._channel, {"ended": 1})
        elif "lock_fd" in self._config:
            from skate.node import sessions  # (which knows this module)

            remove_session(self._config["folder"], self._config["segment"])
            sessions.sweep()  # also what sessions left that tasks had begun, and that have just ended
        os._exit(0)

    def _step(self, poll: select.poll) -> bool:
        """One round; False where the end has come. ConnectionError where the node manager is gone."""
        ready = {fd for fd, _ in poll.poll()}
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
            self._reap()
        if self._channel.fileno() in ready:
            message, fds = receive(self._channel)
            if message is None:
                raise ConnectionError("the node manager is gone")
            if "end" in message:
                return False
            self._serve(message, fds)
        return True

    def _serve(self, message: dict[str, Any], fds: list[int]) -> None:
        if "fork" in message:
            try:
                if len(fds) < PIPES:
                    raise OSError(errno.EMFILE, "the worker's pipes have not come")
                pid = os.fork()
            except OSError as error:
                answer = {"unforked": message["fork"], "why": of_limit(error)}
            else:
                if pid == 0:
                    self._become_worker(message, fds)
                self._workers[pid] = message["fork"]
                answer = {"forked": message["fork"], "pid": pid}
            for fd in fds:
                os.close(fd)
            send(self._channel, answer)
        elif "kill" in message and message["kill"] in self._workers:
            os.kill(message["kill"], signal.SIGKILL)
        elif "zygote" in message:
            self._begin_another(message["zygote"], fds)

    def _begin_another(self, about: dict[str, Any], fds: list[int]) -> None:
        """Begins a zygote for workers with other variables. That it could not its channel's end says, and the file."""
        try:
            if len(fds) < PIPES:
                raise OSError(errno.EMFILE, "its channel has not come")
            if os.fork() == 0:
                self._become_another(about, *fds)
        except OSError as error:
            if fds:
                os.write(fds[0], of_limit(error).encode())
        for fd in fds:
            os.close(fd)

    def _become_another(self, about: dict[str, Any], written: int, channel: int) -> NoReturn:
        try:
            parent = os.getppid()
            signal.set_wakeup_fd(-1)
            die_with_parent(parent)
            for at in (1, 2):
                os.dup2(written, at)
            environ = dict(os.environ)
            threads = about["thread_variables"]
            seen = {name: value for name, value in (environ | threads).items() if value is not None}
            variables = expanded(about["variables"], seen)
            config = {name: value for name, value in self._config.items() if name != "lock_fd"}
            birth = os.memfd_create("skate-zygote", 0)
            os.write(birth, json.dumps(config | {"variables": variables}).encode())
            os.lseek(birth, 0, os.SEEK_SET)
            os.set_inheritable(channel, True)
            environ |= variables | dict.fromkeys(THREAD_VARIABLES, "1") | {WORKER_VARIABLE: NO_WORKER}
            arguments = boot("skate.node.zygote", sys.path, channel, birth)
            os.execve(sys.executable, [sys.executable, *arguments], environ)
        except BaseException:
            os.write(written, traceback.format_exc().encode())
        finally:
            os._exit(1)

    def _become_worker(self, message: dict[str, Any], fds: list[int]) -> NoReturn:
        status = 1
        try:
            parent = os.getppid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            die_with_parent(parent)
            os.setpgid(0, 0)
            for at, fd in enumerate(fds, start=1):
                os.dup2(fd, at)
                os.close(fd)
            self._channel.close()
            for fd in (self._wake_read, self._wake_write, *self._locks()):
                os.close(fd)
            _mark_descendants(message["fork"])
            sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]
            from skate.worker.main import run_worker

            status = run_worker(
                bytes.fromhex(message["fork"]),
                self._config | {"job": message["job"], "secret": message["secret"]},
            )
        except SystemExit as request:
            status = exit_status_of(request)
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)

    def _locks(self) -> list[int]:
        """What says that the session lives: the node manager, and its first zygote, hold it."""
        return [self._config["lock_fd"]] if "lock_fd" in self._config else []

    def _reap(self) -> None:
        """Buries who has ended. Each death may leave us orphans, so each round looks for those of dead workers."""
        reaped = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            reaped = True
            if self._workers.pop(pid, None) is not None:
                _kill_group(pid)
                send(self._channel, {"exited": pid, "status": os.waitstatus_to_exitcode(status)})
        if reaped:
            self._end_orphans()

    def _end_orphans(self) -> None:
        """Ends orphans whose worker is dead; those of living workers (daemons) live on."""
        alive = set(self._workers.values())
        for child in _children():
            if child not in self._workers:
                worker = _worker_of(child)
                if worker not in alive and worker.startswith(self._config["node"]):
                    _kill(child)


def adopt_orphans() -> None:
    """From now on descendants whose parent dies become children of this process."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_children() -> None:
    """Ends all descendants. An orphan of a killed process becomes our child, so it takes a few rounds."""
    while True:
        children = _children()
        if not children:
            return
        for child in children:
            _kill(child)
        for child in children:
            try:
                os.waitpid(child, 0)
            except ChildProcessError:
                continue  # somebody else's round had it


def exit_status_of(request: SystemExit) -> int:
    """The status that `sys.exit(code)` stands for."""
    code = request.code
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        return [int(pid) for pid in children.read().split()]


def _mark_descendants(worker: str) -> None:
    """Writes the worker's id into this process's environment: the copy that exec passes on, and the one /proc shows.

    The latter is a piece of memory that fork copies, and that nobody but exec writes. The variable stood in the
    environment that this process began with (see driver.session), so its text can be written over there.
    """
    if WORKER_VARIABLE in os.environ and len(os.environ[WORKER_VARIABLE]) == len(worker):
        ctypes.memmove(_libc.getenv(WORKER_VARIABLE.encode()), worker.encode(), len(worker))
    os.environ[WORKER_VARIABLE] = worker


def _worker_of(pid: int) -> str:
    """The id of the worker that a process descends from; empty where it does not say."""
    mark = f"{WORKER_VARIABLE}=".encode()
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            for variable in environ.read().split(b"\0"):
                if variable.startswith(mark):
                    return variable.removeprefix(mark).decode("ascii", "replace")
    except OSError:
        pass  # it has ended meanwhile
    return ""


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has no members left


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended meanwhile


def remove_session(folder: str | None, segment: str | None) -> None:
    """Removes what a session leaves in the file system. Harmless when repeated."""
    if segment and not segment.startswith("/proc/"):
        try:
            os.unlink(segment)
        except FileNotFoundError:
            pass
    if folder:
        spilled = os.path.join(folder, SPILL_FOLDER)
        if os.path.islink(spilled):
            shutil.rmtree(os.readlink(spilled), ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def main(channel: int, birth: int) -> NoReturn:
    """Runs a zygote that is not the node's first; `birth` is a file with its configuration. The process is new."""
    inherited.settle()
    with open(birth, encoding="utf-8") as file:
        config = json.load(file)
    os.set_inheritable(channel, False)
    import skate.worker.main

    skate.worker.main.prepare()
    gc.collect()
    gc.freeze()
    Zygote(socket.socket(fileno=channel), config).run()


def fork_zygote(config: dict[str, Any], close_fds: list[int]) -> tuple[int, socket.socket]:
    """Forks the zygote off this process, which must have one thread. Gives (pid, channel to it)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gc.collect()
    gc.freeze()  # what is here now is shared with all workers: the collector need not touch it
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    try:
        ours.close()
        for fd in close_fds:
            os.close(fd)
        Zygote(theirs, config).run()
    except BaseException:
        traceback.print_exc()
    os._exit(1)
