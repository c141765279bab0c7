"""One owner at a time of a file's work, known by process, host and age; a dead owner's lock frees itself."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ltm.errors import UserError


@contextmanager
def locked(path: Path, *, work: str) -> Iterator[str | None]:
    """Hold the lock file `path` while the block runs; yields what is to be said of an owner that died, or None.

    The operating system holds the lock, so it ends with its owner however that ends. The file says who that is; a
    name left in it by a process of another host, whose death cannot be seen from here, is not overruled.

    Raises:
        UserError: another process is at `work`, or a host elsewhere may be; or the file cannot be written.
    """
    try:
        file = open(path, "a+")  # noqa: SIM115 - closed below, which also releases the lock
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; set LTM_HOME to a directory of your own") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{work} is already under way: {_describe(_read(file))}; wait for it, or stop it") from None
        except OSError as error:
            raise UserError(
                f"{path}: this file system has no locks ({error.strerror}); set LTM_HOME to one that has"
            ) from error
        before = _read(file)
        if before and before.get("host") != platform.node():
            raise UserError(
                f"{work} may be under way on another machine: {_describe(before)}; if that run is dead, delete {path}"
            )
        _write(file, json.dumps({"pid": os.getpid(), "host": platform.node(), "since": time.time()}))
        try:
            yield (
                f"an earlier run did not end well: {_describe(before)}; going on from what it recorded"
                if before
                else None
            )
        finally:
            _write(file, "")


def _read(file: Any) -> dict[str, Any]:
    file.seek(0)
    try:
        owner = json.loads(file.read() or "{}")
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _write(file: Any, text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()


def _describe(owner: dict[str, Any]) -> str:
    if not owner:
        return "by a process that has not said which"
    minutes = max(0.0, time.time() - float(owner.get("since", 0))) / 60
    return f"process {owner.get('pid')} on {owner.get('host')}, begun {minutes:.0f} minutes ago"
