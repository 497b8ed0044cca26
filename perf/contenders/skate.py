"""skate itself."""

from perf.contenders.raylike import RayLike

CONTENDER = RayLike("skate", is_rival=False)
