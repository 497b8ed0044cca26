"""Numbers and names that more than one part of skate goes by. A leaf."""

from __future__ import annotations

import os
from typing import Final

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
