"""Atomic file writes, file locks, and the directories that this package uses."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ltm.errors import UserError
from ltm.progress import count


def write_atomically(path: Path, data: bytes) -> Path:
    """Write `data` to `path` so that readers find the old file or the new one, whenever this process is killed.

    Raises:
        UserError: the directory cannot be made or written to, or the disk is full; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; make room there, or give another directory"
        ) from error
    return path


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def sync(path: Path) -> None:
    """Flush a file or directory to disk. Until its directory is flushed, a power cut may undo a move into it."""
    if os.name == "nt" and path.is_dir():  # Windows has no such call
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def home() -> Path:
    """The directory of trained models, token files and caches: `$LTM_HOME`, or ~/.ltm."""
    return Path(os.environ.get("LTM_HOME") or "~/.ltm").expanduser()


def check_writable(directory: Path) -> None:
    """Make `directory` and test that it can be written to, before work is done that would be lost. Raises UserError."""
    probe = directory / f".probe.{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}; choose another with --output") from error


def data_directory(given: Path | None = None) -> Path | None:
    """The directory of local corpora: `given`, or $LTM_DATA_DIR, or None. Raises UserError if it is no directory."""
    named = given or os.environ.get("LTM_DATA_DIR") or None
    if named is None:
        return None
    directory = Path(named).expanduser()
    if not directory.is_dir():
        which = "--data-dir" if given else "LTM_DATA_DIR"
        raise UserError(f"{which} is {directory}, which is not a directory; expected <directory>/<corpus>/<split>.txt")
    return directory


@contextmanager
def locked(path: Path, *, work: str) -> Iterator[str | None]:
    """Hold the lock file `path` while the block runs; yields a notice about an owner that died, or None.

    The operating system holds the lock, so it ends with its owner however that ends. A file next to it names the owner;
    one left by a process of another host, whose death cannot be seen from here, is not overruled.

    Raises:
        UserError: another process is at `work`, or one on another host may be; or the file cannot be locked.
    """
    from filelock import FileLock, Timeout

    owner = path.with_name(f"{path.name}.owner")
    try:
        held = FileLock(path, timeout=0).acquire()
    except Timeout:
        raise UserError(f"{work} is already under way: {_describe(_read(owner))}; wait for it, or stop it") from None
    except (OSError, NotImplementedError) as error:
        raise UserError(f"no lock on {path}: {error}; set LTM_HOME to a directory of your own") from error
    with held:
        before = _read(owner)
        if before and before.get("host") != platform.node():
            raise UserError(
                f"{work} may be under way on another machine: {_describe(before)}; if that run is dead, delete {owner}"
            )
        write_atomically(
            owner, json.dumps({"pid": os.getpid(), "host": platform.node(), "since": time.time()}).encode()
        )
        try:
            yield (
                f"an earlier run did not end well: {_describe(before)}; going on from what it recorded"
                if before
                else None
            )
        finally:
            owner.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _describe(owner: dict[str, Any]) -> str:
    if not owner:
        return "by an unknown process"
    minutes = max(0.0, time.time() - float(owner.get("since", 0))) / 60
    return f"process {owner.get('pid')} on {owner.get('host')}, begun {count(round(minutes), 'minutes')} ago"
