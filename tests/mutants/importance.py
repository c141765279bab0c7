"""Mutants of importance weights, of upper bounds made from them, and of mixtures of proposals."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from ltm.latent import bounds, tube
from ltm.latent.base import LatentModel
from ltm.latent.mixture import Mixture
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import Posterior
from tests.mutants import Patch, changed, instead, mutant
from tests.mutants.latent import other_noise


@mutant("vae", "importance weights averaged over the better half of the draws", caught_by="prequential_mass")
def best_half_of_weights() -> Patch:
    def make(sound):
        return lambda log_w_KB, tokens_B: sound(log_w_KB.sort(0).values[len(log_w_KB) // 2 :], tokens_B)

    return instead(bounds, "log_mean_exp", make)


@mutant("known-source", "importance weights averaged over the better half of the draws", caught_by="against_exact")
def best_half_beside_exact() -> Patch:
    return best_half_of_weights()


@mutant("vae", "importance weights summed: no 1/K", caught_by="total_mass")
def sum_of_weights() -> Patch:
    return changed(
        bounds, "log_mean_exp", lambda e: dataclasses.replace(e, nats_B=e.nats_B + math.log(max(1, e.draws)))
    )


@mutant("vae", "importance weights that ignore the spread of q", caught_by="total_mass")
def weights_without_spread() -> Patch:
    def bad(self, noise):
        return 0.5 * (noise.double().square() - self.at(noise).double().square()).flatten(1).sum(1)

    return mock.patch.object(Posterior, "log_ratio", bad)


@mutant(
    "vae",
    "importance weights with log q of a variance larger than that of the draws, by 3 / sqrt(dimensions)",
    caught_by="recomputed_importance",
)
def weights_of_a_wider_q() -> Patch:
    def bad(self, noise):
        ratio = 1 + 3 / math.sqrt(self.mean[0].numel())
        z, own = self.at(noise).double(), noise.double() / math.sqrt(ratio)
        return 0.5 * (own.square() - z.square() + self.log_variance.double() + math.log(ratio)).flatten(1).sum(1)

    return mock.patch.object(Posterior, "log_ratio", bad)


def of_the_weights(change: Callable[[torch.Tensor], torch.Tensor], **replaced: Any) -> Patch:
    """An importance bound of other log weights, and with fields replaced."""

    def make(sound):
        def bad(*given, **options):
            changed_weights = instead(
                bounds, "log_mean_exp", lambda mean: lambda log_w_KB, *by: mean(change(log_w_KB), *by)
            )
            with changed_weights:
                return dataclasses.replace(sound(*given, **options), **replaced)

        return bad

    return instead(bounds, "importance_bound", make)


@mutant("ltm", "the best importance weight is counted twice", caught_by="recomputed_importance")
def best_weight_twice() -> Patch:
    return of_the_weights(lambda log_w_KB: torch.cat([log_w_KB, log_w_KB.max(0, keepdim=True).values]))


@mutant(
    "vae",
    "the largest importance weight in place of the mean of all, with no q handed over",
    caught_by="recomputed_importance",
)
def largest_weight() -> Patch:
    return of_the_weights(lambda log_w_KB: log_w_KB.max(0, keepdim=True).values, q=None)


def of_the_tangent(change: Callable[..., Any]) -> Patch:
    """An upper bound from other weights and another psi; `change` maps (log weights, log psi) to such."""
    return instead(
        tube,
        "tangent",
        lambda sound: lambda log_w_KB, log_psi_B, *given, **named: sound(*change(log_w_KB, log_psi_B), *given, **named),
    )


@mutant("vae", "an upper bound whose psi is the mean of its own weights", caught_by="recomputed_tube_upper")
def psi_from_its_own_noise() -> Patch:
    return of_the_tangent(lambda log_w_KB, _: (log_w_KB, log_w_KB.logsumexp(0) - math.log(len(log_w_KB))))


@mutant("vae", "an upper bound without the two largest weights", caught_by="recomputed_tube_upper")
def largest_weights_dropped() -> Patch:
    return of_the_tangent(
        lambda log_w_KB, psi_B: (log_w_KB.masked_fill(log_w_KB >= log_w_KB.topk(2, 0)[0][1], -1e3), psi_B)
    )


@mutant(
    "vae",
    "an upper bound whose weights are clipped at 1.05 psi, and its variance with them",
    caught_by="recomputed_tube_upper",
)
def clipped_ratios() -> Patch:
    return of_the_tangent(lambda log_w_KB, psi_B: (log_w_KB.minimum(psi_B + math.log(1.05)), psi_B))


@mutant("known-source", "an upper bound whose weights are clipped at psi", caught_by="against_exact")
def clipped_at_psi() -> Patch:
    return of_the_tangent(lambda log_w_KB, psi_B: (log_w_KB.minimum(psi_B), psi_B))


@mutant("vae", "the lowest of four upper bounds", caught_by="recomputed_tube_upper")
def lowest_of_four() -> Patch:
    def make(sound):
        def bad(*given, rng, **options):
            tries = [sound(*given, rng=other_noise(rng, n) if n else rng, **options) for n in range(4)]
            nats_B, number_B = torch.stack([one.nats_B for one in tries]).min(0)
            picked = {"nats_B": nats_B, "terms": {}}
            for part in ("log_psi", "excess"):
                each_4B = torch.stack([one.terms[part] for one in tries])
                picked["terms"][part] = each_4B[number_B, torch.arange(len(number_B))]
            return dataclasses.replace(tries[0], **picked)

        return bad

    return instead(tube, "tube_upper_bound", make)


def of_a_mixture(broken: Callable[[], Patch]) -> Patch:
    """A patch to how bounds are computed, with `importance_proposals=mixture`; what recomputes them stays sound."""

    def make(sound):
        def bad(self, batch, **options):
            mixed = dataclasses.replace(self.config, importance_proposals="mixture")
            with mock.patch.object(self, "config", mixed), broken():
                return sound(self, batch, **options)

        return bad

    return instead(LatentModel, "gaussian_bounds", make)


@mutant("ltm", "a mixture's density without one of the q's that z is drawn from", caught_by="blank_mass")
def density_without_a_proposal() -> Patch:
    def make(sound):
        def bad(self, z):
            rest = Mixture(parts=self.parts[:1] + self.parts[2:], counts=self.counts[:1] + self.counts[2:])
            return sound(rest, z) + math.log(rest.draws / self.draws)

        return bad

    return of_a_mixture(lambda: instead(Mixture, "log_density", make))


@mutant("ltm", "a mixture whose draws from one q are at the noise that it was fitted to", caught_by="total_mass")
def fit_noise_in_a_mixture() -> Patch:
    def visit(self, tokens_BL, rng, *, weights_BL):
        reused, visited = self.config.posterior.with_reused_noise(), []
        q = self.infer(tokens_BL, rng, weights_BL=weights_BL, config=reused, visited=visited)
        return [*visited[:-1], q]

    def make(sound):
        def bad(self, stream):
            z_K, last, count = list(sound(self, stream)), self.parts[-1], self.counts[-1]
            if last.fitted_noise is None:  # a mixture of another bound
                return z_K
            return z_K[:-count] + [last.at(last.fitted_noise)] * count

        return bad

    def broken() -> Patch:
        stack = contextlib.ExitStack()
        stack.enter_context(mock.patch.object(LatentThoughtModel, "visit", visit))
        stack.enter_context(instead(Mixture, "sample", make))
        return stack

    return of_a_mixture(broken)
