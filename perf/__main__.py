"""The command: `python -m perf`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from perf import contenders, facts, rows, runner, table
from perf.bars import BARS, Ahead, bars_of
from perf.model import Measurement
from perf.pace import FULL, QUICK
from perf.results import MACHINE, Results, Sample


class UsageError(Exception):
    """The command line asks for something that is not there."""


def parser() -> argparse.ArgumentParser:
    every = ",".join(name for name in contenders.names() if name not in ("skate", MACHINE))
    options = argparse.ArgumentParser(
        prog="python -m perf", description="skate beside its rivals and the limits of the machine, in turn."
    )
    add = options.add_argument
    add("--rows", metavar="NAMES", default="", help="scripts, rows or prefixes of them, with commas (all)")
    add("--rivals", metavar="NAMES", default=every, help=f"with commas, or none ({every})")
    add("--rival-python", metavar="PATH", default=sys.executable, help="the rivals' interpreter (this one)")
    add("--rounds", type=int, default=5, metavar="N", help="how often everybody has a turn (5)")
    add("--quick", action="store_true", help="one short round: to see that it works, not to quote")
    add("--json", metavar="PATH", help="write every sample")
    add("--plot", metavar="PATH", help="draw the ratios; needs matplotlib")
    add("--markdown", action="store_true", help="print the table as Markdown")
    add("--load", metavar="PATH", help="show an earlier run's JSON instead of measuring")
    add("--check", action="store_true", help="exit with 1 if a bar is missed, or something failed")
    add("--list", action="store_true", help="the rows, who can run them, and the bars")
    add("--subject", metavar="NAME", default="skate", help="whose advantage the ratios tell (skate)")
    add("--skate-module", metavar="MODULE", default="skate", help="what is measured as skate")
    return options


def names_in(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip() and name.strip() != "none"]


def choose(wanted: Sequence[str], every: Sequence[Measurement]) -> list[Measurement]:
    """The measurements of these scripts, rows or prefixes (all if none), and the reference rows they name."""

    def matches(measurement: Measurement, word: str) -> bool:
        keys = [measurement.name, *(row.key for row in measurement.rows)]
        return any(key.startswith(word) for key in keys)

    for word in wanted:
        if not any(matches(measurement, word) for measurement in every):
            scripts = ", ".join(dict.fromkeys(measurement.script for measurement in every))
            raise UsageError(f"no row begins with {word!r}; scripts are {scripts}, and --list shows the rows")
    chosen = [m for m in every if not wanted or any(matches(m, word) for word in wanted)]
    named = {row.limit for m in chosen for row in m.rows}
    named |= {
        bar.over for m in chosen for row in m.rows for bar in bars_of(row.key) if isinstance(bar, Ahead)
    }
    return [m for m in every if m in chosen or any(row.key in named for row in m.rows)]


def listing(every: Sequence[Measurement]) -> str:
    adapters = [contenders.load(name) for name in contenders.names()]
    lines = []
    for measurement in every:
        able = " ".join(adapter.name for adapter in adapters if measurement.needs <= adapter.can)
        for row in measurement.rows:
            marks = ", ".join(map(str, bars_of(row.key)))
            lines.append([row.key, row.title, f"{row.unit}, {row.better}".removeprefix(", "), able, marks])
    heading = ["row", "what", "unit, which is better", "contenders", "bar"]
    widths = [max(len(line[i]) for line in [heading, *lines]) for i in range(len(heading))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [heading, *lines]
    )


def _installed(names: Sequence[str], setting: runner.Setting) -> tuple[dict[str, str], dict[str, str]]:
    """Versions of those that are there; reasons of those that are not."""
    known = contenders.names()
    versions, left_out = {}, {}
    for name in names:
        if name not in known:
            raise UsageError(f"there is no contender {name!r}; there are {', '.join(known)}")
        try:
            versions[name] = runner.version(contenders.load(name), setting)
        except RuntimeError as why:
            left_out[name] = str(why)
            print(f"{name} left out: {why}", file=sys.stderr)
    return versions, left_out


def _report_progress(sample: Sample, rounds: int) -> None:
    value = table.number(sample.value) if sample.value is not None else f"{sample.status}: {sample.reason}"
    who = f"{sample.row:32} {sample.contender:10}"
    print(f"[{sample.round + 1}/{rounds}] {who} {value} {sample.note}".rstrip(), file=sys.stderr, flush=True)


def run(options: argparse.Namespace) -> Results:
    """Measure. Ctrl-C ends it early, with what there is."""
    chosen = choose(names_in(options.rows), rows.every_measurement())
    setting = runner.Setting(options.rival_python, options.skate_module, QUICK if options.quick else FULL)
    rounds = 1 if options.quick else options.rounds
    names = list(dict.fromkeys(["skate", options.subject, *names_in(options.rivals), MACHINE]))
    machine = facts.gather()
    versions, left_out = _installed(names, setting)
    results = Results(
        rows=[row for measurement in chosen for row in measurement.rows],
        versions=versions,
        left_out=left_out,
        subject=options.subject,
        machine=machine,
        options={"rounds": rounds, **dataclasses.asdict(setting)},
    )
    try:
        for sample in runner.run_rounds(chosen, list(versions), rounds, setting):
            results.samples.append(sample)
            _report_progress(sample, rounds)
    except KeyboardInterrupt:
        print("ended early; here is what there is", file=sys.stderr)
    machine["load_after"] = facts.load()
    return results


def show(results: Results, options: argparse.Namespace) -> None:
    if options.json:
        Path(options.json).write_text(results.to_json())
    print(table.markdown(results) if options.markdown else table.text(results))
    if options.plot:
        from perf import plot

        plot.draw(results, options.plot)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        if options.plot and not importlib.util.find_spec("matplotlib"):
            raise UsageError("--plot needs matplotlib: pip install matplotlib, or leave --plot out")
        if options.list:
            print(listing(choose(names_in(options.rows), rows.every_measurement())))
            return 0
        results = Results.from_json(Path(options.load).read_text()) if options.load else run(options)
        show(results, options)
    except (UsageError, ValueError, OSError) as mistake:
        print(f"perf: {mistake}", file=sys.stderr)
        return 2
    missed = any(bar.verdict(results) == "missed" for bar in BARS)
    failed = any(sample.status == "failed" for sample in results.samples)
    return 1 if options.check and (missed or failed) else 0


if __name__ == "__main__":
    sys.exit(main())
