"""Numbers and names that more than one part of skate goes by. A leaf."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

#: of skate itself
VERSION: Final = "0.1.0"
#: packed values up to this size live with their owner and travel inside messages; larger ones go to the store
INLINE_BYTES: Final = 100_000
#: seconds of silence after which what waits for a peer leaves at once
CORK_SECONDS: Final = 0.0005
#: seconds between two looks into the inbox by a thread that is busy submitting or running short tasks
GLANCE_SECONDS: Final = 0.0005
#: the parent folder of all sessions' folders: sockets, logs, records of who runs
SESSIONS_FOLDER: Final = os.path.join(os.environ.get("SKATE_TMPDIR", "/tmp"), f"skate-{os.getuid()}")
#: what full stores spill to, in a session's folder: a folder, or a link to the one that was asked for
SPILL_FOLDER: Final = "spill"
#: the label that each node has, its id in hexadecimal: Ray's name, so that its programs find it
NODE_ID_LABEL: Final = "ray.io/node-id"

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
            if text is not None:
                try:
                    knobs[name] = text.lower() in ("1", "true") if kind is bool else kind(text)
                except ValueError:
                    raise ValueError(f"{variable} must be a number, got {text!r}") from None
                break
    return knobs
