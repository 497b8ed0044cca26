"""What the adapters of pools with concurrent.futures' interface share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

from perf.contenders.base import Contender, Submit


class Pool(Contender):
    can = frozenset({"session", "tasks", "futures"})
    pool: Executor

    def stop(self) -> None:
        self.pool.shutdown()

    def task(self, function: Callable[..., Any]) -> Submit:
        return partial(self.pool.submit, function)

    def future(self, handle: Any) -> Any:
        return handle

    def awaitable(self, handle: Any) -> Any:
        return asyncio.wrap_future(handle)

    def get(self, handle: Any) -> Any:
        return handle.result()

    def get_all(self, handles: Sequence[Any]) -> list[Any]:
        return [handle.result() for handle in handles]
