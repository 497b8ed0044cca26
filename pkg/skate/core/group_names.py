"""How the resources of placement groups are named, as in Ray. No state.

A bundle {"CPU": 1} that is number 0 of the group with the id (in hexadecimal) `g` gives its node the resources
`CPU_group_g` and `CPU_group_0_g`, and `bundle_group_g` and `bundle_group_0_g`, of which there are 1,000 each. A task in
the group asks for `CPU_group_g`, in that bundle for `CPU_group_0_g` too, and for a thousandth of the bundle; so whoever
schedules by names finds the nodes of the group without knowing what a group is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from skate._c.resources import UNITS_PER_ONE
from skate.options import BUNDLE as BUNDLE  # (others have it from here)

#: of `bundle`, which those ask for that need nothing else, too, each bundle has so much, and each task takes so little
BUNDLE_UNITS: Final = 1000 * UNITS_PER_ONE
USE_UNITS: Final = UNITS_PER_ONE // 1000
_MARK: Final = "_group_"
_NAME = re.compile(r"(.+)_group_(?:(\d+)_)?([0-9a-f]{32})")


class GroupName(NamedTuple):
    """A resource's name, taken apart."""

    plain: str  #: the resource: CPU
    bundle: int  #: its number; -1 where any will do
    group: str  #: the group's id in hexadecimal


def parse(name: str) -> GroupName | None:
    """What a resource's name says; None for one that is no group's."""
    if _MARK not in name:
        return None
    match = _NAME.fullmatch(name)
    return match and GroupName(match[1], -1 if match[2] is None else int(match[2]), match[3])


def in_group(name: str, group: str, index: int = -1) -> str:
    """The name of a resource in a group, or in one of its bundles."""
    return f"{name}_group_{group}" if index < 0 else f"{name}_group_{index}_{group}"


def of_bundle(group: str, index: int, units: Mapping[str, int]) -> dict[str, int]:
    """What a bundle gives its node, name -> units."""
    named = {}
    for name, amount in (*units.items(), (BUNDLE, BUNDLE_UNITS)):
        named[in_group(name, group)] = named[in_group(name, group, index)] = amount
    return named


def asked_of_group(group: str, index: int, units: Mapping[str, int]) -> dict[str, int]:
    """What asks for `units` inside a group: in the bundle `index`, or in any (-1)."""
    named = {}
    for name, amount in (*units.items(), (BUNDLE, USE_UNITS)):
        named[in_group(name, group)] = amount
        if index >= 0:
            named[in_group(name, group, index)] = amount
    return named


def plain(units: Mapping[str, int]) -> dict[str, int]:
    """What was asked for, as the user wrote it."""
    named = {}
    for name, amount in units.items():
        found = parse(name)
        if found is None:
            named[name] = amount
        elif found.bundle < 0 and found.plain != BUNDLE:
            named[found.plain] = amount
    return named
