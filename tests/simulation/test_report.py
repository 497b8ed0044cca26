"""The report on how scheduling grows: `python -m perf.simulation`, on a few nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("greenlet", reason="the simulator's programs block in greenlets: pip install skate[test]")

ROOT = Path(__file__).parent.parent.parent


def test_a_report_of_a_few_nodes(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    command = [sys.executable, "-m", "perf.simulation", "--nodes", "1,3", "--tasks", "60", "--markdown"]
    done = subprocess.run(
        [*command, "--json", str(path)], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True
    )
    reports = json.loads(path.read_text())["reports"]
    assert [report["nodes"] for report in reports] == [1, 3]
    for report in reports:
        assert report["tasks"] == 60
        assert report["decisions"] > 0
        assert report["messages_per_task"] > 1
        assert report["imbalance"] >= 1
        assert report["simulated_seconds"] >= report["ideal_seconds"]
    assert done.stdout.startswith("| nodes |")
    assert len(done.stdout.splitlines()) == 4
