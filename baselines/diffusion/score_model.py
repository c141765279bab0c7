"""Diffusion models scored by the ratios that a network gives, on one of two graphs: what SEDD and Duo share.

Absorbing graph: tokens turn into masks. Uniform graph: tokens turn into any state; there is no mask, and every token
stays uncertain. The costs are derived in `score_entropy.py`. On the absorbing graph the bound has no end terms. On the
uniform graph noise runs between two levels, and the bound has two more terms in closed form: the noise end, the KL of
the last law from the uniform one that generation starts with, and the data end, the exact posterior over each token by
itself. No bound depends on how sigma runs over time, so training and scoring draw noise for the least variance
(`masking.py`, `replacing.py`), and the `noise` setting only spaces the sampler's steps. Shapes: B sequences, L tokens,
N wanted tokens, D width, E width of the time embedding, V outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from baselines.diffusion import score_entropy
from baselines.diffusion.masking import DRAWS, diffusion_bound, draw_masks, spread, visible_keys
from baselines.diffusion.replacing import draw_replaced
from baselines.diffusion.schedules import SIGMA_HIGH, SIGMA_LOW, Noise, normalised_log_sigma
from baselines.diffusion.stepping import Move, take_steps
from baselines.diffusion.time_embedding import TimeEmbedding, conditioning_flops
from baselines.diffusion.unmasking import CanvasModel, check_settings
from ltm.api import Cost, LikelihoodEstimate, Loss, Rng, Sampling
from ltm.nn.dit import DiT, DiTConfig, decoder_of
from ltm.nn.flops import StackFlops, paper_train_flops
from ltm.nn.output_head import over_vocabulary
from ltm.nn.spans import prepare_batch
from ltm.nn.transformer import TransformerConfig
from ltm.rng import SequenceRng, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """A bidirectional Transformer conditioned on the noise level, its graph, and how it generates.

    Attributes:
        graph: `absorb` (tokens turn into masks) or `uniform` (tokens turn into any token).
        noise: how the sampler's steps are spaced: `loglinear`, by the share of disturbed tokens (published for the
            absorbing graph), or `geometric`, by log sigma (for the uniform one).
        condition_width: E, width of the embedding of log sigma.
        sampler: the step back in time, `analytic` (Tweedie) or `euler`; neither affects training or scoring.
        sampling_steps: steps of equal time, before one that removes the last noise.
        stride: new tokens of each canvas after the first, if a text exceeds a block; half a block if none.

    Raises:
        ValueError: an odd `condition_width`, or one below 2; see also `check_settings`.
    """

    vocab_size: int = 0
    decoder: TransformerConfig | DiTConfig
    graph: Literal["absorb", "uniform"] = "absorb"
    noise: Literal["loglinear", "geometric"] = "loglinear"
    condition_width: int = 128
    sampler: Literal["analytic", "euler"] = "analytic"
    sampling_steps: int = 1000
    stride: int | None = None

    def __post_init__(self) -> None:
        family = type(self).__name__.removesuffix("Config").lower()
        check_settings(family, self.decoder, self.sampling_steps, self.stride)
        if self.condition_width < 2 or self.condition_width % 2:
            raise ValueError(f"condition_width must be even and at least 2, found {self.condition_width}")


_UNIFORM_WEIGHTS = {
    "analytic": score_entropy.uniform_analytic_weights,
    "euler": score_entropy.uniform_euler_weights,
}
"""How the uniform graph's tokens move in a step, by `sampler`."""


class ScoreModel(CanvasModel):
    """Discrete diffusion by ratios; a family says what the logits mean."""

    config: ScoreConfig

    def __init__(self, config: ScoreConfig):
        super().__init__()
        self.config, self.noise = config, Noise(name=config.noise)
        # The decoder's BOS comes after all that a token can turn into; a published text opens with the last token.
        self.decoder = decoder_of(
            config.decoder,
            self.outputs + 1,
            extra_inputs=int(config.graph == "absorb"),
            causal=False,
            condition=config.condition_width,
            bos_row=config.vocab_size - 2,
        )
        published = isinstance(self.decoder, DiT)
        self.time_embedding = None if published else TimeEmbedding(config.condition_width)

    @property
    def outputs(self) -> int:
        """V, the number of ids that a token of the graph can have."""
        return self.vocab_size - 1

    def hidden_states(
        self, canvas_BL: Tensor, sigma_B: Tensor, wanted_BL: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """Return hidden states (N, D) of the wanted positions, row-major, for texts at noise sigma."""
        inputs, condition_BE = self.decoder.after_bos(canvas_BL), self.condition_of(sigma_B)
        return self.decoder(inputs, visible=visible, condition_BE=condition_BE)[:, 1:][wanted_BL]

    def log_scores(self, logits_NV: Tensor, now_N: Tensor, sigma: Tensor) -> Tensor:
        """Return what the logits say of the ratios on the uniform graph; see `score_entropy.Scores`."""
        return score_entropy.sedd_log_scores(logits_NV, now_N, sigma)

    def condition_of(self, sigma_B: Tensor) -> Tensor:
        """Return what the network is told of the noise sigma, (B, E)."""
        if isinstance(self.decoder, DiT):
            return self.decoder.condition_of(sigma_B)
        assert self.time_embedding is not None
        return self.time_embedding(normalised_log_sigma(sigma_B))

    def training_loss(self, tokens_BL: Tensor, *, rng: Rng, progress: float = 1.0) -> Loss:
        """Return minus the bound's estimate from one draw, in mean nats per token."""
        everything = torch.ones_like(tokens_BL, dtype=torch.bool)
        (cost_B,) = self._costs(tokens_BL, everything, SequenceRng.of(rng, len(tokens_BL)), draws=1)
        return Loss(value=cost_B.sum() / tokens_BL.numel() + sum(self._ends().values()))

    def _costs(
        self, tokens_BL: Tensor, scored_BL: Tensor, rng: SequenceRng, *, draws: int, visible: Tensor | None = None
    ) -> list[Tensor]:
        """Estimate the integral of score entropy from each draw, float64 (B,) nats, differentiable."""
        draw = self._absorb_costs if self.config.graph == "absorb" else self._uniform_costs
        return list(draw(tokens_BL, scored_BL, rng, draws, visible))

    def _absorb_costs(
        self, tokens_BL: Tensor, scored_BL: Tensor, rng: SequenceRng, draws: int, visible: Tensor | None
    ) -> Iterator[Tensor]:
        for masks in draw_masks(scored_BL, rng, draws=draws, block_length=self.block_length):
            sigma_B, masked_BL = -torch.log1p(-masks.rate_BP[:, 0]), masks.masked_BL
            h_ND = self.hidden_states(tokens_BL.masked_fill(masked_BL, self.mask_id), sigma_B, masked_BL, visible)
            cost_N = over_vocabulary(score_entropy.absorb_cost, h_ND, self.decoder.head(), tokens_BL[masked_BL])
            yield (masks.weight_BL * spread(cost_N, masked_BL)).sum(1)

    def _uniform_costs(
        self, tokens_BL: Tensor, scored_BL: Tensor, rng: SequenceRng, draws: int, visible: Tensor | None
    ) -> Iterator[Tensor]:
        options = {"draws": draws, "outputs": self.outputs, "block_length": self.block_length}
        for drawn in draw_replaced(tokens_BL, scored_BL, rng, **options):
            cost_N = over_vocabulary(
                functools.partial(score_entropy.uniform_cost, scores=self.log_scores),
                self.hidden_states(drawn.now_BL, drawn.sigma_B, scored_BL, visible),
                self.decoder.head(),
                *(
                    each[scored_BL]
                    for each in (tokens_BL, drawn.now_BL, drawn.sigma_B[:, None].expand(scored_BL.shape))
                ),
            )
            yield drawn.weight_B * spread(cost_N, scored_BL).sum(1)

    def _ends(self) -> dict[str, float]:
        """Return the bound's cost per token at each end of the uniform graph's noise, in nats."""
        if self.config.graph == "absorb":
            return {}
        return {
            "data_end": score_entropy.data_end(SIGMA_LOW, self.outputs),
            "noise_end": score_entropy.noise_end(SIGMA_HIGH, self.outputs),
        }

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
        """Return the bound; given tokens are never disturbed. On the uniform graph the end terms are listed apart."""
        tokens_BL, given_BL, scored_BL = prepare_batch(tokens_BL, context, lengths, self.vocab_size)
        rng, draws = SequenceRng.of(rng, len(tokens_BL)), DRAWS if draws is None else draws
        visible = visible_keys(given_BL | scored_BL)
        nats_KB = -torch.stack(self._costs(tokens_BL, scored_BL, rng, draws=draws, visible=visible))
        tokens_B = scored_BL.sum(1)
        ends = {name: -nats * tokens_B.double() for name, nats in self._ends().items()}
        return diffusion_bound(nats_KB, tokens_B, ends)

    def fill(self, canvas_BL: Tensor, noise: Stream, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """Denoise from pure noise where the canvas is masked; see `CanvasModel.fill`."""
        absorb, free_BL = self.config.graph == "absorb", canvas_BL == self.mask_id
        if not absorb:
            u_BL = noise.uniform(self.block_length)[:, : canvas_BL.shape[1]].to(canvas_BL.device)
            canvas_BL = torch.where(free_BL, (u_BL * self.outputs).long(), canvas_BL)
        return take_steps(
            self.hidden_states,
            self.decoder.head(),
            self.steps(sampling),
            canvas_BL,
            free_BL,
            noise,
            block_length=self.block_length,
            mask_id=self.mask_id if absorb else None,
        )

    def _sigmas(self) -> Tensor:
        """Return the sampler's falling noise levels, (steps + 1,)."""
        return self.noise.sigma(1 - torch.arange(self.config.sampling_steps + 1).double() / self.config.sampling_steps)

    def steps(self, sampling: Sampling) -> list[tuple[float, Move]]:
        """Return the sampler's steps as (sigma, move) pairs; the last removes all noise."""
        S, graph, sampler = self.config.sampling_steps, self.config.graph, self.config.sampler
        sigmas = self._sigmas()
        if sampler == "euler":
            lengths = self.noise.slope(1 - torch.arange(S).double() / S) / S
        else:
            lengths = sigmas[:-1] - sigmas[1:]
        last = sigmas[-1].item()
        if graph == "absorb":
            ratios = 1 / torch.expm1(sigmas[:-1])
            shares = (lengths if sampler == "euler" else torch.expm1(lengths)) * ratios
            moves = [_absorb_move(share, sampling) for share in shares.tolist()]
            moves.append(_absorb_move(1.0, sampling, last=True))
        else:
            weights = functools.partial(_UNIFORM_WEIGHTS[sampler], scores=self.log_scores)
            pairs = zip(sigmas.tolist(), lengths.tolist(), strict=False)
            moves = [_uniform_move(weights, sigma, length, sampling) for sigma, length in pairs]
            weights = functools.partial(score_entropy.uniform_analytic_weights, scores=self.log_scores)
            moves.append(_uniform_move(weights, last, last, sampling))
        return list(zip(sigmas.tolist(), moves, strict=True))

    def cost(self, length: int) -> Cost:
        """Count the papers' 6P + 12LdN, and the FLOPs that this code executes; generation fills one canvas.

        Training forms logits twice for a gradient. The head runs for masked tokens only, about half of all on average;
        on the uniform graph it runs for all tokens.
        """
        P, c = sum(p.numel() for p in self.parameters()), self.config.decoder
        stack = StackFlops.of(c, self.outputs, length + 1)
        # BOS is computed but is not a token.
        blocks = (stack.forward - stack.head) * (length + 1) / length
        blocks += conditioning_flops(c, self.config.condition_width) / length
        if self.config.graph == "absorb":
            head = stack.head * (length + 1) / (2 * length)
            rates = (-torch.expm1(-self._sigmas())).tolist()
            generate = sum((1 - (1 - rate) ** length) * blocks + rate * stack.head for rate in rates)
        else:
            head = stack.head
            generate = (self.config.sampling_steps + 1) * (blocks + head)
        return Cost(
            parameters=P,
            paper_train_flops_per_token=paper_train_flops(P, c.layers, c.width, length + 1),
            train_flops_per_token=3 * blocks + 4 * head,
            score_flops_per_token=DRAWS * (blocks + head),
            generate_flops_per_token=generate,
        )


def _absorb_move(share: float, sampling: Sampling, *, last: bool = False) -> Move:
    return lambda logits, now: score_entropy.absorb_weights(logits, share, sampling, last=last)


def _uniform_move(weights: Callable[..., Tensor], sigma: float, length: float, sampling: Sampling) -> Move:
    return lambda logits, now: weights(logits, now, sigma, length, sampling)
