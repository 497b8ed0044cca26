"""Checks of arguments that several modules of skate.util take. No state."""

from __future__ import annotations

from typing import Any


def check_count(function: str, name: str, number: Any) -> None:
    """A number of things, 1 or more, or None. TypeError, ValueError."""
    if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
        raise TypeError(f"{function}(): {name} must be an int or None, got {number!r:.100}")
    if number is not None and number < 1:
        raise ValueError(f"{function}(): {name} must be 1 or more, or None; got {number}")


def check_timeout(function: str, timeout: float | None) -> None:
    """Seconds, or None: without end. ValueError."""
    if timeout is not None and timeout < 0:
        raise ValueError(f"{function}(): timeout must be 0 or more seconds, or None; got {timeout!r}")
