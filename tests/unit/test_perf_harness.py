"""The perf harness's pure parts: rows, statistics, bars, table, command line. Starts no contender."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from perf import bars, builds, contenders, procs, rows, runner, stats, table  # noqa: E402
from perf.__main__ import UsageError, choose, listing, main, names_in  # noqa: E402
from perf.child import Job  # noqa: E402
from perf.meter import Meter  # noqa: E402
from perf.model import Row  # noqa: E402
from perf.pace import Pace  # noqa: E402
from perf.results import Results, Sample  # noqa: E402

EVERY = rows.every_measurement()
KEYS = {row.key for measurement in EVERY for row in measurement.rows}


def results_of(*samples: Sample, subject: str = "skate") -> Results:
    return Results(
        rows=[
            Row("tasks, 1,000 in flight", "tasks/s", limit="limits.zmq_calls_16", key="tasks.in_flight"),
            Row("init to first result", "s", "lower", key="session.first_result"),
            Row("limit", "calls/s", key="limits.zmq_calls_16"),
        ],
        versions={"skate": "0.1", "ray": "2.60", "executor": "3.11", "machine": "6.1"},
        subject=subject,
        samples=list(samples),
    )


def in_rounds(row: str, contender: str, *values: float) -> list[Sample]:
    return [Sample(row, contender, value, round=number) for number, value in enumerate(values)]


# What is measured


def test_rows_have_keys_and_names_of_their_own():
    keys = [row.key for measurement in EVERY for row in measurement.rows]
    assert len(keys) == len(set(keys))
    titles = [row.title for measurement in EVERY for row in measurement.rows]
    assert len(titles) == len(set(titles))


def test_limits_and_bars_name_rows_that_exist():
    limits = {row.limit for measurement in EVERY for row in measurement.rows if row.limit}
    assert limits <= KEYS
    assert {bar.row for bar in bars.BARS} <= KEYS
    for bar in bars.BARS:
        if isinstance(bar, bars.Ahead):
            assert bar.over in KEYS | set(contenders.names())


@pytest.mark.parametrize("name", contenders.names())
def test_what_a_contender_runs_of_a_group_shares_a_script_and_a_session(name):
    can = contenders.load(name).can
    for group in runner.groups([measurement for measurement in EVERY if measurement.needs <= can]):
        assert len({measurement.script for measurement in group}) == 1
        assert len({measurement.num_cpus for measurement in group}) == 1


def test_every_need_is_somebodys_ability_and_skate_lacks_only_the_machine():
    abilities = frozenset().union(*(contenders.load(name).can for name in contenders.names()))
    needs = frozenset().union(*(measurement.needs for measurement in EVERY))
    assert needs <= abilities
    assert needs - contenders.load("skate").can == {"machine"}


def test_contenders_are_found_and_skate_comes_first():
    names = contenders.names()
    assert names[0] == "skate"
    assert {"ray", "executor", "loky", "dask", "machine"} <= set(names)
    assert [contenders.load(name).name for name in names] == names


def test_what_an_adapter_does_not_override_raises_not_implemented():
    with pytest.raises(NotImplementedError, match="loky has no actors"):
        contenders.load("loky").actor(object)


# Statistics


def test_summary_has_median_range_and_spread():
    summary = stats.summarise([3.0, 1.0, 2.0])
    assert summary == stats.Summary(2.0, 1.0, 3.0)
    assert summary.spread == 0.5
    assert stats.summarise([]) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "better", "expected"),
    [(20, 2, "higher", 10), (2, 20, "higher", 0.1), (2, 20, "lower", 10), (20, 2, "lower", 0.1)],
)
def test_advantage_is_above_one_in_our_favour(ours, theirs, better, expected):
    assert stats.advantage(ours, theirs, better) == expected


def test_advantage_over_nothing_is_no_number():
    assert stats.advantage(1.0, 0.0, "higher") is None
    assert stats.advantage(0.0, 1.0, "lower") is None


def test_ratios_are_of_the_same_round_and_missing_rounds_are_left_out():
    assert stats.advantages({0: 10, 1: 30, 3: 8}, {0: 5, 1: 3, 2: 1}, "higher") == [2, 10]


def test_pace_counts_operations():
    calls = []
    rate = Pace(warm_s=0.0, run_s=0.01).rate(lambda: calls.append(1), operations=1_000)
    assert len(calls) >= 2
    assert rate > 1_000


# Results and bars


def test_the_median_of_ratios_is_not_the_ratio_of_medians():
    results = results_of(
        *in_rounds("tasks.in_flight", "skate", 100, 10, 30), *in_rounds("tasks.in_flight", "ray", 1, 10, 2)
    )
    assert results.advantage(results.rows[0], "ray") == stats.Summary(15, 1, 100)


def test_advantage_over_a_reference_row_takes_the_machines_figure():
    results = results_of(
        Sample("tasks.in_flight", "skate", 50.0), Sample("limits.zmq_calls_16", "machine", 100.0)
    )
    advantage = results.advantage(results.rows[0], "limits.zmq_calls_16")
    assert advantage is not None
    assert advantage.median == 0.5


@pytest.mark.parametrize(("ours", "verdict"), [(100.0, "met"), (99.0, "missed")])
def test_a_ratio_bar(ours, verdict):
    results = results_of(Sample("tasks.in_flight", "skate", ours), Sample("tasks.in_flight", "ray", 5.0))
    assert bars.Ahead("tasks.in_flight", "ray", 20).verdict(results) == verdict


def test_bars_without_figures_are_unknown():
    assert bars.Ahead("tasks.in_flight", "ray", 20).verdict(results_of()) == "unknown"
    assert bars.Ahead("no.such_row", "ray", 20).verdict(results_of()) == "unknown"
    assert bars.Below("session.first_result", 0.5).verdict(results_of()) == "unknown"


@pytest.mark.parametrize(("ours", "verdict"), [(0.4, "met"), (0.5, "missed")])
def test_an_absolute_bar(ours, verdict):
    results = results_of(Sample("session.first_result", "skate", ours))
    assert bars.Below("session.first_result", 0.5).verdict(results) == verdict


def test_failures_come_before_what_was_skipped():
    results = results_of(
        Sample("tasks.in_flight", "ray", None, "failed", "lost", round=0),
        Sample("tasks.in_flight", "ray", None, "skipped", "lacks", round=1),
    )
    trouble = results.trouble("tasks.in_flight", "ray")
    assert trouble is not None
    assert trouble.reason == "lost"


def test_json_comes_back_equal():
    results = results_of(
        *in_rounds("tasks.in_flight", "skate", 1, 2), Sample("x.y", "ray", None, "failed", "why")
    )
    assert Results.from_json(results.to_json()) == results
    with pytest.raises(ValueError, match="format"):
        Results.from_json(json.dumps({"format": 0}))


# The table


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.00123, "0.00123"),
        (0.5, "0.500"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (345.6, "346"),
        (999.9, "1,000"),
        (1_234, "1,230"),
        (48_123_456, "48,100,000"),
    ],
)
def test_numbers_have_three_digits(value, shown):
    assert table.number(value) == shown


@pytest.mark.parametrize(
    ("ratio", "shown"), [(21.53, "22×"), (4.236, "4.24×"), (0.0353, "0.035×"), (1_530, "1,530×")]
)
def test_ratios(ratio, shown):
    assert table.times(ratio) == shown


def full_results() -> Results:
    return results_of(
        *in_rounds("tasks.in_flight", "skate", 24_000, 26_000),
        *in_rounds("tasks.in_flight", "ray", 250, 250),
        *in_rounds("tasks.in_flight", "executor", 24_000, 26_000),
        Sample("session.first_result", "skate", 0.3),
        Sample("session.first_result", "ray", None, "failed", "Fatal: out of luck"),
        Sample("limits.zmq_calls_16", "machine", 250_000.0),
    )


def test_text_shows_medians_spread_ratios_bars_and_failures():
    text = table.text(full_results())
    line = next(line for line in text.splitlines() if line.startswith("tasks, 1,000"))
    for part in ("25,000 ±4%", "250 (100×)", "(1.00×)", "250,000 (0.096×)", "✓ ≥50× ray, ✗ ≥5× executor"):
        assert part in line
    assert "session.first_result on ray failed: Fatal: out of luck" in text
    assert "Bars: 2 met, 1 missed, 0 without a figure." in text


def test_text_without_the_subject_has_no_ratios():
    results = full_results()
    results.samples = [sample for sample in results.samples if sample.contender != "skate"]
    del results.versions["skate"]
    results.left_out["skate"] = "No module named 'skate'"
    text = table.text(results)
    assert "skate left out: No module named 'skate'" in text
    assert "(100×)" not in text.partition("\n\n")[0]


def test_markdown_is_a_table():
    heading, rule, *body = table.markdown(full_results()).split("\n\n")[0].splitlines()
    assert heading.count("|") == rule.count("|") == body[0].count("|")
    assert len(body) == 3


# Runner and command line


def test_turns_move_on_by_one_each_round():
    assert [runner.turns(["a", "b", "c"], number)[0] for number in range(4)] == ["a", "b", "c", "a"]
    assert sorted(runner.turns(["a", "b", "c"], 1)) == ["a", "b", "c"]
    assert runner.turns([], 3) == []


def test_jobs_come_back_equal():
    job = Job("skate", "ray", "tasks", ("tasks.in_flight",), Pace(0.1, 0.2))
    assert Job.from_json(job.to_json()) == job


def test_the_rows_chosen_bring_their_limits():
    names = {measurement.name for measurement in choose(["objects.put_large"], EVERY)}
    assert names == {"objects.put_large", "objects.memcpy_fresh", "objects.memcpy_touched"}
    assert choose([], EVERY) == EVERY


def test_an_unknown_row_is_an_error_that_lists_the_scripts():
    with pytest.raises(UsageError, match=r"'taks'.*scripts are tasks, actors"):
        choose(["taks"], EVERY)


def test_names_with_commas():
    assert names_in(" ray, executor ,") == ["ray", "executor"]
    assert names_in("none") == []


def test_list_shows_rows_contenders_and_bars(capsys):
    assert main(["--list", "--rows", "tasks"]) == 0
    out = capsys.readouterr().out
    assert out == listing(choose(["tasks"], EVERY)) + "\n"
    assert "≥50× ray" in next(line for line in out.splitlines() if line.startswith("tasks.in_flight"))


def test_load_shows_an_earlier_run_and_check_tells_of_missed_bars(tmp_path, capsys):
    path = tmp_path / "run.json"
    path.write_text(full_results().to_json())
    assert main(["--load", str(path), "--markdown"]) == 0
    assert "| tasks, 1,000 in flight |" in capsys.readouterr().out
    assert main(["--load", str(path), "--check"]) == 1


def test_mistakes_end_with_a_line_and_status_2(tmp_path, capsys):
    assert main(["--load", str(tmp_path / "nowhere.json")]) == 2
    assert main(["--rows", "taks"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert all(line.startswith("perf: ") for line in errors)


# Processes


def test_a_child_that_ends_leaves_no_process_and_a_crash_its_last_words():
    with runner.Child(sys.executable, Job("no_such_contender")) as child:
        assert child.message(20.0) is None
        assert "no_such_contender" in child.last_words()
    assert child.left_behind == []


def test_what_a_process_started_is_found_below_it():
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        assert sleeper.pid in procs.descendants(os.getpid())
        assert procs.pss_bytes(sleeper.pid) > 0
        sleeper.kill()
    assert sleeper.pid not in procs.descendants(os.getpid())
    assert procs.name(sleeper.pid) == "?"


# Two builds


def test_builds_are_compared_round_by_round():
    old = {"tasks.in_flight": {"caller": [2.0, 4.0, 2.0], "others": [1.0, 2.0, 1.0]}}
    new = {"tasks.in_flight": {"caller": [1.0, 2.0, 1.0], "others": [1.0, 2.0, 1.0]}}
    caller, others, both = builds.table(old, new).splitlines()[1:]
    assert "0.500 (0.50-0.50)" in caller
    assert "1.250 (0.50-2.00)" in caller  # the old build beside itself, a round later
    assert "1.000 (1.00-1.00)" in others
    assert "0.667 (0.67-0.67)" in both


def test_builds_compare_rows_that_exist():
    assert set(names_in(builds.CALLS)) <= KEYS


def test_a_meter_counts_what_its_own_process_uses():
    meter = Meter(warm_s=0.01, run_s=0.05)
    rate = meter.rate(lambda: sum(range(1000)), operations=2)
    assert 0 < meter.microseconds["caller"] <= 1e6 / rate * 1.2
    assert meter.microseconds["others"] >= 0
