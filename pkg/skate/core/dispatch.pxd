# What Cython is told of dispatch.py's classes where that is compiled: their attributes become C fields.

cimport cython

from skate.core.machine cimport Machine
from skate.core.tasks cimport OwnedTask

cdef class Queue:
    cdef object __weakref__
    cdef public object class_id, demand, environment, where, tasks, seconds
    cdef public Queue parent
    cdef public tuple arguments
    cdef public list leases
    cdef public Py_ssize_t told
    cdef public bint warned, spreads

cdef class HeldLease:
    cdef public object id, worker
    cdef public str cause
    cdef public Queue queue
    cdef public Py_ssize_t answered
    cdef public dict in_flight
    cdef public double load, head_since, idle_since
    cdef public bint recalling, stalled, reclaimed

cdef class PushTasks:
    cdef public object lease
    cdef public list tasks

cdef class Dispatcher(Machine):
    cdef public dict leases
    cdef public Py_ssize_t _classes, _brief
    cdef public object queues, _late, _by_class
    @cython.locals(queue=Queue, waiting=Py_ssize_t)
    cpdef task_queued(self, OwnedTask task, double now)
    @cython.locals(queue=Queue)
    cpdef task_done(self, HeldLease lease, OwnedTask task, double seconds, double now)
    @cython.locals(lease=HeldLease, task=OwnedTask, batch=list, pushed=dict)
    cpdef _feed(self, Queue queue, double now)
    @cython.locals(lease=HeldLease, best=HeldLease, alone=bint)
    cpdef HeldLease _roomiest(self, Queue queue, OwnedTask task)
    @cython.locals(waiting=Py_ssize_t, wanted=Py_ssize_t)
    cpdef _ask(self, Queue queue)
    @cython.locals(lease=HeldLease)
    cpdef next_tick(self)
    cpdef _take_out(self, HeldLease lease, OwnedTask task, double now)
