# The calls that change an arena, and what they are made of: C that runs under the mutex, without the GIL, and makes no
# system call. Part of arena.pyx, whose first page says why it may be killed anywhere.

# ---- transactions -------------------------------------------------------------------------------------

cdef inline void put(View* v, uint64_t* where, uint64_t value) noexcept nogil:
    """The only way a shared word changes: old value to the journal, count it, change the word."""
    cdef Header* h = v.h
    cdef uint64_t n = h.journal_used
    if n == JOURNAL_ENTRIES:
        abort()  # cannot happen (see JOURNAL_ENTRIES); if it did, dying here lets the next process undo
    fault()
    h.journal[n].where = <uint64_t>(<char*>where - v.base)
    h.journal[n].old = where[0]
    barrier()
    h.journal_used = n + 1
    barrier()
    fault()
    where[0] = value
    fault()


cdef inline void add(View* v, uint64_t* where, uint64_t amount) noexcept nogil:
    put(v, where, where[0] + amount)


cdef inline void subtract(View* v, uint64_t* where, uint64_t amount) noexcept nogil:
    put(v, where, where[0] - amount)


cdef inline void commit(View* v) noexcept nogil:
    barrier()
    v.h.journal_used = 0
    barrier()


cdef void undo(View* v) noexcept nogil:
    """Write the old values back, newest first; the count goes to zero last, so this may be cut short and repeated."""
    cdef uint64_t i = v.h.journal_used
    while i > 0:
        i -= 1
        fault()
        (<uint64_t*>(v.base + v.h.journal[i].where))[0] = v.h.journal[i].old
    commit(v)


cdef int settle(View* v, int rc) noexcept nogil:
    """After any attempt at the mutex: repair what a dead holder left."""
    if rc == EOWNERDEAD:
        undo(v)
        v.h.recoveries += 1
        fault()
        rc = pthread_mutex_consistent(&v.h.mutex)
        fault()
    return rc


cdef int try_lock(View* v) noexcept nogil:
    """Takes the mutex if it becomes free within a few microseconds; EBUSY if not."""
    cdef int i, rc = EBUSY
    for i in range(SPINS):
        rc = pthread_mutex_trylock(&v.h.mutex)
        if rc != EBUSY:
            return settle(v, rc)
        pause()
    return rc


cdef int finish(View* v, Op op, Request* r) noexcept nogil:
    """With the mutex held: the call, commit or undo, unlock."""
    fault()
    cdef int rc = op(v, r)
    if rc < 0:
        undo(v)
    else:
        commit(v)
    fault()
    pthread_mutex_unlock(&v.h.mutex)
    fault()
    return rc


# ---- lists and tables ---------------------------------------------------------------------------------

cdef inline uint64_t bin_of(uint64_t size) noexcept nogil:
    """Number of the bin for blocks of `size` bytes: 32 linear steps within each power of two."""
    cdef uint64_t n = size // UNIT
    cdef int top
    if n < BIN_COLUMNS:
        return n
    top = highest_bit(n)
    return <uint64_t>(top - 4) * BIN_COLUMNS + ((n >> (top - 5)) & (BIN_COLUMNS - 1))


cdef void bin_insert(View* v, uint64_t b) noexcept nogil:
    cdef Header* h = v.h
    cdef Block* block = &v.blocks[b]
    cdef uint64_t i = bin_of(block.size)
    cdef uint64_t first = h.bins[i]
    put(v, &block.list_prev, 0)
    put(v, &block.list_next, first)
    if first:
        put(v, &v.blocks[first].list_prev, b)
    else:
        put(v, &h.columns[i // BIN_COLUMNS], h.columns[i // BIN_COLUMNS] | (<uint64_t>1 << (i % BIN_COLUMNS)))
        put(v, &h.rows, h.rows | (<uint64_t>1 << (i // BIN_COLUMNS)))
    put(v, &h.bins[i], b)
    add(v, &h.free_blocks, 1)


cdef void bin_remove(View* v, uint64_t b) noexcept nogil:
    cdef Header* h = v.h
    cdef Block* block = &v.blocks[b]
    cdef uint64_t i = bin_of(block.size)
    if block.list_next:
        put(v, &v.blocks[block.list_next].list_prev, block.list_prev)
    if block.list_prev:
        put(v, &v.blocks[block.list_prev].list_next, block.list_next)
    else:
        put(v, &h.bins[i], block.list_next)
        if not block.list_next:
            put(v, &h.columns[i // BIN_COLUMNS], h.columns[i // BIN_COLUMNS] & ~(<uint64_t>1 << (i % BIN_COLUMNS)))
            if not h.columns[i // BIN_COLUMNS]:
                put(v, &h.rows, h.rows & ~(<uint64_t>1 << (i // BIN_COLUMNS)))
    subtract(v, &h.free_blocks, 1)


cdef void idle_append(View* v, uint64_t b) noexcept nogil:
    """A sealed object lost its last pin: it is the newest of those that may be spilled."""
    cdef Header* h = v.h
    add(v, &h.clock, 1)
    put(v, &v.blocks[b].age, h.clock)
    put(v, &v.blocks[b].list_prev, h.idle_newest)
    put(v, &v.blocks[b].list_next, 0)
    if h.idle_newest:
        put(v, &v.blocks[h.idle_newest].list_next, b)
    else:
        put(v, &h.idle_oldest, b)
    put(v, &h.idle_newest, b)


cdef void idle_remove(View* v, uint64_t b) noexcept nogil:
    cdef Header* h = v.h
    cdef Block* block = &v.blocks[b]
    if block.list_prev:
        put(v, &v.blocks[block.list_prev].list_next, block.list_next)
    else:
        put(v, &h.idle_oldest, block.list_next)
    if block.list_next:
        put(v, &v.blocks[block.list_next].list_prev, block.list_prev)
    else:
        put(v, &h.idle_newest, block.list_prev)


cdef inline uint64_t* bucket_of(View* v, const uint64_t* id) noexcept nogil:
    # Ids are a process id and counters: multiply so that near ids fall far apart, and use the well-mixed high bits.
    cdef uint64_t x = id[0] * <uint64_t>0x9e3779b97f4a7c15
    x = (x ^ (x >> 29) ^ id[1]) * <uint64_t>0xbf58476d1ce4e5b9
    x = (x ^ (x >> 32) ^ id[2]) * <uint64_t>0x94d049bb133111eb
    return &v.buckets[(x >> 24) & v.h.bucket_mask]


cdef uint64_t lookup(View* v, const uint64_t* id) noexcept nogil:
    """The block of the object with that id, in state MAKING or SEALED; 0 if there is none."""
    cdef uint64_t b = bucket_of(v, id)[0]
    cdef Block* block
    while b:
        block = &v.blocks[b]
        if block.id[0] == id[0] and block.id[1] == id[1] and block.id[2] == id[2]:
            return b
        b = block.hash_next
    return 0


cdef void hash_remove(View* v, uint64_t b) noexcept nogil:
    cdef uint64_t* link = bucket_of(v, v.blocks[b].id)
    while link[0] != b:
        link = &v.blocks[link[0]].hash_next
    put(v, link, v.blocks[b].hash_next)


cdef uint64_t row_take(View* v) noexcept nogil:
    """A free row of the block table. op_allocate has made sure that there are enough."""
    cdef Header* h = v.h
    cdef uint64_t b = h.blocks_free
    if b:
        put(v, &h.blocks_free, v.blocks[b].list_next)
    else:
        b = h.blocks_mark + 1
        put(v, &h.blocks_mark, b)
    return b


cdef void row_give(View* v, uint64_t b) noexcept nogil:
    put(v, &v.blocks[b].state, UNUSED)
    put(v, &v.blocks[b].list_next, v.h.blocks_free)
    put(v, &v.h.blocks_free, b)


# ---- allocator ----------------------------------------------------------------------------------------

cdef void link_after(View* v, uint64_t before, uint64_t b) noexcept nogil:
    """Put block b behind `before` (0: at the very start) in the order of the data."""
    cdef uint64_t after = v.blocks[before].after if before else 0
    put(v, &v.blocks[b].before, before)
    put(v, &v.blocks[b].after, after)
    if before:
        put(v, &v.blocks[before].after, b)
    if after:
        put(v, &v.blocks[after].before, b)
    else:
        put(v, &v.h.last_block, b)


cdef void absorb(View* v, uint64_t b, uint64_t after) noexcept nogil:
    """Block b takes over its neighbour `after`, which is free and in no bin any more."""
    cdef uint64_t next_ = v.blocks[after].after
    add(v, &v.blocks[b].size, v.blocks[after].size)
    put(v, &v.blocks[b].after, next_)
    if next_:
        put(v, &v.blocks[next_].before, b)
    else:
        put(v, &v.h.last_block, b)
    row_give(v, after)


cdef uint64_t look_in_bin(View* v, uint64_t i, uint64_t need, uint64_t limit) noexcept nogil:
    cdef uint64_t b = v.h.bins[i]
    while b and limit:
        if v.blocks[b].size >= need:
            return b
        b = v.blocks[b].list_next
        limit -= 1
    return 0


cdef uint64_t larger_bin(View* v, uint64_t i) noexcept nogil:
    """First block of the first bin above bin i: every block there is large enough for any size of bin i."""
    cdef Header* h = v.h
    cdef uint64_t row = i // BIN_COLUMNS
    cdef uint64_t bits = h.columns[row] & (~<uint64_t>0 << (i % BIN_COLUMNS)) & ~(<uint64_t>1 << (i % BIN_COLUMNS))
    if not bits:
        bits = h.rows & (~<uint64_t>0 << row) & ~(<uint64_t>1 << row)
        if not bits:
            return 0
        row = lowest_bit(bits)
        bits = h.columns[row]
    return h.bins[row * BIN_COLUMNS + lowest_bit(bits)]


cdef uint64_t fit(View* v, uint64_t need) noexcept nogil:
    """A free block for `need` bytes. Any used before comes ahead of fresh memory, whose first touch is so dear."""
    cdef uint64_t i = bin_of(need)
    cdef uint64_t b = look_in_bin(v, i, need, LOOK_FIRST)
    if not b:
        b = larger_bin(v, i)
    if not b:
        b = look_in_bin(v, i, need, LOOK_MORE)
    return b


cdef uint64_t tail_bytes(View* v) noexcept nogil:
    """Bytes free just below the mark."""
    cdef uint64_t last = v.h.last_block
    return v.blocks[last].size if last and v.blocks[last].state == FREE else 0


cdef uint64_t largest_free(View* v, uint64_t limit) noexcept nogil:
    cdef Header* h = v.h
    cdef uint64_t best = (limit - h.top if limit > h.top else 0) + tail_bytes(v)
    cdef uint64_t row, b
    if h.rows:
        row = highest_bit(h.rows)
        b = h.bins[row * BIN_COLUMNS + highest_bit(h.columns[row])]
        while b:
            best = max(best, v.blocks[b].size)
            b = v.blocks[b].list_next
    return best


cdef uint64_t extend(View* v, uint64_t need) noexcept nogil:
    """A block from the memory beyond the mark (and what is free just below); the caller has checked the room."""
    cdef Header* h = v.h
    cdef uint64_t b = h.last_block
    cdef uint64_t tail = tail_bytes(v)
    cdef uint64_t top = h.top - tail + need
    if tail:
        bin_remove(v, b)
        put(v, &v.blocks[b].size, need)
    else:
        b = row_take(v)
        put(v, &v.blocks[b].offset, h.top)
        put(v, &v.blocks[b].size, need)
        link_after(v, h.last_block, b)
    put(v, &h.top, top)
    return b


cdef void split(View* v, uint64_t b, uint64_t need) noexcept nogil:
    """Cut block b to `need` bytes; the rest becomes a free block."""
    cdef uint64_t rest, size = v.blocks[b].size
    if size == need:
        return
    rest = row_take(v)
    put(v, &v.blocks[rest].state, FREE)
    put(v, &v.blocks[rest].offset, v.blocks[b].offset + need)
    put(v, &v.blocks[rest].size, size - need)
    put(v, &v.blocks[b].size, need)
    link_after(v, b, rest)
    bin_insert(v, rest)


cdef void free_block(View* v, uint64_t b) noexcept nogil:
    """An object's block becomes free and joins free neighbours; it goes to the front of its bin."""
    cdef Header* h = v.h
    cdef Block* block = &v.blocks[b]
    cdef uint64_t before = block.before, after = block.after
    subtract(v, &h.objects, 1)
    subtract(v, &h.used, block.size)
    put(v, &block.state, FREE)
    if after and v.blocks[after].state == FREE:
        bin_remove(v, after)
        absorb(v, b, after)
    if before and v.blocks[before].state == FREE:
        bin_remove(v, before)
        absorb(v, before, b)
        b = before
    bin_insert(v, b)


# ---- pins ---------------------------------------------------------------------------------------------

cdef void pin(View* v, uint64_t b, uint64_t slot) noexcept nogil:
    """One more pin of process `slot` on block b. The caller has made sure that a row is there."""
    cdef Header* h = v.h
    cdef Block* block = &v.blocks[b]
    cdef uint64_t p = block.pin_first
    if not block.pins:
        add(v, &h.pinned, block.size)
        if block.state == SEALED:
            idle_remove(v, b)
    add(v, &block.pins, 1)
    while p:
        if v.pins[p].slot == slot:
            add(v, &v.pins[p].count, 1)
            return
        p = v.pins[p].block_next
    p = h.pins_free
    if p:
        put(v, &h.pins_free, v.pins[p].block_next)
    else:
        p = h.pins_mark + 1
        put(v, &h.pins_mark, p)
    put(v, &v.pins[p].block, b)
    put(v, &v.pins[p].slot, slot)
    put(v, &v.pins[p].count, 1)
    put(v, &v.pins[p].block_next, block.pin_first)
    put(v, &block.pin_first, p)
    put(v, &v.pins[p].slot_prev, 0)
    put(v, &v.pins[p].slot_next, v.slots[slot].pins)
    if v.slots[slot].pins:
        put(v, &v.pins[v.slots[slot].pins].slot_prev, p)
    put(v, &v.slots[slot].pins, p)


cdef void unpin(View* v, uint64_t b, uint64_t slot, uint64_t count) noexcept nogil:
    """Take `count` pins of process `slot` off block b. The last pin of all makes it idle, or frees it."""
    cdef Header* h = v.h
    cdef Block* block = &v.blocks[b]
    cdef uint64_t* link = &block.pin_first
    cdef Pin* row
    cdef uint64_t p
    while link[0] and v.pins[link[0]].slot != slot:
        link = &v.pins[link[0]].block_next
    p = link[0]
    if not p:
        return  # only after `bury` of a living process, which bury refuses
    row = &v.pins[p]
    subtract(v, &block.pins, count)
    subtract(v, &row.count, count)
    if not row.count:
        put(v, link, row.block_next)
        if row.slot_next:
            put(v, &v.pins[row.slot_next].slot_prev, row.slot_prev)
        if row.slot_prev:
            put(v, &v.pins[row.slot_prev].slot_next, row.slot_next)
        else:
            put(v, &v.slots[slot].pins, row.slot_next)
        put(v, &row.block, 0)
        put(v, &row.block_next, h.pins_free)
        put(v, &h.pins_free, p)
    if not block.pins:
        subtract(v, &h.pinned, block.size)
        if block.state == DOOMED:
            free_block(v, b)
        elif block.state == SEALED:
            idle_append(v, b)


cdef bint rows_wanted(View* v, Request* r, uint64_t blocks) noexcept nogil:
    """Whether memory must be reserved before a call that may use so many more blocks, and one more pin."""
    cdef Header* h = v.h
    r.want_blocks = min(h.blocks_mark + blocks, h.max_blocks)
    r.want_pins = min(h.pins_mark + 1, h.max_pins)
    return r.want_blocks > h.blocks_reserved or r.want_pins > h.pins_reserved


# ---- calls under the mutex ----------------------------------------------------------------------------

cdef int op_allocate(View* v, Request* r) noexcept nogil:
    cdef Header* h = v.h
    cdef Block* block
    cdef uint64_t b, top, need = max(<uint64_t>UNIT, (r.length + UNIT - 1) & ~<uint64_t>(UNIT - 1))
    cdef uint64_t* bucket
    cdef int i
    if lookup(v, r.id):
        return EXISTS
    if h.objects >= h.max_objects or (not h.pins_free and h.pins_mark == h.max_pins):
        return TABLE_FULL
    r.want_data = 0
    if rows_wanted(v, r, 2):
        return TABLE_FULL if r.fixed else GROW
    b = fit(v, need) if need <= h.capacity else 0
    if b:
        bin_remove(v, b)
        split(v, b, need)
    else:
        top = h.top - tail_bytes(v) + need
        if need > h.capacity or top > r.limit:
            b = look_in_bin(v, bin_of(need), need, h.free_blocks) if need <= h.capacity else 0
            if not b:
                r.largest_free = largest_free(v, r.limit)
                return FULL
            bin_remove(v, b)
            split(v, b, need)
        elif top > h.data_reserved:
            r.want_data = top
            return GROW
        else:
            b = extend(v, need)
    block = &v.blocks[b]
    put(v, &block.state, MAKING)
    put(v, &block.length, r.length)
    put(v, &block.pins, 0)
    put(v, &block.pin_first, 0)
    put(v, &block.creator, v.slots[r.slot].pid)
    put(v, &block.copied, 0)
    add(v, &h.clock, 1)
    put(v, &block.age, h.clock)
    for i in range(ID_WORDS):
        put(v, &block.id[i], r.id[i])
    put(v, &block.owner_length, r.owner_length)
    for i in range(OWNER_WORDS):
        put(v, &block.owner[i], r.owner[i])
    bucket = bucket_of(v, r.id)
    put(v, &block.hash_next, bucket[0])
    put(v, bucket, b)
    add(v, &h.objects, 1)
    add(v, &h.used, need)
    if h.used > h.used_peak:
        put(v, &h.used_peak, h.used)
    pin(v, b, r.slot)
    r.block = b
    return DONE


cdef int op_get(View* v, Request* r) noexcept nogil:
    cdef Header* h = v.h
    cdef uint64_t b = lookup(v, r.id)
    if not b or v.blocks[b].state != SEALED:
        return ABSENT
    if not h.pins_free and h.pins_mark == h.max_pins:
        return TABLE_FULL
    r.want_data = 0
    if rows_wanted(v, r, 0):
        return TABLE_FULL if r.fixed else GROW
    pin(v, b, r.slot)
    r.block = b
    return DONE


cdef int op_contains(View* v, Request* r) noexcept nogil:
    cdef uint64_t b = lookup(v, r.id)
    return DONE if b and v.blocks[b].state == SEALED else ABSENT


cdef int op_seal(View* v, Request* r) noexcept nogil:
    cdef bint gone = v.blocks[r.block].state == DOOMED
    if not gone:
        put(v, &v.blocks[r.block].state, SEALED)
        if r.copied:
            put(v, &v.blocks[r.block].copied, 1)
    unpin(v, r.block, r.slot, 1)
    return GONE if gone else DONE


cdef int op_release(View* v, Request* r) noexcept nogil:
    unpin(v, r.block, r.slot, 1)
    return DONE


cdef void doom(View* v, uint64_t b) noexcept nogil:
    """The object is no more for anyone who asks; its id may be used again at once."""
    hash_remove(v, b)
    if v.blocks[b].pins:
        put(v, &v.blocks[b].state, DOOMED)
    else:
        idle_remove(v, b)
        free_block(v, b)


cdef int op_doom(View* v, Request* r) noexcept nogil:
    """The maker of block r.block gives it up while views of it are alive."""
    if v.blocks[r.block].state == MAKING:
        doom(v, r.block)
    return DONE


cdef int op_delete(View* v, Request* r) noexcept nogil:
    cdef uint64_t b = lookup(v, r.id)
    if not b:
        return ABSENT
    r.copied = v.blocks[b].copied != 0 or v.blocks[b].state != SEALED  # it may be on its way back from a copy
    doom(v, b)
    return DONE


cdef int op_evict(View* v, Request* r) noexcept nogil:
    """Delete block r.block, of which the caller has a pin and a copy; where others have pins too, note the copy."""
    cdef Block* block = &v.blocks[r.block]
    if block.state != SEALED:
        return ABSENT
    if block.pins != 1:
        put(v, &block.copied, 1)
        return IN_USE
    doom(v, r.block)
    return DONE


cdef int op_join(View* v, Request* r) noexcept nogil:
    cdef Header* h = v.h
    cdef uint64_t s = 1
    while s <= h.slots_mark and v.slots[s].pid:
        s += 1
    if s > h.max_processes:
        return NO_SLOT
    if s > h.slots_mark:
        put(v, &h.slots_mark, s)
    put(v, &v.slots[s].pid, r.pid)
    put(v, &v.slots[s].start, r.start)
    put(v, &v.slots[s].pins, 0)
    r.slot = s
    return DONE


cdef int op_bury(View* v, Request* r) noexcept nogil:
    """Take back everything of slot r.slot if it still is process (r.pid, r.start): a transaction for each pin."""
    cdef Slot* slot = &v.slots[r.slot]
    cdef uint64_t b, count
    r.taken = 0
    if slot.pid != r.pid or slot.start != r.start:
        return ABSENT
    while slot.pins:
        b = v.pins[slot.pins].block
        count = v.pins[slot.pins].count
        if v.blocks[b].state == MAKING:
            doom(v, b)
        unpin(v, b, r.slot, count)
        commit(v)
        r.taken += count
    put(v, &slot.pid, 0)
    return DONE


cdef int op_reserved(View* v, Request* r) noexcept nogil:
    """Memory up to r.want_* has been reserved. Others may have got further meanwhile."""
    if r.want_data > v.h.data_reserved:
        put(v, &v.h.data_reserved, r.want_data)
    if r.want_blocks > v.h.blocks_reserved:
        put(v, &v.h.blocks_reserved, r.want_blocks)
    if r.want_pins > v.h.pins_reserved:
        put(v, &v.h.pins_reserved, r.want_pins)
    return DONE


cdef int op_victims(View* v, Request* r) noexcept nogil:
    cdef Block* rows = <Block*>r.room
    cdef uint64_t b = v.h.idle_oldest, bytes_ = 0
    r.taken = 0
    while b and bytes_ < r.bytes and r.taken < r.room_rows:
        rows[r.taken] = v.blocks[b]
        bytes_ += v.blocks[b].size
        r.taken += 1
        b = v.blocks[b].list_next
    return DONE


cdef int op_header(View* v, Request* r) noexcept nogil:
    memcpy(r.room, v.h, sizeof(Header))
    r.largest_free = largest_free(v, v.h.capacity)
    return DONE


cdef int op_snapshot(View* v, Request* r) noexcept nogil:
    """Copy what is in use of all tables to r.room, laid out as in the arena."""
    cdef Header* h = v.h
    cdef char* room = <char*>r.room
    memcpy(room, v.base, h.blocks_offset + (h.blocks_mark + 1) * sizeof(Block))
    memcpy(room + h.pins_offset, v.pins, (h.pins_mark + 1) * sizeof(Pin))
    return DONE
