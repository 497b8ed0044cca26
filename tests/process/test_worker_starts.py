"""Workers that cannot be started: who waits for them is told why, and the node goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import skate
from api.rendezvous import eventually
from skate.exceptions import ActorDiedError, WorkerCrashedError

from .drivers import no_descriptors


@skate.remote
def variable(name: str) -> str | None:
    return os.environ.get(name)


@skate.remote
class Reader:
    def variable(self, name: str) -> str | None:
        return os.environ.get(name)


def options(value: str) -> dict[str, Any]:
    """Those of a call that needs a worker of its own."""
    return {"runtime_env": {"env_vars": {"COLOUR": value}}}


def test_a_node_without_descriptors_says_so_and_goes_on(skate_start: Callable[..., Any]) -> None:
    facts = skate_start(num_cpus=1)
    descriptors, folder = Path(f"/proc/{facts['pid']}/fd"), Path(facts["folder"])
    assert skate.get(variable.remote("COLOUR")) is None
    testaments = len(list(folder.glob("*.now")))
    with no_descriptors(facts["pid"]):
        before = len(list(descriptors.iterdir()))
        with pytest.raises(WorkerCrashedError, match=r"no process could be forked: .*Too many open files"):
            skate.get(variable.options(**options("red")).remote("COLOUR"))
        with pytest.raises(ActorDiedError, match=r"no process could be forked: .*Too many open files"):
            skate.get(Reader.options(**options("blue")).remote().variable.remote("COLOUR"))
        assert skate.get(variable.remote("COLOUR")) is None, "there is a worker for that"
        assert len(list(descriptors.iterdir())) <= before, "nothing stays open of a start that failed"
        assert len(list(folder.glob("*.now"))) == testaments
    assert skate.get(variable.options(**options("green")).remote("COLOUR")) == "green"
    assert skate.get(Reader.options(**options("white")).remote().variable.remote("COLOUR")) == "white"
    eventually(lambda: skate.available_resources().get("CPU") == 1)


def test_a_node_with_one_descriptor_left_closes_it_again(skate_start: Callable[..., Any]) -> None:
    """It opens the testament, and has none for the pipes."""
    facts = skate_start(num_cpus=1)
    descriptors, folder = Path(f"/proc/{facts['pid']}/fd"), Path(facts["folder"])
    assert skate.get(variable.remote("COLOUR")) is None
    testaments = set(folder.glob("*.now"))
    before = {int(path.name) for path in descriptors.iterdir()}
    free = next(number for number in range(len(before) + 1) if number not in before)
    gap = next(number for number in range(free + 1, len(before) + 2) if number not in before)
    with no_descriptors(facts["pid"], but=gap):
        with pytest.raises(WorkerCrashedError, match="Too many open files"):
            skate.get(variable.options(**options("red")).remote("COLOUR"))
        assert set(folder.glob("*.now")) <= testaments
        assert {int(path.name) for path in descriptors.iterdir()} <= before
    assert skate.get(variable.options(**options("green")).remote("COLOUR")) == "green"
