"""Two network namespaces that stand for two machines, with a link between them. Only root can make them."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

#: their addresses; a network that nobody else is in
ADDRESSES = ("10.99.8.1", "10.99.8.2")
_CLONE_NEWNET = 0x40000000


class Machines:
    """A context manager. NotImplementedError, with the reason, where there can be none."""

    def __init__(self) -> None:
        self._names = [f"skate-perf-{os.getpid()}-{number}" for number in (1, 2)]

    def __enter__(self) -> Machines:
        if os.geteuid():
            raise NotImplementedError("only root makes network namespaces")
        one, two = self._names
        try:
            for name in self._names:
                _ip("netns", "add", name)
            _ip("-n", one, "link", "add", "eth", "type", "veth", "peer", "name", "eth", "netns", two)
            for name, address in zip(self._names, ADDRESSES, strict=True):
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth")
                for device in ("lo", "eth"):
                    _ip("-n", name, "link", "set", device, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    @contextmanager
    def inside(self, number: int) -> Iterator[str]:
        """This thread, and what it starts, is on that machine (0 or 1) meanwhile; gives its address."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            there = os.open(f"/run/netns/{self._names[number]}", os.O_RDONLY)
            try:
                _enter(there)
            finally:
                os.close(there)
            try:
                yield ADDRESSES[number]
            finally:
                _enter(home)
        finally:
            os.close(home)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _ip(*arguments: str) -> None:
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise NotImplementedError("there is no command `ip` here") from None
    if done.returncode:
        raise NotImplementedError(f"no network namespaces here: {done.stderr.strip()}")
