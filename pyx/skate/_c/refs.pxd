cimport cython

# refs: what a process knows of an object (ObjectEntry), the handles that programs hold (ObjectRef), and those who
# wait for it (Waiter).
#
# Everything here runs under the GIL and calls no Python code between reading a count and writing it, so a count
# needs no lock. The one place where the GIL alone would not do, "nobody holds it, so forget it", is one C function
# (forget_if_unheld).

cdef class Waiter:
    cdef public Py_ssize_t missing      # entries that must become ready before it is done
    cdef public bint done
    cdef readonly bint failed           # one of its entries failed
    cdef readonly bint eager            # done at the first failure, without waiting for the rest
    cdef public object callback         # called once with the waiter when it is done, under the runtime's lock
    cdef readonly list watched          # the entries that it is to be taken off: its Watch was dropped

cdef class Guard:
    cdef readonly bytes container       # the object whose value the refs came in; b"" for a task's own arguments
    cdef readonly bytes voucher         # the process that holds them meanwhile, and registers who holds them longer
    cdef readonly dict guarded          # object id -> ObjectEntry that this guard alone keeps alive at its owner

cdef class ObjectEntry(Guard):
    cdef readonly bytes id
    cdef readonly bint owned            # this process owns it
    cdef public int state
    cdef public object value            # INLINE, FAILED: packed bytes. STORED: size in bytes. PENDING: None
    cdef public object literal          # the value itself where it is immutable and was read before; else _NOTHING
    cdef readonly Py_ssize_t handles    # ObjectRefs of this process
    cdef public Py_ssize_t pins         # pending tasks and containing objects of this process that need it
    cdef public object waiters          # None, a Waiter, or a dict of them, in order: waiter -> how often
    cdef public object home             # whose table it stands in; told when the last handle goes
    cdef public dict borrowers          # owned: process id -> how often it was named a borrower less how often it left
    cdef public object contents         # owned: entries of the refs inside the value, each pinned; else None
    cdef public Py_ssize_t owed         # borrowed: how often the owner was told that this process borrows it
    cdef public bytes registrar         # borrowed: who was to tell the owner; None: it was told from here; b"": several
    cdef public Guard guard             # borrowed, owed 0: whose life keeps it alive at its owner
    cdef public bint asked              # borrowed: the owner was asked for its value
    cdef public bint abandoned          # owned and PENDING: nobody holds it any more; drop the value when it comes
    cdef unsigned long stamp            # the last `distinct` call that saw it
    cdef bint is_private(self)

@cython.no_gc_clear
cdef class Watch:
    cdef readonly Waiter waiter
    cdef list entries

@cython.no_gc
cdef class ObjectRef:
    cdef readonly ObjectEntry entry
    cdef object __weakref__

cdef class TaskIds:
    cdef readonly bytes process
    cdef unsigned long long count

cpdef settle(ObjectEntry entry, int state, value)
