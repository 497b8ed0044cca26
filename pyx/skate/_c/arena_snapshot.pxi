# Listings of an arena, and its check. Part of arena.pyx.

# ---- looking at a copy --------------------------------------------------------------------------------

@cython.final
cdef class Snapshot:
    """A private copy of an arena's tables, for listings and for check: nobody waits while Python walks it."""
    cdef View v
    cdef size_t room

    def __init__(self, Arena arena):
        cdef Request r
        cdef char* base
        # As large as the tables could be, in memory that costs nothing until it is written.
        self.room = arena.v.h.data_offset
        base = <char*>mmap(NULL, self.room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if base == <char*>MAP_FAILED:
            raise MemoryError("no address space for a copy of the arena's tables")
        self.v.base = base
        memset(&r, 0, sizeof(r))
        r.room = base
        if arena.run(op_snapshot, &r) != DONE:
            raise ArenaError("the arena's mutex is broken: its memory was overwritten")
        self.v.h = <Header*>base
        self.v.slots = <Slot*>(base + self.v.h.slots_offset)
        self.v.buckets = <uint64_t*>(base + self.v.h.buckets_offset)
        self.v.blocks = <Block*>(base + self.v.h.blocks_offset)
        self.v.pins = <Pin*>(base + self.v.h.pins_offset)

    def __dealloc__(self):
        if self.v.base != NULL:
            munmap(self.v.base, self.room)

    def objects(self):
        cdef View* v = &self.v
        cdef Block* block
        cdef uint64_t b, p
        rows = []
        b = v.h.last_block
        while b:
            block = &v.blocks[b]
            if block.state != FREE:
                pins = {}
                p = block.pin_first
                while p:
                    pid = v.slots[v.pins[p].slot].pid
                    pins[pid] = pins.get(pid, 0) + v.pins[p].count
                    p = v.pins[p].block_next
                rows.append({
                    "id": PyBytes_FromStringAndSize(<char*>block.id, 20),
                    "size": block.length,
                    "block_size": block.size,
                    "sealed": block.state == SEALED,
                    "doomed": block.state == DOOMED,
                    "pins": pins,
                    "owner": PyBytes_FromStringAndSize(<char*>block.owner, block.owner_length),
                    "creator": block.creator,
                    "age": block.age,
                })
            b = block.before
        rows.sort(key=lambda row: row["age"])
        return rows

    def check(self):
        """The invariants of arena.pxd, one by one. The order matters: chains are followed only once proven finite."""
        v = self.v.h
        need(v.journal_used == 0, "the journal is empty between calls")
        need(v.top <= v.data_reserved <= v.capacity, "the mark is within reserved memory, that within the capacity")
        need(v.blocks_mark <= v.blocks_reserved <= v.max_blocks, "block rows in use are reserved")
        need(v.pins_mark <= v.pins_reserved <= v.max_pins, "pin rows in use are reserved")
        need(v.slots_mark <= v.max_processes, "slots in use exist")
        state = self.check_data()
        self.check_bins(state)
        self.check_names(state)
        self.check_idle(state)
        self.check_pins(state)

    cdef dict check_data(self):
        """Blocks cover [0, top) without gap, never two free ones in a row; unused rows are all in their list."""
        cdef View* v = &self.v
        cdef Header* h = v.h
        cdef Block* block
        cdef uint64_t b = h.last_block, after = 0, edge = h.top, used = 0, pinned = 0
        state = {}
        while b:
            need(0 < b <= h.blocks_mark and b not in state, f"block {b} is a row in use, met once in the data")
            block = &v.blocks[b]
            need(block.state in (FREE, MAKING, SEALED, DOOMED), f"block {b} has a state of a block, not {block.state}")
            need(block.after == after, f"block {b} knows the block behind it")
            need(block.size >= UNIT and block.size % UNIT == 0, f"block {b} has a whole number of units")
            need(block.offset + block.size == edge, f"block {b} ends where the next begins")
            if block.state == FREE:
                need(not after or state[after] != FREE, f"free blocks {b} and {after} are joined")
            else:
                need(block.length <= block.size, f"object {b} fits into its block")
                used += block.size
                pinned += block.size if block.pins else 0
            state[b] = block.state
            edge = block.offset
            after = b
            b = block.before
        need(edge == 0, "blocks begin at offset 0")
        need(used == h.used and pinned == h.pinned, "the sums of used and pinned bytes are right")
        need(h.used <= h.used_peak <= h.capacity, "the peak is no less than now")
        need(h.objects == sum(s != FREE for s in state.values()), "the number of objects is right")
        unused = set()
        b = h.blocks_free
        while b:
            need(0 < b <= h.blocks_mark and b not in state and b not in unused, f"row {b} is unused and listed once")
            need(v.blocks[b].state == UNUSED, f"row {b} says that it is unused")
            unused.add(b)
            b = v.blocks[b].list_next
        need(len(unused) + len(state) == h.blocks_mark, "every row is a block or unused")
        return state

    cdef int check_bins(self, dict state) except -1:
        """Every free block is in the bin of its size, and the bitmaps say which bins have any."""
        cdef View* v = &self.v
        cdef Header* h = v.h
        cdef uint64_t i, b, before
        met = set()
        for i in range(BIN_ROWS * BIN_COLUMNS):
            b = h.bins[i]
            need(bool(b) == bool(h.columns[i // BIN_COLUMNS] >> (i % BIN_COLUMNS) & 1), f"bit of bin {i}")
            before = 0
            while b:
                need(state.get(b) == FREE and b not in met, f"block {b} in bin {i} is free and in one bin")
                need(bin_of(v.blocks[b].size) == i, f"block {b} is in the bin of its size")
                need(v.blocks[b].list_prev == before, f"block {b} knows the one before it in its bin")
                met.add(b)
                before = b
                b = v.blocks[b].list_next
        for i in range(BIN_ROWS):
            need(bool(h.columns[i]) == bool(h.rows >> i & 1), f"bit of row {i}")
        need(len(met) == h.free_blocks == sum(s == FREE for s in state.values()), "all free blocks are in bins")
        return 0

    cdef int check_names(self, dict state) except -1:
        """The hash table holds exactly the objects that are being made or sealed, each in its bucket, ids unique."""
        cdef View* v = &self.v
        cdef uint64_t i, b
        met = set()
        names = set()
        for i in range(v.h.bucket_mask + 1):
            b = v.buckets[i]
            while b:
                need(state.get(b) in (MAKING, SEALED) and b not in met, f"block {b} in bucket {i} has a name, once")
                need(bucket_of(v, v.blocks[b].id) == &v.buckets[i], f"block {b} is in its bucket")
                met.add(b)
                names.add(PyBytes_FromStringAndSize(<char*>v.blocks[b].id, 8 * ID_WORDS))
                b = v.blocks[b].hash_next
        need(len(met) == len(names) == sum(s in (MAKING, SEALED) for s in state.values()), "all names are unique")
        return 0

    cdef int check_idle(self, dict state) except -1:
        """The idle list holds exactly the sealed objects without a pin, ages rising."""
        cdef View* v = &self.v
        cdef uint64_t b = v.h.idle_oldest, before = 0
        met = set()
        while b:
            need(state.get(b) == SEALED and not v.blocks[b].pins and b not in met, f"block {b} is idle, listed once")
            need(v.blocks[b].list_prev == before, f"block {b} knows the idle one before it")
            need(not before or v.blocks[before].age < v.blocks[b].age, f"block {b} is younger than {before}")
            met.add(b)
            before = b
            b = v.blocks[b].list_next
        need(before == v.h.idle_newest, "the idle list ends at its newest")
        need(len(met) == sum(s == SEALED and not v.blocks[<uint64_t>b_].pins for b_, s in state.items()),
             "every idle object is listed")
        return 0

    cdef int check_pins(self, dict state) except -1:
        """Each pin row is in the list of its object and of its process, or free; counts add up; states match."""
        cdef View* v = &self.v
        cdef Header* h = v.h
        cdef uint64_t b, p, s, before, total
        of_blocks = set()
        for b_, kind in state.items():
            b = b_
            if kind == FREE:
                continue
            total = 0
            slots = set()
            p = v.blocks[b].pin_first
            while p:
                need(0 < p <= h.pins_mark and p not in of_blocks, f"pin {p} is a row in use, of one object")
                need(v.pins[p].block == b and v.pins[p].count > 0, f"pin {p} is on block {b}")
                need(0 < v.pins[p].slot <= h.slots_mark and v.pins[p].slot not in slots, f"pin {p} is a process's only")
                of_blocks.add(p)
                slots.add(v.pins[p].slot)
                total += v.pins[p].count
                p = v.pins[p].block_next
            need(total == v.blocks[b].pins, f"the pins of block {b} add up")
            need(kind != MAKING or total == 1, f"unsealed block {b} has its maker's pin alone")
            need(kind != DOOMED or total > 0, f"doomed block {b} has a pin")
        met = set()
        for s in range(1, h.slots_mark + 1):
            p = v.slots[s].pins
            before = 0
            need(v.slots[s].pid or not p, f"free slot {s} has no pins")
            while p:
                need(p in of_blocks and p not in met and v.pins[p].slot == s, f"pin {p} is of slot {s}")
                need(v.pins[p].slot_prev == before, f"pin {p} knows the one before it")
                met.add(p)
                before = p
                p = v.pins[p].slot_next
        need(met == of_blocks, "every pin is of a process")
        p = h.pins_free
        while p:
            need(0 < p <= h.pins_mark and p not in met and v.pins[p].block == 0, f"pin row {p} is free, listed once")
            met.add(p)
            p = v.pins[p].block_next
        need(len(met) == h.pins_mark, "every pin row is in use or free")
        return 0


cdef int need(bint holds, str what) except -1:
    if not holds:
        raise ArenaError(f"the arena is broken; this does not hold: {what}")
    return 0
