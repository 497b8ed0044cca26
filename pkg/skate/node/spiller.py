"""The node manager's part in spilling: between the machine that decides, the threads that write, and the inbox.

State: core.spilling's machine, store.spill's threads. `step` is called in each round of the node manager's loop.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Container
from typing import Any

from skate._c.arena import Arena
from skate.config import SPILL_FOLDER
from skate.core.spilling import (
    BATCH_BYTES,
    GONE,
    THERE,
    Answer,
    DeleteObject,
    Effect,
    Evict,
    LookFor,
    ReadObject,
    Spilling,
    View,
    WarnNearlyFull,
)
from skate.ids import ObjectId, ProcessId
from skate.net.mailbox import Mailbox
from skate.store.local import LocalStore
from skate.store.report import report
from skate.store.spill import SpillThreads, WriteEnded
from skate.wire import messages as m
from skate.wire.messages import encode

log = logging.getLogger("skate.node")

#: a job writes no more than this share of the store, so that who waits for a little room need not wait for long
BATCH_SHARE = 8


class Spiller:
    """Serves what processes ask about room and spilled objects."""

    def __init__(self, folder: str, store: LocalStore, arena: Arena, max_bytes: int | None) -> None:
        """`folder` is the session's, with the folder to spill to inside (see node.sessions.make_spill_folder)."""
        self._folder = os.path.join(folder, SPILL_FOLDER)
        self._store = store
        batch = max(1, min(BATCH_BYTES, store.usage()["capacity"] // BATCH_SHARE))
        self.machine = Spilling(max_bytes=max_bytes, batch_bytes=batch)
        self._threads = SpillThreads(folder, arena)
        self._mailbox: Mailbox | None = None
        self._warn: Callable[[str], None] | None = None
        #: who looks on other nodes, and who asks for room for what comes from there: see ask_others
        self._want: Callable[[ProcessId, int, ObjectId], None] | None = None
        self._room_answered: Callable[[int, tuple[Any, ...]], None] | None = None
        #: rooms that the node manager itself was promised, or not: (token, answer)
        self._own: list[tuple[int, tuple[Any, ...]]] = []

    def join(self, mailbox: Mailbox, warn: Callable[[str], None]) -> None:
        """Results of the threads wake the mailbox's reader; answers leave through it.

        `warn` is called once at most, when the store is nearly full and cannot spill.
        """
        self._mailbox = mailbox
        self._warn = warn
        mailbox.watch(self._threads.fd, self._ended)

    def ask_others(
        self,
        want: Callable[[ProcessId, int, ObjectId], None],
        room_answered: Callable[[int, tuple[Any, ...]], None],
    ) -> None:
        """What is neither in the store nor on disk is asked for with `want(process, token, object)`; that answers.

        `room_answered(token, answer)`: of room that the node manager itself has requested.
        """
        self._want = want
        self._room_answered = room_answered

    # ------------------------------------------------------------------------------------------------- messages

    def make_room(self, process: Any, token: int, nbytes: int, attempt: int) -> None:
        self.machine.room_requested(process.id, token, nbytes, attempt)

    def restore(self, process: Any, token: int, object_id: ObjectId, attempt: int) -> None:
        self.machine.restore_requested(process.id, token, object_id, attempt)

    def forget(self, process: Any, token: int, object_id: ObjectId) -> None:
        if token:  # who makes it again waits for the answer; who frees it does not
            self.machine.remake_requested(process.id, token, object_id)
        else:
            self.machine.forget_requested(object_id)

    def process_left(self, process: ProcessId, living: Container[ProcessId]) -> None:
        self.machine.process_left(process)
        self.owners_left(living)

    def owners_left(self, living: Container[ProcessId]) -> None:
        self.machine.owners_left(living)

    def _ended(self) -> None:
        for ended in self._threads.results():
            if type(ended) is WriteEnded:
                self.machine.write_ended(ended.written, ended.kept, ended.size, ended.trouble)
            else:
                self.machine.read_ended(ended.object, ended.outcome)  # type: ignore[union-attr]

    # -------------------------------------------------------------------------------------------------- decisions

    def step(self, now: float) -> float | None:
        """Does what is to be done; gives the time of the next look, or None."""
        news = True
        while news:
            news = False
            bytes_wanted = self.machine.wants_view(now)
            view = None if bytes_wanted is None else self._look(bytes_wanted)
            for effect in self.machine.decide(now, view):
                news |= self._carry_out(effect)
            own, self._own = self._own, []
            for token, answer in own:
                assert self._room_answered is not None
                self._room_answered(token, answer)
                news = True
        return self.machine.next_look()

    def _look(self, bytes_wanted: int) -> View:
        usage = self._store.usage()
        place, trouble = os.path.realpath(self._folder), ""
        disk_free = disk_total = 0
        try:
            if not os.path.isdir(place):  # somebody has cleared it away
                os.makedirs(place, 0o700)
                log.warning("%s was gone, with what was spilled there: made again", place)
            disk = os.statvfs(place)
            disk_free, disk_total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        except OSError as error:
            trouble = f"{place} cannot be used: {error.strerror}"
            log.error("%s", trouble)
        return View(
            capacity=usage["capacity"],
            used=usage["used"],
            largest_free=usage["largest_free"],
            victims=self._store.victims(bytes_wanted),
            disk_free=disk_free,
            disk_total=disk_total,
            disk=f"the disk of {place}",
            trouble=trouble,
        )

    def _carry_out(self, effect: Effect) -> bool:
        """Whether something has happened already that the machine now has to decide on."""
        if isinstance(effect, ReadObject) and (ended := self._threads.read_now(effect)) is not None:
            self.machine.read_ended(ended.object, ended.outcome)
            return True
        if isinstance(effect, Evict):
            self.machine.evicted([each for each in effect.objects if self._store.evict(each)])
            return True
        if isinstance(effect, Answer):
            self._answer(effect.process, effect.token, effect.value)
        elif isinstance(effect, LookFor):
            if self._store.contains(effect.object):
                self._answer(effect.process, effect.token, (THERE,))
            elif self._want is None:
                self._answer(effect.process, effect.token, (GONE,))
            else:
                self._want(effect.process, effect.token, effect.object)
        elif isinstance(effect, DeleteObject):
            self._store.delete(effect.object)
        elif isinstance(effect, WarnNearlyFull):
            assert self._warn is not None
            summary = report(self._store.usage(), self.machine.stats(), self._store.objects())
            self._warn(
                f"The object store is nearly full, and nothing more can be spilled: {effect.why}. Puts fail when that "
                "lasts. Drop refs and arrays you are done with, or init() with a larger object_store_memory.\n"
                f"{summary}"
            )
        else:
            self._threads.submit(effect)
        return False

    def _answer(self, to: ProcessId, token: int, value: tuple[Any, ...]) -> None:
        assert self._mailbox is not None
        if to == self._mailbox.me:
            self._own.append((token, value))
            return
        self._mailbox.post(to, encode(m.StoreReply(token, value)))

    # --------------------------------------------------------------------------------------------------- reports

    def listing(self) -> list[tuple[bytes, int, int]]:
        """(object id, size in bytes, creator's pid) of what is on disk alone, and wanted."""
        return [
            (known.span.object, known.span.size, known.creator)
            for known in self.machine.on_disk()
            if known.wanted
        ]

    def close(self) -> None:
        """Ends the threads; blocks for as long as it takes to write a few megabytes."""
        if self._mailbox is not None:
            self._mailbox.unwatch(self._threads.fd)
        self._threads.close()
