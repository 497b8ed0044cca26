"""What must be reached: how many times better than whom, or which figure at most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from perf.results import Results

Verdict = Literal["met", "missed", "unknown"]


@dataclass(frozen=True)
class Ahead:
    """At least `times` as good as a rival, or as a reference row (`objects.memcpy_touched`).

    Judged by the median of the ratios of each round.
    """

    row: str
    over: str
    times: float

    def __str__(self) -> str:
        return f"≥{self.times:g}× {self.over.rpartition('.')[2]}"

    def verdict(self, results: Results) -> Verdict:
        row = results.row(self.row)
        advantage = row and results.advantage(row, self.over)
        if not advantage:
            return "unknown"
        return "met" if advantage.median >= self.times else "missed"


@dataclass(frozen=True)
class Below:
    """Under a figure, in the median of rounds."""

    row: str
    figure: float
    unit: str = "s"

    def __str__(self) -> str:
        return f"<{self.figure:g} {self.unit}"

    def verdict(self, results: Results) -> Verdict:
        return _judged(results, self.row, lambda median: median < self.figure)


@dataclass(frozen=True)
class AtLeast:
    """A figure or more, in the median of rounds."""

    row: str
    figure: float
    unit: str

    def __str__(self) -> str:
        return f"≥{self.figure:,g} {self.unit}"

    def verdict(self, results: Results) -> Verdict:
        return _judged(results, self.row, lambda median: median >= self.figure)


def _judged(results: Results, row: str, meets: Callable[[float], bool]) -> Verdict:
    """Of the subject's median in a row."""
    summary = results.summary(row, results.subject)
    if not summary:
        return "unknown"
    return "met" if meets(summary.median) else "missed"


Bar = Ahead | Below | AtLeast

#: The ways that perf/rows/sizes.py goes.
_WAYS = ["argument", "result", "echo", "dict", "bytes", "str", "put", "borrowed", "stream"]

#: With many in flight, and on the small rows: what no one-at-a-time latency can hide.
_TWENTY_TIMES_RAY = [
    "tasks.from_actors",
    "actors.one_to_many",
    "actors.many_to_many",
    "actors.many_to_many_ref",
    "actors.threaded",
    "actors.async_with_arguments",
    "actors.start_10",
    "actors.start_100",
    "objects.put_small",
    "objects.get_small",
    "objects.put_in_tasks",
    "objects.get_refs",
    "objects.wait_one_by_one",
    "arguments.kilobyte",
    "arguments.hundred_kilobytes",
    "graphs.layers",
    "groups.create_and_remove",
]

BARS: list[Bar] = [
    *(Ahead(row, "ray", 20) for row in _TWENTY_TIMES_RAY),
    *(Ahead(row, "ray", 50) for row in ("tasks.in_flight", "actors.in_flight", "actors.async_in_flight")),
    Ahead("tasks.one_at_a_time", "ray", 50),
    Ahead("tasks.one_at_a_time", "executor", 20),
    Ahead("actors.one_at_a_time", "ray", 50),
    Ahead("actors.one_at_a_time", "limits.socket_ping_pong", 1),
    Ahead("actors.async_one_at_a_time", "ray", 30),
    Ahead("actors.queue_one_by_one", "ray", 4),
    Ahead("actors.queue_batches", "ray", 100),
    Below("actors.idle_memory", 15, "MB"),
    Ahead("tasks.in_flight", "executor", 5),
    Ahead("futures.submit", "executor", 10),
    Ahead("futures.map_items", "executor", 10),
    Ahead("lanes.crowded", "zeromq", 1),
    Below("lanes.idle_workers", 1, "%"),
    Ahead("objects.put_large", "objects.memcpy_touched", 0.8),
    Ahead("objects.put_large_first", "objects.memcpy_fresh", 1),
    Below("store.get_large", 20, "µs"),
    Ahead("store.spill", "store.file_write", 0.5),
    Ahead("store.restore", "store.file_read", 0.5),
    # The socket's bytes are not encrypted, those between nodes are, unless --insecure says otherwise.
    Ahead("nodes.between_namespaces", "nodes.socket_between_namespaces", 0.6),
    Ahead("nodes.between_namespaces_open", "nodes.socket_between_namespaces", 0.6),
    # One copy for all of them, and what ten processes need themselves.
    Below("store.readers_memory", 1.3, "GB"),
    Below("session.first_result", 0.5),
    # A short task that sat behind the long one would take these 5 s.
    Below("pipeline.behind_a_long_one", 2.5),
    # A wake each; and nobody falls to a slow path.
    *(AtLeast(f"crowds.turn_{count}", 12_000, "calls/s") for count in (60, 250, 500)),
    AtLeast("crowds.flight_share", 50, "%"),
    *(Below(f"sizes.{way}_step", 1.3, "×") for way in _WAYS),
]


def bars_of(row: str) -> list[Bar]:
    return [bar for bar in BARS if bar.row == row]
