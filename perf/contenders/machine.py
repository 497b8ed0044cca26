"""The machine itself: reference rows, in plain Python, that say what is possible here."""

from __future__ import annotations

import platform

from perf.contenders.base import Contender


class Machine(Contender):
    name = "machine"
    can = frozenset({"machine"})
    is_rival = False

    def version(self) -> str:
        return platform.release()

    def start(self, num_cpus: int, store_bytes: int | None = None) -> None:
        """Nothing to start."""


CONTENDER = Machine()
