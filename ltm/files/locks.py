"""Locks on work that two processes must not do at once, on one host or on several that share a directory.

The operating system holds a lock, so it ends with its owner however that ends. But on some shared file systems hosts do
not see each other's locks. So a file next to it names the owner, and while the owner lives it touches that file every
`BEAT_SECONDS`. Found untouched for `DEAD_SECONDS`, a lock of another host is taken over, and its record replaced.

How long a file has been untouched is judged by the file server's clock alone, as the difference of two of its times:
that of the owner's last touch, and that of a touch of our own. The clocks of the two hosts play no part.

An owner that was merely paused (SIGSTOP, a frozen container, a lost file server) finds another's record when it
goes on: `check_held` raises before it writes more. What it may still write, if it was paused between that check and the
write itself, is harmless: checkpoints appear whole under the name of their step, of which both runs compute the same;
cached answers are lines with a digest each, and both runs compute the same; doubled lines of a training log are read
as one.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ltm.errors import UserError
from ltm.files.whole import write_atomically
from ltm.progress import count, say
from ltm.untrusted import json_text, regular_files
from ltm.untrusted.display import bare, shown

BEAT_SECONDS = 20.0
DEAD_SECONDS = 300.0
"""Far more than a beat: caches of network file systems show a touch late, and long calls may hold up the thread."""
WAIT_SECONDS = 0.5
"""Between two looks at a lock that is waited for."""
_RECORD = json_text.Limits(bytes=10_000, depth=4, string=1_000, values=100, controls=True)
_held: dict[Path, str] = {}
"""The nonces of this process's own records, by lock file."""


class _Taken(UserError):
    """Another process is at the work, or may be."""


@contextmanager
def locked(path: Path, *, work: str, wait: bool = False) -> Iterator[str | None]:
    """Hold the lock file `path` while the block runs; yields a notice about an owner that died, or None.

    Args:
        wait: for another process that is at `work`, and say so, instead of refusing. One that is silent for
            `DEAD_SECONDS` is not waited for any longer.

    Raises:
        UserError: another process is at `work`, or one on another host may be; or the file cannot be locked.
    """
    owner = _owner(path)
    said = False
    while True:
        try:
            held, notice = _acquired(path, owner, work)
            break
        except _Taken as error:
            if not wait or path in _held:
                raise
            if not said:
                say(f"{str(error).partition('; ')[0]}; waiting for it")
                said = True
        time.sleep(WAIT_SECONDS)
    with held:
        nonce = secrets.token_hex(8)
        record = {"pid": os.getpid(), "host": platform.node(), "since": time.time(), "nonce": nonce}
        write_atomically(owner, json.dumps(record).encode())
        _held[path] = nonce
        ended = threading.Event()
        threading.Thread(target=_beat, args=(owner, nonce, ended), name=f"beat of {path}", daemon=True).start()
        try:
            yield notice
        finally:
            ended.set()
            del _held[path]
            if _read(owner).get("nonce") == nonce:
                with suppress(OSError):  # at worst it is found to be dead
                    owner.unlink()


def _acquired(path: Path, owner: Path, work: str) -> tuple[Any, str | None]:
    """The operating system's lock, and what to say of an earlier owner."""
    from filelock import FileLock, Timeout

    try:
        held = FileLock(path, timeout=0).acquire()
    except Timeout:
        raise _Taken(
            f"{work} is already under way: {_describe(_read(owner))}; wait for it, or stop it (if it is dead, and its "
            f"file server keeps its lock: delete {path} and {owner})"
        ) from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"no lock on {path}: {reason}; make room there, or set LTM_HOME to a directory of your own"
        ) from (error)
    try:
        return held, _notice(path, owner, work)
    except BaseException:
        held.lock.release()
        raise


def check_held(path: Path) -> None:
    """Raise UserError if this process has locked `path`, and lost it to another while it was paused."""
    if (nonce := _held.get(path)) is None:
        return
    found = _read(_owner(path))
    if found.get("nonce") != nonce:
        how = f"{_describe(found)} took it over while this one was paused" if found else f"{_owner(path)} is gone"
        raise UserError(
            f"the lock {path} is lost: {how}; nothing more is written here. What was recorded is kept: to go on once "
            "the other has ended, issue the same command again"
        )


def _owner(path: Path) -> Path:
    return path.with_name(f"{path.name}.owner")


def _beat(owner: Path, nonce: str, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        # A touch needs no room on a full disk. Between the check and the touch the file may become another's; then
        # that one's first beat is ours, which is true too.
        if _read(owner).get("nonce") == nonce:
            with suppress(OSError):
                os.utime(owner)


def _notice(path: Path, owner: Path, work: str) -> str | None:
    """What to say of the record that an earlier owner left; None if there is none.

    Raises:
        UserError: it is of another host, where the owner may be alive.
    """
    if owner.is_dir():
        raise UserError(f"{owner}: expected a file, found a directory; remove it")
    if not os.path.lexists(owner):
        return None
    before = _read(owner)
    host = before.get("host")
    if host is None or host == platform.node():
        # Our lock says that no owner is alive on this host. A file that names none was not left by another either.
        return f"an earlier run did not end well: {_describe(before)}; going on from what it recorded"
    # A touch that seems to lie ahead is from before the server's clock was set back, so not from a moment ago.
    if (silent := abs(_untouched(path, owner))) < DEAD_SECONDS:
        raise _Taken(
            f"{work} may be under way on another machine: {_describe(before)}, last seen {silent:.0f} seconds ago; "
            f"after {DEAD_SECONDS / 60:.0f} minutes without a sign of life the same command takes it over; if you know "
            f"that run to be dead, delete {owner}"
        )
    return (
        f"taking over from a run that has given no sign of life for {silent / 60:.0f} minutes: {_describe(before)}; "
        "going on from what it recorded"
    )


def _untouched(path: Path, owner: Path) -> float:
    """Seconds since the owner's last touch, by the clock of the file server."""
    try:
        os.utime(path)
        # Opened, since that asks the server for the true time, where a look at the name may be answered from a cache.
        with regular_files.opened(owner) as record, regular_files.opened(path) as ours:
            return os.fstat(ours.fileno()).st_mtime - os.fstat(record.fileno()).st_mtime
    except OSError as error:
        raise UserError(f"no lock on {path}: {error.strerror or error}; delete {owner} if its run is dead") from error


def _read(owner: Path) -> dict[str, Any]:
    """The record in a file that anyone may have written; empty if there is none."""
    try:
        record = json_text.read(owner, limits=_RECORD)
    except UserError:
        return {}
    return record if isinstance(record, dict) else {}


def _describe(record: dict[str, Any]) -> str:
    if not record:
        return "an unknown process"
    process, host, since = (record.get(field) for field in ("pid", "host", "since"))
    begun = "begun at an unknown time"
    if isinstance(since, int | float) and 0 < since <= time.time():
        begun = f"begun {count(round((time.time() - since) / 60), 'minutes')} ago"
    named = bare(host, most=80) if isinstance(host, str) else "an unknown host"
    return f"process {shown(process, most=20)} on {named}, {begun}"
