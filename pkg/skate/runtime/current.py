"""The runtime of this process, for the api to find. State: one slot, set by driver.session or worker.main."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from skate._c import refs

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


runtime: Runtime | None = None
facts: Facts | None = None


def set_runtime(new: Runtime | None, new_facts: Facts | None) -> None:
    """Makes `new` the runtime of this process; None where it has ended."""
    global runtime, facts
    runtime, facts = new, new_facts


def _forget_after_fork() -> None:
    """A fork of a driver or worker has no threads and no business with its parent's sockets: it runs no skate."""
    set_runtime(None, None)
    refs.set_home(None, {}, b"")


os.register_at_fork(after_in_child=_forget_after_fork)
