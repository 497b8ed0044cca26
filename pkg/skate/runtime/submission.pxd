# What Cython is told of submission.py's classes where that is compiled: their attributes become C fields.

cimport cython

from skate._c cimport clock
from skate._c.refs cimport ObjectEntry
from skate.core.calls cimport ActorLine, Calls, Life
from skate.core.dispatch cimport Dispatcher, HeldLease
from skate.core.references cimport References
from skate.core.tasks cimport Function, OwnedTask
from skate.net.mailbox cimport Mailbox
from skate.runtime.objects cimport Objects
from skate.runtime.runtime cimport Runtime

cdef class Submission:
    cdef public Runtime _runtime
    cdef public object warn
    cdef public References _references
    cdef public Dispatcher _dispatcher
    cdef public Calls _calls
    cdef public Mailbox _mailbox
    cdef public Objects _objects
    cdef public dict tasks, _exported
    cdef public object _exports
    cdef public set _closed
    cdef public list _failing
    cdef public bint warned
    @cython.locals(task=OwnedTask, function=Function)
    cpdef push(self, worker, tasks)
    @cython.locals(entry=ObjectEntry)
    cpdef _answered(self, worker, OwnedTask task, double seconds, values, kept)
    cpdef _let_go(self, OwnedTask task)
    cpdef _call_ready(self, ActorLine line, OwnedTask call)
