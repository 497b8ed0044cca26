# What Cython is told of mailbox.py's classes where that is compiled: their attributes become C fields.

cimport cython

from skate._c cimport clock, steps
from skate._c.alarm cimport Alarm
from skate._c.lanes cimport Inbox, Lane

cdef class Link:
    cdef public bytes peer
    cdef public Lane lane
    cdef public object socket
    cdef public list records
    cdef public bint marked, waits
    cdef public double flushed_at

cdef class Mailbox:
    cdef public bytes me
    cdef public str _folder
    cdef public object _deliver, context, _inbox, _epoll, _exchange, look_at, _scarce_since
    cdef public dict _links, _watched, _early
    cdef public list _waiting
    cdef public int _doorbell, _bell, _epoll_fd
    cdef public Inbox _lanes
    cdef public Alarm alarm
    cdef public double _socket_looked_at, _waits_since, _wait_began
    cdef public bint closed, _leaving, _socket_is_silent
    @cython.locals(link=Link, lane=Lane)
    cpdef bint post(self, bytes to, bytes record) except -1
    @cython.locals(link=Link, lanes=Inbox)
    cpdef bint flush_due(self, double now, double pause) except -1
    cpdef _wait(self, Link link)
    cpdef flush(self)
    cpdef bint _send(self, Link link) except -1
    cpdef bint _send_by_lane(self, Link link, Lane lane) except -1
    cpdef check_descriptors(self)
    cpdef _keep_waiting(self, links)
    cpdef _serve(self, events)
    cpdef bint read(self, timeout, bint idle=*) except -1
    cpdef bint fall_asleep(self, bint idle) except -1
    cpdef wake_up(self)
    cpdef bint serve(self) except -1
    cpdef bint spin(self) except -1
    cpdef bint _take_in(self) except -1
    cpdef bint _read_lanes(self, Inbox lanes) except -1
