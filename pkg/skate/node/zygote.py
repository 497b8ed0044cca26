"""The zygote: a single-threaded process that has imported what workers need, and forks them.

State: its children. It holds no ZeroMQ context and no thread, so a fork of it is safe. It is the undertaker as well: it
reaps the workers (so their exit status is exact), ends what a dead worker has started, and when the node manager dies
it ends everything and removes the session's folder and segment.

It talks to the node manager over a socket pair that keeps message borders:

    node -> zygote   {"fork": process id, "environment": {...}} with the write ends of two pipes; {"kill": pid}; {"end": 1}
    zygote -> node   {"forked": process id, "pid": pid}; {"exited": pid, "status": n}; {"ended": 1}

The end of that stream is the death notice, in both directions.
"""

from __future__ import annotations

import array
import ctypes
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

#: bytes of the longest message
MESSAGE_BYTES = 1 << 17
#: names the worker that a process descends from
WORKER_VARIABLE = "SKATE_WORKER_ID"

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


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
    data, fds, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, 2)
    return (json.loads(data) if data else None), fds


class Zygote:
    """Forks, reaps and buries."""

    def __init__(self, channel: socket.socket, config: dict[str, Any]) -> None:
        self._channel = channel
        self._config = config
        self._workers: dict[int, str] = {}  # pid -> process id
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def run(self) -> NoReturn:
        """Serves until the node manager says `end` or dies."""
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        node_lives = True
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
                self._reap()
            if self._channel.fileno() in ready:
                try:
                    message, fds = receive(self._channel)
                except ConnectionError:
                    message, fds = None, []
                if message is None:
                    node_lives = False
                    break
                if "end" in message:
                    break
                self._serve(message, fds)
        self._end_everything()
        if node_lives:
            send(self._channel, {"ended": 1})
        else:
            remove_session(self._config["folder"], self._config["segment"])
        os._exit(0)

    def _serve(self, message: dict[str, Any], fds: list[int]) -> None:
        if "fork" in message:
            pid = os.fork()
            if pid == 0:
                self._become_worker(message, fds)
            self._workers[pid] = message["fork"]
            for fd in fds:
                os.close(fd)
            send(self._channel, {"forked": message["fork"], "pid": pid})
        elif "kill" in message and message["kill"] in self._workers:
            os.kill(message["kill"], signal.SIGKILL)

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
            for fd in (self._wake_read, self._wake_write, self._config["lock_fd"]):
                os.close(fd)
            os.environ[WORKER_VARIABLE] = message["fork"]
            os.environ.update(message["environment"] or {})
            sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
            sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
            sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]
            from skate.worker.main import run_worker

            status = run_worker(bytes.fromhex(message["fork"]), self._config)
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

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker = self._workers.pop(pid, None)
            if worker is not None:
                self._end_descendants(pid, worker)
                send(self._channel, {"exited": pid, "status": os.waitstatus_to_exitcode(status)})

    def _end_descendants(self, pid: int, worker: str) -> None:
        """Ends what a dead worker has started: its process group, and orphans that carry its name."""
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it had started nothing that still runs
        mark = f"{WORKER_VARIABLE}={worker}".encode()
        for child in _children():
            if child not in self._workers and mark in _environment(child):
                _kill(child)

    def _end_everything(self) -> None:
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
                    continue  # the signal handler's round had it


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


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            return environ.read().split(b"\0")
    except OSError:
        return []  # it has ended meanwhile


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended meanwhile


def remove_session(folder: str, segment: str | None) -> None:
    """Removes what a session leaves in the file system. Harmless when repeated."""
    if segment and not segment.startswith("/proc/"):
        try:
            os.unlink(segment)
        except FileNotFoundError:
            pass
    shutil.rmtree(folder, ignore_errors=True)


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
