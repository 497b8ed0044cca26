"""Numbers and names that more than one part of skate goes by. A leaf."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, TypeAlias

#: in seconds, and on the clock of skate._c.clock; None: for ever. (Names, as Cython makes a C type of `float | None`.)
Timeout: TypeAlias = float | None
Deadline: TypeAlias = float | None

#: of skate itself
VERSION: Final = "0.1.0"
#: packed values up to this size live with their owner and travel inside messages; larger ones go to the store, for
#: within a node the one copy into it costs less than the several that a message makes
INLINE_BYTES: Final = 30_000
#: and what is on its way to another node, where a message costs less than to fetch an object
INLINE_BETWEEN_NODES: Final = 100_000
#: seconds of silence after which what waits for a peer leaves at once
CORK_SECONDS: Final = 0.0005
#: seconds between two looks into the inbox by a thread that is busy submitting or running short tasks
GLANCE_SECONDS: Final = 0.0005
#: bytes that the path of a Unix socket may have, and those of a session's folder and a process's name in it
SOCKET_PATH_BYTES: Final = 107
NAME_BYTES: Final = len("/0123456789ab/0123456789abcdef")
#: what full stores spill to, in a session's folder: a folder, or a link to the one that was asked for
SPILL_FOLDER: Final = "spill"
#: the label that each node has, its id in hexadecimal: Ray's name, so that its programs find it
NODE_ID_LABEL: Final = "ray.io/node-id"


def _temporary_folder(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """The folder in which `name` is to be: what SKATE_TMPDIR says, or RAY_TMPDIR; else TMPDIR, if that is a folder that
    this user can write to and the paths of sockets in it are short enough; else /tmp.
    """
    said = environ.get("SKATE_TMPDIR") or environ.get("RAY_TMPDIR")
    if said:
        with suppress(
            FileNotFoundError
        ):  # the working directory was removed: whoever makes a session says so
            said = os.path.abspath(said)
        return said
    usual = environ.get("TMPDIR", "")
    short = len(os.fsencode(os.path.join(usual, name))) + NAME_BYTES <= SOCKET_PATH_BYTES
    if short and os.path.isabs(usual) and os.path.isdir(usual) and os.access(usual, os.W_OK | os.X_OK):
        return usual
    return "/tmp"


_FOLDER_NAME: Final = f"skate-{os.getuid()}"
#: the parent folder of all sessions' folders: sockets, logs, records of who runs
SESSIONS_FOLDER: Final = os.path.join(_temporary_folder(_FOLDER_NAME), _FOLDER_NAME)

_KNOBS: Final[Mapping[str, type]] = {
    "spread_threshold": float,
    "top_k_fraction": float,
    "top_k_absolute": int,
    "avoid_gpu_nodes": bool,
}


def scheduler_knobs(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What SKATE_scheduler_spread_threshold and its kin, or Ray's RAY_scheduler_…, say of how nodes are chosen.

    Only what is set; core.policies has the defaults. Raises ValueError for what is no number.
    """
    knobs: dict[str, Any] = {}
    for name, kind in _KNOBS.items():
        for variable in (f"SKATE_scheduler_{name}", f"RAY_scheduler_{name}"):
            text = environ.get(variable)
            if text:  # an empty variable is not set
                try:
                    knobs[name] = text.lower() in ("1", "true") if kind is bool else kind(text)
                except ValueError:
                    raise ValueError(f"{variable} must be a number, got {text!r}") from None
                break
    return knobs
