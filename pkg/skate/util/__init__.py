"""What belongs to Ray's `ray.util`: modules beside the core API."""

from skate.api.actors import list_named_actors
from skate.util import state

__all__ = ["list_named_actors", "state"]
