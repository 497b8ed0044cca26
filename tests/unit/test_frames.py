"""Records of typed fields and bytes: against a slow encoder in Python, and against everything that is no frame."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from skate._c import frames
from skate._c.frames import FrameError, decode, encode, frame
from skate.wire import messages
from skate.wire.messages import MESSAGES, SCHEMAS

settings.register_profile("frames", deadline=None, max_examples=150)
moderate = settings.get_profile("frames")

HEADER = b"sk" + bytes([frames.VERSION, 0])
MAX_DEPTH = 24

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
plain = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(),
        st.binary(max_size=20),
        text,
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(text, st.integers(0, 9)), inner, max_size=4),
    ),
    max_leaves=12,
)
FIELDS = {
    "P": st.binary(min_size=8, max_size=8),
    "T": st.binary(min_size=16, max_size=16),
    "O": st.binary(min_size=20, max_size=20),
    "B": st.binary(max_size=200),
    "S": text,
    "I": st.integers(-(2**63), 2**63 - 1),
    "D": st.floats(),
    "?": st.booleans(),
    "X": plain,
}


def letters(schema: bytes) -> str:
    return schema.decode()


def fields_of(schema: bytes) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(*(FIELDS[letter] for letter in letters(schema)))


records = st.sampled_from(sorted(MESSAGES)).flatmap(
    lambda code: st.tuples(st.just(code), fields_of(SCHEMAS[code] or b""))
)


# ------------------------------------------------------------------------------------------- the slow reference


def slow_any(value: Any) -> bytes:
    if value is None:
        return b"\0"
    if value is True:
        return b"\1"
    if value is False:
        return b"\2"
    if isinstance(value, int):
        return b"\3" + struct.pack("<q", value)
    if isinstance(value, float):
        return b"\4" + struct.pack("<d", value)
    if isinstance(value, bytes):
        return b"\5" + slow_field("B", value)
    if isinstance(value, str):
        return b"\6" + slow_field("S", value)
    if isinstance(value, dict):
        parts = [slow_any(part) for item in value.items() for part in item]
        return b"\x09" + struct.pack("<I", len(value)) + b"".join(parts)
    tag = b"\7" if isinstance(value, list) else b"\x08"
    return tag + struct.pack("<I", len(value)) + b"".join(slow_any(item) for item in value)


def slow_field(letter: str, value: Any) -> bytes:
    if letter == "B":
        return struct.pack("<I", len(value)) + bytes(value)
    if letter == "S":
        return slow_field("B", value.encode())
    if letter == "I":
        return struct.pack("<q", value)
    if letter == "D":
        return struct.pack("<d", value)
    if letter == "?":
        return bytes([value])
    if letter == "X":
        return slow_any(value)
    return bytes(value)


def slow_encode(code: int, schema: bytes, fields: tuple[Any, ...]) -> bytes:
    body = b"".join(slow_field(letter, value) for letter, value in zip(letters(schema), fields, strict=True))
    return bytes([code]) + struct.pack("<I", len(body)) + body


# ---------------------------------------------------------------------------------------------- what is right


@moderate
@given(st.lists(records, max_size=5))
def test_what_is_encoded_is_what_is_decoded_bit_for_bit(sent: list[tuple[int, tuple[Any, ...]]]) -> None:
    encoded = [encode(code, SCHEMAS[code] or b"", fields) for code, fields in sent]
    assert encoded == [slow_encode(code, SCHEMAS[code] or b"", fields) for code, fields in sent]
    whole = frame(encoded)
    assert whole == HEADER + b"".join(encoded)
    received = decode(whole, SCHEMAS)
    assert [code for code, _ in received] == [code for code, _ in sent]
    again = [encode(code, SCHEMAS[code] or b"", fields) for code, fields in received]
    assert again == encoded, "equal but for NaN, which equals nothing"
    assert repr(received) == repr(sent), "types and order come back too"


@pytest.mark.parametrize("code", sorted(MESSAGES))
def test_every_message_makes_the_round_trip(code: int) -> None:
    message = MESSAGES[code]

    @settings(deadline=None, max_examples=20)
    @given(fields_of(SCHEMAS[code] or b""))
    def check(fields: tuple[Any, ...]) -> None:
        record = messages.encode(message(*fields))
        ((received_code, received),) = decode(frame([record]), SCHEMAS)
        assert received_code == code
        assert repr(message(*received)) == repr(message(*fields))

    check()


def test_an_empty_frame_has_no_records() -> None:
    assert decode(HEADER, SCHEMAS) == []


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_values_nest_as_deep_as_it_says_and_no_deeper() -> None:
    record = encode(1, b"X", (nested(MAX_DEPTH),))
    schemas = [None, b"X"]
    assert decode(frame([record]), schemas) == [(1, (nested(MAX_DEPTH),))]
    with pytest.raises(FrameError, match="deeper"):
        encode(1, b"X", (nested(MAX_DEPTH + 1),))
    for depth in (MAX_DEPTH + 1, 100, 100_000):
        body = (b"\7" + struct.pack("<I", 1)) * depth + b"\0"
        with pytest.raises(FrameError, match="deeper"):
            decode(HEADER + b"\1" + struct.pack("<I", len(body)) + body, schemas)


# ---------------------------------------------------------------------------------------------- what is wrong


@moderate
@given(st.lists(records, min_size=1, max_size=2))
def test_every_truncation_is_refused_or_ends_between_records(sent: list[tuple[int, tuple[Any, ...]]]) -> None:
    encoded = [encode(code, SCHEMAS[code] or b"", fields) for code, fields in sent]
    whole = frame(encoded)
    ends = {len(HEADER) + sum(map(len, encoded[:count])) for count in range(len(encoded) + 1)}
    for length in range(len(whole)):
        if length in ends:
            assert len(decode(whole[:length], SCHEMAS)) < len(sent)
        else:
            with pytest.raises(FrameError):
                decode(whole[:length], SCHEMAS)


def refused_or_decoded(data: bytes) -> None:
    """The one thing that decode may raise is FrameError; what it accepts, it gives back as it was."""
    try:
        received = decode(data, SCHEMAS)
    except FrameError:
        return
    for code, fields in received:
        encode(code, SCHEMAS[code] or b"", fields)


@settings(deadline=None, max_examples=600)
@given(st.binary(max_size=80), st.sampled_from([b"", HEADER, b"sk", HEADER + b"\x17"]))
@example(b"", b"")
def test_random_bytes_are_refused(noise: bytes, start: bytes) -> None:
    refused_or_decoded(start + noise)


@settings(deadline=None, max_examples=400)
@given(records, st.data())
def test_a_frame_with_bytes_changed_is_refused_or_means_something_else(
    sent: Any, data: st.DataObject
) -> None:
    code, fields = sent
    whole = bytearray(frame([encode(code, SCHEMAS[code] or b"", fields)]))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(
            st.sampled_from([0, 1, 9, 10, 0x7F, 0x80, 0xFF])
        )
    refused_or_decoded(bytes(whole))


@pytest.mark.parametrize("length", [1, 2**16, 2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("letter", ["B", "S", "X5", "X6", "X7", "X8", "X9"])
def test_lengths_beyond_the_frame_are_refused_without_allocating(letter: str, length: int) -> None:
    tag = bytes([int(letter[1])]) if len(letter) == 2 else b""
    body = tag + struct.pack("<I", length)
    data = HEADER + b"\1" + struct.pack("<I", len(body)) + body
    with pytest.raises(FrameError, match="truncated"):
        decode(data, [None, letter[:1].encode()])
    with pytest.raises(FrameError, match="truncated"):
        decode(HEADER + b"\1" + struct.pack("<I", length), [None, b"B"])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "truncated"),
        (b"sk", "truncated"),
        (b"SK\1\0", "no skate frame"),
        (b"sk" + bytes([frames.VERSION + 1, 0]), "protocol"),
        (HEADER + b"\1\0\0\0", "truncated"),
        (HEADER + b"\2\0\0\0\0", "unknown message 2"),
        (HEADER + b"\xff\0\0\0\0", "unknown message 255"),
        (HEADER + b"\1\2\0\0\0\1\1", "too many"),
        (HEADER + b"\1\1\0\0\0\2", "a bool"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, why: str) -> None:
    with pytest.raises(FrameError, match=why):
        decode(data, [None, b"?"])


@pytest.mark.parametrize("key", [b"\7\0\0\0\0", b"\x09\0\0\0\0", b"\x08\1\0\0\0\7\0\0\0\0"])
def test_a_dict_with_a_key_that_cannot_be_hashed_is_refused(key: bytes) -> None:
    body = b"\x09\1\0\0\0" + key + b"\0\0\0\0\0"
    with pytest.raises(FrameError):
        decode(HEADER + b"\1" + struct.pack("<I", len(body)) + body, [None, b"X"])
    body = b"\x09\1\0\0\0" + key + b"\0"
    with pytest.raises(FrameError, match="hashable"):
        decode(HEADER + b"\1" + struct.pack("<I", len(body)) + body, [None, b"X"])


def test_an_unknown_tag_and_text_that_is_not_utf8_are_refused() -> None:
    for schema, body in ((b"X", b"\x0a"), (b"S", b"\1\0\0\0\xff"), (b"X", b"\6\1\0\0\0\xff")):
        with pytest.raises(FrameError):
            decode(HEADER + b"\1" + struct.pack("<I", len(body)) + body, [None, schema])


class Odd:
    """What no message may carry, and what an error cannot even show."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    def __index__(self) -> int:
        raise RuntimeError("no number")

    __float__ = __index__


class OddInt(int):
    __float__ = __index__ = Odd.__index__  # type: ignore[assignment]


WRONG = [
    None,
    True,
    1,
    2**63,
    -(2**63) - 1,
    10**5000,
    1.5,
    "text",
    "\ud800",
    b"",
    b"x" * 7,
    b"x" * 21,
    bytearray(20),
]
WRONG += [
    Odd(),
    OddInt(1),
    object,
    {1},
    [Odd()],
    [10**5000],
    ("\ud800",),
    {"a": Odd()},
    {Odd(): 1},
    memoryview(b""),
]


@pytest.mark.parametrize("letter", FIELDS)
def test_values_of_the_wrong_type_are_refused_and_nothing_else_is_raised(letter: str) -> None:
    for value in WRONG:
        try:
            record = encode(1, letter.encode(), (value,))
        except FrameError:
            continue
        assert record == slow_encode(1, letter.encode(), (value,)), f"{letter} took {value!r:.80}"


REFUSED: dict[str, list[Any]] = {
    "P": [b"1234567", "12345678"],
    "T": [b""],
    "O": ["x" * 20, None],
    "B": ["text", bytearray(1)],
    "S": [b"bytes", "\ud800"],
    "I": [1.0, "1", None, 2**63, 10**5000, Odd()],
    "D": ["1", 10**400, None, Odd()],
    "?": [1, None, Odd()],
    "X": [2**63, 10**5000, {1}, "\ud800", Odd(), bytearray()],
}


@pytest.mark.parametrize("letter", REFUSED)
def test_a_field_refuses_what_does_not_fit_it(letter: str) -> None:
    for value in REFUSED[letter]:
        with pytest.raises(FrameError):
            encode(1, letter.encode(), (value,))


@pytest.mark.parametrize("fields", [(), (1, 2), [1], None, Odd()])
def test_the_number_of_fields_must_be_right(fields: Any) -> None:
    with pytest.raises(FrameError):
        encode(1, b"I", fields)


@pytest.mark.parametrize("code", [0, -1, 256, 1000])
def test_a_code_is_one_byte_and_not_zero(code: int) -> None:
    with pytest.raises(FrameError):
        encode(code, b"", ())


def test_what_is_no_bytes_is_a_type_error_and_no_crash() -> None:
    for call in (
        lambda: decode(None, SCHEMAS),
        lambda: decode(bytearray(HEADER), SCHEMAS),
        lambda: decode(HEADER, None),
        lambda: encode(1, None, ()),
        lambda: frame(None),
    ):
        with pytest.raises(TypeError):
            call()
