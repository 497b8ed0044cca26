"""Handles of actors, and the methods that are called through them.

State, a handle: the ref that keeps its actor alive (none in one that does not count: of a detached actor, from
`get_actor`, from inside the actor itself) and, once it is used in a session, the line that its calls stand in.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, NamedTuple

from skate._c.refs import ObjectRef
from skate.api.session import require_runtime
from skate.callables import ANY_ARGUMENTS
from skate.core.calls import ActorLine
from skate.core.methods import BUILT_IN, DEFAULT_GROUP, method_id
from skate.core.streams import stream_returns
from skate.core.tasks import Function
from skate.exceptions import ActorHandleNotFoundError
from skate.ids import ActorId
from skate.options import MethodOptions, TaskOptions, resolve_num_returns, validate_method_options
from skate.runtime import current
from skate.store.serialization import from_bytes, serialize, to_bytes


class Method(NamedTuple):
    """What a handle knows of one method."""

    options: MethodOptions
    num_returns: Any  #: a number, "streaming" or "dynamic"
    generator: bool
    takes: range | None  #: how many positional arguments alone make a good call
    signature: inspect.Signature


class ActorType(NamedTuple):
    """What a handle knows of its actor's class. Travels with handles, once pickled."""

    class_name: str
    methods: dict[str, Method]
    asyncio: bool
    ordered: bool
    groups: tuple[str, ...]
    max_task_retries: int
    max_pending: int
    name: str

    @staticmethod
    @functools.lru_cache(maxsize=1024)
    def from_about(about: bytes) -> ActorType:
        """The type again, from what travels."""
        return from_bytes(about)  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=4096)
def _function(class_name: str, name: str, group: str) -> Function:
    """A method as the runtime knows it."""
    return Function(method_id(name, group), f"{class_name}.{name}", None)


class ActorHandle:
    """An actor, as seen from anywhere: `handle.method.remote(...)` calls it. Handles may be sent everywhere.

    The actor ends when the last handle of it is gone and what it was asked is done.
    """

    def __init__(self, actor: ActorId, token: ObjectRef | None, kind: ActorType) -> None:
        self._actor_id = actor
        self._token = token
        self._type = kind
        self._about: bytes | None = None

    def __getattr__(self, name: str) -> ActorMethod:
        kind = self._type if "_type" in self.__dict__ else None
        method = None
        if kind is not None:
            method = kind.methods.get(name)
            if method is None and name in BUILT_IN:
                method = Method(validate_method_options(), 1, False, None, ANY_ARGUMENTS)
        if kind is None or method is None:
            known = sorted(each for each in kind.methods if not each.startswith("__")) if kind else []
            raise AttributeError(
                f"actor {kind.class_name if kind else '?'} has no method {name!r}; it has {', '.join(known)}. "
                "Attributes are read through methods of its class."
            )
        made = ActorMethod(self._actor_id, self._token, kind, name, method)
        self.__dict__[name] = made  # it knows the token, not this handle: no cycle
        return made

    def __dir__(self) -> list[str]:
        return list({*super().__dir__(), *self._type.methods})  # (what was called lies in __dict__, too)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ActorHandle):
            return NotImplemented
        return self._actor_id == other._actor_id

    def __hash__(self) -> int:
        return hash(self._actor_id)

    def __reduce__(self) -> Any:
        if self._about is None:
            self._about = to_bytes(serialize(self._type))
        return _rebuild, (bytes(self._actor_id), self._token, self._about)

    def __deepcopy__(self, memo: Any) -> ActorHandle:
        return ActorHandle(self._actor_id, self._token, self._type)

    __copy__ = functools.partialmethod(__deepcopy__, None)

    @property
    def _ray_actor_id(self) -> ActorId:
        return self._actor_id

    def __repr__(self) -> str:
        return f"Actor({self._type.class_name}, {self._actor_id.hex()})"


def _rebuild(actor: bytes, token: ObjectRef | None, about: bytes) -> ActorHandle:
    handle = ActorHandle(ActorId(actor), token, ActorType.from_about(about))  # type: ignore[arg-type]
    handle._about = about
    return handle


class ActorMethod:
    """A method of an actor: `.remote(...)` calls it, `.options(...)` is the same method with other options."""

    def __init__(
        self,
        actor: ActorId,
        token: ObjectRef | None,
        kind: ActorType,
        name: str,
        method: Method,
        changes: MethodOptions | None = None,
    ) -> None:
        self._actor = actor
        self._token = token
        self._type = kind
        self._name = name
        self._method = method
        chosen = changes or method.options
        self._chosen = chosen
        group = chosen.concurrency_group or DEFAULT_GROUP
        if group and group not in kind.groups:
            raise ValueError(
                f"actor {kind.class_name} has no concurrency group {group!r}; it has {sorted(kind.groups)}"
            )
        retries = chosen.max_task_retries
        returns = method.num_returns if chosen.num_returns is None else chosen.num_returns
        returns = resolve_num_returns(returns, generator=method.generator)
        self._call = TaskOptions(
            name=chosen.name,
            num_returns=returns,
            max_retries=kind.max_task_retries if retries is None else retries,
            retry_exceptions=chosen.retry_exceptions,
        )
        self._returns: int = (
            stream_returns(chosen._generator_backpressure_num_objects)
            if isinstance(returns, str)
            else returns
        )
        self._function = _function(kind.class_name, name, group)
        self._takes = method.takes
        self._pinned = () if token is None else (token.entry,)
        self._runtime: Any = None
        self._line: ActorLine | None = None

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"The method {self._name}() of an actor cannot be called directly. Use "
            f"handle.{self._name}.remote(...), which gives a ref."
        )

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Calls the method in the actor's process. Does not block.

        Gives an ObjectRef; a list of them with num_returns=n, None with 0, an ObjectRefGenerator of a generator. Raises
        TypeError for arguments that the method does not take, PendingCallsLimitExceeded, SerializationError.
        """
        runtime = current.runtime
        if runtime is not self._runtime or runtime is None:
            runtime = self._enter()
        if kwargs or self._takes is None or len(args) not in self._takes:
            self._check_arguments(args, kwargs)
        result = runtime.submission.submit(
            self._function, self._call, self._line, args, kwargs, self._returns, self._pinned
        )
        return result if self._returns else None

    def options(self, **changes: Any) -> ActorMethod:
        """The same method with other options; see skate.options.MethodOptions."""
        return ActorMethod(
            self._actor,
            self._token,
            self._type,
            self._name,
            self._method,
            self._chosen.updated(**changes),
        )

    def _remote(self, args: Any = None, kwargs: Any = None, **changes: Any) -> Any:
        """As `.options(**changes).remote(*args, **kwargs)`."""
        chosen = self.options(**changes) if changes else self
        return chosen.remote(*(args or ()), **(kwargs or {}))

    def _enter(self) -> Any:
        """The first call in this session."""
        if self._token is not None and self._token.entry.home is not current.runtime:
            raise ActorHandleNotFoundError(
                f"this handle of {self._type.class_name} is of a session that was shut down; its actor is gone"
            )
        runtime = require_runtime()
        kind = self._type
        with runtime.lock:
            self._line = runtime.actors.calls.line_of(
                self._actor,
                ordered=kind.ordered,
                max_pending=kind.max_pending,
                counts=self._token is not None,
            )
            self._line.class_name, self._line.name = kind.class_name, kind.name
        self._runtime = runtime
        return runtime

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            self._method.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(
                f"{self._type.class_name}.{self._name}{self._method.signature}: {error}"
            ) from None

    def __reduce__(self) -> Any:
        handle = ActorHandle(self._actor, self._token, self._type)
        return _rebuild_method, (handle, self._name, self._chosen)

    def __repr__(self) -> str:
        return f"<method {self._name} of actor {self._type.class_name}, {self._actor.hex()}>"


def _rebuild_method(handle: ActorHandle, name: str, chosen: MethodOptions) -> ActorMethod:
    base: ActorMethod = getattr(handle, name)
    return ActorMethod(base._actor, base._token, base._type, name, base._method, chosen)
