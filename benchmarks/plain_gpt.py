"""A plain GPT with the shape of the family `ar`, and a nanoGPT-style update: what our training is measured against.

The usual parts of torch and autograd, nothing of the library's: `nn.RMSNorm`, `nn.Linear`, rotary positions by complex
products, `F.scaled_dot_product_attention`, SwiGLU, a tied head over all tokens at once, `F.cross_entropy`; autocast for
bfloat16, gradient clipping, fused AdamW. Parameters have the names of `ltm.nn.transformer`, so that weights can be
copied, and both networks compute the same function. Shapes: B texts, L positions, D width, H heads, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltm.nn.transformer import TransformerConfig


class PlainBlock(nn.Module):
    """Attention and SwiGLU."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        D = config.width
        self.heads = config.heads
        self.attention_norm = nn.RMSNorm(D, eps=1e-5)
        self.attention_in = nn.Linear(D, 3 * D, bias=False)
        self.attention_out = nn.Linear(D, D, bias=False)
        self.mlp_norm = nn.RMSNorm(D, eps=1e-5)
        self.mlp_in = nn.Linear(D, 2 * config.hidden, bias=False)
        self.mlp_out = nn.Linear(config.hidden, D, bias=False)

    def forward(self, x_BLD: Tensor, rotations_LC: Tensor, mask: Tensor | None) -> Tensor:
        """Attend to the past, or to what the mask allows of it."""
        B, L, D = x_BLD.shape
        q, k, v = self.attention_in(self.attention_norm(x_BLD)).split(D, -1)
        q, k, v = (part.view(B, L, self.heads, -1).transpose(1, 2) for part in (q, k, v))
        q, k = rotated(q, rotations_LC), rotated(k, rotations_LC)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x_BLD = x_BLD + self.attention_out(attended.transpose(1, 2).reshape(B, L, D))
        gate, up = self.mlp_in(self.mlp_norm(x_BLD)).chunk(2, -1)
        return x_BLD + self.mlp_out(F.silu(gate) * up)


def rotated(x_BHLC: Tensor, rotations_LC: Tensor) -> Tensor:
    """Turn pairs of channels by their position, in float32 or wider."""
    wide = x_BHLC if x_BHLC.dtype == torch.float64 else x_BHLC.float()
    pairs = torch.view_as_complex(wide.reshape(*x_BHLC.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotations_LC).flatten(-2).to(x_BHLC.dtype)


class PlainGPT(nn.Module):
    """The network; its loss is the mean next-token NLL in nats.

    Args:
        config: shape; without a window every position attends to its whole past, without a mask.
        vocab_size: V, BOS included, which is the last id and never output.
        dtype: of the parameters.
    """

    rotations_LC: Tensor
    mask_LL: Tensor | None

    def __init__(self, config: TransformerConfig, vocab_size: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.vocab_size, L, C = vocab_size, config.max_length - 1, config.width // config.heads
        self.embedding = nn.Parameter(torch.randn(vocab_size, config.width) * 0.02)
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-5)
        self.to(dtype)
        angles = torch.arange(L)[:, None].double() * 1e4 ** (-torch.arange(0, C, 2).double() / C)
        turns = torch.polar(torch.ones_like(angles), angles)
        wide = torch.complex128 if dtype == torch.float64 else torch.complex64
        self.register_buffer("rotations_LC", turns.to(wide), persistent=False)
        near = torch.ones(L, L, dtype=torch.bool).tril().triu(1 - (config.window or L))
        masked = config.window is not None and config.window < L
        self.register_buffer("mask_LL", near if masked else None, persistent=False)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Return the mean NLL of the tokens, each given BOS and those before it."""
        L = tokens_BL.shape[1]
        x_BLD = F.embedding(F.pad(tokens_BL, (1, 0), value=self.vocab_size - 1)[:, :-1], self.embedding)
        mask = None if self.mask_LL is None else self.mask_LL[:L, :L]
        for block in self.blocks:
            x_BLD = block(x_BLD, self.rotations_LC[:L], mask)
        logits_BLV = F.linear(self.norm(x_BLD), self.embedding[:-1])
        return F.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL.flatten())


def optimizer_of(
    network: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """Return a fused AdamW that decays matrices only."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def plain_update(
    network: PlainGPT, optimizer: torch.optim.Optimizer, tokens_BL: Tensor, *, clip: float, dtype: torch.dtype
) -> float:
    """Take one step on one batch; return the loss."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(tokens_BL.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = network(tokens_BL)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimizer.step()
    return float(loss.detach())
