"""How the command shows the table of nodes. No state; a row is as core.roster's `Row.to_plain` gives it, and a pending
placement group as core.usage takes it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from skate._c.resources import from_units
from skate.core.usage import describe_demands, describe_usage, sum_units

_RULE = "-" * 63


def nodes(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a node."""
    if not rows:
        return "No node runs here that `skate start` started."
    table = [("NODE", "STATE", "ADDRESS", "HOST", "PID", "CPU", "GPU", "LABELS")]
    for row in rows:
        state = "ALIVE" if row["alive"] else "DEAD"
        table.append(
            (
                row["node"],
                state + (" (head)" if row["head"] else ""),
                row["address"] or "-",
                row["hostname"],
                str(row["pid"]),
                _usage_of(row, "CPU"),
                _usage_of(row, "GPU"),
                ",".join(f"{name}={value}" for name, value in sorted(row["labels"].items())) or "-",
            )
        )
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    lines += [f"{row['node']} died: {row['cause']}" for row in rows if not row["alive"]]
    return "\n".join(lines)


def status(rows: Sequence[Mapping[str, Any]], pending_groups: Sequence[Sequence[Any]]) -> str:
    """What the cluster has, what is used of it, what waits; laid out as Ray's is."""
    living = [row for row in rows if row["alive"]]
    dead = [row for row in rows if not row["alive"]]
    lines = [
        f"======== Cluster status: {time.strftime('%Y-%m-%d %H:%M:%S')} ========",
        "Node status",
        _RULE,
        "Active:",
    ]
    lines += [f" {_title(row)}" for row in living] or [" (no active nodes)"]
    lines += ["Recent failures:"]
    lines += [f" {_title(row)}: {row['cause']}" for row in dead[-10:]] or [" (no failures)"]
    lines += ["", "Resources", _RULE, "Usage:"]
    lines += describe_usage(sum_units(living, "total"), sum_units(living, "available"))
    lines += ["", "Demands:"]
    lines += describe_demands((demand for row in living for demand in row["demands"]), pending_groups)
    for row in living if len(living) > 1 else ():
        lines += ["", f"Node: {_title(row)}", " Usage:"]
        lines += [" " + line for line in describe_usage(row["total"], row["available"])]
    return "\n".join(lines)


def _title(row: Mapping[str, Any]) -> str:
    where = f" at {row['address']}" if row["address"] else ""
    return f"{row['node']} ({row['hostname']}{where}{', head' if row['head'] else ''})"


def _usage_of(row: Mapping[str, Any], name: str) -> str:
    if not row["alive"] or name not in row["total"]:
        return "-"
    total = row["total"][name]
    return f"{from_units(total - row['available'].get(name, 0))}/{from_units(total)}"
