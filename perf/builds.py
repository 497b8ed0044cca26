"""Two builds of skate beside each other: `python -m perf.builds OLD_PYTHON NEW_PYTHON`.

Each is the interpreter of an environment that has its build installed. They take turns, a fresh process a round, and
what is compared is the CPU time of a call, of the caller and of all other processes together. The scatter of the
method stands beside it: the same ratio, of the old build's rounds to its own next rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from perf import contenders, rows, runner
from perf.__main__ import choose, names_in
from perf.child import Job
from perf.model import Measurement
from perf.pace import Pace

#: rows in which one operation is one call
CALLS = (
    "tasks.one_at_a_time,tasks.in_flight,actors.one_at_a_time,actors.in_flight,actors.one_to_many,actors.many_to_many,"
    "actors.threaded,actors.async_one_at_a_time,actors.async_in_flight,actors.async_with_arguments,actors.streaming,"
    "arguments.kilobyte,objects.put_small,objects.get_small"
)
#: row -> side (caller, others) -> microseconds, one a round
Figures = dict[str, dict[str, list[float]]]


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m perf.builds", description=__doc__.partition("\n")[0])
    add = options.add_argument
    add("old", help="the interpreter that has the old build")
    add("new", help="the interpreter that has the new build")
    add(
        "--rows",
        metavar="NAMES",
        default=CALLS,
        help="rows or prefixes of them, with commas (those of calls)",
    )
    add("--rounds", type=int, default=9, metavar="N", help="how often each has a turn (9)")
    add("--run-seconds", type=float, default=1.0, metavar="S", help="how long a row runs in each turn (1)")
    add("--json", metavar="PATH", help="write every figure")
    return options


def measure(python: str, group: tuple[Measurement, ...], pace: Pace, figures: Figures) -> None:
    """One turn of one build at one group of rows, added to `figures`."""
    names = tuple(measurement.name for measurement in group)
    job = Job("skate", script=group[0].script, measurements=names, pace=pace, metered=True)
    with runner.Child(python, job) as child:
        for measurement, outcome in runner.converse(child, group):
            if outcome["event"] != "sample":
                print(f"{measurement.name}: {outcome['event']}: {outcome['reason']}", file=sys.stderr)
            for side, microseconds in outcome.get("values", {}).items():
                figures.setdefault(measurement.name, {}).setdefault(side, []).append(microseconds)


def compare(builds: Sequence[str], chosen: Sequence[Measurement], rounds: int, pace: Pace) -> list[Figures]:
    """The figures of each build. The builds take turns at each group of rows; who begins changes each round."""
    able = [m for m in chosen if m.needs <= contenders.load("skate").can]
    found: list[Figures] = [{} for _ in builds]
    for number in range(rounds):
        for group in runner.groups(able):
            for at in range(len(builds)):
                turn = (at + number) % len(builds)
                measure(builds[turn], group, pace, found[turn])
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return found


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> str:
    ratios = sorted(mine / other for mine, other in zip(ours, theirs, strict=False) if other)
    return f"{statistics.median(ratios):.3f} ({ratios[0]:.2f}-{ratios[-1]:.2f})" if ratios else ""


def table(old: Figures, new: Figures) -> str:
    """A line a row and side: medians in microseconds, the ratio round by round, and the old build's own scatter."""
    form = "{:32} {:7} {:>8} {:>8}  {:20} {:20}"
    lines = [form.format("row", "CPU of", "old µs", "new µs", "new/old (range)", "old/old (range)").rstrip()]
    for row in [name for name in old if name in new]:
        sides: Figures = {"old": dict(old[row]), "new": dict(new[row])}
        for figures in sides.values():
            figures["both"] = [sum(each) for each in zip(*figures.values(), strict=False)]
        for side in sides["old"]:
            before, now = sides["old"][side], sides["new"][side]
            medians = [f"{statistics.median(each):.2f}" for each in (before, now)]
            lines.append(
                form.format(row, side, *medians, _ratios(now, before), _ratios(before[1:], before)).rstrip()
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    chosen = choose(names_in(options.rows), rows.every_measurement())
    builds = [options.old, options.new]
    old, new = compare(builds, chosen, options.rounds, Pace(run_s=options.run_seconds))
    if options.json:
        Path(options.json).write_text(json.dumps({"old": old, "new": new}, indent=1))
    print(table(old, new))


if __name__ == "__main__":
    main()
