# lanes: small messages between the processes of one machine, without a system call while both sides are awake.
#
# An *exchange* is one piece of shared memory a node (a memfd: nothing to leave behind), sparse, mapped by each process:
#
#     directory     which process has which slot; which processes are awake
#     slot 0 …      each the inbox of one process
#
# and a slot is
#
#     sleeping      its process sleeps, or is about to: whoever writes rings its bell, soon
#     ready         a bit for each ring that was written to since the reader last looked; the highest bit is a nudge
#     writers       which process writes which ring; 0: free
#     rings         single producer, single consumer, RING_BYTES each
#
# A *lane* is the writer's end of a ring in somebody else's slot. A ring holds entries of
#
#     size (4 bytes)  kind (4)  payload, padded to 8
#
# `head` and `tail` count bytes and only grow; each has a cache line of its own. kind says: a record of skate._c.frames;
# the rest up to the ring's end is to be skipped; or, the next message comes by the ZeroMQ link (it was too long).
#
# **Memory order.** The writer stores the payload, then `tail` with release; the reader loads `tail` with acquire, then
# the payload; `head` the same way round. So a process killed in the middle of a write leaves nothing to be read.
#
# **No wake-up is lost.** Two pairs of "store mine, fence, load yours", each in total order, so that one of the two
# always sees the other:
#     writer: tail, fence, is the ready bit set? (else set it)      reader: take all ready bits, load tail
#     writer: ready bit, fence, does the reader sleep?              reader: sleeping = 1, fence, any ready bit?
# and for a writer that found the ring full (`starving`):
#     writer: starving = 1, fence, load head                        reader: head, fence, starving?
#
# **No record reaches the wrong process.** A slot is given to another process only when no living process has a ring in
# it. Who claims a ring looks afterwards whether the slot is still that of the peer; who buries a process first marks the
# slot as dead, then looks for claims.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    SLOTS = 256
    AWAKE_WORDS = SLOTS >> 6
    RINGS = 62                          # of a slot
    RING_BYTES = 1 << 17
    LONGEST = RING_BYTES >> 2           # a longer record goes by ZeroMQ
    SLOT_BYTES = 1 << 23
    DIRECTORY_BYTES = 4096

cdef struct Directory:
    uint64_t processes[SLOTS]           # process ids; 0: the slot is free
    uint8_t dead[SLOTS]                 # its process has ended, but living ones have rings in it
    uint64_t awake[AWAKE_WORDS]        # a bit a slot

cdef struct Ring:                       # 128 bytes
    uint64_t head                       # written by the reader
    uint64_t _reader_line[7]
    uint64_t tail                       # written by the writer
    uint64_t starving                   # the writer waits for room
    uint64_t _writer_line[6]

cdef struct Slot:
    uint64_t sleeping
    uint64_t _sleeping_line[7]
    uint64_t ready
    uint64_t _ready_line[7]
    uint64_t writers[64]
    Ring rings[RINGS]

cdef class Exchange:
    cdef char* _base
    cdef int _fd
    cdef Slot* _slot(self, Py_ssize_t index) noexcept
    cdef char* _data(self, Py_ssize_t slot, Py_ssize_t ring) noexcept
    cdef Py_ssize_t _find(self, uint64_t process) noexcept

cdef class Lane:
    cdef Exchange _exchange
    cdef Slot* _slot
    cdef Ring* _ring
    cdef char* _data
    cdef uint64_t _bit
    cdef Py_ssize_t _index
    cdef uint64_t _me
    cdef uint64_t _tail
    cdef uint64_t _head_seen
    cdef bytes _bell_path
    cdef int _bell
    cdef int _put(self, const char* payload, Py_ssize_t size, uint32_t kind) except -1
    cdef readonly bint wanted           # the reader slept when the last entry was written: `ring`, soon
    cpdef bint write(self, bytes record) except -1
    cpdef ring(self)

cdef class Inbox:
    cdef Exchange _exchange
    cdef Slot* _slot
    cdef Py_ssize_t _index
    cdef uint64_t _pending              # rings to be read, that we know of
    cdef uint64_t _stalled              # rings whose next message comes by ZeroMQ
    cdef int _turn                      # the ring that is read next, if there is something in it
    cdef bint _nudged                   # since the last sleep
    cdef list _senders
    cdef list _schemas
    cdef uint64_t _seen[RINGS]          # our copies of the heads
    cdef int64_t _usual                 # ns that waits lately took, a running mean
    cdef int64_t _wait_began            # of the wait that `spin` began: when; or 0
    cdef int _cores
    cdef int _load_fd
    cdef int64_t _load_read             # when
    cdef int _crowded                   # looks in a row that found more runnable threads than cores
    cdef bint _cores_are_free(self, int64_t now) noexcept
    cdef void _waited(self, int64_t now) noexcept
    cdef void _set_awake(self, bint awake) noexcept
    cdef Py_ssize_t _ring_of(self, bytes sender) except -2
    cdef object _read(self, Py_ssize_t index, Py_ssize_t limit)
    cpdef object take(self, Py_ssize_t limit)
    cpdef bint spin(self) except -1
