"""What programs ask about actors that exist: by name, to end them, from inside. No state."""

from __future__ import annotations

from typing import Any

from skate.api.actor_handle import ActorHandle, ActorType
from skate.api.session import require_runtime
from skate.exceptions import ActorExit
from skate.runtime import current


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """A handle of the living actor that has this name, in this namespace (None: the program's own). Blocks shortly.

    The handle does not keep the actor alive. Raises ValueError where there is none, and for what is no name, as Ray
    does; TypeError for a namespace that is no str.
    """
    if not name or not isinstance(name, str):
        raise ValueError(f"get_actor() takes the name of an actor, a str that is not empty; got {name!r}")
    if namespace is not None and not isinstance(namespace, str):
        raise TypeError(f"namespace must be a str or None, got {namespace!r}")
    if namespace == "":
        raise ValueError("namespace must not be empty; leave it out for the program's own")
    runtime = require_runtime()
    assert current.facts is not None
    space = namespace or current.facts.namespace
    found = runtime.actors.find(name, space)
    if found is None:
        raise ValueError(
            f"Failed to look up actor with name {name!r} in namespace {space!r}: no living actor has it. "
            "Names are per namespace: init(namespace=...) or get_actor(name, namespace=...) choose it."
        )
    actor, about = found
    return ActorHandle(actor, None, ActorType.from_about(about))


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """Ends an actor's process at once: no `__del__` or atexit handler runs, pending calls fail. Does not block.

    With `no_restart=False` it starts again, if its `max_restarts` allow. Raises ValueError, as Ray, for what is no
    handle.
    """
    if not isinstance(actor, ActorHandle):
        raise ValueError(
            f"kill() takes an actor's handle, got {actor!r} of type {type(actor).__name__}. "
            "Tasks are ended by cancel()."
        )
    require_runtime().actors.kill(actor._actor_id, no_restart)


def exit_actor() -> None:
    """Ends the actor that calls it, on purpose: it does not start again; atexit handlers run, and its `__del__`.

    The call in which it happens, and those behind it, fail with ActorDiedError. In a thread that the program has
    started, the thread ends, and the actor with the calls that run now: these fail, too. Raises TypeError outside of
    actors.
    """
    require_runtime()
    assert current.facts is not None
    executor = current.facts.executor
    if executor is None or executor.actor is None:
        raise TypeError("exit_actor() was called outside of an actor: call it in a method of one")
    request = ActorExit()
    if executor.runs_calls_here():
        raise request
    executor.end(request)
    raise SystemExit  # which ends a thread without a word


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """Names of living actors: those of this namespace, or {"name": …, "namespace": …} of all. Blocks shortly."""
    runtime = require_runtime()
    assert current.facts is not None
    listing = runtime.query("named actors")
    if all_namespaces:
        return [{"name": name, "namespace": namespace} for namespace, name in listing]
    return [name for namespace, name in listing if namespace == current.facts.namespace]
