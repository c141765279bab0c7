"""Who the processes of a command are: one, or as many as torchrun, accelerate or a scheduler started."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_GONE = ("closed by peer", "reset by peer", "Broken pipe", "Connection refused", "Timed out", "timed out", "NCCL")
"""What gloo and NCCL say of a process that they cannot reach."""
_alone = False


def is_lead() -> bool:
    """True in the only process, or the first of several: the one that prints and writes."""
    return rank() == 0


def rank() -> int:
    """The number of this process, from 0."""
    return 0 if _alone else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes."""
    return 1 if _alone else int(os.environ.get("WORLD_SIZE", "1"))


def local_device(device: str) -> str:
    """The device of this process: of several on a host, each has the GPU of its number there.

    `cuda:0` is what programs say by default, and would be that of all of them.
    """
    several = world_size() > 1 and device in ("cuda", "cuda:0")
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if several else device


@contextmanager
def joined(device: str, *, timeout: timedelta | None = None) -> Iterator[None]:
    """Join the other processes while the block runs.

    Args:
        device: of the tensors that they exchange, `cpu` or `cuda`.
        timeout: how long one may wait for another; torch's default if None. One that died is noticed at once.
    """
    if world_size() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if device == "cuda":
        torch.cuda.set_device(local_device(device))
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """What this process does in the block it does as the only one, whatever the others do meanwhile."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def agreed(numbers: Sequence[float], device: torch.device | str) -> list[float]:
    """The lead's numbers, in every process: clocks and machines differ."""
    return largest([number if is_lead() else float("-inf") for number in numbers], device)


def largest(numbers: Sequence[float], device: torch.device | str) -> list[float]:
    """The largest that any process has of each number, in every process."""
    if world_size() == 1:
        return list(numbers)
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def lost(error: BaseException) -> bool:
    """True if `error` says that another process cannot be reached, because it died or hangs."""
    if world_size() == 1 or not isinstance(error, RuntimeError):
        return False
    # By name, since torch is not imported for this.
    return "Dist" in type(error).__name__ or any(words in str(error) for words in _GONE)
