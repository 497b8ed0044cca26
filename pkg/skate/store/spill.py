"""The files of spilled objects, and the threads that write, read and remove them.

State: the folder, a queue of jobs for each thread, the results that nobody has fetched. The threads belong to the node
manager, which goes on serving meanwhile; what is to be written and read is decided by core.spilling. Results are
fetched when `fd` is readable. Removing a large file takes tens of milliseconds, so nobody waits behind that.

An object leaves the store in four steps: pin it, write it, evict it if ours is the only pin, unpin it. Whoever looks
for it in between finds it in the store; from the eviction on it is on disk. Where others pin it, it stays, and is noted
as one that has a copy; so is what is brought back. Whoever reads a file by himself
(`read_file`) may find it gone: then the object is back in the store, or freed.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import threading
from collections import deque
from queue import SimpleQueue

from skate._c.arena import Arena, ArenaFull, NotMaking, ObjectExists
from skate._c.threads import check_threads
from skate.config import SPILL_FOLDER
from skate.core.spilling import DELETED, FULL, REMADE, RESTORED, DeleteFile, ReadObject, WriteObjects
from skate.ids import ObjectId, owner_of

log = logging.getLogger("skate.store")

#: bytes read or written between two looks whether the thread should end
CHUNK_BYTES = 8 << 20
#: bytes that the node manager reads itself, while everybody else waits: a millisecond's work
AT_ONCE_BYTES = 16 << 20
#: nobody waits for a removal, which keeps a core busy for as long as it takes
LOWEST_PRIORITY = 19

Job = WriteObjects | ReadObject | DeleteFile


class WriteEnded:
    """A WriteObjects is over; see core.spilling.Spilling.write_ended."""

    def __init__(self, written: dict[bytes, int], kept: set[bytes], size: int, trouble: str) -> None:
        self.written = written
        self.kept = kept
        self.size = size
        self.trouble = trouble


class ReadEnded:
    """A ReadObject is over; see core.spilling.Spilling.read_ended."""

    def __init__(self, object_id: ObjectId, outcome: str) -> None:
        self.object = object_id
        self.outcome = outcome


def path_of(folder: str, number: int) -> str:
    return os.path.join(folder, SPILL_FOLDER, str(number))


def read_file(folder: str, number: int, offset: int, size: int) -> memoryview | None:
    """A spilled object in memory of this process, where the store has no room for it; None if the file is gone."""
    try:
        fd = os.open(path_of(folder, number), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        room = memoryview(mmap.mmap(-1, max(1, size)))[:size]
        _read(fd, room, offset)
    finally:
        os.close(fd)
    return room.toreadonly()


def read_bytes(folder: str, number: int, offset: int, size: int) -> bytes:
    """Some bytes of a spill file. OSError where they cannot be read."""
    room = bytearray(size)
    fd = os.open(path_of(folder, number), os.O_RDONLY | os.O_CLOEXEC)
    try:
        with memoryview(room) as view:
            _read(fd, view, offset)
    finally:
        os.close(fd)
    return bytes(room)


def _read(
    fd: int, room: memoryview, offset: int, go_on: threading.Event | None = None, flags: int = 0
) -> None:
    """Fills `room` from the file. OSError where the file is too short, InterruptedError where the thread should end.

    With RWF_NOWAIT, OSError where the disk would have to be read.
    """
    at = 0
    while at < len(room):
        if go_on is not None and not go_on.is_set():
            raise InterruptedError
        count = os.preadv(fd, [room[at : at + CHUNK_BYTES]], offset + at, flags)
        if count == 0:
            raise OSError(f"the spill file ends {len(room) - at} bytes too early")
        at += count


class SpillThreads:
    """Does the jobs, one after the other but for removals."""

    def __init__(self, folder: str, arena: Arena) -> None:
        """Starts the threads. OSError where that cannot be."""
        self._folder = folder
        self._arena = arena
        self._jobs: SimpleQueue[WriteObjects | ReadObject | None] = SimpleQueue()
        #: files whose last object is gone: no read of them is left either
        self._removals: SimpleQueue[DeleteFile | None] = SimpleQueue()
        self._results: deque[WriteEnded | ReadEnded] = deque()
        self._go_on = threading.Event()
        self._go_on.set()
        #: readable when there are results
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._threads = [
            threading.Thread(target=self._run, name="skate-spill", daemon=True),
            threading.Thread(target=self._remove, name="skate-spill-remove", daemon=True),
        ]
        check_threads(len(self._threads))
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Queues a job. Does not block."""
        if type(job) is DeleteFile:
            self._removals.put(job)
        else:
            self._jobs.put(job)  # type: ignore[arg-type]

    def read_now(self, job: ReadObject) -> ReadEnded | None:
        """Does the job at once if its object is not large, and the page cache has it; None where that would block.

        Saves two wake-ups, which take longer than copying a megabyte.
        """
        if job.span.size > AT_ONCE_BYTES:
            return None
        outcome = self._bring_back(job, os.RWF_NOWAIT)
        return None if outcome is None else ReadEnded(job.span.object, outcome)

    def results(self) -> list[WriteEnded | ReadEnded]:
        """What has ended since the last call."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass  # they were fetched already
        ended = []
        while self._results:
            ended.append(self._results.popleft())
        return ended

    def close(self) -> None:
        """Ends the threads, in the middle of a job if need be. Blocks for one chunk, or one removal."""
        self._go_on.clear()
        self._jobs.put(None)
        self._removals.put(None)
        for thread in self._threads:
            thread.join()
        os.close(self.fd)

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None or not self._go_on.is_set():
                return
            if isinstance(job, WriteObjects):
                self._report(self._write_all(job))
            else:
                outcome = self._bring_back(job)
                assert outcome is not None  # a blocking read ends
                self._report(ReadEnded(job.span.object, outcome))

    def _remove(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)  # of this thread alone
        while (job := self._removals.get()) is not None and self._go_on.is_set():
            path = path_of(self._folder, job.file)
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue  # it could not be made, or somebody has cleared the folder
            except OSError:
                log.exception("%s cannot be removed", path)

    def _report(self, ended: WriteEnded | ReadEnded) -> None:
        self._results.append(ended)
        os.eventfd_write(self.fd, 1)

    # --------------------------------------------------------------------------------------------------- writing

    def _write_all(self, job: WriteObjects) -> WriteEnded:
        written: dict[bytes, int] = {}
        kept: set[bytes] = set()
        size = job.spans[0].offset
        new = 0 if size else os.O_CREAT  # what is before that must be there
        try:
            fd = os.open(path_of(self._folder, job.file), os.O_WRONLY | new | os.O_CLOEXEC, 0o600)
        except OSError as error:
            return WriteEnded(written, kept, size, self._trouble(error))
        trouble = ""
        try:
            for span in job.spans:
                done = self._write(fd, span.object, span.offset, span.size)
                if done is None:
                    continue
                written[span.object], out = done
                size = span.offset + span.size
                if not out:
                    kept.add(span.object)
        except InterruptedError:
            trouble = "the node ends"
        except OSError as error:
            trouble = self._trouble(error)
        except Exception as error:
            log.exception("objects could not be spilled")
            trouble = f"spilling failed with {type(error).__name__}: {error}"
        try:
            os.ftruncate(fd, size)  # gives back what the last object had begun
        except OSError as error:
            trouble = trouble or self._trouble(error)
        os.close(fd)
        return WriteEnded(written, kept, size, trouble)

    def _trouble(self, error: OSError) -> str:
        text = (
            f"{os.path.realpath(os.path.join(self._folder, SPILL_FOLDER))} refused a write: {error.strerror}"
        )
        log.error("%s", text)
        return text

    def _write(self, fd: int, object_id: bytes, offset: int, size: int) -> tuple[int, bool] | None:
        """Writes one object and evicts it: its creator, and whether it is out of the store. None where it was freed."""
        pinned = self._arena.get(object_id)
        if pinned is None or pinned.nbytes != size:  # freed since it was chosen, and perhaps made anew
            return None
        with memoryview(pinned) as data:
            at = 0
            while at < size:
                if not self._go_on.is_set():
                    raise InterruptedError
                with data[at : at + CHUNK_BYTES] as chunk:
                    at += os.pwrite(fd, chunk, offset + at)
        creator, out = pinned.creator, pinned.evict()
        return None if out is None else (creator, out)

    # --------------------------------------------------------------------------------------------------- reading

    def _bring_back(self, job: ReadObject, flags: int = 0) -> str | None:
        """What became of a read; None where RWF_NOWAIT did not do."""
        object_id, offset, size = job.span
        path = path_of(self._folder, job.file)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                place = self._arena.allocate(object_id, size, owner_of(object_id))
                with memoryview(place) as room:
                    _read(fd, room, offset, self._go_on, flags)
            finally:
                os.close(fd)
            place.seal(copied=True)
        except FileNotFoundError:
            log.error("%s is gone, and object %s with it", path, object_id.hex())
            return f"its spilled copy is gone: somebody has removed {os.path.realpath(path)}"
        except ArenaFull:
            return FULL
        except ObjectExists:
            return REMADE
        except NotMaking:
            return DELETED
        except Exception as error:
            if flags and isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return None
            log.exception("object %s could not be read back", object_id.hex())
            return f"its spilled copy could not be read: {error}"
        return RESTORED
