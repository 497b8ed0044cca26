# cython: boundscheck=True
"""Fixed-point resource vectors: how much of each resource a place has, and the loop that fits requests into
them.

All amounts are integers in units of 1/10,000, always; floats exist only in `to_units` and `from_units`, at
the API's edge. State owned here: the numbering of resource names (`ResourceIndex`, one a node or a cluster)
and, for each `ResourceVector`, the total and the available amount of each resource. Invariants: 0 <=
available <= total, a resource whose total is 0 is not stored, `reserve` and `release` change everything they
name or nothing.

Called by `skate.core.resources` (one vector a node) and by placement (`first_fit` over all nodes' vectors).
Nothing here is locked: a vector belongs to the thread that drives its state machine. 
"""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.stdint cimport int64_t
from libc.string cimport memcmp, memcpy, memmove

from decimal import Decimal, InvalidOperation
from numbers import Rational

#: Units in one whole resource.
UNITS_PER_ONE = 10_000
#: The largest amount of one resource, in units: Ray's limit of 100e12, which keeps the sum of two inside an
#: int64.
MAX_UNITS = 100_000_000_000_000 * UNITS_PER_ONE

#: Numbered first, so that their slots are found without a search.
PREDEFINED = ("CPU", "GPU", "memory", "object_store_memory")

cdef int64_t C_MAX_UNITS = MAX_UNITS


# -------------------------------------------------------------------------------------- numbers at the edge

def to_units(value, str name="") -> int:
    """The amount `value` in units of 1/10,000: the floor of its decimal spelling, never more than was
    written.

    The spelling is what `repr` shows, so 1/6 (0.16666666666666666) is 1,666 units and six of them fit in one,
    and every k/10,000 is exactly k units although few of them are exact in binary. Strings such as "0.5" are
    read the same way; integers, Decimals and Fractions are taken exactly.

    `name` is the resource or option that the amount is for, for the error message. Raises ValueError for what
    is negative, NaN, infinite, over 100e12, a bool or a string that is no number; TypeError for what is no
    number at all. 
    """
    if type(value) is int:
        return whole_units(value, value, name)
    if isinstance(value, bool):
        raise ValueError(f"{subject(name)} must be a number, got {value!r} (write {int(value)})")
    if isinstance(value, float):
        return decimal_units(Decimal(float.__repr__(value)), value, name)
    if isinstance(value, str):
        try:
            return decimal_units(Decimal(value), value, name)
        except InvalidOperation:
            raise ValueError(f"{subject(name)} must be a number, got the string {value!r}") from None
    if isinstance(value, Decimal):
        return decimal_units(value, value, name)
    if isinstance(value, Rational):
        return ratio_units(int(value.numerator), int(value.denominator), value, name)
    if hasattr(value, "__index__"):
        return whole_units(value.__index__(), value, name)
    if hasattr(value, "__float__"):  # numpy.float32: its str is the shortest spelling of its own precision
        try:
            return decimal_units(Decimal(str(value)), value, name)
        except InvalidOperation:
            return decimal_units(Decimal(repr(float(value))), value, name)
    raise TypeError(f"{subject(name)} must be a number, got {value!r} of type {type(value).__name__}")


def from_units(units: int) -> float:
    """The amount as the float users see: the one nearest to units/10,000."""
    return units / UNITS_PER_ONE


cdef str subject(str name):
    return f"the amount of resource {name!r}" if name else "a resource amount"


cdef object whole_units(object whole, object value, str name):
    if whole < 0:
        raise ValueError(f"{subject(name)} cannot be negative, got {value!r}")
    if whole * UNITS_PER_ONE > MAX_UNITS:
        raise ValueError(f"{subject(name)} must be at most 100e12, got {value!r}")
    return whole * UNITS_PER_ONE


cdef object decimal_units(object number, object value, str name):
    if not number.is_finite():
        raise ValueError(f"{subject(name)} must be a finite number, got {value!r}")
    # The size is settled before any exact arithmetic: the ratio of 1e999999 would fill the memory.
    if number and number.adjusted() > 15:
        return whole_units(-1 if number < 0 else MAX_UNITS, value, name)
    if number > 0 and number.adjusted() < -5:
        return 0
    if number < 0:
        return whole_units(-1, value, name)
    numerator, denominator = number.as_integer_ratio()
    return ratio_units(numerator, denominator, value, name)


cdef object ratio_units(object numerator, object denominator, object value, str name):
    if numerator < 0 or numerator > denominator * MAX_UNITS:
        return whole_units(numerator, value, name)
    units = numerator * UNITS_PER_ONE // denominator
    if units > MAX_UNITS:
        return whole_units(MAX_UNITS, value, name)
    return units


cdef int64_t checked_units(object units, str name) except -1:
    """`units` as an int64, refused with the resource's name unless 0 <= units <= MAX_UNITS."""
    if not isinstance(units, int) or isinstance(units, bool):
        raise TypeError(f"units of {name!r} must be an int (1/10,000 each), got {units!r}")
    if units < 0 or units > MAX_UNITS:
        raise ValueError(f"units of {name!r} must be between 0 and {MAX_UNITS}, got {units!r}")
    return units


# ----------------------------------------------------------------------------------------- runs of slots, C

cdef Slot* slot_find(Slot* slots, Py_ssize_t count, int64_t column) noexcept nogil:
    cdef Py_ssize_t low = 0, high = count, middle
    if column < count and slots[column].column == column:  # the predefined ones, mostly
        return &slots[column]
    while low < high:
        middle = (low + high) >> 1
        if slots[middle].column < column:
            low = middle + 1
        else:
            high = middle
    if low < count and slots[low].column == column:
        return &slots[low]
    return NULL


cdef bint slots_fit(Slot* slots, Py_ssize_t count, const Need* needs, Py_ssize_t need_count) noexcept nogil:
    cdef Py_ssize_t i
    cdef Slot* slot
    for i in range(need_count):
        slot = slot_find(slots, count, needs[i].column)
        if slot == NULL or slot.available < needs[i].units:
            return False
    return True


cdef bint slots_could_fit(
    Slot* slots, Py_ssize_t count, const Need* needs, Py_ssize_t need_count
) noexcept nogil:
    cdef Py_ssize_t i
    cdef Slot* slot
    for i in range(need_count):
        slot = slot_find(slots, count, needs[i].column)
        if slot == NULL or slot.total < needs[i].units:
            return False
    return True


cdef void slots_take(Slot* slots, Py_ssize_t count, const Need* needs, Py_ssize_t need_count) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(need_count):
        slot_find(slots, count, needs[i].column).available -= needs[i].units


cdef Py_ssize_t slots_give(
    Slot* slots, Py_ssize_t count, const Need* needs, Py_ssize_t need_count
) noexcept nogil:
    cdef Py_ssize_t i
    cdef Slot* slot
    for i in range(need_count):
        slot = slot_find(slots, count, needs[i].column)
        if slot == NULL or slot.available + needs[i].units > slot.total:
            return i
    for i in range(need_count):
        slot_find(slots, count, needs[i].column).available += needs[i].units
    return -1


# ---------------------------------------------------------------------------------------------- the classes

@cython.final
cdef class ResourceIndex:
    """The numbering of resource names that the vectors and requests of one node, or one cluster, share.

    A name gets a column when it is first seen. A forgotten name's column is never given out again: a request
    made before fits nowhere, and must be made anew should the name come back. 
    """

    def __cinit__(self, names=()):
        self.columns = {}
        self.names = {}
        self.next_column = 0
        for name in (*PREDEFINED, *names):
            self.column(name)

    def column(self, str name not None) -> int:
        """The column of `name`, given out now if it has none yet."""
        found = self.columns.get(name)
        if found is not None:
            return found
        column = self.next_column
        self.next_column += 1
        self.columns[name] = column
        self.names[column] = name
        return column

    def name(self, column: int) -> str:
        """The name of `column`. Raises KeyError for one that was never given out or is forgotten."""
        return self.names[column]

    def forget(self, str name not None) -> None:
        """Drops `name` (a removed placement group's, say), so that names which come and go do not pile up.

        Unknown names are ignored. Raises ValueError for a predefined one.
        """
        if name in PREDEFINED:
            raise ValueError(f"the resource {name!r} is predefined and cannot be forgotten")
        column = self.columns.pop(name, None)
        if column is not None:
            del self.names[column]

    def __contains__(self, name) -> bool:
        return name in self.columns

    def __len__(self) -> int:
        return len(self.columns)

    def __repr__(self) -> str:
        return f"ResourceIndex({list(self.columns)})"


@cython.final
cdef class ResourceRequest:
    """An immutable request against vectors of one index: what is asked of each resource, in units.

    Zeros are dropped. Raises ValueError for amounts outside 0..MAX_UNITS, TypeError for what is no int.
    """

    def __cinit__(self, ResourceIndex index not None, units):
        self.index = index
        self.needs = NULL
        self.count = 0
        pairs = sorted(
            (index.column(name), amount)
            for name, amount in dict(units).items()
            if checked_units(amount, name)
        )
        self.needs = <Need*> PyMem_Malloc(max(1, len(pairs)) * sizeof(Need))
        if self.needs == NULL:
            raise MemoryError
        for column, amount in pairs:
            self.needs[self.count].column = column
            self.needs[self.count].units = amount
            self.count += 1

    def __dealloc__(self):
        PyMem_Free(self.needs)

    def as_dict(self) -> dict:
        """What is asked, {name: units}, without zeros."""
        cdef Py_ssize_t i
        return {column_name(self.index, self.needs[i].column): self.needs[i].units for i in range(self.count)}

    def __repr__(self) -> str:
        return f"ResourceRequest({self.as_dict()})"


@cython.final
cdef class ResourceVector:
    """What one place has of each resource: the total, and of that the available part, both in units.

    Made full: everything is available. Raises ValueError for amounts outside 0..MAX_UNITS, TypeError for what
    is no int. Methods that take a request raise ValueError for one made with another index. 
    """

    def __cinit__(self, ResourceIndex index not None, units=()):
        self.index = index
        self.slots = NULL
        self.count = 0
        self.capacity = 0
        for name, amount in dict(units).items():
            if checked_units(amount, name):
                self.insert(index.column(name), amount)

    def __dealloc__(self):
        PyMem_Free(self.slots)

    cdef Slot* find(self, str name) except? NULL:
        """The slot of `name`, or NULL without an exception."""
        column = self.index.columns.get(name)
        if column is None:
            return NULL
        return slot_find(self.slots, self.count, column)

    cdef int insert(self, int64_t column, int64_t units) except -1:
        """A new slot for `column`, in its place; the caller knows that there is none."""
        cdef Py_ssize_t place = self.count, wanted
        cdef Slot* grown
        if self.count == self.capacity:
            wanted = max(4, 2 * self.capacity)
            grown = <Slot*> PyMem_Realloc(self.slots, wanted * sizeof(Slot))
            if grown == NULL:
                raise MemoryError
            self.slots = grown
            self.capacity = wanted
        while place > 0 and self.slots[place - 1].column > column:
            place -= 1
        memmove(&self.slots[place + 1], &self.slots[place], (self.count - place) * sizeof(Slot))
        self.slots[place].column = column
        self.slots[place].total = units
        self.slots[place].available = units
        self.count += 1
        return 0

    cdef int same_index(self, ResourceRequest request) except -1:
        if self.index is not request.index:
            raise ValueError("the request was made with another ResourceIndex than the vector")
        return 0

    def fits(self, ResourceRequest request not None) -> bool:
        """Whether all that `request` asks is available now."""
        self.same_index(request)
        return slots_fit(self.slots, self.count, request.needs, request.count)

    def could_fit(self, ResourceRequest request not None) -> bool:
        """Whether the totals would meet `request` if nothing were in use."""
        self.same_index(request)
        return slots_could_fit(self.slots, self.count, request.needs, request.count)

    def reserve(self, ResourceRequest request not None) -> bool:
        """Takes all that `request` asks and returns True, or takes nothing and returns False."""
        self.same_index(request)
        if not slots_fit(self.slots, self.count, request.needs, request.count):
            return False
        slots_take(self.slots, self.count, request.needs, request.count)
        return True

    def release(self, ResourceRequest request not None) -> None:
        """Gives back all that `request` asks. Raises ValueError, and changes nothing, if a total would be
        exceeded.
        """
        cdef Py_ssize_t refused
        self.same_index(request)
        refused = slots_give(self.slots, self.count, request.needs, request.count)
        if refused >= 0:
            name = column_name(self.index, request.needs[refused].column)
            raise ValueError(
                f"releasing {from_units(request.needs[refused].units)} of {name!r} would exceed the total of "
                f"{from_units(self.total(name))}: {from_units(self.available(name))} is available already "
                "(released twice?)"
            )

    def add(self, str name not None, units: int) -> None:
        """Raises the total and the available amount of `name`. Raises ValueError if the total would pass
        MAX_UNITS.
        """
        cdef int64_t amount = checked_units(units, name)
        cdef Slot* slot = self.find(name)
        if slot == NULL:
            if amount:
                self.insert(self.index.column(name), amount)
            return
        if slot.total + amount > C_MAX_UNITS:
            raise ValueError(f"the total of {name!r} cannot exceed {MAX_UNITS} units")
        slot.total += amount
        slot.available += amount

    def remove(self, str name not None, units: int) -> None:
        """Lowers both again. Raises ValueError, and changes nothing, if so much is not available."""
        cdef int64_t amount = checked_units(units, name)
        cdef Slot* slot = self.find(name)
        cdef Py_ssize_t place
        if amount == 0:
            return
        if slot == NULL or slot.available < amount:
            raise ValueError(
                f"cannot remove {from_units(units)} of {name!r}: "
                f"only {from_units(self.available(name))} is available"
            )
        slot.total -= amount
        slot.available -= amount
        if slot.total == 0:
            place = slot - self.slots
            memmove(slot, slot + 1, (self.count - place - 1) * sizeof(Slot))
            self.count -= 1

    def total(self, str name not None) -> int:
        """The total of `name` in units; 0 for a resource that is not here."""
        cdef Slot* slot = self.find(name)
        return 0 if slot == NULL else slot.total

    def available(self, str name not None) -> int:
        """What is available of `name` in units; 0 for a resource that is not here."""
        cdef Slot* slot = self.find(name)
        return 0 if slot == NULL else slot.available

    def as_dict(self) -> dict:
        """What is available, {name: units}, without what is used up."""
        cdef Py_ssize_t i
        return {
            column_name(self.index, self.slots[i].column): self.slots[i].available
            for i in range(self.count)
            if self.slots[i].available
        }

    def total_dict(self) -> dict:
        """The totals, {name: units}."""
        cdef Py_ssize_t i
        return {column_name(self.index, self.slots[i].column): self.slots[i].total for i in range(self.count)}

    def utilization(self) -> float:
        """The used share of the scarcest resource, 0.0 to 1.0 (0.0 for an empty vector)."""
        cdef double share, most = 0.0
        cdef Py_ssize_t i
        for i in range(self.count):
            share = <double> (self.slots[i].total - self.slots[i].available) / <double> self.slots[i].total
            if share > most:
                most = share
        return most

    def copy(self) -> ResourceVector:
        """An independent vector with the same totals, the same in use, and the same index."""
        cdef ResourceVector twin = ResourceVector(self.index)
        if self.count:
            twin.slots = <Slot*> PyMem_Malloc(self.count * sizeof(Slot))
            if twin.slots == NULL:
                raise MemoryError
            memcpy(twin.slots, self.slots, self.count * sizeof(Slot))
            twin.count = twin.capacity = self.count
        return twin

    def __eq__(self, other) -> bool:
        """Same totals and same available amounts, by name."""
        cdef ResourceVector that
        if not isinstance(other, ResourceVector):
            return NotImplemented
        that = other
        if self.index is that.index:
            if self.count != that.count:
                return False
            return self.count == 0 or memcmp(self.slots, that.slots, self.count * sizeof(Slot)) == 0
        return self.total_dict() == that.total_dict() and self.as_dict() == that.as_dict()

    __hash__ = None

    def __repr__(self) -> str:
        return f"ResourceVector(available={self.as_dict()}, total={self.total_dict()})"


cdef object column_name(ResourceIndex index, int64_t column):
    """The column's name, or what to call it once it is forgotten."""
    return index.names.get(column) or f"(forgotten resource {column})"


def first_fit(list vectors not None, ResourceRequest request not None, Py_ssize_t start=0) -> int:
    """The place in `vectors`, from `start` on, of the first that `request` fits into now; -1 if there is
    none.

    Raises ValueError for a vector of another index, TypeError for what is no ResourceVector (a None among
    them too). 
    """
    cdef Py_ssize_t i
    cdef ResourceVector vector
    if start < 0:
        raise ValueError(f"start must be 0 or more, got {start}")
    for i in range(start, len(vectors)):
        vector = <ResourceVector?> vectors[i]
        vector.same_index(request)
        if slots_fit(vector.slots, vector.count, request.needs, request.count):
            return i
    return -1
