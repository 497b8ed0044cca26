"""What belongs to Ray's `ray.util`: modules beside the core API."""

from skate.util import state

__all__ = ["state"]
