"""The programs and processes of a node, as its manager knows them. Owns nothing: the manager alone changes these."""

from __future__ import annotations

import mmap
from typing import Any

from skate.core.output import OutputWindow
from skate.ids import ProcessId
from skate.node.logs import LineReader
from skate.wire import checks


def environment_of(job: str, variables: Any) -> tuple[str, tuple[tuple[str, str], ...]]:
    """What tells workers apart: the program that they are of, and the variables that are set in them.

    ValueError where these are none.
    """
    return job, tuple((str(name), str(value)) for name, value in checks.variables(variables))


class Job:
    """A program: its driver, and the workers that are of it."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.id = str(job["id"])
        #: {"id": …, "sys_path": …, …}, see api.session
        self.facts = job
        #: its driver and its workers, also those that start
        self.processes = 0
        #: its driver is gone
        self.left = False
        #: what its driver has yet to show of what its workers print
        self.output: OutputWindow[tuple[Process, LineReader]] = OutputWindow()

    @property
    def driver(self) -> ProcessId:
        """Perhaps of another node."""
        return ProcessId(bytes.fromhex(self.facts["driver"]))

    @property
    def log_to_driver(self) -> bool:
        """What its workers print is for the driver, too."""
        return bool(self.facts["log_to_driver"])

    def of_driver(self, driver: ProcessId, log_to_driver: bool) -> None:
        self.facts = self.facts | {"driver": driver.hex(), "log_to_driver": log_to_driver}


class Process:
    """A driver or worker of this node."""

    def __init__(self, identity: ProcessId, kind: str, job: Job) -> None:
        self.id = identity
        self.kind = kind
        self.pid = 0
        self.registered = False
        self.readers: list[LineReader] = []
        #: of a worker, what tells the marks in its output from what is printed
        self.secret = ""
        self.testament: mmap.mmap | None = None
        #: of a worker, its Kind: which leases it can serve
        self.worker_kind: Any = None
        self.pidfd = -1
        self.job = job
        #: why this process was ended on purpose
        self.killed_because = ""
