"""Resources in use and in demand, in words for people, laid out as Ray's `status` is. No state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from skate.core import group_names

#: resources that are bytes
_BYTES: Final = ("memory", "object_store_memory")
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_LINE: Final = "-" * 60


def describe_resources(
    total: Mapping[str, float],
    available: Mapping[str, float],
    reserved: Mapping[str, tuple[float, float]],
    demands: Sequence[tuple[Mapping[str, float], int, bool]],
    pending_groups: Sequence[tuple[Sequence[Mapping[str, float]], str, bool]],
) -> str:
    """The report. `reserved`: name -> (used in placement groups, reserved for them).

    `demands`: (resources, how many, feasible); `pending_groups`: (bundles, strategy, feasible).
    """
    lines = ["Resources", _LINE, "Usage:"]
    for name in sorted(total):
        if group_names.parse(name) is None and not name.startswith("node:"):
            lines.append(f" {_usage(name, total[name], available.get(name, 0.0), reserved.get(name))}")
    lines += ["", "Demands:"]
    waiting = [
        f" {_shown(resources)}: {number}+ pending tasks/actors{'' if feasible else ' (no node is large enough)'}"
        for resources, number, feasible in demands
    ]
    groups = Counter(
        (_bundles(bundles), strategy, feasible) for bundles, strategy, feasible in pending_groups
    )
    waiting += [
        f" {bundles} ({strategy}): {number}+ pending placement groups"
        f"{'' if feasible else ' (the cluster is too small)'}"
        for (bundles, strategy, feasible), number in groups.items()
    ]
    return "\n".join(lines + (waiting or [" (no resource demands)"]))


def _usage(name: str, total: float, available: float, reserved: tuple[float, float] | None) -> str:
    used_in_groups, held = reserved or (0.0, 0.0)
    used = round(total - available - held + used_in_groups, 4)
    text = f"{_amount(name, used)}/{_amount(name, total)} {name}"
    if reserved is not None:
        text += (
            f" ({_amount(name, used_in_groups)} used of {_amount(name, held)} reserved in placement groups)"
        )
    return text


def _amount(name: str, amount: float) -> str:
    if name not in _BYTES:
        return str(amount)
    unit = 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount /= 1024
        unit += 1
    return f"{amount:.0f}{_UNITS[unit]}" if unit == 0 else f"{amount:.2f}{_UNITS[unit]}"


def _shown(resources: Mapping[str, float]) -> str:
    plain = {}
    for name, amount in resources.items():
        found = group_names.parse(name)
        if found is None:
            plain[name] = amount
        elif found.bundle < 0 and found.plain != group_names.BUNDLE:
            plain[f"{found.plain} in group {found.group[:8]}"] = amount
    return str(plain)


def _bundles(bundles: Sequence[Mapping[str, float]]) -> str:
    return ", ".join(f"{shape} * {number}" for shape, number in Counter(map(_shown, bundles)).items())
