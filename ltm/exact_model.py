"""What every model shares whose likelihood is a product of next-token probabilities, and so exact.

Shapes: B sequences, L tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ltm.api import Generations, LanguageModel, LikelihoodEstimate, Rng, Sampling
from ltm.sampling import Decoder, continue_prompts
from ltm.scoring import opened


class ExactModel(LanguageModel):
    """A model that gives each token a probability after those before it; a subclass says which."""

    @abstractmethod
    def token_nats(self, tokens_BL: Tensor) -> Tensor:
        """log p of every token given BOS and those before it, (B, L)."""

    @property
    def left_to_right(self) -> Decoder:
        """What decodes; the model itself, unless a part of it does."""
        decoder: Any = self
        return decoder

    def headline(self, context: int | Tensor = 0) -> str:
        """Exact, whatever is scored."""
        return "exact"

    @torch.no_grad()
    def log_likelihoods(
        self,
        tokens_BL: Tensor,
        *,
        context: int | Tensor = 0,
        lengths: Tensor | None = None,
        draws: int | None = None,
        rng: Rng,
        only: str | None = None,
    ) -> dict[str, LikelihoodEstimate]:
        """The exact log-likelihood; there is nothing to draw."""
        tokens_BL, _, scored_BL = opened(tokens_BL, context, lengths, self.vocab_size)
        nats_B = self.token_nats(tokens_BL).double().masked_fill(~scored_BL, 0.0).sum(1)
        return {"exact": LikelihoodEstimate(nats_B=nats_B, tokens_B=scored_BL.sum(1), kind="exact")}

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, sampling: Sampling, rng: Rng
    ) -> Generations:
        """Ancestral sampling, token by token."""
        if sampling.reinfer_every:
            raise ValueError(f"reinfer_every is for models that infer latents; {self.family} has none")
        return continue_prompts(
            self.left_to_right, prompts, lambda *_: None, max_new_tokens=max_new_tokens, sampling=sampling, rng=rng
        )
