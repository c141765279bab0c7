"""One stack of Transformer blocks for every model: RMSNorm, RoPE, windowed attention, cross-attention, SwiGLU.

Shapes: B sequences, L positions, D width, H heads, C channels of a head, G latent vectors a layer.
The residual stream stays in the parameters' dtype; matrix products run in `compute_dtype`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """Shape of a stack. `window` counts the position itself; None attends to the whole past."""

    layers: int
    width: int
    heads: int
    hidden: int
    max_length: int = 1024
    window: int | None = 256

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.heads, self.hidden) < 1:
            raise ValueError("layers, width, heads and hidden must be at least 1")
        if self.max_length < 2:
            raise ValueError(f"max_length must be at least 2 (BOS and one token), found {self.max_length}")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be an even number of channels times {self.heads} heads")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, found {self.window}")


KeysValues = tuple[Tensor, Tensor]


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


class Linear(nn.Module):
    """A bias-free product in the given dtype; the weight is cast once a call, or not at all when it already fits."""

    def __init__(self, inputs: int, outputs: int, scale: float = 0.02):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * scale)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return F.linear(x.to(dtype), self.weight.to(dtype))


class Block(nn.Module):
    """Self-attention, cross-attention to the layer's latents where there are any, SwiGLU; pre-RMSNorm each."""

    def __init__(self, config: TransformerConfig, cross_attention: bool):
        super().__init__()
        D, self.heads, self.window = config.width, config.heads, config.window
        residual = 0.02 / math.sqrt((3 if cross_attention else 2) * config.layers)
        self.attention_norm = nn.RMSNorm(D, eps=1e-5)
        self.attention_in = Linear(D, 3 * D)
        self.attention_out = Linear(D, D, residual)
        if cross_attention:
            self.cross_norm = nn.RMSNorm(D, eps=1e-5)
            self.cross_query = Linear(D, D)
            self.cross_latents = Linear(D, 2 * D)
            self.cross_out = Linear(D, D, residual)
        self.mlp_norm = nn.RMSNorm(D, eps=1e-5)
        self.mlp_in = Linear(D, 2 * config.hidden)
        self.mlp_out = Linear(config.hidden, D, residual)

    def _heads(self, x_BLX: Tensor) -> Tensor:
        return x_BLX.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def self_attend(
        self, x_BLD: Tensor, rotations_LC: Tensor, dtype: torch.dtype, past: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        """Add self-attention; also return the keys and values that later positions will need.

        With `past`, the L positions must be one: a decoding step.
        """
        q, k, v = (self._heads(p) for p in self.attention_in(self.attention_norm(x_BLD), dtype).chunk(3, -1))
        q, k = rotate(q, rotations_LC), rotate(k, rotations_LC)
        if past is None:
            attended = causal_attention(q, k, v, self.window)
        else:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
            if self.window is not None:
                k, v = k[:, :, -self.window :], v[:, :, -self.window :]
            attended = attend(q, k, v)
        return x_BLD + self.attention_out(attended.transpose(1, 2).flatten(2), dtype), (k, v)

    def latent_keys_values(self, z_BGD: Tensor, rotations_GC: Tensor, dtype: torch.dtype) -> KeysValues:
        """Keys (rotated) and values of one layer's latents, (B, H, G, C) each."""
        k, v = (self._heads(p) for p in self.cross_latents(z_BGD, dtype).chunk(2, -1))
        return rotate(k, rotations_GC), v

    def cross_queries(self, x_BLD: Tensor, rotations_LC: Tensor, dtype: torch.dtype) -> Tensor:
        """Queries of the cross-attention, (B, H, L, C); they do not depend on this layer's latents."""
        return rotate(self._heads(self.cross_query(self.cross_norm(x_BLD), dtype)), rotations_LC)

    def cross_attend(self, x_BLD: Tensor, q_BHLC: Tensor, latents: KeysValues, dtype: torch.dtype) -> Tensor:
        """Add what the latents say."""
        attended = attend(q_BHLC, *latents)
        return x_BLD + self.cross_out(attended.transpose(1, 2).flatten(2), dtype)

    def mlp(self, x_BLD: Tensor, dtype: torch.dtype) -> Tensor:
        """Add the SwiGLU (arXiv 2002.05202)."""
        gate, up = self.mlp_in(self.mlp_norm(x_BLD), dtype).chunk(2, -1)
        return x_BLD + self.mlp_out(F.silu(gate) * up, dtype)


class Transformer(nn.Module):
    """Embedding, blocks and final norm. The head is the embedding itself, less the BOS row: BOS is never output.

    Attributes:
        compute_dtype: dtype of matrix products; None means the parameters' own.
    """

    def __init__(self, config: TransformerConfig, vocab_size: int, *, cross_attention: bool):
        super().__init__()
        self.config, self.vocab_size, self.cross_attention = config, vocab_size, cross_attention
        self.embedding = nn.Parameter(torch.randn(vocab_size, config.width) * 0.02)
        blocks = [Block(config, cross_attention) for _ in range(config.layers)]
        self.blocks: Sequence[Block] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.norm = nn.RMSNorm(config.width, eps=1e-5)
        self.compute_dtype: torch.dtype | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of matrix products; float64 parameters are never computed with less."""
        master = self.norm.weight.dtype
        return master if self.compute_dtype is None or master == torch.float64 else self.compute_dtype

    def frozen(self, dtype: torch.dtype | None) -> Transformer:
        """A copy without gradients whose matrices are cast to `dtype` once; shares memory where nothing is cast.

        The embedding keeps its dtype for look-ups; see `head`.
        """
        with torch.device("meta"):
            copy = Transformer(self.config, self.vocab_size, cross_attention=self.cross_attention)
        copy.compute_dtype = dtype
        own = self.norm.weight.dtype if dtype is None or self.norm.weight.dtype == torch.float64 else dtype
        state = {
            name: p.detach().to(own) if p.ndim > 1 and name != "embedding" else p.detach()
            for name, p in self.named_parameters()
        }
        copy.load_state_dict(state, assign=True)
        return copy.requires_grad_(False).train(self.training)

    def head(self) -> Tensor:
        """The output matrix (V - 1, D): the tied embedding of every id but BOS, in the compute dtype."""
        return self.embedding[:-1].to(self.dtype)

    def embed(self, inputs_BL: Tensor) -> Tensor:
        """Embeddings (B, L, D). Not by indexing, whose gradient is summed in an order that differs between runs."""
        return F.embedding(inputs_BL, self.embedding)

    def rotations(self, positions: Tensor) -> Tensor:
        """RoPE rotations for given positions, which may be fractions."""
        return rotations(positions, self.config.width // self.config.heads, self.norm.weight.dtype)

    def with_bos(self, tokens_BL: Tensor) -> Tensor:
        """Inputs of a teacher-forced pass: BOS, then all tokens but the last, (B, L)."""
        bos = tokens_BL.new_full((tokens_BL.shape[0], 1), self.vocab_size - 1)
        return torch.cat([bos, tokens_BL[:, :-1]], 1)

    def forward(self, inputs_BL: Tensor, latents: list[KeysValues] | None = None) -> Tensor:
        """Hidden states (B, L, D) after the final norm, for inputs at positions 0 .. L-1."""
        x, rotations_LC = (
            self.embed(inputs_BL),
            self.rotations(torch.arange(inputs_BL.shape[1], device=inputs_BL.device)),
        )
        for layer, block in enumerate(self.blocks):
            x, _ = block.self_attend(x, rotations_LC, self.dtype)
            if latents is not None:
                x = block.cross_attend(x, block.cross_queries(x, rotations_LC, self.dtype), latents[layer], self.dtype)
            x = block.mlp(x, self.dtype)
        return self.norm(x)

    def decode(
        self, inputs_BL: Tensor, start: int, latents: list[KeysValues] | None, past: list[KeysValues] | None
    ) -> tuple[Tensor, list[KeysValues]]:
        """Logits (B, V - 1) after the last of `inputs_BL`, which sit at positions `start`.., and the KV cache."""
        x = self.embed(inputs_BL)
        rotations_LC = self.rotations(torch.arange(start, start + inputs_BL.shape[1], device=inputs_BL.device))
        cache = []
        for layer, block in enumerate(self.blocks):
            x, kept = block.self_attend(x, rotations_LC, self.dtype, past[layer] if past else None)
            cache.append(kept)
            if latents is not None:
                x = block.cross_attend(x, block.cross_queries(x, rotations_LC, self.dtype), latents[layer], self.dtype)
            x = block.mlp(x, self.dtype)
        hidden = self.norm(x[:, -1]).to(self.dtype)
        return hidden @ self.head().T, cache


def set_matmul_dtype(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Run the matrix products of every stack in `model` in `dtype`; None means the parameters' own."""
    for module in model.modules():
        if isinstance(module, Transformer):
            module.compute_dtype = dtype
