"""A cluster of skate in one thread: the product's own code behind a simulated network, clock and zygote, from a seed.

What runs is what users run: node managers, drivers' and workers' runtimes, executors, and programs written against the
public API. What is replaced is named in `seams`: the clock, sockets, the kernel's processes and files, chance; and the
arena is plain memory (`arena`).

    world       events in the order of their times, fibers, the seed, the trace
    seams       what of the product is replaced while a world runs
    network     messages inside a node, connections between nodes, and what may go wrong with them
    process     a process that owns objects: a driver or a worker
    node        a node: its manager, its zygote, its store
    cluster     many nodes, their starts and deaths
    faults      what goes wrong, and when
    workload    the programs that drivers run, and what they must get
    checkers    what must hold at any time, and what must be true once all is quiet
    scenario    all of this, from one seed; `python -m simulator` runs one again
"""
