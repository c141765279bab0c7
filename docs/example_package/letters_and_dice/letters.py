"""The model family `letters`: each token has a probability of its own, whatever stands before it.

Shapes: B sequences, L stream tokens, V vocabulary, the BOS included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ltm import Cost, ExactModel, Loss, Preset


@dataclass(frozen=True, slots=True, kw_only=True)
class LettersConfig:
    """Settings of `letters`; `smoothing` is added to every count."""

    vocab_size: int = 0
    block: int = 32
    smoothing: float = 0.5


class Letters(ExactModel):
    """p(token), from counts."""

    family = "letters"
    config_class = LettersConfig
    learns_by_counting = True
    presets: ClassVar = {
        "letters-tiny": Preset(
            config=LettersConfig(), tokenizer="bytes", training={"budget": "tokens=64k", "batch": 8}, trains_itself=True
        )
    }

    def __init__(self, config: LettersConfig):
        super().__init__()
        self.config = config
        self._counting = torch.zeros(max(0, config.vocab_size - 1), dtype=torch.int64)
        self.counts_V = nn.Parameter(self._counting.clone(), requires_grad=False)

    @classmethod
    def miniature(cls, vocab_size: int, block_length: int) -> LettersConfig:
        """There is nothing to leave out."""
        return LettersConfig(vocab_size=vocab_size, block=block_length)

    @classmethod
    def twin_config(cls, config: Any, *, vocab_size: int, block_length: int, **shape: Any) -> Any:
        """There is no network to make smaller."""
        return replace(config, vocab_size=vocab_size, block=block_length)

    @property
    def block_length(self) -> int:
        """As configured."""
        return self.config.block

    def count(self, tokens_BL: Tensor) -> None:
        """Add up how often each token occurs."""
        self._counting += tokens_BL.flatten().cpu().bincount(minlength=self.vocab_size - 1)

    def finish(self) -> None:
        """Score by what was counted."""
        self.counts_V.copy_(self._counting)
        self._counting = torch.zeros_like(self._counting)

    def log_p(self) -> Tensor:
        """log p of every token, float64 (V - 1,)."""
        smoothed_V = self.counts_V.double() + self.config.smoothing
        return (smoothed_V / smoothed_V.sum()).log()

    def token_nats(self, tokens_BL: Tensor) -> Tensor:
        """See `ExactModel.token_nats`."""
        return self.log_p()[tokens_BL]

    def decode(self, inputs_BL: Tensor, start: int, latents: Sequence[Any] | None, past: Any) -> tuple[Tensor, Any]:
        """Logits (B, V - 1) of the next token, the same after any text."""
        return self.log_p().expand(len(inputs_BL), -1), inputs_BL

    def training_loss(self, tokens_BL: Tensor, *, rng: Any, progress: float = 1.0) -> Loss:
        """Mean negative log-likelihood under the counts; it has no gradient."""
        return Loss(value=-self.token_nats(tokens_BL).mean())

    def cost(self, length: int) -> Cost:
        """A look-up per token stands for FLOPs in either convention."""
        return Cost(
            parameters=self.counts_V.numel(),
            paper_train_flops_per_token=1.0,
            train_flops_per_token=1.0,
            score_flops_per_token=1.0,
            generate_flops_per_token=float(self.vocab_size - 1),
        )
