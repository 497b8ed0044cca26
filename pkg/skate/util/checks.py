"""Checks of arguments that several modules of skate.util take. No state."""

from __future__ import annotations

from typing import Any

from skate.options import as_index


def check_count(function: str, name: str, number: Any) -> int | None:
    """A number of things, 1 or more, or None: as Python's int. TypeError, ValueError."""
    if number is None:
        return None
    count = as_index(number)
    if count is None:
        raise TypeError(f"{function}(): {name} must be an int or None, got {number!r:.100}")
    if count < 1:
        raise ValueError(f"{function}(): {name} must be 1 or more, or None; got {count}")
    return count


def check_timeout(function: str, timeout: float | None) -> None:
    """Seconds, or None: without end. ValueError."""
    if timeout is not None and timeout < 0:
        raise ValueError(f"{function}(): timeout must be 0 or more seconds, or None; got {timeout!r}")
