"""Messages between the processes of one machine, through rings in shared memory. The layout is in lanes.pxd.

State: the mapped exchange; of an Inbox, what it has read and how long it usually waits; of a Lane, what it has written.
Holds no lock: an Inbox belongs to the thread that has the right to read, a Lane to the holder of the runtime's lock.
"""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EINTR, ENOENT, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset
from posix.fcntl cimport O_CLOEXEC, O_NONBLOCK, O_RDONLY, O_RDWR
from posix.fcntl cimport open as c_open
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close as c_close
from posix.unistd cimport pread, write

from skate._c.frames cimport Reader, _read_record
from skate._c.steps cimport keep_away, let_collect

from skate._c.frames import FrameError

cdef extern from *:
    """
    #include <stdint.h>
    #include <fcntl.h>
    static inline uint64_t sk_load(const uint64_t* at) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); }
    static inline uint64_t sk_acquire(const uint64_t* at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline void sk_release(uint64_t* at, uint64_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
    static inline void sk_store(uint64_t* at, uint64_t value) { __atomic_store_n(at, value, __ATOMIC_SEQ_CST); }
    static inline uint64_t sk_swap(uint64_t* at, uint64_t value) { return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST); }
    static inline void sk_set(uint64_t* at, uint64_t bits) { __atomic_fetch_or(at, bits, __ATOMIC_SEQ_CST); }
    static inline void sk_clear(uint64_t* at, uint64_t bits) { __atomic_fetch_and(at, ~bits, __ATOMIC_SEQ_CST); }
    static inline int sk_claim(uint64_t* at, uint64_t from, uint64_t to) {
        return __atomic_compare_exchange_n(at, &from, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    static inline void sk_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    static inline uint8_t sk_load_byte(const uint8_t* at) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); }
    static inline void sk_store_byte(uint8_t* at, uint8_t value) { __atomic_store_n(at, value, __ATOMIC_SEQ_CST); }
    static inline int sk_count(uint64_t bits) { return __builtin_popcountll(bits); }
    static inline int sk_lowest(uint64_t bits) { return __builtin_ctzll(bits); }
    static inline void sk_raise(uint64_t* at, uint64_t least) {
        uint64_t now = __atomic_load_n(at, __ATOMIC_SEQ_CST);
        while (now < least && !__atomic_compare_exchange_n(at, &now, least, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    }
    #if defined(__x86_64__) || defined(__i386__)
    static inline void sk_pause(void) { __builtin_ia32_pause(); }
    #elif defined(__aarch64__)
    static inline void sk_pause(void) { __asm__ __volatile__("yield"); }
    #else
    static inline void sk_pause(void) { }
    #endif
    #define SK_PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
    """
    uint64_t sk_load(const uint64_t*) noexcept nogil
    uint64_t sk_acquire(const uint64_t*) noexcept nogil
    void sk_release(uint64_t*, uint64_t) noexcept nogil
    void sk_store(uint64_t*, uint64_t) noexcept nogil
    uint64_t sk_swap(uint64_t*, uint64_t) noexcept nogil
    void sk_set(uint64_t*, uint64_t) noexcept nogil
    void sk_clear(uint64_t*, uint64_t) noexcept nogil
    bint sk_claim(uint64_t*, uint64_t, uint64_t) noexcept nogil
    void sk_fence() noexcept nogil
    uint8_t sk_load_byte(const uint8_t*) noexcept nogil
    void sk_store_byte(uint8_t*, uint8_t) noexcept nogil
    int sk_count(uint64_t) noexcept nogil
    int sk_lowest(uint64_t) noexcept nogil
    void sk_raise(uint64_t*, uint64_t) noexcept nogil
    void sk_pause() noexcept nogil
    int SK_PUNCH

cdef extern from "fcntl.h" nogil:
    int fallocate(int fd, int mode, int64_t offset, int64_t size)
    int fcntl(int fd, int command, int argument)
    int F_DUPFD_CLOEXEC

cdef enum:
    RECORD = 0
    MOVE = 1
    BY_LINK = 2
    _STALLED = 1
    _STARVED = 2
    ENTRY_BYTES = 8
    PROCESS_ID_BYTES = 8
    #: ns that a wait is spun for at least: about what waking a sleeper costs, and the sleeper's peer may be spinning, too
    LEAST_SPIN = 50_000
    #: ns that a wait is spun for at most
    MOST_SPIN = 200_000
    #: ns of a usual wait from which on spinning is not worth a core
    WORTH = 300_000
    #: ns for which a spin goes on while more processes are awake than there are cores: one that has just answered is
    #: about to sleep
    BRIEF_CROWD = 30_000
    #: ns between two looks at how many threads of the machine are runnable
    LOAD_INTERVAL = 20_000_000

#: the bit of a slot's `ready` that says: look at what waits to leave, or at who pokes you
cdef uint64_t NUDGE = <uint64_t>1 << 63

cdef int64_t SLOT_BYTES = HEAD_BYTES + <int64_t>RINGS * RING_BYTES
cdef int64_t _TOTAL = DIRECTORY_BYTES + SLOTS * SLOT_BYTES
#: `tail` is entries << AT_BITS | where the next one will be
cdef int AT_BITS = 18
cdef uint64_t AT_MASK = RING_BYTES - 1

#: flags of Inbox.take
STALLED, STARVED = _STALLED, _STARVED
#: what `Exchange` needs of a file
EXCHANGE_BYTES = _TOTAL
#: bytes of the longest record that goes by a lane
LONGEST_RECORD = LONGEST
#: processes that may have an inbox at once
MOST_INBOXES = SLOTS
#: processes that may write to one inbox
MOST_WRITERS = RINGS


cdef inline int64_t _now() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return <int64_t>time.tv_sec * 1_000_000_000 + time.tv_nsec


cdef uint64_t _number(bytes process) except? 0:
    cdef uint64_t number
    if PyBytes_GET_SIZE(process) != PROCESS_ID_BYTES:
        raise ValueError(f"a process id has {PROCESS_ID_BYTES} bytes, got {process!r}")
    memcpy(&number, PyBytes_AS_STRING(process), PROCESS_ID_BYTES)
    if number == 0:
        raise ValueError("all zeros name no process")
    return number


cdef int _open_bell(bytes path) noexcept:
    """Opened for reading, too, so that a reader that is gone is no SIGPIPE."""
    return c_open(PyBytes_AS_STRING(path), O_RDWR | O_NONBLOCK | O_CLOEXEC)


cdef void _ring(int bell) noexcept:
    while write(bell, b"!", 1) < 0 and errno == EINTR:
        pass  # (a full FIFO wakes as well)


cdef class Exchange:
    """The shared memory of a node's lanes. Each process opens it once; a fork of that process must not use it."""

    def __cinit__(self, int fd):
        """`fd` is a file of EXCHANGE_BYTES, zeros at first. It is duplicated."""
        self._fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)
        self._directory = <Directory*>self._map(0, DIRECTORY_BYTES)
        if self._directory == NULL:
            raise OSError(errno, f"the lanes could not be mapped: {os.strerror(errno)}")
        self._slots = <Slot**>calloc(SLOTS, sizeof(Slot*))
        if self._slots == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef uint64_t i
        if self._slots != NULL:
            for i in range(self._directory.used):
                if self._slots[i] != NULL:
                    munmap(self._slots[i], HEAD_BYTES)
            free(self._slots)
        if self._directory != NULL:
            munmap(self._directory, DIRECTORY_BYTES)
        if self._fd >= 0:
            c_close(self._fd)

    cdef char* _map(self, int64_t at, Py_ssize_t size) noexcept:
        """NULL, and errno, where that cannot be."""
        cdef void* base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, self._fd, at)
        return NULL if base == MAP_FAILED else <char*>base

    cdef Slot* _slot(self, Py_ssize_t index) except NULL:
        """A slot without its rings; it stays mapped."""
        if self._slots[index] == NULL:
            self._slots[index] = <Slot*>self._map(_slot_at(index), HEAD_BYTES)
            if self._slots[index] == NULL:
                raise OSError(errno, f"the lanes could not be mapped: {os.strerror(errno)}")
        return self._slots[index]

    cdef Py_ssize_t _find(self, uint64_t process) noexcept:
        """The slot of a living process, or -1."""
        cdef Directory* directory = self._directory
        cdef uint64_t i
        for i in range(sk_load(&directory.used)):
            if sk_load(&directory.processes[i]) == process:
                return -1 if sk_load_byte(&directory.dead[i]) else <Py_ssize_t>i
        return -1

    def inbox(self, bytes process, list schemas, int cores):
        """Opens the inbox of this process, which spins in it only while no more than `cores` are awake.

        None where all slots are taken. OSError where memory cannot be mapped.
        """
        cdef Directory* directory = self._directory
        cdef uint64_t number = _number(process)
        cdef Py_ssize_t i
        for i in range(SLOTS):
            if sk_load(&directory.processes[i]) == 0:
                sk_raise(&directory.used, i + 1)
                if sk_claim(&directory.processes[i], 0, number):
                    return Inbox(self, i, schemas, cores)
        return None

    def lane(self, bytes me, bytes peer, str bell):
        """A way for `me` to write into the inbox of `peer`; None where it has none, or there is no ring, descriptor or
        address space for it.

        `bell` is the path of the FIFO that wakes the peer.
        """
        cdef uint64_t writer = _number(me), reader = _number(peer)
        cdef Directory* directory = self._directory
        cdef Py_ssize_t index = self._find(reader), ring
        cdef Slot* slot
        if index < 0:
            return None
        try:
            slot = self._slot(index)
        except OSError:
            return None
        ring = self._claim_ring(slot, writer)
        if ring < 0:
            return None
        lane = Lane.__new__(Lane)
        if (
            sk_load(&directory.processes[index]) != reader
            or sk_load_byte(&directory.dead[index])
            or not _open_lane(lane, self, index, ring, writer, os.fsencode(bell))
        ):
            sk_claim(&slot.writers[ring], writer, 0)
            return None
        return lane

    cdef Py_ssize_t _claim_ring(self, Slot* slot, uint64_t writer) noexcept:
        """The number of a free ring, which is the writer's now; -1: there is none."""
        cdef Py_ssize_t i
        for i in range(RINGS):
            if i < <Py_ssize_t>sk_load(&slot.used):
                if sk_load(&slot.writers[i]) != 0:
                    continue
            else:
                sk_raise(&slot.used, i + 1)  # before it is claimed: who buries looks at so many
            if sk_claim(&slot.writers[i], 0, writer):
                return i
        return -1

    def nudge(self, bytes peer, str bell):
        """Has the peer's wait, or its next one, end at once; `bell` as in `lane`. Nothing, where it has no inbox."""
        cdef Py_ssize_t index = self._find(_number(peer))
        cdef Slot* slot
        cdef int fd
        if index < 0:
            return
        slot = self._slot(index)
        sk_set(&slot.ready, NUDGE)
        if sk_load(&slot.sleeping) and sk_swap(&slot.sleeping, 0):
            fd = _open_bell(os.fsencode(bell))
            if fd >= 0:
                _ring(fd)
                c_close(fd)

    def bury(self, bytes process, living):
        """`process` has ended, and of all others only `living` (process ids) still run. Gives back what nobody uses."""
        cdef Directory* directory = self._directory
        cdef uint64_t number = _number(process), i, j, writer
        cdef Slot* slot
        cdef bint used
        numbers = {_number(each) for each in living}
        for i in range(sk_load(&directory.used)):
            if sk_load(&directory.processes[i]) == number:
                sk_store_byte(&directory.dead[i], 1)
                sk_clear(&directory.awake[i >> 6], <uint64_t>1 << (i & 63))
            if not sk_load_byte(&directory.dead[i]):
                continue
            slot = self._slot(i)
            used = False
            for j in range(sk_load(&slot.used)):
                writer = sk_load(&slot.writers[j])
                if writer != 0 and writer in numbers:
                    used = True
                    break
            if not used:
                fallocate(self._fd, SK_PUNCH, _slot_at(i), SLOT_BYTES)
                sk_store_byte(&directory.dead[i], 0)
                sk_store(&directory.processes[i], 0)

    def awake(self):
        """How many processes do not sleep in their inbox."""
        return _awake(self._directory)

    def inboxes(self):
        """The processes that have one, as (process id, has it ended)."""
        cdef Directory* directory = self._directory
        return [
            (PyBytes_FromStringAndSize(<char*>&directory.processes[i], PROCESS_ID_BYTES), bool(directory.dead[i]))
            for i in range(directory.used)
            if directory.processes[i] != 0
        ]

    def bytes_used(self):
        """Of memory, by all processes of the node together."""
        return os.fstat(self._fd).st_blocks * 512


cdef inline int64_t _slot_at(Py_ssize_t index) noexcept:
    return DIRECTORY_BYTES + index * SLOT_BYTES


cdef inline int64_t _ring_at(Py_ssize_t slot, Py_ssize_t ring) noexcept:
    return _slot_at(slot) + HEAD_BYTES + ring * <int64_t>RING_BYTES


cdef void _mark(Directory* directory, Py_ssize_t slot, bint awake) noexcept:
    cdef uint64_t bit = <uint64_t>1 << (slot & 63)
    if awake:
        sk_set(&directory.awake[slot >> 6], bit)
    else:
        sk_clear(&directory.awake[slot >> 6], bit)


cdef int _awake(Directory* directory) noexcept nogil:
    cdef int awake = 0
    cdef uint64_t i
    for i in range((sk_load(&directory.used) + 63) >> 6):
        awake += sk_count(sk_load(&directory.awake[i]))
    return awake


# ---------------------------------------------------------------------------------------------------- writing

cdef bint _open_lane(Lane lane, Exchange exchange, Py_ssize_t slot, Py_ssize_t ring, uint64_t me, bytes bell) except -1:
    """False where there is no address space, or no descriptor for the bell: the reader could not be woken."""
    lane._bell = _open_bell(bell)
    if lane._bell < 0 and errno != ENOENT:  # (else it is gone and buried)
        return False
    lane._ring = <Ring*>exchange._map(_ring_at(slot, ring), RING_BYTES)
    if lane._ring == NULL:
        return False
    lane._exchange = exchange
    lane._slot = exchange._slot(slot)
    lane._peer = slot
    lane._index = ring
    lane._me = me
    lane._bell_path = bell
    lane._free = ~<uint64_t>0
    lane._after = -1
    lane._fill(0, 1)
    return True


cdef class Lane:
    """The writer's end of a ring in the inbox of another process (Exchange.lane)."""

    def __cinit__(self):
        self._bell = -1

    def __dealloc__(self):
        if self._ring != NULL:
            munmap(self._ring, RING_BYTES)
        if self._bell >= 0:
            c_close(self._bell)

    cpdef bint write(self, bytes record) except -1:
        """Writes a record; `wanted` tells whether the reader sleeps. False where there is no room, or never will be.

        (It is longer than LONGEST_RECORD.) Where there is none, the reader nudges this process as soon as it has read.
        """
        cdef Py_ssize_t size = PyBytes_GET_SIZE(record)
        return size <= LONGEST and self._put(PyBytes_AS_STRING(record), size, RECORD) == 0

    def mark(self):
        """Says that the next message comes by the ZeroMQ link. False where there is no room, as in `write`."""
        return self._put(NULL, 0, BY_LINK) == 0

    cpdef ring(self):
        """Wakes the reader, where it sleeps."""
        if sk_load(&self._slot.sleeping) and sk_swap(&self._slot.sleeping, 0):
            if self._bell < 0:
                self._bell = _open_bell(self._bell_path)
            if self._bell >= 0:  # else it is gone and buried
                _mark(self._exchange._directory, self._peer, True)  # so that who spins makes room for it
                self._exchange._rung += 1
                _ring(self._bell)

    def give_up(self):
        """The reader is gone: others may have the ring."""
        sk_claim(&self._slot.writers[self._index], self._me, 0)

    cdef int _put(self, const char* payload, Py_ssize_t size, uint32_t kind) except -1:
        """1 where there is no room."""
        cdef uint64_t need = ENTRY_BYTES + ((size + 7) & ~<Py_ssize_t>7), ready
        # What a piece has left is enough for the entry, and for the one that says where the next piece is.
        if self._at + need + ENTRY_BYTES > self._end and not self._make_room(need):
            return 1
        self._append(payload, <uint32_t>size, kind)
        if self._after >= 0:
            self._move_to(self._after, 1)
            self._after = -1
        sk_release(&self._ring.tail, self._entries << AT_BITS | self._at)
        sk_fence()
        if not sk_load(&self._ring.listed):
            sk_store(&self._ring.listed, 1)
            while True:
                ready = sk_load(&self._slot.ready)
                self._ring.next = ready & ~NUDGE
                if sk_claim(&self._slot.ready, ready, (ready & NUDGE) | <uint64_t>(self._index + 1)):
                    break
        self.wanted = sk_load(&self._slot.sleeping) != 0
        return 0

    cdef bint _make_room(self, uint64_t need) noexcept:
        """Begins a piece with room for so many bytes; False where there is none, and the reader knows."""
        self._reclaim(sk_acquire(&self._ring.head))
        if self._begin_piece(need):
            return True
        sk_store(&self._ring.starving, 1)
        sk_fence()
        self._reclaim(sk_load(&self._ring.head))
        if not self._begin_piece(need):
            return False
        sk_store(&self._ring.starving, 0)
        return True

    cdef bint _begin_piece(self, uint64_t need) noexcept:
        """Of more than one page only for one entry: so one page is all that an empty ring has in use."""
        cdef uint64_t pages = (need + ENTRY_BYTES + FIRST_ENTRY + PAGE_BYTES - 1) // PAGE_BYTES, i
        cdef uint64_t found = self._free, rest
        cdef int page
        for i in range(1, pages):
            found &= self._free >> i
        if found == 0:
            return False
        page = sk_lowest(found)
        if pages > 1:
            rest = self._free & ~(((<uint64_t>1 << pages) - 1) << page)
            if rest == 0:
                return False
            self._after = sk_lowest(rest)
        self._move_to(page, <int>pages)
        return True

    cdef void _move_to(self, int page, int pages) noexcept:
        """The next entry goes to the piece that begins there; the one before it is left."""
        cdef uint64_t last = self._left_last & (PAGES - 1)
        self._append(NULL, <uint32_t>page, MOVE)
        self._left_pages[last] = self._pages
        self._left_until[last] = self._entries
        self._left_last += 1
        self._fill(page, pages)

    cdef void _fill(self, int page, int pages) noexcept:
        self._pages = ((<uint64_t>1 << pages) - 1) << page
        self._free &= ~self._pages
        self._at = <uint64_t>page * PAGE_BYTES if page else FIRST_ENTRY
        self._end = <uint64_t>(page + pages) * PAGE_BYTES

    cdef void _reclaim(self, uint64_t read) noexcept:
        """So many entries were read: the pieces that end with them are free."""
        cdef uint64_t first
        while self._left_first != self._left_last:
            first = self._left_first & (PAGES - 1)
            if self._left_until[first] > read:
                return
            self._free |= self._left_pages[first]
            self._left_first += 1

    cdef void _append(self, const char* payload, uint32_t size, uint32_t kind) noexcept:
        cdef uint32_t* entry = <uint32_t*>(<char*>self._ring + self._at)
        entry[0] = size
        entry[1] = kind
        self._entries += 1
        if kind == RECORD:
            memcpy(entry + 2, payload, size)
            self._at += ENTRY_BYTES + ((size + 7) & ~<uint64_t>7)
        else:
            self._at += ENTRY_BYTES


# ---------------------------------------------------------------------------------------------------- reading

cdef class Inbox:
    """The rings that others write for this process (Exchange.inbox). Used by one thread at a time, but for `nudge`."""

    def __cinit__(self, Exchange exchange, Py_ssize_t slot, list schemas, int cores):
        self._exchange = exchange
        self._index = slot
        self._slot = exchange._slot(slot)
        self._first = self._last = -1
        self._senders = []
        self._indexes = {}
        self._schemas = schemas
        self._usual = WORTH
        self._cores = cores
        self._load_fd = c_open("/proc/loadavg", O_RDONLY | O_CLOEXEC)
        self._reading(0)
        _mark(self._exchange._directory, self._index, True)

    def __dealloc__(self):
        cdef int i
        for i in range(WINDOWS):
            if self._windows[i] != NULL:
                munmap(self._windows[i], WINDOW * RING_BYTES)
        free(self._readings)
        if self._load_fd >= 0:
            c_close(self._load_fd)

    cpdef object take(self, Py_ssize_t limit):
        """What has come in one ring: (sender, [(code, fields), …], flags, error), `limit` records at most; None: nothing.

        The rings have turns. One at a time, so that what is said of a sender's death can be dealt with before what
        others wrote, and after what the sender did (`take_from`). STALLED in flags: the sender's next message comes by
        the ZeroMQ link; `resume` once it has come. STARVED: the sender found no room before, and is to be nudged.
        `error`: None, or a FrameError for a record that was skipped. OSError where memory cannot be mapped.
        """
        cdef Py_ssize_t index
        cdef Reading* reading
        if sk_load(&self._slot.ready):
            self._collect()
        while self._first >= 0:
            index = self._first
            reading = &self._readings[index]
            self._first = reading.next
            if self._first < 0:
                self._last = -1
            reading.queued = False
            batch = self._read(index, limit)
            if batch is not None:
                return batch
        return None

    cdef int _collect(self) except -1:
        """Takes the list of what was written to; the first that came is the first to be read."""
        cdef uint64_t ready = sk_swap(&self._slot.ready, 0), number = ready & ~NUDGE
        cdef Py_ssize_t found = 0, index
        cdef Reading* reading
        cdef list newest_first = []
        if ready & NUDGE:
            self._nudged = True
        while 0 < number <= RINGS and found < RINGS:
            found += 1
            index = <Py_ssize_t>number - 1
            reading = self._reading(index)
            number = reading.ring.next  # before its writer may list it again
            sk_store(&reading.ring.listed, 0)
            newest_first.append(index)
        sk_fence()
        while newest_first:
            self._queue(newest_first.pop())
        return 0

    cdef void _queue(self, Py_ssize_t index) noexcept:
        """It has its turn, after those that are to be read already."""
        cdef Reading* reading = &self._readings[index]
        if reading.queued or reading.stalled:
            return
        reading.queued = True
        reading.next = -1
        if self._last < 0:
            self._first = index
        else:
            self._readings[self._last].next = index
        self._last = index

    cdef Reading* _reading(self, Py_ssize_t index) except NULL:
        """What is known of a ring, which is mapped."""
        cdef Py_ssize_t room = self._room, window = index // WINDOW
        cdef Reading* reading
        if index >= room:
            room = max(2 * room, index + 1, <Py_ssize_t>WINDOW)
            reading = <Reading*>realloc(self._readings, room * sizeof(Reading))
            if reading == NULL:
                raise MemoryError
            self._readings = reading
            memset(reading + self._room, 0, (room - self._room) * sizeof(Reading))
            self._senders += [None] * (room - self._room)
            self._room = room
        reading = &self._readings[index]
        if reading.ring == NULL:
            if self._windows[window] == NULL:
                self._windows[window] = self._exchange._map(
                    _ring_at(self._index, window * WINDOW), WINDOW * RING_BYTES
                )
                if self._windows[window] == NULL:
                    raise OSError(errno, f"the lanes could not be mapped: {os.strerror(errno)}")
            reading.ring = <Ring*>(self._windows[window] + (index % WINDOW) * RING_BYTES)
            reading.at = FIRST_ENTRY
        return reading

    cdef object _read(self, Py_ssize_t index, Py_ssize_t limit):
        """As `take`, of a certain ring."""
        cdef Reading* reading = self._reading(index)
        cdef Ring* ring = reading.ring
        cdef uint64_t tail = sk_acquire(&ring.tail), written = tail >> AT_BITS, seen = reading.seen, at = reading.at, size
        cdef uint32_t* entry
        cdef list records = []
        cdef int flags = 0
        cdef Reader reader
        error = None
        if seen >= written:
            return None
        sender = self._senders[index]
        if sender is None:
            sender = self._senders[index] = PyBytes_FromStringAndSize(
                <char*>&self._slot.writers[index], PROCESS_ID_BYTES
            )
            self._indexes[sender] = index
        while seen < written:
            entry = <uint32_t*>(<char*>ring + at)
            if limit <= 0 and entry[1] != MOVE:  # (which frees what comes before it)
                self._queue(index)
                break
            size = entry[0]
            seen += 1
            if entry[1] == RECORD and size <= LONGEST and at + ENTRY_BYTES + size <= RING_BYTES - ENTRY_BYTES:
                at += ENTRY_BYTES + ((size + 7) & ~<uint64_t>7)
                reader.at = <const unsigned char*>(entry + 2)
                reader.end = reader.at + size
                limit -= 1
                try:
                    records.append(_read_record(&reader, self._schemas))
                except FrameError as refused:
                    error = refused
                    self._queue(index)
                    break
            elif entry[1] == MOVE and size < PAGES and written - seen < RING_BYTES // ENTRY_BYTES:
                at = size * PAGE_BYTES if size else FIRST_ENTRY
            elif entry[1] == BY_LINK:
                at += ENTRY_BYTES
                reading.stalled = True
                flags |= _STALLED
                break
            else:
                error = FrameError(f"the lane is broken at byte {at}: what it held is lost")
                seen, at = written, tail & AT_MASK
        reading.seen, reading.at = seen, at
        sk_release(&ring.head, seen)
        sk_fence()
        if sk_load(&ring.starving) and sk_swap(&ring.starving, 0):
            flags |= _STARVED
        return sender, records, flags, error

    def take_from(self, bytes sender, Py_ssize_t limit):
        """As an item of `take`, of a sender that has ended: also past marks for what did not come. None: no more."""
        cdef Py_ssize_t index = self._ring_of(sender)
        return None if index < 0 else self._read(index, limit)

    def is_stalled(self, bytes sender):
        """Whether its next message comes by the ZeroMQ link, and nothing before it waits here."""
        cdef Py_ssize_t index = self._ring_of(sender)
        return index >= 0 and self._reading(index).stalled

    def has_lane(self, bytes sender):
        """Whether this process writes here (the longest messages come by ZeroMQ even so)."""
        return self._ring_of(sender) >= 0

    def resume(self, bytes sender):
        """The message that the sender's ring waited for has come: what is behind it may be read."""
        cdef Py_ssize_t index = self._ring_of(sender)
        if index >= 0:
            self._reading(index).stalled = False
            self._queue(index)

    def release(self, bytes sender):
        """The sender has ended, and what it had written was taken: others may have its ring."""
        cdef Py_ssize_t index = self._ring_of(sender)
        cdef Reading* reading
        if index < 0:
            return
        self._collect()  # it is in no list from here on
        reading = self._reading(index)
        reading.stalled = False
        reading.seen = 0
        reading.at = FIRST_ENTRY
        self._senders[index] = None
        self._indexes.pop(sender, None)
        memset(reading.ring, 0, FIRST_ENTRY)
        fallocate(self._exchange._fd, SK_PUNCH, _ring_at(self._index, index), RING_BYTES)
        sk_store(&self._slot.writers[index], 0)

    cdef Py_ssize_t _ring_of(self, bytes sender) except -2:
        cdef uint64_t number, i
        index = self._indexes.get(sender)
        if index is not None:
            return index
        number = _number(sender)
        for i in range(sk_load(&self._slot.used)):
            if sk_load(&self._slot.writers[i]) == number:
                return i
        return -1

    # ------------------------------------------------------------------------------------------------ waiting

    def nudge(self):
        """Ends a spin of another thread, or has the next one end at once. From any thread."""
        sk_set(&self._slot.ready, NUDGE)

    cpdef bint spin(self) except -1:
        """Waits for a short while without sleeping, where that has paid lately and cores are free. True: look again."""
        cdef int64_t start, until, now, crowded_since = 0
        cdef int round = 0, before
        cdef bint found = False
        cdef uint64_t* ready = &self._slot.ready
        if self._first >= 0 or sk_load(ready):
            return True
        self._wait_began = start = now = _now()
        if self._usual >= WORTH or not self._cores_are_free(start):
            return False
        until = start + min(<int64_t>MOST_SPIN, 2 * self._usual + LEAST_SPIN)
        before = let_collect()
        with nogil:
            while now < until:
                for round in range(32):
                    if sk_acquire(ready):
                        found = True
                        break
                    sk_pause()
                now = _now()
                if found:
                    break
                if _awake(self._exchange._directory) <= self._cores:
                    crowded_since = 0
                elif not crowded_since:
                    crowded_since = now
                elif now - crowded_since > BRIEF_CROWD:
                    break
        keep_away(before)
        if found:
            self._waited(now)
        return found

    cpdef bint fall_asleep(self, bint idle) except -1:
        """Before sleeping in the kernel. False: something has come, or somebody nudged: do not.

        `wake_up` afterwards in either case. `idle`: nothing else runs in this process meanwhile.
        """
        if self._nudged:
            self._nudged = False
            return False
        if self._first >= 0:
            return False
        sk_store(&self._slot.sleeping, 1)
        sk_fence()
        if sk_load(&self._slot.ready):
            return False
        if idle:
            _mark(self._exchange._directory, self._index, False)
        return True

    cpdef wake_up(self):
        """After sleeping, or after a `fall_asleep` that said no."""
        sk_store(&self._slot.sleeping, 0)
        _mark(self._exchange._directory, self._index, True)
        if self._wait_began:
            self._waited(_now())

    cpdef bint is_crowded(self) except -1:
        """More processes of the node are awake than it has cores: one that is woken now waits for a core."""
        return _awake(self._exchange._directory) > self._cores

    @property
    def usual_wait(self):
        """Seconds that waits lately took, as `spin` learns them."""
        return self._usual * 1e-9

    cdef void _waited(self, int64_t now) noexcept:
        """Learns how long a wait lasted; a long one is counted as a few times what is worth spinning for."""
        self._usual += (min(now - self._wait_began, <int64_t>(4 * WORTH)) - self._usual) // 8
        self._wait_began = 0

    cdef bint _cores_are_free(self, int64_t now) noexcept:
        """No more processes of the node are awake than it has cores, and the rest of the machine leaves some, too.

        Those that this process has woken since it last asked do not count: it is they who are waited for.
        """
        cdef int i, running = 0, rung = self._exchange._rung
        cdef char text[64]
        cdef Py_ssize_t size, at
        self._exchange._rung = 0
        if _awake(self._exchange._directory) - rung > self._cores:
            return False
        if now - self._load_read >= LOAD_INTERVAL and self._load_fd >= 0:
            self._load_read = now
            size = pread(self._load_fd, text, 63, 0)
            at = 0
            for i in range(3):  # three means, then "runnable/all"
                while at < size and text[at] != c" ":
                    at += 1
                at += 1
            while at < size and c"0" <= text[at] <= c"9":
                running = running * 10 + text[at] - c"0"
                at += 1
            self._crowded = self._crowded + 1 if running > self._cores else 0
        return self._crowded < 2
