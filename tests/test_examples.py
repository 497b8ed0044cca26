"""Every example runs by itself, ends in time, and prints what it is there to show."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

#: What each prints: regular expressions that must be found in its output, in this order.
PRINTED = {
    "actor_failures": [
        r"an exception: LookupError: only 100 left",
        r"and the actor lives on: 70",
        r"a constructor that fails: ValueError: no credit here",
        r"a crash: True",
        r"dead for good: ActorDiedError",
        r"a new life, from the constructor on: 90",
        r"and it knows: True",
        r"killed: True",
    ],
    "actor_order": [
        r"one submitter: 1 then 3",
        r"two submitters, as they come: 2 then 3",
        r"in the order they were asked for: \[3, 2\]",
        r"an async actor: 3 then 2",
    ],
    "actors": [
        r"one after the other: \[1, 2, 3, 4, 5\]",
        r"ten of them: \[1, 101, 201, 301, 401, 501, 601, 701, 801, 901\]",
        r"processes: 10",
        r"counted by tasks: 35 and its opposite: -35",
        r"by name: \[1001, 1002\]",
        r"called directly: .*increment\.remote",
        r"asked before the last handle went: 105",
        r"and then the process ended",
    ],
    "async_actors": [
        r"100 pages at 0\.2 s each, all at once: True",
        r"at once: 100",
        r"at once, with max_concurrency=2: 2",
        r"awaited inside: 30",
        r"in three threads: \[0, 1, 2\]",
        r"meanwhile: \['healthy', 'computed'\]",
        r"still downloading: [234]",
        r"in another group, for this once: healthy",
    ],
    "asyncio_refs": [
        r"await: one",
        r"gather: \['slow', 'fast'\]",
        r"wait: 1 done, 1 pending",
        r"wait_for: timed out",
        r"meanwhile the loop went on: True",
        r"async code in a task: \['page 0', 'page 1', 'page 2'\]",
    ],
    "concepts_objects": [
        r"One: 1\nMany: \[0, 1, 2\]",
        r"`get` timed out\.",
        r"Sum of small matrix: 10000\.0\nSum of large matrix: 1000000\.0",
        r"\(echo pid=\d+\)\S* 1 2 3",
        r"\(echo_and_get pid=\d+\)\S* args: \[ObjectRef\(\w+\), ObjectRef\(\w+\), ObjectRef\(\w+\)\]",
        r"\(echo_and_get pid=\d+\)\S* values: \[1, 2, 3\]",
        r"\(print_via_capture pid=\d+\)\S* \[1, 2, 3\]",
    ],
    "concepts_tasks": [
        r"The final result is: \[0, 1, 4, 9\]",
        r"With 3 CPUs and 2 GPUs: 1",
        r"A task on a task's result: 2",
        r"Matrix multiplication completed\. Result shape: \(1000, 1000\)",
        r"Ready: 1 Remaining: 1",
    ],
    "dependencies": [
        r"the first: \[\('the', 4\)\]",
        r"the first four: \[\('the', 4\), \('to', 4\), \('be', 3\), \('is', 3\)\]",
    ],
    "errors": [
        r"caught as ZeroDivisionError; also a TaskError: True",
        r"the last line of its story: ZeroDivisionError: division by zero",
        r"the root cause: ZeroDivisionError",
        r"result: 0\.25\nresult: none\nresult: 0\.5",
        r"retried: answered at attempt 3",
        r"crashed: WorkerCrashedError",
        r"and the runtime lives on: 0\.5",
    ],
    "futures": [
        r"done: 0\.0\ndone: 0\.5\ndone: 1\.0",
        r"called back with: 0\.1",
        r"LookupError while 1 still ran",
    ],
    "messages": [
        r"New messages: \['Message 0 from worker \d\.'",
        r"messages: 12",
        r"worker 0 in order: True\nworker 1 in order: True\nworker 2 in order: True",
    ],
    "monte_carlo_pi": [r" 7\.5 million darts: 3\.14\d+ ± 0\.0006", r"pi is 3\.142, and off by 0\.000"],
    "nested": [
        r"CPUs: 1\.0",
        r"sorted by tasks within tasks: True",
        r"six tasks deep, each waiting for the next: 6 processes",
    ],
    "nodes": [
        r"3 nodes with 5 CPUs",
        r"by name: north",
        r"by label: south",
        r"by resource: south",
        r"counted in the south: 4000000",
        r"read here: 4000000",
        r"a task began in the south",
        r"it ended elsewhere: True",
        r"nodes that live: 2",
    ],
    "objects": [
        r"put once: 80 MB",
        r"100 tasks read it, and agree: True",
        r"100 times get is 8 GB, or \d+ ms",
        r"all of them one memory: True",
        r"read-only: .*read-only",
        r"a copy is mine to change: 1\.0 while the object stays 0\.0",
        r"from task to task: 20000\.0",
        r"put again 20 times: \(100000, 100\)",
    ],
    "placement_groups": [
        r"left for others: 1.0",
        r"a task runs in the group",
        r"another runs outside",
        r"the actor's helper runs in the group",
        r"ready within half a second: False",
        r"1\.0/3\.0 CPU \(1\.0 used of 2\.0 reserved in placement groups\)",
        r"\{'CPU': 1\.0\} \* 1, \{'CPU': 2\.0\} \* 1 \(PACK\): 1\+ pending placement groups",
        r"the actor: It ended because its placement group was removed",
        r"and now there is room: True",
    ],
    "references": [
        r"as an argument: list",
        r"in a list: list of ObjectRef",
        r"in an object: Ada pays 5\.75",
        r"not there yet: \[3\.5, 2\.25\] was there first",
        r"by closure: 2\.25",
        r"returned: left by a task that has ended",
    ],
    "resources": [
        r"\{'CPU': 2\.0, 'GPU': 2\.0, 'licence': 1\.0\}",
        r"six tasks with whole CPUs: at most [12] at once",
        r"six tasks with both CPUs: at most 1 at once",
        r"six tasks with half a CPU: at most [1-4] at once",
        r"six tasks with the one licence: at most 1 at once",
        r"a GPU of its own: \[0\], CUDA_VISIBLE_DEVICES=0",
        r"a GPU of its own: \[1\], CUDA_VISIBLE_DEVICES=1",
        r"four halves of two GPUs: \[\[0\], \[0\], ",
        r"refused: .*1\.5",
    ],
    "streaming": [
        r"the sum of 20 blocks: 190",
        r"item: first - there before the second: True\nitem: second\nno more: None",
        r"got 1\ngot 2\nin the middle: LookupError: the third is missing",
        r"async for: \[0, 1, 2, 3, 4\]",
        r"held back: \[0, 1, 2\] read, made fewer than 20: True",
    ],
    "tasks": [
        r"a reference: ObjectRef\(\w+\)",
        r"its value: 9",
        r"several at once: \[0, 1, 4, 9\]",
        r"four naps of 0\.5 s took \d\.\d s, in 4 processes",
        r"named: 144",
    ],
    "tree_reduce": [r"16 arrays of 4 MB added in 4 levels: 3996513470", r"as they come, the same: True"],
    "waiting": [
        r"served: salad, still cooking: 2\nserved: soup, still cooking: 1\nserved: roast, still cooking: 0",
        r"after 0\.1 s: 0 ready, 1 not",
        r"get gave up: GetTimeoutError",
        r"patience: stew",
        r"the sum of 100 results, 8 in flight: 9900",
    ],
}


def run(example: str, *args: str, timeout_s: float = 60) -> str:
    """The output of an example; fails with all it said if it failed, or ran too long."""
    command = [sys.executable, str(EXAMPLES / f"{example}.py"), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, f"{example} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def assert_in_order(patterns: list[str], text: str) -> None:
    position = 0
    for pattern in patterns:
        match = re.compile(pattern).search(text, position)
        assert match, f"no {pattern!r} (after what comes before it) in:\n{text}"
        position = match.end()


@pytest.mark.parametrize("example", sorted(PRINTED))
def test_example(example: str) -> None:
    assert_in_order(PRINTED[example], run(example))


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("skimage", "matplotlib", "tqdm"))),
    reason="needs skate[examples]",
)
def test_photographs(tmp_path: Path) -> None:
    picture = tmp_path / "out" / "photographs.png"
    output = run("photographs", "--small", "--output", str(picture))
    assert_in_order(
        [
            r"photograph +pixels +tiles +found",
            r"Hubble deep field .* \d+ galaxies",
            r"Greek coins +160 × 160 +4 +8 coins",
            r"Printed page .* \d+ letters",
            r"\d+ things measured by 80 tasks",
            r"on skate \d+\.\d+ s · in one process \d+\.\d+ s",
            r"both gave the same numbers, to the last bit",
        ],
        output,
    )
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_photographs_helps() -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("tqdm")
    assert "--output" in run("photographs", "--help")


def test_no_example_is_forgotten() -> None:
    there = {path.stem for path in EXAMPLES.glob("*.py")}
    assert there == {*PRINTED, "photographs"}
