"""What a worker writes down as it goes, for its node manager to read after its death.

In a small shared file, so that it is there however the process ends: which task runs, how many tasks of its lease it
has answered, and its latest answers. An answer that the process had given but that had not left it yet (they leave
together, see Runtime.send_soon) is so delivered by the node manager; an owner that has it already ignores it.

    0    the task that runs: an id, or zeros
    16   tasks of the lease that were answered, u64
    24   which half is being written, u8; then bytes used of each half, u32, u32
    33   two halves: entries of u32 length, u32 attempt of the task, process id of the owner, record

What an actor that ends by itself says to its manager stands here too, as an entry whose owner is that manager.

Of an answer that is too long its task's id stands here alone: it has left, and may be under way.

A half that is full makes the other, older one start afresh: what stands there has left long ago.
"""

from __future__ import annotations

import struct
from mmap import mmap
from typing import Final

from skate.ids import PROCESS_ID_BYTES, TASK_ID_BYTES, ProcessId

NO_TASK: Final = bytes(TASK_ID_BYTES)
_HEADER: Final = struct.Struct("<BII")
_HEADER_AT: Final = TASK_ID_BYTES + 8
_HALVES_AT: Final = _HEADER_AT + _HEADER.size
_HALF_BYTES: Final = 1 << 14
BYTES: Final = _HALVES_AT + 2 * _HALF_BYTES
#: length, attempt and owner of an entry
_ENTRY_BYTES: Final = 4 + 4 + PROCESS_ID_BYTES
#: a longer record does not stand here: its answer leaves at once
LONGEST: Final = _HALF_BYTES // 4


class Testament:
    """The worker's side. One thread at a time."""

    def __init__(self, memory: mmap) -> None:
        self._memory = memory
        self._half = 0
        self._used = [0, 0]

    def new_lease(self) -> None:
        """From here on the tasks of another lease are counted."""
        self._memory[:_HEADER_AT] = bytes(_HEADER_AT)

    def begins(self, task: bytes) -> None:
        """The task runs from here on."""
        self._memory[:TASK_ID_BYTES] = task

    def answered(self, number: int) -> None:
        """No task runs, and `number` tasks of the lease were answered."""
        self._memory[:_HEADER_AT] = NO_TASK + number.to_bytes(8, "little")

    def note(self, owner: ProcessId, attempt: int, record: bytes) -> bool:
        """Writes down the answer of an attempt at a task; False for one that is too long."""
        size = len(record)
        if size > LONGEST:
            return False
        used = self._used[self._half]
        total = _ENTRY_BYTES + size
        if used + total > _HALF_BYTES:
            self._half ^= 1
            used = 0
        at = _HALVES_AT + self._half * _HALF_BYTES + used
        memory = self._memory
        memory[at : at + total] = (size | attempt << 32).to_bytes(8, "little") + owner + record
        self._used[self._half] = used + total  # after the entry: what is counted is whole
        memory[_HEADER_AT:_HALVES_AT] = _HEADER.pack(self._half, *self._used)
        return True


def running(memory: mmap) -> bytes:
    """The task that ran at the end: an id, or empty."""
    task = memory[:TASK_ID_BYTES]
    return b"" if task == NO_TASK else task


def answers(memory: mmap) -> tuple[int, list[tuple[ProcessId, int, bytes]]]:
    """(how many tasks were answered, the latest answers as (owner, attempt, record), oldest first)."""
    number = int.from_bytes(memory[TASK_ID_BYTES:_HEADER_AT], "little")
    half, *used = _HEADER.unpack(memory[_HEADER_AT:_HALVES_AT])
    found: list[tuple[ProcessId, int, bytes]] = []
    half &= 1
    for each in (half ^ 1, half):
        start = _HALVES_AT + each * _HALF_BYTES
        at, end = start, start + min(used[each], _HALF_BYTES)
        while at + _ENTRY_BYTES <= end:
            size = int.from_bytes(memory[at : at + 4], "little")
            attempt = int.from_bytes(memory[at + 4 : at + 8], "little")
            owner = ProcessId(memory[at + 8 : at + _ENTRY_BYTES])
            at += _ENTRY_BYTES + size
            if size > LONGEST or at > end:
                break  # it was written over in part
            found.append((owner, attempt, memory[at - size : at]))
    return number, found
