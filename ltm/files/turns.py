"""Taking turns at work that several processes would otherwise do at once, and all but the first then find done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ltm.progress import say

_SILENT_SECONDS = 2.0


@contextmanager
def in_turn(path: Path, *, work: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs, after waiting for as long as others hold it.

    It saves work and protects nothing: where hosts do not see each other's locks, or there are none, the block runs at
    once. What is done in it must come out the same, and whole, if two do it. The lock ends with its owner.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        try:
            lock.acquire(timeout=_SILENT_SECONDS)
        except Timeout:
            say(f"waiting for another process, which is {work}")
            lock.acquire()
            say(f"waited {time.monotonic() - began:.0f} s for the other process")
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()
