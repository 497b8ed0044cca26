"""The planted bugs where the package is compiled: compiled classes cannot be broken, so there their source is run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("greenlet", reason="the simulator's programs block in greenlets: pip install skate[test]")

from simulator.seams import is_compiled

#: modules of skate are looked for as Python first, then as extensions
SOURCES_FIRST = """
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder, SourceFileLoader

class SourcesFirst:
    @staticmethod
    def find_spec(name, path, target=None):
        for entry in path if name.startswith("skate.") else ():
            loaders = (SourceFileLoader, [".py"]), (ExtensionFileLoader, EXTENSION_SUFFIXES)
            spec = FileFinder(entry, *loaders).find_spec(name)
            if spec is not None:
                return spec

sys.meta_path.insert(0, SourcesFirst)
import pytest
sys.exit(pytest.main([*sys.argv[1:], "-q", "-p", "no:cacheprovider"]))
"""


@pytest.mark.skipif(not is_compiled(), reason="the package is not compiled: the tests themselves do")
@pytest.mark.timeout(120)
def test_the_checkers_catch_planted_bugs() -> None:
    checkers = Path(__file__).with_name("test_checkers.py")
    done = subprocess.run(
        [sys.executable, "-c", SOURCES_FIRST, str(checkers)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "skipped" not in done.stdout
