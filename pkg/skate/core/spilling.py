"""What a full store writes to disk, where to, when it comes back, and when a file goes.

Pure. State: the objects that are on disk or on their way, the files they lie in, who waits for room. Events:
room_requested, restore_requested, forget_requested, write_ended, read_ended, evicted, process_left, owners_left. They
note what happened; `decide` then acts, on a View of store and disk where `wants_view` asks for one. Effects are what it
returns.

An object's life here, from the choice as a victim until its owner frees it:

    WRITING --evicted--> ON_DISK --asked for--> READING --back in the store--> KEPT --evicted--> ON_DISK ...
       |                    ^--no room------------'                             ^
       `--somebody reads it, so it stays in the store---------------------------'

Rules:

* Objects are immutable, so each is written once: its copy is KEPT while it is in the store again, and leaving the
  store once more costs nothing.
* The oldest unpinned objects go first: those that have a copy at once, and where none of the oldest has one, a batch a
  job is written, into the last file until that is full. One job writes at a time.
* Whoever finds nothing in the store asks here; what is unknown here and not in the store is gone. The store notes which
  objects have a copy (see Arena.delete), so an owner that frees one says so here.
* Who asks again after being told that there is room insists: more is spilled, whatever the store's figures say. (They
  cannot know that the memory behind the store has run out, or that others were faster.)
* A request for room fails when for ROOM_SECONDS nothing could be spilled, or after MOST_ATTEMPTS.
* A restore never fails for want of room: where none can be made the reader is told the file, and reads it itself.
* A file goes when nothing in it is wanted. `max_bytes` and the disk's free share limit the files' sizes together. Where
  they leave no room for what must be written, files go of which the store has everything.

Invariants (`check`): a file's `live` are the objects that name it; none is empty unless it is being written; files are
as long as they are counted; who waits for an object waits once; at most one file is being written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Final, NamedTuple

from skate.ids import ObjectId, ProcessId, owner_of

#: seconds a put waits while nothing can be spilled: longer than most tasks hold their arguments, short enough that a
#: program whose own arrays fill the store hears of it while its user still looks on
ROOM_SECONDS: Final = 5.0
#: seconds between two looks at a store whose objects are all pinned: letting go of a pin sends no message
LOOK_SECONDS: Final = 0.05
#: seconds until a disk that refused a write is tried again
TROUBLE_SECONDS: Final = 1.0
#: how often a put may be told that there is room, and find none
MOST_ATTEMPTS: Final = 64
#: how often a restored object may be spilled again before its reader got hold of it; then the reader is told the file
RESTORE_ATTEMPTS: Final = 3
#: bytes after which a file is full; and what one job writes, where no single object is larger
FILE_BYTES: Final = 128 << 20
BATCH_BYTES: Final = 32 << 20
#: what of a batch is evicted at least where that costs nothing, so that not each small object needs a look at the store
EVICT_SHARE: Final = 8
#: objects of one job
BATCH_OBJECTS: Final = 4096
#: where objects begin in a file, so that they can be read there as they are read in the store
ALIGN: Final = 64
#: share of the store in use from which a store that cannot spill is worth a warning
NEARLY_FULL: Final = 0.9
#: share of the disk that spilling leaves free
FREE_SHARE: Final = 0.05

WRITING: Final = "WRITING"
ON_DISK: Final = "ON_DISK"
READING: Final = "READING"
KEPT: Final = "KEPT"

#: outcomes of a read
RESTORED: Final = "restored"
REMADE: Final = "remade"
FULL: Final = "full"
DELETED: Final = "deleted"

# First words of an Answer.
MADE: Final = "made"
DISK: Final = "disk"
THERE: Final = "there"
GONE: Final = "gone"
IN_FILE: Final = "file"
FAILED: Final = "failed"


class View(NamedTuple):
    """Store and disk at one moment; bytes."""

    capacity: int
    used: int
    largest_free: int
    #: unpinned objects, oldest first: (id, size)
    victims: Sequence[tuple[bytes, int]]
    disk_free: int
    disk_total: int
    #: which disk that is, and why nothing can be written there
    disk: str = "the disk"
    trouble: str = ""


class Answer(NamedTuple):
    """Effect: answer a process's question. To room_requested: (MADE,), (FULL, why) or (DISK, why). To
    restore_requested: (THERE,), (GONE,), (IN_FILE, file, offset, size) or (FAILED, why)."""

    process: ProcessId
    token: int
    value: tuple[Any, ...]


class LookFor(NamedTuple):
    """Effect: nothing is known of the object here: answer THERE if the store has it, else GONE."""

    process: ProcessId
    token: int
    object: ObjectId


class Span(NamedTuple):
    """Where an object lies in a file."""

    object: ObjectId
    offset: int
    size: int


class WriteObjects(NamedTuple):
    """Effect: write these objects and evict them, one by one; `write_ended` follows."""

    file: int
    spans: tuple[Span, ...]


class ReadObject(NamedTuple):
    """Effect: bring the object back into the store; `read_ended` follows."""

    file: int
    span: Span


class Evict(NamedTuple):
    """Effect: take these objects out of the store, which have a copy; `evicted` follows before the next decision."""

    objects: tuple[ObjectId, ...]


class DeleteFile(NamedTuple):
    """Effect: remove the file. No read of it is left."""

    file: int


class DeleteObject(NamedTuple):
    """Effect: delete what was just brought back, since nobody wants it any more."""

    object: ObjectId


class WarnNearlyFull(NamedTuple):
    """Effect: tell the user that the store is nearly full and spilling does not help."""

    why: str


Effect = Answer | LookFor | WriteObjects | ReadObject | Evict | DeleteFile | DeleteObject | WarnNearlyFull


class SpillFile:
    """A file of many objects."""

    __slots__ = ("live", "number", "size", "writing")

    def __init__(self, number: int) -> None:
        self.number = number
        #: bytes written or about to be
        self.size = 0
        #: objects in it that are still wanted
        self.live: set[bytes] = set()
        self.writing = False


class SpilledObject:
    """An object that has a copy on disk, or is to get one."""

    __slots__ = ("creator", "file", "makers", "span", "state", "waiters", "wanted")

    def __init__(self, file: SpillFile, span: Span) -> None:
        self.file = file
        self.span = span
        self.state = WRITING
        #: its owner has not freed it
        self.wanted = True
        #: (process, token) of those who make it again, and may not seal it before this copy is gone
        self.makers: list[tuple[ProcessId, int]] = []
        #: pid of the process that made it; 0 until it is written
        self.creator = 0
        #: (process, token) of those to be told when it is back
        self.waiters: list[tuple[ProcessId, int]] = []

    def __repr__(self) -> str:
        return f"<SpilledObject {self.span.object.hex()} {self.state} in file {self.file.number}>"


class Need:
    """Somebody who waits for room: a process that puts, or an object on its way back."""

    __slots__ = ("attempt", "insists", "nbytes", "object", "process", "stuck_since", "token")

    def __init__(
        self, process: ProcessId | None, token: int, nbytes: int, attempt: int, back: bytes | None
    ) -> None:
        self.process = process
        self.token = token
        self.nbytes = nbytes
        self.attempt = attempt
        #: the object that comes back; None for a put
        self.object = back
        #: something must be spilled first, whatever the store's figures say
        self.insists = attempt > 0
        #: since when nothing can be spilled; None while something is
        self.stuck_since: float | None = None


class Spilling:
    """The spilled objects of one node."""

    def __init__(
        self, *, max_bytes: int | None = None, batch_bytes: int = BATCH_BYTES, file_bytes: int = FILE_BYTES
    ) -> None:
        #: what the files may hold together; None: what the disk's free share allows
        self.max_bytes = max_bytes
        self.batch_bytes = batch_bytes
        self.file_bytes = file_bytes
        self.objects: dict[bytes, SpilledObject] = {}
        self.files: dict[int, SpillFile] = {}
        #: bytes of all files
        self.file_total = 0
        #: objects and bytes that were ever written, and came back
        self.counts = {"spilled": 0, "spilled_bytes": 0, "restored": 0, "restored_bytes": 0}
        self._needs: deque[Need] = deque()
        self._current: SpillFile | None = None
        self._job: WriteObjects | None = None
        self._numbers = 0
        self._effects: list[Effect] = []
        #: why the disk refused the last write; and from when on it is tried again (None: from the next decision)
        self._trouble = ""
        self._retry_at: float | None = None
        self._next_look: float | None = None
        self._warned = False

    # --------------------------------------------------------------------------------------------------- events

    def room_requested(self, process: ProcessId, token: int, nbytes: int, attempt: int) -> None:
        """A put found no room for `nbytes`, `attempt` times after it was told that there is some."""
        if attempt >= MOST_ATTEMPTS:
            why = f"room was made {attempt} times, and others took it each time, or the store's memory has run out"
            self._effects.append(Answer(process, token, (FULL, why)))
        else:
            self._needs.append(Need(process, token, nbytes, attempt, None))

    def restore_requested(self, process: ProcessId, token: int, object_id: ObjectId, attempt: int) -> None:
        """A process did not find an object in the store, `attempt` times after it was told that it is there."""
        known = self.objects.get(object_id)
        if known is None or not known.wanted or known.state == KEPT:
            self._effects.append(LookFor(process, token, object_id))
        elif attempt >= RESTORE_ATTEMPTS and known.state == ON_DISK and not known.waiters:
            self._tell_file(known, process, token)
        else:
            known.waiters.append((process, token))
            if known.state == ON_DISK and len(known.waiters) == 1:
                self._read(known)

    def forget_requested(self, object_id: bytes) -> None:
        """The owner frees an object that it did not find in the store, or that has a copy."""
        known = self.objects.get(object_id)
        if known is None:
            return
        known.wanted = False
        if known.state in (ON_DISK, KEPT):
            self._drop_unwanted(known)

    def remake_requested(self, process: ProcessId, token: int, object_id: bytes) -> None:
        """A new attempt makes an object again. It is answered when no copy of the old one is left or under way: only
        then may it seal its own, or a job that began with the old one could take the new one for it.
        """
        known = self.objects.get(object_id)
        if known is None:
            self._effects.append(Answer(process, token, (THERE,)))
        else:
            known.makers.append((process, token))
            self.forget_requested(object_id)

    def write_ended(
        self, written: Mapping[bytes, int], kept: Container[bytes], size: int, trouble: str
    ) -> None:
        """The job is over: what was written, by whose pids; what of it the store still has; the file's length.

        What is not in `written` is in the store, or was freed. `trouble`: why the disk refused the rest, or empty.
        """
        job = self._job
        assert job is not None
        self._job = None
        file = self.files[job.file]
        file.writing = False
        self.file_total += size - file.size
        file.size = size
        for span in job.spans:
            known = self.objects[span.object]
            creator = written.get(span.object)
            if creator is None:
                self._drop(known, THERE)
                continue
            known.creator = creator
            self.counts["spilled"] += 1
            self.counts["spilled_bytes"] += span.size
            if span.object in kept:
                self._keep(known)
                continue
            known.state = ON_DISK
            if not known.wanted:
                self._drop_unwanted(known)
            elif known.waiters:
                self._read(known)
        if any(span.object in written and span.object not in kept for span in job.spans):
            self._room_was_made()
        self._trouble = trouble
        self._retry_at = None
        if trouble:
            self._current = None  # perhaps somebody has removed it
        self._delete_if_empty(file)

    def read_ended(self, object_id: bytes, outcome: str) -> None:
        """A read is over: RESTORED; FULL, there was no room; DELETED, it was freed meanwhile; REMADE, a new attempt of
        its task has made, or is making, it again; else why it failed.
        """
        known = self.objects[object_id]
        known.state = ON_DISK
        if outcome == RESTORED:
            self.counts["restored"] += 1
            self.counts["restored_bytes"] += known.span.size
            if not known.wanted and not known.makers:
                self._effects.append(DeleteObject(known.span.object))
            self._keep(known)
        elif outcome == REMADE:
            self._drop(known, THERE)
        elif outcome == DELETED or not known.wanted:
            self._drop_unwanted(known)
        elif outcome == FULL:
            if known.waiters:
                self._needs.append(Need(None, 0, known.span.size, 1, object_id))
        else:
            self._answer_waiters(known, (FAILED, outcome))

    def evicted(self, objects: Sequence[bytes]) -> None:
        """Of the objects of an Evict, those that are out of the store; somebody reads the others."""
        for object_id in objects:
            self.objects[object_id].state = ON_DISK
        if objects:
            self._room_was_made()

    def process_left(self, process: ProcessId) -> None:
        """Its questions need no answer any more."""
        self._needs = deque(need for need in self._needs if need.process != process)
        self._effects = [each for each in self._effects if getattr(each, "process", None) != process]
        for known in self.objects.values():
            if known.waiters:
                known.waiters = [waiter for waiter in known.waiters if waiter[0] != process]
            known.makers = [maker for maker in known.makers if maker[0] != process]

    def owners_left(self, living: Container[ProcessId]) -> None:
        """Objects of owners that are not among the living are nobody's."""
        for object_id in [object_id for object_id in self.objects if owner_of(object_id) not in living]:
            self.forget_requested(object_id)

    # -------------------------------------------------------------------------------------------------- decisions

    def wants_view(self, now: float) -> int | None:
        """Bytes of victims that the next `decide` wants to see; None where it needs no look at the store."""
        if (
            not self._needs
            or self._job is not None
            or (self._next_look is not None and now < self._next_look)
        ):
            return None
        return max(self.batch_bytes, max(need.nbytes for need in self._needs))

    def decide(self, now: float, view: View | None) -> list[Effect]:
        """Acts on all that has happened since the last call."""
        if self._trouble and self._retry_at is None:
            self._retry_at = now + TROUBLE_SECONDS
        if view is not None:
            self._grant(view.largest_free, lambda need: not need.insists)
            if self._needs and not self._evict(view):
                why = self._start_job(now, view)
                if why is not None:
                    self._stuck(now, view, why)
        if not self._needs:
            self._next_look = None
        effects, self._effects = self._effects, []
        return effects

    def next_look(self) -> float | None:
        """When `decide` wants to be called again though nothing happens; None: not before something does."""
        return self._next_look if self._needs and self._job is None else None

    def _grant(self, room: int, may: Callable[[Need], bool]) -> None:
        """Room that is there goes to those who may have it, in the order they came; the small may overtake."""
        waiting: deque[Need] = deque()
        for need in self._needs:
            if need.nbytes <= room and may(need):
                room -= need.nbytes
                self._give(need)
            else:
                waiting.append(need)
        self._needs = waiting

    def _give(self, need: Need) -> None:
        if need.process is not None:
            self._effects.append(Answer(need.process, need.token, (MADE,)))
            return
        known = self.objects.get(need.object or b"")
        if known is not None and known.state == ON_DISK and known.waiters:
            self._read(known)

    def _evict(self, view: View) -> bool:
        """Has the oldest go that have a copy; whether there are any among the oldest."""
        wanted = max(self.batch_bytes // EVICT_SHARE, sum(need.nbytes for need in self._needs))
        going: list[ObjectId] = []
        for victim, size in view.victims:
            known = self.objects.get(victim)
            if known is not None and known.state == KEPT:
                going.append(known.span.object)
                wanted -= size
                if wanted <= 0:
                    break
        if going:
            self._effects.append(Evict(tuple(going)))
        return bool(going)

    def _start_job(self, now: float, view: View) -> tuple[str, str] | None:
        """Writes what is oldest. Where nothing can be written: (FULL or DISK, why)."""
        fresh = [(ObjectId(victim), size) for victim, size in view.victims if victim not in self.objects]
        if not fresh:
            return FULL, "all that it holds is in use, or being made"
        if self._trouble and self._retry_at is not None and now < self._retry_at:
            return DISK, self._trouble
        if view.trouble:
            return DISK, view.trouble
        allowed, why = self._allowed(view, 0)
        if self._write_some(fresh, allowed):
            return None
        freed = self._drop_files_in_store(fresh[0][1])
        if freed and self._write_some(fresh, self._allowed(view, freed)[0]):
            return None
        return DISK, why

    def _allowed(self, view: View, freed: int) -> tuple[int, str]:
        """How many bytes may be written, and what limits them. `freed`: bytes of files that went since the view."""
        allowed = max(0, view.disk_free + freed - int(view.disk_total * FREE_SHARE))
        keep = f"{view.disk} must keep {FREE_SHARE:.0%} of its {view.disk_total:,} bytes free"
        why = f"{keep}, and has {view.disk_free:,}"
        if self.max_bytes is not None and self.max_bytes - self.file_total < allowed:
            allowed = self.max_bytes - self.file_total
            why = f"spilled objects take {self.file_total:,} bytes, and may take {self.max_bytes:,}"
        return allowed, why

    def _drop_files_in_store(self, nbytes: int) -> int:
        """Gives up the oldest files that only repeat the store, until `nbytes` are free; gives how many are."""
        freed = 0
        for file in list(self.files.values()):
            if freed >= max(nbytes, self.batch_bytes):
                break
            if self._repeats_store(file):
                freed += file.size
                for object_id in list(file.live):
                    self._drop(self.objects[object_id], THERE)
        return freed

    def _repeats_store(self, file: SpillFile) -> bool:
        """Whether the store has all that is wanted of the file."""
        return all(self.objects[object_id].state == KEPT for object_id in file.live)

    def _write_some(self, fresh: Sequence[tuple[ObjectId, int]], allowed: int) -> bool:
        """Begins to write the oldest of `fresh`, a batch; False where that may be no byte of them."""
        file = self._current
        # one that only repeats the store may have to go
        if file is None or file.size >= self.file_bytes or self._repeats_store(file):
            file = SpillFile(self._numbers + 1)
        spans: list[Span] = []
        end = file.size
        for victim, size in fresh[:BATCH_OBJECTS]:
            offset = -(-end // ALIGN) * ALIGN
            if spans and offset + size - file.size > self.batch_bytes:
                break
            if offset + size - file.size > allowed:
                continue  # a smaller one may fit
            spans.append(Span(victim, offset, size))
            end = offset + size
        if spans:
            self._write(file, spans, end)
        return bool(spans)

    def _write(self, file: SpillFile, spans: list[Span], end: int) -> None:
        if file.number not in self.files:
            self._numbers = file.number
            self.files[file.number] = self._current = file
        self.file_total += end - file.size
        file.size = end
        file.writing = True
        for span in spans:
            self.objects[span.object] = SpilledObject(file, span)
            file.live.add(span.object)
        self._job = WriteObjects(file.number, tuple(spans))
        self._effects.append(self._job)
        self._next_look = None

    def _stuck(self, now: float, view: View, why: tuple[str, str]) -> None:
        """Nothing can be spilled now: who reads is told the file, who puts waits a while."""
        if view.used >= NEARLY_FULL * view.capacity and not self._warned:
            self._warned = True
            self._effects.append(WarnNearlyFull(why[1]))
        # Puts that insist take their chance too: it is all there is, and they come here no more often than this looks.
        self._grant(view.largest_free, lambda need: need.process is not None)
        waiting: deque[Need] = deque()
        for need in self._needs:
            if need.process is None:
                known = self.objects.get(need.object or b"")
                if known is not None and known.state == ON_DISK:
                    for process, token in known.waiters:
                        self._tell_file(known, process, token)
                    known.waiters = []
                continue
            if need.stuck_since is None:
                need.stuck_since = now
            if now - need.stuck_since >= ROOM_SECONDS:
                self._effects.append(Answer(need.process, need.token, why))
            else:
                waiting.append(need)
        self._needs = waiting
        self._next_look = now + LOOK_SECONDS

    def _room_was_made(self) -> None:
        """Something has left the store: nobody insists, or is stuck, any more."""
        for need in self._needs:
            need.insists = False
            need.stuck_since = None

    def _keep(self, known: SpilledObject) -> None:
        """It is in the store, and its copy stays, if it is wanted."""
        if known.wanted:
            known.state = KEPT
            self._answer_waiters(known, (THERE,))
        else:
            self._drop_unwanted(known)

    def _read(self, known: SpilledObject) -> None:
        known.state = READING
        self._effects.append(ReadObject(known.file.number, known.span))

    def _tell_file(self, known: SpilledObject, process: ProcessId, token: int) -> None:
        answer = (IN_FILE, known.file.number, known.span.offset, known.span.size)
        self._effects.append(Answer(process, token, answer))

    def _answer_waiters(self, known: SpilledObject, value: tuple[Any, ...]) -> None:
        for process, token in known.waiters:
            self._effects.append(Answer(process, token, value))
        known.waiters = []

    def _drop(self, known: SpilledObject, word: str) -> None:
        """Its copy is of no use any more; who waits for it is told that word."""
        self._answer_waiters(known, (word,))
        for process, token in known.makers:
            self._effects.append(Answer(process, token, (THERE,)))
        del self.objects[known.span.object]
        known.file.live.discard(known.span.object)
        self._delete_if_empty(known.file)

    def _drop_unwanted(self, known: SpilledObject) -> None:
        self._drop(known, THERE if known.makers else GONE)

    def _delete_if_empty(self, file: SpillFile) -> None:
        if file.live or file.writing or file.number not in self.files:
            return
        del self.files[file.number]
        self.file_total -= file.size
        if file is self._current:
            self._current = None
        self._effects.append(DeleteFile(file.number))

    # --------------------------------------------------------------------------------------------------- reports

    def stats(self) -> dict[str, int]:
        """Numbers about what is on disk alone."""
        live = [known.span.size for known in self.on_disk()]
        return {
            "objects": len(live),
            "bytes": sum(live),
            "files": len(self.files),
            "file_bytes": self.file_total,
        } | {f"{name}_ever": number for name, number in self.counts.items()}

    def on_disk(self) -> list[SpilledObject]:
        """What is wanted, or on its way back, and not in the store."""
        return [known for known in self.objects.values() if known.state in (ON_DISK, READING)]

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        live: dict[int, set[bytes]] = {number: set() for number in self.files}
        for object_id, known in self.objects.items():
            if known.span.object != object_id or known.file is not self.files.get(known.file.number):
                raise AssertionError(f"{known} stands under {object_id.hex()}, or its file is gone")
            live[known.file.number].add(object_id)
            if known.span.offset % ALIGN or known.span.offset + known.span.size > known.file.size:
                raise AssertionError(f"{known} lies at {known.span} in a file of {known.file.size} bytes")
            if (known.state == WRITING) != (self._job is not None and known.span in self._job.spans):
                raise AssertionError(f"{known}, but the job is {self._job}")
            if len(set(known.waiters)) != len(known.waiters):
                raise AssertionError(f"somebody waits twice for {known}")
            if not known.wanted and known.state in (ON_DISK, KEPT):
                raise AssertionError(f"{known} is kept, but nobody wants it")
            if known.state == KEPT and (known.waiters or known.makers):
                raise AssertionError(f"{known} is in the store, but somebody waits for it")
            if (
                known.waiters
                and known.state == ON_DISK
                and not any(need.object == object_id for need in self._needs)
            ):
                raise AssertionError(f"{known} is waited for, but does not come")
        for number, file in self.files.items():
            if file.live != live[number]:
                raise AssertionError(
                    f"file {number} counts {len(file.live)} objects, {len(live[number])} name it"
                )
            if not file.live and not file.writing:
                raise AssertionError(f"file {number} is empty")
            if file.writing != (self._job is not None and self._job.file == number):
                raise AssertionError(
                    f"file {number} is being written: {file.writing}, but the job is {self._job}"
                )
        if self.file_total != sum(file.size for file in self.files.values()):
            raise AssertionError(f"the files are counted as {self.file_total} bytes")
