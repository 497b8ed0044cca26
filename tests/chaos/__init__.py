"""Everything at once, in real processes that are killed at random: `PYTHONPATH=tests python -m chaos --seeds 1-10`.

A run (`run.py`, a process of its own) starts skate on one node or three, has every load of `loads.py` run in a thread
of the driver, and meanwhile kills workers and node managers, and stops some for a while (`kills.py`). Each `get` is
bounded in time and its value is known; an error must be one that a kill explains. Then the loads end, and everything
must settle (`aftermath.py`): all resources free, stores and tables empty, every machine's `check()` passed, and after
`shutdown` nothing left.

What is chosen at random comes from the seed; what the kernel does with it does not, so the same seed fails often, not
always. The folder of a run that failed is kept: what the driver printed, and each node's node.log.
"""
