"""What is measured: rows (lines of the table) and the measurements that give their numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from perf.contenders.base import Contender
    from perf.pace import Pace

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    `limit` is the key of the reference row that says what the machine could do. `measure` completes `key`:
    `script.function`, or `script.key` where a function that gives several rows names them.
    """

    title: str
    unit: str
    better: Better = "higher"
    limit: str | None = None
    key: str = ""


@dataclass(frozen=True)
class Measurement:
    """A function that runs on one started contender and returns a number a row."""

    name: str
    rows: tuple[Row, ...]
    run: Callable[[Contender, Pace], float | tuple[float, ...]]
    #: What a contender must be able to do (see contenders/base.py); others are left out without a word.
    needs: frozenset[str]
    #: Measurements of one group run one after the other in one process and one session.
    group: str
    #: CPUs of the session; 0 if the measurement starts the contender by itself.
    num_cpus: int
    #: After this long the contender's processes are ended and the rows count as failed.
    limit_s: float
    #: For what takes long and varies little: no more rounds than this.
    most_rounds: int

    @property
    def script(self) -> str:
        return self.name.partition(".")[0]

    def values(self, outcome: float | tuple[float, ...]) -> dict[str, float]:
        """What `run` returned, by row key."""
        numbers = outcome if isinstance(outcome, tuple) else (outcome,)
        return {row.key: float(number) for row, number in zip(self.rows, numbers, strict=True)}


def measure(
    *rows: Row,
    needs: Iterable[str],
    group: str = "",
    num_cpus: int = 2,
    limit_s: float = 90.0,
    most_rounds: int = 1_000,
) -> Callable[[Callable[[Contender, Pace], float | tuple[float, ...]]], Measurement]:
    """Make a Measurement of a function in perf/rows/. Those of a script without `group` share a session."""

    def decorate(function: Callable[[Contender, Pace], float | tuple[float, ...]]) -> Measurement:
        script = function.__module__.rpartition(".")[2]
        keyed = tuple(
            dataclasses.replace(row, key=f"{script}.{row.key or function.__name__}") for row in rows
        )
        return Measurement(
            name=f"{script}.{function.__name__}",
            rows=keyed,
            run=function,
            needs=frozenset(needs),
            group=f"{script}.{group}" if group else script,
            num_cpus=num_cpus,
            limit_s=limit_s,
            most_rounds=most_rounds,
        )

    return decorate
