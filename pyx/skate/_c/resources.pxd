# Resource vectors as C sees them: sorted runs of (column, amount), looked up and compared without the GIL.
#
# Columns come from a ResourceIndex, are never used twice, and grow; so a run stays sorted by appending, and a
# request that outlives a resource (a placement group's, say) finds no slot instead of somebody else's.
#
# Every amount is an int64 in units of 1/10,000, between 0 and MAX_UNITS (10**18); a sum of two of them cannot
# overflow.

from libc.stdint cimport int64_t

cdef struct Slot:               # what one place has of one resource; 0 <= available <= total, 0 < total
    int64_t column
    int64_t total
    int64_t available

cdef struct Need:               # what one request asks of one resource; 0 < units
    int64_t column
    int64_t units

# The slot of `column`, or NULL.
cdef Slot* slot_find(Slot* slots, Py_ssize_t count, int64_t column) noexcept nogil

# Whether every need is met by what is available now, or by the total, should all of it come free.
cdef bint slots_fit(Slot* slots, Py_ssize_t count, const Need* needs, Py_ssize_t need_count) noexcept nogil
cdef bint slots_could_fit(
    Slot* slots, Py_ssize_t count, const Need* needs, Py_ssize_t need_count
) noexcept nogil

# Takes every need; the caller has seen slots_fit return true.
cdef void slots_take(Slot* slots, Py_ssize_t count, const Need* needs, Py_ssize_t need_count) noexcept nogil

# Gives every need back and returns -1; or changes nothing and returns the place of the first need that no
# slot has room for.
cdef Py_ssize_t slots_give(
    Slot* slots, Py_ssize_t count, const Need* needs, Py_ssize_t need_count
) noexcept nogil

cdef class ResourceIndex:
    cdef dict columns           # name -> column, of the names not forgotten
    cdef dict names             # column -> name, the same pairs
    cdef int64_t next_column    # above every column ever given out

cdef class ResourceRequest:
    cdef readonly ResourceIndex index
    cdef Need* needs            # owned; sorted by column
    cdef Py_ssize_t count

cdef class ResourceVector:
    cdef readonly ResourceIndex index
    cdef Slot* slots            # owned; sorted by column
    cdef Py_ssize_t count
    cdef Py_ssize_t capacity

    cdef Slot* find(self, str name) except? NULL
    cdef int insert(self, int64_t column, int64_t units) except -1
    cdef int same_index(self, ResourceRequest request) except -1
