# alarm: what one thread sleeps on until a time that the others set, and may set anew, without being woken meanwhile.

cdef class Alarm:
    cdef int _timer
    cdef readonly bint is_set           # it will go off
    cpdef set(self, double seconds)
    cpdef clear(self)
    cpdef close(self)
    cdef _settle(self, double seconds)
