"""How fast are placement groups made and removed? By Ray's definition: 100 at a time, a bundle each."""

from __future__ import annotations

from perf.contenders.base import Contender
from perf.model import Row, measure
from perf.pace import Pace

AT_ONCE = 100


@measure(Row("placement group, create and remove", "groups/s"), needs={"groups"})
def create_and_remove(contender: Contender, pace: Pace) -> float:
    return pace.rate(
        lambda: contender.remove_groups(contender.create_groups([{"custom": 0.001}], AT_ONCE)), AT_ONCE
    )
