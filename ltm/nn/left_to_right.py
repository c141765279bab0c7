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
    """Decode a continuation of each prompt with a KV cache, in as few steps as `batches` finds.

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
    check_ids(torch.tensor([token for prompt in prompts for token in prompt]), stack.vocab_size)
    outputs: list[list[int]] = [[] for _ in prompts]
    # Latents are inferred anew after so many tokens of a row: only rows in step can be decoded together.
    gap = 0 if sampling.reinfer_every else max_new_tokens
    for rows in batches([len(p) for p in prompts], gap):
        texts = _continue(stack, [prompts[r] for r in rows], infer, max_new_tokens, sampling, rng.select(rows))
        for r, new in zip(rows, texts, strict=True):
            outputs[r] = new
    return Generations(tokens=outputs, network_evaluations=[len(new) for new in outputs])


def batches(lengths: Sequence[int], gap: int) -> list[list[int]]:
    """Cut prompts, sorted by length, where the next one is more than `gap` longer; return the indices of each part.

    A batch begins after its shortest prompt, and rows with longer ones read them token by token; to make n tokens each
    it takes n steps and one for each token between the shortest and the longest. So gaps of n give the fewest steps.
    """
    found: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if not found or lengths[row] - lengths[found[-1][-1]] > gap:
            found.append([])
        found[-1].append(row)
    return found


def _continue(
    stack: Decoder,
    prompts: Sequence[Sequence[int]],
    infer: Infer,
    max_new_tokens: int,
    sampling: Sampling,
    rng: SequenceRng,
) -> list[list[int]]:
    """Decode a batch of prompts that are sorted by length; return the new tokens of each."""
    device, lengths = stack.device, [len(p) for p in prompts]
    shortest, steps = lengths[0], lengths[-1] - lengths[0] + max_new_tokens
    # BOS, the prompt, and room for new tokens.
    rows = [[stack.vocab_size - 1, *p] + [0] * (shortest + steps - len(p)) for p in prompts]
    text_BL = torch.tensor(rows, device=device)
    number_BS = torch.arange(steps) - torch.tensor(lengths)[:, None] + shortest  # which new token a step makes
    # All draws in advance: the same numbers as one at a time.
    uniforms_BT = rng.stream("tokens").uniform(max_new_tokens)
    uniforms_SB = uniforms_BT.gather(1, number_BS.clamp(0, max_new_tokens - 1)).T.to(device)
    new_SB = ((number_BS >= 0) & (number_BS < max_new_tokens)).T.to(device)
    last_SB = (number_BS >= max_new_tokens - 1).T.to(device)
    stop_ids = torch.tensor(sampling.stop_ids, dtype=torch.int64, device=device)
    stopped_B = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    latents = _inferred(infer, text_BL, lengths, rng)
    past: Any = None
    for step, end in enumerate(range(1 + shortest, 1 + shortest + steps)):
        if sampling.reinfer_every and step and step % sampling.reinfer_every == 0:
            latents, past = infer(text_BL[:, 1:end], rng, step // sampling.reinfer_every), None
        start = 0 if past is None else end - 1
        logits_BV, past = stack.decode(text_BL[:, start:end], start, latents, past)
        drawn_B = draw(logits_BV, uniforms_SB[step], sampling)
        text_BL[:, end] = torch.where(new_SB[step], drawn_B, text_BL[:, end])
        if sampling.stop_ids:
            stopped_B |= new_SB[step] & torch.isin(drawn_B, stop_ids)
            if (stopped_B | last_SB[step]).all():
                break
    texts = zip(text_BL.tolist(), lengths, strict=True)
    return [up_to_stop(text[1 + n : 1 + n + max_new_tokens], sampling.stop_ids) for text, n in texts]


def _inferred(infer: Infer, text_BL: Tensor, lengths: list[int], rng: SequenceRng) -> list[KeysValues] | None:
    """Return the latents of each row's prompt, inferred for prompts of equal length at a time."""
    parts = []
    for length in sorted(set(lengths)):
        rows = [row for row, own in enumerate(lengths) if own == length]
        parts.append(infer(text_BL[rows, 1 : 1 + length], rng.select(rows), 0))
    if any(part is None for part in parts):
        return None
    layers = zip(*(part for part in parts if part is not None), strict=True)
    return [(torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in layers]
