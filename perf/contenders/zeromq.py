"""skate with its lanes turned off: every message goes by ZeroMQ, as between machines."""

from __future__ import annotations

import os
from typing import ClassVar

from perf.contenders.raylike import RayLike


class WithoutLanes(RayLike):
    not_encrypted: ClassVar = {"insecure": True}

    def start(self, num_cpus: int, store_bytes: int | None = None) -> None:
        os.environ["SKATE_LANES"] = "0"  # this process is one contender's, and the node inherits it
        super().start(num_cpus, store_bytes)


CONTENDER = WithoutLanes("zeromq", import_name="skate", is_rival=False)
