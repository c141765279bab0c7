"""Measures of a Gaussian q(z|x): active units, mutual information, and both sides over fast steps or latents used.

Everything here works for any `LatentModel` whose `infer` returns a `Posterior`. Shapes: N texts, L tokens, Y layers, G
latent vectors per layer, D width, U = Y G D units.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ltm.api import LikelihoodEstimate, Sampling
from ltm.latent import bounds, reliability, tube
from ltm.latent.base import LatentModel
from ltm.latent.likelihood_gradient import likelihood_gradient
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import Posterior, PosteriorConfig, fit
from ltm.nn.block import KeysValues
from ltm.nn.flops import StackFlops
from ltm.nn.left_to_right import continue_prompts
from ltm.result_schema import VACUOUS
from ltm.rng import SequenceRng

ACTIVE = 0.01
"""A unit is active if the variance of its posterior mean over texts exceeds this (arXiv 1509.00519)."""
REFINING = PosteriorConfig.NAMED["natural_gradient"]
"""How an encoder's q is refined: as `ltm-tiny` fits its own."""


def active_units(mean_NYGD: Tensor) -> int:
    """Count the active ones of the U units.

    Raises:
        ValueError: there are fewer than two texts.
    """
    if len(mean_NYGD) < 2:
        raise ValueError(f"a variance over texts needs at least two, found {len(mean_NYGD)}")
    return int((mean_NYGD.flatten(1).double().var(0) > ACTIVE).sum())


def mutual_information(q: Posterior, rng: SequenceRng, *, draws: int) -> Tensor:
    """Estimate I(x; z), in nats: each text's part, (N,), float64; their mean is the estimate.

    I(x; z) = E KL(q(z|x) || p) - KL(q(z) || p) = E log q(z|x) / q(z), where q(z) is the mean of the N posteriors given,
    the text's own among them. So it cannot exceed log N, however informative z is, and is too low near that.
    """
    mean_NU, log_variance_NU = q.mean.flatten(1).double(), q.log_variance.flatten(1).double()
    stream, information_N = rng.stream("mutual_information"), mean_NU.new_zeros(len(mean_NU))
    for _ in range(draws):
        z_NU = q.at(stream.normal(*q.mean.shape[1:]).to(q.mean)).flatten(1).double()
        for n, z_U in enumerate(z_NU):
            log_q_N = -0.5 * ((z_U - mean_NU).square() / log_variance_NU.exp() + log_variance_NU).sum(1)
            information_N[n] += log_q_N[n] - (log_q_N.logsumexp(0) - math.log(len(log_q_N)))
    return information_N / draws


Infer = Callable[[Tensor, SequenceRng], Posterior]
"""Infers q(z|x) for a batch of full texts (B, L) under given noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What is known of log p(x) at one setting of the inference.

    Attributes:
        setting: number of fast steps, or of latents used.
        elbo_N, importance_N: lower bounds, nats of each text.
        upper_N: the upper bound from draws of its own, nats of each text; None where it was not asked for.
        reliability: of the upper bound's weights (`ltm.latent.reliability.of_weights`), (N,) each.
        elbo_flops, importance_flops: FLOPs per token that this code executes for each bound; None if not counted.
    """

    setting: int
    elbo_N: Tensor
    importance_N: Tensor
    upper_N: Tensor | None = None
    reliability: Mapping[str, Tensor] = field(default_factory=dict)
    elbo_flops: float | None = None
    importance_flops: float | None = None

    @property
    def trusted(self) -> bool:
        """True if the upper bound is one as far as its weights tell; otherwise it is an estimate."""
        return reliability.trusted(self.reliability)


@torch.no_grad()
def point(
    model: LatentModel,
    tokens_BL: Tensor,
    rng: SequenceRng,
    infer: Infer,
    *,
    draws: int,
    importance_draws: int,
    upper_draws: int | None = None,
) -> tuple[LikelihoodEstimate, ...]:
    """Return the ELBO and the importance bound of full texts under the q that `infer` returns.

    Args:
        upper_draws: of the tube upper bound, which is left out if None.
    """
    batch, q = model.scoring_batch(tokens_BL, 0, None, rng), infer(tokens_BL, rng)
    of_texts, tokens_B = batch.log_likelihood, batch.tokens_B
    elbo = bounds.elbo(of_texts, q, tokens_B, draws=draws, rng=rng)
    importance = bounds.importance_bound(of_texts, q, tokens_B, draws=importance_draws, rng=rng)
    if upper_draws is None:
        return elbo, importance
    return elbo, importance, tube.tube_upper_bound(of_texts, q, importance, tokens_B, draws=upper_draws, rng=rng)


def with_steps(model: LatentModel, steps: int) -> Infer:
    """Infer q with `steps` fast steps, none of them saved by a tolerance.

    A model that fits q does so from its own start and as configured; an encoder's q is refined on the same decoder, by
    the steps of `REFINING`.
    """
    if isinstance(model, LatentThoughtModel):
        fitting = dataclasses.replace(model.config.posterior.with_all_steps(), steps=steps)
        return lambda tokens_BL, rng: model.infer(tokens_BL, rng, config=fitting)
    refining = dataclasses.replace(REFINING, steps=steps)

    def refined(tokens_BL: Tensor, rng: SequenceRng) -> Posterior:
        q = model.infer(tokens_BL, rng)
        if not steps:
            return q
        gradient = likelihood_gradient(model, tokens_BL, None, matmul=refining.matmul)
        device, dtype = q.mean.device, q.mean.dtype
        return fit(gradient, model.latent_shape, refining, rng, device=device, dtype=dtype, start=q)

    return refined


def flops_with_steps(model: LatentModel, steps: int, draws: int, length: int) -> float:
    """Return the FLOPs per token of a bound with so many fast steps and draws, and an encoder's if there is one."""
    stack = StackFlops.of(model.config.decoder, model.vocab_size - 1, length, model.latent_shape[1])
    fits = model.config.fast_steps is not None
    encoder = 0.0 if fits else model.inference_cost(length, draws)[0] / length
    passes = 2 if fits or steps else 1  # before z: of a fit and of the draws
    value = stack.after_first_attention + stack.head
    return encoder + passes * stack.first_attention + steps * stack.latent_gradient + draws * value


def with_latents(model: LatentModel, count: int) -> Infer:
    """Infer q of the first `count` latent vectors, taken from the layers in turn; the others stay at the prior.

    A fit changes only those, with noise from the prior for the others. An encoder runs as usual.
    """
    Y, G, _ = model.latent_shape
    order_YG = torch.arange(Y)[:, None] + Y * torch.arange(G)

    def infer(tokens_BL: Tensor, rng: SequenceRng) -> Posterior:
        used_YG1 = (order_YG < count)[..., None].to(tokens_BL.device)
        if isinstance(model, LatentThoughtModel):
            config, like = model.config.posterior, model.decoder.embedding
            gradient = model.likelihood_gradient(tokens_BL, None, matmul=config.matmul)
            prior = Posterior.prior(len(tokens_BL), model.latent_shape, like=like)
            start = Posterior(mean=prior.mean, log_variance=prior.log_variance + config.init_log_variance * used_YG1)
            q = fit(
                lambda z, rows=None: gradient(z, rows) * used_YG1,
                model.latent_shape,
                config,
                rng,
                device=like.device,
                dtype=like.dtype,
                start=start,
            )
        else:
            q = model.infer(tokens_BL, rng)
        return Posterior(mean=q.mean * used_YG1, log_variance=q.log_variance * used_YG1)

    return infer


def interpolation(model: LatentModel, ends_2YGD: Tensor, *, points: int, tokens: int) -> list[list[int]]:
    """Decode greedily along the straight line between two z's, ends included."""
    weights_P = torch.linspace(0, 1, points, device=ends_2YGD.device, dtype=ends_2YGD.dtype)
    z_PYGD = torch.lerp(ends_2YGD[0], ends_2YGD[1], weights_P[:, None, None, None])

    def infer(tokens_BL: Tensor, rows: SequenceRng, times: int) -> list[KeysValues]:
        return model.latent_keys_values(model.decoder, z_PYGD)

    greedy, rng = Sampling(temperature=0), SequenceRng(0, range(points))
    return continue_prompts(model.decoder, [[]] * points, infer, max_new_tokens=tokens, sampling=greedy, rng=rng).tokens


def doublings(most: int) -> list[int]:
    """Return 0, 1, 2, 4, ... and `most` itself."""
    return sorted({0, most, *(2**n for n in range(most.bit_length()))})


def batches(tokens_NL: Tensor, rng: SequenceRng, size: int) -> Iterator[tuple[Tensor, SequenceRng]]:
    """Yield texts with their noise, `size` at a time."""
    for start in range(0, len(tokens_NL), size):
        rows = range(start, min(start + size, len(tokens_NL)))
        yield tokens_NL[start : rows.stop], rng.select(rows)


def posterior(model: LatentModel, tokens_NL: Tensor, rng: SequenceRng, size: int) -> Posterior:
    """Infer q of each text as the model is configured."""
    parts = []
    for tokens_BL, noise in batches(tokens_NL, rng, size):
        with torch.no_grad():
            parts.append(model.infer(tokens_BL, noise))
    return Posterior(mean=torch.cat([q.mean for q in parts]), log_variance=torch.cat([q.log_variance for q in parts]))


def curve(
    model: LatentModel,
    tokens_NL: Tensor,
    rng: SequenceRng,
    size: int,
    settings: Sequence[int],
    *,
    by: str,
    draws: int,
    importance_draws: int,
    upper_draws: int | None = None,
) -> list[Point]:
    """Compute bounds over settings of the inference, all under the same noise.

    Args:
        by: the setting that varies: `steps`, of a fit or of an encoder's refinement, or `latents`.
        upper_draws: of the upper bound, which is left out if None.
    """
    points = []
    for setting in settings:
        flops: dict[str, float] = {}
        if by == "steps":
            infer = with_steps(model, setting)
            for name, count in (("elbo_flops", draws), ("importance_flops", importance_draws)):
                flops[name] = flops_with_steps(model, setting, count, tokens_NL.shape[1])
        else:
            infer = with_latents(model, setting)
        found = [
            point(
                model,
                tokens_BL,
                noise,
                infer,
                draws=draws,
                importance_draws=importance_draws,
                upper_draws=upper_draws,
            )
            for tokens_BL, noise in batches(tokens_NL, rng, size)
        ]
        elbo_N, importance_N, *upper = (torch.cat([e.nats_B for e in each]) for each in zip(*found, strict=True))
        of_weights = [each[-1].reliability for each in found] if upper else [{}]
        points.append(
            Point(
                setting=setting,
                elbo_N=elbo_N,
                importance_N=importance_N,
                upper_N=upper[0].clamp(max=VACUOUS) if upper else None,
                reliability={name: torch.cat([each[name] for each in of_weights]) for name in of_weights[0]},
                **flops,
            )
        )
    return points
