"""The file of a cluster's head: what it refuses, and what is in it after a crash at any byte."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from skate.config import SESSIONS_FOLDER
from skate.core.ledger import NAME, Ledger, Record
from skate.ids import ActorId, NodeId
from skate.node import state_file
from skate.node.state_file import InUse, StateError, StateFile, forget_crashed, open_state

KEY = "ab" * 32


def transactions() -> list[list[Record]]:
    """What a head might write, turn after turn."""
    ledger = Ledger()
    written = []
    for number in range(12):
        node = NodeId(bytes([1, 2, 3, number]))
        actor = ActorId(node + bytes(12))  # type: ignore[arg-type]
        ledger.node_listed(node, {"node": node.hex(), "labels": {"n": str(number)}})
        ledger.name_taken(actor, f"name{number}", "x", bytes(300 * number))
        if number % 3 == 2:
            ledger.name_freed(f"name{number - 1}", "x")
        written.append(ledger.take_records())
    return written


def facts_after(written: list[list[Record]]) -> list[dict]:
    """Of each prefix of them."""
    return [
        Ledger(record for turn in written[:count] for record in turn).facts()
        for count in range(len(written) + 1)
    ]


def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    path = str(tmp_path / "deep" / "head.sqlite")
    written = transactions()
    file = StateFile(path)
    assert file.about == {}
    file.belongs_to("127.0.0.1:7", KEY)
    for records in written:
        file.write(records)
    file.close()
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
    assert os.stat(path).st_mode & 0o777 == 0o600
    again = StateFile(path)
    assert Ledger(again.records()).facts() == facts_after(written)[-1]
    assert again.about["address"] == "127.0.0.1:7"
    again.check_key(KEY)
    with pytest.raises(StateError, match="another key"):
        again.check_key("cd" * 32)
    with pytest.raises(StateError, match="another key"):
        again.check_key(None)
    again.close(remove=True)
    assert os.listdir(os.path.dirname(path)) == []


def test_a_transaction_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """As left by a crash of the machine: of what was written last, any number of bytes."""
    path = str(tmp_path / "head.sqlite")
    written = transactions()
    file = StateFile(path)
    for records in written:
        file.write(records)
    crashed = tmp_path / "crashed"
    crashed.mkdir(mode=0o700)
    log = Path(path + "-wal").read_bytes()
    possible = facts_after(written)
    seen = set()
    for size in {*range(0, len(log), max(1, len(log) // 150)), len(log)}:
        copy = str(crashed / "head.sqlite")
        shutil.copy(path, copy)
        Path(copy + "-wal").write_bytes(log[:size])
        left = StateFile(copy)
        facts = Ledger(left.records()).facts()
        assert facts in possible
        seen.add(possible.index(facts))
        left.close(remove=True)
    file.close()
    assert len(seen) > len(written) // 2
    assert len(written) in seen


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    file = StateFile(str(tmp_path / "head.sqlite"))
    with pytest.raises(ValueError, match="cannot put a object"):
        file.write([Record(NAME, b"a", 1), Record(NAME, b"b", object())])
    assert list(file.records()) == []
    file.write([Record(NAME, b"a", 1)])
    assert list(file.records()) == [Record(NAME, b"a", 1)]
    file.close()


def test_one_head_a_file(tmp_path: Path) -> None:
    path = str(tmp_path / "head.sqlite")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nfrom skate.node.state_file import StateFile\n"
            "file = StateFile(sys.argv[1])\nfile.belongs_to('127.0.0.1:7', None)\nprint('open', flush=True)\ninput()",
            path,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        holder.stdout.readline()
        for fresh in (False, True):
            with pytest.raises(InUse, match="a head that runs has the state file"):
                StateFile(path, fresh=fresh)
        holder.kill()  # and with it the lock
        holder.wait()
        with StateFile(path).closing() as file:
            assert file.about["address"] == "127.0.0.1:7"
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()


def test_what_is_no_state_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("buy milk\n" * 100)
    path.chmod(0o600)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as database:
        database.execute("PRAGMA application_id=7")
        database.execute("CREATE TABLE mine (a)")
    database.close()
    other.chmod(0o600)
    for file in (path, other):
        before = file.read_bytes()
        for fresh in (False, True):
            with pytest.raises(StateError, match="no state file of skate's, and is left alone: name another"):
                StateFile(str(file), fresh=fresh)
        assert file.read_bytes() == before


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.sqlite"
    StateFile(str(path)).close()
    path.chmod(0o640)
    with pytest.raises(StateError, match=r"others can read or write it \(mode 0640\).*chmod 600"):
        StateFile(str(path))


def test_a_damaged_file_names_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "head.sqlite"
    file = StateFile(str(path))
    for records in transactions():
        file.write(records)
    file.close()
    sound = path.read_bytes()
    path.write_bytes(sound[:100] + os.urandom(len(sound) - 100))
    with pytest.raises(StateError, match=r"is damaged: .*`--fresh` begins a new cluster.*`--state-file`"):
        StateFile(str(path))
    with StateFile(str(path), fresh=True).closing() as file:
        assert list(file.records()) == []


def test_a_fact_that_cannot_be_read_names_the_way_out(tmp_path: Path) -> None:
    for kind, body in (("name", b"rubbish"), ("wish", b"sk\1\0")):
        path = str(tmp_path / f"{kind}.sqlite")
        StateFile(path).close()
        with sqlite3.connect(path) as database:
            database.execute("INSERT INTO facts VALUES (?, x'00', ?)", (kind, body))
        database.close()
        with StateFile(path).closing() as file, pytest.raises(StateError, match=r"is damaged.*--fresh"):
            list(file.records())


def test_another_version_s_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "head.sqlite")
    with StateFile(path).closing() as file:
        file.belongs_to("127.0.0.1:7", None)
    monkeypatch.setattr(state_file, "_python", lambda: "2.7")
    with pytest.raises(StateError, match=r"was written by Python 3\.\d+, this is 2.7.*--fresh"):
        StateFile(path)
    monkeypatch.undo()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version=9")
    database.close()
    with pytest.raises(StateError, match=r"has format 9, this skate \(.*\) reads 1.*--fresh"):
        StateFile(path)
    StateFile(path, fresh=True).close()


def test_the_key_that_was_made_for_it(tmp_path: Path) -> None:
    path = str(tmp_path / "head.sqlite")
    with StateFile(path).closing() as file:
        key, where = file.key()
        file.belongs_to("127.0.0.1:7", key)
    with StateFile(path).closing() as file:
        assert file.key() == (key, where)
    os.unlink(where)
    with (
        StateFile(path).closing() as file,
        pytest.raises(StateError, match=r"is not in .*--cluster-key-file"),
    ):
        file.key()
    with StateFile(path, fresh=True).closing() as file:
        assert file.key()[0] != key


def test_a_port_that_is_not_the_head_s(tmp_path: Path) -> None:
    path = str(tmp_path / "head.sqlite")
    with StateFile(path).closing() as file:
        file.belongs_to("127.0.0.1:7", None)
    with pytest.raises(StateError, match=r"of the head at 127.0.0.1:7.*leave --port out, or `--fresh`"):
        open_state(path, fresh=False, port=8)
    for port in (0, 7):
        open_state(path, fresh=False, port=port).close()


def test_where_no_file_is_named() -> None:
    os.makedirs(SESSIONS_FOLDER, mode=0o700, exist_ok=True)
    first = open_state(None, fresh=False, port=0)
    first.belongs_to("127.0.0.1:7", None)
    first.close()
    with open_state(None, fresh=False, port=8).closing() as second:
        assert second.path != first.path, "another head's is left to it"
    with open_state(None, fresh=False, port=0).closing() as taken_up:
        assert taken_up.path == first.path
        assert not taken_up.named
    with open_state(None, fresh=True, port=8).closing() as fresh:
        assert (fresh.path, fresh.about) == (first.path, {})
    assert forget_crashed() == 2
    assert forget_crashed() == 0
