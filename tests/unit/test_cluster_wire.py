"""What node managers send one another, and the cluster's key: packed and unpacked, and everything that is neither."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skate._c import frames
from skate.core.roster import Row, check_report
from skate.driver.joining import cluster_config
from skate.ids import ProcessId
from skate.net import cluster_key
from skate.wire.cluster import (
    ACK,
    DATA,
    GREETING,
    HELLO,
    PIECE_BYTES,
    Envelope,
    WireError,
    join_address,
    pack_envelope,
    pack_letter,
    parse_address,
    unpack_envelope,
    unpack_letter,
)

KEY = "ab" * 32
process_ids = st.binary(min_size=8, max_size=8).map(ProcessId)
envelopes = st.builds(
    Envelope,
    st.sampled_from([ACK, DATA, GREETING]),
    process_ids,
    process_ids,
    *[st.integers(0, 2**64 - 1)] * 2,
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


# ------------------------------------------------------------------------------------------------ envelopes, letters


@given(envelope=envelopes, frame=st.binary(max_size=100))
def test_envelopes_come_out_as_they_went_in(envelope: Envelope, frame: bytes) -> None:
    parts = [bytes(part) for part in pack_envelope(envelope, frame)]
    assert unpack_envelope(parts) == (envelope, frame)


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, 3 * PIECE_BYTES + 7])
def test_large_frames_travel_in_pieces(size: int) -> None:
    envelope, frame = (
        Envelope(DATA, ProcessId(b"a" * 8), ProcessId(b"b" * 8), 1, 2),
        random.Random(1).randbytes(size),
    )
    parts = [bytes(part) for part in pack_envelope(envelope, frame)]
    assert max(map(len, parts)) <= PIECE_BYTES
    assert unpack_envelope(parts) == (envelope, frame)


@given(parts=st.lists(st.binary(max_size=60), max_size=4))
def test_random_parts_are_no_envelope(parts: list[bytes]) -> None:
    if parts:
        with pytest.raises(WireError):
            unpack_envelope(parts)


def test_every_truncation_and_every_other_version_is_refused() -> None:
    head, frame = map(
        bytes, pack_envelope(Envelope(DATA, ProcessId(b"a" * 8), ProcessId(b"b" * 8), 1, 2), b"x")
    )
    for length in range(len(head)):
        with pytest.raises(WireError):
            unpack_envelope([head[:length], frame])
    with pytest.raises(WireError):
        unpack_envelope([head])
    other = head[:2] + bytes([frames.VERSION + 1]) + head[3:]
    with pytest.raises(WireError, match=f"protocol {frames.VERSION + 1}, this node {frames.VERSION}"):
        unpack_envelope([other, frame])
    with pytest.raises(WireError, match="kind 9"):
        unpack_envelope([head[:3] + b"\x09" + head[4:], frame])


@given(content=st.dictionaries(st.text(), st.integers() | st.text()))
def test_letters_come_out_as_they_went_in(content: dict) -> None:
    assert unpack_letter(pack_letter(HELLO, content)) == content


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"7", b"\xff\xfe", b"nul", b"[" * 100_000, b'{"a":' * 100_000]
)
def test_what_is_no_letter_is_refused(text: bytes) -> None:
    with pytest.raises(WireError):
        unpack_letter([HELLO, text])
    with pytest.raises(WireError):
        unpack_letter([HELLO, b"{}", b"{}"])


def test_a_letter_is_plain_text_for_all_versions() -> None:
    """The form never changes: a node of any version can read who says hello, and say why not."""
    assert pack_letter(HELLO, {"protocol": 1}) == [b"hello", b'{"protocol": 1}']


@given(plain=anything)
def test_no_row_makes_trouble(plain: object) -> None:
    for wanted in (plain, dict.fromkeys(Row._fields, plain)):
        with pytest.raises(ValueError):
            Row.from_plain(wanted)


@given(available=anything, demands=anything)
def test_no_report_makes_trouble(available: object, demands: object) -> None:
    try:
        check_report(available, demands)
    except ValueError:
        return
    assert isinstance(available, dict)
    assert isinstance(demands, list)


# ------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:80", "127.0.0.1", 80), ("a-host.b:65535", "a-host.b", 65535), ("[fe80::1]:7", "fe80::1", 7)],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    assert join_address(host, port) == text


@pytest.mark.parametrize(
    "text",
    ["", ":", "host", "host:", ":80", "host:0", "host:65536", "host:-1", "host:8 0", "host:²", "fe80::1:7", "a b:80",
     "tcp://host:80", "host;rm:80", "ho/st:80"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


# --------------------------------------------------------------------------------------------------------- the key


def test_a_key_file_is_its_user_s_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "key")
    key = cluster_key.make_key()
    before = os.umask(0)
    try:
        cluster_key.write_key(path, key)
    finally:
        os.umask(before)
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert cluster_key.read_key(path) == key
    with pytest.raises(FileExistsError):
        cluster_key.write_key(path, key)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777])
def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_text(KEY)
    path.chmod(mode)
    with pytest.raises(PermissionError, match="chmod 600") as raised:
        cluster_key.read_key(str(path))
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("text", ["", "x", KEY[:-1], KEY + "0", "zz" * 32, " ".join(KEY)])
def test_what_is_no_key_is_not_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="64 hexadecimal digits") as raised:
        cluster_key.read_key(str(path))
    assert len(text) < 10 or text not in str(raised.value)


def test_where_the_key_is_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "key"
    cluster_key.write_key(str(path), KEY)
    other = "cd" * 32
    assert cluster_key.find_key(None, {}) is None
    assert cluster_key.find_key(None, {"SKATE_CLUSTER_KEY_FILE": str(path)}) == KEY
    assert cluster_key.find_key(None, {"SKATE_CLUSTER_KEY": f" {other}\n"}) == other
    assert cluster_key.find_key(str(path), {"SKATE_CLUSTER_KEY": other}) == KEY


def test_a_key_has_two_pairs_that_depend_on_it_alone() -> None:
    first, again, other = (cluster_key.keys_of(key) for key in (KEY, KEY, "cd" * 32))
    assert first == again
    assert len({*first.server, *first.client, *other.server, *other.client}) == 8


def test_what_a_node_needs_to_know_to_be_in_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SKATE_CLUSTER_KEY", raising=False)
    monkeypatch.delenv("SKATE_CLUSTER_KEY_FILE", raising=False)
    path = str(tmp_path / "key")
    head = cluster_config(key_file=path, node_ip="127.0.0.1", port=7)
    assert head == {"head": None, "host": "127.0.0.1", "port": 7, "key": head["key"], "key_file": path}
    assert cluster_key.read_key(path) == head["key"]
    assert cluster_config(key_file=path)["key"] == head["key"]
    assert cluster_config(head="localhost:7", key_file=path) == head | {"head": "localhost:7", "port": 0}
    assert cluster_config(insecure=True)["key"] is None
    assert cluster_config()["key"] != cluster_config()["key"]
    with pytest.raises(ValueError, match="--cluster-key-file"):
        cluster_config(head="127.0.0.1:7")
    with pytest.raises(ValueError, match="exclude"):
        cluster_config(insecure=True, key_file=path)
    with pytest.raises(ValueError, match="HOST:PORT"):
        cluster_config(head="nowhere", insecure=True)
    with pytest.raises(ValueError, match="port"):
        cluster_config(port=70_000)
    with pytest.raises(FileNotFoundError):
        cluster_config(head="127.0.0.1:7", key_file=str(tmp_path / "none"))
