"""Files that are whole or absent, whenever their writer is killed, and what killed writers leave behind."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ltm.errors import UserError
from ltm.untrusted import regular_files

# The names of `temporary_name`, and those of earlier versions, which did not say on which host.
_TEMPORARY = re.compile(
    r"\..+\.((?P<host>[0-9a-f]{8})-)?(?P<process>\d{1,10})-[0-9a-f]{8}\.tmp|\.[0-9a-f]{64}\.tokens\.[a-z0-9_]{8}\.tmp"
)
_ABANDONED_SECONDS = 86_400.0
"""A temporary file that nobody has written to for so long has no writer. Clocks of hosts differ by much less."""


def write_atomically(path: Path, data: bytes) -> Path:
    """Write `data` to `path` so that readers find the old file or the new one, whenever this process is killed.

    Raises:
        UserError: the directory cannot be made or written to, or the disk is full; the old file is untouched.
    """
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; make room there, or give another directory"
        ) from error
    return path


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to be written, which takes the place of `path` when the block ends well, and not at all otherwise.

    Raises:
        OSError: the directory cannot be made or written to, or the disk is full.
    """
    temporary = temporary_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def temporary_name(path: Path) -> Path:
    """A name next to `path` for what will be moved there, which says whose it is, so that `sweep` knows it."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def sweep(directory: Path) -> None:
    """Delete the temporary files in `directory` whose writers are dead; none if it is not there."""
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if (name := _TEMPORARY.fullmatch(entry.name)) and _abandoned(entry, name):
                with suppress(OSError):
                    os.unlink(entry)


def _abandoned(entry: os.DirEntry[str], name: re.Match[str]) -> bool:
    try:
        if time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED_SECONDS:
            return True
        if name["host"] == _host():
            os.kill(int(name["process"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # another user's process, or the file is gone
        return False
    return False


@functools.cache
def _host() -> str:
    """Eight hex digits for the processes that can see each other: a host, or a container on it."""
    if os.name == "nt":  # `os.kill` asks nothing there, it kills; a name of its own for each process leaves it to age
        return secrets.token_hex(4)
    try:
        container = os.readlink("/proc/self/ns/pid")
    except OSError:
        container = ""
    return hashlib.sha256(f"{platform.node()} {container}".encode(errors="replace")).hexdigest()[:8]


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file, in hex.

    Raises:
        UserError: there is none, or it is no regular file.
    """
    state = hashlib.sha256()
    with regular_files.opened(path) as file:
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
