"""Which objects this process owns or borrows, who else holds them, and when one may go.

Pure: events in (`on_…`, `pin`, `unpin`), effects out through `take_effects`. The rules:

* An object's owner is the process that made its id. The owner keeps the value while anybody holds the object:
  a handle or pin of its own (`entry.handles`, `entry.pins`), or a borrower with a positive count.
* **Whoever hands a ref on registers the receiver with the owner before it can let go itself**, on the same ordered
  link. So no count is ever missing while it matters, and no acknowledgement is needed. Counts per borrower may go
  below zero for a moment, when a release overtakes a registration that came by another way; somebody else's count is
  positive then.
* A ref that came inside something (a task's arguments, another object's value) is not registered at all while that
  *guard* lasts. When the guard ends, what is still held is named (`kept`), and whoever held the guard's contents
  registers it. A thousand refs read and dropped inside a task cost no message.
* A guard may itself live by another guard: a box that came with a task's arguments guards what was found inside. What
  is said to the box's owner about its contents must not be overtaken by somebody else's letting go of the box; so
  before anything is said, this process borrows the box in its own right (`_borrow_directly`).
* An object that contains refs pins their entries at its owner, whether it has a value or has failed. A borrower that is
  told an error is told the refs inside as well: what fails with that error in turn contains them, too.
* What a process hands over to itself (a task that it has submitted and runs) is pinned from then on, and nothing else.
* **The dead hold on until their heirs have spoken.** Who dies may have handed a ref on and not registered the receiver,
  or the registration is lost in its mail. So each borrower knows who was to register it (`registrar`, or the voucher of
  its guard), and when that dies it *claims* the object: tells the owner itself how often it counts. Until all who may
  have something from the dead one have done so, its borrows count, and the arguments of its tasks stay pinned. Who
  keeps something for that reason has it settled (`AskSettled`, see core.settling) and hears `on_settled`.

Invariants (`check`): an owned entry in the table is held or has a borrower; a borrowed entry in the table is held, or
its drop is still to be drained; the pins of an object's contents are counted; what is kept for heirs is being settled.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from skate._c.refs import FAILED, PENDING, Guard, ObjectEntry, forget_if_unheld
from skate.core.machine import Machine
from skate.ids import NODE_ID_BYTES, PROCESS_ID_BYTES, NodeId, ObjectId, ProcessId, node_of, owner_of

#: dead processes that are remembered, for as long as mail about them may be under way
DEAD_REMEMBERED: Final = 1024


class FreeValue(NamedTuple):
    """Effect: nobody holds an owned object any more; its bytes may go."""

    entry: ObjectEntry


class TellBorrower(NamedTuple):
    """Effect: send AddBorrower(object, borrower, container) to `to`."""

    to: ProcessId
    object: ObjectId
    borrower: ProcessId
    container: bytes


class TellRelease(NamedTuple):
    """Effect: send ReleaseBorrow(object, owed, kept) to the owner."""

    to: ProcessId
    object: ObjectId
    owed: int
    kept: list[bytes] | None


class TellWatch(NamedTuple):
    """Effect: send WatchProcess(process) to the node of a process that is of another node than this one."""

    process: ProcessId


class TellClaim(NamedTuple):
    """Effect: send ClaimBorrow(object, owed, gone) to the owner."""

    to: ProcessId
    object: ObjectId
    owed: int
    gone: bytes


class AskEcho(NamedTuple):
    """Effect: send Echo to a process that was told something, to hear when it has taken that in."""

    to: ProcessId


class Speak(NamedTuple):
    """Effect: send Spoken(number) to this process's node manager."""

    number: int


class AskSettled(NamedTuple):
    """Effect: send SettleDeath(dead) to the manager of this node, which is the dead one's."""

    dead: ProcessId


Effect = FreeValue | TellBorrower | TellRelease | TellWatch | TellClaim | AskEcho | Speak | AskSettled


class References(Machine):
    """The objects of one process. Every method is called under the runtime's lock."""

    def __init__(self, me: ProcessId, home: Any, effects: list[Any] | None = None) -> None:
        super().__init__(effects)
        self.me = me
        self._node = node_of(me)
        self.home = home
        #: every object this process owns and keeps, or borrows and holds
        self.entries: dict[bytes, ObjectEntry] = {}
        #: processes and nodes that died lately: what is still said about them is not counted
        self._dead: dict[bytes, None] = {}
        #: processes of other nodes that have borrowed: their node was asked to tell of their death
        self._watched: set[ProcessId] = set()
        #: dead processes of this node of which something is kept until it is settled who has it from them
        self._unsettled: set[ProcessId] = set()
        #: process -> what it had of this one, pinned once more, for those that it may have handed that on to
        self._estates: dict[bytes, list[ObjectEntry]] = {}
        #: processes that were told of borrowers since they were last asked for an echo
        self._told: dict[ProcessId, None] = {}
        #: process -> echoes that are to come; and the node's questions that wait for all of them
        self._echoes: dict[bytes, int] = {}
        self._asked_to_speak: list[int] = []

    # ------------------------------------------------------------------------------------- making and letting go

    def create(self, object_id: bytes) -> ObjectEntry:
        """A new object of this process, PENDING, with no handle yet."""
        entry = ObjectEntry(object_id, self.home, owned=True)
        self.entries[object_id] = entry
        return entry

    def borrowed(self, object_id: bytes) -> ObjectEntry:
        """The entry of an object that may be another process's; made where it is not known yet.

        One of this process that it does not know was freed, so it has failed: nobody would ever give it a value.
        """
        entry = self.entries.get(object_id)
        if entry is None:
            entry = ObjectEntry(object_id, self.home, owned=owner_of(object_id) == self.me)
            if entry.owned:
                entry.state = FAILED
            self.entries[object_id] = entry
        return entry

    def pin(self, entries: Iterable[ObjectEntry]) -> None:
        for entry in entries:
            entry.pins += 1

    def unpin(self, entries: Iterable[ObjectEntry]) -> None:
        """Lets go of what was pinned. Once too often, and somebody else's pin would go: so that is refused."""
        for entry in entries:
            if entry.pins <= 0:
                raise RuntimeError(
                    f"{entry} is let go of once more than it was pinned: an error inside skate"
                )
            entry.pins -= 1
            if entry.pins == 0 and entry.handles == 0:
                self.on_dropped(entry)

    def on_dropped(self, entry: ObjectEntry) -> None:
        """The last handle or pin of this process went (it may have been taken up again since)."""
        if entry.owned:
            self._free_if_unused(entry)
        elif forget_if_unheld(self.entries, entry):
            contents, entry.contents = entry.contents, None
            if contents:
                self.unpin(contents)
            kept = self.end_guard(entry)
            if kept and entry.owed == 0 and entry.guard is not None:
                self._tell_voucher(entry.guard, entry.id, self.me)
                entry.owed = 1
            owner = owner_of(entry.id)
            if (entry.owed or kept) and not self.has_died(owner):
                kept_ids = [item for item, _ in kept] or None
                self._effects.append(TellRelease(owner, ObjectId(entry.id), entry.owed, kept_ids))

    def _free_if_unused(self, entry: ObjectEntry) -> None:
        if entry.borrowers and any(count > 0 for count in entry.borrowers.values()):
            return
        if entry.state == PENDING:
            entry.abandoned = not entry.held  # its task still runs; `on_value` looks again
            return
        if not forget_if_unheld(self.entries, entry):
            return
        contents, entry.contents = entry.contents, None
        self._effects.append(FreeValue(entry))
        if contents:
            self.unpin(contents)

    def on_value(self, entry: ObjectEntry, contents: Iterable[tuple[bytes, bytes]] | None) -> None:
        """An owned object has its value now, with refs to `contents` inside: [(object id, via), …].

        `via` says by what right this process holds an inner ref: the sender's id, that has registered it as borrower;
        empty, it held it already; an object id, it holds it through that object, which it holds; its own id, it was
        the sender.
        """
        if contents:
            entry.contents = self.hold_contents(contents)
        if entry.abandoned:
            self._free_if_unused(entry)

    def on_borrowed_error(self, entry: ObjectEntry, contents: Iterable[bytes]) -> None:
        """A borrowed object has failed, with refs to `contents` in its error: they live by it."""
        entry.contents = self.hold_contents([(object_id, entry.id) for object_id in contents])

    def refuse_contents(self, contents: Iterable[tuple[bytes, bytes]]) -> None:
        """A value that came with these inside is not wanted: this process was registered, and lets go."""
        self.unpin(self.hold_contents(contents))

    @staticmethod
    def contents_of(entry: ObjectEntry) -> list[tuple[bytes, bytes]] | None:
        """[(object id, via), …] for another object of this process that gets the same value or error."""
        return [(inner.id, b"") for inner in entry.contents] if entry.contents else None

    def hold_contents(self, contents: Iterable[tuple[bytes, bytes]]) -> list[ObjectEntry]:
        held = []
        for object_id, via in contents:
            inner = self.borrowed(object_id)
            if via == self.me:  # pinned since `hand_over`
                held.append(inner)
                continue
            inner.pins += 1
            if inner.owned:
                pass
            elif len(via) == PROCESS_ID_BYTES:
                inner.owed += 1
                inner.registrar = via if inner.registrar is None or inner.registrar == via else b""
                if self.has_died(ProcessId(via)):
                    self._claim(inner, via)
            elif via and inner.owed == 0 and inner.guard is None:
                container = self.entries.get(via)
                if container is not None and not container.owned:
                    inner.guarded_by(container)
            held.append(inner)
        return held

    # ------------------------------------------------------------------------------------------- handing refs on

    def hand_over(self, contents: Iterable[ObjectEntry], to: ProcessId) -> list[tuple[bytes, bytes]]:
        """Registers `to` as borrower of refs about to be sent inside a value; gives [(object id, via), …] to send.

        What `to` itself lent through a guard needs no registration: it holds that until this process says it is done.
        The effects go out before the value does.
        """
        if to == self.me:
            held = [self.borrowed(entry.id) for entry in contents]
            self.pin(held)
            return [(entry.id, self.me) for entry in held]
        sent: list[tuple[bytes, bytes]] = []
        for entry in contents:
            via: bytes = self.me
            guard = entry.guard if entry.owed == 0 else None
            lent = guard is not None and self._lent_by(guard, to)
            if owner_of(entry.id) == to:
                via = b""
                if not lent:
                    self._borrow_directly(entry)
            elif lent:
                assert guard is not None
                via = guard.container
            else:
                self._register(entry, to)
            sent.append((entry.id, via))
        return sent

    def _lent_by(self, guard: Guard, process: ProcessId) -> bool:
        """Whether nobody but `process`, told by nobody but this process, can end the guard."""
        while guard.voucher == process:
            if not isinstance(guard, ObjectEntry) or guard.owed or guard.guard is None:
                return True
            guard = guard.guard
        return False

    def _register(self, entry: ObjectEntry, borrower: ProcessId, container: bytes = b"") -> None:
        """Counts `borrower` in at the owner."""
        if entry.owned:
            if entry.borrowers is None:
                entry.borrowers = {}
            self._count(entry, borrower, 1)
        elif entry.owed == 0 and entry.guard is not None and entry.guard.voucher == owner_of(entry.id):
            self._tell_voucher(entry.guard, entry.id, borrower)
        else:
            self._borrow_directly(
                entry
            )  # a voucher could die with the borrower's name, and nobody would know
            self._tell(owner_of(entry.id), entry.id, borrower, container)

    def _tell_voucher(self, guard: Guard, object_id: bytes, borrower: ProcessId) -> None:
        """Has whoever stands behind `guard` count `borrower` in for an object that lives by it."""
        if isinstance(guard, ObjectEntry):
            self._borrow_directly(guard)
        self._tell(ProcessId(guard.voucher), object_id, borrower, guard.container)

    def _tell(self, to: ProcessId, object_id: bytes, borrower: ProcessId, container: bytes = b"") -> None:
        if self.has_died(to):  # what it vouched for may still be saved by its owner
            to, container = owner_of(object_id), b""
        if not self.has_died(to):
            self._told[to] = None
            self._effects.append(TellBorrower(to, ObjectId(object_id), borrower, container))

    def _borrow_directly(self, entry: ObjectEntry) -> None:
        """From now on this process is counted for `entry` at its owner, and for all guards that it lived by."""
        while not entry.owned and entry.owed == 0 and entry.guard is not None:
            guard = self._leave_guard(entry)
            entry.owed = 1
            entry.registrar = guard.voucher
            self._tell(ProcessId(guard.voucher), entry.id, self.me, guard.container)
            if not isinstance(guard, ObjectEntry):
                return
            entry = guard

    @staticmethod
    def _leave_guard(entry: ObjectEntry) -> Guard:
        guard = entry.guard
        assert guard is not None
        if guard.guarded is not None:
            guard.guarded.pop(entry.id, None)
        entry.guard = None
        return guard

    def _count(self, entry: ObjectEntry, borrower: ProcessId, change: int) -> None:
        if self.has_died(borrower):
            if change < 0:
                return  # all its borrows end at once
            if not self._settle(borrower):  # it may have handed the ref on
                return
        elif node_of(borrower) != self._node and borrower not in self._watched:
            self._watched.add(borrower)  # this process may have nothing else to do with it
            self._effects.append(TellWatch(borrower))
        if entry.borrowers is None:
            entry.borrowers = {}
        count = entry.borrowers.get(borrower, 0) + change
        if count:
            entry.borrowers[borrower] = count
        else:
            entry.borrowers.pop(borrower, None)

    def on_borrower_added(self, object_id: bytes, borrower: ProcessId, container: bytes) -> None:
        """Somebody says that `borrower` holds an object which this process owns, or keeps alive for the sender."""
        if owner_of(object_id) == borrower:
            return  # it came home: an owned object is never borrowed by its owner
        entry = self.entries.get(object_id)
        if entry is not None and (entry.owned or entry.owed or entry.guard is not None):
            self._register(entry, borrower)
        elif container and owner_of(container) != self.me:
            box = self.entries.get(container)
            if box is not None:
                self._borrow_directly(box)
            self._tell(owner_of(container), object_id, borrower, container)

    def on_borrow_released(
        self, object_id: bytes, borrower: ProcessId, owed: int, kept: Iterable[bytes]
    ) -> None:
        """A borrower lets go of an owned object; of what it found inside it still holds `kept`."""
        for inner in kept:
            self.on_borrower_added(inner, borrower, b"")
        entry = self.entries.get(object_id)
        if entry is None or not entry.owned:
            return
        self._count(entry, borrower, -owed)
        if not entry.held:
            self._free_if_unused(entry)

    # -------------------------------------------------------------------------------------------------- guards

    def end_guard(self, guard: Guard) -> list[tuple[bytes, bytes]]:
        """A guard ends: what it alone kept alive and this process still holds, as [(object id, container), …].

        Whoever is told that list registers this process as borrower of each; they count as owed from now on.
        """
        guarded = guard.guarded
        if not guarded:
            return []
        kept = []
        for entry in list(guarded.values()):
            entry.guard = None
            if entry.owed == 0 and (
                entry.held or entry.guarded
            ):  # what guards others is let go of after them
                entry.owed = 1
                entry.registrar = guard.voucher
                kept.append((entry.id, guard.container))
                if self.has_died(ProcessId(guard.voucher)):
                    self._claim(entry, guard.voucher)
        guarded.clear()
        return kept

    def on_kept(self, kept: Iterable[tuple[bytes, bytes]], borrower: ProcessId) -> None:
        """A task of ours is done, and its worker still holds refs that came with the arguments."""
        for object_id, container in kept:
            self.on_borrower_added(object_id, borrower, container)

    # -------------------------------------------------------------------------------------------------- deaths

    def on_process_died(self, gone: ProcessId | NodeId) -> list[ObjectEntry]:
        """A process is dead, or a node with all its processes. Gives what they owned.

        What this process has from them it claims; what they had of it is kept until all others have done so.
        """
        self._dead[gone] = None
        if len(self._dead) > DEAD_REMEMBERED:
            del self._dead[next(iter(self._dead))]
        self._watched = {process for process in self._watched if not process.startswith(gone)}
        self._unsettled = {dead for dead in self._unsettled if not dead.startswith(gone)}
        self._told = {process: None for process in self._told if not process.startswith(gone)}
        lost = []
        for entry in list(self.entries.values()):
            if entry.owned:
                if entry.borrowers and any(
                    count < 0 or borrower.startswith(gone) for borrower, count in entry.borrowers.items()
                ):
                    self._settle(gone)
            elif entry.id.startswith(gone):
                lost.append(entry)
            else:
                if entry.guard is not None and entry.guard.voucher.startswith(gone):
                    voucher = self._leave_guard(entry).voucher
                    if entry.owed == 0 and entry.held:
                        entry.owed = 1
                        entry.registrar = voucher
                if entry.registrar is not None and (not entry.registrar or entry.registrar.startswith(gone)):
                    self._claim(entry, gone)
        if any(process.startswith(gone) for process in self._estates):
            self._settle(gone)
        for process in [process for process in self._echoes if process.startswith(gone)]:
            del self._echoes[process]
        self._speak_if_heard()
        return lost

    def _claim(self, entry: ObjectEntry, gone: bytes) -> None:
        """Tells the owner how often this process counts: what `gone` was to say of it may be lost."""
        entry.registrar = None
        owner = owner_of(entry.id)
        if not self.has_died(owner):
            self._told[owner] = None
            self._effects.append(TellClaim(owner, ObjectId(entry.id), entry.owed, gone))

    def on_borrow_claimed(self, object_id: bytes, borrower: ProcessId, owed: int) -> None:
        """A borrower says how often it was to be counted in, whatever of that has come."""
        entry = self.entries.get(object_id)
        if entry is not None and entry.owned:
            missing = owed - (entry.borrowers or {}).get(borrower, 0)
            if missing > 0:
                self._count(entry, borrower, missing)

    def keep_for_heirs(self, process: ProcessId, entries: Iterable[ObjectEntry]) -> None:
        """A process that is dead, or bound to die, had these of this one: those that it gave them to may be unknown."""
        estate = self._estates.setdefault(process, [])
        for entry in entries:
            entry.pins += 1
            estate.append(entry)
        if self.has_died(process):
            self._settle(process)

    def _settle(self, dead: bytes) -> bool:
        """Has it settled who has what from a dead process; False where nothing is kept for its heirs.

        That is so of nodes that died, and of processes of other nodes: what they had ends at once, and who has
        something from them may claim it too late.
        """
        if len(dead) == NODE_ID_BYTES or node_of(dead) != self._node:
            self._end_what_it_had(dead)
            return False
        process = ProcessId(dead)
        if process not in self._unsettled:
            self._unsettled.add(process)
            self._effects.append(AskSettled(process))
        return True

    def on_settled(self, gone: ProcessId) -> None:
        """Whoever has something from the dead one has said so: its borrows end.

        So do counts below zero: what would have made up for them was lost.
        """
        if gone not in self._unsettled:
            return
        self._unsettled.discard(gone)
        self._end_what_it_had(gone)

    def _end_what_it_had(self, gone: bytes) -> None:
        for entry in list(self.entries.values()):
            if entry.owned and entry.borrowers:
                self._end_borrows(entry, gone)
        for process in [process for process in self._estates if process.startswith(gone)]:
            self.unpin(self._estates.pop(process))

    def _end_borrows(self, entry: ObjectEntry, gone: bytes) -> None:
        assert entry.borrowers is not None
        ended = [each for each, count in entry.borrowers.items() if count < 0 or each.startswith(gone)]
        for borrower in ended:
            del entry.borrowers[borrower]
        if ended and not entry.held:
            self._free_if_unused(entry)

    def on_asked_to_speak(self, number: int) -> None:
        """The node asks whether all that this process has said of borrowers, after deaths above all, has been heard."""
        for process in self._told:
            self._echoes[process] = self._echoes.get(process, 0) + 1
            self._effects.append(AskEcho(process))
        self._told.clear()
        self._asked_to_speak.append(number)
        self._speak_if_heard()

    def on_echoed(self, process: ProcessId) -> None:
        """A process has taken in what it was told before it was asked for an echo."""
        left = self._echoes.get(process, 0) - 1
        if left > 0:
            self._echoes[process] = left
        else:
            self._echoes.pop(process, None)
        self._speak_if_heard()

    def _speak_if_heard(self) -> None:
        if self._asked_to_speak and not self._echoes:
            self._effects += [Speak(number) for number in self._asked_to_speak]
            self._asked_to_speak.clear()

    def has_died(self, process: ProcessId) -> bool:
        """Whether the process is known to be dead: what it owned will never come."""
        return process in self._dead or process[:NODE_ID_BYTES] in self._dead

    # --------------------------------------------------------------------------------------------------- checks

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold."""
        pinned: dict[bytes, int] = {}
        for object_id, entry in self.entries.items():
            if entry.id != object_id:
                raise AssertionError(f"{entry} stands under {object_id.hex()}")
            if entry.handles < 0 or entry.pins < 0 or entry.owed < 0:
                raise AssertionError(f"{entry} has a negative count")
            for inner in entry.contents or ():
                pinned[inner.id] = pinned.get(inner.id, 0) + 1
            if entry.guard is not None and (entry.guard.guarded or {}).get(object_id) is not entry:
                raise AssertionError(f"{entry} names a guard that does not know it")
        for object_id, count in pinned.items():
            found = self.entries.get(object_id)
            if found is None or found.pins < count:
                raise AssertionError(
                    f"{object_id.hex()} is inside {count} objects, but {found} is not pinned by them"
                )
