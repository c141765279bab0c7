"""Texts read in chunks, each predicted by a latent model from the tokens before it, with no KL to pay.

A text is cut into chunks of c tokens. Before each chunk z is inferred from only the tokens so far, starting from what
was inferred for the chunk before (the prior, for the first), and the chunk is scored under K draws of that z:

    log p(x) >= E[sum_i log (1/K) sum_k p(chunk_i | chunks before, z_ik)],   z_ik ~ q_i(z | chunks before).

With the noise held fixed, every factor is a distribution over chunks, whatever the q_i, so the total is the log of a
distribution over texts: its exponentials sum to exactly 1. The p of the left-hand side is the mean of those
distributions over the noise. That is what the model predicts when it thinks before every chunk, and only for exact
q_i and many draws its marginal likelihood.

Shapes: B texts, L tokens, K draws, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltm.api import LanguageModel, LikelihoodEstimate, Rng
from ltm.errors import UserError
from ltm.latent import bounds
from ltm.latent.base import LatentModel
from ltm.nn.flops import StackFlops
from ltm.nn.output_head import token_nats
from ltm.nn.spans import prepare_batch
from ltm.nn.transformer import TransformerConfig
from ltm.rng import SequenceRng, seed_of

DRAWS = 16
"""Default draws per chunk."""

NAME = "prequential_bound"


class Prequential:
    """A latent model that reads in chunks: whole texts get the `prequential_bound`, continuations what they had.

    Args:
        chunk: c, the number of tokens between inferences of z.

    Raises:
        UserError: a chunk of no tokens, or longer than a block, or a model without latents.
    """

    def __init__(self, model: LanguageModel, chunk: int):
        if not isinstance(model, LatentModel):
            raise UserError(f"a prequential bound needs a model with latents; {type(model).__name__} has none")
        if not 1 <= chunk <= model.block_length:
            raise UserError(f"prequential: expected chunks of 1 to {model.block_length} tokens, found {chunk}")
        self.model, self.chunk = model, chunk

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.device

    @property
    def block_length(self) -> int:
        """The most tokens per text."""
        return self.model.block_length

    def headline(self, context: int | Tensor = 0) -> str:
        """As `LanguageModel.headline`."""
        return NAME if isinstance(context, int) and context == 0 else self.model.headline(context)

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
        """As `LanguageModel.log_likelihoods`; `draws` is per chunk."""
        if self.headline(context) != NAME:
            return self.model.log_likelihoods(
                tokens_BL, context=context, lengths=lengths, draws=draws, rng=rng, only=only
            )
        draws = DRAWS if draws is None else draws
        return {NAME: prequential_bound(self.model, tokens_BL, chunk=self.chunk, draws=draws, lengths=lengths, rng=rng)}

    def score_flops_per_token(self, length: int, draws: int) -> float:
        """FLOPs per token that this code executes for texts of `length` tokens."""
        model, config = self.model, self.model.config.decoder
        outputs, latents = model.vocab_size - 1, model.latent_shape[1]
        total = length * StackFlops.of(config, outputs, length, latents).first_attention
        for start in range(0, length, self.chunk):
            end = min(start + self.chunk, length)
            flops, distinct = model.inference_cost(start, draws)
            seen = end - first_position(config, start)
            pass_cost = StackFlops.of(config, outputs, seen, latents)
            total += flops + distinct * (seen * pass_cost.after_first_attention + (end - start) * pass_cost.head)
        return total / length


def prequential_bound(
    model: LatentModel,
    tokens_BL: Tensor,
    *,
    chunk: int,
    draws: int,
    lengths: Tensor | None = None,
    rng: Rng,
) -> LikelihoodEstimate:
    """The bound for whole texts; see the module. The noise of a chunk depends on the chunk's number.

    Args:
        chunk: c, at least 1.
        draws: K, at least 1.
        lengths: int64 (B,), real tokens of each row; all L when None.
    """
    if chunk < 1 or draws < 1:
        raise ValueError(f"chunk and draws must be at least 1, found {chunk} and {draws}")
    tokens_BL, _, scored_BL = prepare_batch(tokens_BL, 0, lengths, model.vocab_size)
    rng = SequenceRng.of(rng, len(tokens_BL))
    # What does not depend on z, once for all chunks and draws.
    stack, prepared = model.decoder, model.prepare(model.decoder, tokens_BL)
    head = stack.head()
    nats_B = torch.zeros(len(tokens_BL), dtype=torch.float64, device=tokens_BL.device)
    variance_B = torch.zeros_like(nats_B)
    before = None
    for number, start in enumerate(range(0, tokens_BL.shape[1], chunk)):
        end = min(start + chunk, tokens_BL.shape[1])
        noise = chunk_noise(rng, number)
        zs, before = model.latents_after(
            tokens_BL[:, :start], noise, weights_BL=scored_BL[:, :start], draws=draws, before=before
        )
        first = first_position(model.config.decoder, start)
        visible, targets_N, scored_BC = (
            prepared.part(first, end),
            tokens_BL[:, start:end].flatten(),
            scored_BL[:, start:end],
        )
        values = []
        for z_BYGD in zs:
            h_ND = model.hidden(stack, visible, z_BYGD)[:, start - first :].flatten(0, 1)
            nats_BC = token_nats(h_ND, head, targets_N).view(scored_BC.shape).double()
            values.append(nats_BC.masked_fill(~scored_BC, 0.0).sum(1))
        estimate = bounds.log_mean_exp(torch.stack(values), scored_BC.sum(1))
        nats_B += estimate.nats_B
        if estimate.mc_var_B is not None:  # None if one z stands for all: no spread
            variance_B += estimate.mc_var_B
    return LikelihoodEstimate(
        nats_B=nats_B,
        tokens_B=scored_BL.sum(1),
        kind="lower_bound",
        draws=draws,
        mc_var_B=variance_B if draws > 1 else None,
    )


def chunk_noise(rng: SequenceRng, number: int) -> SequenceRng:
    """The noise of one chunk of each text."""
    return SequenceRng(seed_of(rng.seed, NAME, number), rng.indices)


def first_position(config: TransformerConfig, start: int) -> int:
    """The first position whose state after the first self-attention affects hidden states from `start` on.

    Every later layer looks one window back; what the first one gathers is in `Prepared`.
    """
    return 0 if config.window is None else max(0, start - (config.layers - 1) * (config.window - 1))
