"""What the fields of any type must be in messages that come from elsewhere. No state.

A schema says which fields a message has; these say what is in one that holds more than a scalar. They are asked before
a handler changes anything, and raise FrameError, which refuses the message.
"""

from __future__ import annotations

import json
from typing import Any

from skate._c.frames import FrameError
from skate.ids import OBJECT_ID_BYTES, PROCESS_ID_BYTES, TASK_ID_BYTES


def report(text: str) -> dict[str, Any]:
    """What is known of a death: a JSON object."""
    try:
        found = json.loads(text)
    except RecursionError:
        found = None
    if not isinstance(found, dict):
        raise FrameError(f"a report of a death is a JSON object, not {text!r:.60}")
    return found


def allocation(value: Any) -> dict[str, Any]:
    """What a worker may use."""
    if not isinstance(value, dict) or not isinstance(value.get("devices"), list | tuple):
        raise FrameError(f"what a worker may use is no {value!r:.60}")
    amounts(value.get("resources"))
    return value


def amounts(value: Any) -> dict[str, Any]:
    """Resource name -> a number."""
    if not isinstance(value, dict) or not all(
        isinstance(name, str) and type(amount) in (int, float) for name, amount in value.items()
    ):
        raise FrameError(f"amounts of resources are no {value!r:.60}")
    return value


def variables(value: Any) -> list[Any]:
    """None, or the environment variables that workers have."""
    return rows(value or (), 2)


def rows(value: Any, width: int) -> list[Any]:
    """Tuples of so many fields."""
    if not isinstance(value, list | tuple):
        raise FrameError(f"rows of {width} are a list, not {value!r:.60}")
    for each in value:
        if not isinstance(each, list | tuple) or len(each) != width:
            raise FrameError(f"a row of {width} is no {each!r:.60}")
    return list(value)


def job(value: Any) -> dict[str, Any]:
    """What workers need to know of a program."""
    if not isinstance(value, dict) or not isinstance(value.get("id"), str) or "log_to_driver" not in value:
        raise FrameError(f"a program is no {value!r:.60}")
    driver = value.get("driver")
    if not isinstance(driver, str) or len(bytes.fromhex(driver)) != PROCESS_ID_BYTES:
        raise FrameError(f"a program's driver is no {driver!r:.60}")
    return value


def actor(value: Any) -> dict[str, Any]:
    """What it takes to make an actor, as far as node managers read it; see runtime.actors."""
    if (
        not isinstance(value, dict)
        or not {"demand", "where", "depth", "lends", "environment"} <= value.keys()
    ):
        raise FrameError(f"what it takes to make an actor is no {value!r:.60}")
    amounts(value["demand"])
    variables(value["environment"])
    if type(value.get("max_restarts")) is not int or type(value["depth"]) is not int:
        raise FrameError(f"what it takes to make an actor is no {value!r:.60}")
    return value


def refs(value: Any) -> list[Any]:
    """Refs that a process holds, or that are in a value: [(object, container or via), …]."""
    for identifier, container in rows(value, 2):
        if not _is(identifier, OBJECT_ID_BYTES) or not isinstance(container, bytes):
            raise FrameError(f"a ref is no ({identifier!r:.60}, {container!r:.60})")
    return list(value)


def values(value: Any) -> list[Any]:
    """What a task has returned: [(state, value, None or the refs in it), …]."""
    for state, _, contents in rows(value, 3):
        if type(state) is not int:
            raise FrameError(f"the state of a value is no {state!r:.60}")
        if contents is not None:
            refs(contents)
    return list(value)


def actors(value: Any) -> list[bytes]:
    """Ids of actors."""
    if not isinstance(value, list | tuple) or not all(_is(each, TASK_ID_BYTES) for each in value):
        raise FrameError(f"ids of actors are no {value!r:.60}")
    return list(value)


def functions(value: Any) -> list[bytes]:
    """Ids of functions."""
    if not isinstance(value, list | tuple) or not all(isinstance(each, bytes) for each in value):
        raise FrameError(f"ids of functions are no {value!r:.60}")
    return list(value)


def objects(value: Any) -> list[bytes]:
    """Ids of objects; none where there is nothing."""
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(_is(each, OBJECT_ID_BYTES) for each in value):
        raise FrameError(f"ids of objects are no {value!r:.60}")
    return list(value)


def housed(value: Any, node: bytes) -> list[Any]:
    """[(actor, worker, lease, allocation), …] of the node."""
    for each in rows(value, 4):
        if not _is(each[0], TASK_ID_BYTES) or not _is(each[1], PROCESS_ID_BYTES) or type(each[2]) is not int:
            raise FrameError(f"an actor of a node is no {each!r:.60}")
        allocation(each[3])
        if not each[1].startswith(node):
            raise FrameError(f"worker {each[1].hex()} is of another node")
    return list(value)


def _is(value: Any, size: int) -> bool:
    return isinstance(value, bytes) and len(value) == size
