"""What is asked of nodes' labels: expressions, and whether a node's labels meet them. No state.

An expression is (label, operator, values), plain tuples so that they travel and hash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

IN: Final = "in"
NOT_IN: Final = "not in"
EXISTS: Final = "exists"
DOES_NOT_EXIST: Final = "does not exist"

Expression = tuple[str, str, tuple[str, ...]]
Expressions = tuple[Expression, ...]
_LIST = re.compile(r"in\((.*)\)")


def parse_selector(selector: Mapping[str, str] | None) -> Expressions:
    """The expressions of a `label_selector`: "value", "!value", "in(a, b)", "!in(a, b)" (checked in skate.options)."""
    return tuple((label, *_operator(wanted)) for label, wanted in sorted((selector or {}).items()))


def _operator(wanted: str) -> tuple[str, tuple[str, ...]]:
    operator, rest = (NOT_IN, wanted[1:]) if wanted.startswith("!") else (IN, wanted)
    several = _LIST.fullmatch(rest)
    if several is None:
        return operator, (rest,)
    return operator, tuple(value.strip() for value in several[1].split(","))


def matches(labels: Mapping[str, str], expressions: Iterable[Expression]) -> bool:
    """Whether all expressions hold. A label that is missing is in no list, so NOT_IN holds for it."""
    return all(_holds(labels.get(label), operator, values) for label, operator, values in expressions)


def _holds(value: str | None, operator: str, values: Iterable[str]) -> bool:
    if operator == IN:
        return value is not None and value in values
    if operator == NOT_IN:
        return value is None or value not in values
    if operator == EXISTS:
        return value is not None
    if operator == DOES_NOT_EXIST:
        return value is None
    raise ValueError(f"no operator on labels is called {operator!r}")
