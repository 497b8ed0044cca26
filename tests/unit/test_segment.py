"""The memory behind an arena: where it is made, who may open it, what a small /dev/shm leads to."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
from skate._c.arena import Arena
from skate.store import segment as seg

SESSION = f"test-{os.getpid()}"
ID = bytes(20)


@pytest.fixture(autouse=True)
def nothing_left() -> object:
    yield
    assert not [name for name in os.listdir("/dev/shm") if SESSION in name]


def test_in_shared_memory() -> None:
    if os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize < 32 << 20:
        pytest.skip("/dev/shm is too small for this test")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = seg.create_segment(SESSION, 1 << 20)
    try:
        assert made.kind == "shm"
        assert made.path == f"/dev/shm/skate-{os.getuid()}-{SESSION}"
        assert os.stat(made.path).st_mode & 0o777 == 0o600
        arena = Arena.create(made.fd, 1 << 20)
        opened = seg.open_segment(made.path)
        assert opened.kind == "shm"
        other = Arena.attach(opened.fd)
        opened.close()
        arena.allocate(ID, 5).seal()
        assert other.contains(ID)
        with pytest.raises(FileExistsError):
            seg.create_segment(SESSION, 1 << 20)
    finally:
        made.unlink()
        made.unlink()
        made.close()
    arena.check()  # unlinked and closed, the memory stays while it is mapped


@pytest.mark.parametrize("missing", [False, True])
def test_too_small_falls_back_to_a_file(tmp_path: Path, missing: bool) -> None:
    shm_dir = str(tmp_path / "missing") if missing else "/dev/shm"
    size = 1 << 20 if missing else 1 << 50
    fallback = tmp_path / "fallback"
    fallback.mkdir()
    if not missing:  # no disk holds 2**50 bytes either: the file must be refused as well
        with pytest.warns(seg.SegmentWarning, match="anonymous memory") as caught:
            made = seg.create_segment(SESSION, size, str(fallback), shm_dir=shm_dir)
        assert len(caught) == 1
        assert "shm-size" in str(caught[0].message)
        assert made.kind == "memfd"
        made.close()
        return
    with pytest.warns(seg.SegmentWarning, match="is a file in") as caught:
        made = seg.create_segment(SESSION, size, str(fallback), shm_dir=shm_dir)
    assert len(caught) == 1
    assert made.kind == "file"
    arena = Arena.create(made.fd, size)
    arena.allocate(ID, 1000).seal()
    opened = seg.open_segment(made.path)
    assert opened.kind == "file"
    assert Arena.attach(opened.fd).contains(ID)
    opened.close()
    made.unlink()
    made.close()
    assert not list(fallback.iterdir())


def test_memfd_is_opened_by_path(tmp_path: Path) -> None:
    with pytest.warns(seg.SegmentWarning):
        made = seg.create_segment(SESSION, 1 << 20, shm_dir=str(tmp_path / "missing"))
    arena = Arena.create(made.fd, 1 << 20)
    arena.allocate(ID, 5).seal()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            opened = seg.open_segment(made.path)
            os.write(write, b"yes" if Arena.attach(opened.fd).contains(ID) else b"no")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 10) == b"yes"
    os.close(read)
    os.close(write)
    made.close()


def test_refuses_links_and_directories(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError):
        seg.open_segment(str(tmp_path / "link"))
    with pytest.raises(OSError):
        seg.open_segment(str(tmp_path))
    with pytest.raises(ValueError, match="letters"):
        seg.segment_name("../x")


@pytest.mark.skipif(os.getuid() != 0, reason="gives files away")
def test_sweeping_leaves_alone_what_is_no_segment_of_this_users() -> None:
    """Anybody may put anything into /dev/shm, with any name: it is skipped, neither followed nor waited for."""
    shm = Path(seg.SHM_DIR)
    paths = [
        shm / f"skate-{os.getuid()}-odd-{kind}-{os.getpid()}"
        for kind in ("foreign", "fifo", "link", "folder")
    ]
    foreign, fifo, link, folder = paths
    foreign.touch()
    os.chown(foreign, 12345, 12345)
    os.chmod(foreign, 0o666)
    os.mkfifo(fifo)
    link.symlink_to("/etc/passwd")
    folder.mkdir()
    try:
        assert not set(seg.sweep()) & {path.name for path in paths}
        assert all(os.path.lexists(path) for path in paths)
        pid = os.fork()
        if pid == 0:  # to whom the first may belong and not: it can be opened, and not be removed
            os.rename(foreign, shm / f"skate-12346-odd-{os.getppid()}")
            os.setuid(12346)
            try:
                seg.sweep()
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        (shm / f"skate-12346-odd-{os.getpid()}").unlink(missing_ok=True)
        for path in paths:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def test_sweeping_takes_what_no_living_process_holds() -> None:
    """A lock tells, which goes with its maker: also where it was killed, and nobody knows its session any more."""
    made = seg.create_segment(SESSION, 1 << 20)
    other = seg.create_segment(SESSION + "-dead", 1 << 20)
    copy = os.dup(made.fd)
    try:
        made.close()
        other.close()
        swept = seg.sweep()
        assert os.path.basename(other.path) in swept
        assert os.path.basename(made.path) not in swept
        assert os.path.exists(made.path)
        assert not os.path.exists(other.path)
    finally:
        os.close(copy)
        made.unlink()
        other.unlink()
