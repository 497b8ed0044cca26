# lanes: messages between the processes of one machine, without a system call while both sides are awake.
#
# An *exchange* is one piece of shared memory a node (a memfd: nothing to leave behind), sparse, of which each process
# maps what it uses:
#
#     directory     which process has which slot; which processes are awake
#     slot 0 …      each the inbox of one process
#
# and a slot is
#
#     sleeping      its process sleeps, or is about to: whoever writes rings its bell, soon
#     ready         the first in the list of rings that were written to since the reader last looked; the highest bit is
#                   a nudge
#     writers       which process writes which ring; 0: free
#     rings         single producer, single consumer, RING_BYTES each
#
# A *lane* is the writer's end of a ring in somebody else's slot. A ring holds entries of
#
#     size (4 bytes)  kind (4)  payload, padded to 8
#
# kind says: a record of skate._c.frames; the next entry is at the beginning of page `size`; or, the next message comes
# by the ZeroMQ link (it was too long). Memory is touched as it is needed: the writer fills *pieces*, runs of pages, and
# takes the lowest that are free. So a lane in which one message is under way keeps to its first two pages, and one with
# many uses them all. Which pages are free only the writer knows, from how far the reader is.
#
# `tail` (how many entries were written, and where the next one will be) and `head` (how many were read) have a cache
# line each.
#
# **Memory order.** The writer stores the payload, then `tail` with release; the reader loads `tail` with acquire, then
# the payload; `head` the same way round. So a process killed in the middle of a write leaves nothing to be read.
#
# **Looking for work costs what there is of it.** A ring that is written to puts itself in its slot's list, unless it is
# there (`listed`); the reader takes the whole list at once. Nobody takes single ones, so a push is one compare-and-swap.
# A writer that is killed between the mark and the push is not read in turn any more, but heard out when its death is
# known, which looks at its ring itself.
#
# **No wake-up is lost.** Two pairs of "store mine, fence, load yours", each in total order, so that one of the two
# always sees the other:
#     writer: tail, fence, is the ring listed? (else push it)       reader: take the list, unlist, fence, load tail
#     writer: push, fence, does the reader sleep?                   reader: sleeping = 1, fence, is anything listed?
# and for a writer that found the ring full (`starving`):
#     writer: starving = 1, fence, load head                        reader: head, fence, starving?
#
# **No record reaches the wrong process.** A slot is given to another process only when no living process has a ring in
# it. Who claims a ring looks afterwards whether the slot is still that of the peer; who buries a process first marks the
# slot as dead, then looks for claims.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    SLOTS = 1 << 14
    AWAKE_WORDS = SLOTS >> 6
    RINGS = (1 << 14) - 1               # of a slot
    PAGE_BYTES = 4096
    PAGES = 64                          # of a ring
    RING_BYTES = PAGES * PAGE_BYTES
    FIRST_ENTRY = 128                   # after the Ring
    MOST_PAGES = 30                     # of a piece: with one page in use anywhere, so many are free in a row, and another
    LONGEST = MOST_PAGES * PAGE_BYTES - FIRST_ENTRY - 16    # a longer record goes by ZeroMQ
    DIRECTORY_BYTES = 1 << 18
    HEAD_BYTES = 1 << 18                # of a slot, before its rings
    WINDOW = 64                         # rings that a reader maps at a time
    WINDOWS = (RINGS + WINDOW) >> 6

cdef struct Directory:
    uint64_t used                       # slots that were ever in use
    uint64_t awake[AWAKE_WORDS]         # a bit a slot
    uint8_t dead[SLOTS]                 # its process has ended, but living ones have rings in it
    uint64_t processes[SLOTS]           # process ids; 0: the slot is free

cdef struct Ring:                       # FIRST_ENTRY bytes
    uint64_t head                       # written by the reader
    uint64_t _reader_line[7]
    uint64_t tail                       # written by the writer
    uint64_t starving                   # the writer waits for room
    uint64_t listed                     # it is in its slot's list: set by the writer, cleared by the reader
    uint64_t next                       # in that list: the number of the ring, and 1; 0: none
    uint64_t _writer_line[4]

cdef struct Slot:
    uint64_t sleeping
    uint64_t _sleeping_line[7]
    uint64_t ready
    uint64_t _ready_line[7]
    uint64_t used                       # rings that were ever in use
    uint64_t writers[RINGS]

cdef struct Reading:                    # what a reader knows of a ring
    Ring* ring
    uint64_t seen                       # entries that were read
    uint64_t at                         # where the next one is
    Py_ssize_t next                     # in the line of those to be read; -1: the last one
    bint queued                         # it is in that line
    bint stalled                        # its next message comes by ZeroMQ

cdef class Exchange:
    cdef Directory* _directory
    cdef Slot** _slots                  # those that are mapped
    cdef int _fd
    cdef int _rung                      # processes that were woken since `spin` last looked
    cdef char* _map(self, int64_t at, Py_ssize_t size) noexcept
    cdef Slot* _slot(self, Py_ssize_t index) except NULL
    cdef Py_ssize_t _find(self, uint64_t process) noexcept
    cdef Py_ssize_t _claim_ring(self, Slot* slot, uint64_t writer) noexcept

cdef class Lane:
    cdef Exchange _exchange
    cdef Slot* _slot
    cdef Ring* _ring
    cdef Py_ssize_t _index
    cdef Py_ssize_t _peer               # the slot of the reader
    cdef uint64_t _me
    cdef uint64_t _entries              # that were written
    cdef uint64_t _at                   # where the next one goes
    cdef uint64_t _end                  # of the piece that is being filled
    cdef uint64_t _free                 # a bit for each page that is in no piece
    cdef uint64_t _pages                # the piece that is being filled, as such bits
    cdef int _after                     # the page that comes after a piece of one entry; -1: the piece goes on
    cdef uint64_t _left_pages[PAGES]    # those that were filled before
    cdef uint64_t _left_until[PAGES]    # each is free once so many entries were read
    cdef uint64_t _left_first, _left_last
    cdef bytes _bell_path
    cdef int _bell
    cdef int _put(self, const char* payload, Py_ssize_t size, uint32_t kind) except -1
    cdef bint _make_room(self, uint64_t need) noexcept
    cdef bint _begin_piece(self, uint64_t need) noexcept
    cdef void _reclaim(self, uint64_t read) noexcept
    cdef void _append(self, const char* payload, uint32_t size, uint32_t kind) noexcept
    cdef void _move_to(self, int page, int pages) noexcept
    cdef void _fill(self, int page, int pages) noexcept
    cdef readonly bint wanted           # the reader slept when the last entry was written: `ring`, soon
    cpdef bint write(self, bytes record) except -1
    cpdef ring(self)

cdef class Inbox:
    cdef Exchange _exchange
    cdef Slot* _slot
    cdef Py_ssize_t _index
    cdef char* _windows[WINDOWS]
    cdef Reading* _readings
    cdef Py_ssize_t _room               # how many there is memory for
    cdef Py_ssize_t _first, _last       # of the line of rings that are to be read; -1: none is
    cdef bint _nudged                   # since the last sleep
    cdef list _senders
    cdef dict _indexes                  # sender -> its ring, where something of it was read
    cdef list _schemas
    cdef int64_t _usual                 # ns that waits lately took, a running mean
    cdef int64_t _wait_began            # of the wait that `spin` began: when; or 0
    cdef int _cores
    cdef int _load_fd
    cdef int64_t _load_read             # when
    cdef int _crowded                   # looks in a row that found more runnable threads than cores
    cdef bint _cores_are_free(self, int64_t now) noexcept
    cdef void _waited(self, int64_t now) noexcept
    cdef Py_ssize_t _ring_of(self, bytes sender) except -2
    cdef Reading* _reading(self, Py_ssize_t index) except NULL
    cdef int _collect(self) except -1
    cdef void _queue(self, Py_ssize_t index) noexcept
    cdef object _read(self, Py_ssize_t index, Py_ssize_t limit)
    cpdef object take(self, Py_ssize_t limit)
    cpdef bint spin(self) except -1
    cpdef bint fall_asleep(self, bint idle) except -1
    cpdef wake_up(self)
    cpdef bint is_crowded(self) except -1
