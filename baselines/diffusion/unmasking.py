"""Generation by masked diffusion: masks are revealed until none is left, in canvases of at most one block.

A mask rate m falls from 1 to 0. Between rates m > s each masked token is revealed with probability (m - s) / m, and
its value is drawn from the network's p(token | canvas): the reverse process of absorbing diffusion. No token competes
with the mask's weight, so revealing needs no rare large noise; all draws are in float64, since float32 noise loses the
tails (arXiv 2409.02908). Shapes: B sequences, L tokens per canvas, V vocabulary, N tokens wanted.
"""

from __future__ import annotations

import dataclasses
import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from baselines import duel
from baselines.diffusion.masking import MaskedModel, visible_keys
from ltm.api import Generations, LikelihoodEstimate, Rng, Sampling
from ltm.nn.dit import DiTConfig
from ltm.nn.sampling import draw, up_to_stop
from ltm.nn.spans import check_ids
from ltm.nn.transformer import TransformerConfig
from ltm.rng import SequenceRng, Stream


class Predict(Protocol):
    """A network as the samplers see it; one call is one evaluation of each row."""

    def __call__(self, canvas_BL: Tensor, rate_B: Tensor, wanted_BL: Tensor) -> Tensor:
        """Return logits (N, V - 1) where `wanted` is true, in row-major order.

        Args:
            canvas_BL: tokens without BOS, with the mask id where masked.
            rate_B: float64, the mask rate, for networks that are conditioned on it.
        """


Fill = Callable[[Tensor, Stream], tuple[Tensor, Tensor]]
"""Maps a canvas (B, L) with masks to one without, and evaluations (B,); all noise comes from the stream."""


def ancestral(
    predict: Predict,
    canvas_BL: Tensor,
    mask_id: int,
    rates: Sequence[float],
    noise: Stream,
    *,
    block_length: int,
    sampling: Sampling,
    cached: bool = False,
) -> tuple[Tensor, Tensor]:
    """Reveal masks over a falling list of mask rates, 1 to 0; return the canvas and evaluations (B,).

    All tokens of one step are drawn independently from the same canvas, so the law of S steps is not that of the limit.
    The last rate is 0, so the last step reveals whatever is left, drawn like any other token.

    Args:
        block_length: L of the longest possible canvas, so that noise does not depend on its length.
        cached: run the network only for rows that reveal something in this step. A canvas does not change between
            reveals, so this equals keeping predictions until it does; samples are the same either way, also for
            networks that are conditioned on the rate.

    Raises:
        ValueError: rates that do not fall strictly from 1 to 0.
    """
    if len(rates) < 2 or rates[0] != 1 or rates[-1] != 0 or any(a <= b for a, b in itertools.pairwise(rates)):
        raise ValueError(f"mask rates must fall strictly from 1 to 0, found {list(rates)}")
    B, L = canvas_BL.shape
    canvas_BL, evaluations_B = canvas_BL.clone(), torch.zeros(B, dtype=torch.int64)
    for rate, next_rate in itertools.pairwise(rates):
        u_BXL = noise.uniform(2, block_length)[..., :L].to(canvas_BL.device)
        wanted_BL = (canvas_BL == mask_id) & (u_BXL[:, 0] < 1 - next_rate / rate)
        if cached:
            rows = wanted_BL.any(1).nonzero()[:, 0]
        else:
            rows = torch.arange(B, device=canvas_BL.device)
        _reveal(predict, canvas_BL, torch.full_like(u_BXL[:, 0, 0], rate), wanted_BL, u_BXL[:, 1], sampling, rows)
        evaluations_B[rows.cpu()] += 1
    return canvas_BL, evaluations_B


def first_hitting(
    predict: Predict, canvas_BL: Tensor, mask_id: int, noise: Stream, *, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Reveal one mask per evaluation: exactly the limit of infinitely many steps.

    With n masks left at rate m, the highest of n uniform times below m is m u^(1/n), and each token is equally likely
    to have it. Returns the canvas and evaluations (B,).
    """
    canvas_BL = canvas_BL.clone()
    rate_B = torch.ones(len(canvas_BL), dtype=torch.float64, device=canvas_BL.device)
    evaluations_B = (canvas_BL == mask_id).sum(1).cpu()
    for _ in range(int(evaluations_B.max()) if len(evaluations_B) else 0):
        u_B, choice_B, token_B = noise.uniform(3).to(canvas_BL.device).T
        masked_BL = canvas_BL == mask_id
        left_B = masked_BL.sum(1)
        rate_B = rate_B * u_B ** (1 / left_B.clamp(min=1))
        chosen_B = (choice_B * left_B).long()
        wanted_BL = masked_BL & (masked_BL.cumsum(1) - 1 == chosen_B[:, None])
        rows = (left_B > 0).nonzero()[:, 0]
        _reveal(predict, canvas_BL, rate_B, wanted_BL, token_B[:, None].expand_as(wanted_BL), sampling, rows)
    return canvas_BL, evaluations_B


def _reveal(
    predict: Predict,
    canvas_BL: Tensor,
    rate_B: Tensor,
    wanted_BL: Tensor,
    uniforms_BL: Tensor,
    sampling: Sampling,
    rows: Tensor,
) -> None:
    """Evaluate the rows and write their wanted tokens into the canvas."""
    if not len(rows):
        return
    wanted, tokens = wanted_BL[rows], canvas_BL[rows]
    logits_NV, uniforms_N = predict(tokens, rate_B[rows], wanted), uniforms_BL[rows][wanted]
    tokens[wanted] = draw(logits_NV, uniforms_N, sampling)
    canvas_BL[rows] = tokens


def unmask(
    predict: Predict,
    canvas_BL: Tensor,
    mask_id: int,
    rates: Sequence[float],
    noise: Stream,
    *,
    sampler: Literal["ancestral", "cached", "first_hitting"],
    block_length: int,
    sampling: Sampling,
) -> tuple[Tensor, Tensor]:
    """Reveal all masks with the named sampler; return the canvas and evaluations (B,).

    Args:
        rates: see `ancestral`; `first_hitting` ignores them.
    """
    if sampler == "first_hitting":
        return first_hitting(predict, canvas_BL, mask_id, noise, sampling=sampling)
    return ancestral(
        predict,
        canvas_BL,
        mask_id,
        rates,
        noise,
        block_length=block_length,
        sampling=sampling,
        cached=sampler == "cached",
    )


def check_settings(
    family: str, decoder: TransformerConfig | DiTConfig, sampling_steps: int, stride: int | None
) -> None:
    """Raise ValueError for a window, fewer than one step, or a stride outside 1 .. tokens of a block."""
    block_length = decoder.max_length - 1
    if decoder.window is not None:
        raise ValueError(f"{family} attends in both directions; set decoder.window=none, found {decoder.window}")
    if sampling_steps < 1:
        raise ValueError(f"sampling_steps must be at least 1, found {sampling_steps}")
    if stride is not None and not 1 <= stride <= block_length:
        raise ValueError(f"stride must be in 1..{block_length}, the tokens of a block, found {stride}")


@torch.no_grad()
def generate(
    fill: Fill,
    prompts: Sequence[Sequence[int]],
    *,
    vocab_size: int,
    block_length: int,
    max_new_tokens: int,
    sampling: Sampling,
    rng: Rng,
    device: torch.device,
    stride: int | None = None,
) -> Generations:
    """Continue each prompt, to any length; prompts of equal length run as a batch.

    A canvas is the prompt followed by masks for the new tokens. If they exceed `block_length`, the canvas is filled up
    to it, and its last `block_length - stride` tokens are given to the next canvas (semi-autoregressive generation). A
    row ends with the canvas in which a stop id appears; what follows the first stop id is cut.

    Args:
        fill: replaces the masks, which have the id `vocab_size`.
        stride: new tokens of each canvas after the first; half a block if None.

    Raises:
        ValueError: a prompt longer than a block, no new token, an id outside the vocabulary, or `reinfer_every`.
    """
    if sampling.reinfer_every:
        raise ValueError("reinfer_every is for models that infer latents; a diffusion model has none")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, found {max_new_tokens}")
    longest = max((len(p) for p in prompts), default=0)
    if longest > block_length:
        raise ValueError(f"the {longest} tokens of a prompt exceed the {block_length} that fit after the BOS")
    rng = SequenceRng.of(rng, len(prompts))
    stride = -(-block_length // 2) if stride is None else stride
    texts, evaluations = [list(p) for p in prompts], [0] * len(prompts)
    for length in sorted({len(p) for p in prompts}):
        running = [r for r, p in enumerate(prompts) if len(p) == length]
        check_ids(torch.tensor([texts[r] for r in running]), vocab_size)
        reached, canvas_number, end = length, 0, length + max_new_tokens
        while running and reached < end:
            given = reached if reached < block_length else block_length - stride
            new = min(block_length - given, end - reached)
            rows = [texts[r][reached - given :] + [vocab_size] * new for r in running]
            # Named by its number, so that finished rows do not change the noise of the others.
            noise = rng.select(running).stream(f"canvas {canvas_number}")
            filled_BL, used_B = fill(torch.tensor(rows, device=device), noise)
            for r, text, used in zip(running, filled_BL[:, given:].tolist(), used_B.tolist(), strict=True):
                texts[r] += text
                evaluations[r] += used
            running = [r for r in running if not set(sampling.stop_ids).intersection(texts[r][reached:])]
            reached, canvas_number = reached + new, canvas_number + 1
    new_tokens = [text[len(p) :] for text, p in zip(texts, prompts, strict=True)]
    return Generations(
        tokens=[up_to_stop(new, sampling.stop_ids) for new in new_tokens], network_evaluations=evaluations
    )


class CanvasModel(MaskedModel):
    """A masked model that generates by filling canvases. Its config has a `stride`; a subclass implements `fill`."""

    @classmethod
    def twin_config(cls, config: Any, *, vocab_size: int, block_length: int, width: int = 64, layers: int = 2) -> Any:
        """See `LanguageModel.twin_config`; drops the stride, which may exceed a block and never affects scoring."""
        config = dataclasses.replace(config, stride=None)
        return super().twin_config(config, vocab_size=vocab_size, block_length=block_length, width=width, layers=layers)

    def predict(self, canvas_BL: Tensor, rate_B: Tensor, wanted_BL: Tensor, visible: Tensor | None = None) -> Tensor:
        """See `Predict` and `baselines.duel.Predict`."""
        raise NotImplementedError(f"{type(self).__name__} has no rule of order")

    @torch.no_grad()
    def duel(self, tokens_BL: Tensor, given_BL: Tensor, scored_BL: Tensor) -> dict[str, LikelihoodEstimate]:
        """Return the exact likelihood under the config's rule; see `baselines.duel`."""
        c = self.config
        nats_B = duel.log_likelihood(
            self.predict,
            tokens_BL,
            scored_BL,
            self.mask_id,
            c.unmasking,
            block=c.unmasking_block,
            outputs=self.vocab_size - 1,
            visible=visible_keys(given_BL | scored_BL),
        )
        return {self.headline(): LikelihoodEstimate(nats_B=nats_B, tokens_B=scored_BL.sum(1), kind="exact")}

    def fill_in_order(self, canvas_BL: Tensor, noise: Stream, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """Show the masks by the config's rule: what `duel` is the likelihood of, at temperature 1; see `fill`."""
        c, masked_BL = self.config, canvas_BL == self.mask_id
        # One number for each place of a block, so that the noise does not depend on the canvas.
        u_BL = noise.uniform(self.block_length).to(canvas_BL.device)

        def show(rows: Tensor, position_R: Tensor, logits_RV: Tensor) -> Tensor:
            return draw(logits_RV, u_BL[rows, position_R], sampling)

        filled_BL = duel.unmask(
            self.predict,
            canvas_BL,
            masked_BL,
            c.unmasking,
            show,
            block=c.unmasking_block,
            outputs=self.vocab_size - 1,
        )
        return filled_BL, masked_BL.sum(1).cpu()

    @abstractmethod
    def fill(self, canvas_BL: Tensor, noise: Stream, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """Replace the masks of a canvas (B, L).

        Args:
            canvas_BL: int64, given tokens, and `mask_id` where tokens are wanted.
            noise: the source of all noise.

        Returns:
            The canvas without masks, and the network evaluations used, int64 (B,), on the CPU.
        """

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, sampling: Sampling, rng: Rng
    ) -> Generations:
        """Fill the continuation, in several canvases if it exceeds a block; see the function `generate`."""
        return generate(
            lambda canvas_BL, noise: self.fill(canvas_BL, noise, sampling),
            prompts,
            vocab_size=self.vocab_size,
            block_length=self.block_length,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            rng=rng,
            device=self.device,
            stride=self.config.stride,
        )
