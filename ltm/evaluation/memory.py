"""How much memory there is, and how much a piece of work takes, for batches that fit from the start."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import torch

from ltm.errors import out_of_memory

log = logging.getLogger(__name__)

SHARE = 0.8
"""Of free memory: allocators lose some of it between the pieces."""
_PROCESS = Path("/proc/self")
_CGROUP = Path("/sys/fs/cgroup")


def rows_that_fit(most: int, device: torch.device, one_row: Callable[[], object]) -> int:
    """How many rows of a batch, up to `most`, free memory holds, by what scoring one of them takes; at least 1.

    Where memory cannot be measured, `most`.
    """
    free = free_bytes(device)
    if free is None or most == 1:
        return most
    try:
        taken = peak_bytes(device, one_row)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return 1
    if not taken:
        return most
    rows = max(1, min(most, int(SHARE * free / taken)))
    if rows < most:
        log.warning("%s has %.1f GB free and a row takes %.2f GB: batches of %d", device, free / 1e9, taken / 1e9, rows)
    return rows


def peak_bytes(device: torch.device, work: Callable[[], object]) -> int | None:
    """The most memory that some work holds beyond what was held before; None if that cannot be known."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - held
    try:
        (_PROCESS / "clear_refs").write_text("5")  # lets the peak begin anew; see proc(5)
        before = _field(_PROCESS / "status", "VmRSS")
        work()
        after = _field(_PROCESS / "status", "VmHWM")
    except OSError:
        return None
    return None if before is None or after is None else max(0, after - before)


def free_bytes(device: torch.device) -> int | None:
    """Memory that this process can still get: of the GPU; or of the host, its cgroup and its own limit."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    free = [_field(Path("/proc/meminfo"), "MemAvailable"), _of_group(), _of_address_space()]
    return min((found for found in free if found is not None), default=None)


def _of_group() -> int | None:
    try:
        most, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        # What the group's files take of it is given back when it is needed.
        cached = re.search(r"^inactive_file (\d+)$", (_CGROUP / "memory.stat").read_text(), re.MULTILINE)
    except OSError:
        return None
    return max(0, int(most) - int(used) + int(cached[1] if cached else 0)) if most.isdecimal() else None


def _of_address_space() -> int | None:
    try:
        limit = re.search(r"^Max address space +(\d+) ", (_PROCESS / "limits").read_text(), re.MULTILINE)
    except OSError:
        return None
    taken = _field(_PROCESS / "status", "VmSize")
    return None if limit is None or taken is None else max(0, int(limit[1]) - taken)


def _field(path: Path, name: str) -> int | None:
    """A field in kB of a table of the kernel, in bytes."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])
