"""Files that are whole or absent: written beside their place, flushed to disk, then moved into it."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from ltm.errors import UserError


def write_atomically(path: Path, data: bytes) -> Path:
    """Put `data` at `path`; whoever reads, at whatever instant we are killed, finds the old file or the new one.

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
    """Hex digest of a file's bytes."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def sync(path: Path) -> None:
    """Flush a file or directory to disk. Until its directory is there, a power cut may undo a move into it."""
    if os.name == "nt" and path.is_dir():  # Windows has no such call
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
