"""Masks of the given, scored and padding tokens of a batch; every model uses them.

Shapes: B sequences, L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scored_span(tokens_BL: Tensor, context: int | Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return two boolean masks (B, L): given tokens, before `context`, and scored ones, from there to `lengths`.

    Raises:
        ValueError: a context or length outside 0..L, or a context beyond its row's length.
    """
    B, L = tokens_BL.shape
    context_B = torch.as_tensor(context, device=tokens_BL.device).expand(B)
    lengths_B = torch.full((B,), L, device=tokens_BL.device) if lengths is None else lengths.to(tokens_BL.device)
    if bool((context_B < 0).any() | (lengths_B > L).any() | (context_B > lengths_B).any()):
        raise ValueError(f"need 0 <= context <= length <= {L}, found {context_B.tolist()} and {lengths_B.tolist()}")
    position_L = torch.arange(L, device=tokens_BL.device)
    given_BL = position_L < context_B[:, None]
    return given_BL, ~given_BL & (position_L < lengths_B[:, None])


def prepare_batch(
    tokens_BL: Tensor, context: int | Tensor, lengths: Tensor | None, vocab_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the batch with padding set to 0, and the masks of `scored_span`; every `log_likelihoods` begins with it.

    Raises:
        ValueError: as `scored_span`; or an id that the model cannot output.
    """
    check_ids(tokens_BL, vocab_size)
    given_BL, scored_BL = scored_span(tokens_BL, context, lengths)
    return tokens_BL.masked_fill(~(given_BL | scored_BL), 0), given_BL, scored_BL


def check_ids(tokens: Tensor, vocab_size: int) -> None:
    """Raise ValueError unless every id is one that the model can output, 0 .. vocab_size - 2."""
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size - 1:
        bad = tokens[(tokens < 0) | (tokens >= vocab_size - 1)][0]
        raise ValueError(f"token id {int(bad)} is outside 0..{vocab_size - 2}: data of another tokenizer?")
