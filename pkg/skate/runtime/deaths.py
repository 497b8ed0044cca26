"""What the node reports of processes that ended, as errors for the calls that were lost with them. No state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skate.core.actors import DEAD
from skate.core.calls import ActorLine
from skate.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    TaskError,
    WorkerCrashedError,
)
from skate.store.serialization import from_bytes


def crash_of(what: str, report: Mapping[str, Any]) -> WorkerCrashedError:
    """The error for a task whose worker died; `report` is the node manager's (NodeManager._report)."""
    return WorkerCrashedError(
        what,
        pid=report.get("pid"),
        node=report.get("node", ""),
        exit_status=report.get("exit_status"),
        stderr_tail=report.get("stderr_tail", ""),
        likely_oom=report.get("likely_oom", False),
        why=report.get("why", ""),
        node_died=report.get("node_died", ""),
    )


def error_of(line: ActorLine) -> Exception:
    """What calls of an actor fail with that is DEAD, or away: from the node's report of its last process."""
    cause = line.cause or {}
    if cause.get("kind") == "init":
        error = from_bytes(cause["error"])
        if isinstance(error, TaskError):
            return ActorDiedError(error, actor_id=line.actor.hex())
        return ActorDiedError(f"An argument of its __init__ failed: {error}", actor_id=line.actor.hex())
    text = cause.get("text", "")
    if cause.get("kind") == "unschedulable":
        return ActorUnschedulableError(text)
    if cause.get("kind") == "crash" and "exit_status" in cause:
        text = str(crash_of("the actor", cause))
    if line.state != DEAD:
        return ActorUnavailableError(f"it restarts. {text}", line.actor.hex())
    return ActorDiedError(
        text or "Its process is gone.",
        actor_id=line.actor.hex(),
        class_name=line.class_name,
        name=line.name,
        pid=cause.get("pid"),
        node=cause.get("node", ""),
    )
