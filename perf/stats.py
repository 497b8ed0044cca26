"""Medians, spreads, ratios: plain functions of lists of numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perf.model import Better


@dataclass(frozen=True)
class Summary:
    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Half the way from lowest to highest, as a share of the median."""
        return (self.high - self.low) / 2 / abs(self.median) if self.median else 0.0


def summarise(values: Sequence[float]) -> Summary | None:
    if not values:
        return None
    return Summary(statistics.median(values), min(values), max(values))


def advantage(ours: float, theirs: float, better: Better) -> float | None:
    """How many times better we are: above 1 is in our favour, whichever way is better."""
    ours, theirs = (ours, theirs) if better == "higher" else (theirs, ours)
    return ours / theirs if theirs > 0 else None


def advantages(ours: Mapping[int, float], theirs: Mapping[int, float], better: Better) -> list[float]:
    """The advantage in each round that both took part in."""
    both = sorted(ours.keys() & theirs.keys())
    found = [advantage(ours[number], theirs[number], better) for number in both]
    return [ratio for ratio in found if ratio is not None]
