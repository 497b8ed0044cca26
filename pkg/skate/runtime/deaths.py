"""Errors for calls that fail without having run: with the process that had them, or by an argument. No state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from skate.core.actors import DEAD
from skate.core.calls import ActorLine
from skate.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    TaskError,
    WorkerCrashedError,
)
from skate.ids import ProcessId
from skate.store.serialization import from_bytes, serialize, to_bytes

#: which function builds a TaskError stands at the beginning of its pickle: so much of that is looked at
HEAD_BYTES: Final = 256


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


class _ByAnArgument:
    """Stands for the error of a call by an argument: unpickles as that."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_task_error_by_argument, self.parts


def failed_by_argument(packed: bytes, name: str, pid: int, node: ProcessId) -> bytes:
    """What the call `name` fails with, one of whose arguments has failed with `packed`: a task error, packed.

    That of the task that failed first; or, where the argument is lost, one whose cause says so. Does not unpickle it,
    which may run code of the program's.
    """
    if b"_load_task_error" in packed[:HEAD_BYTES]:
        return packed
    return to_bytes(serialize(_ByAnArgument(packed, name, pid, node.hex()[:8])))


def _load_task_error_by_argument(packed: bytes, name: str, pid: int, node: str) -> TaskError:
    return TaskError.from_exception(from_bytes(packed), name, pid, node)
