"""The inference gap where it is known: KL(q || posterior) of a linear-Gaussian decoder, and quadrature."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from baselines.vae import VAE
from ltm.latent import bounds, tube
from ltm.latent.posterior import Posterior, fit
from ltm.latent.stopping import divergence
from ltm.result_schema import VACUOUS
from ltm.rng import SequenceRng
from ltm.testing.miniatures import L, all_texts
from tasks.diagnostics import gap, measures
from tasks.diagnostics.kind import REFINEMENT_STEPS
from tasks.diagnostics.measures import Point
from tests.ltm.latent.test_mixture import TOKENS_B, B, S, W, X, Z, exact_posterior, log_likelihood
from tests.support.quadrature import evidence, two_dimensional

EXACT = exact_posterior()
WRONG = Posterior(mean=EXACT.mean + 0.3, log_variance=EXACT.log_variance - 0.5)
TEXTS = all_texts()


def divergence_per_token(q: Posterior) -> float:
    """KL(q || posterior), on average over texts."""
    return float(divergence(q.mean, q.log_variance, EXACT.mean, EXACT.log_variance).mean()) / Z


KL = divergence_per_token(WRONG)


def point_of(q: Posterior, setting: int, draws: int = 1024, seed: int = 0) -> Point:
    rng = SequenceRng(seed, range(B))
    elbo = bounds.elbo(log_likelihood, q, TOKENS_B, draws=draws, rng=rng)
    importance = bounds.importance_bound(log_likelihood, q, TOKENS_B, draws=draws, rng=rng)
    upper = tube.tube_upper_bound(log_likelihood, q, importance, TOKENS_B, draws=draws, rng=rng)
    return Point(
        setting=setting,
        elbo_N=elbo.nats_B,
        importance_N=importance.nats_B,
        upper_N=upper.nats_B,
        reliability=upper.reliability,
    )


def gap_of(*points: Point, own: int = 0, encoder: bool = False) -> gap.Gap:
    return gap.measured(points, Z, own=own, encoder=encoder)


def test_at_the_exact_posterior_there_is_no_gap():
    found = gap_of(point_of(EXACT, 0))
    for side in (found.at_most, found.at_least):
        assert side.stderr_data is not None and abs(side.value) < 4 * side.stderr_data + 1e-3
        assert abs(side.value) < 0.02
    assert found.trusted and found.amortization_at_least is None


def test_of_a_wrong_q_it_is_the_divergence_from_the_posterior():
    """log p - ELBO = KL(q || posterior), whether the sides are taken at that q or at a better one."""
    for points in ([point_of(WRONG, 3)], [point_of(WRONG, 3), point_of(EXACT, 8)]):
        found = gap_of(*points, own=3)
        assert KL > 0.1
        assert found.at_least.value == pytest.approx(KL, abs=0.02)
        assert found.at_most.value == pytest.approx(KL, abs=0.02)


def test_on_average_over_noises_the_gap_lies_between_its_sides():
    """With few draws each side has slack of its own, and the mean over noises shows on which side of the gap it is."""
    found = [gap_of(point_of(WRONG, 0, draws=32, seed=seed)) for seed in range(60)]
    for side, sign in (("at_most", 1), ("at_least", -1)):
        beyond = sign * (torch.tensor([getattr(each, side).value for each in found]) - KL)
        assert float(beyond.mean()) > -3 * float(beyond.std()) / len(found) ** 0.5, side
    assert sum(each.at_most.value - each.at_least.value for each in found) > 0


def test_the_point_is_chosen_by_its_elbo_and_not_by_the_sides_themselves():
    """The least of several upper bounds, or the greatest of several lower ones, would be neither."""
    good = point_of(EXACT, 8)
    assert good.upper_N is not None
    tempting = dataclasses.replace(
        point_of(WRONG, 64), upper_N=good.upper_N - 5.0, importance_N=good.importance_N + 5.0
    )
    assert gap_of(good, tempting, own=8) == gap_of(good, own=8)
    assert gap.best([good, tempting]) is good


def test_where_the_gate_has_closed_the_number_is_an_estimate_and_says_so():
    sound = point_of(WRONG, 0)
    heavy = dataclasses.replace(sound, reliability={**sound.reliability, "tail": torch.full((B,), 0.9)})
    for of, kind in ((sound, "lower_bound"), (heavy, "estimate")):
        most, least = gap.metrics(gap_of(of))
        assert (most.name, most.kind, most.likelihood) == ("inference_gap_nats_per_token", kind, "tube_upper_bound")
        assert (least.kind, least.likelihood) == ("upper_bound", "importance_bound"), "the lower side is proven"
        assert not most.headline and most.ci95 is not None and "paired" in most.ci95.method
    assert "at most" in gap.answer(gap_of(sound)) and "~" not in gap.answer(gap_of(sound))
    said = gap.answer(gap_of(heavy))
    assert "at most" not in said and "~, no bound" in said and "0.90" in said
    assert max(map(len, said.splitlines())) <= 98


def test_a_vacuous_upper_bound_is_a_finite_number_that_fits_on_a_line():
    sound = point_of(WRONG, 0)
    assert sound.upper_N is not None
    upper_N = torch.cat([torch.full((1,), VACUOUS, dtype=torch.float64), sound.upper_N[1:]])
    found = gap_of(dataclasses.replace(sound, upper_N=upper_N))
    most, _ = gap.metrics(found)
    assert most.value > 1e25 and most.ci95 is not None and most.ci95.high < float("inf")
    assert max(map(len, gap.answer(found).splitlines())) <= 98


def test_a_curve_with_one_side_has_no_gap():
    with pytest.raises(ValueError, match="from both sides"):
        gap_of(dataclasses.replace(point_of(EXACT, 0), upper_N=None))


def test_refinement_takes_a_wrong_q_to_the_posterior():
    """And what it gains is the amortization gap of that q: here the whole gap, since the posterior is a Gaussian."""

    def gradient(z_BYGD, rows=None, /):
        return -(W * (X - W * z_BYGD[:, 0, 0]) / (S * S))[:, None, None]

    def refined(steps: int) -> Posterior:
        config = dataclasses.replace(measures.REFINING, steps=steps)
        rng = SequenceRng(0, range(B))
        return fit(gradient, (1, 1, Z), config, rng, device=X.device, dtype=X.dtype, start=WRONG)

    left = {steps: divergence_per_token(refined(steps)) for steps in (0, 4, 16, 64)}
    assert left[0] == pytest.approx(KL) and left[0] > left[4] > left[16] > left[64]
    assert left[16] < 0.25 * KL and left[64] < 0.1 * KL
    found = gap_of(point_of(WRONG, 0), point_of(refined(64), 64), encoder=True)
    assert found.amortization_at_least is not None
    assert found.amortization_at_least.value == pytest.approx(KL - left[64], abs=0.02)


@pytest.fixture(scope="module")
def vae():
    return two_dimensional(3, cls=VAE, kl_warmup=1.0, kl_weight_start=0.1)


@pytest.fixture(scope="module")
def refined(vae):
    rng = SequenceRng(0, range(len(TEXTS)))
    return measures.curve(
        vae, TEXTS, rng, 32, REFINEMENT_STEPS, by="steps", draws=256, importance_draws=64, upper_draws=64
    )


def test_refining_the_encoders_q_never_costs_more_than_noise(vae, refined):
    encoder, *others = refined
    for p in others:
        gained = p.elbo_N - encoder.elbo_N
        assert float(gained.mean()) > -3 * float(gained.std()) / len(gained) ** 0.5, p.setting
    found = gap.measured(refined, L, own=0, encoder=True)
    amortization = found.amortization_at_least
    assert amortization is not None and amortization.stderr_data is not None
    assert amortization.value <= found.at_most.value + 3 * amortization.stderr_data, "it is a part of the gap"
    assert [m.name for m in gap.metrics(found)][2] == "amortization_gap_at_least_nats_per_token"
    assert "Refining the encoder's q gains" in gap.answer(found)


def test_every_point_of_the_refinement_holds_the_evidence(vae, refined):
    log_p_N = evidence(vae, TEXTS)
    for p in refined:
        assert p.upper_N is not None and p.trusted
        for nats_N, sign in ((p.elbo_N, 1), (p.importance_N, 1), (p.upper_N, -1)):
            beyond_N = sign * (nats_N - log_p_N)
            assert float(beyond_N.mean()) < 3 * float(beyond_N.std()) / len(beyond_N) ** 0.5


def test_no_steps_are_the_encoder_itself_and_cost_what_it_costs(vae):
    rng = SequenceRng(0, range(len(TEXTS)))
    expected = vae.log_likelihoods(TEXTS, rng=rng, draws=8, only="elbo")["elbo"].nats_B
    (p,) = measures.curve(vae, TEXTS, rng, 32, [0], by="steps", draws=8, importance_draws=8)
    torch.testing.assert_close(p.elbo_N, expected)
    assert p.upper_N is None and p.elbo_flops == pytest.approx(vae.cost(L).score_flops_per_token)
    assert measures.flops_with_steps(vae, 1, 8, L) > p.elbo_flops
