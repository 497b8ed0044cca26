"""skate itself."""

from perf.contenders.raylike import RayLike


class Skate(RayLike):
    can = RayLike.can | {"parts", "nodes"}


CONTENDER = Skate("skate", is_rival=False)
