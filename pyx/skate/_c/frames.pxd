# frames: records of typed fields <-> bytes.
#
# A frame is what one ZeroMQ message carries:
#
#     "sk"  version  0 | record | record | ...
#
# and a record is
#
#     code (1 byte) | length of the body (4 bytes) | body
#
# A body is its fields one after the other, as its schema (one letter a field) says:
#
#     P  process id, 8 bytes          B  bytes: length (4), then the bytes
#     T  task id, 16 bytes            S  str: as B, UTF-8
#     O  object id, 20 bytes          I  signed integer, 8 bytes
#     D  double, 8 bytes              ?  bool, 1 byte
#     X  any nesting of None, bool, int (64 bits), float, bytes, str, list, tuple and dict: a tag byte each
#
# Numbers are little-endian. Whatever does not fit raises FrameError: nothing is guessed, nothing is unpickled.

cdef struct Reader:
    const unsigned char* at         # the next byte to read
    const unsigned char* end        # one past the last byte of the record (or frame)

cdef Py_ssize_t _field_size(char kind, object value) except -1
cdef unsigned char* _write_field(unsigned char* out, char kind, object value) except NULL
cdef object _read_field(Reader* reader, char kind)
cdef object _read_record(Reader* reader, list schemas)
