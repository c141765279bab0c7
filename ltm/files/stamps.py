"""Whether a file is the one that was read before, told from its size, its times and its number, without reading it."""

from __future__ import annotations

import os
import time

SETTLED_SECONDS = 2.0
"""Longer than the steps in which file systems count time (10 ms, 1 s, at worst 2 s)."""

Stamp = tuple[int, int, int, int]
"""Size in bytes, time of the last change of content, of content or inode (both in ns), and number of the inode."""


def stamp(found: os.stat_result) -> Stamp:
    """Return what changes whenever the file is written to, replaced, or given back an earlier time of change.

    A file whose modification time was set by hand (`touch -d`, `cp -p`, `rsync -t`) still has a new time of its inode,
    which no call can set.
    """
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def settled(of: Stamp) -> bool:
    """Return whether a later change is sure to show, since the last one is longer ago than a step of the file's clock.

    What was written a moment ago may be written again within the same step, with the same size and times: what is
    read then must be read again next time. A server whose clock is far behind ours would escape this.
    """
    return time.time_ns() - max(of[1], of[2]) > SETTLED_SECONDS * 1e9
