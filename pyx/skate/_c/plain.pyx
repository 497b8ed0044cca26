"""Values to bytes and back, and their layout in one block of memory. See plain.pxd for who calls what.

State: the lazily found numpy and cloudpickle; a table of types that are safe for the plain C pickler; one pointer a
thread, to the Serialized that is being made in it.

A value takes the first way that fits:
  bare     a numpy array or scalar of a native numeric dtype, bytes, str, int, float, bool or None: a few bytes of our
           own, no pickle
  plain    built-in types, exact, few and shallow, with such arrays and registered types among them: C pickler
  cloud    everything else: cloudpickle, protocol 5, buffers out of band

One block (a message, or an object in the store) is the in-band bytes alone where there are no buffers, else

    magic "SKT1" | u32 buffers | u64 in-band bytes | u64 bytes of each buffer | in-band | pad to 64 | buffer | pad | ...

The first byte tells all of these apart: every pickle begins with 0x80. Integers are little-endian.
"""

import copyreg
import io
import pickle
import sys
from types import FunctionType

from cpython.buffer cimport (
    PyBUF_ANY_CONTIGUOUS,
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.object cimport PyObject
from cpython.pyport cimport PY_SSIZE_T_MAX
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from skate import dependencies, exception_transport, reducers

cdef extern from *:
    """
    static __thread PyObject *skate_plain_current = NULL;
    """
    PyObject *current "skate_plain_current"  # the Serialized being made in this thread; its maker's frame owns it

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef enum:
    TAG_ARRAY = 1               # then: dtype's letter, "C" or "F", ndim, u64 a dimension; one buffer
    TAG_BYTES = 2               # one buffer
    TAG_BYTEARRAY = 3           # one buffer
    TAG_SCALAR = 4              # then: dtype's letter, the value
    TAG_NONE = 5                # these and the next two: nothing follows
    TAG_TRUE = 6
    TAG_FALSE = 7
    TAG_INT = 8                 # then: i64
    TAG_FLOAT = 9               # then: f64
    TAG_STR = 10                # then: UTF-8
    TAG_SHORT_BYTES = 11        # then: the bytes
    PICKLE_PROTO = 0x80

    ALIGN = 64
    HEAD_BYTES = 16
    NODE_BUDGET = 128           # values looked at before cloudpickle is taken, which copes with anything
    DEPTH_BUDGET = 8
    BARE_BYTES_MIN = 32768      # smaller bytes are cheaper inside the pickle
    RELEASE_GIL_BYTES = 1 << 20  # below this another thread's turn costs more than the copy
    MAX_NDIM = 64

cdef enum Way:
    CLOUD
    PLAIN
    PLAIN_WITH_BUFFERS

cdef const char *MAGIC = b"SKT1"

cdef object _dumps = pickle.dumps
cdef object _loads = pickle.loads
cdef object _PickleBuffer = pickle.PickleBuffer
cdef object _set_dispatch_table = pickle.Pickler.dispatch_table.__set__
cdef object _BytesIO = io.BytesIO

cdef set _plain_types = set()
cdef object _ndarray = None         # numpy.ndarray, once something has imported numpy
cdef dict _code_of_dtype = {}       # id of a native dtype, which is never freed -> its one-letter code
cdef dict _dtype_of_code = {}
cdef dict _head_of_scalar = {}      # numpy.float64 and its like -> the two bytes that its values begin with
cdef object _ascontiguousarray = None
cdef object _frombuffer = None
cdef object _cloud_pickler = None
cdef dict _modules = sys.modules
cdef dict _copyreg_table = copyreg.dispatch_table
cdef dict _reducers = None          # of the last pickle that was cloudpickle's
cdef dict _registered = None        # what copyreg knew by then
cdef dict _theirs = None            # cloudpickle's own, and how many there were
cdef Py_ssize_t _their_count = 0


cdef class Serialized:
    """A value as bytes: the pickle, the buffers beside it, and the refs inside it."""

    @property
    def total_bytes(self) -> int:
        """What the value weighs: the pickle and all buffers, without padding."""
        cdef Py_ssize_t total = len(self.inband)
        for buffer in self.buffers:
            total += _length(buffer)
        return total

    def __repr__(self) -> str:
        return f"<Serialized {self.total_bytes} bytes, {len(self.buffers)} buffers, {len(self.refs)} refs>"


cpdef bint note_ref(object ref) except -1:
    if current == NULL:
        return False
    (<Serialized>current).refs.append(ref)
    return True


def register_plain_type(cls: type) -> None:
    """Instances of exactly `cls` reduce to importable functions and plain values, so the C pickler will do."""
    _plain_types.add(cls)


# --- making ------------------------------------------------------------------------------------------------------

cdef inline int _pickle(Serialized out, object value, Way way, bint beside) except -1:
    """Pickles the value into `out`, with its refs; `beside`: buffers are kept out of band."""
    cdef PyObject *outer = current
    global current
    current = <PyObject *>out
    try:
        if way == CLOUD:
            out.inband = _cloud_dumps(value, out.buffers.append if beside else None)
        elif way == PLAIN:
            out.inband = _dumps(value, 5)
        else:
            out.inband = _dumps(value, 5, buffer_callback=out.buffers.append)
    finally:
        current = outer
    if len(out.refs) > 1:
        out.refs = list(dict.fromkeys(out.refs))
    return 0


cdef inline Serialized _empty():
    cdef Serialized out = Serialized.__new__(Serialized)
    out.buffers = []
    out.refs = []
    return out


cpdef Serialized serialize(object value):
    """Pickle `value`. Raises what its pickling raises; skate.store.serialization names the culprit."""
    cdef Serialized out = _empty()
    cdef int budget = NODE_BUDGET
    cdef Py_ssize_t weight = 0
    if _ndarray is None:
        _find_numpy()
    if not _serialize_bare(value, out):
        _pickle(out, value, _way_of(value, &budget, &weight, 0), True)
    return out


cpdef Serialized serialize_plain(object value):
    """As serialize(), of what `compact` has looked at: plain values, in tuples and dictionaries of any length."""
    cdef Serialized out = _empty()
    _pickle(out, value, PLAIN_WITH_BUFFERS, True)
    return out


def dumps_inband(value: object) -> Serialized:
    """As serialize(), always by cloudpickle and with no buffer out of band: for functions and classes."""
    cdef Serialized out = _empty()
    _pickle(out, value, CLOUD, False)
    return out


cdef bint _serialize_bare(object value, Serialized out) except -1:
    cdef bytes as_it_stands
    kind = type(value)
    if kind is _ndarray:
        return _serialize_array(value, out)
    as_it_stands = small(value)
    if as_it_stands is not None:
        out.inband = as_it_stands
        return True
    if kind is bytes or kind is bytearray:
        if len(value) < BARE_BYTES_MIN:
            return False
        out.inband = b"\x02" if kind is bytes else b"\x03"
    elif kind is memoryview:  # comes back as bytes, as it does in Ray and from cloudpickle
        out.inband = b"\x02"
        if not (<object>value).contiguous:
            value = value.tobytes()
    elif kind in _head_of_scalar:
        out.inband = <bytes>_head_of_scalar[kind] + <bytes>value.tobytes()
        return True
    else:
        return False
    out.buffers.append(_PickleBuffer(value))
    return True


cpdef bytes small(object value):
    """The whole message of a small value of the types that need no pickle; None for any other."""
    cdef bytes out
    cdef const char *text
    cdef char *at
    cdef Py_ssize_t length
    cdef int64_t integer
    cdef double number
    cdef int overflow = 0
    cdef object kind = type(value)
    if value is None:
        return b"\x05"
    if value is True:
        return b"\x06"
    if value is False:
        return b"\x07"
    if kind is int:
        integer = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow:
            return None
        out = PyBytes_FromStringAndSize(NULL, 9)
        at = PyBytes_AS_STRING(out)
        at[0] = TAG_INT
        memcpy(at + 1, &integer, 8)
        return out
    if kind is float:
        number = value
        out = PyBytes_FromStringAndSize(NULL, 9)
        at = PyBytes_AS_STRING(out)
        at[0] = TAG_FLOAT
        memcpy(at + 1, &number, 8)
        return out
    if kind is bytes:
        length = PyBytes_GET_SIZE(value)
        if length >= BARE_BYTES_MIN:
            return None
        text = PyBytes_AS_STRING(value)
    elif kind is str:
        if len(<str>value) >= BARE_BYTES_MIN:
            return None
        try:
            text = PyUnicode_AsUTF8AndSize(value, &length)
        except UnicodeEncodeError:
            return None  # a lone surrogate: pickle has a way
    else:
        return None
    out = PyBytes_FromStringAndSize(NULL, 1 + length)
    at = PyBytes_AS_STRING(out)
    at[0] = TAG_SHORT_BYTES if kind is bytes else TAG_STR
    memcpy(at + 1, text, length)
    return out


cdef object _load_small(const char *at, Py_ssize_t size):
    """What `small` wrote. `at` begins with one of its tags."""
    cdef int64_t integer
    cdef double number
    cdef unsigned char tag = <unsigned char>at[0]
    if tag == TAG_STR:
        return PyUnicode_DecodeUTF8(at + 1, size - 1, NULL)
    if tag == TAG_SHORT_BYTES:
        return PyBytes_FromStringAndSize(at + 1, size - 1)
    if size != (9 if tag == TAG_INT or tag == TAG_FLOAT else 1):
        raise ValueError(f"a serialized value that is damaged: {size} bytes after tag {tag}")
    if tag == TAG_INT:
        memcpy(&integer, at + 1, 8)
        return integer
    if tag == TAG_FLOAT:
        memcpy(&number, at + 1, 8)
        return number
    return None if tag == TAG_NONE else tag == TAG_TRUE


cdef bint _serialize_array(object array, Serialized out) except -1:
    cdef bytes inband
    cdef unsigned char *head
    cdef Py_ssize_t i, ndim
    code = _code_of_dtype.get(<size_t><PyObject *>array.dtype)
    if code is None:
        return False
    flags = array.flags
    if not flags.forc:
        if reducers.dense_axes(array) is not None:
            return False  # transposed: it keeps its strides
        array = _ascontiguousarray(array)
        flags = array.flags
    shape = array.shape
    ndim = len(shape)
    inband = PyBytes_FromStringAndSize(NULL, 4 + 8 * ndim)
    head = <unsigned char *>PyBytes_AS_STRING(inband)
    head[0] = TAG_ARRAY
    head[1] = <unsigned char>(<int>code)
    head[2] = 70 if flags.fnc else 67  # "F" or "C"
    head[3] = <unsigned char>ndim
    for i in range(ndim):
        _put_u64(head + 4 + 8 * i, <uint64_t>shape[i])
    out.inband = inband
    out.buffers.append(_PickleBuffer(array))
    return True


cdef Way _way_of(object value, int *budget, Py_ssize_t *weight, int depth) except *:
    """How `value` can be pickled. Cycles and large values run out of budget, and are cloudpickle's.

    Adds to `weight` the bytes of strings, bytes and arrays in it; they may be a few more once they are pickled.
    """
    cdef Way way = PLAIN
    cdef Way inner
    budget[0] -= 1
    if budget[0] < 0 or depth > DEPTH_BUDGET:
        return CLOUD
    kind = type(value)
    if value is None or kind is int or kind is float or kind is bool:
        return PLAIN
    if kind is str or kind is bytes:
        weight[0] += len(value)
        return PLAIN
    if kind is tuple or kind is list or kind is set or kind is frozenset:
        if len(value) > budget[0]:
            return CLOUD
        for item in value:
            inner = _way_of(item, budget, weight, depth + 1)
            if inner == CLOUD:
                return CLOUD
            if inner == PLAIN_WITH_BUFFERS:
                way = inner
        return way
    if kind is dict:
        if len(<dict>value) > budget[0]:
            return CLOUD
        for key, item in (<dict>value).items():
            inner = _way_of(item, budget, weight, depth + 1)
            if inner == CLOUD or _way_of(key, budget, weight, depth + 1) == CLOUD:
                return CLOUD
            if inner == PLAIN_WITH_BUFFERS:
                way = inner
        return way
    if kind is _ndarray:
        if (<size_t><PyObject *>value.dtype) in _code_of_dtype and value.flags.forc:
            weight[0] += value.nbytes
            return PLAIN_WITH_BUFFERS
        return CLOUD
    if kind is bytearray:
        weight[0] += len(value)
        return PLAIN
    if kind is complex or kind in _plain_types:
        return PLAIN
    return CLOUD


cdef bytes _cloud_dumps(object value, object buffer_callback):
    if _cloud_pickler is None:
        _make_cloud_pickler()
    file = _BytesIO()
    pickler = _cloud_pickler(file, 5, buffer_callback)
    _set_dispatch_table(pickler, _reducers_now())
    pickler.dump(value)
    return file.getvalue()


cdef dict _reducers_now():
    """Type -> reducer: ours, cloudpickle's, and what anybody has registered with copyreg, each over those before.

    cloudpickle's table is a ChainMap, in Python, which would be asked about every object.
    """
    global _reducers, _registered, _theirs, _their_count
    cdef bint known = _reducers is not None and len(_theirs) == _their_count
    for name in reducers.waited_for:
        if name in _modules:
            known = False
    if not known or _registered != _copyreg_table:
        table = dict(reducers.table())
        for part in reversed(_cloud_pickler.dispatch_table.maps):
            table.update(part)
        _theirs = _cloud_pickler.dispatch_table.maps[1]
        _their_count = len(_theirs)
        _reducers = table
        _registered = dict(_copyreg_table)
    return _reducers


cdef int _make_cloud_pickler() except -1:
    """cloudpickle's Pickler, asked in Cython about the many objects that it has no opinion on.

    Exceptions and some arrays are reduced in a better way than their own.
    """
    base = dependencies.cloud_pickler()
    theirs = base.reducer_override

    class CloudPickler(base):
        def reducer_override(self, obj):
            if isinstance(obj, (type, FunctionType)):
                return reducers.of_definition(obj, theirs(self, obj))
            if _ndarray is not None and isinstance(obj, _ndarray):
                return reducers.of_array(obj)
            if isinstance(obj, BaseException) and exception_transport.pickles_as_usual(type(obj)):
                return exception_transport.reduce(obj)
            return NotImplemented

    global _cloud_pickler
    _cloud_pickler = CloudPickler
    return 0


cdef class SmallArray:
    """Stands for a small array inside a pickle, and comes back as the array: numpy's own pickling costs four times as much."""

    cdef tuple parts

    def __reduce__(self):
        return _small_array, self.parts


_plain_types.add(SmallArray)


cpdef object compact(object value, Py_ssize_t limit):
    """What an argument looks like in the pickle of a call.

    A SmallArray for a contiguous array of a native dtype and up to `limit` bytes. A Serialized for what only
    cloudpickle can do, or takes more than that: it is pickled here, once. Anything else as it is, and plain
    (see serialize_plain).
    """
    cdef SmallArray small
    cdef int budget = NODE_BUDGET
    cdef Py_ssize_t weight = 0
    cdef Way way
    cdef object kind = type(value)
    if kind is int or kind is float or kind is bool or value is None:
        return value
    if _ndarray is None:
        _find_numpy()
    if kind is _ndarray and 0 < value.nbytes <= limit:
        code = _code_of_dtype.get(<size_t><PyObject *>value.dtype)
        flags = value.flags
        if code is not None and flags.forc:
            small = SmallArray.__new__(SmallArray)
            small.parts = (value.tobytes("A"), code, value.shape, "F" if flags.fnc else "C")
            return small
    way = _way_of(value, &budget, &weight, 0)
    if way == CLOUD or weight > limit:
        return serialize(value)
    return value


cdef class Parcel:
    """Stands for a value that was pickled by itself inside another pickle, and comes back as the value."""

    cdef bytes block

    def __init__(self, Serialized serialized):
        self.block = to_bytes(serialized)

    def __reduce__(self):
        return unpack, (self.block,)


_plain_types.add(Parcel)


def _small_array(data, code, shape, order):
    """The array again: read-only, in memory of its own."""
    _need_numpy()
    return _frombuffer(data, _dtype_of_code[code]).reshape(shape, order=order)


# --- reading -----------------------------------------------------------------------------------------------------

cpdef object deserialize(object inband, object buffers):
    """The value again. Arrays are read-only views of `buffers`, whose memory must not change while they live."""
    cdef const unsigned char[::1] head = inband
    if head.shape[0] == 0:
        raise ValueError("cannot deserialize an empty message")
    if head[0] == PICKLE_PROTO:
        if not buffers:
            return _loads(inband)
        return _loads(inband, buffers=[_readonly(buffer) for buffer in buffers])
    if head[0] == TAG_SCALAR:
        return _load_scalar(head, inband)
    if TAG_NONE <= head[0] <= TAG_SHORT_BYTES:
        return _load_small(<const char *>&head[0], head.shape[0])
    if head[0] > TAG_BYTEARRAY or head[0] == 0:
        raise ValueError(f"not a serialized value: it begins with byte {head[0]:#04x}")
    if len(buffers) != 1:
        raise ValueError(f"a bare value has one buffer, this one came with {len(buffers)}")
    if head[0] == TAG_ARRAY:
        return _load_array(head, _readonly(buffers[0]))
    return bytes(buffers[0]) if head[0] == TAG_BYTES else bytearray(buffers[0])


cdef object _load_scalar(const unsigned char[::1] head, object inband):
    _need_numpy()
    dtype = _dtype_of_code.get(head[1]) if head.shape[0] > 1 else None
    if dtype is None or head.shape[0] != 2 + dtype.itemsize:
        raise ValueError("a serialized numpy scalar that is damaged")
    return _frombuffer(inband, dtype, 1, 2)[0]


cdef object _load_array(const unsigned char[::1] head, object buffer):
    cdef Py_ssize_t i, ndim
    _need_numpy()
    if head.shape[0] < 4 or head.shape[0] != 4 + 8 * head[3] or head[3] > MAX_NDIM:
        raise ValueError("a serialized array whose head is damaged")
    dtype = _dtype_of_code.get(head[1])
    if dtype is None:
        raise ValueError(f"a serialized array of an unknown dtype, code {head[1]}")
    ndim = head[3]
    shape = tuple([_get_u64(&head[4 + 8 * i]) for i in range(ndim)])
    if ndim and max(shape) > PY_SSIZE_T_MAX:
        raise ValueError(f"a serialized array of impossible shape {shape}")
    if len(buffer) == 0:
        if 0 not in shape:
            raise ValueError(f"a serialized array of shape {shape} came without its data")
        array = _ndarray(shape, dtype)
        array.flags.writeable = False
        return array
    # frombuffer holds a view of the buffer; ndarray(buffer=...) only the object, whose block could be let go
    array = _frombuffer(buffer, dtype)
    if ndim == 1 and array.size == shape[0]:
        return array
    return array.reshape(shape, order="F" if head[2] == 70 else "C")


cdef object _readonly(object buffer):
    """A flat read-only view of anything contiguous."""
    if type(buffer) is _PickleBuffer:
        return buffer.raw().toreadonly()
    view = buffer if type(buffer) is memoryview else memoryview(buffer)
    return view if view.readonly else view.toreadonly()


# --- one block ---------------------------------------------------------------------------------------------------

cdef inline Py_ssize_t _aligned(Py_ssize_t offset) noexcept nogil:
    return (offset + ALIGN - 1) & ~<Py_ssize_t>(ALIGN - 1)


def layout(inband_bytes: int, lengths: list[int]) -> tuple[list[int], int]:
    """Where in a block the in-band bytes and each buffer begin, and the size of the block."""
    cdef Py_ssize_t end = inband_bytes, length
    if not lengths:
        return [0], end
    offsets = [HEAD_BYTES + 8 * len(lengths)]
    end = offsets[0] + inband_bytes
    for length in lengths:
        end = _aligned(end)
        offsets.append(end)
        end += length
    return offsets, end


cpdef Py_ssize_t packed_size(Serialized serialized) except -1:
    """Bytes that pack_into() writes."""
    cdef Py_ssize_t end = len(serialized.inband)
    if serialized.buffers:
        end += HEAD_BYTES + 8 * len(serialized.buffers)
        for buffer in serialized.buffers:
            end = _aligned(end) + _length(buffer)
    return end


cpdef Py_ssize_t pack_into(Serialized serialized, object dest) except -1:
    """Write `serialized` at the start of `dest`, each buffer copied once; large ones without the GIL.

    Returns the bytes written. Raises ValueError where `dest` is too small, before it writes anything.
    """
    cdef Py_buffer view
    cdef Py_ssize_t size = packed_size(serialized)
    PyObject_GetBuffer(dest, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        if view.len < size:
            raise ValueError(f"cannot pack {size} bytes into a buffer of {view.len}")
        _pack(serialized, <char *>view.buf, size)
    finally:
        PyBuffer_Release(&view)
    return size


cpdef bytes to_bytes(Serialized serialized):
    """One message of its own memory."""
    cdef Py_ssize_t size
    cdef bytes block
    if not serialized.buffers:
        return serialized.inband
    size = packed_size(serialized)
    block = PyBytes_FromStringAndSize(NULL, size)
    _pack(serialized, PyBytes_AS_STRING(block), size)
    return block


cdef int _pack(Serialized serialized, char *dest, Py_ssize_t size) except -1:
    """Fill exactly `size` bytes, padding with zeros: a block may leave the process, and must not tell old tales."""
    cdef Py_buffer view
    cdef Py_ssize_t count = len(serialized.buffers), inband_bytes = len(serialized.inband), at = 0, end = 0
    cdef Py_ssize_t i
    if count:
        memcpy(dest, MAGIC, 4)
        _put_u32(<unsigned char *>dest + 4, <uint32_t>count)
        _put_u64(<unsigned char *>dest + 8, <uint64_t>inband_bytes)
        end = HEAD_BYTES + 8 * count
    _copy(dest + end, PyBytes_AS_STRING(serialized.inband), inband_bytes)
    end += inband_bytes
    for i in range(count):
        at = _aligned(end)
        PyObject_GetBuffer(serialized.buffers[i], &view, PyBUF_ANY_CONTIGUOUS)
        try:
            if at + view.len > size:
                raise ValueError("a buffer grew while it was packed")
            memset(dest + end, 0, at - end)
            _put_u64(<unsigned char *>dest + HEAD_BYTES + 8 * i, <uint64_t>view.len)
            _copy(dest + at, <const char *>view.buf, view.len)
            end = at + view.len
        finally:
            PyBuffer_Release(&view)
    return 0


def same_bytes(Serialized serialized, object block) -> bool:
    """Whether pack_into() would write what `block` holds. Compares until the first difference; no copy."""
    cdef Py_buffer there, view
    cdef const char *at
    cdef Py_ssize_t end = 0, start, count = len(serialized.buffers), i
    cdef bytes head
    cdef bint same = True
    PyObject_GetBuffer(block, &there, PyBUF_SIMPLE)
    try:
        if there.len != packed_size(serialized):
            return False
        at = <const char *>there.buf
        if count:
            head = MAGIC + b"".join([
                (<Py_ssize_t>count).to_bytes(4, "little"), len(serialized.inband).to_bytes(8, "little"),
                *[_length(buffer).to_bytes(8, "little") for buffer in serialized.buffers],
            ])
            if memcmp(at, PyBytes_AS_STRING(head), len(head)):
                return False
            end = len(head)
        if memcmp(at + end, PyBytes_AS_STRING(serialized.inband), len(serialized.inband)):
            return False
        end += len(serialized.inband)
        for i in range(count):
            start = _aligned(end)
            PyObject_GetBuffer(serialized.buffers[i], &view, PyBUF_ANY_CONTIGUOUS)
            with nogil:
                same = start + view.len <= there.len and memcmp(at + start, view.buf, view.len) == 0
            end = start + view.len
            PyBuffer_Release(&view)
            if not same:
                return False
        return True
    finally:
        PyBuffer_Release(&there)


cpdef object unpack(object buffer):
    """The value in a block. Arrays are read-only views of `buffer` and keep it alive.

    The block must not change while they live. Raises ValueError for a block that is cut short or damaged.
    """
    cdef const unsigned char[::1] block
    cdef Py_ssize_t total, at, end, length, i
    cdef uint64_t count, inband_bytes
    cdef unsigned char tag
    if type(buffer) is bytes and PyBytes_GET_SIZE(buffer) > 0:  # the usual ones, without a view
        tag = <unsigned char>PyBytes_AS_STRING(buffer)[0]
        if tag == PICKLE_PROTO:
            return _loads(buffer)
        if TAG_NONE <= tag <= TAG_SHORT_BYTES:
            return _load_small(PyBytes_AS_STRING(buffer), PyBytes_GET_SIZE(buffer))
    block = buffer
    total = block.shape[0]
    if total < 4 or memcmp(&block[0], MAGIC, 4) != 0:
        return deserialize(buffer, ())
    if total < HEAD_BYTES:
        raise ValueError(f"a block of {total} bytes, too short for its header")
    count = _get_u32(&block[4])
    inband_bytes = _get_u64(&block[8])
    at = HEAD_BYTES + 8 * <Py_ssize_t>count
    if at > total or inband_bytes > <uint64_t>(total - at):
        raise ValueError(f"a block of {total} bytes, too short for the {count} buffers that its header names")
    whole = _readonly(buffer)
    end = at + <Py_ssize_t>inband_bytes
    inband = whole[at:end]
    views = []
    for i in range(<Py_ssize_t>count):
        at = _aligned(end)
        if at > total or _get_u64(&block[HEAD_BYTES + 8 * i]) > <uint64_t>(total - at):
            raise ValueError(f"a block of {total} bytes ends inside its buffer {i} of {count}")
        length = <Py_ssize_t>_get_u64(&block[HEAD_BYTES + 8 * i])
        end = at + length
        views.append(whole[at:end])
    return deserialize(inband, views)


# --- bytes -------------------------------------------------------------------------------------------------------

cdef Py_ssize_t _length(object buffer) except -1:
    cdef Py_buffer view
    cdef Py_ssize_t length
    PyObject_GetBuffer(buffer, &view, PyBUF_ANY_CONTIGUOUS)
    length = view.len
    PyBuffer_Release(&view)
    return length


cdef int _copy(char *dest, const char *source, Py_ssize_t length) except -1:
    if length >= RELEASE_GIL_BYTES:
        with nogil:
            memcpy(dest, source, length)
    else:
        memcpy(dest, source, length)
    return 0


cdef inline void _put_u32(unsigned char *at, uint32_t number) noexcept nogil:
    cdef int i
    for i in range(4):
        at[i] = <unsigned char>(number >> (8 * i))


cdef inline void _put_u64(unsigned char *at, uint64_t number) noexcept nogil:
    cdef int i
    for i in range(8):
        at[i] = <unsigned char>(number >> (8 * i))


cdef inline uint32_t _get_u32(const unsigned char *at) noexcept nogil:
    cdef int i
    cdef uint32_t number = 0
    for i in range(4):
        number |= <uint32_t>at[i] << (8 * i)
    return number


cdef inline uint64_t _get_u64(const unsigned char *at) noexcept nogil:
    cdef int i
    cdef uint64_t number = 0
    for i in range(8):
        number |= <uint64_t>at[i] << (8 * i)
    return number


cdef int _find_numpy() except -1:
    """Learn numpy's types once something has imported it: before that no value can be an array."""
    global _ndarray, _ascontiguousarray, _frombuffer
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "ascontiguousarray"):  # or another thread is still importing it
        return 0
    for letter, dtype in dependencies.native_dtypes().items():
        _code_of_dtype[id(dtype)] = ord(letter)
        _dtype_of_code[ord(letter)] = dtype
        _plain_types.add(dtype.type)
        _head_of_scalar[dtype.type] = bytes((TAG_SCALAR, ord(letter)))
    _frombuffer = numpy.frombuffer
    _ascontiguousarray = numpy.ascontiguousarray
    _ndarray = numpy.ndarray
    return 0


cdef int _need_numpy() except -1:
    if _ndarray is None:
        import numpy  # noqa: F401

        _find_numpy()
    return 0
