"""Functions for attention and rotary positions.

Shapes: B sequences, H heads, L queries, K keys, C channels per head.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def rotations(positions: Tensor, channels: int, dtype: torch.dtype, base: float = 1e4) -> Tensor:
    """Return unit complex numbers (L, C/2) that rotate pairs of channels by position (RoPE, arXiv 2104.09864)."""
    inverse = base ** (-torch.arange(0, channels, 2, dtype=torch.float64, device=positions.device) / channels)
    angles = positions.double()[:, None] * inverse
    return torch.polar(torch.ones_like(angles), angles).to(
        torch.complex128 if dtype == torch.float64 else torch.complex64
    )


def rotation_table(end: int, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the rotations of positions 0 .. end - 1, from a kept table: decoders ask for one at a time."""
    return _rotation_table(max(128, 1 << (end - 1).bit_length()), channels, dtype, device)[:end]


@functools.lru_cache(maxsize=16)
def _rotation_table(length: int, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return rotations(torch.arange(length, device=device), channels, dtype)


def rotate(x_BHLC: Tensor, rotations_LC: Tensor, *, contiguous: bool = False) -> Tensor:
    """Apply RoPE to interleaved pairs of channels, in float32 or wider.

    Args:
        rotations_LC: unit complex numbers (L, C/2), or their real and imaginary parts (L, C/2, 2), since compilers do
            not fuse complex arithmetic.
        contiguous: write a contiguous result in the same pass, whatever the layout of `x_BHLC`; not differentiable.
    """
    wide = x_BHLC if x_BHLC.dtype == torch.float64 else x_BHLC.float()
    if not rotations_LC.is_complex():
        (real, imaginary), (cos, sin) = wide.unflatten(-1, (-1, 2)).unbind(-1), rotations_LC.unbind(-1)
        turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], -1)
        return turned.flatten(-2).to(x_BHLC.dtype)
    if wide.stride(-1) != 1:  # gradients may arrive expanded or transposed
        wide = wide.contiguous()
    pairs = torch.view_as_complex(wide.view(*wide.shape[:-1], wide.shape[-1] // 2, 2))
    out = torch.empty(pairs.shape, dtype=pairs.dtype, device=pairs.device) if contiguous else None
    return torch.view_as_real(torch.mul(pairs, rotations_LC, out=out)).flatten(-2).to(x_BHLC.dtype)


FEW_KEYS = 128
"""Up to this many keys, plain products beat the fused kernel on a CPU, forward and back; in bfloat16 they always do."""


class _Products(torch.autograd.Function):
    """softmax(q kᵀ / √C + mask) v with an in-place gradient; autograd makes twice as many passes over memory."""

    @staticmethod
    def forward(ctx: Any, q_BHLC: Tensor, k_BHKC: Tensor, v_BHKC: Tensor, mask: Tensor | None) -> Tensor:
        scores = (q_BHLC @ k_BHKC.transpose(-1, -2)).mul_(q_BHLC.shape[-1] ** -0.5)
        if mask is not None:
            scores.add_(mask)
        weights = scores.softmax(-1)
        ctx.save_for_backward(q_BHLC, k_BHKC, v_BHKC, weights)
        return weights @ v_BHKC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        of_q, of_k, of_v = ctx.needs_input_grad[:3]
        q_BHLC, k_BHKC, v_BHKC, weights = ctx.saved_tensors
        of_weights = upstream @ v_BHKC.transpose(-1, -2)
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_scores.mul_(q_BHLC.shape[-1] ** -0.5)
        return (
            of_scores @ k_BHKC if of_q else None,
            of_scores.transpose(-1, -2) @ q_BHLC if of_k else None,
            weights.transpose(-1, -2) @ upstream if of_v else None,
            None,
        )


def attend(q_BHLC: Tensor, k_BHKC: Tensor, v_BHKC: Tensor, mask: Tensor | BlockMask | None = None) -> Tensor:
    """Softmax attention over K keys, (B, H, L, C).

    Args:
        mask: true where a query may look, or what to add to scores; it broadcasts to (B, H, L, K). Or a `block_mask`.
    """
    if mask is not None and not isinstance(mask, Tensor):
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention(q_BHLC, k_BHKC, v_BHKC, block_mask=mask)
    if mask is not None and mask.dtype == torch.bool:
        mask = additive(mask, q_BHLC.dtype)
    few = k_BHKC.shape[2] <= FEW_KEYS or q_BHLC.dtype == torch.bfloat16
    if few and q_BHLC.device.type == "cpu" and torch.is_grad_enabled():
        return _Products.apply(q_BHLC, k_BHKC, v_BHKC, mask)
    if mask is not None:  # a mask of fewer dimensions would not get the fused kernel
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    return F.scaled_dot_product_attention(q_BHLC, k_BHKC, v_BHKC, attn_mask=mask)


@functools.lru_cache(maxsize=16)
def block_mask(length: int, window: int | None, device: torch.device) -> BlockMask:
    """A causal window as compiled code has it: blocks of keys that no query of a block sees are left out."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        past = query >= key
        return past if window is None else past & (query - key < window)

    return create_block_mask(visible, None, None, length, length, device=device)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what a boolean mask adds to scores: 0 where it is true, -inf elsewhere."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)


@functools.lru_cache(maxsize=64)
def _causal_mask(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return additive(torch.ones(length, length, dtype=torch.bool, device=device).tril(), dtype)


@functools.lru_cache(maxsize=64)
def _window_mask(window: int, chunks: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    distance = torch.arange(window, device=device)[:, None] + window - torch.arange(2 * window, device=device)
    mask = ((distance >= 0) & (distance < window)).repeat(chunks, 1, 1)
    mask[0, :, :window] = False  # only padding precedes the first chunk
    return additive(mask, dtype)


def causal_attention(q_BHLC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, window: int | None) -> Tensor:
    """Softmax attention of each position to itself and the past, at most `window` positions, (B, H, L, C).

    A sequence longer than the window is cut into chunks of `window`, each of which attends to itself and its
    predecessor, so that work grows with length x 2 windows instead of length squared.
    """
    B, H, L, C = q_BHLC.shape
    dtype, device = q_BHLC.dtype, q_BHLC.device
    if window is None or L <= window:
        return attend(q_BHLC, k_BHLC, v_BHLC, _causal_mask(L, dtype, device))
    chunks = math.ceil(L / window)

    def chunked(x: Tensor, with_previous: bool) -> Tensor:
        x = F.pad(x, (0, 0, window if with_previous else 0, chunks * window - L)).reshape(B * H, -1, window, C)
        return torch.cat([x[:, :-1], x[:, 1:]], 2) if with_previous else x

    mask = _window_mask(window, chunks, dtype, device)
    mixed = attend(chunked(q_BHLC, False), chunked(k_BHLC, True), chunked(v_BHLC, True), mask)
    return mixed.reshape(B, H, -1, C)[:, :, :L]


def executed_keys(length: int, window: int | None) -> float:
    """Mean number of keys that `causal_attention` multiplies each query with, masked entries included."""
    if window is None or length <= window:
        return float(length)
    return math.ceil(length / window) * window * 2 * window / length
