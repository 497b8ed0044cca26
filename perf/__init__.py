"""The perf harness: skate beside its rivals and beside the limits of the machine, in one run and in turn.

    python -m perf                                         every row, five rounds
    python -m perf --rows tasks --rivals ray,executor --rounds 3 --json out.json --plot out.png
    python -m perf --list                                  the rows, who can run them, and the bars
    python -m perf --load out.json --markdown              print an earlier run again
    python -m perf.builds OLD_PYTHON NEW_PYTHON            two builds beside each other, by CPU time a call

How it is laid out, in reading order:

    model.py        Row (a line of the table) and Measurement (the function that gives its numbers)
    pace.py         how long one measurement warms up and runs
    rows/           one script a question; a new file here is found by itself
    jobs.py         what runs in other processes; it imports nothing of the harness
    contenders/     one adapter a system; those with Ray's API share one
    child.py        one contender, in a fresh process, through one group of measurements
    warden.py       the process between: ends a child's whole tree, whatever happened
    runner.py       round-robin over contenders, rounds, time limits
    results.py      samples in, medians, spreads and ratios out; JSON
    bars.py         what must be reached
    table.py plot.py facts.py
    meter.py        a pace that counts the CPU time of a call, on both sides
    builds.py       two builds of skate, in turn
"""
