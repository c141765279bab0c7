"""The directories that this package reads and writes: whether they are there, and can be written to."""

from __future__ import annotations

import os
from pathlib import Path

from ltm.errors import UserError
from ltm.files.whole import sweep, temporary_name


def home() -> Path:
    """The directory of trained models, token files and caches: `$LTM_HOME`, or ~/.ltm."""
    return expanded(os.environ.get("LTM_HOME") or "~/.ltm")


def expanded(path: str | Path) -> Path:
    """`path` with a home directory in place of `~`, if there is such a home; `Path.expanduser` fails if not."""
    return Path(os.path.expanduser(path))


def check_writable(directory: Path) -> None:
    """Make `directory` and test that it can be written to, before work is done that would be lost.

    Raises:
        UserError: it cannot, for lack of permission or room.
    """
    probe = temporary_name(directory / "probe")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        sweep(directory)
        try:
            with open(probe, "xb") as file:
                # A full disk still makes empty files, and some notice only here that there is no block for the bytes.
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to {directory}: {error.strerror or error}; make room there, or choose another with --output"
        ) from error


def data_directory(given: Path | None = None) -> Path | None:
    """The directory of local corpora: `given`, or $LTM_DATA_DIR, or None. Raises UserError if it is no directory."""
    named = given or os.environ.get("LTM_DATA_DIR") or None
    if named is None:
        return None
    directory = expanded(named)
    if not directory.is_dir():
        which = "--data-dir" if given else "LTM_DATA_DIR"
        raise UserError(f"{which} is {directory}, which is not a directory; expected <directory>/<corpus>/<split>.txt")
    return directory
