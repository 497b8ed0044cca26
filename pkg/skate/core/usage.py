"""Resources in use and in demand, in words for people, laid out as Ray's `status` is. No state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from skate._c.resources import from_units
from skate.core import group_names

#: resources that are bytes
_BYTES: Final = ("memory", "object_store_memory")
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_LINE: Final = "-" * 60


def sum_units(rows: Iterable[Mapping[str, Any]], what: str) -> dict[str, int]:
    """What several nodes have together, of their `total` or `available`."""
    units: dict[str, int] = {}
    for row in rows:
        for name, amount in row[what].items():
            units[name] = units.get(name, 0) + amount
    return units


def in_groups(total: Mapping[str, int], available: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Resource -> (units used in placement groups, units reserved for them), of what there is under groups' names."""
    found: dict[str, tuple[int, int]] = {}
    for name, amount in total.items():
        parsed = group_names.parse(name)
        if parsed is not None and parsed.bundle < 0 and parsed.plain != group_names.BUNDLE:
            used, reserved = found.get(parsed.plain, (0, 0))
            found[parsed.plain] = used + amount - available.get(name, 0), reserved + amount
    return found


def describe_resources(
    total: Mapping[str, int],
    available: Mapping[str, int],
    demands: Iterable[Sequence[Any]],
    pending_groups: Iterable[Sequence[Any]],
) -> str:
    """The report, of units by name. The rest is as `describe_demands` takes it."""
    lines = ["Resources", _LINE, "Usage:", *describe_usage(total, available), "", "Demands:"]
    return "\n".join(lines + describe_demands(demands, pending_groups))


def describe_demands(demands: Iterable[Sequence[Any]], pending_groups: Iterable[Sequence[Any]]) -> list[str]:
    """A line for each kind of what waits.

    `demands`: (resources, how many, feasible) of nodes; `pending_groups`: (bundles, strategy, feasible).
    """
    counts: Counter[tuple[str, bool]] = Counter()
    for resources, number, feasible in demands:
        counts[_shown(resources), feasible] += number
    waiting = [
        f" {resources}: {number}+ pending tasks/actors{'' if feasible else ' (no node is large enough)'}"
        for (resources, feasible), number in counts.items()
    ]
    groups = Counter(
        (_bundles(bundles), strategy, feasible) for bundles, strategy, feasible in pending_groups
    )
    waiting += [
        f" {bundles} ({strategy}): {number}+ pending placement groups"
        f"{'' if feasible else ' (the cluster is too small)'}"
        for (bundles, strategy, feasible), number in groups.items()
    ]
    return waiting or [" (no resource demands)"]


def describe_usage(total: Mapping[str, int], available: Mapping[str, int]) -> list[str]:
    """A line a resource: what is used of it, and what of that in placement groups."""
    reserved = in_groups(total, available)
    return [
        f" {_usage(name, total[name], available.get(name, 0), reserved.get(name))}"
        for name in sorted(total)
        if group_names.parse(name) is None and not name.startswith("node:")
    ]


def _usage(name: str, total: int, available: int, reserved: tuple[int, int] | None) -> str:
    used_in_groups, held = reserved or (0, 0)
    used = total - available - held + used_in_groups
    text = f"{_amount(name, used)}/{_amount(name, total)} {name}"
    if reserved is not None:
        text += (
            f" ({_amount(name, used_in_groups)} used of {_amount(name, held)} reserved in placement groups)"
        )
    return text


def _amount(name: str, units: int) -> str:
    amount = from_units(units)
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
