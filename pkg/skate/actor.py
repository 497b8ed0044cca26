"""Ray's module of this name: what programs import from `ray.actor`."""

from skate.api.actor_class import ActorClass, method
from skate.api.actor_handle import ActorHandle, ActorMethod
from skate.api.actors import exit_actor

__all__ = ["ActorClass", "ActorHandle", "ActorMethod", "exit_actor", "method"]
