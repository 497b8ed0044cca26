# cython: cdivision=True
"""The kernel of the object store: one shared-memory arena a node, with its allocator, object table and pins
inside.

State: all of it is in the arena (see arena.pxd for the layout); a process keeps only its mapping and its
slot number.
Callers: skate.store. Create, seal, get, release, delete and abort are calls in the caller's own process.

Why a process may be killed at any instruction
----------------------------------------------
A call changes the arena only under the robust mutex, and only through `put()`: it writes the word's old
value to the undo journal, counts the entry, and only then changes the word. The call commits by setting
the journal's count to zero, and lets go of the mutex. So whoever gets the mutex with EOWNERDEAD finds
either a count of zero (the call was complete, or had not begun) or exactly the old value of every word
that the dead process may have changed; writing them back, newest first, gives the arena as it was before
the call. Undoing twice is undoing once, so the repairer may be killed as well. Only the compiler's order
of the stores matters (`barrier`): a killed process's stores all become visible, and the kernel hands the
mutex over behind a full memory barrier.

What a dead process had done before (its pins, its unsealed objects) is in its slot, and `bury` takes it
back, one transaction an entry. Memory is reserved (fallocate) before a mark covers it and outside of the
mutex: doing it twice is harmless, and nobody touches memory that is not reserved, so a full /dev/shm is
an ArenaFull and never a SIGBUS.

Why nothing waits long: no Python code runs and no system call is made under the mutex, the allocator is
O(1) but for a bounded look through one bin, and walks (check, objects) work on a copy of the tables.
"""
cimport cython
from cpython.buffer cimport (
    PyBUF_ANY_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EINTR, ENOSPC, errno
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport abort, calloc, free
from libc.string cimport memcpy, memset
from posix.fcntl cimport O_RDONLY, open as c_open
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE, madvise, mmap, munmap,
)
from posix.stat cimport fstat, struct_stat
from posix.types cimport off_t, pid_t
from posix.unistd cimport close as c_close, ftruncate, getpid, read as c_read

import os as _os

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdlib.h>
    #include <sys/mman.h>
    #include <sys/vfs.h>
    typedef struct statfs skate_statfs;
    #include <unistd.h>
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23
    #endif
    #define skate_barrier() __atomic_signal_fence(__ATOMIC_SEQ_CST)
    #define skate_highest_bit(x) (63 - __builtin_clzll(x))
    #define skate_lowest_bit(x) __builtin_ctzll(x)
    #if defined(__x86_64__) || defined(__i386__)
    #define skate_pause() __builtin_ia32_pause()
    #else
    #define skate_pause() skate_barrier()
    #endif
    #ifdef SKATE_FAULTS
    #define SKATE_HAS_FAULTS 1
    static long skate_fault_countdown = -1;
    /* SIGKILL to oneself: no handler, no exit code of ours, just as the out-of-memory killer does it. */
    static void skate_fault(void) {
        if (skate_fault_countdown >= 0 && skate_fault_countdown-- == 0) kill(getpid(), SIGKILL);
    }
    #else
    #define SKATE_HAS_FAULTS 0
    static long skate_fault_countdown = -1;
    #define skate_fault() ((void)0)
    #endif
    static int skate_mutex_init(pthread_mutex_t *mutex) {
        pthread_mutexattr_t attr;
        int rc = pthread_mutexattr_init(&attr);
        if (!rc) rc = pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
        if (!rc) rc = pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
        if (!rc) rc = pthread_mutex_init(mutex, &attr);
        return rc;
    }
    """
    void barrier "skate_barrier"() nogil
    void pause "skate_pause"() nogil
    int highest_bit "skate_highest_bit"(uint64_t) nogil
    int lowest_bit "skate_lowest_bit"(uint64_t) nogil
    void fault "skate_fault"() nogil
    long fault_countdown "skate_fault_countdown"
    bint HAS_FAULTS "SKATE_HAS_FAULTS"
    int mutex_init "skate_mutex_init"(pthread_mutex_t*) nogil
    int pthread_mutex_lock(pthread_mutex_t*) nogil
    int pthread_mutex_trylock(pthread_mutex_t*) nogil
    int pthread_mutex_unlock(pthread_mutex_t*) nogil
    int pthread_mutex_consistent(pthread_mutex_t*) nogil
    int fallocate(int, int, off_t, off_t) nogil
    int fcntl(int, int, int) nogil
    ctypedef struct skate_statfs:
        unsigned long f_blocks, f_bavail
        long f_bsize
    int fstatfs(int, skate_statfs*) nogil
    int kill(pid_t, int) nogil
    int EBUSY, EOWNERDEAD, EOPNOTSUPP, ENOSYS, ESRCH, F_DUPFD_CLOEXEC
    int MADV_POPULATE_WRITE, MADV_DONTDUMP, MAP_NORESERVE

ctypedef int (*Op)(View*, Request*) noexcept nogil

cdef enum:
    # What a call under the mutex returns. Below zero its changes are undone.
    DONE = 0
    ABSENT = 1
    GONE = 2            # sealed or released, but the object had been deleted meanwhile
    IN_USE = 3          # not deleted, since others have it pinned
    EXISTS = -1
    FULL = -2
    TABLE_FULL = -3
    GROW = -4           # reserve r.want_*, then call again
    NO_SLOT = -5
    BROKEN_LOCK = -6

cdef enum:
    UNIT = 64                       # alignment and granularity of data
    PAGE = 4096
    TOUCH_SHIFT = 16                # pages are mapped ahead in steps of 64 KB
    LOOK_FIRST = 16                 # blocks of the right bin looked at before a larger one is split
    LOOK_MORE = 256                 # ... before fresh memory is used
    VICTIMS_MAX = 4096
    SPINS = 60                      # about 2 microseconds: most calls are shorter
    COPY_WITHOUT_GIL = 65536        # bytes; below, giving up the GIL costs more than the copy

cdef uint64_t MAGIC = 0x616e657261746b73    # "sktarena"
cdef uint64_t LAYOUT = (<uint64_t>1 << 48) | (sizeof(Header) << 24) | (sizeof(Block) << 12) | sizeof(Pin)
cdef uint64_t STEP = 32 << 20               # one fallocate call: short enough that a signal cannot starve it

include "arena_kernel.pxi"


# ---- processes ----------------------------------------------------------------------------------------

cdef uint64_t start_time(pid_t pid, bint* dead) noexcept nogil:
    """Start time of a process in clock ticks since boot, 0 if it cannot be read; tells the dead and zombies apart."""
    cdef char path[32]
    cdef char text[1024]
    cdef char digits[24]
    cdef char* at = NULL
    cdef Py_ssize_t n
    cdef int fd, i = 0, field
    cdef uint64_t number, threads = 0
    cdef char state
    dead[0] = False
    if kill(pid, 0) != 0 and errno == ESRCH:
        dead[0] = True
        return 0
    memcpy(path, b"/proc/", 6)
    number = pid
    while number or not i:
        digits[i] = <char>(48 + number % 10)
        number //= 10
        i += 1
    for field in range(i):
        path[6 + field] = digits[i - 1 - field]
    memcpy(path + 6 + i, b"/stat", 6)
    fd = c_open(path, O_RDONLY)
    if fd < 0:
        return 0
    n = c_read(fd, text, sizeof(text) - 1)
    c_close(fd)
    if n <= 0:
        return 0
    text[n] = 0
    for i in range(n):  # the command's name may hold anything: fields are counted from its last parenthesis
        if text[i] == c')':
            at = text + i
    if at == NULL or at + 2 >= text + n:
        return 0
    state = at[2]
    field = 2
    number = 0
    while at[0] and field < 23:
        if at[0] == c' ':
            if field == 20:
                threads = number
            if field == 22:
                break
            field += 1
            number = 0
        elif at[0] >= c'0' and at[0] <= c'9':
            number = number * 10 + <uint64_t>(at[0] - 48)
        at += 1
    # A zombie has given up its memory, unless only its first thread has ended.
    dead[0] = state == c'X' or (state == c'Z' and threads <= 1)
    return number


cdef bint is_dead(uint64_t pid, uint64_t start) noexcept nogil:
    cdef bint dead
    cdef uint64_t now = start_time(<pid_t>pid, &dead)
    return dead or (now and start and now != start)


# ---- errors -------------------------------------------------------------------------------------------

FAULTS = bool(HAS_FAULTS)


class ArenaError(RuntimeError):
    """The memory is no arena of ours, or it is broken, closed, or out of process slots."""


class ArenaFull(MemoryError):
    """No room for an object now. `largest_free` is the longest piece that could be had without freeing anything."""

    def __init__(self, message, needed=0, capacity=0, largest_free=0):
        super().__init__(message)
        self.needed = needed
        self.capacity = capacity
        self.largest_free = largest_free

    def __reduce__(self):
        return (type(self), (self.args[0], self.needed, self.capacity, self.largest_free))


class ObjectExists(KeyError):
    """An object with this id is in the arena, sealed or being made."""

    def __str__(self):
        return self.args[0]


class NotMaking(KeyError):
    """This process is not making an object with this id."""

    def __str__(self):
        return self.args[0]


def fault_after(points):
    """Kill this process at its `points`-th fault point from now (SKATE_FAULTS builds only); -1 turns it off."""
    global fault_countdown
    if not HAS_FAULTS:
        raise ArenaError("this build has no fault points: build with SKATE_FAULTS=1")
    fault_countdown = points


def faults_left():
    """What is left of `fault_after`'s count: how many points a call has, if one counts down from a large number."""
    return fault_countdown


cdef int read_id(bytes object_id, Request* r) except -1:
    memset(r, 0, sizeof(Request))
    if PyBytes_GET_SIZE(object_id) != 20:
        raise ValueError(f"an object id is exactly 20 bytes, not {object_id!r}")
    memcpy(r.id, PyBytes_AS_STRING(object_id), 20)
    return 0


cdef uint64_t align(uint64_t n, uint64_t to) noexcept nogil:
    return (n + to - 1) // to * to


cdef int reserve_file(int fd, char* base, uint64_t start, uint64_t stop, uint64_t* reached) noexcept nogil:
    """Make sure that bytes [start, stop) of the file have memory behind them. Idempotent, so it needs no lock.

    Returns 0 or an errno; `reached` says how far it came.
    """
    cdef uint64_t n, step = STEP
    cdef int why = 0
    start = start // PAGE * PAGE
    stop = align(stop, PAGE)
    while start < stop:
        n = min(stop - start, step)
        fault()
        why = 0 if fallocate(fd, 0, <off_t>start, <off_t>n) == 0 else errno
        if why == EOPNOTSUPP or why == ENOSYS:
            # A file system without fallocate: touching the pages does it, and this call fails where a touch kills.
            why = 0 if madvise(base + start, n, MADV_POPULATE_WRITE) == 0 else errno
            why = why if why == 0 or why == EINTR else ENOSPC
        if why == EINTR:
            step = max(step // 2, <uint64_t>1 << 20)  # a profiler's timer: get done between two of its signals
        elif why:
            break
        else:
            start += n
    reached[0] = start
    return why if start < stop else 0


cdef uint64_t room_behind(int fd) noexcept nogil:
    """Bytes that the file system says are left; more than any arena if it does not say."""
    cdef skate_statfs info
    if fstatfs(fd, &info) != 0 or info.f_blocks == 0:  # a memfd's file system has no size
        return <uint64_t>1 << 62
    return <uint64_t>info.f_bavail * <uint64_t>info.f_bsize // PAGE * PAGE


# ---- the classes --------------------------------------------------------------------------------------

@cython.final
cdef class Arena:
    """One node's arena as this process has it open. Every method may be called from any thread.

    After a fork the child may go on using it (it gets a slot of its own at its first call), but must not use
    Pinned and Writable objects it inherited: those are its parent's, whose end frees what they show.
    All processes of an arena must see each other's pids (one pid namespace).
    """

    def __init__(self):
        raise TypeError("use Arena.create or Arena.attach")

    @staticmethod
    def create(int fd, uint64_t size, *, uint64_t max_objects=0, uint64_t max_processes=1024):
        """Format the memory behind fd as an arena with `size` bytes for data; the tables come on top, and are sparse.

        Truncates the file: nobody else may have it open as an arena. ArenaFull if not even the tables' first pages
        can be reserved. `fd` stays the caller's.
        """
        cdef Header h
        cdef Arena self
        cdef uint64_t reached
        cdef int rc
        if not max_objects:
            max_objects = min(max(size // 4096, <uint64_t>4096), <uint64_t>1 << 20)
        if not 0 < size < <uint64_t>1 << 46 or max_objects >= 1 << 32 or not 0 < max_processes < 1 << 20:
            raise ValueError(f"no such arena: size {size}, max_objects {max_objects}, max_processes {max_processes}")
        memset(&h, 0, sizeof(h))
        h.layout = LAYOUT
        h.capacity = align(size, PAGE)
        h.max_processes = max_processes
        h.max_objects = max_objects
        h.max_blocks = 2 * max_objects + 2  # between any two objects there may be one free block
        h.max_pins = 4 * max_objects + max_processes
        h.bucket_mask = 63
        while h.bucket_mask < max_objects // 2:
            h.bucket_mask = h.bucket_mask * 2 + 1
        h.slots_offset = align(sizeof(Header), UNIT)
        h.buckets_offset = align(h.slots_offset + (max_processes + 1) * sizeof(Slot), PAGE)
        h.blocks_offset = align(h.buckets_offset + (h.bucket_mask + 1) * 8, PAGE)
        h.pins_offset = align(h.blocks_offset + (h.max_blocks + 1) * sizeof(Block), PAGE)
        h.data_offset = align(h.pins_offset + (h.max_pins + 1) * sizeof(Pin), 2 << 20)
        h.total_bytes = h.data_offset + h.capacity
        if ftruncate(fd, 0) != 0 or ftruncate(fd, <off_t>h.total_bytes) != 0:
            raise OSError(errno, f"cannot make {h.total_bytes} bytes: {_os.strerror(errno)}")
        self = Arena.__new__(Arena)
        self.map(fd, h.total_bytes)
        rc = reserve_file(self.fd, self.v.base, 0, h.blocks_offset + PAGE, &reached)
        rc = rc or reserve_file(self.fd, self.v.base, h.pins_offset, h.pins_offset + PAGE, &reached)
        if rc:
            raise ArenaFull(f"no memory for the tables of an arena: {_os.strerror(rc)}", size, size, 0)
        h.blocks_reserved = min(PAGE // sizeof(Block) - 1, h.max_blocks)
        h.pins_reserved = min(PAGE // sizeof(Pin) - 1, h.max_pins)
        memcpy(self.v.h, &h, sizeof(h))
        rc = mutex_init(&self.v.h.mutex)
        if rc:
            raise OSError(rc, f"no robust mutex on this system: {_os.strerror(rc)}")
        barrier()
        self.v.h.magic = MAGIC
        self.join()
        return self

    @staticmethod
    def attach(int fd):
        """Open the arena behind fd. ArenaError if there is none, or one of another version of skate."""
        cdef struct_stat info
        cdef Arena self
        cdef Header* h
        if fstat(fd, &info) != 0:
            raise OSError(errno, _os.strerror(errno))
        if <uint64_t>info.st_size < sizeof(Header):
            raise ArenaError(f"no arena: the file has only {info.st_size} bytes")
        self = Arena.__new__(Arena)
        self.map(fd, info.st_size)
        h = self.v.h
        if h.magic != MAGIC:
            raise ArenaError("no arena: the file does not begin as one (or its maker has not finished it yet)")
        if h.layout != LAYOUT or h.total_bytes != <uint64_t>info.st_size:
            raise ArenaError(f"an arena of another version: layout {h.layout:#x}, {h.total_bytes} bytes; "
                             f"here {LAYOUT:#x}, {info.st_size} bytes. Use one version of skate in a session")
        self.join()
        return self

    cdef int map(self, int fd, size_t length) except -1:
        cdef void* base
        self.making = {}
        self.fd = fcntl(fd, F_DUPFD_CLOEXEC, 3)
        if self.fd < 0:
            raise OSError(errno, _os.strerror(errno))
        base = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, self.fd, 0)
        if base == MAP_FAILED:
            raise OSError(errno, f"cannot map {length} bytes: {_os.strerror(errno)}")
        madvise(base, length, MADV_DONTDUMP)  # a crashing worker's core file shall not hold the whole store
        self.v.base = <char*>base
        self.v.h = <Header*>base
        return 0

    cdef int join(self) except -1:
        """Take a slot for this process: at the start, and again in a forked child."""
        cdef Header* h = self.v.h
        cdef Request r
        cdef bint dead
        cdef int rc
        self.v.slots = <Slot*>(self.v.base + h.slots_offset)
        self.v.buckets = <uint64_t*>(self.v.base + h.buckets_offset)
        self.v.blocks = <Block*>(self.v.base + h.blocks_offset)
        self.v.pins = <Pin*>(self.v.base + h.pins_offset)
        free(self.touched)  # a fork does not copy the page tables of shared memory
        self.touched = <uint8_t*>calloc((h.capacity >> TOUCH_SHIFT) + 1, 1)
        if self.touched == NULL:
            raise MemoryError()
        memset(&r, 0, sizeof(r))
        r.pid = getpid()
        r.start = start_time(<pid_t>r.pid, &dead)
        rc = self.run(op_join, &r)
        if rc == NO_SLOT:
            self.bury(0)
            rc = self.run(op_join, &r)
        if rc == NO_SLOT:
            raise ArenaError(f"all {h.max_processes} process slots of the arena are taken by living processes: "
                             f"make it with a larger max_processes")
        if rc != DONE:
            self.fail(rc)
        self.slot = r.slot
        self.pid = <pid_t>r.pid
        self.making = {}
        return 0

    cdef Call enter(self):
        """At the head of every method, kept to its end: refuse after close, register again after a fork."""
        cdef Call call
        if self.closed or self.v.base == NULL:
            raise ArenaError("the arena is closed in this process")
        if getpid() != self.pid:
            self.join()
        call = Call.__new__(Call)
        call.arena = self
        self.handles += 1
        return call

    cdef int run(self, Op op, Request* r) noexcept:
        """One call under the mutex. Keeps the GIL if the mutex comes within microseconds, sleeps without it if not."""
        cdef View* v = &self.v
        cdef int rc = try_lock(v)
        if rc == 0:
            return finish(v, op, r)
        if rc == EBUSY:
            with nogil:
                rc = settle(v, pthread_mutex_lock(&v.h.mutex))
                rc = finish(v, op, r) if rc == 0 else BROKEN_LOCK
            return rc
        return BROKEN_LOCK

    cdef int fail(self, int rc) except -1:
        """Raise for a result that no caller expects."""
        if rc == TABLE_FULL:
            raise ArenaFull(f"the arena's tables are full: {self.v.h.objects} of {self.v.h.max_objects} objects. Store "
                            f"fewer, larger objects, or make the arena with a larger max_objects",
                            0, self.v.h.capacity, 0)
        raise ArenaError(f"the arena's mutex is broken ({rc}): its memory was overwritten")

    cdef int reserve(self, Request* r) noexcept:
        """Reserve what r.want_* asks for, and some more. Where that fails, r.fixed or r.limit say what there is."""
        cdef View* v = &self.v
        cdef Header* h = v.h
        cdef int rc = 0
        cdef uint64_t reached, ahead, room, have = h.data_reserved
        with nogil:
            if r.want_blocks > h.blocks_reserved:
                r.want_blocks = min(r.want_blocks + 1024, h.max_blocks)
                rc = reserve_file(self.fd, v.base, h.blocks_offset + h.blocks_reserved * sizeof(Block),
                                  h.blocks_offset + (r.want_blocks + 1) * sizeof(Block), &reached)
            if rc == 0 and r.want_pins > h.pins_reserved:
                r.want_pins = min(r.want_pins + 1024, h.max_pins)
                rc = reserve_file(self.fd, v.base, h.pins_offset + h.pins_reserved * sizeof(Pin),
                                  h.pins_offset + (r.want_pins + 1) * sizeof(Pin), &reached)
            if rc != 0:
                r.fixed = True
                return rc
            if r.want_data > have:
                # Some more than asked, growing with the arena, so that small objects seldom come here. But a request
                # that cannot be met must not eat up what is left of /dev/shm: look first.
                room = room_behind(self.fd)
                ahead = min(h.capacity, align(r.want_data + min(max(have // 8, <uint64_t>1 << 20), STEP), PAGE))
                if ahead - have > room:
                    ahead = align(r.want_data, PAGE)
                if ahead - have > room:
                    r.limit = have + room
                    return ENOSPC
                rc = reserve_file(self.fd, v.base, h.data_offset + have, h.data_offset + ahead, &reached)
                r.want_data = reached - h.data_offset
                if rc != 0:
                    r.limit = r.want_data
        self.run(op_reserved, r)
        return rc

    cdef int touch(self, uint64_t offset, uint64_t length) noexcept:
        """Map a block's pages at once: many times cheaper than a fault for each during the copy."""
        cdef uint64_t first = offset >> TOUCH_SHIFT
        cdef uint64_t last = (offset + length - 1) >> TOUCH_SHIFT
        cdef uint64_t stop
        cdef View* v = &self.v
        while first <= last and self.touched[first]:
            first += 1
        while last > first and self.touched[last]:
            last -= 1
        if first > last:
            return 0
        stop = min((last + 1) << TOUCH_SHIFT, v.h.data_reserved)
        with nogil:
            madvise(v.base + v.h.data_offset + (first << TOUCH_SHIFT), stop - (first << TOUCH_SHIFT),
                    MADV_POPULATE_WRITE)  # where it fails, the copy's own faults do the work
        memset(self.touched + first, 1, last - first + 1)
        return 0

    cdef int note_touched(self, uint64_t offset, uint64_t length) noexcept:
        """The block was read whole: what lies inside it is mapped, as `touch` would have done."""
        cdef uint64_t first = ((offset - 1) >> TOUCH_SHIFT) + 1 if offset else 0
        cdef uint64_t stop = (offset + length) >> TOUCH_SHIFT
        if stop > first:
            memset(self.touched + first, 1, stop - first)
        return 0

    cdef uint64_t bury(self, uint64_t pid) noexcept:
        """Take back what dead processes hold: those with this pid, or any (0)."""
        cdef View* v = &self.v
        cdef Request r
        cdef uint64_t s, taken = 0
        memset(&r, 0, sizeof(r))
        for s in range(1, v.h.slots_mark + 1):
            r.slot = s
            r.pid = v.slots[s].pid
            r.start = v.slots[s].start
            if r.pid and (not pid or r.pid == pid) and is_dead(r.pid, r.start):
                if self.run(op_bury, &r) == DONE:
                    taken += r.taken
        return taken

    cdef int leave(self) noexcept:
        """Give back the slot (unless it is a parent's) and the mapping."""
        cdef Request r
        if self.v.base != NULL:
            if self.slot and self.pid == getpid():
                memset(&r, 0, sizeof(r))
                r.slot = self.slot
                r.pid = self.pid
                r.start = self.v.slots[self.slot].start
                self.run(op_bury, &r)
            munmap(self.v.base, self.v.h.total_bytes)
            self.v.base = NULL
        if self.fd >= 0:
            c_close(self.fd)
            self.fd = -1
        free(self.touched)
        self.touched = NULL
        return 0

    def __cinit__(self):
        self.fd = -1

    def __dealloc__(self):
        self.leave()

    def close(self):
        """Refuse further calls; the mapping goes when the last Pinned or Writable of this process has gone."""
        if not self.closed:
            self.closed = True
            if not self.handles:
                self.leave()

    def allocate(self, bytes object_id not None, Py_ssize_t size, bytes owner not None=b""):
        """Room for an object of `size` bytes, for this process to fill, then seal or abort.

        ObjectExists if the id is taken; ArenaFull if there is no room, after looking for dead processes' leavings.
        """
        cdef Request r
        cdef Writable w
        cdef int rc
        cdef bint swept = False, short_of_memory = False
        if size < 0 or PyBytes_GET_SIZE(owner) > 8 * OWNER_WORDS:
            raise ValueError(f"size {size} must not be negative, owner {owner!r} at most {8 * OWNER_WORDS} bytes")
        call = self.enter()
        read_id(object_id, &r)
        r.length = size
        r.limit = self.v.h.capacity
        r.slot = self.slot
        r.owner_length = PyBytes_GET_SIZE(owner)
        memcpy(r.owner, PyBytes_AS_STRING(owner), r.owner_length)
        w = Writable.__new__(Writable)
        while True:
            rc = self.run(op_allocate, &r)
            if rc == DONE:
                break
            if rc == EXISTS:
                raise ObjectExists(f"object {object_id.hex()} is in the arena already")
            if rc == GROW:
                short_of_memory = self.reserve(&r) != 0
            elif not swept and (rc == FULL or rc == TABLE_FULL) and self.bury(0):
                swept = True
                r.fixed = False
                r.limit = self.v.h.capacity
            elif rc == FULL:
                raise ArenaFull(
                    f"no room for {size} bytes in an arena of {self.v.h.capacity}: the longest free piece is "
                    f"{r.largest_free}" + (" (the memory behind the arena is full)" if short_of_memory else ""),
                    size, self.v.h.capacity, r.largest_free)
            else:
                self.fail(rc)
        w.arena = self
        w.pid = self.pid
        w.slot = self.slot
        w.block = r.block
        w.object_id = object_id
        w.length = size
        w.usable = True
        self.handles += 1
        w.data = self.v.base + self.v.h.data_offset + self.v.blocks[r.block].offset
        self.making[object_id] = <size_t><void*>w
        if size >= 1 << TOUCH_SHIFT:
            self.touch(self.v.blocks[r.block].offset, size)
        return w

    cdef Writable writable(self, bytes object_id):
        call = self.enter()
        address = self.making.get(object_id)
        if address is None:
            raise NotMaking(f"this process is not making an object {object_id.hex()}: sealed or aborted already, "
                            f"or allocated by another process")
        return <Writable><void*><size_t>address

    def seal(self, bytes object_id not None):
        """See Writable.seal."""
        self.writable(object_id).seal()

    def abort(self, bytes object_id not None):
        """See Writable.abort."""
        self.writable(object_id).abort()

    def get(self, bytes object_id not None):
        """The sealed object as a read-only buffer, pinned while the Pinned or any view of it lives; None if absent."""
        cdef Request r
        cdef Pinned p
        cdef int rc
        call = self.enter()
        read_id(object_id, &r)
        r.slot = self.slot
        p = Pinned.__new__(Pinned)
        while True:
            rc = self.run(op_get, &r)
            if rc == DONE:
                break
            if rc == ABSENT:
                return None
            if rc != GROW:
                self.fail(rc)
            self.reserve(&r)
        p.arena = self
        p.pid = self.pid
        p.slot = self.slot
        p.block = r.block
        p.object_id = object_id
        p.length = self.v.blocks[r.block].length
        p.data = self.v.base + self.v.h.data_offset + self.v.blocks[r.block].offset
        self.handles += 1
        return p

    def contains(self, bytes object_id not None):
        """Whether get would find the object."""
        cdef Request r
        call = self.enter()
        read_id(object_id, &r)
        return self.run(op_contains, &r) == DONE

    def delete(self, bytes object_id not None):
        """Remove the object: its id is free at once, its memory with the last pin.

        False if there may be a copy elsewhere: it is not in the arena, was sealed or evicted as one that has a copy, or
        is unsealed, and may be made from one. An unsealed object is removed as well; its maker's seal then raises
        NotMaking, but its maker may as well give up before that, and never hear of it.
        """
        cdef Request r
        call = self.enter()
        read_id(object_id, &r)
        cdef int rc = self.run(op_delete, &r)
        if rc < 0:
            self.fail(rc)
        return rc == DONE and not r.copied

    def warm(self, uint64_t nbytes):
        """Reserve and touch memory beyond the mark, so that the next `nbytes` of fresh blocks cost no first touch.

        For a process with time to spare: other processes then only map the pages. Returns the bytes that are warm
        now, less than asked for where memory ends. Gives up the GIL; a few MB a call keep it short.
        """
        cdef Request r
        cdef Header* h
        cdef uint64_t top, stop
        call = self.enter()
        h = self.v.h
        memset(&r, 0, sizeof(r))
        top = h.top
        stop = h.capacity if nbytes > h.capacity - top else top + nbytes
        r.want_data = stop
        if stop > h.data_reserved:
            self.reserve(&r)
        stop = min(stop, h.data_reserved)
        if stop <= top:
            return 0
        self.touch(top, stop - top)
        return stop - top

    def reap(self, pid):
        """Take back the pins and half-made objects of a dead process; returns how many. 0 if it lives."""
        call = self.enter()
        return self.bury(pid) if pid > 0 else 0

    def victims(self, uint64_t nbytes):
        """[(id, length)] of sealed, unpinned objects, longest unused first, until they make `nbytes`; at most 4096."""
        cdef Request r
        cdef Block* rows
        cdef uint64_t i
        cdef int rc
        call = self.enter()
        memset(&r, 0, sizeof(r))
        r.bytes = nbytes
        r.room_rows = min(self.v.h.objects, <uint64_t>VICTIMS_MAX)
        rows = <Block*>calloc(r.room_rows + 1, sizeof(Block))
        if rows == NULL:
            raise MemoryError()
        r.room = rows
        try:
            rc = self.run(op_victims, &r)
            if rc != DONE:
                self.fail(rc)
            return [(PyBytes_FromStringAndSize(<char*>rows[i].id, 20), rows[i].length) for i in range(r.taken)]
        finally:
            free(rows)

    def stats(self):
        """Numbers about the whole arena; bytes unless the name says otherwise."""
        cdef Request r
        cdef Header h
        cdef int rc
        call = self.enter()
        memset(&r, 0, sizeof(r))
        r.room = &h
        rc = self.run(op_header, &r)
        if rc != DONE:
            self.fail(rc)
        return {
            "capacity": h.capacity,
            "used": h.used,
            "used_peak": h.used_peak,
            "pinned": h.pinned,
            "free": h.capacity - h.used,
            "largest_free": r.largest_free,
            "high_water": h.top,
            "reserved": h.data_reserved,
            "objects": h.objects,
            "max_objects": h.max_objects,
            "free_blocks": h.free_blocks,
            "overhead": (h.blocks_offset + (h.blocks_reserved + 1) * sizeof(Block)
                         + (h.pins_reserved + 1) * sizeof(Pin)),
            "recoveries": h.recoveries,
        }

    def objects(self):
        """A dictionary for each object, doomed ones included, in order of age (time of seal or last release)."""
        call = self.enter()
        snapshot = Snapshot(self)
        return snapshot.objects()

    def check(self):
        """Walk every invariant on a copy of the tables; raises ArenaError with what does not hold."""
        call = self.enter()
        snapshot = Snapshot(self)
        snapshot.check()


@cython.final
@cython.no_gc
@cython.freelist(16)
cdef class Call:
    def __dealloc__(self):
        drop_handle(self.arena)


@cython.final
@cython.no_gc       # refers to an Arena and bytes only, which never refer back: no cycle, and dealloc sees its arena
@cython.freelist(64)
cdef class Pinned:
    """A sealed object in this process: a read-only buffer. Views refer to it, so the pin goes with the last of them."""

    def __init__(self):
        raise TypeError("use Arena.get")

    def __dealloc__(self):
        cdef Request r
        if self.block:
            if self.pid == getpid():    # a forked child's copy: the pin is its parent's
                memset(&r, 0, sizeof(r))
                r.block = self.block
                r.slot = self.slot
                self.arena.run(op_release, &r)
            self.block = 0
            drop_handle(self.arena)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if self.block == 0 or self.pid != getpid():
            raise BufferError("this pin belongs to the process that forked this one: get the object again here")
        PyBuffer_FillInfo(buffer, self, self.data, self.length, 1, flags)

    def evict(self):
        """Delete this very object, of which there is a copy elsewhere, if this is its only pin.

        True: its id is free at once, its memory goes with this pin. False: others pin it, so it stays, and `delete`
        will say that there is a copy. None: it was deleted already. For a process that has read or written all of the
        object, and so has its pages mapped.
        """
        cdef Request r
        if self.block == 0 or self.pid != getpid():
            raise BufferError("this pin belongs to the process that forked this one: get the object again here")
        memset(&r, 0, sizeof(r))
        r.block = self.block
        self.arena.note_touched(self.data - self.arena.v.base - self.arena.v.h.data_offset, self.length)
        cdef int rc = self.arena.run(op_evict, &r)
        if rc < 0:
            self.arena.fail(rc)
        return None if rc == ABSENT else rc == DONE

    @property
    def creator(self):
        """Pid of the process that made the object."""
        return self.arena.v.blocks[self.block].creator

    def __len__(self):
        return self.length

    @property
    def nbytes(self):
        return self.length

    def __repr__(self):
        return f"<Pinned {self.object_id.hex()} {self.length} bytes>"


@cython.final
@cython.no_gc
@cython.freelist(16)
cdef class Writable:
    """An object being made: a writable buffer. Dropped without seal, the object is aborted."""

    def __init__(self):
        raise TypeError("use Arena.allocate")

    def __dealloc__(self):
        # No view is alive here: each holds a reference to us.
        if self.block:
            self.forget()
            self.give_back()

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if not self.usable or self.pid != getpid():
            raise BufferError(f"object {self.object_id.hex()} is sealed or aborted, or is a parent process's: "
                              f"it can no longer be written to")
        PyBuffer_FillInfo(buffer, self, self.data, self.length, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* buffer):
        self.exports -= 1

    cdef int forget(self) except -1:
        """No longer the Writable of its id (a later one with the same id stays)."""
        self.usable = False
        if self.pid == self.arena.pid and self.arena.making.get(self.object_id) == <size_t><void*>self:
            del self.arena.making[self.object_id]
        return 0

    cdef int give_back(self) noexcept:
        """Abort, and let go of the block: it is free unless it was sealed meanwhile."""
        cdef Request r
        if self.pid == getpid():
            memset(&r, 0, sizeof(r))
            r.block = self.block
            r.slot = self.slot
            self.arena.run(op_doom, &r)
            self.arena.run(op_release, &r)
        self.block = 0
        drop_handle(self.arena)
        return 0

    def seal(self, *, bint copied=False):
        """From now the object cannot change, and get finds it; the maker's pin is gone.

        `copied`: there is a copy of it elsewhere, of which `delete` then tells. BufferError while a writable view lives;
        NotMaking if it was deleted meanwhile, or sealed or aborted before.
        """
        cdef Request r
        cdef int rc
        if not self.usable or self.pid != getpid():
            raise NotMaking(f"object {self.object_id.hex()} is sealed or aborted already, or a parent process's")
        if self.exports:
            raise BufferError(f"object {self.object_id.hex()} cannot be sealed: {self.exports} writable views of it are "
                              f"alive. Release or delete them first")
        self.forget()  # first: the mutex may take a while, and another thread may come here meanwhile
        memset(&r, 0, sizeof(r))
        r.block = self.block
        r.slot = self.slot
        r.copied = copied
        rc = self.arena.run(op_seal, &r)
        if rc < 0:
            self.arena.fail(rc)
        self.block = 0
        drop_handle(self.arena)
        if rc == GONE:
            raise NotMaking(f"object {self.object_id.hex()} was deleted while it was being made")

    def abort(self):
        """Take the object back. Its memory goes with the last view of it."""
        cdef Request r
        if not self.usable or self.pid != getpid():
            raise NotMaking(f"object {self.object_id.hex()} is sealed or aborted already, or a parent process's")
        self.forget()
        if self.exports:
            memset(&r, 0, sizeof(r))
            r.block = self.block
            self.arena.run(op_doom, &r)
        else:
            self.give_back()

    def __len__(self):
        return self.length

    @property
    def nbytes(self):
        return self.length

    def __repr__(self):
        return f"<Writable {self.object_id.hex()} {self.length} bytes>"


cdef int drop_handle(Arena arena) noexcept:
    arena.handles -= 1
    if arena.closed and not arena.handles:
        arena.leave()
    return 0


def copy_into(dest, Py_ssize_t offset, source):
    """Copy all bytes of `source` (any contiguous buffer) to `dest` (a writable one) at `offset`; returns how many.

    Gives up the GIL during large copies. ValueError if they do not fit. The two must not overlap.
    """
    cdef Py_buffer to, data
    cdef char* at
    PyObject_GetBuffer(source, &data, PyBUF_ANY_CONTIGUOUS)
    try:
        PyObject_GetBuffer(dest, &to, PyBUF_ANY_CONTIGUOUS | PyBUF_WRITABLE)
        try:
            if offset < 0 or offset > to.len or data.len > to.len - offset:
                raise ValueError(f"{data.len} bytes at offset {offset} do not fit into {to.len}")
            at = <char*>to.buf + offset
            if data.len < COPY_WITHOUT_GIL:
                memcpy(at, data.buf, data.len)
            else:
                with nogil:
                    memcpy(at, data.buf, data.len)
            return data.len
        finally:
            PyBuffer_Release(&to)
    finally:
        PyBuffer_Release(&data)


include "arena_snapshot.pxi"
