"""Object entries, the handles to them, and waiting for them, at C speed.

State: the ObjectEntry of each object this process knows, found through the dictionary of whoever is `home`
(skate.core.references decides about them). Invariants: `handles` is the number of live ObjectRef on an entry; an
entry that is PENDING has its waiters registered, any other has none.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy

from skate._c.plain import note_ref
from skate._c.steps cimport enter_section, leave_quietly
from skate.exceptions import FormerSessionError

_FORMER = (
    "{!r} is of a session that was shut down, and its value is gone with it. Make it again in this session: "
    "call the function, or put() the value."
)

cdef enum:
    _PENDING = 0
    _INLINE = 1
    _STORED = 2
    _FAILED = 3
    OBJECT_ID_BYTES = 20
    TASK_ID_BYTES = 16
    PROCESS_ID_BYTES = 8

#: states of an entry
PENDING, INLINE, STORED, FAILED = _PENDING, _INLINE, _STORED, _FAILED
STATE_NAMES = ("PENDING", "INLINE", "STORED", "FAILED")


class _Nothing:
    """Stands for "no literal": None is a value that objects have."""

    def __repr__(self) -> str:
        return "NOTHING"


NOTHING = _Nothing()
cdef object _NOTHING = NOTHING
cdef unsigned long _stamp = 0


cdef class Waiter:
    """Someone who waits for entries: a thread in `get`, a task for its arguments, a future, a borrower elsewhere."""

    def __init__(self, callback=None, *, bint eager=False):
        self.callback = callback
        self.eager = eager

    def __repr__(self):
        return f"<Waiter missing={self.missing} done={self.done}>"


cdef class Guard:
    """What keeps refs alive at their owners while it lasts: a running task's arguments, or a value that holds them."""

    def __init__(self, bytes voucher, bytes container=b""):
        self.voucher = voucher
        self.container = container


cdef class ObjectEntry(Guard):
    """What this process knows of one object. skate.core.references says what the counts mean."""

    def __init__(self, bytes object_id, home, *, bint owned):
        if PyBytes_GET_SIZE(object_id) != OBJECT_ID_BYTES:
            raise ValueError(f"an object id has {OBJECT_ID_BYTES} bytes, got {object_id!r}")
        self.container = self.id = object_id
        self.voucher = object_id[:PROCESS_ID_BYTES]
        self.home = home
        self.owned = owned
        self.literal = _NOTHING

    def __repr__(self):
        return (
            f"<{'owned' if self.owned else 'borrowed'} {self.id.hex()} {STATE_NAMES[self.state]} "
            f"handles={self.handles} pins={self.pins}>"
        )

    def guarded_by(self, Guard guard):
        """From now on it lives by `guard`."""
        if guard.guarded is None:
            guard.guarded = {}
        guard.guarded[self.id] = self
        self.guard = guard

    cdef bint is_private(self):
        """Nobody outside this process ever heard of it, and its value stands here: when it goes, nothing follows."""
        return (
            self.owned
            and (self.state == _INLINE or self.state == _FAILED)
            and not self.borrowers
            and self.contents is None
        )

    @property
    def held(self):
        """Something in this process needs it."""
        return self.handles > 0 or self.pins > 0


@cython.no_gc_clear  # its end needs what it holds
cdef class Watch:
    """A waiter's stay on the PENDING entries that it waits for: dropping this ends it, from anywhere, also in a step."""

    def __cinit__(self, Waiter waiter not None, list entries not None):
        self.waiter = waiter
        self.entries = entries

    def __dealloc__(self):
        cdef Waiter waiter = self.waiter
        if waiter is None or waiter.done:
            return
        home = (<ObjectEntry>self.entries[0]).home
        if home is not _home:
            return  # its runtime has ended
        waiter.watched = self.entries
        enter_section()
        try:
            home.on_dropped(waiter)
        finally:
            leave_quietly()


@cython.no_gc  # it holds an entry, which never leads back to it
@cython.freelist(4096)
cdef class ObjectRef:
    """A handle to an object that may not exist yet: what `.remote()` and `put` return.

    Read it with `skate.get(ref)` or `await ref`; `ref.future()` is a `concurrent.futures.Future` of its value. Refs
    compare and hash by object. While any ref to an object lives, in any process, its value is kept.
    """

    def __cinit__(self, object_id):
        cdef ObjectEntry entry
        if type(object_id) is ObjectEntry:
            entry = <ObjectEntry>object_id
        else:
            entry = _entry_of(object_id)
        entry.handles += 1
        self.entry = entry

    def __dealloc__(self):
        cdef ObjectEntry entry = self.entry
        if entry is None:
            return
        entry.handles -= 1
        if entry.handles == 0 and entry.pins == 0:
            if entry.home is not _home:
                return  # its runtime has ended
            if entry.is_private():
                _entries.pop(entry.id, None)  # what References would decide, without a lock
            else:
                enter_section()
                try:
                    entry.home.on_dropped(entry)
                finally:
                    leave_quietly()

    def binary(self):
        """The object's id: 20 bytes."""
        return self.entry.id

    def hex(self):
        """The object's id as 40 hexadecimal digits."""
        return self.entry.id.hex()

    def task_id(self):
        """The id of the task that returns it: 16 bytes."""
        return self.entry.id[:16]

    def is_nil(self):
        """False: a handle always names an object."""
        return False

    def size(self):
        """Length of the id in bytes."""
        return OBJECT_ID_BYTES

    def future(self):
        """A `concurrent.futures.Future` that gets this object's value or exception. Does not block."""
        _refuse_former(self)
        return self.entry.home.future(self)

    def __await__(self):
        _refuse_former(self)
        return self.entry.home.await_ref(self).__await__()

    # What asyncio.wait asks of the things it waits for; it does not await them.

    def done(self):
        """Whether the value, or the error, is there."""
        return self.entry.state != _PENDING

    def cancelled(self):
        """False: refs are not cancelled by an event loop."""
        return False

    def exception(self):
        """The error of a ref that is done, or None. Raises asyncio.InvalidStateError where it is not done."""
        _refuse_former(self)
        return self.entry.home.objects.exception(self.entry)

    def add_done_callback(self, callback, *, context=None):
        """Has the running event loop call `callback(ref)` once the value is there."""
        _refuse_former(self)
        self.entry.home.objects.loops.running().add_done_callback(self, callback, context)

    def remove_done_callback(self, callback):
        """Forgets a callback of `add_done_callback`; gives how many there were."""
        return self.entry.home.objects.loops.remove_done_callback(self, callback)

    def __hash__(self):
        return hash(self.entry.id)

    def __eq__(self, other):
        if type(other) is not ObjectRef:
            return NotImplemented
        return (<ObjectRef>other).entry is self.entry or (<ObjectRef>other).entry.id == self.entry.id

    def __repr__(self):
        return f"ObjectRef({self.entry.id.hex()})"

    def __reduce__(self):
        if note_ref(self):
            _refuse_former(self)
        return _rebuild, (self.entry.id,)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __class_getitem__(cls, item):
        return cls


cdef int _refuse_former(ObjectRef ref) except -1:
    if ref.entry.home is not _home:
        raise FormerSessionError(_FORMER.format(ref))
    return 0


cdef class TaskIds:
    """Makes the task ids of a process, one a call: its id, then a count, big-endian (skate.ids). From any thread."""

    def __init__(self, bytes process):
        if PyBytes_GET_SIZE(process) != PROCESS_ID_BYTES:
            raise ValueError(f"a process id has {PROCESS_ID_BYTES} bytes, got {process!r}")
        self.process = process

    def __call__(self):
        cdef bytes made = PyBytes_FromStringAndSize(NULL, TASK_ID_BYTES)
        cdef char *at = PyBytes_AS_STRING(made)
        cdef uint64_t count
        cdef Py_ssize_t i
        self.count += 1
        count = self.count
        memcpy(at, PyBytes_AS_STRING(self.process), PROCESS_ID_BYTES)
        for i in range(TASK_ID_BYTES - 1, PROCESS_ID_BYTES - 1, -1):
            at[i] = <char>(count & 0xFF)
            count >>= 8
        return made


# ------------------------------------------------------------------------------- entries by id, guards by thread

cdef object _home = None            # the runtime of this process, or None
cdef dict _entries = {}             # its table: object id -> ObjectEntry
cdef bytes _me = b""                # its process id
cdef dict _guards = {}              # thread -> Guard of the value it is unpickling


def set_home(home, dict entries, bytes process):
    """Makes `home`'s table the one that unpickled refs are looked up in; None where no runtime runs."""
    global _home, _entries, _me
    _home, _entries, _me = home, entries, process


cdef ObjectEntry _entry_of(object object_id):
    """The entry of an id in this process's table; a new one where it is met for the first time."""
    cdef ObjectEntry entry
    cdef Guard guard
    if type(object_id) is not bytes or PyBytes_GET_SIZE(<bytes>object_id) != OBJECT_ID_BYTES:
        raise ValueError(f"an ObjectRef is made from the {OBJECT_ID_BYTES} bytes of ref.binary(), got {object_id!r:.80}")
    found = _entries.get(object_id)
    if found is not None:
        entry = <ObjectEntry>found
        if entry.owned or entry.owed > 0 or entry.guard is not None:
            return entry
    else:
        if _home is None:
            raise RuntimeError("skate is not running in this process: call skate.init() before unpickling an ObjectRef")
        owned = memcmp(PyBytes_AS_STRING(<bytes>object_id), PyBytes_AS_STRING(_me), PROCESS_ID_BYTES) == 0
        entry = ObjectEntry(<bytes>object_id, _home, owned=owned)
        if owned:
            entry.state = _FAILED  # it was freed: a live one stands in the table
            entry.value = None
            return entry
        _entries[object_id] = entry
    guard = <Guard>_guards.get(PyThread_get_thread_ident())
    if guard is not None:
        entry.guarded_by(guard)
    return entry


def _rebuild(bytes object_id):
    """What an ObjectRef unpickles through."""
    return ObjectRef(object_id)


def unpickling_under(Guard guard):
    """Says that the refs this thread unpickles from now on live by `guard` (None: by nobody); returns the last one."""
    thread = PyThread_get_thread_ident()
    before = _guards.get(thread)
    if guard is None:
        _guards.pop(thread, None)
    else:
        _guards[thread] = guard
    return before


def forget_if_unheld(dict entries, ObjectEntry entry):
    """Takes an entry that nobody in this process holds out of the table; False where someone does.

    One C function, so that no other thread can make a handle between the look and the removal.
    """
    if entry.handles > 0 or entry.pins > 0:
        return False
    if entries.get(entry.id) is not entry:
        return False  # it was forgotten before; another entry may stand there by now
    del entries[entry.id]
    if entry.guard is not None:
        entry.guard.guarded.pop(entry.id, None)
    return True


# ------------------------------------------------------------------------------------------------------- waiting

cdef inline bint _count_off(Waiter waiter, Py_ssize_t times, int state) noexcept:
    """Counts off what stood `times` on the list; whether the waiter is done with that."""
    if waiter.done:
        return False
    waiter.missing -= times
    if state == _FAILED:
        waiter.failed = True
    waiter.done = waiter.missing <= 0 or (waiter.eager and waiter.failed)
    return waiter.done


cpdef settle(ObjectEntry entry, int state, value):
    """Gives a PENDING entry its value or error and counts it off its waiters; returns those that are done now."""
    entry.state = state
    entry.value = value
    waiters = entry.waiters
    if waiters is None:
        return ()
    entry.waiters = None
    if type(waiters) is Waiter:
        return (waiters,) if _count_off(<Waiter>waiters, 1, state) else ()
    return [each for each, times in waiters.items() if _count_off(<Waiter>each, times, state)]


cdef inline void _add_waiter(ObjectEntry entry, Waiter waiter):
    if entry.waiters is None:
        entry.waiters = waiter
    elif type(entry.waiters) is dict:
        (<dict>entry.waiters)[waiter] = (<dict>entry.waiters).get(waiter, 0) + 1
    elif entry.waiters is waiter:
        entry.waiters = {waiter: 2}
    else:
        entry.waiters = {entry.waiters: 1, waiter: 1}


def watch(list refs, Waiter waiter, Py_ssize_t wanted):
    """Makes `waiter` wait until `wanted` of these refs are ready. Returns those still PENDING.

    The waiter is done at once where enough are ready, or where it is eager and one has failed.
    """
    cdef ObjectEntry entry
    cdef Py_ssize_t ready = 0
    cdef list pending = []
    for ref in refs:
        entry = (<ObjectRef>ref).entry
        if entry.state == _PENDING:
            pending.append(entry)
        else:
            ready += 1
            if entry.state == _FAILED:
                waiter.failed = True
    waiter.missing = wanted - ready
    if waiter.missing <= 0 or (waiter.eager and waiter.failed):
        waiter.done = True
    else:
        for each in pending:
            _add_waiter(<ObjectEntry>each, waiter)
    return pending


def watch_entries(list entries, Waiter waiter):
    """Makes `waiter` wait until all of these PENDING entries are ready."""
    waiter.missing = len(entries)
    for each in entries:
        _add_waiter(<ObjectEntry>each, waiter)


def watch_one(ObjectEntry entry, Waiter waiter):
    """Makes `waiter` wait for an entry; False where that is not PENDING. Needs no lock."""
    if entry.state != _PENDING:
        return False
    waiter.missing = 1
    _add_waiter(entry, waiter)
    return True


def watch_some(list entries, Waiter waiter, Py_ssize_t wanted):
    """Makes `waiter` wait until `wanted` of these entries are ready; False where so many are. Needs no lock."""
    cdef ObjectEntry entry
    for each in entries:
        wanted -= (<ObjectEntry>each).state != _PENDING
    if wanted <= 0:
        waiter.done = True
        return False
    waiter.missing = wanted
    for each in entries:
        entry = <ObjectEntry>each
        if entry.state == _PENDING:
            _add_waiter(entry, waiter)
    return True


def unwatch(list entries, Waiter waiter):
    """Takes a waiter that gave up off the entries it still waits for."""
    cdef ObjectEntry entry
    waiter.done = True
    for each in entries:
        entry = <ObjectEntry>each
        if entry.waiters is waiter:
            entry.waiters = None
        elif type(entry.waiters) is dict:
            (<dict>entry.waiters).pop(waiter, None)
            if not entry.waiters:
                entry.waiters = None


def refuse_former(list refs):
    """Raises FormerSessionError where one of the refs is of a session that has ended."""
    for ref in refs:
        _refuse_former(<ObjectRef>ref)


def all_refs(list refs):
    """Index of the first item that is no ObjectRef, or -1."""
    cdef Py_ssize_t i
    for i in range(len(refs)):
        if type(refs[i]) is not ObjectRef:
            return i
    return -1


def distinct(list refs):
    """Whether no object stands twice in the list."""
    global _stamp
    cdef ObjectEntry entry
    _stamp += 1
    for ref in refs:
        entry = (<ObjectRef>ref).entry
        if entry.stamp == _stamp:
            return False
        entry.stamp = _stamp
    return True


def ready_count(list refs):
    """How many of the refs are not PENDING."""
    cdef Py_ssize_t count = 0
    for ref in refs:
        if (<ObjectRef>ref).entry.state != _PENDING:
            count += 1
    return count


def split_ready(list refs, Py_ssize_t most):
    """(ready, rest), each in the order given; at most `most` are counted as ready."""
    cdef list ready = [], rest = []
    for ref in refs:
        if (<ObjectRef>ref).entry.state != _PENDING and len(ready) < most:
            ready.append(ref)
        else:
            rest.append(ref)
    return ready, rest
