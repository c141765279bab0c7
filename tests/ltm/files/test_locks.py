"""Locks: what is said of earlier owners, whatever their records hold, and when a silent one is taken over."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ltm.errors import UserError
from ltm.files import check_held, locked, locks


def taken(path: Path) -> str | None:
    with locked(path, work="counting") as notice:
        check_held(path)
        return notice


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "x.lock"


@pytest.fixture
def owner(tmp_path: Path) -> Path:
    return tmp_path / "x.lock.owner"


def left_by(owner: Path, host: Any = "elsewhere", *, silent: float = 0, **changes: Any) -> None:
    owner.write_text(json.dumps({"pid": 1, "host": host, "since": time.time() - 3600, "nonce": "0"} | changes))
    os.utime(owner, (time.time() - silent,) * 2)


def test_a_lock_leaves_no_owner_behind_and_is_there_for_the_next(lock: Path, owner: Path) -> None:
    assert taken(lock) is None and taken(lock) is None
    assert [path.name for path in lock.parent.iterdir()] == ["x.lock"] and not owner.exists()


def test_an_owner_on_this_host_that_has_gone_is_named(lock: Path, owner: Path) -> None:
    left_by(owner, platform.node())
    assert taken(lock) == (
        f"an earlier run did not end well: process 1 on {platform.node()}, begun 60 minutes ago; "
        "going on from what it recorded"
    )


@pytest.mark.parametrize("silent", [0, 200, -200])
def test_an_owner_on_another_host_that_may_live_is_not_overruled(silent: float, lock: Path, owner: Path) -> None:
    left_by(owner, silent=silent)
    before = owner.read_bytes()
    seen = r"process 1 on elsewhere, begun 60 minutes ago, last seen (0|1|199|200|201) seconds ago; after 5 minutes"
    with pytest.raises(
        UserError, match=rf"counting may be under way on another machine: {seen}.*delete .*x\.lock\.owner"
    ):
        taken(lock)
    assert owner.read_bytes() == before
    owner.unlink()
    assert taken(lock) is None


# One that lies ahead is from before the file server's clock was set back.
@pytest.mark.parametrize("silent", [301, 86_400, -86_400])
def test_one_that_has_been_silent_for_long_is_taken_over_aloud(silent: float, lock: Path, owner: Path) -> None:
    left_by(owner, silent=silent)
    assert taken(lock) == (
        f"taking over from a run that has given no sign of life for {abs(silent) // 60:.0f} minutes: process 1 on "
        "elsewhere, begun 60 minutes ago; going on from what it recorded"
    )
    assert not owner.exists()


def test_one_that_waits_begins_when_the_other_has_ended_or_is_given_up(
    lock: Path, owner: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.05)
    left_by(owner)
    ends = threading.Timer(0.3, owner.unlink)
    ends.start()
    with locked(lock, work="counting", wait=True) as notice:
        assert notice is None and not ends.is_alive()
    said = "counting may be under way on another machine: process 1 on elsewhere, begun 60 minutes ago, last seen 0"
    assert capsys.readouterr().err.startswith(said)
    monkeypatch.setattr(locks, "DEAD_SECONDS", 1.0)
    left_by(owner)
    with locked(lock, work="counting", wait=True) as notice:
        assert notice is not None and "no sign of life" in notice
    assert capsys.readouterr().err.count("waiting for it") == 1


def test_the_clocks_of_hosts_play_no_part(lock: Path, owner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_by(owner)
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 1e6)
    with pytest.raises(UserError, match=r"last seen [01] seconds ago"):
        taken(lock)
    left_by(owner, silent=1e6 + 400)
    monkeypatch.setattr("time.time", lambda: now - 1e6)
    assert "no sign of life for 7 minutes" in str(taken(lock))


def test_an_owner_gives_signs_of_life(lock: Path, owner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    with locked(lock, work="counting"):
        os.utime(owner, (0, 0))
        deadline = time.monotonic() + 10
        while time.time() - owner.stat().st_mtime > 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_an_owner_notices_that_it_lost_its_lock_and_leaves_the_new_one_alone(
    lock: Path, owner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    with locked(lock, work="counting"):
        left_by(owner, silent=1000)
        theirs = owner.stat().st_mtime, owner.read_bytes()
        with pytest.raises(UserError, match="lost: process 1 on elsewhere, begun 60 minutes ago took it over"):
            check_held(lock)
        time.sleep(0.1)
    assert (owner.stat().st_mtime, owner.read_bytes()) == theirs
    owner.unlink()
    with locked(lock, work="counting"):
        check_held(lock)
        owner.unlink()
        with pytest.raises(UserError, match=r"lost: .*x\.lock\.owner is gone"):
            check_held(lock)
    check_held(lock)  # no lock of ours


ODD: list[bytes] = [
    b"",
    b"\xff\xfe",
    b"null",
    b"[" * 100_000,
    b"x" * 1_000_000,
    *(
        b'{"pid": 1, "host": %b, "since": %b}' % (host, since)
        for host in (
            json.dumps(platform.node()).encode(),
            b'"else\\u001b[31m\\u202ewhere"',
            b"[1]",
            b"null",
            b'"\\ud800"',
        )
        for since in (b'"yesterday"', b"-1", b"NaN", b"1e999", b"9" * 5000, b"[[]]", b"null", b"true", b"99999999999")
    ),
    *(
        b'{"pid": %b, "host": "h"}' % pid
        for pid in (b'"\\u001b[2J"', b"-7", b"1e50", b"{}", b"false", b'"' + b"9" * 999 + b'"')
    ),
]


@pytest.mark.parametrize("silent", [0, 1000])
def test_whatever_a_record_holds_is_said_in_printable_characters(silent: float, lock: Path, owner: Path) -> None:
    for content in ODD:
        owner.write_bytes(content)
        os.utime(owner, (time.time() - silent,) * 2)
        try:
            said = str(taken(lock))
        except UserError as error:
            said = str(error)
            assert silent == 0 and "delete" in said
            owner.unlink()
        assert said.isprintable() and len(said) < 700, content[:100]
        assert not owner.exists()


def test_what_stands_in_place_of_the_files_is_named_or_replaced(lock: Path, owner: Path) -> None:
    lock.mkdir()
    with pytest.raises(UserError, match=r"no lock on .*x\.lock: Is a directory"):
        taken(lock)
    lock.rmdir()
    owner.mkdir()
    with pytest.raises(UserError, match=r"x\.lock\.owner: expected a file, found a directory; remove it"):
        taken(lock)
    owner.rmdir()
    os.mkfifo(owner)
    assert "an unknown process" in str(taken(lock)) and not owner.exists()
    owner.symlink_to("nowhere")
    assert "an unknown process" in str(taken(lock)) and not owner.is_symlink()
    lock.unlink()
    lock.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"no lock on .*x\.lock"):
        taken(lock)
