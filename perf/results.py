"""What a run gave: every sample, and the medians, spreads and ratios made of them; to JSON and back."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from perf import stats
from perf.model import Row

MACHINE = "machine"
#: Raised when the meaning of a field changes.
FORMAT = 1


@dataclass(frozen=True)
class Sample:
    """One row on one contender in one round."""

    row: str
    contender: str
    value: float | None
    status: Literal["sample", "skipped", "failed"] = "sample"
    #: Why there is no value.
    reason: str = ""
    round: int = 0
    #: What is worth knowing although there is a value, such as processes left behind.
    note: str = ""


@dataclass
class Results:
    rows: list[Row]
    #: Measured contenders and their versions, in the order of the columns.
    versions: dict[str, str]
    #: Contenders that were asked for and are not installed, and why.
    left_out: dict[str, str] = field(default_factory=dict)
    #: Whose advantage the ratios tell.
    subject: str = "skate"
    machine: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def row(self, key: str) -> Row | None:
        return next((row for row in self.rows if row.key == key), None)

    @property
    def rivals(self) -> list[str]:
        return [name for name in self.versions if name not in (self.subject, MACHINE)]

    def values(self, row: str, contender: str) -> dict[int, float]:
        """Values by round."""
        return {
            sample.round: sample.value
            for sample in self.samples
            if (sample.row, sample.contender) == (row, contender) and sample.value is not None
        }

    def summary(self, row: str, contender: str) -> stats.Summary | None:
        return stats.summarise(list(self.values(row, contender).values()))

    def trouble(self, row: str, contender: str) -> Sample | None:
        """The last round that gave no value, failures first."""
        found = [
            sample
            for sample in self.samples
            if (sample.row, sample.contender) == (row, contender) and sample.value is None
        ]
        return max(found, key=lambda sample: (sample.status == "failed", sample.round), default=None)

    def advantage(self, row: Row, over: str) -> stats.Summary | None:
        """The subject's advantage over a rival on the same row, or over a reference row given by its key."""
        ours = self.values(row.key, self.subject)
        if "." in over:
            theirs = self.values(over, MACHINE)
        else:
            theirs = self.values(row.key, over)
        return stats.summarise(stats.advantages(ours, theirs, row.better))

    def to_json(self) -> str:
        fields = {"format": FORMAT, **dataclasses.asdict(self), "summary": self._summary()}
        return json.dumps(fields, indent=1)

    def _summary(self) -> list[dict[str, Any]]:
        """For readers of the JSON who do not want to compute it again."""
        lines = []
        for row in self.rows:
            for name in self.versions:
                if summary := self.summary(row.key, name):
                    advantage = self.advantage(row, name) if name != self.subject else None
                    lines.append(
                        {
                            "row": row.key,
                            "contender": name,
                            **dataclasses.asdict(summary),
                            "advantage": advantage and advantage.median,
                        }
                    )
        return lines

    @classmethod
    def from_json(cls, text: str) -> Results:
        fields = json.loads(text)
        if fields.pop("format", None) != FORMAT:
            raise ValueError(f"not the JSON of this harness, or of another version of it (format {FORMAT})")
        del fields["summary"]
        fields["rows"] = [Row(**row) for row in fields["rows"]]
        fields["samples"] = [Sample(**sample) for sample in fields["samples"]]
        return cls(**fields)
