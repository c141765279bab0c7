"""What the processes of a command tell each other, as plain Python objects over gloo, whatever device they compute on.

Every process takes the same path through the command, so that all meet in each of these calls. A mistake that one of
them meets there is raised in all.
"""

from __future__ import annotations

import atexit
import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from ltm.errors import UserError, first_line
from ltm.processes.group import alone, is_lead, lost, rank, world_size

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long one process waits for another that is alive: the first may train a model while the others wait."""


@functools.cache
def _group() -> Any:
    """Join the other processes, unless the program has done so; these calls have a group of their own."""
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)
        return dist.group.WORLD
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def of_each(make: Callable[[], T]) -> list[T]:
    """What each process makes, in the order of their ranks, in every process.

    Raises:
        UserError: one of them raised it, or has gone.
    """
    if world_size() == 1:
        return [make()]
    import torch.distributed as dist

    made: list[Any] = [None] * world_size()
    own = _outcome(make)
    _meet(lambda: dist.all_gather_object(made, own, group=_group()))
    return [_value(outcome) for outcome in made]


def from_lead(make: Callable[[], T]) -> T:
    """What the first process makes, as the only one there is, in every process; the others make nothing.

    Raises:
        UserError: it raised it, or has gone.
    """
    if world_size() == 1:
        return make()
    import torch.distributed as dist

    made: list[Any] = [None]
    if is_lead():
        with alone():  # nobody would meet it, and several processes would round differently
            made = [_outcome(make)]
    _meet(lambda: dist.broadcast_object_list(made, src=0, group=_group()))
    return _value(made[0])


def _outcome(make: Callable[[], Any]) -> tuple[Any, str | None]:
    try:
        return make(), None
    except UserError as error:
        return None, str(error)


def _value(outcome: tuple[Any, str | None]) -> Any:
    value, error = outcome
    if error is not None:
        raise UserError(error)
    return value


def _meet(exchange: Callable[[], None]) -> None:
    try:
        exchange()
    except RuntimeError as error:
        if not lost(error):
            raise
        raise UserError(
            f"process {rank()}: another process of this command has gone ({first_line(error)}); finished work is kept: "
            "issue the same command again to go on"
        ) from error
