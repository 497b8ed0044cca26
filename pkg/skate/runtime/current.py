"""The runtime of this process, for the api to find. State: two slots, set by driver.session or worker.main."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from skate.ids import NodeId

if TYPE_CHECKING:
    from skate.runtime.runtime import Runtime
    from skate.worker.executor import Executor


class Facts(NamedTuple):
    """What a program may ask about where it runs."""

    node: NodeId
    job: str
    namespace: str
    executor: Executor | None = None  #: None in a driver
    #: of the names of placement groups; empty where the program has said none: then they are the whole cluster's
    group_namespace: str = ""
    #: (name, value) of the env_vars that tasks and actors inherit which are started here
    variables: tuple[tuple[str, str], ...] = ()


def facts_of(job: dict[str, Any], node: NodeId, executor: Executor | None = None) -> Facts:
    """What a process of this program on that node knows. `job`: see api.session."""
    variables = tuple((name, value) for name, value in job["variables"])
    return Facts(node, job["id"], job["namespace"], executor, job["group_namespace"], variables)


runtime: Runtime | None = None
facts: Facts | None = None


def set_runtime(new: Runtime | None, new_facts: Facts | None) -> None:
    """Makes `new` the runtime of this process; None where it has ended."""
    global runtime, facts
    runtime, facts = new, new_facts
