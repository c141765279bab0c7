"""Measures of a Gaussian q(z|x): active units, mutual information, and bounds over fast steps or latents used.

Everything here works for any `LatentModel` whose `infer` returns a `Posterior`. Shapes: N texts, L tokens, Y layers, G
latent vectors per layer, D width, U = Y G D units.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltm.api import LikelihoodEstimate, Sampling
from ltm.latent import bounds
from ltm.latent.base import LatentModel
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import Posterior, fit
from ltm.nn.block import KeysValues
from ltm.nn.flops import StackFlops
from ltm.nn.left_to_right import continue_prompts
from ltm.rng import SequenceRng

ACTIVE = 0.01
"""A unit is active if the variance of its posterior mean over texts exceeds this (arXiv 1509.00519)."""


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
    """Valid bounds at one setting of the inference.

    Attributes:
        setting: number of fast steps, or of latents used.
        elbo_N, importance_N: nats of each text.
        elbo_flops, importance_flops: FLOPs per token that this code executes for each bound; None if not counted.
    """

    setting: int
    elbo_N: Tensor
    importance_N: Tensor
    elbo_flops: float | None = None
    importance_flops: float | None = None


@torch.no_grad()
def point(
    model: LatentModel, tokens_BL: Tensor, rng: SequenceRng, infer: Infer, *, draws: int, importance_draws: int
) -> tuple[LikelihoodEstimate, LikelihoodEstimate]:
    """Return the ELBO and the importance bound of full texts under the q that `infer` returns."""
    batch, q = model.scoring_batch(tokens_BL, 0, None, rng), infer(tokens_BL, rng)
    elbo = bounds.elbo(batch.log_likelihood, q, batch.tokens_B, draws=draws, rng=rng)
    return elbo, bounds.importance_bound(batch.log_likelihood, q, batch.tokens_B, draws=importance_draws, rng=rng)


def with_steps(model: LatentThoughtModel, steps: int) -> Infer:
    """Infer q with `steps` fast steps, none of them saved by a tolerance, and everything else as configured."""
    config = dataclasses.replace(model.config.posterior.with_all_steps(), steps=steps)
    return lambda tokens_BL, rng: model.infer(tokens_BL, rng, config=config)


def flops_with_steps(model: LatentThoughtModel, steps: int, draws: int, length: int) -> float:
    """Return the FLOPs per token of a bound with so many fast steps and draws."""
    stack = StackFlops.of(model.config.decoder, model.vocab_size - 1, length, model.latent_shape[1])
    return (
        2 * stack.first_attention + steps * stack.latent_gradient + draws * (stack.after_first_attention + stack.head)
    )


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
) -> list[Point]:
    """Compute bounds over settings of the inference, all under the same noise.

    Args:
        by: the setting that varies: `steps` (models that fit q) or `latents`.
    """
    points = []
    for setting in settings:
        flops: dict[str, float] = {}
        if by == "steps" and isinstance(model, LatentThoughtModel):
            infer = with_steps(model, setting)
            for name, count in (("elbo_flops", draws), ("importance_flops", importance_draws)):
                flops[name] = flops_with_steps(model, setting, count, tokens_NL.shape[1])
        else:
            infer = with_latents(model, setting)
        pairs = [
            point(model, tokens_BL, noise, infer, draws=draws, importance_draws=importance_draws)
            for tokens_BL, noise in batches(tokens_NL, rng, size)
        ]
        elbo_N, importance_N = (torch.cat([pair[which].nats_B for pair in pairs]) for which in (0, 1))
        points.append(Point(setting=setting, elbo_N=elbo_N, importance_N=importance_N, **flops))
    return points
