"""More actors than the limits that a process begins with."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(60)

PROGRAM = """
import resource, skate
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
skate.init(num_cpus=2)

@skate.remote
class Small:
    def answer(self):
        return 1

actors = [Small.remote() for _ in range(60)]
print(sum(skate.get([actor.answer.remote() for actor in actors])))
del actors
skate.shutdown()
"""


def test_the_limit_of_open_descriptors_grows() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.stdout == "60\n", done.stderr
