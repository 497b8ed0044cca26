"""Identifiers of processes, tasks and objects: plain `bytes`, made without a message or a system call.

An id says who made it, so whoever holds an object's id knows the object's owner:

    process id   8 bytes   4 of the node, 4 of the process on it; given out by the node manager
    task id     16 bytes   process id of the owner, then a counter of that process (big-endian; _c.refs.TaskIds)
    object id   20 bytes   task id, then the index of the return value (big-endian); `put` uses index 0 of an id
                           of its own

Plain bytes hash, compare and pickle at C speed; the types below are names for readers and for mypy.
"""

from __future__ import annotations

import os
from typing import NewType

NodeId = NewType("NodeId", bytes)
ProcessId = NewType("ProcessId", bytes)
TaskId = NewType("TaskId", bytes)
ObjectId = NewType("ObjectId", bytes)
#: that of the task which makes the actor
ActorId = NewType("ActorId", TaskId)

NODE_ID_BYTES = 4
PROCESS_ID_BYTES = 8
TASK_ID_BYTES = 16
OBJECT_ID_BYTES = 20


#: what follows a task's id in the id of its first return value
FIRST_INDEX = bytes(OBJECT_ID_BYTES - TASK_ID_BYTES)


def new_node_id() -> NodeId:
    """A random node id. It never is all zeros: that names no node."""
    while True:
        candidate = os.urandom(NODE_ID_BYTES)
        if any(candidate):
            return NodeId(candidate)


def process_id(node: NodeId, serial: int) -> ProcessId:
    """The id of the `serial`-th process that `node` has known; 0 is the node manager itself."""
    return ProcessId(node + serial.to_bytes(4, "big"))


def object_id(task: TaskId, index: int) -> ObjectId:
    return ObjectId(task + index.to_bytes(4, "big"))


def owner_of(identifier: bytes) -> ProcessId:
    """The process that owns a task or an object."""
    return ProcessId(identifier[:PROCESS_ID_BYTES])


def node_of(identifier: bytes) -> NodeId:
    """The node of a process, or of what a process made."""
    return NodeId(identifier[:NODE_ID_BYTES])


def manager_of(identifier: bytes) -> ProcessId:
    """The node manager of a process's node, or of the node that this is the id of."""
    return process_id(node_of(identifier), 0)
