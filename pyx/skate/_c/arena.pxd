"""The node's shared-memory arena: layout of the memory, and the classes over it.

    file offset 0                                             data_offset
    | Header (mutex, bins, undo journal) | slots | buckets | blocks | pins | data ... capacity bytes |

Everything but `data` is made of 64-bit words and of indices into the tables (0 is nobody, rows start at 1), never of
pointers: each process maps the file where it likes. What describes a piece of data lives in `blocks`, away from the
data, so no user of a buffer can overwrite it, and reading an object touches no page but the object's.

Which words change, and how:
  * words marked (fixed) are written once, before `magic`, by the process that creates the arena;
  * `mutex` is the kernel's and glibc's; `journal`, `journal_used` and `recoveries` belong to the undo journal;
  * every other word changes only under the mutex and only through `put()`, which journals the old value first.
"""

from libc.stdint cimport uint8_t, uint64_t
from posix.types cimport pid_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef enum:
    ID_WORDS = 3            # 20 bytes, padded with zeros
    OWNER_WORDS = 3         # up to 24 bytes
    BIN_ROWS = 40           # one a power of two of the size in units of 64 bytes
    BIN_COLUMNS = 32        # linear steps inside it, so a bin spans 3%
    JOURNAL_ENTRIES = 256   # the longest call writes about 80 words

cdef struct Undo:
    uint64_t where          # offset of the word in the file
    uint64_t old

cdef struct Header:
    uint64_t magic          # (fixed) written last
    uint64_t layout         # (fixed) version and sizes of the structs
    uint64_t total_bytes    # (fixed) length of the file
    uint64_t capacity       # (fixed) bytes of data
    uint64_t slots_offset, buckets_offset, blocks_offset, pins_offset, data_offset  # (fixed)
    uint64_t max_processes, bucket_mask, max_objects, max_blocks, max_pins          # (fixed)
    pthread_mutex_t mutex
    uint64_t recoveries     # times a dead process's half-done call was undone
    # How far each part has its memory reserved. Grows only; nobody touches a byte beyond.
    uint64_t blocks_reserved, pins_reserved     # rows
    uint64_t data_reserved                      # bytes of data
    # How far each part has ever been used. Rows beyond were never written.
    uint64_t slots_mark, blocks_mark, pins_mark
    uint64_t top            # bytes of data covered by blocks: the high-water mark
    uint64_t blocks_free, pins_free             # free rows, a list through list_next / block_next
    uint64_t last_block     # the block that ends at `top`
    uint64_t idle_oldest, idle_newest           # sealed and unpinned objects, by time of last use
    uint64_t clock          # counts seals and last releases: the age of objects
    uint64_t objects        # blocks that are not free
    uint64_t used           # their bytes
    uint64_t used_peak
    uint64_t pinned         # bytes of blocks with at least one pin
    uint64_t free_blocks
    # What every call writes ends here, a few lines into the memory; the journal seldom gets far.
    uint64_t journal_used
    Undo journal[JOURNAL_ENTRIES]
    uint64_t rows           # bit i: row i of bins is not all empty
    uint64_t columns[BIN_ROWS]                  # bit j of word i: bin (i, j) is not empty
    uint64_t bins[BIN_ROWS * BIN_COLUMNS]       # first block of each bin's list; last freed, first out

cdef struct Slot:           # a process that has the arena open
    uint64_t pid            # 0: the row is free
    uint64_t start          # its start time, since pids are used again
    uint64_t pins           # its pins, a list through slot_next

cdef struct Block:          # a piece of data: free, or one object
    uint64_t state          # State
    uint64_t offset         # from the start of data, a multiple of 64
    uint64_t size           # a multiple of 64, at least 64
    uint64_t length         # what the user asked for
    uint64_t before, after  # neighbours in the data
    uint64_t list_prev, list_next               # FREE: in its bin; idle: by age; UNUSED: next free row
    uint64_t hash_next      # MAKING and SEALED: next in the bucket
    uint64_t pins           # all processes together
    uint64_t pin_first      # list through block_next
    uint64_t creator        # pid, for listings
    uint64_t age
    uint64_t copied         # a copy of the object is known outside of the arena, or was: see Pinned.evict
    uint64_t id[ID_WORDS]
    uint64_t owner_length
    uint64_t owner[OWNER_WORDS]

cdef struct Pin:            # the pins of one process on one object
    uint64_t block          # 0: the row is free
    uint64_t slot
    uint64_t count
    uint64_t block_next
    uint64_t slot_prev, slot_next

cdef enum State:
    UNUSED = 0              # a free row of the table
    FREE = 1
    MAKING = 2              # made, not sealed: pinned by its maker alone, hidden from get
    SEALED = 3
    DOOMED = 4              # deleted or aborted while pinned: its id is free again, its last release frees it

cdef struct View:           # where this process has mapped each part
    char* base
    Header* h
    Slot* slots
    uint64_t* buckets
    Block* blocks
    Pin* pins

cdef struct Request:        # arguments and results of one call under the mutex
    uint64_t id[ID_WORDS]
    uint64_t owner[OWNER_WORDS]
    uint64_t owner_length
    uint64_t length
    uint64_t slot, pid, start
    uint64_t block
    uint64_t want_data, want_blocks, want_pins  # reserve so much, then call again
    bint copied             # seal: a copy is known; delete: whether one was
    bint fixed              # no more memory can be reserved for the tables
    uint64_t limit          # ... and for data not beyond this
    uint64_t largest_free
    uint64_t taken
    void* room              # where to copy to
    uint64_t room_rows
    uint64_t bytes


cdef class Arena:
    cdef View v
    cdef int fd                     # our own duplicate
    cdef pid_t pid                  # the process that `slot` belongs to: differs from getpid() after a fork
    cdef uint64_t slot
    cdef uint8_t* touched           # a byte for each 64 KB of data: this process has mapped it writable
    cdef Py_ssize_t handles         # calls under way, Pinned and Writable objects alive: they keep the mapping
    cdef bint closed
    cdef dict making                # id -> address of its Writable (borrowed: a Writable removes itself)

    cdef int map(self, int fd, size_t length) except -1
    cdef Call enter(self)
    cdef int join(self) except -1
    cdef int leave(self) noexcept
    cdef int run(self, int (*op)(View*, Request*) noexcept nogil, Request* r) noexcept
    cdef int fail(self, int rc) except -1
    cdef int reserve(self, Request* r) noexcept
    cdef int touch(self, uint64_t offset, uint64_t length) noexcept
    cdef int note_touched(self, uint64_t offset, uint64_t length) noexcept
    cdef uint64_t bury(self, uint64_t pid) noexcept
    cdef Writable writable(self, bytes object_id)


cdef class Call:                    # a call under way: `close` in another thread must wait for its end
    cdef Arena arena


cdef class Pinned:
    cdef Arena arena                # None until the pin is taken
    cdef pid_t pid
    cdef uint64_t slot, block
    cdef char* data
    cdef Py_ssize_t length
    cdef readonly bytes object_id


cdef class Writable:
    cdef Arena arena
    cdef pid_t pid
    cdef uint64_t slot, block       # block 0: sealed or aborted, and given back
    cdef char* data
    cdef Py_ssize_t length
    cdef Py_ssize_t exports         # views of the buffer that are alive
    cdef bint usable                # neither sealed nor aborted
    cdef readonly bytes object_id

    cdef int forget(self) except -1
    cdef int give_back(self) noexcept
