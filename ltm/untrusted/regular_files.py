"""Open files by names that anyone may have chosen: no pipe that never ends, no device, nothing larger than expected."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ltm.errors import UserError
from ltm.untrusted.display import bare

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


@contextmanager
def opened(path: Path, *, most: int | None = None, streams: bool = False) -> Iterator[IO[bytes]]:
    """Open a regular file for reading; links to one are followed.

    Args:
        most: its largest size in bytes.
        streams: pipes and devices may be read too, since the user named this very path.

    Raises:
        UserError: there is none, it cannot be read, is something else, or is larger.
    """
    name = bare(str(path))
    try:
        # Without O_NONBLOCK, opening a pipe waits for somebody to write into it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise UserError(f"there is no file {name}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from None
    found = os.fstat(descriptor)
    if streams and (stat.S_ISFIFO(found.st_mode) or stat.S_ISCHR(found.st_mode)):
        # A pipe into which nobody writes is at its end, and all others wait for their writer.
        if hasattr(os, "O_NONBLOCK"):
            os.set_blocking(descriptor, True)
    elif not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise UserError(f"{name}: expected a file, found {_KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}")
    with open(descriptor, "rb") as file:
        if most is not None and found.st_size > most:
            raise UserError(f"{name}: expected at most {most:,} bytes, found {found.st_size:,}")
        yield file


def is_regular(path: Path) -> bool:
    """True if there is a regular file, which can be read any number of times; links to one are followed."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def read_bytes(path: Path, *, most: int) -> bytes:
    """Read a regular file of at most `most` bytes.

    Raises:
        UserError: as `opened`.
    """
    try:
        with opened(path, most=most) as file:
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read {bare(str(path))}: {error.strerror or error}") from None
