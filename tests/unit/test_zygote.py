"""The zygote where it cannot fork, or a worker's pipes do not come: it says so, keeps nothing open, and goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from skate._c.threads import check_threads
from skate.net.limits import check_descriptors
from skate.node import zygote
from skate.node.zygote import Zygote, receive, send

#: a user that has no processes
NOBODY = 54_321


@pytest.fixture
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def asked_to_fork(channel: tuple[socket.socket, socket.socket], pipes: int) -> dict[str, Any]:
    """What a zygote answers that is asked to fork a worker with so many pipes; all it got is closed by then."""
    ours, theirs = channel
    forks = Zygote(theirs, {})
    before = descriptors()
    files = [os.pipe() for _ in range(pipes)]
    send(ours, {"fork": "00" * 8, "job": {}}, tuple(write for _, write in files))
    for ends in files:
        for end in ends:
            os.close(end)
    message, came = receive(theirs)
    assert message is not None
    forks._serve(message, came)
    answer, _ = receive(ours)
    assert answer is not None
    assert descriptors() == before
    return answer


def test_no_process_can_be_forked(
    channel: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork() -> int:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(zygote.os, "fork", fork)
    answer = asked_to_fork(channel, zygote.PIPES)
    assert answer["unforked"] == "00" * 8
    assert "ulimit -u" in answer["why"]


@pytest.mark.parametrize("pipes", [0, 1])
def test_pipes_that_have_not_come(pipes: int, channel: tuple[socket.socket, socket.socket]) -> None:
    """The kernel leaves out descriptors for which a process has no room."""
    answer = asked_to_fork(channel, pipes)
    assert answer["unforked"] == "00" * 8
    assert "ulimit -n" in answer["why"]


def in_a_fork(what: Any) -> str:
    """What it returns in a child of this process."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.write(write, str(what()).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user that has no processes")
def test_a_user_who_may_have_no_more_processes(channel: tuple[socket.socket, socket.socket]) -> None:
    def run() -> str:
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        os.setresuid(NOBODY, NOBODY, NOBODY)
        with pytest.raises(OSError, match="1 more threads cannot be started"):
            check_threads(1)
        return str(asked_to_fork(channel, zygote.PIPES)["why"])

    assert "ulimit -u" in in_a_fork(run)


def test_what_can_be_had_is_given_back() -> None:
    before = descriptors()
    check_descriptors(20)
    check_threads(4)
    assert descriptors() == before


def test_too_few_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = descriptors()
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + 30, hard))
    try:
        with pytest.raises(OSError, match="ulimit -n") as caught:
            check_descriptors(1000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE
    assert descriptors() == before
