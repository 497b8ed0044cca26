"""The file in which a cluster's head writes down what it must know again when it comes back: an SQLite database.

State: the connection, whose lock keeps others out as long as this process lives. Facts lie in one table, a row a kind
and key (core.ledger says what they are), packed as messages are, so nothing in the file is ever unpickled by who reads
it. Another table says whose file it is: format, Python, the head's address, the fingerprint of its cluster's key.

It is written in WAL mode with synchronous=NORMAL. A transaction is in the file when it is committed, so the death of
the process, at any moment, loses none. Only the loss of the machine's power may lose the last ones, whole, and then the
head's workers are lost as well; nodes that live on say what they have. FULL would save these few for a flush of the
disk (milliseconds) in each turn of the manager's loop.

Where nobody names a file, it lies in the folder of the user's sessions, under the first name that no running head has.
That one is for a crash: `skate stop` removes it. A file that was named is its user's, and stays.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from hashlib import blake2b
from typing import Final

from skate._c import frames
from skate.config import SESSIONS_FOLDER, VERSION
from skate.core.ledger import KINDS, Record
from skate.net.cluster_key import make_key, read_key, write_key
from skate.node.errors import CannotJoin

log = logging.getLogger("skate.node")

#: "skat", where SQLite keeps what program a file is of; and the number of this layout
APPLICATION: Final = 0x736B6174
FORMAT: Final = 1
#: names that are tried where nobody names a file
DEFAULT_NAMES: Final = tuple(f"head{number or ''}.sqlite" for number in (0, *range(2, 100)))
#: what SQLite and this module put beside a file
BESIDE: Final = ("-wal", "-shm", "-journal", ".key")

_HEADER: Final = b"SQLite format 3\0"
_APPLICATION_AT: Final = 68
_BODY: Final[list[bytes | None]] = [None, b"X"] + [None] * 254
_WAY_OUT: Final = "`--fresh` begins a new cluster there; `--state-file` names another file"


class StateError(CannotJoin):
    """The file cannot be used; the text says why, and the way out."""


class InUse(StateError):
    """A head that runs has the file."""


class StateFile:
    """An open state file. `close` it."""

    def __init__(self, path: str, *, fresh: bool = False, named: bool = True) -> None:
        """Opens the file, or makes it; with `fresh`, what it held is gone. `named`: the user has named it.

        StateError where that cannot be.
        """
        self.path = os.path.abspath(path)
        self.named = named
        #: what it says of the head that wrote it; empty in a new one
        self.about: dict[str, str] = {}
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        try:
            self._make_sure_it_is_ours()
            if fresh and not _is_locked(self.path):
                remove_state(self.path)
                self._make_sure_it_is_ours()
        except OSError as error:
            raise StateError(f"the state file {self.path} cannot be opened: {error}") from None
        self._database = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        try:
            self._open()
        except BaseException:
            self._database.close()
            raise

    def _make_sure_it_is_ours(self) -> None:
        """Makes it where it is not there, before SQLite would, which asks nobody who may read it."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:  # (closing it would drop SQLite's locks on it, had this process any)
            status, head = os.fstat(fd), os.pread(fd, 100, 0)
        finally:
            os.close(fd)
        if status.st_uid != os.getuid() or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise PermissionError(
                f"others can read or write it (mode {stat.S_IMODE(status.st_mode):04o}), and who writes it can run "
                f"programs on all nodes: chmod 600 {self.path}"
            )
        application = struct.unpack_from(">I", head, _APPLICATION_AT)[0] if len(head) == 100 else 0
        if head and (not head.startswith(_HEADER) or application not in (0, APPLICATION)):
            raise FileExistsError("it is no state file of skate's, and is left alone: name another one")

    def _open(self) -> None:
        database = self._database
        try:
            database.execute("PRAGMA locking_mode=EXCLUSIVE")
            database.execute("BEGIN EXCLUSIVE")  # the lock stays from here on
            database.execute("COMMIT")
            (layout,) = database.execute("PRAGMA user_version").fetchone()
            if layout == 0:
                self._lay_out()
            elif layout != FORMAT:
                raise StateError(
                    f"the state file {self.path} has format {layout}, this skate ({VERSION}) reads {FORMAT}: start the "
                    f"head with the skate that wrote it, or {_WAY_OUT}"
                )
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            (sound,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if sound != "ok":
                raise sqlite3.DatabaseError(sound)
            self.about = dict(database.execute("SELECT name, value FROM about"))
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                raise InUse(f"a head that runs has the state file {self.path}: name another one") from None
            raise StateError(f"the state file {self.path} cannot be used: {error}. {_WAY_OUT}") from None
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            raise StateError(f"the state file {self.path} is damaged: {error}. {_WAY_OUT}") from None
        python = self.about.get("python", _python())
        if python != _python():
            raise StateError(
                f"the state file {self.path} was written by Python {python}, this is {_python()}: its actors' classes "
                f"are pickled for the former. Start the head with that, or {_WAY_OUT}"
            )

    def _lay_out(self) -> None:
        """Before WAL mode, so that the file's first page says whose it is."""
        database = self._database
        database.execute(f"PRAGMA application_id={APPLICATION}")
        database.execute("BEGIN")
        database.execute("CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        database.execute(
            "CREATE TABLE facts (kind TEXT NOT NULL, key BLOB NOT NULL, body BLOB NOT NULL, PRIMARY KEY (kind, key))"
        )
        database.execute(f"PRAGMA user_version={FORMAT}")
        database.execute("COMMIT")

    def records(self) -> Iterator[Record]:
        """The facts that it holds. StateError where they cannot be read."""
        try:
            for kind, key, body in self._database.execute("SELECT kind, key, body FROM facts ORDER BY rowid"):
                if kind not in KINDS:
                    raise ValueError(f"a fact of kind {kind!r:.20}")
                [(_, (value,))] = frames.decode(body, _BODY)
                yield Record(kind, key, value)
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:  # FrameError is a ValueError
            raise StateError(f"the state file {self.path} is damaged: {error}. {_WAY_OUT}") from None

    def write(self, records: list[Record]) -> None:
        """All of them, or none. StateError where the disk does not take them."""
        execute = self._database.execute
        try:
            execute("BEGIN")
            for kind, key, body in records:
                if body is None:
                    execute("DELETE FROM facts WHERE kind = ? AND key = ?", (kind, key))
                else:
                    packed = frames.frame([frames.encode(1, b"X", (body,))])
                    execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (kind, key, packed))
            execute("COMMIT")
        except BaseException as error:
            with suppress(sqlite3.Error):
                execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise StateError(f"the state file {self.path} cannot be written: {error}") from None
            raise

    def belongs_to(self, address: str, key: str | None) -> None:
        """Writes down whose file it is from now on."""
        self.about = {"address": address, "python": _python(), "skate": VERSION, "key": fingerprint(key)}
        self._database.execute("BEGIN")
        self._database.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", self.about.items())
        self._database.execute("COMMIT")

    def key(self) -> tuple[str, str]:
        """(key, file) of a cluster whose key nobody gave: what was made for this file, or made now."""
        file = self.path + ".key"
        if not self.about:
            with suppress(FileNotFoundError):
                os.unlink(file)
        if not os.path.exists(file):
            if self.about:
                raise StateError(
                    f"the key of the cluster of the state file {self.path} is not in {file}: give it by "
                    f"--cluster-key-file, or {_WAY_OUT}"
                )
            write_key(file, make_key())
        return read_key(file), file

    def check_key(self, key: str | None) -> None:
        """StateError where the file is of a cluster with another key."""
        if self.about.get("key", fingerprint(key)) != fingerprint(key):
            raise StateError(
                f"the state file {self.path} is of a cluster with another key (or one of the two has none): its nodes "
                f"would not answer. Give that key by --cluster-key-file, or {_WAY_OUT}"
            )

    def closing(self) -> closing[StateFile]:
        """For a `with`."""
        return closing(self)

    def close(self, *, remove: bool = False) -> None:
        self._database.close()
        if remove:
            remove_state(self.path)


def fingerprint(key: str | None) -> str:
    """Tells keys apart, and tells nothing about them; empty for none."""
    return (
        "" if key is None else blake2b(bytes.fromhex(key), digest_size=8, person=b"skate-state").hexdigest()
    )


def open_state(path: str | None, *, fresh: bool, port: int) -> StateFile:
    """The state file at the path; where none is named, the first in the sessions' folder that no running head has,
    and that is new, or of a head that was at this port (0: at any). StateError."""
    if path is not None:
        state = StateFile(path, fresh=fresh)
        there = port_of(state)
        if port and there not in (0, port):
            state.close()
            raise StateError(
                f"the state file {state.path} is of the head at {state.about['address']}, where its nodes look for it: "
                f"leave --port out, or {_WAY_OUT}"
            )
        return state
    for name in DEFAULT_NAMES:
        try:
            state = StateFile(os.path.join(SESSIONS_FOLDER, name), fresh=fresh, named=False)
        except InUse:
            continue
        if port and port_of(state) not in (0, port):
            state.close()
            continue
        return state
    raise StateError(
        f"{len(DEFAULT_NAMES)} heads have state files in {SESSIONS_FOLDER}: name one by --state-file"
    )


def port_of(state: StateFile) -> int:
    """Where the head was reached; 0 in a new file."""
    return int(state.about.get("address", ":0").rpartition(":")[2])


def forget_crashed() -> int:
    """Removes what heads that run no more have left in the sessions' folder; gives how many there were."""
    removed = 0
    for name in DEFAULT_NAMES:
        path = os.path.join(SESSIONS_FOLDER, name)
        if os.path.exists(path) and not _is_locked(path):
            remove_state(path)
            removed += 1
    return removed


def _is_locked(path: str) -> bool:
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as database:
        try:
            database.execute("BEGIN EXCLUSIVE")
            database.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
        except sqlite3.DatabaseError:
            pass  # damaged
    return False


def remove_state(path: str) -> None:
    """With all that lies beside it."""
    for ending in ("", *BESIDE):
        with suppress(FileNotFoundError):
            os.unlink(path + ending)


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"
