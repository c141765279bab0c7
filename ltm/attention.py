"""Attention and rotary positions, as functions.

Shapes: B sequences, H heads, L queries, K keys, C channels of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def rotations(positions: Tensor, channels: int, dtype: torch.dtype, base: float = 1e4) -> Tensor:
    """Unit complex numbers (L, C/2) that rotate pairs of channels by position (RoPE, arXiv 2104.09864)."""
    inverse = base ** (-torch.arange(0, channels, 2, dtype=torch.float64, device=positions.device) / channels)
    angles = positions.double()[:, None] * inverse
    return torch.polar(torch.ones_like(angles), angles).to(
        torch.complex128 if dtype == torch.float64 else torch.complex64
    )


def rotate(x_BHLC: Tensor, rotations_LC: Tensor) -> Tensor:
    """Apply RoPE to interleaved pairs of channels, at no less than float32."""
    wide = x_BHLC if x_BHLC.dtype == torch.float64 else x_BHLC.float()
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotations_LC).flatten(-2).to(x_BHLC.dtype)


def attend(q_BHLC: Tensor, k_BHKC: Tensor, v_BHKC: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention over K keys; `mask` is true where a query may look and broadcasts to (B, H, L, K)."""
    if q_BHLC.dtype == torch.bfloat16 and q_BHLC.device.type == "cpu" and torch.is_grad_enabled():
        # The fused CPU kernel's backward pass is 2-3 times slower in bfloat16 than these products (docs/speed.md).
        scores = (q_BHLC * q_BHLC.shape[-1] ** -0.5) @ k_BHKC.transpose(-1, -2)
        if mask is not None:
            scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
        return scores.softmax(-1) @ v_BHKC
    return F.scaled_dot_product_attention(q_BHLC, k_BHKC, v_BHKC, attn_mask=mask)


def causal_attention(q_BHLC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, window: int | None) -> Tensor:
    """Softmax attention over the past and self, at most `window` positions.

    Beyond one window the sequence is cut into chunks of `window`; each attends to itself and its predecessor,
    so the work grows with length x 2 windows instead of length squared.
    """
    B, H, L, C = q_BHLC.shape
    device = q_BHLC.device
    if window is None or L <= window:
        return attend(q_BHLC, k_BHLC, v_BHLC, torch.ones(L, L, dtype=torch.bool, device=device).tril())
    chunks = math.ceil(L / window)

    def chunked(x: Tensor, with_previous: bool) -> Tensor:
        x = F.pad(x, (0, 0, window if with_previous else 0, chunks * window - L)).reshape(B * H, -1, window, C)
        return torch.cat([x[:, :-1], x[:, 1:]], 2) if with_previous else x

    distance = torch.arange(window, device=device)[:, None] + window - torch.arange(2 * window, device=device)
    mask = ((distance >= 0) & (distance < window)).repeat(chunks, 1, 1)
    mask[0, :, :window] = False  # before the first chunk there is only padding
    mixed = attend(chunked(q_BHLC, False), chunked(k_BHLC, True), chunked(v_BHLC, True), mask)
    return mixed.reshape(B, H, -1, C)[:, :, :L]


def executed_keys(length: int, window: int | None) -> float:
    """Mean keys a query is multiplied with by `causal_attention`: what the hardware does, masked entries included."""
    if window is None or length <= window:
        return float(length)
    return math.ceil(length / window) * window * 2 * window / length
