# What Cython is told of executor.py's classes where that is compiled: their attributes become C fields.

cimport cython

from skate._c cimport clock, plain
from skate._c.refs cimport Waiter
from skate.net.mailbox cimport Mailbox
from skate.runtime.runtime cimport Runtime
from skate.worker.functions cimport Functions, Loaded
from skate.wire.testament cimport Testament

cdef class Pushed:
    cdef public bytes owner, task, function, args
    cdef public object dependencies, stored
    cdef public Py_ssize_t returns, attempt, max_calls
    cdef public str name

cdef class Executor:
    cdef public Runtime _runtime
    cdef public Testament _testament
    cdef public object _become_actor, _output, _queue, _taken, lease, actor, sink, on_end, leaving, _main, _streams
    cdef Functions _known
    cdef public dict _functions
    cdef public Waiter _arrival, _resume
    cdef public bint _stopping, withholds, _lends
    cdef public Py_ssize_t _answered
    cdef public Pushed current
    cpdef next_item(self)
    @cython.locals(arrival=Waiter)
    cpdef _enqueue(self, item)
    @cython.locals(function=Loaded)
    cpdef bint _execute(self, Pushed pushed) except -1
    cpdef call(self, Loaded function, Pushed pushed, list guards)
    cpdef arguments(self, pushed, list guards)
    cpdef flush_output(self)
    cpdef pack(self, Pushed pushed, str name, result)
    cpdef kept(self, Pushed pushed, str name, Py_ssize_t index, value)
    cpdef answer(self, Pushed pushed, list values, list guards, long long elapsed)
    cpdef post_answer(self, Pushed pushed, bytes record)
    cpdef handed_over(self, owner, list values)
    cpdef end_guards(self, list guards)
    cpdef Loaded function_of(self, Pushed pushed)
