"""Files that are whole or absent: written beside their place, flushed to disk, then moved into it."""

from __future__ import annotations

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
        _sync_directory(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; make room there, or give another directory"
        ) from error
    return path


def _sync_directory(directory: Path) -> None:
    # Until the directory itself is on disk, a power cut may undo the move. Windows has no such call.
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
