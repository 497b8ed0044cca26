"""skate itself."""

from concurrent.futures import Executor
from typing import ClassVar

from perf.contenders.raylike import RayLike


class Skate(RayLike):
    can = RayLike.can | {"parts", "nodes", "executor"}
    not_encrypted: ClassVar = {"insecure": True}

    def executor(self) -> Executor:
        return self.module.util.SkateExecutor()  # type: ignore[no-any-return]


CONTENDER = Skate("skate", is_rival=False)
