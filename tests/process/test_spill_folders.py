"""A folder to spill to that is read-only, out of inodes, or gone: an error that names it, and the node goes on.

(One that is full is in test_spilling.py.)
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import skate
from api.rendezvous import eventually
from skate.exceptions import ObjectLostError, OutOfDiskError

from .test_spilling import MB, STORE, files, numbers


def mounted(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


@pytest.mark.parametrize(
    ("bad", "good", "named"),
    [
        ("ro", "rw", "Read-only"),
        ("nr_inodes=2", "nr_inodes=100", "No space"),  # itself and the session's folder
    ],
)
def test_disk_that_takes_no_files(
    bad: str, good: str, named: str, skate_start: Callable[..., Any], small_disk: Path
) -> None:
    """The error names the folder and how to choose another; all goes on, and on disk too once files can be made."""
    skate_start(object_store_memory=STORE, object_spilling_directory=str(small_disk))
    mounted(small_disk, bad)
    refs = []
    with pytest.raises(OutOfDiskError, match=f"(?s){small_disk}.*{named}.*SKATE_SPILL_DIR"):
        for n in range(40):
            refs.append(skate.put(numbers(4 * MB, n)))
    assert skate.get(skate.remote(lambda: 7).remote(), timeout=30) == 7
    (folder,) = small_disk.iterdir()
    assert not files(folder)
    mounted(small_disk, good)
    refs += [skate.put(numbers(4 * MB, len(refs) + n)) for n in range(3)]
    assert files(folder)
    assert [int(skate.get(ref)[0]) for ref in refs] == list(range(len(refs)))
    skate.shutdown()
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize("options", ["ro", "nr_inodes=1"])
def test_disk_that_takes_no_files_at_the_start(
    options: str, skate_start: Callable[..., Any], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted(small_disk, options)
    monkeypatch.setenv("SKATE_SPILL_DIR", str(small_disk))
    with pytest.raises(Exception, match=f"{small_disk}.*SKATE_SPILL_DIR"):
        skate_start(object_store_memory=STORE)
    assert not list(small_disk.iterdir())


def test_somebody_clears_the_folder_away(skate_start: Callable[..., Any], tmp_path: Path) -> None:
    """What was spilled is lost, and says so; nothing spilled later stands in for it. The folder is made again."""
    skate_start(object_store_memory=STORE, object_spilling_directory=str(tmp_path / "spill"))
    refs = [skate.put(numbers(4 * MB, n)) for n in range(16)]
    (folder,) = (tmp_path / "spill").iterdir()
    assert files(folder)
    shutil.rmtree(tmp_path / "spill")
    refs += [skate.put(numbers(4 * MB, len(refs) + n)) for n in range(16)]
    assert files(folder)
    lost = 0
    for n, ref in enumerate(refs):
        try:
            assert (skate.get(ref, timeout=30) == n).all()
        except ObjectLostError as error:
            assert "somebody has removed" in str(error)  # noqa: PT017
            assert str(folder) in str(error)  # noqa: PT017
            lost += 1
    assert 0 < lost < 16
    del refs, ref
    eventually(lambda: not files(folder))


def test_the_folder_cannot_be_made_again(skate_start: Callable[..., Any], tmp_path: Path) -> None:
    skate_start(object_store_memory=STORE, object_spilling_directory=str(tmp_path / "spill"))
    shutil.rmtree(tmp_path / "spill")
    (tmp_path / "spill").touch()
    refs = []
    with pytest.raises(OutOfDiskError, match=f"(?s){tmp_path}.*SKATE_SPILL_DIR"):
        for n in range(16):
            refs.append(skate.put(numbers(4 * MB, n)))
    (tmp_path / "spill").unlink()
    refs += [skate.put(numbers(4 * MB, len(refs) + n)) for n in range(3)]
    assert [int(skate.get(ref)[0]) for ref in refs] == list(range(len(refs)))
