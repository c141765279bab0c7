"""Models whose likelihood is an exact product of next-token probabilities, and decoding from left to right.

Shapes: B sequences, L tokens, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ltm.api import Generations, LanguageModel, LikelihoodEstimate, Rng, Sampling
from ltm.nn.block import KeysValues
from ltm.nn.sampling import draw
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
    uniforms = rng.stream("tokens")
    outputs: list[list[int]] = [[] for _ in rng.indices]
    evaluations, running = [0] * len(outputs), [True] * len(outputs)
    latents = infer(tokens_BL, rng, 0)
    past: Any = None
    for n in range(max_new_tokens):
        if sampling.reinfer_every and n and n % sampling.reinfer_every == 0:
            latents, past = infer(tokens_BL, rng, n // sampling.reinfer_every), None
        bos = tokens_BL.new_full((len(outputs), 1), stack.vocab_size - 1)
        inputs = torch.cat([bos, tokens_BL], 1) if past is None else tokens_BL[:, -1:]
        logits_BV, past = stack.decode(inputs, tokens_BL.shape[1] + 1 - inputs.shape[1], latents, past)
        drawn_B = draw(logits_BV, uniforms.uniform(), sampling)
        tokens_BL = torch.cat([tokens_BL, drawn_B[:, None]], 1)
        for b, token in enumerate(drawn_B.tolist()):
            if running[b]:
                outputs[b].append(token)
                evaluations[b] += 1
                running[b] = token not in sampling.stop_ids
        if not any(running):
            break
    return outputs, evaluations
