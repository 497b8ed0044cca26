"""Ray, with its defaults but for the dashboard and the logs, which are off."""

from perf.contenders.raylike import RayLike

CONTENDER = RayLike("ray", is_rival=True)
