"""What contenders run in other processes: a task, and actors.

A process that is to run one of these imports this module by its name, so it imports nothing else of the harness: that
would be counted as the time which a contender needs to start an actor.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # (typing takes a millisecond to import)
if TYPE_CHECKING:
    from typing import Any

    from perf.contenders.base import Inside


def small_value() -> bytes:
    return b"ok"


def identity(value: object) -> object:
    return value


class Submitter:
    """An actor that is itself a client: submits tasks and gets them."""

    def submit_many(self, inside: Inside, count: int) -> None:
        inside.call_many(small_value, count)


class Actor:
    def small_value(self) -> bytes:
        return b"ok"

    def with_argument(self, x: object) -> bytes:
        return b"ok"

    def pid(self) -> int:
        return os.getpid()


class AsyncActor:
    async def small_value(self) -> bytes:
        return b"ok"

    async def with_argument(self, x: object) -> bytes:
        return b"ok"


class Client:
    """An actor that calls other actors."""

    def call(self, inside: Inside, servers: list[Any], count: int) -> None:
        inside.call_methods(servers, "small_value", count)

    def call_with_ref(self, inside: Inside, servers: list[Any], count: int) -> None:
        inside.call_methods(servers, "with_argument", count, inside.put(0))
