"""Files whole or absent, readable by whom the umask says, with nothing left behind by writers that died."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ltm.errors import UserError
from ltm.files import check_writable, data_directory, home, sha256_file, sweep, temporary_name, write_atomically
from tasks.catalog import read

DAY = 86_400


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_temporary_files_of_dead_writers_go_and_others_stay(tmp_path: Path) -> None:
    mine = temporary_name(tmp_path / "a.json")
    me, dead = str(os.getpid()), str(dead_process())
    theirs = mine.name.replace(f"-{me}-", f"-{dead}-")
    elsewhere = f".a.json.{'0' * 8}-{dead}-{'1' * 8}.tmp"
    formerly = [f".a.json.{dead}-{'1' * 8}.tmp", f".{'e' * 64}.tokens.abc_1234.tmp"]
    foreign = [".notes.tmp", "a.json", ".a.json.tmp", ".~lock.tmp", f"a.json.{'0' * 8}-1-{'1' * 8}.tmp"]
    for name in (mine.name, theirs, elsewhere, *formerly, *foreign):
        (tmp_path / name).write_text("")
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, elsewhere, *formerly, *foreign}
    # Whose life cannot be seen from here is dead after a day; files that are not ours never go.
    for path in tmp_path.iterdir():
        os.utime(path, (0, time.time() - DAY - 60))
    write_atomically(tmp_path / "b.json", b"")
    assert {path.name for path in tmp_path.iterdir()} == {"b.json", *foreign}
    sweep(tmp_path / "nowhere")


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_a_file_is_for_whom_the_umask_says(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        path = write_atomically(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_full_disk_is_noticed_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "new")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write to .*; make room there, or choose another with --output"):
            check_writable(tmp_path / "new")
        with pytest.raises(UserError, match=r"cannot write .*; make room there"):
            write_atomically(tmp_path / "new" / "a", b"x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_disk_that_is_full_at_the_last_moment_is_noticed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for act in (lambda: check_writable(tmp_path), lambda: write_atomically(tmp_path / "a", b"x")):
        with pytest.raises(UserError, match="No space left on device; make room there"):
            act()
    assert list(tmp_path.iterdir()) == []


def test_only_files_have_a_digest(tmp_path: Path) -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert sha256_file(write_atomically(tmp_path / "a", b"")) == empty
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="expected a file, found a pipe"):
        sha256_file(tmp_path / "pipe")


def test_a_home_that_no_user_has_is_a_directory_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    # `Path.expanduser` raises RuntimeError.
    monkeypatch.setenv("LTM_HOME", "~nobody-of-that-name/ltm")
    assert home() == Path("~nobody-of-that-name/ltm")
    with pytest.raises(UserError, match="--data-dir is ~nobody-of-that-name"):
        data_directory(Path("~nobody-of-that-name/texts"))
    assert read(f"text:{__file__}").path == Path(__file__)
    with pytest.raises(UserError, match="no such file"):
        read("text:~nobody-of-that-name/notes.txt")
