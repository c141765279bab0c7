"""Models whose likelihood is an exact product of next-token probabilities, and decoding from left to right.

Shapes: B sequences, L tokens, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ltm.api import Generations, LanguageModel, LikelihoodEstimate, Rng, Sampling
from ltm.nn.block import KeysValues
from ltm.nn.sampling import draw, up_to_stop
from ltm.nn.spans import check_ids, prepare_batch
from ltm.rng import SequenceRng


class ExactModel(LanguageModel):
    """A model with an exact likelihood; a subclass gives the probability of each token after those before it."""

    @abstractmethod
    def token_nats(self, tokens_BL: Tensor) -> Tensor:
        """Return log p of every token given BOS and the tokens before it, (B, L), in nats."""

    @property
    def left_to_right(self) -> Decoder:
        """The part that decodes; the model itself unless overridden."""
        decoder: Any = self
        return decoder

    def headline(self, context: int | Tensor = 0) -> str:
        """Return `exact`, whatever is scored."""
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
        """Return the exact log-likelihood; nothing is drawn."""
        tokens_BL, _, scored_BL = prepare_batch(tokens_BL, context, lengths, self.vocab_size)
        nats_B = self.token_nats(tokens_BL).double().masked_fill(~scored_BL, 0.0).sum(1)
        return {"exact": LikelihoodEstimate(nats_B=nats_B, tokens_B=scored_BL.sum(1), kind="exact")}

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, sampling: Sampling, rng: Rng
    ) -> Generations:
        """Sample token by token.

        Raises:
            ValueError: as `continue_prompts`; or `reinfer_every`.
        """
        if sampling.reinfer_every:
            raise ValueError(f"reinfer_every is for models that infer latents; {self.family} has none")
        return continue_prompts(
            self.left_to_right, prompts, lambda *_: None, max_new_tokens=max_new_tokens, sampling=sampling, rng=rng
        )


Infer = Callable[[Tensor, SequenceRng, int], list[KeysValues] | None]
"""Latents to decode with, from the tokens so far (B, L), the rows' noise, and the number of earlier inferences."""


class Decoder(Protocol):
    """Anything that decodes a text from left to right, such as a `Transformer`."""

    @property
    def vocab_size(self) -> int:
        """V; the last id is BOS."""

    @property
    def block_length(self) -> int:
        """The most tokens that fit after the BOS."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    def decode(self, inputs_BL: Tensor, start: int, latents: list[KeysValues] | None, past: Any) -> tuple[Tensor, Any]:
        """Return logits (B, V - 1) after the last of `inputs_BL`, which begin at `start`, and the next `past`."""


@torch.no_grad()
def continue_prompts(
    stack: Decoder,
    prompts: Sequence[Sequence[int]],
    infer: Infer,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    rng: Rng,
) -> Generations:
    """Decode a continuation of each prompt with a KV cache; prompts of equal length run as a batch.

    Raises:
        ValueError: no new token is asked for, a prompt and its continuation do not fit the stack, or an id is outside
            the vocabulary.
    """
    rng = SequenceRng.of(rng, len(prompts))
    longest = max((len(p) for p in prompts), default=0)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, found {max_new_tokens}")
    if longest + max_new_tokens > stack.block_length:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the {stack.block_length} tokens that "
            "fit after the BOS"
        )
    outputs: list[list[int]] = [[] for _ in prompts]
    evaluations = [0] * len(prompts)
    for length in sorted({len(p) for p in prompts}):
        rows = [r for r, p in enumerate(prompts) if len(p) == length]
        tokens_BL = torch.tensor([list(prompts[r]) for r in rows], dtype=torch.int64).view(len(rows), length)
        check_ids(tokens_BL, stack.vocab_size)
        new, used = _continue(stack, tokens_BL.to(stack.device), infer, max_new_tokens, sampling, rng.select(rows))
        for r, sequence, count in zip(rows, new, used, strict=True):
            outputs[r], evaluations[r] = sequence, count
    return Generations(tokens=outputs, network_evaluations=evaluations)


def _continue(
    stack: Decoder, tokens_BL: Tensor, infer: Infer, max_new_tokens: int, sampling: Sampling, rng: SequenceRng
) -> tuple[list[list[int]], list[int]]:
    given, device = tokens_BL.shape[1], tokens_BL.device
    # BOS, the prompt and room for what is new; of all draws in advance, the same numbers as one at a time.
    text_BL = F.pad(F.pad(tokens_BL, (1, 0), value=stack.vocab_size - 1), (0, max_new_tokens))
    uniforms_TB = rng.stream("tokens").uniform(max_new_tokens).T.to(device)
    stop_ids = torch.tensor(sampling.stop_ids, dtype=torch.int64, device=device)
    running_B = torch.ones(len(tokens_BL), dtype=torch.bool, device=device)
    latents = infer(tokens_BL, rng, 0)
    past: Any = None
    for n, end in enumerate(range(1 + given, 1 + given + max_new_tokens)):
        if sampling.reinfer_every and n and n % sampling.reinfer_every == 0:
            latents, past = infer(text_BL[:, 1:end], rng, n // sampling.reinfer_every), None
        start = 0 if past is None else end - 1
        logits_BV, past = stack.decode(text_BL[:, start:end], start, latents, past)
        text_BL[:, end] = draw(logits_BV, uniforms_TB[n], sampling)
        if sampling.stop_ids:
            running_B &= ~torch.isin(text_BL[:, end], stop_ids)
            if not running_B.any():
                break
    outputs = [up_to_stop(new, sampling.stop_ids) for new in text_BL[:, 1 + given : end + 1].tolist()]
    return outputs, [len(new) for new in outputs]
