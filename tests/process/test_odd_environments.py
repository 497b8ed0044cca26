"""Programs that start in an odd place: what they inherit, what lies where a session wants to be, what is missing.

Whatever a process can be given by whoever started it (descriptors, signals, limits, variables, a clock that a test has
frozen), skate works, or `init` raises one error that says what, where, and what to do: never a bare traceback of the
node manager's, never a wait without end.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import skate
from skate.driver import nodes
from skate.node.errors import CannotStart

pytestmark = pytest.mark.timeout(90)

#: what a worker must find, however odd its driver is
PROGRAM = """
import os
import skate

def look():
    import signal
    for number in range(3):
        os.fstat(number)
    return sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), signal.getsignal(signal.SIGCHLD)

def die():
    os._exit(3)

skate.init(num_cpus=1)
mask, on_child = skate.get(skate.remote(look).remote(), timeout=30)
assert mask == [] and on_child == 0
try:
    skate.get(skate.remote(max_retries=0)(die).remote(), timeout=30)
except skate.exceptions.WorkerCrashedError:
    pass
skate.shutdown()
os.umask(0o077)
with open(os.environ["TEST_OUTPUT"], "w") as file:
    file.write("fine")
"""
#: without root's right to open whatever there is
AS_ANYBODY = ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner")
ROOT = os.geteuid() == 0 and shutil.which("setpriv") and shutil.which("unshare")
needs_root = pytest.mark.skipif(not ROOT, reason="needs root, setpriv and unshare")


class Outcome:
    """What became of a program."""

    def __init__(self, done: subprocess.CompletedProcess[str], output: Path) -> None:
        self.fine = output.exists() and output.read_text() == "fine"
        self.stderr = done.stderr

    @property
    def error(self) -> str:
        """Of what `init` raised, the text."""
        return self.stderr[self.stderr.rfind("CannotStart:") :]


Run = Callable[..., Outcome]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path is short enough for sockets, whoever runs the tests."""
    with tempfile.TemporaryDirectory(prefix="odd", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run(before)` runs PROGRAM after these lines, with variables and flags of Python's; to its end."""

    def run(
        before: str = "",
        *,
        flags: tuple[str, ...] = (),
        command: tuple[str, ...] = (),
        cwd: Path | None = None,
        **variables: str,
    ) -> Outcome:
        output = tmp_path / "output"
        done = subprocess.run(
            [*command, sys.executable, *flags, "-c", textwrap.dedent(before) + PROGRAM],
            env=os.environ | {"TEST_OUTPUT": str(output)} | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=cwd,
        )
        return Outcome(done, output)

    return run


class TestInherited:
    """State of a process that exec passes on, or that a program has changed before `init`."""

    @pytest.mark.parametrize("closed", ["2", "0, 1", "0, 1, 2"])
    def test_standard_descriptors_that_are_closed(self, run: Run, closed: str) -> None:
        assert run(f"import os\nfor fd in ({closed},): os.close(fd)").fine

    @pytest.mark.parametrize(
        "how", ["pthread_sigmask(signal.SIG_BLOCK, {number})", "signal({number}, signal.SIG_IGN)"]
    )
    def test_signals_that_are_blocked_or_ignored(self, run: Run, how: str) -> None:
        """SIGCHLD among them, without which no death of a worker would be noticed."""
        numbers = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
        lines = [f"signal.{how.format(number=int(number))}" for number in numbers]
        if "BLOCK" in how:
            lines = [line.replace("SIG_BLOCK, ", "SIG_BLOCK, [").replace(")", "])") for line in lines]
        assert run("import signal\n" + "\n".join(lines)).fine

    def test_limits_umask_and_the_timeout_of_sockets(self, run: Run) -> None:
        before = """
            import os, resource, socket
            os.umask(0o777); os.nice(5); socket.setdefaulttimeout(0.001)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            """
        program = run(before, command=AS_ANYBODY if ROOT else ())
        assert program.fine, program.stderr

    def test_variables_of_python(self, run: Run) -> None:
        program = run(
            PYTHONWARNINGS="error",
            PYTHONOPTIMIZE="2",
            PYTHONINSPECT="1",
            PYTHONSAFEPATH="1",
            PYTHONUNBUFFERED="1",
            PYTHONSTARTUP="/nonexistent",
            LC_ALL="C",
            PYTHONUTF8="0",
            PYTHONCOERCECLOCALE="0",
        )
        assert program.fine, program.stderr

    def test_an_interpreter_that_heeds_no_variables(self, run: Run) -> None:
        """So the node's does not, either."""
        assert run(flags=("-I",), PYTHONHOME="/nonexistent").fine

    def test_modules_of_the_working_directory_that_the_program_does_not_see(
        self, run: Run, tmp_path: Path
    ) -> None:
        for name in ("json", "socket", "cloudpickle"):
            (tmp_path / f"{name}.py").write_text("raise SystemExit('that is another module')")
        assert run(flags=("-P",), cwd=tmp_path).fine

    @pytest.mark.parametrize(
        "site",
        [
            "import sys; print('x' * 1_000_000); print('y' * 1_000_000, file=sys.stderr)",
            "import socket, signal; socket.setdefaulttimeout(0.01); signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
            "import os; os.close(2); os.close(0)",
            "import time; time.monotonic = time.time = lambda: 5.0; time.sleep = lambda _: None",
        ],
    )
    def test_a_sitecustomize(self, run: Run, tmp_path: Path, site: str) -> None:
        """It runs in the node manager's process as well: that talks to the driver over a descriptor of its own."""
        (tmp_path / "sitecustomize.py").write_text(site)
        assert run(PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])).fine

    def test_more_descriptors_than_select_can_take(self, run: Run) -> None:
        before = """
            import os, resource
            resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
            for _ in range(1100): os.open("/dev/null", 0)
            """
        assert run(before).fine


class TestClock:
    """Tests freeze `time`, with unittest.mock or freezegun: timeouts run out all the same, and no sooner."""

    @pytest.mark.parametrize("now", [1.0, 1e9])
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_frozen_clock(self, start_driver, now: float, when: str) -> None:
        driver = start_driver(
            f"""
            import os, sys, time, unittest.mock

            def freeze():
                for name in ("monotonic", "time", "perf_counter", "monotonic_ns"):
                    unittest.mock.patch(f"time.{{name}}", lambda: {now}).start()
                unittest.mock.patch("time.sleep", lambda _: None).start()

            if {when == "before"}:
                freeze()
            import skate
            skate.init(num_cpus=2)
            held = skate.remote(lambda: os.read(os.pipe()[0], 1)).remote()
            freeze()
            for wait in (lambda: skate.get(held, timeout=0.2), lambda: skate.wait([held], timeout=0.2)[0]):
                began = os.times().elapsed
                try:
                    assert wait() == []
                except skate.exceptions.GetTimeoutError:
                    pass
                assert 0.15 < os.times().elapsed - began < 10
            assert skate.get(skate.remote(lambda: 7).remote(), timeout=20) == 7
            skate.shutdown()
            print("fine", flush=True)
            """
        )
        driver.wait()
        assert "fine" in driver.output, driver.output
        assert "does not end" not in driver.output

    def test_freezegun(self, start_driver) -> None:
        """It replaces the functions of `time` in every module that has them by name."""
        pytest.importorskip("freezegun")
        driver = start_driver(
            """
            import os, freezegun, skate
            skate.init(num_cpus=2)
            held = skate.remote(lambda: os.read(os.pipe()[0], 1)).remote()
            with freezegun.freeze_time("2030-01-02"):
                assert skate.wait([held], timeout=0.2)[0] == []
                assert skate.get(skate.remote(lambda: 7).remote(), timeout=20) == 7
                skate.shutdown()
            print("fine", flush=True)
            """
        )
        driver.wait()
        assert "fine" in driver.output, driver.output


class TestInterpreter:
    """sys.executable, where a program embeds Python, is that program; or there is none."""

    @pytest.mark.parametrize("executable", [None, "", "cat", "/nonexistent/python3"])
    def test_the_interpreter_is_found_where_its_modules_are(
        self, monkeypatch: pytest.MonkeyPatch, executable: str | None
    ) -> None:
        expected = os.path.realpath(sys.executable)
        monkeypatch.setattr(
            sys, "executable", shutil.which(executable) or executable if executable else executable
        )
        assert os.path.realpath(nodes.find_python()) == expected

    def test_what_multiprocessing_was_told_counts(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "mypython").symlink_to(sys.executable)
        monkeypatch.setattr(sys, "executable", shutil.which("cat"))
        monkeypatch.setattr("multiprocessing.spawn._python_exe", str(tmp_path / "mypython"))
        assert nodes.find_python() == str(tmp_path / "mypython")

    def test_where_there_is_none_the_error_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", shutil.which("cat"))
        for prefix in ("prefix", "exec_prefix", "base_prefix"):
            monkeypatch.setattr(sys, prefix, "/nonexistent")
        monkeypatch.setattr("multiprocessing.spawn._python_exe", None)
        with pytest.raises(CannotStart, match=r"sys\.executable .*set_executable"):
            skate.init(num_cpus=1)

    def test_what_is_no_python_after_all_is_quoted(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "python").write_text("#!/bin/sh\necho I am none >&2\nexit 5")
        (tmp_path / "python").chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        with pytest.raises(CannotStart, match=r"status 5(?s:.*)I am none(?s:.*)sys\.executable"):
            skate.init(num_cpus=1)


class TestFolders:
    """What lies where sessions have their folders, and what does not."""

    def test_a_working_directory_that_was_removed(self, run: Run) -> None:
        # (Python 3.13.0 cannot import socket from there with `python -c`.)
        assert run(
            "import os, socket, tempfile; gone = tempfile.mkdtemp(); os.chdir(gone); os.rmdir(gone)"
        ).fine

    def test_what_is_no_session_is_left_alone(self, run: Run, short_path: Path) -> None:
        folder = short_path / f"skate-{os.getuid()}"
        folder.mkdir(mode=0o700)
        (folder / "file").touch()
        (folder / "0123456789a0").touch()
        os.mkfifo(folder / "0123456789a1")
        (folder / "0123456789a2").symlink_to("/etc")
        (folder / "0123456789a3").symlink_to("/nonexistent")
        for number, make in enumerate((os.mkdir, os.mkfifo, lambda path: os.symlink("/etc/passwd", path))):
            (folder / f"0123456789b{number}").mkdir(mode=0o700)
            make(folder / f"0123456789b{number}" / "alive")
        before = sorted(os.listdir(folder))
        program = run(SKATE_TMPDIR=str(short_path))
        assert program.fine, program.stderr
        assert sorted(os.listdir(folder)) == before

    @pytest.mark.parametrize(
        "make",
        [
            lambda path: path.touch(),
            os.mkfifo,
            lambda path: path.symlink_to("/tmp"),
            lambda path: (path.mkdir(), path.chmod(0o755)),
        ],
        ids=["file", "fifo", "link", "others may enter"],
    )
    def test_a_sessions_folder_that_is_none_of_ours(self, run: Run, short_path: Path, make: Callable) -> None:
        make(short_path / f"skate-{os.getuid()}")
        program = run(SKATE_TMPDIR=str(short_path))
        assert not program.fine
        assert "SKATE_TMPDIR" in program.error

    @needs_root
    def test_somebody_elses_sessions_folder(self, run: Run, short_path: Path) -> None:
        """It may hold what looks like a node that drivers are to come to."""
        folder = short_path / f"skate-{os.getuid()}"
        folder.mkdir(mode=0o777)
        os.chown(folder, 12345, 12345)
        program = run(SKATE_TMPDIR=str(short_path), command=AS_ANYBODY)
        assert not program.fine
        assert "only this user" in program.error
        assert "SKATE_TMPDIR" in program.error

    @pytest.mark.parametrize("folder", ["x" * 100, "file/inside"])
    def test_a_place_that_cannot_be(self, run: Run, short_path: Path, folder: str) -> None:
        (short_path / "file").touch()
        assert "SKATE_TMPDIR" in run(SKATE_TMPDIR=str(short_path / folder)).error

    @needs_root
    @pytest.mark.parametrize("options", ["size=4k", "nr_inodes=6", "ro"])
    def test_a_disk_that_is_full_or_read_only(self, run: Run, short_path: Path, options: str) -> None:
        mount = f'mount -t tmpfs tmpfs -o {options} {short_path} && exec "$@"'
        os.mkdir(short_path / "there")
        program = run(
            command=("unshare", "-m", "sh", "-c", mount, "sh"),
            SKATE_TMPDIR=str(short_path),
        )
        if "unshare" in program.stderr or "mount:" in program.stderr:
            pytest.skip("needs the right to mount")
        assert "SKATE_TMPDIR" in program.error, program.stderr

    @pytest.mark.parametrize(
        ("variables", "expected"),
        [
            ({}, "/tmp"),
            ({"TMPDIR": "{there}"}, "{there}"),
            ({"TMPDIR": "{there}/none"}, "/tmp"),
            ({"TMPDIR": "relative"}, "/tmp"),
            ({"TMPDIR": ""}, "/tmp"),
            ({"TMPDIR": "{long}"}, "/tmp"),
            ({"TMPDIR": "{there}", "RAY_TMPDIR": "/ray"}, "/ray"),
            ({"SKATE_TMPDIR": "/skate", "RAY_TMPDIR": "/ray"}, "/skate"),
            ({"SKATE_TMPDIR": "", "RAY_TMPDIR": "", "TMPDIR": "{there}"}, "{there}"),
            ({"SKATE_TMPDIR": "{long}"}, "{long}"),
        ],
    )
    def test_which_variable_counts(self, tmp_path_factory, variables: dict[str, str], expected: str) -> None:
        """What is said is done, or an error; the system's own folder is taken where it will do."""
        from skate.config import _temporary_folder

        there = str(tmp_path_factory.getbasetemp().parent)
        long = tmp_path_factory.mktemp("x" * 100)
        names = {"there": there, "long": str(long)}
        environ = {name: value.format(**names) for name, value in variables.items()}
        assert _temporary_folder("skate-0", environ) == expected.format(**names)


class TestMemory:
    @pytest.mark.parametrize("argument", ["object_store_memory=0", "object_store_memory=1 << 60"])
    def test_a_store_that_cannot_be(self, argument: str) -> None:
        with pytest.raises((ValueError, CannotStart), match="object_store_memory"):
            eval(f"skate.init({argument})", {"skate": skate})

    def test_a_limit_on_memory_names_what_to_set(self, run: Run) -> None:
        program = run("import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))")
        assert program.fine or "object_store_memory" in program.error, program.stderr

    def test_a_limit_on_files_names_itself(self, run: Run) -> None:
        program = run("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))")
        assert "ulimit -f" in program.error, program.stderr

    def test_where_full_stores_spill_to(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(CannotStart, match="SKATE_SPILL_DIR"):
            skate.init(num_cpus=1, object_spilling_directory=str(tmp_path / "file"))


class TestPatched:
    """gevent replaces parts of the standard library, before skate is imported or after."""

    GREENLETS = """
        from gevent import joinall, spawn
        skate.init(num_cpus=2)
        double = skate.remote(lambda x: 2 * x)
        greenlets = [spawn(lambda i=i: skate.get(double.remote(i), timeout=20)) for i in range(5)]
        joinall(greenlets, timeout=30)
        assert [greenlet.value for greenlet in greenlets] == [0, 2, 4, 6, 8]
        print_elsewhere = skate.remote(print)
        skate.get(print_elsewhere.remote("seen"))
        skate.shutdown()
    """

    @pytest.mark.parametrize("order", ["before", "after"])
    def test_all_but_threads(self, run: Run, order: str) -> None:
        lines = ["from gevent import monkey; monkey.patch_all(thread=False)", "import skate"]
        program = run(
            "\n".join(lines if order == "before" else lines[::-1]) + textwrap.dedent(self.GREENLETS)
        )
        assert program.fine, program.stderr

    @pytest.mark.parametrize("order", ["before", "after"])
    def test_threads(self, run: Run, order: str) -> None:
        """They would not run while the program waits: `init` says so, and to whom."""
        lines = ["from gevent import monkey; monkey.patch_all()", "import skate"]
        program = run("\n".join(lines if order == "before" else lines[::-1]) + "\n")
        assert not program.fine
        assert "RuntimeError: gevent has replaced Python's threads" in program.stderr
        assert "patch_all(thread=False)" in program.stderr
