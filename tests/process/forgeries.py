"""Every message there is, with each field replaced by all that its schema lets through and that makes no sense."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from skate.ids import process_id
from skate.wire.messages import MESSAGES

#: what a field of any type may be
PLAIN: list[Any] = [
    None, True, -1, 2**62, 1.5, float("nan"), "text", b"bytes", [], {}, (), [1], [None], [[1, 2], 3], [(b"x", 1)],
    {"CPU": "many"}, {"CPU": -1}, {"CPU": 10_000}, {"a": {"b": None}}, {"resources": {}, "devices": {}},
    {"max_restarts": 0, "environment": None}, {"id": "x", "driver": "zz"}, [b"x" * 20, [1]], {1: 2},
    [[b"x" * 20, 5, [b"abcd"]]],
    ["a"] * 20, [{"bundles": [{"CPU": 1}]}],
]  # fmt: skip


def values(letter: str, me: bytes) -> list[Any]:
    """For a field with this letter in the schema; `me` is who forges."""
    stranger = bytes(process_id(me[:4], 4_000_000))  # type: ignore[arg-type]
    own = bytes(me) + bytes(7) + b"\x77"
    return {
        "I": [7, 0, -1, -(2**63), 2**63 - 1],
        "B": [b"", b"x" * 30, b"\x80", stranger],
        "S": ["x", "", "no json", "{}", "[]", '{"pid": 1}'],
        "D": [0.0, float("nan"), float("-inf")],
        "?": [False, True],
        "P": [stranger, b"\xff" * 8],
        "T": [stranger + bytes(8), own],
        "O": [stranger + bytes(12), own + bytes(4)],
        "X": PLAIN,
    }[letter]


def forgeries(me: bytes, skip: Collection[type[Any]] = ()) -> Iterator[Any]:
    """From `me`; without those of `skip`, which mean what they say, whoever sends them."""
    for message in MESSAGES.values():
        if message in skip:
            continue
        letters = [chr(letter) for letter in message.schema]
        plain = [values(letter, me)[0] for letter in letters]
        own = [values(letter, me)[1 if letter in "TO" else 0] for letter in letters]
        for fields in (plain, own):
            for at, letter in enumerate(letters):
                for value in values(letter, me):
                    yield message(*fields[:at], value, *fields[at + 1 :])
            for value in PLAIN if letters.count("X") > 1 else ():
                yield message(
                    *[
                        value if letter == "X" else field
                        for letter, field in zip(letters, fields, strict=True)
                    ]
                )
