"""Who has connected to a node's port: strangers are bounded, in all and by host; the oldest go first."""

from __future__ import annotations

import os
import random
import resource
import socket

import pytest
from skate.net.callers import GRACE_SECONDS, UNKNOWN, Callers, cut, listen_at, peer_of, shut_gate


def test_bounded_whoever_comes_and_goes() -> None:
    chance = random.Random(1)
    callers = Callers(20)
    open_ones: dict[int, tuple[str, float]] = {}
    proved: set[int] = set()
    now = 0.0

    def ended(cut: list[tuple[int, str]]) -> None:
        for descriptor, peer in cut:
            assert descriptor not in proved, "one that has proved what it is was cut"
            assert callers.gone(descriptor) == peer == open_ones.pop(descriptor)[0]

    for step in range(5000):
        now += chance.random() / 20
        descriptor = chance.choice(range(90))
        if descriptor not in open_ones:
            peer = f"host{chance.choice((0, 0, 0, 0, 1, 2, 3))}:{step}"
            open_ones[descriptor] = peer, now
            ended(callers.came(descriptor, peer, now))
        elif chance.random() < 0.1:
            callers.proved(descriptor)
            proved.add(descriptor)
        elif chance.random() < 0.1:
            assert callers.gone(descriptor) == open_ones.pop(descriptor)[0]
            proved.discard(descriptor)
        due = callers.look_at()
        if due is not None and due <= now:
            ended(callers.tick(now))
        callers.check()
        strangers = [came for fd, (_, came) in open_ones.items() if fd not in proved]
        assert len(strangers) <= 40
        if callers.shut:
            assert now - min(strangers) < GRACE_SECONDS, "others wait for one that had its chance"


def test_a_crowd_from_one_host_costs_others_nothing() -> None:
    callers = Callers(10)
    assert callers.came(1, "member:1", 0) == []
    assert callers.came(2, "another:1", 0) == []
    gone = [who for fd in range(10, 100) for _, who in callers.came(fd, f"crowd:{fd}", 1)]
    assert gone == [f"crowd:{fd}" for fd in range(10, 82)]
    assert callers.shut


def test_once_those_that_had_their_chance_are_gone_others_get_theirs() -> None:
    callers = Callers(4)
    for fd in range(4):
        assert callers.came(fd, f"crowd:{fd}", fd / 10) == []
    assert callers.shut
    callers.proved(2)
    callers.check()
    assert callers.look_at() == GRACE_SECONDS
    assert [fd for fd, _ in callers.tick(0.1 + GRACE_SECONDS)] == [0, 1]
    assert not callers.shut
    assert callers.look_at() is None


def test_a_descriptor_that_was_used_before_is_the_newcomers() -> None:
    callers = Callers(10)
    callers.came(1, "a:1", 0)
    callers.came(1, "b:2", 0)
    callers.check()
    assert callers.gone(1) == "b:2"
    assert callers.gone(1) == UNKNOWN


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_who_says_nothing_is_kept_by_the_kernel_and_who_is_cut_hears_it(host: str) -> None:
    """Neither takes a descriptor more of this process."""
    with listen_at(host, 0) as listening:
        place = listening.getsockname()[:2]
        with socket.create_connection(place), socket.create_connection(place) as speaks:
            speaks.sendall(b"x")
            listening.settimeout(5)
            accepted, _ = listening.accept()
            with accepted:
                listening.setblocking(False)
                with pytest.raises(BlockingIOError):
                    listening.accept()
                peer = peer_of(accepted.fileno())
                assert int(peer.rpartition(":")[2]) == speaks.getsockname()[1]
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
                try:
                    cut(accepted.fileno(), "somebody.else:1")
                    assert peer_of(accepted.fileno()) == peer
                    cut(accepted.fileno(), peer)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                speaks.settimeout(5)
                assert speaks.recv(1) == b""
        assert peer_of(listening.fileno()) == UNKNOWN
        for none in (-1, 999_999, os.open(os.devnull, os.O_RDONLY)):
            assert peer_of(none) == UNKNOWN
            cut(none, UNKNOWN)
        os.close(none)


def test_a_gate_that_is_shut_is_found_open_later() -> None:
    with listen_at("127.0.0.1", 0) as listening:
        shut_gate(listening.fileno(), True)
        with socket.socket() as connects:
            connects.settimeout(0.2)
            with pytest.raises(TimeoutError):
                connects.connect(listening.getsockname())
            shut_gate(listening.fileno(), False)
        with socket.create_connection(listening.getsockname(), 5) as connected:
            connected.sendall(b"x")
            listening.settimeout(5)
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.recv(1) == b"x"
