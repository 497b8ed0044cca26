"""Ray, with its defaults but for the dashboard and the logs, which are off."""

from __future__ import annotations

from typing import Any

from perf.contenders.raylike import RayLike

#: At a quarter of a second each on two cores, and 45 MB: more would measure patience and swap.
MOST_ACTORS = 200


class Ray(RayLike):
    def actors(self, cls: type, count: int) -> list[Any]:
        if count > MOST_ACTORS:
            raise NotImplementedError(
                f"{count:,} actors are left out: a process each, they take minutes and tens of GB"
            )
        return super().actors(cls, count)


CONTENDER = Ray("ray", is_rival=True)
