"""A node's zygotes, as its manager speaks to them: the first, and one for each environment of workers.

State: the channels; for each zygote but the first, what it writes, and the workers that it has forked or is to fork.
Of those that have none the latest UNUSED are kept, since it takes one a few tenths of a second to begin.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable
from typing import Any, Final

from skate.node.processes import Process
from skate.node.zygote import receive, receive_now, send

#: messages of a zygote taken in before others get a turn
MESSAGES: Final = 64
#: zygotes without workers that are kept
UNUSED: Final = 2
#: bytes of the end of what one has written that has died
SAID_BYTES: Final = 2000
#: milliseconds that the kernel has to kill a process, at most
KILL_MS: Final = 1000


class _Other:
    """A zygote that is not the first."""

    def __init__(self, channel: socket.socket, written: int) -> None:
        self.channel = channel
        #: a file with what it writes
        self.written = written
        self.workers: dict[Process, None] = {}

    def last_words(self) -> str:
        size = os.lseek(self.written, 0, os.SEEK_END)
        said = os.pread(self.written, SAID_BYTES, max(0, size - SAID_BYTES))
        return said.decode(errors="backslashreplace").strip()

    def close(self) -> None:
        self.channel.close()
        os.close(self.written)


class Zygotes:
    """`said` takes what any of them says, None at the end of the first; `lost` a worker whose zygote died, and why."""

    def __init__(
        self,
        first: Any,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        said: Callable[[dict[str, Any] | None], None],
        lost: Callable[[Process, str], None],
    ) -> None:
        self._first = first
        self._watch, self._unwatch = watch, unwatch
        self._said, self._lost = said, lost
        #: (job, variables) -> zygote; used last is last
        self._others: dict[tuple[Any, Any], _Other] = {}
        watch(first.fileno(), lambda: self._hear(first))

    def fork(self, worker: Process, pipes: tuple[int, int]) -> None:
        """Has a worker forked that writes to these. OSError where that cannot be asked for."""
        job, variables, _ = worker.worker_kind
        facts = worker.job.facts | {"variables": variables}
        message = {"fork": worker.id.hex(), "job": facts, "secret": worker.secret}
        if not variables:
            send(self._first, message, pipes)
            return
        key = job, variables
        other = self._others.pop(key, None) or self._begin(facts)
        self._others[key] = other
        other.workers[worker] = None
        try:
            send(other.channel, message, pipes)
        except OSError as error:
            del other.workers[worker]
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
            raise OSError(self._died(key)) from error

    def _begin(self, facts: dict[str, Any]) -> _Other:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            try:
                other = _Other(ours, os.memfd_create("skate-zygote"))
            except OSError:
                ours.close()
                raise
            try:
                about = {
                    "variables": facts["variables"],
                    "thread_variables": facts.get("thread_variables", {}),
                }
                send(self._first, {"zygote": about}, (other.written, theirs.fileno()))
            except OSError:
                other.close()
                raise
        self._watch(ours.fileno(), lambda: self._hear(ours))
        return other

    def kill(self, worker: Process) -> None:
        """Has a worker killed that was forked."""
        other = self._others.get(worker.worker_kind[:2])
        send(self._first if other is None else other.channel, {"kill": worker.pid})

    def buried(self, worker: Process) -> None:
        """A worker is no more."""
        other = self._others.get(worker.worker_kind[:2])
        if other is not None and other.workers.pop(worker, self) is None:
            for key in [key for key, each in self._others.items() if not each.workers][:-UNUSED]:
                self._end(key)

    def job_forgotten(self, job: str) -> None:
        """No worker of the job will be forked any more."""
        for key in [key for key in self._others if key[0] == job]:
            self._end(key)

    def end(self) -> None:
        """Has the first end, and all others with it. Blocks until it has."""
        for key in list(self._others):
            self._end(key)
        try:
            send(self._first, {"end": 1})
            while True:
                message, _ = receive(self._first)
                if message is None or "ended" in message:
                    break
        except ConnectionError:
            pass  # it is gone already

    def _end(self, key: tuple[Any, Any]) -> _Other:
        other = self._others.pop(key)
        self._unwatch(other.channel.fileno())
        other.close()
        return other

    def _hear(self, channel: Any) -> None:
        """Takes what one has said: of deaths that come together, everybody hears in one frame."""
        for _ in range(MESSAGES):
            try:
                message = receive_now(channel)
            except BlockingIOError:
                return
            except ConnectionError:
                message = None
            if message is not None:
                self._said(message)
                if channel.fileno() < 0:  # that was of its last worker, and it ends
                    return
            elif channel is self._first:
                self._unwatch(channel.fileno())
                self._said(None)
                return
            else:
                self._died(next(key for key, other in self._others.items() if other.channel is channel))
                return

    def _died(self, key: tuple[Any, Any]) -> str:
        """A zygote has ended, and its workers with it; gives why."""
        why = f"the interpreter for these env_vars has ended. {self._others[key].last_words()}"
        for worker in self._end(key).workers:
            _wait_for_end(worker.pid)
            self._lost(worker, why)
        return why


def _wait_for_end(pid: int) -> None:
    """A process whose parent has died is killed by the kernel, in a moment."""
    if not pid:
        return  # it was never forked
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(KILL_MS)
    finally:
        os.close(pidfd)
