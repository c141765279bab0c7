"""The Transformer of published diffusion models: the network of MDLM, SEDD, BD3-LM, Duo and MDLM's AR control.

LayerNorms without bias, a GELU MLP, a head of its own with a bias, and shifts, scales and gates from the noise level
sigma (DiT, arXiv 2212.09748). It is used like `ltm.nn.transformer.Transformer`, whose attention, caches and rotations
it shares, so that every bound runs on it unchanged. Published rows are those of GPT-2's ids, then a mask or a padding
state; there is no BOS, and texts open with the id of <|endoftext|>. Shapes: B sequences, L positions, D width, E width
of the condition, V - 1 outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltm.errors import UserError
from ltm.nn.block import Block, KeysValues, Linear, gated
from ltm.nn.transformer import Transformer, TransformerConfig

FREQUENCIES = 128
"""Sines and cosines of sigma that the condition is made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiTConfig:
    """Shape of a published network; its MLP has 4D hidden units, and its attention no window.

    Attributes:
        layers, width, heads: number of blocks, D, and heads.
        max_length: the most positions of a sequence, the first one included.
        condition_width: E; 0 for a network that is told no noise level, as an autoregressive one.

    Raises:
        ValueError: a size below 1, fewer than two positions, or not an even number of channels per head.
    """

    layers: int
    width: int
    heads: int
    max_length: int = 1024
    condition_width: int = 128

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.heads) < 1 or self.condition_width < 0:
            raise ValueError("layers, width and heads must be at least 1, condition_width at least 0")
        if self.max_length < 2:
            raise ValueError(f"max_length must be at least 2, found {self.max_length}")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be an even number of channels times {self.heads} heads")

    @property
    def window(self) -> None:
        """None: attention has no window."""
        return None

    @property
    def hidden(self) -> float:
        """Hidden units of the SwiGLU that costs as much as the MLP."""
        return 8 * self.width / 3

    def resized(self, *, layers: int, width: int, max_length: int) -> TransformerConfig:
        """Raise UserError: the training of public weights is not repeated in small."""
        raise UserError("no small model can be trained like public weights: their training is not known here")


class Affine(Linear):
    """A linear map with bias, in the dtype given."""

    def __init__(self, inputs: int, outputs: int, scale: float = 0.02):
        super().__init__(inputs, outputs, scale)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return F.linear(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class LayerNorm(nn.Module):
    """LayerNorm with a learned scale and no bias, over the last dimension of (..., D)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, None, 1e-5)


class DiTBlock(Block):
    """Self-attention and an MLP, a LayerNorm before each; see `Block`, whose attention this is."""

    def __init__(self, *, width: int, heads: int, layers: int, causal: bool, condition: int):
        nn.Module.__init__(self)
        D, self.heads, self.window, self.causal = width, heads, None, causal
        residual = 0.02 / math.sqrt(2 * layers)
        self.attention_norm, self.mlp_norm = LayerNorm(D), LayerNorm(D)  # type: ignore[assignment]
        self.attention_in, self.attention_out = Linear(D, 3 * D), Linear(D, D, residual)
        self.mlp_in, self.mlp_out = Affine(D, 4 * D), Affine(4 * D, D, residual)
        self.modulation = Affine(condition, 6 * D, 0.0) if condition else None

    @staticmethod
    def _normed_linear(
        x_BLD: Tensor,
        norm: nn.Module,
        linear: Linear,
        dtype: torch.dtype,
        shift: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        normed = norm(x_BLD)
        return linear(normed if shift is None or scale is None else normed * (1 + scale) + shift, dtype)

    def modulations(self, condition_BE: Tensor | None, dtype: torch.dtype) -> Sequence[Tensor | None]:
        """As `Block.modulations`; published gates multiply a branch as they are, where ours add to 1."""
        found = list(super().modulations(condition_BE, dtype))
        return [each - 1 if i % 3 == 2 and each is not None else each for i, each in enumerate(found)]

    def mlp(
        self, x_BLD: Tensor, dtype: torch.dtype, modulations: Sequence[Tensor | None] = (None, None, None)
    ) -> Tensor:
        """Add the MLP, with the tanh form of GELU."""
        shift, scale, gate = modulations
        hidden = F.gelu(self._normed_linear(x_BLD, self.mlp_norm, self.mlp_in, dtype, shift, scale), approximate="tanh")
        return gated(x_BLD, self.mlp_out(hidden, dtype), gate)


class DiT(Transformer):
    """A published network as a decoder of ours.

    Args:
        config: its shape.
        vocab_size: V; ids 0 .. V - 2 are outputs, V - 1 is BOS.
        extra_inputs: 1 if the row after the outputs' is a mask, whose id is V.
        causal: each position sees the past only.
        bos_row: the row that opens a text; that of the last output if None, <|endoftext|> of GPT-2.
    """

    config: DiTConfig  # type: ignore[assignment]

    def __init__(
        self,
        config: DiTConfig,
        vocab_size: int,
        *,
        extra_inputs: int = 1,
        causal: bool = False,
        bos_row: int | None = None,
    ):
        nn.Module.__init__(self)
        D, E, rows = config.width, config.condition_width, vocab_size - 1 + extra_inputs
        self.config, self.causal, self.cross_attention, self.condition = config, causal, False, E
        self.vocab_size, self.extra_inputs, self.compute_dtype = vocab_size, extra_inputs, None
        self.bos_row = vocab_size - 2 if bos_row is None else bos_row
        self.embedding = nn.Parameter(torch.randn(rows, D) * 0.02)
        self.sigma_map = nn.Sequential(nn.Linear(2 * FREQUENCIES, E), nn.SiLU(), nn.Linear(E, E)) if E else None
        blocks = [
            DiTBlock(width=D, heads=config.heads, layers=config.layers, causal=causal, condition=E)
            for _ in range(config.layers)
        ]
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.norm = LayerNorm(D)  # type: ignore[assignment]
        self.last_modulation = Affine(E, 2 * D, 0.0) if E else None
        self.output = nn.Parameter(torch.randn(rows, D + 1) * 0.02)
        """The head's matrix, with its bias as the last column: hidden states end with a constant 1."""

    def frozen(self, dtype: torch.dtype | None) -> Transformer:
        """Raise NotImplementedError: no latents are fitted with this network."""
        raise NotImplementedError("no latents are fitted with a published network")

    def condition_of(self, sigma_B: Tensor) -> Tensor:
        """The condition at noise levels sigma, (B, E), in the parameters' dtype."""
        assert self.sigma_map is not None
        steps = torch.arange(FREQUENCIES, dtype=torch.float64, device=sigma_B.device) / FREQUENCIES
        angles = sigma_B.double()[:, None] * torch.exp(-math.log(1e4) * steps)
        return F.silu(self.sigma_map(torch.cat([angles.cos(), angles.sin()], 1).to(self.norm.weight.dtype)))

    def embed(self, inputs_BL: Tensor) -> Tensor:
        """Look up embeddings, (B, L, D); BOS has the row that opens published texts, and a mask the last one."""
        bos = self.vocab_size - 1
        rows_BL = torch.where(inputs_BL == bos, self.bos_row, inputs_BL - (inputs_BL > bos).long())
        return F.embedding(rows_BL, self.embedding)

    def head(self) -> Tensor:
        """Return the output matrix (V - 1, D + 1), the bias last, in the compute dtype."""
        return self.output[: self.vocab_size - 1].to(self.dtype)

    def run(
        self, x_BLD: Tensor, *, condition_BE: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, list[KeysValues]]:
        """See `Transformer.run`; hidden states are (B, L, D + 1), the last a constant 1, which meets the head's bias.

        Without a condition a network that has one is told that there is no noise.
        """
        if condition_BE is None and self.condition:
            condition_BE = self.condition_of(torch.zeros(1, device=x_BLD.device))
        h_BLD, keys_values = super().run(x_BLD, condition_BE=condition_BE, **options)
        if self.last_modulation is not None and condition_BE is not None:
            shift, scale = self.last_modulation(condition_BE, self.dtype)[:, None].chunk(2, -1)
            h_BLD = h_BLD * (1 + scale) + shift
        return torch.cat([h_BLD, torch.ones_like(h_BLD[..., :1])], -1), keys_values


def decoder_of(
    config: TransformerConfig | DiTConfig,
    vocab_size: int,
    *,
    extra_inputs: int,
    causal: bool,
    condition: int = 0,
    bos_row: int | None = None,
) -> Transformer:
    """The network that a config describes.

    Args:
        condition: E of a Transformer; a DiT's is in its config.
        bos_row: of a DiT, which has no embedding of BOS; see there.
    """
    if isinstance(config, DiTConfig):
        return DiT(config, vocab_size, extra_inputs=extra_inputs, causal=causal, bos_row=bos_row)
    return Transformer(config, vocab_size, extra_inputs=extra_inputs, causal=causal, condition=condition)
