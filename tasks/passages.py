"""Human text for generated text to start from and to be compared with: passages of a split, of one length in tokens."""

from __future__ import annotations

import numpy as np

from ltm.errors import UserError
from ltm.rng import seed_of


def passages(stream: np.ndarray, length: int) -> np.ndarray:
    """The stream of a split cut into disjoint passages, (N, length), in a random order that is always the same.

    The order depends on nothing but the number of passages, so the first n of them are the same n in every run. A
    passage may begin and end anywhere, as a block does.
    """
    count = len(stream) // length
    order = np.random.default_rng(seed_of("passages", count)).permutation(count)
    return stream[: count * length].reshape(count, length)[order]


def enough(found: np.ndarray, wanted: int, *, what: str) -> None:
    """Raise UserError where there are fewer passages than wanted; `what` says of which text."""
    if len(found) < wanted:
        raise UserError(
            f"{what} has {len(found)} passages of {found.shape[1]} tokens, {wanted} are needed: ask for fewer "
            "--samples, shorter ones, or take a larger corpus (a task ..._openwebtext, or a task file of your own)"
        )
