"""`@skate.remote` on classes: what makes actors.

State, a decorated class: its options, what handles need to know of it (ActorType), and its pickled form in the session
that runs.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

from skate.api.actor_handle import ActorHandle, ActorType, Method
from skate.api.remote_function import Exported, warn_not_yet
from skate.api.scheduling import schedule_of, variables_of
from skate.api.session import require_runtime
from skate.callables import ANY_ARGUMENTS, is_generator, own_signature, plain_arity
from skate.core.resources import actor_requests
from skate.exceptions import ActorAlreadyExistsError
from skate.options import ActorOptions, MethodOptions, resolve_num_returns, validate_method_options
from skate.runtime import current
from skate.store.serialization import serialize, to_bytes

#: where `@skate.method` leaves its options on a function
METHOD_OPTIONS = "__skate_method_options__"


def method(*args: Any, **options: Any) -> Any:
    """Options of one method of an actor: `@skate.method(num_returns=2, concurrency_group="io")` on a def in the class.

    See skate.options.MethodOptions. Raises ValueError for an unknown option.
    """
    if len(args) == 1 and not options and callable(args[0]):
        return args[0]
    if args:
        raise TypeError("use @skate.method with keyword arguments: @skate.method(num_returns=2)")
    checked = validate_method_options(**options)

    def mark(function: Any) -> Any:
        setattr(function, METHOD_OPTIONS, checked)
        return function

    return mark


class ActorClass:
    """A class whose instances live in processes of their own: `.remote(...)` makes one and gives its handle at once.

    `.options(...)` gives the same class with other options.
    """

    def __init__(self, cls: type, options: ActorOptions, *more: Any) -> None:
        if not isinstance(cls, type):
            raise TypeError(
                f"class {cls} inherits from a decorated class, which is an ActorClass by now. Inherit from the plain "
                "class and decorate both: Base = …; BaseActor = skate.remote(Base); class Child(Base): …"
            )
        self._wrap(cls, options)
        warn_not_yet(options)
        self._check_groups()

    def _wrap(self, cls: type, options: ActorOptions) -> None:
        """Without a look at the class: one that is being unpickled has no methods yet, if they refer to it."""
        self._cls = cls
        self._options = options
        self._exported = Exported(cls)
        self._known_type: ActorType | None = None
        self._known_about: bytes | None = None
        self._signature: inspect.Signature | None = None
        self.__name__ = cls.__name__
        self.__qualname__ = cls.__qualname__
        self.__module__ = cls.__module__
        self.__doc__ = cls.__doc__

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        name = self._cls.__name__
        raise TypeError(
            f"The actor class {name} cannot be instantiated directly. Use {name}.remote(...) to make an actor, or "
            f"{name}.__skate_class__(...) for a plain object."
        )

    @property
    def __skate_class__(self) -> type:
        """The class that was decorated."""
        return self._cls

    #: Ray's name of it
    __ray_actor_class__ = __skate_class__

    def __getattr__(self, name: str) -> Any:
        """The class's own attributes, so that its constants can be read."""
        if name.startswith("__") or "_cls" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._cls, name)

    def remote(self, /, *args: Any, **kwargs: Any) -> ActorHandle:
        """Makes an actor; does not block, except for an actor with a name, until the node has answered.

        Raises TypeError for arguments that `__init__` does not take, ActorAlreadyExistsError (a ValueError) for a name
        that is taken, SerializationError for what cannot be sent. What `__init__` raises comes out of the first call.
        """
        runtime = require_runtime()
        self._check_arguments(args, kwargs)
        options = self._options
        kind, about = self._type(), self._about()
        facts = current.facts
        assert facts is not None
        namespace = options.namespace or facts.namespace
        requests = actor_requests(options)
        schedule = schedule_of(runtime, options, requests.placement, self._cls.__name__, held=requests.held)
        spec = {
            "class_name": kind.class_name,
            "name": options.name or "",
            "demand": schedule.demand.units(),
            "where": schedule.where,
            "lends": requests.held != requests.placement,
            "environment": variables_of(options),
            "max_restarts": options.max_restarts,
            "max_concurrency": options.max_concurrency,
            "groups": options.concurrency_groups,
            "asyncio": kind.asyncio,
            "methods": sorted(kind.methods),
            "about": about,
        }
        actor, token, of_other = runtime.actors.make(
            self._exported.known_to(runtime),
            spec,
            args,
            kwargs,
            about=about,
            name=options.name or "",
            namespace=namespace,
            detached=options.lifetime == "detached",
            ordered=kind.ordered,
            max_pending=options.max_pending_calls,
        )
        if token is None:  # there is one of this name
            if not options.get_if_exists:
                raise ActorAlreadyExistsError(
                    f"an actor named {options.name!r} exists already in namespace {namespace!r}. Use another name, "
                    "get_actor(), or get_if_exists=True."
                )
            return ActorHandle(actor, None, ActorType.from_about(of_other))
        counts = options.lifetime != "detached"
        return ActorHandle(actor, token if counts else None, kind)

    def options(self, **changes: Any) -> ActorClass:
        """The same class with other options; see skate.options.ActorOptions."""
        other = ActorClass(self._cls, self._options.updated(**changes))
        other._exported = self._exported
        return other

    def _remote(self, args: Any = None, kwargs: Any = None, **changes: Any) -> ActorHandle:
        """As `.options(**changes).remote(*args, **kwargs)`."""
        chosen = self.options(**changes) if changes else self
        return chosen.remote(*(args or ()), **(kwargs or {}))

    def _type(self) -> ActorType:
        if self._known_type is None:
            self._known_type = _type_of(self._cls, self._options)
        return self._known_type

    def _about(self) -> bytes:
        """The type as it travels."""
        if self._known_about is None:
            self._known_about = to_bytes(serialize(self._type()))
        return self._known_about

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._signature is None:
            self._signature = _signature_of_new(self._cls)
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._cls.__name__}.__init__{self._signature}: {error}") from None

    def _check_groups(self) -> None:
        groups = self._options.concurrency_groups or {}
        for name, kind in self._type().methods.items():
            group = kind.options.concurrency_group
            if group and group not in groups:
                raise ValueError(
                    f"method {name}() of {self._cls.__name__} is in the concurrency group {group!r}, which the class "
                    f"does not have: {sorted(groups)}. Name it in @skate.remote(concurrency_groups={{{group!r}: 1}})."
                )

    def __reduce__(self) -> Any:
        return _rebuild_class, (self._cls, self._options)

    def __repr__(self) -> str:
        return f"<actor class {self._cls.__module__}.{self._cls.__qualname__}>"


def _rebuild_class(cls: type, options: ActorOptions) -> ActorClass:
    actor_class = ActorClass.__new__(ActorClass)
    actor_class._wrap(cls, options)
    return actor_class


def _type_of(cls: type, options: ActorOptions) -> ActorType:
    methods: dict[str, Method] = {}
    asyncio = False
    for name in dir(cls):
        function = inspect.getattr_static(cls, name)
        bound = isinstance(function, (staticmethod, classmethod))
        plain: Any = getattr(function, "__func__", function) if bound else function
        if not _is_method(name, plain):
            continue
        takes_self = hasattr(plain, "__get__") and not isinstance(function, staticmethod)
        own = getattr(plain, "func", plain)
        bodies = (
            own,
            inspect.unwrap(own),
        )  # a wrapper may be of a kind of its own, or pass on what it is given
        is_async = any(map(inspect.iscoroutinefunction, bodies)) or any(
            map(inspect.isasyncgenfunction, bodies)
        )
        asyncio = asyncio or is_async
        generator = any(map(is_generator, bodies))
        chosen: MethodOptions = getattr(plain, METHOD_OPTIONS, None) or validate_method_options()
        methods[name] = Method(
            chosen,
            resolve_num_returns(chosen.num_returns, generator=generator),
            generator,
            plain_arity(plain, skip=int(takes_self)),
            _signature_of(plain, drop_self=takes_self),
        )
    if options.allow_out_of_order_execution is False and (asyncio or (options.max_concurrency or 1) > 1):
        raise ValueError(
            f"allow_out_of_order_execution=False: {cls.__name__} is "
            f"{'an asyncio actor' if asyncio else 'a threaded actor'}, whose calls run in no order; leave it out"
        )
    one_at_a_time = options.max_concurrency in (None, 1) and not options.concurrency_groups
    return ActorType(
        class_name=cls.__name__,
        methods=methods,
        asyncio=asyncio,
        ordered=not asyncio and one_at_a_time and not options.allow_out_of_order_execution,
        groups=tuple(options.concurrency_groups or ()),
        max_task_retries=options.max_task_retries,
        max_pending=options.max_pending_calls,
        name=options.name or "",
    )


def _is_method(name: str, function: Any) -> bool:
    """Whether an attribute of a class is a method of its actors: those of built-in base classes, too."""
    if isinstance(function, (functools.partialmethod, functools.singledispatchmethod)):
        return True
    if name == "__init__" or not inspect.isroutine(function) or not callable(function):
        return False
    return hasattr(function, "__code__") or not hasattr(object, name)


def _signature_of_new(cls: type) -> inspect.Signature:
    """The arguments that make an instance."""
    if cls.__init__ is not object.__init__:
        return _signature_of(cls.__init__, drop_self=True)
    if cls.__new__ is not object.__new__:
        return _signature_of(cls.__new__, drop_self=True)
    return inspect.Signature()


def _signature_of(function: Any, *, drop_self: bool) -> inspect.Signature:
    """Which arguments a function takes, as far as `bind` needs it: handles carry it to processes without the class."""
    signature = own_signature(function)
    if signature is ANY_ARGUMENTS:
        return signature
    parameters = list(signature.parameters.values())
    if drop_self and parameters and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
        parameters = parameters[1:]
    empty = inspect.Parameter.empty
    return inspect.Signature(
        [
            parameter.replace(annotation=empty, default=empty if parameter.default is empty else None)
            for parameter in parameters
        ]
    )
