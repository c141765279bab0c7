"""The Transformer stack that every model uses: blocks, a final norm, and a tied embedding and head.

Self-attention is causal within a window, bidirectional, or whatever a mask allows; see `block.py`. Shapes: B sequences,
L positions, K keys, D width, H heads, C channels per head, G latent vectors per layer, E width of a condition, V
vocabulary. The residual stream stays in the parameters' dtype; matrix products run in `compute_dtype`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltm.devices import matmul_dtype
from ltm.nn.attention import block_mask, rotation_table, rotations
from ltm.nn.block import Block, KeysValues, RMSNorm
from ltm.nn.cache import KeyValueCache
from ltm.nn.compiled import compiled, runs_compiled
from ltm.nn.output_head import logits_of

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """Shape of a stack.

    Attributes:
        layers, width, heads, hidden: number of blocks, D, H, and hidden units of the SwiGLU.
        max_length: the most positions of a sequence, BOS included.
        window: positions that a causal stack attends to, its own included; None for the whole past.
        bos_output: BOS is an output of the head as well, for weights that were trained so; what it gets no text has.

    Raises:
        ValueError: a size below 1, fewer than two positions, or not an even number of channels per head.
    """

    layers: int
    width: int
    heads: int
    hidden: int
    max_length: int = 1024
    window: int | None = 256
    bos_output: bool = False

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.heads, self.hidden) < 1:
            raise ValueError("layers, width, heads and hidden must be at least 1")
        if self.max_length < 2:
            raise ValueError(f"max_length must be at least 2 (BOS and one token), found {self.max_length}")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be an even number of channels times {self.heads} heads")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, found {self.window}")

    @classmethod
    def smallest(cls, block_length: int, *, window: int | None) -> TransformerConfig:
        """The stack of the families' `miniature`: two layers of width 8, for blocks of `block_length` tokens."""
        return cls(layers=2, width=8, heads=2, hidden=16, max_length=block_length + 1, window=window)

    def resized(self, *, layers: int, width: int, max_length: int) -> TransformerConfig:
        """A smaller stack: hidden size in proportion to the width, window to the length, about 16 channels per head."""
        window = None if self.window is None else max(2, round(self.window * max_length / self.max_length))
        return TransformerConfig(
            layers=layers,
            width=width,
            heads=max(2, width // 16),
            hidden=round(self.hidden * width / self.width),
            max_length=max_length,
            window=window,
            bos_output=self.bos_output,
        )


class Stack(nn.Module):
    """Blocks and a final norm: embeddings in, hidden states out.

    Args:
        causal: each position sees itself and the past, at most `config.window` positions; otherwise every position
            sees all others, and `config.window` must be None.
        cross_attention: every block also attends to its layer's latents.
        condition: E, width of the condition vector; 0 for none.

    Attributes:
        compute_dtype: dtype of matrix products; None means the parameters' own.

    Raises:
        ValueError: a window in a stack that is not causal.
    """

    def __init__(
        self, config: TransformerConfig, *, causal: bool = True, cross_attention: bool = False, condition: int = 0
    ):
        super().__init__()
        if not causal and config.window is not None:
            raise ValueError(f"bidirectional attention has no window; set window=none, found {config.window}")
        self.config, self.causal, self.cross_attention, self.condition = config, causal, cross_attention, condition
        blocks = [
            Block(
                width=config.width,
                heads=config.heads,
                hidden=config.hidden,
                window=config.window,
                layers=config.layers,
                causal=causal,
                cross_attention=cross_attention,
                condition=condition,
            )
            for _ in range(config.layers)
        ]
        self.blocks: Sequence[Block] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.norm = RMSNorm(config.width)
        self.compute_dtype: torch.dtype | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of matrix products; always float64 for float64 parameters."""
        master = self.norm.weight.dtype
        return master if self.compute_dtype is None or master == torch.float64 else self.compute_dtype

    def matmul_dtype(self, setting: str) -> torch.dtype:
        """Resolve a `ltm.devices.Matmul` setting to a dtype; `auto` chooses by timing products of this stack's size.

        Float64 parameters always give float64.
        """
        weight = self.norm.weight
        if weight.dtype == torch.float64:
            return torch.float64
        return matmul_dtype(setting, weight.device, inputs=self.config.width, outputs=2 * self.config.hidden)

    def rotations(self, positions: Tensor | range) -> Tensor:
        """RoPE rotations, as for `rotate`, of positions (L,), which may be fractions; looked up for a range."""
        channels, weight = self.config.width // self.config.heads, self.norm.weight
        if isinstance(positions, range):
            found = rotation_table(positions.stop, channels, weight.dtype, weight.device)[positions.start :]
        else:
            found = rotations(positions, channels, weight.dtype)
        return torch.view_as_real(found) if runs_compiled(weight) else found

    def compiles(self, x_BLD: Tensor) -> bool:
        """Whether a pass over whole sequences runs compiled: those of full length do, on a GPU.

        Shorter ones come in all lengths, for each of which the compiler would need seconds.
        """
        return x_BLD.shape[1] >= self.config.max_length - 1 and runs_compiled(x_BLD)

    def block_mask(self, x_BLD: Tensor) -> BlockMask | None:
        """What a compiled pass needs to know of a window that hides something; None elsewhere."""
        window, length = self.config.window, x_BLD.shape[1]
        if not self.causal or window is None or length <= window or not self.compiles(x_BLD):
            return None
        return block_mask(length, window, x_BLD.device)

    def run(
        self,
        x_BLD: Tensor,
        *,
        positions_L: Tensor | range | None = None,
        latents: list[KeysValues] | None = None,
        past: list[KeysValues] | None = None,
        caches: list[KeyValueCache] | None = None,
        visible: Tensor | BlockMask | None = None,
        condition_BE: Tensor | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """Return hidden states (B, L, D) after the final norm, and each layer's keys and values, those of `past` first.

        Args:
            x_BLD: embeddings.
            positions_L: positions for RoPE; 0 .. L-1 when None.
            latents: each layer's keys and values for cross-attention.
            past, caches, visible: see `Block.self_attend`; one for each layer.
            condition_BE: one vector per sequence, if the stack was made with `condition`.
        """
        if positions_L is None:
            positions_L = torch.arange(x_BLD.shape[1], device=x_BLD.device)
        rotations_LC, attended_to = self.rotations(positions_L), []
        one_pass = Block.forward
        if past is None and caches is None and self.compiles(x_BLD):
            one_pass = compiled(Block.forward)
            visible = self.block_mask(x_BLD) if visible is None else visible
        for layer, block in enumerate(self.blocks):
            x_BLD, keys_values = one_pass(
                block,
                x_BLD,
                rotations_LC,
                self.dtype,
                latents=latents[layer] if latents is not None else None,
                past=past[layer] if past else None,
                cache=caches[layer] if caches else None,
                visible=visible,
                condition_BE=condition_BE,
            )
            attended_to.append(keys_values)
        return self.norm(x_BLD), attended_to


M = TypeVar("M", bound=nn.Module)


def _copied(module: M, changed: Callable[[str, Tensor], Tensor]) -> M:
    """Return a copy of a module and its parts with other parameters, without gradients.

    Nothing is initialised: this runs once per update and per fit, where making a stack anew would cost small models
    several percent of either.
    """
    twin = copy.copy(module)
    twin._parameters = {
        name: None if p is None else nn.Parameter(changed(name, p), requires_grad=False)
        for name, p in module._parameters.items()
    }
    twin._modules = {name: None if part is None else _copied(part, changed) for name, part in module._modules.items()}
    return twin


class Transformer(Stack):
    """A stack with an embedding. The head is the embedding without BOS and the ids after it, which are never output.

    Args:
        vocab_size: V, ids of the tokenizer and BOS, the last one.
        extra_inputs: number of further ids V, V + 1, ... that are inputs only, such as a mask.

    The other arguments are those of `Stack`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        vocab_size: int,
        *,
        extra_inputs: int = 0,
        causal: bool = True,
        cross_attention: bool = False,
        condition: int = 0,
    ):
        # Drawn first, so that an encoder added later changes no other weight under the same seed.
        embedding = torch.randn(vocab_size + extra_inputs, config.width) * 0.02
        super().__init__(config, causal=causal, cross_attention=cross_attention, condition=condition)
        self.vocab_size, self.extra_inputs = vocab_size, extra_inputs
        self.embedding = nn.Parameter(embedding)

    @property
    def block_length(self) -> int:
        """The most tokens that fit after the BOS."""
        return self.config.max_length - 1

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    def frozen(self, dtype: torch.dtype | None) -> Transformer:
        """Return a copy without gradients whose matrices are cast to `dtype` once; what is not cast shares memory.

        The embedding keeps its dtype for look-ups; `head` casts it.
        """
        target = self.norm.weight.dtype if dtype is None or self.norm.weight.dtype == torch.float64 else dtype
        twin = _copied(
            self, lambda name, p: p.detach().to(target) if p.ndim > 1 and name != "embedding" else p.detach()
        )
        twin.compute_dtype = dtype
        return twin

    def head(self) -> Tensor:
        """Return the output matrix (V - 1, D): the embedding of every id before BOS, in the compute dtype.

        With `bos_output`, (V, D).
        """
        return self.embedding[: self.vocab_size - 1 + self.config.bos_output].to(self.dtype)

    def embed(self, inputs_BL: Tensor) -> Tensor:
        """Look up embeddings, (B, L, D). Indexing would sum its gradient in an order that differs between runs."""
        return F.embedding(inputs_BL, self.embedding)

    def after_bos(self, tokens_BL: Tensor) -> Tensor:
        """Put BOS before the tokens, (B, L + 1)."""
        return F.pad(tokens_BL, (1, 0), value=self.vocab_size - 1)

    def with_bos(self, tokens_BL: Tensor) -> Tensor:
        """Return the inputs of a teacher-forced pass, (B, L): BOS, then all tokens but the last."""
        return self.after_bos(tokens_BL)[:, :-1]

    def forward(
        self,
        inputs_BL: Tensor,
        latents: list[KeysValues] | None = None,
        *,
        visible: Tensor | None = None,
        condition_BE: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states (B, L, D) after the final norm, for inputs at positions 0 .. L-1."""
        return self.run(self.embed(inputs_BL), latents=latents, visible=visible, condition_BE=condition_BE)[0]

    @torch.no_grad()
    def decode(
        self, inputs_BL: Tensor, start: int, latents: list[KeysValues] | None, past: list[KeyValueCache] | None
    ) -> tuple[Tensor, list[KeyValueCache]]:
        """Return logits (B, V - 1) after the last of `inputs_BL`, whose first position is `start`, and the KV caches.

        These are the ones given, with the new positions added to them.
        """
        caches = [KeyValueCache() for _ in self.blocks] if past is None else past
        positions_L = range(start, start + inputs_BL.shape[1])
        h_BLD, _ = self.run(self.embed(inputs_BL), positions_L=positions_L, latents=latents, caches=caches)
        return logits_of(h_BLD[:, -1], self.head()[: self.vocab_size - 1]), caches


def set_matmul_dtype(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Run the matrix products of every stack in `model` in `dtype`; None means the parameters' own."""
    for module in model.modules():
        if isinstance(module, Stack):
            module.compute_dtype = dtype
