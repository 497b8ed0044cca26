"""One contender, in a fresh process, through some measurements: `python -m perf.child JOB`.

Speaks JSON lines on stdout: started, one of sample / skipped / failed for each measurement, then finished.
Whatever the contender prints goes to stderr, whose last line tells the harness why a child died.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from perf import contenders, rows
from perf.contenders.base import Contender
from perf.meter import Meter
from perf.model import Measurement
from perf.pace import Pace

Tell = Callable[..., None]


@dataclass(frozen=True)
class Job:
    """What a child is asked to do: measurements of one group, or, if there are none, to tell its version."""

    contender: str
    import_name: str = ""
    script: str = ""
    measurements: tuple[str, ...] = ()
    pace: Pace = dataclasses.field(default_factory=Pace)
    #: Tell the CPU time of a call as well, on both sides (see builds.py).
    metered: bool = False

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        fields = json.loads(text)
        fields["pace"] = Pace(**fields["pace"])
        fields["measurements"] = tuple(fields["measurements"])
        return cls(**fields)


def _protocol() -> Tell:
    """Keep the real stdout for the protocol and point everybody else's at stderr."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def tell(event: str, **fields: object) -> None:
        channel.write(json.dumps({"event": event, **fields}) + "\n")

    return tell


def _run(measurement: Measurement, contender: Contender, job: Job, tell: Tell) -> None:
    try:
        if job.metered:
            meter = Meter(**dataclasses.asdict(job.pace))
            measurement.run(contender, meter)
            tell("sample", values=meter.microseconds)
        else:
            tell("sample", values=measurement.values(measurement.run(contender, job.pace)))
    except NotImplementedError as lack:
        tell("skipped", reason=str(lack))
    except Exception as error:
        traceback.print_exc()
        tell("failed", reason=f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")


def main(argument: str) -> None:
    job, tell = Job.from_json(argument), _protocol()
    contender = contenders.load(job.contender)
    contender.import_name = job.import_name or contender.import_name
    if not job.measurements:
        tell("version", version=contender.version())
        return
    chosen = [m for m in rows.measurements(job.script) if m.name in job.measurements]
    num_cpus = chosen[0].num_cpus
    if num_cpus:
        contender.start(num_cpus)
    tell("started")
    for measurement in chosen:
        _run(measurement, contender, job, tell)
    tell("finished")
    contender.stop()


if __name__ == "__main__":
    main(sys.argv[1])
