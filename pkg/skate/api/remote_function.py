"""`@skate.remote` on functions.

State, a decorated function: its options, and its pickled form with the refs that it captured, made at the first call in
a session and kept for that session.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from skate._c.refs import ObjectRef
from skate.api.scheduling import schedule_of, variables_of
from skate.api.session import require_runtime
from skate.callables import body_of, is_generator, name_of, own_signature, plain_arity
from skate.core.dispatch import Queue
from skate.core.resources import task_request
from skate.core.streams import stream_returns
from skate.core.tasks import Function
from skate.options import ActorOptions, TaskOptions, not_yet, resolve_num_returns
from skate.runtime.runtime import Runtime
from skate.store.serialization import dump_function


class RemoteFunction:
    """A function that runs in workers: call it with `.remote(...)`, which gives an ObjectRef at once.

    `.options(...)` gives the same function with other options.
    """

    def __init__(self, function: Callable[..., Any], options: TaskOptions) -> None:
        self._name = name_of(function)
        body = body_of(function)
        if inspect.iscoroutinefunction(body):
            raise ValueError(
                f"{self._name} is an `async def` function, which cannot be a task. Wrap it: "
                f"def task(*args): return asyncio.run({self._name}(*args)); or make it a method of an actor."
            )
        if inspect.isasyncgenfunction(body):
            raise ValueError(
                f"{self._name} is an `async def` generator, which cannot be a task: "
                "make it a method of an actor."
            )
        self._function = function
        self._options = options
        self._exported = Exported(function)
        self._signature: inspect.Signature | None = None
        self._takes = plain_arity(function)
        returns = resolve_num_returns(options.num_returns, generator=is_generator(function))
        self._call = replace(options, num_returns=returns)
        self._returns: int = (
            stream_returns(options._generator_backpressure_num_objects)
            if isinstance(returns, str)
            else returns
        )
        self._runtime: Runtime | None = None
        self._known: Function | None = None
        self._queue: Queue | None = None
        #: what `_queue` was found under: children of tasks in a placement group may be captured by it
        self._captured: str | None = None
        self._look_like(function)
        warn_not_yet(options)

    def _look_like(self, function: Any) -> None:
        """As functools.update_wrapper, but that no attribute of the function's hides one of this class's."""
        self.__name__ = self.__qualname__ = self._name
        functools.update_wrapper(self, function, updated=())
        for name, value in vars(function).items() if inspect.isfunction(function) else ():
            if not hasattr(self, name):
                setattr(self, name, value)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        name = self._name
        raise TypeError(
            f"The remote function {name}() cannot be called directly. Use {name}.remote(...) to run it in a worker, "
            f"or {name}._function(...) to run it here."
        )

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Runs the function in a worker. Does not block.

        Gives an ObjectRef; a list of them with num_returns=n, None with num_returns=0, an ObjectRefGenerator of a
        generator. Raises TypeError for arguments
        that the function does not take, SerializationError for what cannot be sent.
        """
        runtime = require_runtime()
        if runtime is not self._runtime or runtime.captured != self._captured:
            self._enter(runtime)
        if kwargs or self._takes is None or len(args) not in self._takes:
            self._check_arguments(args, kwargs)
        result = runtime.submission.submit(self._known, self._call, self._queue, args, kwargs, self._returns)
        return result if self._returns else None

    def options(self, **changes: Any) -> RemoteFunction:
        """The same function with other options; see skate.options.TaskOptions."""
        other = RemoteFunction(self._function, self._options.updated(**changes))
        other._exported = self._exported
        return other

    def _remote(
        self, args: Any = None, kwargs: Any = None, **changes: Any
    ) -> ObjectRef | list[ObjectRef] | None:
        """As `.options(**changes).remote(*args, **kwargs)`."""
        chosen = self.options(**changes) if changes else self
        return chosen.remote(*(args or ()), **(kwargs or {}))  # type: ignore[no-any-return]

    def _enter(self, runtime: Runtime) -> None:
        """The first call in this session, or in another placement group: pickles the function, finds its class."""
        self._known = self._exported.known_to(runtime)
        captured = runtime.captured
        schedule = schedule_of(runtime, self._options, task_request(self._options), self._name)
        with runtime.lock:
            self._queue = runtime.dispatcher.queue_of(
                schedule.demand, variables_of(self._options), schedule.where
            )
        self._runtime, self._captured = runtime, captured

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._signature is None:
            self._signature = own_signature(self._function)
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}{self._signature}: {error}") from None

    def __reduce__(self) -> Any:
        return RemoteFunction, (self._function, self._options)

    def __repr__(self) -> str:
        return f"<remote function {self.__module__}.{self.__qualname__}>"


class Exported:
    """A function's pickled form in the session that runs; shared by all options of the function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._runtime: Runtime | None = None
        self._known: Function | None = None

    def known_to(self, runtime: Runtime) -> Function:
        if self._known is None or self._runtime is not runtime:
            dumped = dump_function(self._function)
            self._known = Function(dumped.digest, name_of(self._function), dumped.data, dumped.refs)
            self._runtime = runtime
        return self._known


def warn_not_yet(options: TaskOptions | ActorOptions) -> None:
    for name, meaning in not_yet(options).items():
        if name == "runtime_env" and set(options.runtime_env or ()) <= {"env_vars"}:
            continue  # these are set
        warnings.warn(f"the option {name} does nothing yet; it will {meaning}", RuntimeWarning, stacklevel=4)
