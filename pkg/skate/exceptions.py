"""Every exception that skate raises, under its own name and under the name it has in Ray.

A leaf, without state. All of these pickle with their attributes, and without running `__init__` again, so a
class here may take whatever arguments suit it. Messages say what happened, to which id, the likely mistake,
and what to do next.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from skate.task_error import (
    SkateError,
    TaskCancelledError,
    TaskError,
    UnserializableException,
    name_of,
    place_of,
)

# --- the user's own code: beside TaskError ----------------------------------------------------------------


class UserCodeException(SkateError):
    """Wraps an exception of the user's code; `retry_exceptions` looks at its `__cause__`."""


class SerializationError(SkateError, TypeError):
    """A value could not be pickled. The message names the part that failed; `__cause__` is the error."""


class FormerSessionError(SkateError, ValueError):
    """A ref, or the handle of an actor, of a session that was shut down: its value, or the actor, is gone."""


class RuntimeEnvSetupError(SkateError):
    """A runtime environment could not be set up."""

    def __init__(self, error_message: str | None = None) -> None:
        detail = f": {error_message}" if error_message else "."
        super().__init__(f"The runtime environment could not be set up{detail}")
        self.error_message = error_message


class CrossLanguageError(SkateError):
    """An exception from code in another language. skate runs Python only; here for programs that name it."""


# --- waiting, cancelling, scheduling ----------------------------------------------------------------------


class GetTimeoutError(SkateError, TimeoutError):
    """`get` did not have its values within `timeout`."""


class TaskUnschedulableError(SkateError):
    """No node can ever run the task, or the one that it insists on is gone."""

    def __init__(self, error_message: str) -> None:
        super().__init__(f"The task cannot be scheduled: {error_message}")
        self.error_message = error_message


class ActorUnschedulableError(SkateError):
    """No node can ever run the actor, or the one that it insists on is gone."""

    def __init__(self, error_message: str) -> None:
        super().__init__(f"The actor cannot be scheduled: {error_message}")
        self.error_message = error_message


class TaskPlacementGroupRemoved(SkateError):
    """The placement group that the task was to run in was removed."""

    def __init__(
        self, message: str = "The placement group of the task was removed before it was done."
    ) -> None:
        super().__init__(message)


class ActorPlacementGroupRemoved(SkateError):
    """The placement group that the actor lived in was removed, and the actor with it."""

    def __init__(
        self, message: str = "The placement group of the actor was removed, and the actor too."
    ) -> None:
        super().__init__(message)


class PendingCallsLimitExceeded(SkateError):
    """An actor has `max_pending_calls` calls waiting already. Wait for some of them, or raise the limit."""


# --- workers, actors, nodes -------------------------------------------------------------------------------


def _exit_text(exit_status: int | None) -> str:
    """What the wait status of a process means: negative for a signal, as in subprocess."""
    if exit_status is None:
        return "how is not known"
    if exit_status >= 0:
        return f"exit status {exit_status}"
    try:
        return f"killed by {signal.Signals(-exit_status).name}"
    except ValueError:
        return f"killed by signal {-exit_status}"


class WorkerCrashedError(SkateError):
    """The worker's process ended in the middle of a task.

    exit_status is the process's (negative for a signal), stderr_tail its last lines, likely_oom says that the
    kernel probably killed it for memory, why that skate ended it, and what for, node_died how its node has ended.
    """

    def __init__(
        self,
        task: str = "",
        *,
        pid: int | None = None,
        node: str = "",
        exit_status: int | None = None,
        stderr_tail: str = "",
        likely_oom: bool = False,
        why: str = "",
        node_died: str = "",
    ) -> None:
        worker = "The worker" if pid is None else f"The worker{place_of(pid, node)}"
        how = f"its node, {node}, is dead: {node_died}" if node_died else _exit_text(exit_status)
        parts = [f"{worker} died while running {task or 'a task'}: {how}."]
        if why:
            parts.append(f"It was ended on purpose: {why}.")
        elif likely_oom:
            parts.append(
                "It was probably killed for want of memory: give the task `memory=`, or run fewer at once."
            )
        elif exit_status == -signal.SIGSEGV:
            parts.append("Segmentation faults come from native code: run the task with PYTHONFAULTHANDLER=1.")
        elif exit_status is not None and exit_status >= 0:
            parts.append("Something in it called sys.exit() or os._exit(); raise an exception instead.")
        if stderr_tail:
            parts.append("The last lines of its stderr:\n" + stderr_tail.rstrip())
        super().__init__("\n".join(parts))
        self.task = task
        self.pid = pid
        self.node = node
        self.exit_status = exit_status
        self.stderr_tail = stderr_tail
        self.likely_oom = likely_oom
        self.why = why
        self.node_died = node_died


class ActorError(SkateError):
    """A call of an actor failed: it is dead (ActorDiedError) or away for now (ActorUnavailableError)."""

    BASE_ERROR_MSG = "The actor failed before it finished this call."

    def __init__(
        self,
        actor_id: bytes | str | None = None,
        error_msg: str = BASE_ERROR_MSG,
        actor_init_failed: bool = False,
        preempted: bool = False,
    ) -> None:
        super().__init__(error_msg)
        self.actor_id = actor_id
        self.error_msg = error_msg
        self.actor_init_failed = actor_init_failed
        self.preempted = preempted


class ActorDiedError(ActorError):
    """The actor is dead for good.

    `cause` is the TaskError of its `__init__` where that is why, else a reason in words.
    """

    BASE_ERROR_MSG = "The actor died before it finished this call."

    def __init__(
        self,
        cause: TaskError | str | None = None,
        *,
        actor_id: bytes | str | None = None,
        class_name: str = "",
        name: str = "",
        pid: int | None = None,
        node: str = "",
        preempted: bool = False,
    ) -> None:
        init_failed = isinstance(cause, TaskError)
        if isinstance(cause, TaskError):
            actor_id = actor_id or cause.actor_id
            text = f"The actor's __init__ raised an exception, so it never started: {cause}"
        else:
            text = self._text(cause, actor_id, class_name, name, pid, node)
        super().__init__(actor_id, text, init_failed, preempted)
        self.cause = cause
        self.class_name = class_name
        self.name = name
        self.pid = pid
        self.node = node

    def _text(
        self, reason: str | None, actor_id: Any, class_name: str, name: str, pid: int | None, node: str
    ) -> str:
        fields = {
            "class": class_name,
            "actor id": actor_id and name_of(actor_id),
            "name": name,
            "pid": pid,
            "node": node,
        }
        lines = [self.BASE_ERROR_MSG, *(f"    {key}: {value}" for key, value in fields.items() if value)]
        return "\n".join([*lines, reason] if reason else lines)

    @staticmethod
    def from_task_error(task_error: TaskError) -> ActorDiedError:
        return ActorDiedError(task_error)


class ActorUnavailableError(ActorError):
    """The actor does not answer now (it restarts, or its node cannot be reached) but may again."""

    def __init__(self, error_message: str, actor_id: bytes | str | None = None) -> None:
        super().__init__(
            actor_id,
            f"Actor {name_of(actor_id)} is unavailable: {error_message} The call may or may not have run; "
            "try it again, or set max_task_retries where it can safely run twice.",
        )
        self.error_message = error_message


class ActorAlreadyExistsError(ValueError, SkateError):
    """The name is taken. Use get_actor(), or the option get_if_exists=True."""

    def __init__(self, error_message: str) -> None:
        super().__init__(error_message)
        self.error_message = error_message


class ActorHandleNotFoundError(ValueError, SkateError):
    """The handle names no actor that this session knows: it is probably from before a shutdown()."""

    def __init__(self, error_message: str) -> None:
        super().__init__(error_message)
        self.error_message = error_message


class ActorExit(SystemExit):
    """Raised by exit_actor(), to leave the method that called it. Not to be caught."""

    def __init__(self, why: str = "exit_actor() was called in it.") -> None:
        super().__init__(0)
        self.why = why

    def __str__(self) -> str:
        return self.why


class AsyncioActorExit(SkateError):
    """Ray's way to leave a method of an asyncio actor; skate's exit_actor() is the same in every actor."""


class _Messaged(SkateError):
    """An error that keeps its text in `message`, as Ray's do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NodeDiedError(_Messaged):
    """A node is dead or cannot be reached."""


class LocalNodeManagerDiedError(SkateError):
    """This machine's node manager is gone."""

    def __init__(
        self,
        message: str = "The node manager of this machine died, and its workers with it. See node.log in "
        "the session's folder for why; call shutdown() and init() to start another.",
    ) -> None:
        super().__init__(message)


class OutOfMemoryError(_Messaged):
    """The machine runs out of memory, and the task or actor was ended to save the rest."""


class AuthenticationError(_Messaged):
    """The cluster's key is missing here or is another one."""


class RpcError(_Messaged):
    """A message between skate's own processes failed."""

    def __init__(self, message: str, rpc_code: int | None = None) -> None:
        super().__init__(message)
        self.rpc_code = rpc_code


class SkateSystemError(SkateError):
    """skate itself failed."""

    def __init__(self, client_exc: object, traceback_str: str | None = None) -> None:
        trace = f"\ntraceback: {traceback_str}" if traceback_str else ""
        super().__init__(f"System error: {client_exc}{trace}")
        self.client_exc = client_exc if isinstance(client_exc, BaseException) else str(client_exc)
        self.traceback_str = traceback_str


# --- objects ----------------------------------------------------------------------------------------------


class ObjectStoreFullError(SkateError):
    """The object fits nowhere: what the store holds is in use, and spilling did not make room.

    largest: (object id, bytes, owner) of what takes most of it.
    """

    def __init__(
        self,
        message: str = "The object store is full.",
        *,
        needed_bytes: int = 0,
        capacity_bytes: int = 0,
        largest: Iterable[tuple[bytes | str, int, str]] = (),
    ) -> None:
        self.needed_bytes = needed_bytes
        self.capacity_bytes = capacity_bytes
        self.largest: Sequence[tuple[bytes | str, int, str]] = tuple(largest)
        lines = [message]
        if capacity_bytes:
            lines.append(f"Needed: {needed_bytes:,} bytes, of a store of {capacity_bytes:,} bytes.")
        if self.largest:
            lines.append("The largest objects in it:")
            lines += [f"    {name_of(which)}  {size:,} bytes  {owner}" for which, size, owner in self.largest]
        lines.append("Drop refs and arrays you are done with, or init() with a larger object_store_memory.")
        super().__init__("\n".join(lines))


class OutOfDiskError(SkateError):
    """The store is full, and nothing can be written to the folder that it spills to."""

    def __init__(self, message: str = "The object store is full, and the disk it spills to.") -> None:
        super().__init__(
            f"{message}\nSee `df` (and `df -i`) for what is full; drop refs you are done with, free space, or spill to "
            "another folder, by init(object_spilling_directory=…) or SKATE_SPILL_DIR."
        )


class ObjectLostError(SkateError):
    """The object is gone from every node that had it."""

    def __init__(
        self,
        object_ref_hex: bytes | str,
        owner_address: bytes | str | None = None,
        call_site: str = "",
        why: str = "",
    ) -> None:
        self.object_ref_hex = name_of(object_ref_hex)
        self.owner_address = owner_address
        self.call_site = call_site
        made = f" (made at {call_site})" if call_site else ""
        super().__init__(f"Object {self.object_ref_hex}{made} cannot be had: {why or self._why()}")

    def _why(self) -> str:
        return "all its copies were lost with the nodes that held them."


class ObjectFetchTimedOutError(ObjectLostError):
    """No node had the object within the time allowed."""

    def _why(self) -> str:
        return "no node that has a copy answered in time. Does the network between the nodes drop traffic?"


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """The object was deleted while a ref to it lived: a mistake of skate's own."""

    def _why(self) -> str:
        return (
            "it was deleted while this ref lived. A ref made by hand from bytes does not keep its object "
            "alive; for any other ref this is a mistake in skate, please report it."
        )


class ObjectFreedError(ObjectLostError):
    """The object was freed by hand."""

    def _why(self) -> str:
        return "the program freed it by hand. Free an object only once nothing needs it."


class OwnerDiedError(ObjectLostError):
    """The process that owned the object (it made the ref, by `.remote()` or `put`) is dead."""

    def _why(self) -> str:
        owner = f", {name_of(self.owner_address)}," if self.owner_address else ""
        return (
            f"the process that owns it{owner} is dead. A ref lives no longer than the process that made it "
            "by `.remote()` or `put`: make it in the driver or in an actor that stays."
        )


class ObjectReconstructionFailedError(ObjectLostError):
    """The object was lost and could not be computed again."""

    REASON_MESSAGES: ClassVar[dict[str, str]] = {
        "MAX_ATTEMPTS_EXCEEDED": "its task was tried max_retries times. Raise @skate.remote(max_retries=N).",
        "LINEAGE_EVICTED": "what is needed to run its task again was dropped to save memory.",
        "PUT": "it came from put(), which no task can repeat. Return the value from a task instead.",
        "RETRIES_DISABLED": "its task has max_retries=0. Allow some: @skate.remote(max_retries=N).",
        "BORROWED": "only its owner can have it computed again, and this process borrowed it.",
        "REF_NOT_FOUND": "its owner does not know it. This is a mistake in skate, please report it.",
        "TASK_CANCELLED": "the task that makes it was cancelled.",
        "LINEAGE_DISABLED": "computing lost objects again is turned off.",
    }

    def __init__(
        self,
        object_ref_hex: bytes | str,
        reason: str | None = None,
        reason_message: str | None = None,
        owner_address: bytes | str | None = None,
        call_site: str = "",
    ) -> None:
        self.reason = reason
        self.reason_message = reason_message or self.REASON_MESSAGES.get(
            reason or "", "the reason is not known."
        )
        super().__init__(object_ref_hex, owner_address, call_site)

    def _why(self) -> str:
        return f"it was lost and cannot be computed again, because {self.reason_message}"


class ObjectNotAvailableError(SkateError):
    """The object was not in this machine's store within the time given."""


class ObjectRefStreamEndOfStreamError(SkateError):
    """A streaming generator has no more refs."""


class StreamingGeneratorReplayInconsistentError(SkateSystemError):
    """A generator task yielded another number of values when tried again: it must be deterministic."""


class OutOfBandObjectRefSerializationException(SkateError):
    """An ObjectRef was pickled by hand, not in an argument, result or put: nothing keeps its object."""


# --- features of Ray that skate has not; here for programs that name them ---------------------------------


class ChannelError(SkateSystemError):
    """A channel between actors failed."""


class ChannelTimeoutError(ChannelError, TimeoutError):
    """An operation on a channel between actors took too long."""


class CgraphCapacityExceeded(SkateSystemError):
    """A compiled graph's buffer is full."""


class DirectTransportError(SkateSystemError):
    """A transfer between devices failed."""


# --- the names that these have in Ray ---------------------------------------------------------------------

RayError = SkateError
RayTaskError = TaskError
RayActorError = ActorError
RaySystemError = SkateSystemError
RayChannelError = ChannelError
RayChannelTimeoutError = ChannelTimeoutError
RayCgraphCapacityExceeded = CgraphCapacityExceeded
RayDirectTransportError = DirectTransportError
LocalRayletDiedError = LocalNodeManagerDiedError
PlasmaObjectNotAvailable = ObjectNotAvailableError
OufOfBandObjectRefSerializationException = OutOfBandObjectRefSerializationException  # Ray's spelling
TaskUnplaceableError = TaskUnschedulableError

#: every class above, each once
EXCEPTION_TYPES: tuple[type[SkateError], ...] = tuple(
    dict.fromkeys(
        value
        for name, value in list(globals().items())
        if isinstance(value, type) and issubclass(value, SkateError) and not name.startswith("_")
    )
)
RAY_EXCEPTION_TYPES = list(EXCEPTION_TYPES)

__all__ = [
    "EXCEPTION_TYPES",
    "RAY_EXCEPTION_TYPES",
    "ActorAlreadyExistsError",
    "ActorDiedError",
    "ActorError",
    "ActorHandleNotFoundError",
    "ActorPlacementGroupRemoved",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AsyncioActorExit",
    "AuthenticationError",
    "CgraphCapacityExceeded",
    "ChannelError",
    "ChannelTimeoutError",
    "CrossLanguageError",
    "DirectTransportError",
    "FormerSessionError",
    "GetTimeoutError",
    "LocalNodeManagerDiedError",
    "LocalRayletDiedError",
    "NodeDiedError",
    "ObjectFetchTimedOutError",
    "ObjectFreedError",
    "ObjectLostError",
    "ObjectNotAvailableError",
    "ObjectReconstructionFailedError",
    "ObjectRefStreamEndOfStreamError",
    "ObjectStoreFullError",
    "OufOfBandObjectRefSerializationException",
    "OutOfBandObjectRefSerializationException",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitExceeded",
    "PlasmaObjectNotAvailable",
    "RayActorError",
    "RayCgraphCapacityExceeded",
    "RayChannelError",
    "RayChannelTimeoutError",
    "RayDirectTransportError",
    "RayError",
    "RaySystemError",
    "RayTaskError",
    "ReferenceCountingAssertionError",
    "RpcError",
    "RuntimeEnvSetupError",
    "SerializationError",
    "SkateError",
    "SkateSystemError",
    "StreamingGeneratorReplayInconsistentError",
    "TaskCancelledError",
    "TaskError",
    "TaskPlacementGroupRemoved",
    "TaskUnplaceableError",
    "TaskUnschedulableError",
    "UnserializableException",
    "UserCodeException",
    "WorkerCrashedError",
]
