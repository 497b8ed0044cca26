"""Small messages between the processes of one machine, through rings in shared memory. The layout is in lanes.pxd.

State: the mapped exchange; of an Inbox, what it has read and how long it usually waits; of a Lane, what it has written.
Holds no lock: an Inbox belongs to the thread that has the right to read, a Lane to the holder of the runtime's lock.
"""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EINTR, ENOENT, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy
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
    void sk_pause() noexcept nogil
    int SK_PUNCH

cdef extern from "fcntl.h" nogil:
    int fallocate(int fd, int mode, int64_t offset, int64_t size)
    int fcntl(int fd, int command, int argument)
    int F_DUPFD_CLOEXEC

cdef enum:
    RECORD = 0
    SKIP = 1
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
    #: ns between two looks at how many threads of the machine are runnable
    LOAD_INTERVAL = 20_000_000

#: the bit of a slot's `ready` that says: look at what waits to leave, or at who pokes you
cdef uint64_t NUDGE = <uint64_t>1 << 63

cdef int64_t _TOTAL = DIRECTORY_BYTES + <int64_t>SLOTS * SLOT_BYTES

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
    """The shared memory of a node's lanes, mapped. Each process maps it once; a fork of that process must not use it."""

    def __cinit__(self, int fd):
        """`fd` is a file of EXCHANGE_BYTES, zeros at first. It is duplicated."""
        cdef void* base
        self._fd = -1
        base = mmap(NULL, _TOTAL, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if base == MAP_FAILED:
            raise OSError(errno, f"the lanes could not be mapped: {os.strerror(errno)}")
        self._base = <char*>base
        self._fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)

    def __dealloc__(self):
        if self._base != NULL:
            munmap(self._base, _TOTAL)
        if self._fd >= 0:
            c_close(self._fd)

    cdef Slot* _slot(self, Py_ssize_t index) noexcept:
        return <Slot*>(self._base + DIRECTORY_BYTES + index * SLOT_BYTES)

    cdef char* _data(self, Py_ssize_t slot, Py_ssize_t ring) noexcept:
        return <char*>self._slot(slot) + SLOT_BYTES - (ring + 1) * <Py_ssize_t>RING_BYTES

    cdef Py_ssize_t _find(self, uint64_t process) noexcept:
        """The slot of a living process, or -1."""
        cdef Directory* directory = <Directory*>self._base
        cdef Py_ssize_t i
        for i in range(SLOTS):
            if sk_load(&directory.processes[i]) == process:
                return -1 if sk_load_byte(&directory.dead[i]) else i
        return -1

    def inbox(self, bytes process, list schemas, int cores):
        """Opens the inbox of this process, which spins in it only while no more than `cores` are awake.

        None where all slots are taken.
        """
        cdef Directory* directory = <Directory*>self._base
        cdef uint64_t number = _number(process)
        cdef Py_ssize_t i
        for i in range(SLOTS):
            if sk_load(&directory.processes[i]) == 0 and sk_claim(&directory.processes[i], 0, number):
                return Inbox(self, i, schemas, cores)
        return None

    def lane(self, bytes me, bytes peer, str bell):
        """A way for `me` to write into the inbox of `peer`; None where it has none, or no ring or descriptor is free.

        `bell` is the path of the FIFO that wakes the peer.
        """
        cdef uint64_t writer = _number(me), reader = _number(peer)
        cdef Directory* directory = <Directory*>self._base
        cdef Py_ssize_t index = self._find(reader), i
        cdef Slot* slot
        if index < 0:
            return None
        slot = self._slot(index)
        for i in range(RINGS):
            if sk_load(&slot.writers[i]) != 0 or not sk_claim(&slot.writers[i], 0, writer):
                continue
            if sk_load(&directory.processes[index]) != reader or sk_load_byte(&directory.dead[index]):
                sk_claim(&slot.writers[i], writer, 0)
                return None
            lane = Lane.__new__(Lane)
            if not _open_lane(lane, self, index, i, writer, os.fsencode(bell)):
                sk_claim(&slot.writers[i], writer, 0)
                return None
            return lane
        return None

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
        cdef Directory* directory = <Directory*>self._base
        cdef uint64_t number = _number(process)
        cdef Py_ssize_t i, j
        cdef Slot* slot
        cdef bint used
        cdef uint64_t writer
        numbers = {_number(each) for each in living}
        for i in range(SLOTS):
            if sk_load(&directory.processes[i]) == number:
                sk_store_byte(&directory.dead[i], 1)
                sk_clear(&directory.awake[i >> 6], <uint64_t>1 << (i & 63))
        for i in range(SLOTS):
            if not sk_load_byte(&directory.dead[i]):
                continue
            slot = self._slot(i)
            used = False
            for j in range(RINGS):
                writer = sk_load(&slot.writers[j])
                if writer != 0 and writer in numbers:
                    used = True
            if not used:
                fallocate(self._fd, SK_PUNCH, DIRECTORY_BYTES + i * <int64_t>SLOT_BYTES, SLOT_BYTES)
                sk_store_byte(&directory.dead[i], 0)
                sk_store(&directory.processes[i], 0)

    def awake(self):
        """How many processes do not sleep in their inbox."""
        cdef Directory* directory = <Directory*>self._base
        cdef int number = 0, i
        for i in range(AWAKE_WORDS):
            number += sk_count(sk_load(&directory.awake[i]))
        return number

    def inboxes(self):
        """The processes that have one, as (process id, has it ended)."""
        cdef Directory* directory = <Directory*>self._base
        return [
            (PyBytes_FromStringAndSize(<char*>&directory.processes[i], PROCESS_ID_BYTES), bool(directory.dead[i]))
            for i in range(SLOTS)
            if directory.processes[i] != 0
        ]


# ---------------------------------------------------------------------------------------------------- writing

cdef bint _open_lane(Lane lane, Exchange exchange, Py_ssize_t slot, Py_ssize_t ring, uint64_t me, bytes bell) except -1:
    """False where there is no descriptor for the bell: the reader could not be woken."""
    lane._exchange = exchange
    lane._slot = exchange._slot(slot)
    lane._ring = &lane._slot.rings[ring]
    lane._data = exchange._data(slot, ring)
    lane._bit = <uint64_t>1 << ring
    lane._index = ring
    lane._me = me
    lane._tail = sk_load(&lane._ring.tail)
    lane._head_seen = sk_load(&lane._ring.head)
    lane._bell_path = bell
    lane._bell = _open_bell(bell)
    return lane._bell >= 0 or errno == ENOENT  # (then it is gone and buried)


cdef class Lane:
    """The writer's end of a ring in the inbox of another process (Exchange.lane)."""

    def __dealloc__(self):
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
                _ring(self._bell)

    def give_up(self):
        """The reader is gone: others may have the ring."""
        sk_claim(&self._slot.writers[self._index], self._me, 0)

    cdef int _put(self, const char* payload, Py_ssize_t size, uint32_t kind) except -1:
        """1 where there is no room."""
        cdef uint64_t at = self._tail & (RING_BYTES - 1)
        cdef uint64_t to_end = RING_BYTES - at
        cdef uint64_t need = ENTRY_BYTES + ((size + 7) & ~<Py_ssize_t>7)
        cdef uint64_t total = need if need <= to_end else to_end + need
        cdef uint32_t* entry
        if self._tail + total - self._head_seen > RING_BYTES:
            self._head_seen = sk_acquire(&self._ring.head)
            if self._tail + total - self._head_seen > RING_BYTES:
                sk_store(&self._ring.starving, 1)
                sk_fence()
                self._head_seen = sk_load(&self._ring.head)
                if self._tail + total - self._head_seen > RING_BYTES:
                    return 1
                sk_store(&self._ring.starving, 0)
        entry = <uint32_t*>(self._data + at)
        if need > to_end:
            entry[0] = 0
            entry[1] = SKIP
            self._tail += to_end
            entry = <uint32_t*>self._data
        entry[0] = <uint32_t>size
        entry[1] = kind
        if size:
            memcpy(entry + 2, payload, size)
        self._tail += need
        sk_release(&self._ring.tail, self._tail)
        sk_fence()
        if not sk_load(&self._slot.ready) & self._bit:
            sk_set(&self._slot.ready, self._bit)
        self.wanted = sk_load(&self._slot.sleeping) != 0
        return 0


# ---------------------------------------------------------------------------------------------------- reading

cdef class Inbox:
    """The rings that others write for this process (Exchange.inbox). Used by one thread at a time, but for `nudge`."""

    def __cinit__(self, Exchange exchange, Py_ssize_t slot, list schemas, int cores):
        self._exchange = exchange
        self._index = slot
        self._slot = exchange._slot(slot)
        self._senders = [None] * RINGS
        self._schemas = schemas
        self._usual = WORTH
        self._cores = cores
        self._load_fd = c_open("/proc/loadavg", O_RDONLY | O_CLOEXEC)
        self._set_awake(True)

    def __dealloc__(self):
        if self._load_fd >= 0:
            c_close(self._load_fd)

    cpdef object take(self, Py_ssize_t limit):
        """What has come in one ring: (sender, [(code, fields), …], flags, error), `limit` records at most; None: nothing.

        The rings have turns. One at a time, so that what is said of a sender's death can be dealt with before what
        others wrote, and after what the sender did (`take_from`). STALLED in flags: the sender's next message comes by
        the ZeroMQ link; `resume` once it has come. STARVED: the sender found no room before, and is to be nudged.
        `error`: None, or a FrameError for a record that was skipped.
        """
        cdef uint64_t ready, later
        if sk_load(&self._slot.ready):
            ready = sk_swap(&self._slot.ready, 0)
            self._nudged |= ready & NUDGE != 0
            self._pending |= ready & ~NUDGE
        while True:
            ready = self._pending & ~self._stalled
            if not ready:
                return None
            later = ready >> self._turn << self._turn
            self._turn = sk_lowest(later if later else ready)
            self._pending &= ~(<uint64_t>1 << self._turn)
            batch = self._read(self._turn, limit)
            self._turn = (self._turn + 1) % RINGS
            if batch is not None:
                return batch

    cdef object _read(self, Py_ssize_t index, Py_ssize_t limit):
        """As `take`, of a certain ring."""
        cdef Ring* ring = &self._slot.rings[index]
        cdef char* data = self._exchange._data(self._index, index)
        cdef uint64_t tail = sk_acquire(&ring.tail), head = self._seen[index], at, size, left
        cdef uint32_t* entry
        cdef list records = []
        cdef int flags = 0
        cdef Reader reader
        error = None
        if head >= tail:
            return None
        sender = self._senders[index]
        if sender is None:
            sender = self._senders[index] = PyBytes_FromStringAndSize(
                <char*>&self._slot.writers[index], PROCESS_ID_BYTES
            )
        while head < tail:
            if limit <= 0:
                self._pending |= <uint64_t>1 << index
                break
            at = head & (RING_BYTES - 1)
            entry = <uint32_t*>(data + at)
            size = entry[0]
            left = tail - head
            if entry[1] == SKIP and RING_BYTES - at < left:
                head += RING_BYTES - at
            elif entry[1] == BY_LINK:
                head += ENTRY_BYTES
                self._stalled |= <uint64_t>1 << index
                flags |= _STALLED
                break
            elif entry[1] != RECORD or size > LONGEST or ENTRY_BYTES + size > min(left, RING_BYTES - at):
                head = tail
                error = FrameError(f"the lane is broken at byte {at}: what it held is lost")
            else:
                head += ENTRY_BYTES + ((size + 7) & ~<uint64_t>7)
                reader.at = <const unsigned char*>(entry + 2)
                reader.end = reader.at + size
                limit -= 1
                try:
                    records.append(_read_record(&reader, self._schemas))
                except FrameError as refused:
                    error = refused
                    self._pending |= <uint64_t>1 << index
                    break
        self._seen[index] = head
        sk_release(&ring.head, head)
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
        return index >= 0 and self._stalled >> index & 1 != 0

    def has_lane(self, bytes sender):
        """Whether this process writes here (the longest messages come by ZeroMQ even so)."""
        return self._ring_of(sender) >= 0

    def resume(self, bytes sender):
        """The message that the sender's ring waited for has come: what is behind it may be read."""
        cdef Py_ssize_t index = self._ring_of(sender)
        if index >= 0:
            self._stalled &= ~(<uint64_t>1 << index)
            self._pending |= <uint64_t>1 << index

    def release(self, bytes sender):
        """The sender has ended, and what it had written was taken: others may have its ring."""
        cdef Py_ssize_t index = self._ring_of(sender)
        cdef Ring* ring
        if index < 0:
            return
        ring = &self._slot.rings[index]
        self._senders[index] = None
        self._pending &= ~(<uint64_t>1 << index)
        self._stalled &= ~(<uint64_t>1 << index)
        self._seen[index] = 0
        sk_store(&ring.head, 0)
        sk_store(&ring.tail, 0)
        sk_store(&ring.starving, 0)
        sk_store(&self._slot.writers[index], 0)

    cdef Py_ssize_t _ring_of(self, bytes sender) except -2:
        cdef uint64_t number = _number(sender)
        cdef Py_ssize_t i
        for i in range(RINGS):
            if sk_load(&self._slot.writers[i]) == number:
                return i
        return -1

    # ------------------------------------------------------------------------------------------------ waiting

    def nudge(self):
        """Ends a spin of another thread, or has the next one end at once. From any thread."""
        sk_set(&self._slot.ready, NUDGE)

    cpdef bint spin(self) except -1:
        """Waits for a short while without sleeping, where that has paid lately and cores are free. True: look again."""
        cdef int64_t start, until, now
        cdef int round = 0, before
        cdef bint found = False
        cdef uint64_t* ready = &self._slot.ready
        if self._pending & ~self._stalled or sk_load(ready):
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
        keep_away(before)
        if found:
            self._waited(now)
        return found

    def fall_asleep(self, bint idle):
        """Before sleeping in the kernel. False: something has come, or somebody nudged: do not.

        `wake_up` afterwards in either case. `idle`: nothing else runs in this process meanwhile.
        """
        if self._nudged:
            self._nudged = False
            return False
        if self._pending & ~self._stalled:
            return False
        sk_store(&self._slot.sleeping, 1)
        sk_fence()
        if sk_load(&self._slot.ready):
            return False
        if idle:
            self._set_awake(False)
        return True

    def wake_up(self):
        """After sleeping, or after a `fall_asleep` that said no."""
        sk_store(&self._slot.sleeping, 0)
        self._set_awake(True)
        if self._wait_began:
            self._waited(_now())

    @property
    def usual_wait(self):
        """Seconds that waits lately took, as `spin` learns them."""
        return self._usual * 1e-9

    cdef void _waited(self, int64_t now) noexcept:
        """Learns how long a wait lasted; a long one is counted as a few times what is worth spinning for."""
        self._usual += (min(now - self._wait_began, <int64_t>(4 * WORTH)) - self._usual) // 8
        self._wait_began = 0

    cdef bint _cores_are_free(self, int64_t now) noexcept:
        """No more processes of the node are awake than it has cores, and the rest of the machine leaves some, too."""
        cdef Directory* directory = <Directory*>self._exchange._base
        cdef int awake = 0, i, running = 0
        cdef char text[64]
        cdef Py_ssize_t size, at
        for i in range(AWAKE_WORDS):
            awake += sk_count(sk_load(&directory.awake[i]))
        if awake > self._cores:
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

    cdef void _set_awake(self, bint awake) noexcept:
        cdef Directory* directory = <Directory*>self._exchange._base
        cdef uint64_t bit = <uint64_t>1 << (self._index & 63)
        if awake:
            sk_set(&directory.awake[self._index >> 6], bit)
        else:
            sk_clear(&directory.awake[self._index >> 6], bit)
