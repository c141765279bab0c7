"""One block of a stack: self-attention, cross-attention to latents, SwiGLU, each after an RMSNorm.

Shapes: B sequences, L positions, K keys, D width, H heads, C channels of a head, F hidden units of the SwiGLU, G latent
vectors of a layer, E width of a condition. The residual stream stays in the parameters' dtype; matrix products run in
the dtype given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltm.nn.attention import attend, causal_attention
from ltm.nn.cache import KeyValueCache
from ltm.nn.fused import norm_linear, rms_norm, rotated_heads, swiglu

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

KeysValues = tuple[Tensor, Tensor]
"""One layer's keys and values, (B, H, K, C) each."""


class Linear(nn.Module):
    """A linear map without bias, in the dtype given; each call casts the weight, unless it has that dtype already."""

    def __init__(self, inputs: int, outputs: int, scale: float = 0.02):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * scale)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return F.linear(x.to(dtype), self.weight.to(dtype))


class RMSNorm(nn.Module):
    """RMSNorm with a learned scale, over the last dimension of (..., D)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class Block(nn.Module):
    """Self-attention, cross-attention to the layer's latents if there are any, SwiGLU; an RMSNorm before each.

    A condition, if there is one, shifts and scales the outputs of both norms and scales what both branches add, by
    linear maps (adaLN, arXiv 2212.09748). The maps start at zero, which leaves the block as it is without a condition.

    Args:
        width, heads, hidden: D, H, and hidden units of the SwiGLU.
        window: positions that a causal block attends to, its own included; None for the whole past.
        layers: depth of the stack, by which initial weights of the residual branches are scaled.
        causal: each position sees itself and the past only.
        cross_attention: also attend to the layer's latents.
        condition: E, width of the condition vector; 0 for none.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        hidden: int,
        window: int | None,
        layers: int,
        causal: bool,
        cross_attention: bool,
        condition: int,
    ):
        super().__init__()
        D, self.heads, self.window, self.causal = width, heads, window, causal
        residual = 0.02 / math.sqrt((3 if cross_attention else 2) * layers)
        self.attention_norm = RMSNorm(D)
        self.attention_in = Linear(D, 3 * D)
        self.attention_out = Linear(D, D, residual)
        if cross_attention:
            self.cross_norm = RMSNorm(D)
            self.cross_query = Linear(D, D)
            self.cross_latents = Linear(D, 2 * D)
            self.cross_out = Linear(D, D, residual)
        self.mlp_norm = RMSNorm(D)
        self.mlp_in = Linear(D, 2 * hidden)
        self.mlp_out = Linear(hidden, D, residual)
        self.modulation = Linear(condition, 6 * D, 0.0) if condition else None

    @staticmethod
    def _normed_linear(
        x_BLD: Tensor,
        norm: RMSNorm,
        linear: Linear,
        dtype: torch.dtype,
        shift: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        if shift is None or scale is None:
            return norm_linear(x_BLD, norm.weight, linear.weight, dtype)
        return linear(norm(x_BLD) * (1 + scale) + shift, dtype)

    def modulations(self, condition_BE: Tensor | None, dtype: torch.dtype) -> Sequence[Tensor | None]:
        """Return shift, scale and gate of self-attention, then of the SwiGLU, (B, 1, D) each; or six None."""
        if self.modulation is None or condition_BE is None:
            return (None,) * 6
        return self.modulation(condition_BE, dtype)[:, None].chunk(6, -1)

    def forward(
        self,
        x_BLD: Tensor,
        rotations_LC: Tensor,
        dtype: torch.dtype,
        *,
        latents: KeysValues | None = None,
        past: KeysValues | None = None,
        cache: KeyValueCache | None = None,
        visible: Tensor | BlockMask | None = None,
        condition_BE: Tensor | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """Pass through the block; also return the keys and values that `self_attend` does, whose arguments these are.

        Args:
            latents: keys and values for cross-attention.
            condition_BE: one vector per sequence.
        """
        modulations = self.modulations(condition_BE, dtype)
        x_BLD, keys_values = self.self_attend(
            x_BLD, rotations_LC, dtype, past=past, cache=cache, visible=visible, modulations=modulations[:3]
        )
        if latents is not None:
            x_BLD = self.cross_attend(x_BLD, self.cross_queries(x_BLD, rotations_LC, dtype), latents, dtype)
        return self.mlp(x_BLD, dtype, modulations[3:]), keys_values

    def before_latents(
        self, x_BLD: Tensor, rotations_LC: Tensor, dtype: torch.dtype, visible: Tensor | BlockMask | None
    ) -> tuple[Tensor, Tensor]:
        """The part of a pass that the layer's latents cannot change: self-attention, and cross-attention's queries."""
        x_BLD, _ = self.self_attend(x_BLD, rotations_LC, dtype, visible=visible)
        return x_BLD, self.cross_queries(x_BLD, rotations_LC, dtype)

    def after_latents(self, x_BLD: Tensor, q_BHLC: Tensor, latents: KeysValues, dtype: torch.dtype) -> Tensor:
        """The rest of a pass, given what `before_latents` returns."""
        return self.mlp(self.cross_attend(x_BLD, q_BHLC, latents, dtype), dtype)

    def self_attend(
        self,
        x_BLD: Tensor,
        rotations_LC: Tensor,
        dtype: torch.dtype,
        *,
        past: KeysValues | None = None,
        cache: KeyValueCache | None = None,
        visible: Tensor | BlockMask | None = None,
        modulations: Sequence[Tensor | None] = (None, None, None),
    ) -> tuple[Tensor, KeysValues]:
        """Add self-attention; also return the keys and values that were attended to, those of `past` first.

        Args:
            past: keys and values of earlier positions.
            cache: holds those of earlier positions, and from now on those of these. A causal block gives up what its
                window hides from later positions; where something is held, it takes a single position, a decoding step.
            visible: true where a query may look, broadcast to (B, H, L, K), or a block mask; it replaces the block's
                own rule, and must be given with `past`.
            modulations: shift, scale and gate, from `modulations`.
        """
        shift, scale, gate = modulations
        projected = self._normed_linear(x_BLD, self.attention_norm, self.attention_in, dtype, shift, scale)
        q, k, v = rotated_heads(projected, rotations_LC, self.heads, rotated=2)
        first = past is None and not (cache and len(cache))
        if cache is not None:
            k, v = cache.add(k, v)
            if self.causal and self.window is not None:
                cache.keep(self.window - 1)
        elif past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        if first and visible is None and self.causal:
            attended = causal_attention(q, k, v, self.window)
        else:
            attended = attend(q, k, v, visible)
        return gated(x_BLD, self.attention_out(attended.transpose(1, 2).flatten(2), dtype), gate), (k, v)

    def latent_keys_values(self, z_BGD: Tensor, rotations_GC: Tensor, dtype: torch.dtype) -> KeysValues:
        """Return keys (rotated) and values of one layer's latents, (B, H, G, C) each."""
        k, v = rotated_heads(self.cross_latents(z_BGD, dtype), rotations_GC, self.heads, rotated=1)
        return k, v

    def cross_queries(self, x_BLD: Tensor, rotations_LC: Tensor, dtype: torch.dtype) -> Tensor:
        """Return queries of the cross-attention, (B, H, L, C); they do not depend on this layer's latents."""
        projected = self._normed_linear(x_BLD, self.cross_norm, self.cross_query, dtype)
        (q,) = rotated_heads(projected, rotations_LC, self.heads, rotated=1)
        return q

    def cross_attend(self, x_BLD: Tensor, q_BHLC: Tensor, latents: KeysValues, dtype: torch.dtype) -> Tensor:
        """Add cross-attention to the latents' keys and values."""
        attended = attend(q_BHLC, *latents)
        return x_BLD + self.cross_out(attended.transpose(1, 2).flatten(2), dtype)

    def mlp(
        self, x_BLD: Tensor, dtype: torch.dtype, modulations: Sequence[Tensor | None] = (None, None, None)
    ) -> Tensor:
        """Add the SwiGLU (arXiv 2002.05202)."""
        shift, scale, gate_BD = modulations
        gate_and_up = self._normed_linear(x_BLD, self.mlp_norm, self.mlp_in, dtype, shift, scale)
        return gated(x_BLD, self.mlp_out(swiglu(gate_and_up), dtype), gate_BD)


def gated(x_BLD: Tensor, added_BLD: Tensor, gate: Tensor | None) -> Tensor:
    """Return x + (1 + gate) added; x + added without a gate."""
    return x_BLD + (added_BLD if gate is None else added_BLD * (1 + gate))
