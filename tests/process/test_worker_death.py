"""Workers that die in the middle of work: what the error says, how often a task is tried, what others notice."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
import skate
from api.rendezvous import Gate, Tally, eventually
from skate.exceptions import WorkerCrashedError

pytestmark = [pytest.mark.timeout(60), pytest.mark.transport]


@pytest.fixture(scope="module")
def cpu2():
    skate.init(num_cpus=2, resources={"thing": 3})
    yield
    try:
        eventually(lambda: skate.available_resources().get("CPU") == 2)
    finally:
        skate.shutdown()


@skate.remote
def note(path: Path, line: str) -> str:
    """Appends a line to a file, in one write."""
    with path.open("ab", buffering=0) as file:
        file.write(line.encode() + b"\n")
    return line


@skate.remote
def note_and_die(path: Path, line: str) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(line.encode() + b"\n")
    os._exit(1)


@skate.remote(max_retries=0)
def die(how: str) -> None:
    print("famous last words", file=sys.stderr)
    if how == "exit":
        os._exit(7)
    elif how == "sys.exit":
        sys.exit(5)
    elif how == "signal":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)


def runs(path: Path) -> Counter:
    return Counter(path.read_text().split()) if path.exists() else Counter()


@pytest.mark.usefixtures("cpu2")
class TestTheError:
    @pytest.mark.parametrize(
        ("how", "words"),
        [("exit", "status 7"), ("sys.exit", "status 5"), ("signal", "SIGKILL"), ("crash", "SIGSEGV")],
    )
    def test_says_how_the_worker_ended_and_what_it_said_last(self, how: str, words: str) -> None:
        with pytest.raises(WorkerCrashedError, match=words) as caught:
            skate.get(die.remote(how))
        assert "famous last words" in str(caught.value)
        assert "die" in str(caught.value)

    def test_has_the_last_line_even_without_an_end(self) -> None:
        @skate.remote(max_retries=0)
        def trail_off() -> None:
            os.write(2, b"and then I saw")
            os._exit(1)

        with pytest.raises(WorkerCrashedError, match="and then I saw"):
            skate.get(trail_off.remote())

    def test_has_the_words_of_the_worker_that_died_and_no_others(self) -> None:
        @skate.remote(max_retries=0)
        def say_and_die(i: int) -> None:
            print(f"<{i}>", file=sys.stderr)
            os._exit(1)

        refs = [say_and_die.remote(i) for i in range(6)]
        for i, ref in enumerate(refs):
            with pytest.raises(WorkerCrashedError) as caught:
                skate.get(ref)
            assert f"<{i}>" in str(caught.value)
            assert sum(f"<{j}>" in str(caught.value) for j in range(6)) == 1


@pytest.mark.usefixtures("cpu2")
class TestTries:
    @pytest.mark.parametrize("retries", [0, 1, 3])
    def test_are_counted_exactly(self, retries: int, tmp_path: Path) -> None:
        with pytest.raises(WorkerCrashedError):
            skate.get(note_and_die.options(max_retries=retries).remote(tmp_path / "runs", "victim"))
        assert runs(tmp_path / "runs") == {"victim": retries + 1}

    @pytest.mark.parametrize("retries", [0, 3])
    @pytest.mark.parametrize("round_number", range(3))
    def test_are_counted_exactly_among_a_hundred_others(
        self, retries: int, round_number: int, tmp_path: Path
    ) -> None:
        """They are warmed up, so that many travel in one pipeline."""
        skate.get([note.remote(tmp_path / "warm", "x") for _ in range(50)])
        path = tmp_path / "runs"
        before = [note.remote(path, f"a{i}") for i in range(50)]
        victim = note_and_die.options(max_retries=retries).remote(path, "victim")
        after = [note.remote(path, f"b{i}") for i in range(50)]
        assert skate.get(before + after, timeout=30) == [f"a{i}" for i in range(50)] + [
            f"b{i}" for i in range(50)
        ]
        with pytest.raises(WorkerCrashedError):
            skate.get(victim)
        assert runs(path)["victim"] == retries + 1

    @pytest.mark.parametrize("round_number", range(5))
    def test_without_retries_nothing_runs_twice_and_what_is_done_is_not_lost(
        self, round_number: int, tmp_path: Path
    ) -> None:
        """A task in flight behind one that kills its worker has not begun: it runs once, elsewhere."""
        once, fatal = note.options(max_retries=0), note_and_die.options(max_retries=0)
        skate.get([once.remote(tmp_path / "warm", "x") for _ in range(50)])
        path = tmp_path / "runs"
        refs, victims = [], []
        for i in range(100):
            refs.append(once.remote(path, f"t{i}"))
            if i % 20 == 10:
                victims.append(fatal.remote(path, f"victim{i}"))
        lost = []
        for ref in refs:
            try:
                skate.get(ref, timeout=30)
            except WorkerCrashedError as error:
                lost.append(error)
        for victim in victims:
            with pytest.raises(WorkerCrashedError):
                skate.get(victim, timeout=30)
        counts = runs(path)
        assert max(counts.values()) == 1, {name: count for name, count in counts.items() if count > 1}
        assert not lost
        assert len(counts) == 105

    def test_a_worker_that_ends_after_its_calls_makes_nothing_run_twice(self, tmp_path: Path) -> None:
        @skate.remote(max_retries=0, max_calls=3)
        def short(path: Path, line: str) -> str:
            with path.open("ab", buffering=0) as file:
                file.write(line.encode() + b"\n")
            return line

        path = tmp_path / "runs"
        lines = [f"t{i}" for i in range(60)]
        assert skate.get([short.remote(path, line) for line in lines], timeout=60) == lines
        assert runs(path) == Counter(lines)


@pytest.mark.usefixtures("cpu2")
class TestOthers:
    def test_keep_running_when_a_worker_is_killed_from_outside(self, gate: Gate, tally: Tally) -> None:
        @skate.remote
        def report_and_hold(pids: Path, gate: Gate) -> int:
            with pids.open("a") as file:
                file.write(f"{os.getpid()}\n")
            gate.wait()
            return os.getpid()

        path = tally.path
        refs = [report_and_hold.remote(path, gate) for _ in range(2)]
        eventually(lambda: sum(runs(path).values()) == 2)
        victim = int(next(iter(runs(path))))
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: sum(runs(path).values()) == 3)
        gate.open()
        assert len({victim, *skate.get(refs)}) == 3

    def test_a_storm_of_deaths_loses_no_result(self, tmp_path: Path) -> None:
        """Every tenth try dies; each task is tried until it comes through."""

        @skate.remote(max_retries=-1)
        def risky(i: int, tally: Tally) -> int:
            if tally.add() % 10 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return i

        tally = Tally(tmp_path / "tries")
        assert skate.get([risky.remote(i, tally) for i in range(200)], timeout=50) == list(range(200))
        assert tally.count >= 200

    def test_find_all_resources_again(self) -> None:
        refs = [die.options(num_cpus=0.5, resources={"thing": 1}).remote("exit") for _ in range(6)]
        for ref in refs:
            with pytest.raises(WorkerCrashedError):
                skate.get(ref)
        eventually(lambda: skate.available_resources().get("thing") == 3)
        eventually(lambda: skate.available_resources().get("CPU") == 2)
