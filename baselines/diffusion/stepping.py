"""Sampling in steps that move all free tokens at once, by weights over all tokens; for SEDD and GenMD4.

Shapes: B sequences, L tokens per canvas, V outputs, D width, N tokens that may move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor

from ltm.nn.output_head import logits_of
from ltm.nn.sampling import invert, rows_together
from ltm.rng import Stream

_FEWEST = 16  # tokens that move together even if their weights exceed the caches, so that the head is read less often

Move = Callable[[Tensor, Tensor], Tensor]
"""Maps logits (N, V) and present tokens (N,) to weights (N, V) of each token, or (N, V + 1), the last for staying."""


class Hidden(Protocol):
    """A network as the steps see it; one call is one evaluation of each row."""

    def __call__(self, canvas_BL: Tensor, time_B: Tensor, wanted_BL: Tensor, /) -> Tensor:
        """Return hidden states (N, D) where `wanted` is true, row-major; the time (float64) is that of the step."""


def take_steps(
    hidden: Hidden,
    head_VD: Tensor,
    steps: Iterable[tuple[float, Move]],
    canvas_BL: Tensor,
    free_BL: Tensor,
    noise: Stream,
    *,
    block_length: int,
    mask_id: int | None,
) -> tuple[Tensor, Tensor]:
    """Take (time, move) steps; return the canvas and evaluations (B,).

    Args:
        free_BL: bool; tokens that may move. The others are given.
        block_length: L of the longest possible canvas, so that noise does not depend on its length.
        mask_id: only free tokens with this id move, and rows without any are not evaluated; None for all free tokens.
    """
    canvas_BL, evaluations_B = canvas_BL.clone(), torch.zeros(len(canvas_BL), dtype=torch.int64)
    for time, move in steps:
        u_BL = noise.uniform(block_length)[:, : canvas_BL.shape[1]].to(canvas_BL.device)
        wanted_BL = free_BL if mask_id is None else free_BL & (canvas_BL == mask_id)
        rows = wanted_BL.any(1).nonzero()[:, 0]
        if not len(rows):
            continue
        tokens, wanted = canvas_BL[rows], wanted_BL[rows]
        h_ND = hidden(tokens, torch.full((len(rows),), time, dtype=torch.float64, device=tokens.device), wanted)
        together = rows_together(head_VD.device, len(head_VD), least=_FEWEST)
        parts = (x.split(together) for x in (h_ND, tokens[wanted], u_BL[rows][wanted]))
        drawn = []
        for h, now, uniforms in zip(*parts, strict=True):
            chosen = invert(move(logits_of(h, head_VD), now), uniforms)
            drawn.append(torch.where(chosen < len(head_VD), chosen, now))
        tokens[wanted] = torch.cat(drawn)
        canvas_BL[rows] = tokens
        evaluations_B[rows.cpu()] += 1
    return canvas_BL, evaluations_B
