"""Values to bytes and back: the hot half of skate.store.serialization.

`Serialized` is what a value becomes. `note_ref` is called by ObjectRef.__reduce__ (skate._c.refs).
"""

cdef class Serialized:
    cdef readonly bytes inband      # a pickle, or one of this kernel's own tags and a few bytes
    cdef readonly list buffers      # PickleBuffers, out of band; they keep what they view alive and unresized
    cdef readonly list refs         # the ObjectRefs inside, each once, in the order they were met

# Whether a serialize() is running in this thread; if so it has taken note of `ref`.
cpdef bint note_ref(object ref) except -1

cpdef bytes small(object value)
cpdef Serialized serialize(object value)
cpdef object deserialize(object inband, object buffers)
cpdef Py_ssize_t packed_size(Serialized serialized) except -1
cpdef Py_ssize_t pack_into(Serialized serialized, object dest) except -1
cpdef bytes to_bytes(Serialized serialized)
cpdef object unpack(object buffer)
