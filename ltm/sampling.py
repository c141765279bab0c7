"""Drawing tokens: float64 categorical draws from explicit uniforms, and the decoding loop with its KV cache.

Shapes: B sequences, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ltm.api import Generations, Rng, Sampling
from ltm.rng import SequenceRng
from ltm.transformer import KeysValues


def probabilities(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """float64 probabilities (B, V) after temperature, top-k and top-p; the token that crosses top_p is kept."""
    logits_BV = logits_BV.double()
    if sampling.temperature == 0:
        return torch.zeros_like(logits_BV).scatter_(1, logits_BV.argmax(1, keepdim=True), 1.0)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits_BV.shape[1]:
        smallest_kept = logits_BV.topk(sampling.top_k, dim=1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest_kept, -torch.inf)
    p_BV = logits_BV.softmax(1)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = p_BV.sort(dim=1, descending=True)
        mass_before = ordered.cumsum(1) - ordered
        p_BV = torch.zeros_like(p_BV).scatter_(1, order, ordered.masked_fill(mass_before >= sampling.top_p, 0.0))
        p_BV = p_BV / p_BV.sum(1, keepdim=True)
    return p_BV


def draw(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> Tensor:
    """One token id a row by inversion of the cumulative distribution in float64, (B,) int64."""
    return invert(probabilities(logits_BV, sampling), uniforms_B)


def invert(weights_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """One column a row, (B,) int64, with probability in proportion to its weight, by inversion in float64."""
    cumulative = weights_BV.double().cumsum(1)
    threshold = uniforms_B.to(cumulative)[:, None] * cumulative[:, -1:]
    # `right`: a uniform of exactly 0 must not pick a leading column of weight 0.
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=cumulative.shape[1] - 1)


Infer = Callable[[Tensor, SequenceRng, int], list[KeysValues] | None]
"""Latents to decode under, from the tokens so far (B, L), the rows' noise, and how often they were inferred before."""


class Decoder(Protocol):
    """What decodes a text from left to right: a `Transformer`, or a model of another make."""

    @property
    def vocab_size(self) -> int:
        """V, with BOS the last id."""

    @property
    def block_length(self) -> int:
        """The most tokens that fit beside the BOS."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def decode(self, inputs_BL: Tensor, start: int, latents: list[KeysValues] | None, past: Any) -> tuple[Tensor, Any]:
        """Logits (B, V - 1) after the last of `inputs_BL`, which sit at positions `start`.., and what to pass on."""


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
    """Decode a continuation of each prompt with a KV cache; prompts of one length run as a batch.

    Raises:
        ValueError: a prompt and its continuation do not fit the stack, or an id is outside the vocabulary.
    """
    rng = SequenceRng.of(rng, len(prompts))
    longest = max((len(p) for p in prompts), default=0)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, found {max_new_tokens}")
    if longest + max_new_tokens > stack.block_length:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the {stack.block_length} tokens that "
            "fit beside the BOS"
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


def check_ids(tokens: Tensor, vocab_size: int) -> None:
    """Raise ValueError unless every id is one that the model can output, 0 .. vocab_size - 2."""
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size - 1:
        bad = tokens[(tokens < 0) | (tokens >= vocab_size - 1)][0]
        raise ValueError(f"token id {int(bad)} is outside 0..{vocab_size - 2}: data of another tokenizer?")
