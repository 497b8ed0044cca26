"""Results as a table, for a terminal or for Markdown."""

from __future__ import annotations

from perf.bars import BARS, bars_of
from perf.model import Row
from perf.results import MACHINE, Results

_ARROWS = {"higher": "↑", "lower": "↓"}
_MARKS = {"met": "✓", "missed": "✗", "unknown": "?"}


def number(value: float) -> str:
    """Three digits, and no more: 0.00123, 1.23, 12.3, 123, 12,300."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        digits = len(str(int(size))) - 3
        return f"{round(value, -digits):,.0f}"
    if size >= 100:
        return f"{value:,.0f}"
    decimals = 1 if size >= 10 else 2
    while size < 1 and decimals < 6 and round(size, decimals) < 10 ** -(decimals - 2):
        decimals += 1
    return f"{value:.{decimals}f}"


def times(ratio: float) -> str:
    """A ratio, with two or three digits."""
    if ratio >= 10:
        return f"{ratio:,.0f}×"
    return f"{ratio:.2f}×" if ratio >= 0.1 else f"{ratio:.2g}×"


def _cell(results: Results, row: Row, contender: str) -> str:
    summary = results.summary(row.key, contender)
    if summary is None:
        trouble = results.trouble(row.key, contender)
        return trouble.status if trouble else ""
    text = number(summary.median)
    if summary.high > summary.low:
        text += f" ±{100 * summary.spread:.0f}%"
    return text


def _machine_cell(results: Results, row: Row) -> str:
    """The reference row's own figure, or how it stands beside the row it is a limit of."""
    if row.limit is None:
        return _cell(results, row, MACHINE)
    limit = results.summary(row.limit, MACHINE)
    advantage = results.advantage(row, row.limit)
    if limit is None:
        return ""
    return number(limit.median) + (f" ({times(advantage.median)})" if advantage else "")


def _rival_cell(results: Results, row: Row, rival: str) -> str:
    advantage = results.advantage(row, rival)
    return _cell(results, row, rival) + (f" ({times(advantage.median)})" if advantage else "")


def _bar_cell(results: Results, row: Row) -> str:
    marked = [f"{_MARKS[bar.verdict(results)]} {bar}" for bar in bars_of(row.key)]
    return ", ".join(marked) if results.subject in results.versions else ""


def cells(results: Results) -> list[list[str]]:
    """The table with its heading, empty columns left out."""
    has_subject = results.subject in results.versions
    heading = ["", "unit"] + [results.subject] * has_subject + results.rivals + ["machine", "bar"]
    body = [
        [
            row.title,
            f"{row.unit} {_ARROWS[row.better]}".strip(),
            *([_cell(results, row, results.subject)] * has_subject),
            *(_rival_cell(results, row, rival) for rival in results.rivals),
            _machine_cell(results, row),
            _bar_cell(results, row),
        ]
        for row in results.rows
    ]
    used = [i for i in range(len(heading)) if i < 2 or any(line[i] for line in body)]
    return [[line[i] for i in used] for line in [heading, *body]]


def _notes(results: Results) -> list[str]:
    machine = results.machine
    notes = [
        "Medians over rounds, ± half the range; ↑ higher is better, ↓ lower is better. ×: how many times "
        f"better {results.subject} is than that column, median of the ratios of each round.",
        "; ".join(f"{name} {version}" for name, version in results.versions.items() if name != MACHINE)
        + f". {machine.get('cpu', 'unknown processor')}, {machine.get('cpus', '?')} CPUs, "
        f"{machine.get('memory_gb', '?')} GB, Linux {machine.get('kernel', '?')}, load "
        f"{machine.get('load_before', '?')} before. {results.options.get('rounds', '?')} rounds.",
    ]
    notes += [f"{name} left out: {why}" for name, why in results.left_out.items()]
    return notes


def troubles(results: Results) -> list[str]:
    """What went wrong or is worth knowing, a line for each row and contender, and why."""
    lines = list(dict.fromkeys(f"{s.row} on {s.contender}: {s.note}" for s in results.samples if s.note))
    for row in results.rows:
        for name in results.versions:
            if trouble := results.trouble(row.key, name):
                lines.append(f"{row.key} on {name} {trouble.status}: {trouble.reason}")
    return lines


def verdicts(results: Results) -> list[str]:
    """Bars met, missed and unknown, of the rows that were measured."""
    measured = [bar for bar in BARS if results.row(bar.row)]
    if results.subject not in results.versions or not measured:
        return []
    count = {mark: sum(bar.verdict(results) == mark for bar in measured) for mark in _MARKS}
    return [f"Bars: {count['met']} met, {count['missed']} missed, {count['unknown']} without a figure."]


def text(results: Results) -> str:
    lines = cells(results)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    bar = len(widths) - 1 if lines[0][-1] == "bar" else None

    def aligned(line: list[str]) -> str:
        return "  ".join(
            cell.ljust(width) if i < 2 or i == bar else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()

    table = [aligned(line) for line in lines]
    table.insert(1, "─" * max(map(len, table)))
    return "\n".join([*table, "", *_notes(results), *troubles(results), *verdicts(results)])


def markdown(results: Results) -> str:
    heading, *body = cells(results)
    rule = ["---" if i < 2 else "---:" for i in range(len(heading))]
    table = ["| " + " | ".join(line) + " |" for line in [heading, rule, *body]]
    return "\n".join([*table, "", *(f"{note}  " for note in _notes(results) + verdicts(results))])
