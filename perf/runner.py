"""Runs measurements on contenders in turn: a fresh process for each round, group and contender.

A ratio compares neighbours in time, so contenders take turns inside a group of measurements, and who begins
moves on by one each round. Nothing here imports a contender.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perf import contenders, procs
from perf.child import Job
from perf.contenders.base import Contender
from perf.model import Measurement
from perf.pace import FULL, Pace
from perf.results import Sample
from perf.warden import GRACE_S

ROOT = Path(__file__).resolve().parent.parent
#: From a process's start to a started session, and from the last sample to its end.
START_LIMIT_S, STOP_LIMIT_S = 90.0, 30.0


@dataclass(frozen=True)
class Setting:
    """How children are started."""

    rival_python: str = sys.executable
    #: The module that is measured as skate; another one with Ray's API shows that the harness is fair.
    skate_module: str = "skate"
    pace: Pace = FULL

    def python(self, contender: Contender) -> str:
        return self.rival_python if contender.is_rival else sys.executable

    def job(self, contender: Contender) -> Job:
        name = contender.name
        return Job(name, import_name=self.skate_module if name == "skate" else "", pace=self.pace)


@dataclass
class Child:
    """A contender's process under its warden. Lives from `with` to the end of it, with all it started."""

    python: str
    job: Job
    #: Names of processes that did not end by themselves; known at the end.
    left_behind: list[str] = field(default_factory=list)

    def __enter__(self) -> Child:
        self._stderr = tempfile.TemporaryFile()
        self._pending = b""
        warden = [sys.executable, "-m", "perf.warden", str(os.getpid())]
        self._warden = subprocess.Popen(
            [*warden, self.python, "-m", "perf.child", self.job.to_json()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=self._environment(),
            start_new_session=True,  # Ctrl-C is for the harness, which ends its children in order
        )
        return self

    def _environment(self) -> dict[str, str]:
        path = [
            str(ROOT),
            *map(os.path.abspath, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))),
        ]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "RAY_USAGE_STATS_ENABLED": "0"}

    def message(self, limit_s: float) -> dict[str, Any] | None:
        """The child's next message, None at its end. Raises TimeoutError after `limit_s`."""
        deadline = time.monotonic() + limit_s
        assert self._warden.stdout
        while b"\n" not in self._pending:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self._warden.stdout], [], [], left_s)[0]:
                raise TimeoutError(f"not done after {limit_s:.0f} s")
            read = os.read(self._warden.stdout.fileno(), 65536)
            if not read:
                return None
            self._pending += read
        line, _, self._pending = self._pending.partition(b"\n")
        message = json.loads(line)
        if message["event"] == "left_behind":
            self.left_behind += message["names"]
            return self.message(max(0.0, deadline - time.monotonic()))
        return message

    def last_words(self) -> str:
        """The last line of stderr, or that there is none."""
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr.read().decode(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "nothing on stderr")

    def __exit__(self, *exception: object) -> None:
        self._end()
        self._stderr.close()
        assert self._warden.stdout
        self._warden.stdout.close()

    def _end(self) -> None:
        if self._warden.poll() is None:
            self._warden.terminate()
        try:
            while self.message(GRACE_S + 5.0):
                pass
            self._warden.wait(5.0)
        except (TimeoutError, subprocess.TimeoutExpired):  # the warden is stuck: do its work
            for pid in [*procs.descendants(self._warden.pid), self._warden.pid]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self._warden.wait()


def version(contender: Contender, setting: Setting) -> str:
    """The contender's version in the interpreter it would run in; RuntimeError if it is not installed."""
    with Child(setting.python(contender), setting.job(contender)) as child:
        try:
            message = child.message(START_LIMIT_S)
        except TimeoutError as late:
            raise RuntimeError(f"its import was {late}")
        if message is None:
            raise RuntimeError(child.last_words())
        return str(message["version"])


def groups(measurements: Sequence[Measurement]) -> list[tuple[Measurement, ...]]:
    """Measurements that share processes, in the order they were given."""
    by_group: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        by_group.setdefault(measurement.group, []).append(measurement)
    return [tuple(members) for members in by_group.values()]


def turns(names: Sequence[str], round_number: int) -> list[str]:
    """Who goes when: the order moves on by one each round."""
    first = round_number % len(names) if names else 0
    return [*names[first:], *names[:first]]


def run_rounds(
    measurements: Sequence[Measurement], names: Sequence[str], rounds: int, setting: Setting
) -> Iterator[Sample]:
    """Every sample, as it is taken."""
    for round_number in range(rounds):
        for group in groups([m for m in measurements if round_number < m.most_rounds]):
            for name in turns(names, round_number):
                contender = contenders.load(name)
                able = tuple(m for m in group if m.needs <= contender.can)
                for sample in run_group(able, contender, setting):
                    yield dataclasses.replace(sample, round=round_number)


def run_group(group: Sequence[Measurement], contender: Contender, setting: Setting) -> Iterator[Sample]:
    """A sample for each row. A measurement that kills its process costs the others a fresh one, no more."""
    left = list(group)
    while left:
        for measurement, outcome in _run_in_one_process(left, contender, setting):
            for row in measurement.rows:
                value = outcome.get("values", {}).get(row.key)
                yield Sample(
                    row=row.key,
                    contender=contender.name,
                    value=value,
                    status=outcome["event"],
                    reason=outcome.get("reason", ""),
                    note=outcome.get("note", ""),
                )
            left.remove(measurement)


Outcomes = list[tuple[Measurement, dict[str, Any]]]


def _run_in_one_process(group: Sequence[Measurement], contender: Contender, setting: Setting) -> Outcomes:
    """Outcomes, in order, until the group is through or the process is lost; at least one."""
    job = dataclasses.replace(
        setting.job(contender), script=group[0].script, measurements=tuple(m.name for m in group)
    )
    with Child(setting.python(contender), job) as child:
        outcomes = converse(child, group)
    if child.left_behind:
        outcomes[-1][1]["note"] = f"left processes behind: {', '.join(child.left_behind)}"
    return outcomes


def converse(child: Child, group: Sequence[Measurement]) -> Outcomes:
    """Hear the child out. If it never starts, the whole group has failed; if it is lost later, one has."""
    outcomes: Outcomes = []
    limit_s, lost = START_LIMIT_S, group
    try:
        while len(outcomes) < len(group):
            message = child.message(limit_s)
            if message is None:
                return outcomes + _failed(lost, child.last_words())
            if message["event"] != "started":
                outcomes.append((group[len(outcomes)], message))
            lost = group[len(outcomes) :][:1]
            limit_s = lost[0].limit_s if lost else STOP_LIMIT_S
        while child.message(STOP_LIMIT_S):  # "finished", then the end: let it stop in its own way
            pass
    except TimeoutError as late:
        outcomes += _failed(lost, f"{late}; last words: {child.last_words()}")
    return outcomes


def _failed(lost: Sequence[Measurement], reason: str) -> Outcomes:
    return [(measurement, {"event": "failed", "reason": reason}) for measurement in lost]
