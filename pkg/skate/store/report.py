"""The store's state in a few lines that a person reads. No state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skate._c.arena import ObjectRow

#: objects that a report lists
LARGEST = 5


def report(usage: Mapping[str, int], spilled: Mapping[str, int], rows: Sequence[ObjectRow]) -> str:
    """`usage`: Arena.stats; `spilled`: core.spilling's stats; `rows`: Arena.objects. The first line is the summary."""
    lines = [
        f"Object store: {_size(usage['used'])} of {_size(usage['capacity'])} used "
        f"({usage['used'] / max(1, usage['capacity']):.0%}) by {usage['objects']} objects, "
        f"{_size(usage['pinned'])} of it in use by processes; on disk: {_size(spilled['bytes'])} in "
        f"{spilled['objects']} objects, {spilled['files']} files."
    ]
    largest = sorted(rows, key=lambda row: -row["size"])[:LARGEST]
    if largest:
        lines.append("Largest objects:")
    for row in largest:
        freed = ", freed but for that" if row["doomed"] else ""
        owner = row["owner"].hex() or "nobody"
        lines.append(
            f"    {row['id'].hex()}  {_size(row['size'])}, owned by {owner}, made by pid {row['creator']}, "
            f"{users_of(row)}{freed}"
        )
    return "\n".join(lines)


def users_of(row: ObjectRow) -> str:
    """Who has the object pinned."""
    return f"in use by pid {', '.join(map(str, row['pins']))}" if row["pins"] else "in use by nobody"


def _size(nbytes: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            break
        nbytes /= 1000
    return f"{nbytes:.3g} {unit}"
