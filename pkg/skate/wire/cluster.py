"""What travels between the node managers of a cluster: the letters of joining, and envelopes. No state.

A letter is a ZeroMQ message of two parts: its kind in plain text and a JSON object. Letters are what a node says before
it knows whether the other speaks its protocol, so their form never changes: fields may be added, none taken away.

    hello      a node wants to join, or is back: who it is, what it speaks, what it has; a word that nobody else knows
    welcome    the head's answer: who the head is, and the table of nodes
    refused    the head's other answer: why not

An answer repeats, as `to`, the word that stood in the hello as `ask`: so it comes from who was asked.

Everything else travels in envelopes, which belong to a protocol version as frames do:

    "sk"  version  kind  sender (8)  receiver (8)  number (8)  acknowledged (8)  | pieces of a frame

DATA carries a frame from a process of the sending node to one of the receiving node, numbered from 1 (see
core.delivery); BULK does as well, in one piece, and bytes of an object after it, which are copied neither into the
frame nor out of it; ACK carries none; GREETING, the first on each link, carries the address of the sender.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from skate._c import frames
from skate.ids import PROCESS_ID_BYTES, ProcessId

HELLO: Final = b"hello"
WELCOME: Final = b"welcome"
REFUSED: Final = b"refused"
LETTERS: Final = frozenset({HELLO, WELCOME, REFUSED})

ACK: Final = 0
DATA: Final = 1
GREETING: Final = 2
BULK: Final = 3

#: bytes of the longest letter: a table of 10,000 nodes
LETTER_BYTES: Final = 8 << 20
#: a frame goes over TCP in pieces of this size, so that a heartbeat never waits long behind one
PIECE_BYTES: Final = 128 << 10

_ENVELOPE = struct.Struct(f"<2sBB{PROCESS_ID_BYTES}s{PROCESS_ID_BYTES}sQQ")


class WireError(ValueError):
    """What came is no message between node managers of this protocol."""


class Envelope(NamedTuple):
    """What stands before a frame."""

    kind: int
    sender: ProcessId
    to: ProcessId
    number: int  #: DATA and BULK: its place in all that this node sends to that one
    acknowledged: int  #: the number of the last one that came from there


def pack_letter(kind: bytes, content: dict[str, Any]) -> list[bytes]:
    return [kind, json.dumps(content).encode()]


def addressed(letter: list[bytes], ask: str) -> list[bytes]:
    """The letter, which has some content, as the answer to the hello with that word."""
    kind, content = letter
    return [kind, b"".join((b'{"to": ', json.dumps(ask).encode(), b", ", memoryview(content)[1:]))]


def unpack_letter(parts: Sequence[bytes]) -> dict[str, Any]:
    """The content of a letter. WireError where it is none."""
    if len(parts) != 2 or len(parts[1]) > LETTER_BYTES:
        raise WireError(f"a letter of {len(parts)} parts and {sum(map(len, parts))} bytes")
    try:
        content = json.loads(parts[1])
    except (ValueError, RecursionError) as error:
        raise WireError(f"no letter: {error}") from None
    if not isinstance(content, dict):
        raise WireError(f"a letter holds an object, not {content!r:.40}")
    return content


def pack_envelope(envelope: Envelope, frame: bytes = b"") -> list[bytes | memoryview]:
    """The parts of the message."""
    kind, sender, to, number, acknowledged = envelope
    head = _ENVELOPE.pack(b"sk", frames.VERSION, kind, sender, to, number, acknowledged)
    if len(frame) <= PIECE_BYTES:
        return [head, frame]
    view = memoryview(frame)
    return [head, *(view[at : at + PIECE_BYTES] for at in range(0, len(frame), PIECE_BYTES))]


def is_bulk(head: bytes | memoryview) -> bool:
    """Whether this begins an envelope of kind BULK, whose third part is bytes of an object."""
    return len(head) == _ENVELOPE.size and head[3] == BULK


def unpack_envelope(parts: Sequence[bytes]) -> tuple[Envelope, bytes]:
    """(envelope, frame), without the bytes of an object. WireError for anything else, and for another protocol's."""
    if len(parts) < 2 or len(parts[0]) != _ENVELOPE.size:
        raise WireError(f"a message of {len(parts)} parts that is no envelope: {bytes(parts[0][:8])!r}")
    magic, version, kind, sender, to, number, acknowledged = _ENVELOPE.unpack(parts[0])
    if magic != b"sk":
        raise WireError(f"no envelope: it begins with {magic!r}")
    if version != frames.VERSION:
        raise WireError(f"the sender speaks protocol {version}, this node {frames.VERSION}")
    if kind > BULK:
        raise WireError(f"an envelope of unknown kind {kind}")
    if kind == BULK and len(parts) != 2:
        raise WireError(f"bytes of an object beside a frame in {len(parts) - 1} pieces")
    frame = parts[1] if len(parts) == 2 else b"".join(parts[1:])
    return Envelope(kind, ProcessId(sender), ProcessId(to), number, acknowledged), frame


def parse_address(text: str) -> tuple[str, int]:
    """("host", port) of "host:port" or "[v6]:port". ValueError for anything else."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"an address is HOST:PORT, not {text!r}")
    if any(not character.isalnum() and character not in ".:-_%" for character in host):
        raise ValueError(f"{host!r} is no host's name or address")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
