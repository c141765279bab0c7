"""The log of a training run: one JSON line per update, none missing and none twice, however often it is resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from ltm.errors import UserError
from ltm.files import write_atomically
from ltm.untrusted import regular_files

FILE = "log.jsonl"


def append(path: Path, line: Mapping[str, float]) -> None:
    """Add one line. Raises UserError if that fails, such as on a full disk."""
    try:
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; checkpoints are kept: make room there, then issue the "
            "same command again to go on"
        ) from error


def keep(path: Path, step: int) -> None:
    """Drop the lines after `step`, and torn ones: the resumed run will write them again.

    Raises:
        UserError: the file cannot be read or written, or is no regular file.
    """
    if not os.path.lexists(path):
        return
    kept: dict[int, bytes] = {}
    with regular_files.opened(path) as file:
        for line in file.read().splitlines():
            try:
                at = json.loads(line)["step"]
            except (ValueError, TypeError, LookupError, RecursionError):
                continue
            # The last of a step: one of a process that was paused while another took over may stand between.
            if isinstance(at, int) and at <= step:
                kept[at] = line
    write_atomically(path, b"".join(kept[at] + b"\n" for at in sorted(kept)))
