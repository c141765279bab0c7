"""Parts of a Transformer block as single functions with hand-written gradients.

A small model spends more time between its matrix products than in them: autograd makes a dozen passes over memory where
two or three suffice. Each function equals the composition that its docstring names, gradients included. Where no
gradient is recorded, as in decoding, the values are computed without autograd's own call, which would take longer than
some of them. Matrix products run in the dtype given, everything else in the parameters' own. While `torch.compile`
reads them, for a GPU, each is the composition itself, which the compiler fuses further.

Shapes: B sequences, L positions, N positions of all sequences, D width, H heads, C channels per head, F hidden units.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ltm.nn.attention import rotate

EPSILON = 1e-5
"""Added to the mean square in every RMSNorm."""


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x / rms(x) and 1 / rms(x)."""
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(EPSILON).rsqrt_()
    return x * scale, scale


def _unit_gradient(upstream: Tensor, unit: Tensor, scale: Tensor) -> Tensor:
    """Return the gradient of `_unit` with respect to x; overwrites `upstream`."""
    along = (upstream * unit).sum(-1, keepdim=True).div_(-unit.shape[-1])
    return upstream.addcmul_(unit, along).mul_(scale)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor) -> Tensor:
        unit, scale = _unit(x)
        ctx.save_for_backward(unit, scale, weight_D)
        return unit * weight_D

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor | None]:
        unit, scale, weight_D = ctx.saved_tensors
        of_weight = (upstream * unit).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return _unit_gradient(upstream * weight_D, unit, scale), of_weight


def rms_norm(x: Tensor, weight_D: Tensor) -> Tensor:
    """Return x / sqrt(mean(x²) + 1e-5) · weight over the last dimension (arXiv 1910.07467); equals `F.rms_norm`."""
    if torch.compiler.is_compiling():
        return F.rms_norm(x.to(weight_D.dtype), weight_D.shape, weight_D, EPSILON)
    if not torch.is_grad_enabled():
        return _unit(x)[0] * weight_D
    return _RMSNorm.apply(x, weight_D)


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, norm_D: Tensor, weight_XD: Tensor, dtype: torch.dtype) -> Tensor:
        unit, scale = _unit(x_ND)
        cast = weight_XD.to(dtype)
        ctx.save_for_backward(unit, scale, norm_D, cast)
        ctx.master = weight_XD.dtype
        return (unit * norm_D).to(dtype) @ cast.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        unit, scale, norm_D, cast = ctx.saved_tensors
        of_x, of_norm, of_weight = ctx.needs_input_grad[:3]
        weight_gradient = (upstream.T @ (unit * norm_D).to(cast.dtype)).to(ctx.master) if of_weight else None
        if not (of_x or of_norm):
            return None, None, weight_gradient, None
        of_normed = (upstream @ cast).to(unit.dtype)
        norm_gradient = (of_normed * unit).sum(0) if of_norm else None
        return _unit_gradient(of_normed.mul_(norm_D), unit, scale), norm_gradient, weight_gradient, None


def norm_linear(x: Tensor, norm_D: Tensor, weight_XD: Tensor, dtype: torch.dtype) -> Tensor:
    """Apply `F.linear` to `rms_norm`, (..., D) to (..., X) in `dtype`, without keeping the normalised input."""
    if torch.compiler.is_compiling():
        return F.linear(rms_norm(x, norm_D).to(dtype), weight_XD.to(dtype))
    if not torch.is_grad_enabled():
        return F.linear((_unit(x)[0] * norm_D).to(dtype), weight_XD.to(dtype))
    return _NormLinear.apply(x.flatten(0, -2), norm_D, weight_XD, dtype).unflatten(0, x.shape[:-1])


def _activated(gate_and_up: Tensor) -> tuple[Tensor, Tensor]:
    """Return silu(gate) and silu(gate) · up."""
    gate, up = gate_and_up.chunk(2, -1)
    activated = F.silu(gate)
    return activated, activated * up


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        activated, out = _activated(gate_and_up)
        ctx.save_for_backward(gate_and_up, activated)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        gate_and_up, activated = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, -1)
        gradient = torch.empty_like(gate_and_up)
        of_gate, of_up = gradient.chunk(2, -1)
        torch.mul(upstream, activated, out=of_up)
        torch.ops.aten.silu_backward.grad_input(upstream * up, gate, grad_input=of_gate)
        return gradient


def swiglu(gate_and_up: Tensor) -> Tensor:
    """Return silu(gate) · up of the two halves of the last dimension, (..., 2 F) to (..., F) (arXiv 2002.05202)."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return _activated(gate_and_up)[1]
    return _SwiGLU.apply(gate_and_up)


def _split_and_turned(x_BLX: Tensor, rotations_LC: Tensor, heads: int, rotated: int) -> tuple[Tensor, ...]:
    (B, L, X), C = x_BLX.shape, 2 * rotations_LC.shape[-1]
    split = x_BLX.reshape(B, L, X // (heads * C), heads, C).permute(2, 0, 3, 1, 4)
    turned = rotate(split[:rotated], rotations_LC, contiguous=True)
    return *turned.unbind(0), *split[rotated:].contiguous().unbind(0)


class _RotatedHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLX: Tensor, rotations_LC: Tensor, heads: int, rotated: int) -> tuple[Tensor, ...]:
        ctx.save_for_backward(rotations_LC)
        ctx.shape, ctx.rotated = x_BLX.shape, rotated
        return _split_and_turned(x_BLX, rotations_LC, heads, rotated)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (rotations_LC,) = ctx.saved_tensors
        gradient = torch.empty(ctx.shape, dtype=upstream[0].dtype, device=rotations_LC.device)
        parts = gradient.unflatten(-1, (len(upstream), upstream[0].shape[1], -1)).permute(2, 0, 3, 1, 4)
        backwards = rotations_LC.conj().resolve_conj()
        for number, (part, given) in enumerate(zip(parts, upstream, strict=True)):
            part.copy_(rotate(given, backwards, contiguous=True) if number < ctx.rotated else given)
        return gradient, None, None, None


def rotated_heads(x_BLX: Tensor, rotations_LC: Tensor, heads: int, *, rotated: int) -> tuple[Tensor, ...]:
    """Split the last dimension into parts of `heads` heads, (B, H, L, C) each, and apply RoPE to the first `rotated`.

    Equals `chunk`, `unflatten`, `transpose` and `ltm.nn.attention.rotate` in turn; the parts are contiguous.

    Args:
        x_BLX: queries, keys and values side by side, or some of them; X = parts · H · C.
        rotations_LC: as for `rotate`, one row per position.
    """
    if torch.compiler.is_compiling():
        parts = x_BLX.unflatten(-1, (-1, heads, 2 * rotations_LC.shape[1])).permute(2, 0, 3, 1, 4).unbind(0)
        return *(rotate(part, rotations_LC) for part in parts[:rotated]), *parts[rotated:]
    if not rotations_LC.is_complex():
        rotations_LC = torch.view_as_complex(rotations_LC)
    if not torch.is_grad_enabled():
        return _split_and_turned(x_BLX, rotations_LC, heads, rotated)
    return _RotatedHeads.apply(x_BLX, rotations_LC, heads, rotated)
