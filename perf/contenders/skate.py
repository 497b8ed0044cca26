"""skate itself."""

from typing import ClassVar

from perf.contenders.raylike import RayLike


class Skate(RayLike):
    can = RayLike.can | {"parts", "nodes"}
    not_encrypted: ClassVar = {"insecure": True}


CONTENDER = Skate("skate", is_rival=False)
