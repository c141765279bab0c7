"""The log of a training run: one JSON line per update, none missing and none twice, however often it is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ltm.errors import UserError
from ltm.files import write_atomically

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
    """Drop the lines after `step`, and a torn last one: the resumed run will write them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except ValueError:
            break
        kept.append(f"{line}\n")
    write_atomically(path, "".join(kept).encode())
