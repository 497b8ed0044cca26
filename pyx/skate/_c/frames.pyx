"""Records of typed fields <-> bytes: the messages of a call, written and read at C speed.

Owns no state. The layout is in frames.pxd; skate.wire.messages says which code has which schema.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy

#: protocol number: peers that speak another one are refused
VERSION = 1

#: how deep the values of an X field may nest
cdef enum:
    MAX_DEPTH = 24
    HEADER_BYTES = 4
    RECORD_HEADER_BYTES = 5
    MAX_LENGTH = 0x7FFFFFFF

cdef enum:
    TAG_NONE = 0
    TAG_TRUE = 1
    TAG_FALSE = 2
    TAG_INT = 3
    TAG_FLOAT = 4
    TAG_BYTES = 5
    TAG_STR = 6
    TAG_LIST = 7
    TAG_TUPLE = 8
    TAG_DICT = 9

cdef bytes _HEADER = b"sk" + bytes([VERSION, 0])

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


class FrameError(ValueError):
    """The bytes are no frame of this protocol, or the values do not fit the schema."""


cdef str _shown(object value):
    """The value as an error shows it."""
    try:
        return f"{value!r:.80}"
    except Exception:
        return f"a {type(value).__name__} that has no repr"


# ---------------------------------------------------------------------------------------------- sizes

cdef Py_ssize_t _str_size(object value) except -1:
    cdef Py_ssize_t length
    try:
        PyUnicode_AsUTF8AndSize(value, &length)
    except UnicodeEncodeError as error:
        raise FrameError(f"text that is no Unicode cannot travel: {error}") from None
    return length


cdef Py_ssize_t _any_size(object value, int depth) except -1:
    cdef Py_ssize_t size
    if depth > MAX_DEPTH:
        raise FrameError(f"a value nests deeper than {MAX_DEPTH} levels")
    if value is None or value is True or value is False:
        return 1
    kind = type(value)
    if kind is int or kind is float:
        return 9
    if kind is bytes:
        return 5 + PyBytes_GET_SIZE(value)
    if kind is str:
        return 5 + _str_size(value)
    if kind is list or kind is tuple:
        size = 5
        for item in value:
            size += _any_size(item, depth + 1)
        return size
    if kind is dict:
        size = 5
        for key, item in (<dict>value).items():
            size += _any_size(key, depth + 1) + _any_size(item, depth + 1)
        return size
    raise FrameError(f"cannot put a {kind.__name__} into a message: {_shown(value)}")


cdef Py_ssize_t _fixed(object value, Py_ssize_t size) except -1:
    if type(value) is not bytes or PyBytes_GET_SIZE(value) != size:
        raise FrameError(f"expected an id of {size} bytes, got {_shown(value)}")
    return size


cdef Py_ssize_t _field_size(char kind, object value) except -1:
    cdef Py_ssize_t length
    if kind == c"B":
        if type(value) is not bytes:
            raise FrameError(f"expected bytes, got {_shown(value)}")
        length = PyBytes_GET_SIZE(value)
        if length > MAX_LENGTH:
            raise FrameError(f"{length} bytes are too long for one field of a message (2 GiB at most)")
        return 4 + length
    if kind == c"T":
        return _fixed(value, 16)
    if kind == c"O":
        return _fixed(value, 20)
    if kind == c"P":
        return _fixed(value, 8)
    if kind == c"I":
        if not isinstance(value, int):
            raise FrameError(f"expected int, got {_shown(value)}")
        return 8
    if kind == c"D":
        if not isinstance(value, float) and type(value) is not int:
            raise FrameError(f"expected float, got {_shown(value)}")
        return 8
    if kind == c"?":
        if value is not True and value is not False:
            raise FrameError(f"expected bool, got {_shown(value)}")
        return 1
    if kind == c"S":
        if type(value) is not str:
            raise FrameError(f"expected str, got {_shown(value)}")
        return 4 + _str_size(value)
    if kind == c"X":
        return _any_size(value, 0)
    raise FrameError(f"a schema has no letter {chr(kind)!r}")


# ---------------------------------------------------------------------------------------------- writing

cdef inline unsigned char* _put(unsigned char* out, const void* data, Py_ssize_t size) noexcept:
    memcpy(out, data, size)
    return out + size


cdef inline unsigned char* _put_length(unsigned char* out, Py_ssize_t length) noexcept:
    cdef uint32_t narrow = <uint32_t>length
    return _put(out, &narrow, 4)


cdef unsigned char* _write_bytes(unsigned char* out, bytes value) except NULL:
    out = _put_length(out, PyBytes_GET_SIZE(value))
    return _put(out, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))


cdef unsigned char* _write_str(unsigned char* out, str value) except NULL:
    cdef Py_ssize_t length
    cdef const char* text = PyUnicode_AsUTF8AndSize(value, &length)
    return _put(_put_length(out, length), text, length)


cdef unsigned char* _write_int(unsigned char* out, object value) except NULL:
    cdef int64_t number
    try:
        number = value
    except OverflowError:
        raise FrameError(f"an int of {value.bit_length()} bits does not fit into 64") from None
    return _put(out, &number, 8)


cdef unsigned char* _write_float(unsigned char* out, object value) except NULL:
    cdef double number
    try:
        number = value
    except OverflowError:
        raise FrameError(f"an int of {value.bit_length()} bits does not fit into a float") from None
    return _put(out, &number, 8)


cdef unsigned char* _write_any(unsigned char* out, object value) except NULL:
    if value is None:
        out[0] = TAG_NONE
        return out + 1
    if value is True:
        out[0] = TAG_TRUE
        return out + 1
    if value is False:
        out[0] = TAG_FALSE
        return out + 1
    kind = type(value)
    if kind is int:
        out[0] = TAG_INT
        return _write_int(out + 1, value)
    if kind is float:
        out[0] = TAG_FLOAT
        return _write_float(out + 1, value)
    if kind is bytes:
        out[0] = TAG_BYTES
        return _write_bytes(out + 1, value)
    if kind is str:
        out[0] = TAG_STR
        return _write_str(out + 1, value)
    if kind is dict:
        out[0] = TAG_DICT
        out = _put_length(out + 1, len(<dict>value))
        for key, item in (<dict>value).items():
            out = _write_any(_write_any(out, key), item)
        return out
    out[0] = TAG_LIST if kind is list else TAG_TUPLE
    out = _put_length(out + 1, len(value))
    for item in value:
        out = _write_any(out, item)
    return out


cdef unsigned char* _write_field(unsigned char* out, char kind, object value) except NULL:
    if kind == c"B":
        return _write_bytes(out, <bytes>value)
    if kind == c"T":
        return _put(out, PyBytes_AS_STRING(value), 16)
    if kind == c"O":
        return _put(out, PyBytes_AS_STRING(value), 20)
    if kind == c"P":
        return _put(out, PyBytes_AS_STRING(value), 8)
    if kind == c"I":
        return _write_int(out, value)
    if kind == c"D":
        return _write_float(out, value)
    if kind == c"?":
        out[0] = 1 if value else 0
        return out + 1
    if kind == c"S":
        return _write_str(out, <str>value)
    return _write_any(out, value)


def encode(int code, bytes schema not None, fields):
    """One record as bytes. FrameError where the fields do not fit the schema. Does not block."""
    cdef Py_ssize_t count = PyBytes_GET_SIZE(schema), size = 0, i
    cdef const char* kinds = PyBytes_AS_STRING(schema)
    if not isinstance(fields, tuple) or len(<tuple>fields) != count:
        raise FrameError(f"message {code} has {count} fields, got {_shown(fields)}")
    if not 0 < code < 256:
        raise FrameError(f"a message code is 1 to 255, not {code}")
    for i in range(count):
        size += _field_size(kinds[i], <object>(<tuple>fields)[i])
    if size > MAX_LENGTH:
        raise FrameError(f"{size} bytes are too long for one message (2 GiB at most)")
    cdef bytes record = PyBytes_FromStringAndSize(NULL, RECORD_HEADER_BYTES + size)
    cdef unsigned char* out = <unsigned char*>PyBytes_AS_STRING(record)
    out[0] = <unsigned char>code
    out = _put_length(out + 1, size)
    for i in range(count):
        out = _write_field(out, kinds[i], <object>(<tuple>fields)[i])
    return record


def frame(list records not None):
    """The frame that carries these records (of `encode`), in order."""
    return _HEADER + b"".join(records)


# ---------------------------------------------------------------------------------------------- reading

cdef inline int _need(Reader* reader, Py_ssize_t size) except -1:
    if reader.end - reader.at < size:
        raise FrameError(f"truncated: {size} bytes wanted, {reader.end - reader.at} left")
    return 0


cdef Py_ssize_t _read_length(Reader* reader) except -1:
    cdef uint32_t length
    _need(reader, 4)
    memcpy(&length, reader.at, 4)
    reader.at += 4
    return <Py_ssize_t>length


cdef bytes _read_bytes(Reader* reader, Py_ssize_t size):
    _need(reader, size)
    cdef bytes value = PyBytes_FromStringAndSize(<const char*>reader.at, size)
    reader.at += size
    return value


cdef str _read_str(Reader* reader):
    cdef Py_ssize_t length = _read_length(reader)
    _need(reader, length)
    try:
        text = PyUnicode_DecodeUTF8(<const char*>reader.at, length, NULL)
    except UnicodeDecodeError as error:
        raise FrameError(f"text is not UTF-8: {error}") from None
    reader.at += length
    return text


cdef object _read_int(Reader* reader):
    cdef int64_t number
    _need(reader, 8)
    memcpy(&number, reader.at, 8)
    reader.at += 8
    return number


cdef object _read_float(Reader* reader):
    cdef double number
    _need(reader, 8)
    memcpy(&number, reader.at, 8)
    reader.at += 8
    return number


cdef object _read_any(Reader* reader, int depth):
    cdef Py_ssize_t count, i
    cdef unsigned char tag
    if depth > MAX_DEPTH:
        raise FrameError(f"a value nests deeper than {MAX_DEPTH} levels")
    _need(reader, 1)
    tag = reader.at[0]
    reader.at += 1
    if tag == TAG_NONE:
        return None
    if tag == TAG_TRUE:
        return True
    if tag == TAG_FALSE:
        return False
    if tag == TAG_INT:
        return _read_int(reader)
    if tag == TAG_FLOAT:
        return _read_float(reader)
    if tag == TAG_BYTES:
        return _read_bytes(reader, _read_length(reader))
    if tag == TAG_STR:
        return _read_str(reader)
    if tag > TAG_DICT:
        raise FrameError(f"unknown tag {tag}")
    count = _read_length(reader)
    _need(reader, count)  # an item takes a byte at least: a false count cannot make us allocate
    if tag == TAG_DICT:
        mapping = {}
        for i in range(count):
            key = _read_any(reader, depth + 1)
            if type(key) is dict or type(key) is list:
                raise FrameError("a key of a dict is not hashable")
            try:
                mapping[key] = _read_any(reader, depth + 1)
            except TypeError:
                raise FrameError("a key of a dict is not hashable") from None
        return mapping
    items = []
    for i in range(count):
        items.append(_read_any(reader, depth + 1))
    return items if tag == TAG_LIST else tuple(items)


cdef object _read_field(Reader* reader, char kind):
    if kind == c"B":
        return _read_bytes(reader, _read_length(reader))
    if kind == c"T":
        return _read_bytes(reader, 16)
    if kind == c"O":
        return _read_bytes(reader, 20)
    if kind == c"P":
        return _read_bytes(reader, 8)
    if kind == c"I":
        return _read_int(reader)
    if kind == c"D":
        return _read_float(reader)
    if kind == c"?":
        _need(reader, 1)
        reader.at += 1
        if reader.at[-1] > 1:
            raise FrameError(f"a bool is 0 or 1, not {reader.at[-1]}")
        return reader.at[-1] == 1
    if kind == c"S":
        return _read_str(reader)
    return _read_any(reader, 0)


cdef object _read_record(Reader* reader, list schemas):
    """The next record as (code, fields)."""
    cdef Py_ssize_t length, count, i
    cdef const char* kinds
    cdef unsigned char code
    cdef Reader body
    _need(reader, 1)
    code = reader.at[0]
    reader.at += 1
    length = _read_length(reader)
    _need(reader, length)
    schema = schemas[code] if code < len(schemas) else None
    if schema is None:
        raise FrameError(f"unknown message {code}")
    count = PyBytes_GET_SIZE(<bytes>schema)
    kinds = PyBytes_AS_STRING(<bytes>schema)
    body.at = reader.at
    body.end = reader.at + length
    cdef tuple fields = PyTuple_New(count)
    for i in range(count):
        field = _read_field(&body, kinds[i])
        Py_INCREF(field)
        PyTuple_SET_ITEM(fields, i, field)
    if body.at != body.end:
        raise FrameError(f"message {code} has {body.end - body.at} bytes too many")
    reader.at = body.end
    return code, fields


def decode(bytes data not None, list schemas not None):
    """The records of a frame as [(code, fields), ...].

    `schemas[code]` is the schema of a code, or None. FrameError for anything that is no whole frame of known
    records: then none of it counts. Does not block.
    """
    cdef Reader reader
    cdef list records = []
    reader.at = <const unsigned char*>PyBytes_AS_STRING(data)
    reader.end = reader.at + PyBytes_GET_SIZE(data)
    _need(&reader, HEADER_BYTES)
    if reader.at[0] != c"s" or reader.at[1] != c"k":
        raise FrameError(f"no skate frame: it begins with {data[:4]!r}")
    if reader.at[2] != <unsigned char>VERSION:
        raise FrameError(f"the sender speaks protocol {reader.at[2]}, this process {VERSION}")
    reader.at += HEADER_BYTES
    while reader.at < reader.end:
        records.append(_read_record(&reader, schemas))
    return records
