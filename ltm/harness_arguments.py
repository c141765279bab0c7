"""Model arguments as lm-eval hands them over, often as text, turned into what they mean or refused."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from ltm.errors import UserError, did_you_mean

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16", "float64")


def whole_number(name: str, value: Any, *, least: int) -> int:
    """The whole number that `value` is or spells.

    Raises:
        UserError: it is none, or is below `least`.
    """
    # lm-eval's parser gives some numbers as text and negative ones as floats.
    try:
        number = int(value) if float(value) == int(float(value)) else None
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or number < least:
        raise UserError(f"{name}={value}: expected a whole number of at least {least}")
    return number


def check_dtype(name: str) -> None:
    """Raise UserError unless weights can be of that dtype."""
    if name not in DTYPES:
        raise did_you_mean("dtype", str(name), DTYPES)


def choose_device(wish: str | None) -> str:
    """A device that is here: the one wished for, the GPU when nothing is, the CPU where there is no GPU."""
    import torch

    if wish is None or wish == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if str(wish).startswith("cuda") and not torch.cuda.is_available():
        log.warning("device %s: there is no GPU here, using the CPU", wish)
        return "cpu"
    return str(wish)


def unknown_argument(name: str, parameters: Iterable[str]) -> UserError:
    """The error for a model argument that no parameter takes."""
    known = sorted(set(parameters) - {"self", "unknown", "max_batch_size"})
    return UserError(f"{did_you_mean('model argument', name, known)} (allowed: {', '.join(known)})")
