"""A model's answers so far, on disk, so that a run that was killed resumes where it stopped.

There is one file per set of circumstances: whatever can change a number is part of its name. Records are lines of JSON,
each with a digest of itself, appended batch by batch and flushed to disk.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ltm.config import canonical_json, digest
from ltm.errors import UserError
from ltm.files import check_held, locked, write_atomically
from ltm.processes import from_lead, of_each, world_size
from ltm.progress import count
from ltm.untrusted import regular_files

SCHEMA = 1
log = logging.getLogger(__name__)


class ResponseCache:
    """Records by id. Make one with `open_cache`."""

    def __init__(self, path: Path, records: dict[str, Any]):
        self.path = path
        self._records = records

    def __contains__(self, record: str) -> bool:
        return record in self._records

    def __getitem__(self, record: str) -> Any:
        return self._records[record]

    def __len__(self) -> int:
        return len(self._records)

    def add(self, records: Mapping[str, Any]) -> None:
        """Append records; they are on disk when this returns. Values are plain data without NaN or Inf.

        Raises:
            UserError: they cannot be written, for lack of room or permission, or since another process took over.
        """
        check_held(_lock(self.path))
        data = "".join(_line(name, value) for name, value in records.items())
        try:
            with open(self.path, "a", encoding="utf-8", newline="\n") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; make room there, or set LTM_HOME") from error
        self._records.update(records)


class SharedCache(ResponseCache):
    """The cache in a process that another one keeps it for."""

    def add(self, records: Mapping[str, Any]) -> None:
        """Remember records, which the first process writes."""
        self._records.update(records)


def cache_path(directory: Path, circumstances: Mapping[str, Any]) -> Path:
    """The file for these circumstances: everything that can change a number, as plain data, and nothing else."""
    return directory / f"{digest({'schema': SCHEMA, **circumstances})[:32]}.jsonl"


@contextmanager
def open_for_all(
    directory: Path, circumstances: Mapping[str, Any], records: Sequence[str], *, work: str
) -> Iterator[ResponseCache]:
    """`open_cache`, for all processes of a command at once: the first opens it, and tells the others what it has.

    Args:
        records: those that may be asked for; the same in every process.

    Raises:
        UserError: they, or the circumstances, are not the same in every process; and as `open_cache` does.
    """
    if world_size() == 1:
        with open_cache(directory, circumstances, work=work) as cache:
            yield cache
        return
    if len(set(of_each(lambda: digest([circumstances, list(records)])))) > 1:
        raise UserError(
            f"{work}: the processes of this command were asked for different things; they need one command, the "
            "same files and the same versions"
        )
    with ExitStack() as stack:
        own: list[ResponseCache] = []

        def known() -> dict[str, Any]:
            own.append(stack.enter_context(open_cache(directory, circumstances, work=work)))
            return {name: own[0][name] for name in records if name in own[0]}

        found = from_lead(known)
        yield own[0] if own else SharedCache(cache_path(directory, circumstances), found)


@contextmanager
def open_cache(directory: Path, circumstances: Mapping[str, Any], *, work: str) -> Iterator[ResponseCache]:
    """Open the cache for these circumstances, locked until the block ends; `work` names it in the error for others.

    A line cut short by a kill is dropped; a line that is damaged otherwise is dropped with a warning.

    While another process has it open, this waits, and says so; then that one's answers are there.

    Raises:
        UserError: this process has it open already, or the directory cannot be written.
    """
    path = cache_path(directory, circumstances)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {directory}: {error.strerror}; make room there, or set LTM_HOME to a directory of your own"
        ) from error
    with locked(_lock(path), work=work, wait=True) as notice:
        if notice:
            log.warning("%s", notice)
        if not path.exists():
            # The first record tells readers of the file what it holds.
            write_atomically(path, _line("circumstances", dict(circumstances)).encode())
        yield ResponseCache(path, _read(path))


def _lock(path: Path) -> Path:
    return path.with_suffix(".lock")


def _read(path: Path) -> dict[str, Any]:
    with regular_files.opened(path) as file:
        *lines, torn = file.read().split(b"\n")
    records: dict[str, Any] = {}
    kept = []
    for line in lines:
        try:
            name, value, check = json.loads(line)
            if check != _check(name, value):
                raise ValueError("another digest")
        except (ValueError, TypeError, RecursionError):
            continue
        records[name] = value
        kept.append(line + b"\n")
    if len(kept) < len(lines):
        log.warning("%s: %s dropped, to be computed again", path, count(len(lines) - len(kept), "damaged records"))
    if torn or len(kept) < len(lines):
        write_atomically(path, b"".join(kept))
    return records


def _line(name: str, value: Any) -> str:
    return canonical_json([name, value, _check(name, value)]) + "\n"


def _check(name: str, value: Any) -> str:
    return digest([name, value])[:16]
