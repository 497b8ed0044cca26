"""The cluster's key: 32 random bytes that all nodes of a cluster hold, and nobody else.

From them come two CURVE key pairs, one for whoever binds a socket and one for whoever connects. Both sides prove that
they hold theirs, so who has not the key is not answered. No state; the key lies in files that only their user can read,
as hexadecimal text.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from hashlib import blake2b
from typing import Final, NamedTuple

import zmq
from zmq.utils import z85

KEY_BYTES: Final = 32
#: where the key of a cluster that was started here lies, in the head's session folder
KEY_FILE: Final = "cluster.key"
#: the key itself, and where it lies
KEY_VARIABLE: Final = "SKATE_CLUSTER_KEY"
KEY_FILE_VARIABLE: Final = "SKATE_CLUSTER_KEY_FILE"


class KeyPair(NamedTuple):
    """A CURVE key pair, in Z85 as ZeroMQ takes it."""

    public: bytes
    secret: bytes


class Keys(NamedTuple):
    """Both pairs of a cluster."""

    server: KeyPair
    client: KeyPair


def make_key() -> str:
    """A new key, as text."""
    return secrets.token_hex(KEY_BYTES)


def check_key(text: str, where: str) -> str:
    """The key without white space. ValueError, which does not show it, where it is none."""
    key = text.strip().lower()
    try:
        if len(bytes.fromhex(key)) == KEY_BYTES and len(key) == 2 * KEY_BYTES:
            return key
    except ValueError:
        pass
    raise ValueError(f"{where} holds no cluster key: that is {2 * KEY_BYTES} hexadecimal digits")


def keys_of(key: str) -> Keys:
    """The key pairs that come from a key."""
    return Keys(_pair(key, b"skate-server"), _pair(key, b"skate-client"))


def _pair(key: str, purpose: bytes) -> KeyPair:
    secret = z85.encode(blake2b(bytes.fromhex(key), digest_size=32, person=purpose).digest())
    return KeyPair(zmq.curve_public(secret), secret)


def write_key(path: str, key: str) -> None:
    """Makes a file that only this user can read. FileExistsError where there is one."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.fchmod(fd, 0o600)  # whatever the umask takes away
    with open(fd, "w") as file:
        file.write(key + "\n")


def read_key(path: str) -> str:
    """The key in a file. PermissionError where others may read it, other OSErrors and ValueError where it is none."""
    with open(path) as file:
        mode = os.fstat(file.fileno()).st_mode
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise PermissionError(
                f"{path} can be read or written by others (mode {stat.S_IMODE(mode):04o}), and who has the cluster's "
                f"key can run programs on all its nodes: chmod 600 {path}"
            )
        return check_key(file.read(4096), path)


def find_key(path: str | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The key that was given: in the file at `path`, else by a variable; None where by neither. As `read_key`."""
    if path:
        return read_key(path)
    if environ.get(KEY_VARIABLE):
        return check_key(environ[KEY_VARIABLE], f"the variable {KEY_VARIABLE}")
    if environ.get(KEY_FILE_VARIABLE):
        return read_key(environ[KEY_FILE_VARIABLE])
    return None
