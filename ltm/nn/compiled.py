"""Functions compiled for a GPU: `torch.compile` fuses the passes over memory between matrix products.

On a CPU these passes are written by hand (`ltm.nn.fused`): a compiler, which a user may not have, gains little there.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

P = ParamSpec("P")
R = TypeVar("R")

SWITCH = "LTM_COMPILE"
"""Environment variable; 0 turns compilation off."""

VERSIONS = 64
"""How many versions a function may be compiled in: trained, frozen and scored, for each shape of model."""


@functools.cache
def available() -> bool:
    """Whether functions can be compiled for a GPU here: Triton is installed, and nobody has turned it off."""
    return os.environ.get(SWITCH, "1") != "0" and importlib.util.find_spec("triton") is not None


def runs_compiled(x: Tensor) -> bool:
    """Whether to run functions of `x` compiled: it is on a GPU, for which there is a compiler."""
    return x.is_cuda and available()


@functools.cache
def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Return the compiled version of a function, which is compiled when it is first called, in seconds.

    The first dimension of the first tensor, such as texts or tokens, may have any size, also that of others with the
    same; for other shapes the function is compiled anew.
    """
    from torch._dynamo import config, maybe_mark_dynamic

    config.recompile_limit = max(VERSIONS, config.recompile_limit)
    version = torch.compile(function, dynamic=False)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = [each for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor) and each.ndim]
        for each in tensors:
            if len(each) == len(tensors[0]):
                maybe_mark_dynamic(each, 0)
        return version(*args, **kwargs)

    return call
