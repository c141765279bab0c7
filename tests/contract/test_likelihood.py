"""A number may call itself a likelihood only if, over all texts, its exponentials sum to at most 1."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ltm.latent.model import LatentThoughtModel, LTMConfig
from ltm.latent.posterior import PosteriorConfig
from ltm.rng import SequenceRng
from tests.contract.conftest import L, V, all_texts, structured_batch, train_briefly, trained

TEXTS = all_texts()


def with_fast_steps(model, **changes):
    """The model with other posterior settings, where it has a posterior: few steps hide a wrong estimator."""
    if not hasattr(model.config, "posterior"):
        return model
    other = type(model)(
        dataclasses.replace(model.config, posterior=dataclasses.replace(model.config.posterior, **changes))
    )
    other.double().load_state_dict(model.state_dict())
    return other.eval().requires_grad_(False)


def total_mass(estimate) -> tuple[float, float]:
    """Sum of exp(nats) over all texts and its Monte Carlo standard error."""
    p_B = estimate.nats_B.exp()
    variance_B = torch.zeros_like(p_B) if estimate.mc_var_B is None else estimate.mc_var_B
    return float(p_B.sum()), float((p_B.square() * variance_B).sum().sqrt())


def test_total_mass(model):
    model = with_fast_steps(model, steps=200)
    found = model.log_likelihoods(TEXTS, rng=SequenceRng(1, range(len(TEXTS))), draws=128)
    assert next(iter(found)) == model.headline()
    for name, estimate in found.items():
        mass, error = total_mass(estimate)
        if estimate.kind == "exact":
            assert mass == pytest.approx(1, abs=1e-6), name
        elif estimate.kind == "lower_bound":
            assert 0.05 < mass <= 1 + 3 * error + 1e-9, (name, mass, error)
            assert error < 0.05


def test_conditional_mass(model):
    """Given any first two tokens, the continuations share at most all probability.

    Noise is shared by the continuations of a context, so a proper predictive sums to exactly 1 under it.
    """
    model = with_fast_steps(model, steps=50)
    by_context = SequenceRng(1, [row // V**2 for row in range(len(TEXTS))])
    found = model.log_likelihoods(TEXTS, context=2, rng=by_context, draws=64)
    for name, estimate in found.items():
        assert (estimate.tokens_B == L - 2).all()
        masses = estimate.nats_B.exp().view(V**2, V**2).sum(1)
        if estimate.kind == "exact" or name == "predictive_bound":
            torch.testing.assert_close(masses, torch.ones_like(masses))
        elif estimate.kind == "lower_bound":
            assert float(masses.max()) <= 1.02, name


def test_reused_noise_is_not_a_likelihood():
    """Trained and scored at the noise it was fitted to, the estimate claims more than all probability."""
    torch.manual_seed(0)
    config = LatentThoughtModel.miniature(V + 1, L)
    config = dataclasses.replace(config, posterior=PosteriorConfig(steps=8, noise="reused"))
    model = LatentThoughtModel(config).double()
    train_briefly(model, 200)
    model = with_fast_steps(model.eval().requires_grad_(False), steps=200)
    found = model.log_likelihoods(TEXTS, rng=SequenceRng(1, range(len(TEXTS))), draws=64)
    mass, _ = total_mass(found["reused_noise_estimate"])
    assert mass > 1.5, mass
    for name in ("elbo", "importance_bound"):
        valid, error = total_mass(found[name])
        assert valid <= 1 + 3 * error, (name, valid, error)
    assert found["reused_noise_estimate"].kind == "estimate"


def test_only_what_is_averaged_may_exceed_in_expectation(model):
    """Mean over noises of exp(value), few draws each: over all texts at most 1, unless the value says `averaged`."""
    times = 25
    texts, rows = TEXTS.repeat(times, 1), len(TEXTS) * times
    for name, estimate in model.log_likelihoods(texts, rng=SequenceRng(4, range(rows)), draws=1).items():
        if estimate.averaged:
            assert estimate.kind != "exact" and estimate.draws > 0, name
        elif estimate.kind != "estimate":
            masses = estimate.nats_B.exp().view(times, -1).sum(1)
            assert float(masses.mean()) <= 1 + 4 * float(masses.std()) / times**0.5 + 1e-9, name


def test_averages_do_exceed_in_expectation():
    """So that the field is needed: a diffusion bound from one draw, its exponential averaged over noises."""
    model, times = trained("mdlm"), 200
    texts = TEXTS.repeat(times, 1)
    (estimate,) = model.log_likelihoods(texts, rng=SequenceRng(4, range(len(texts))), draws=1).values()
    masses = estimate.nats_B.exp().view(times, -1).sum(1)
    assert estimate.averaged and float(masses.mean()) > 1 + 4 * float(masses.std()) / times**0.5


def test_terms_add_up(model):
    for name, estimate in model.log_likelihoods(TEXTS, rng=SequenceRng(2, range(len(TEXTS)))).items():
        if estimate.terms:
            torch.testing.assert_close(sum(estimate.terms.values()), estimate.nats_B, msg=name)
        assert estimate.nats_B.dtype == torch.float64 and estimate.tokens_B.dtype == torch.int64


def test_batch_order_and_padding_change_nothing(model):
    texts = structured_batch(torch.Generator().manual_seed(3), 6)
    lengths = torch.tensor([4, 1, 3, 2, 4, 3])
    whole = model.log_likelihoods(texts, lengths=lengths, rng=SequenceRng(5, range(6)))
    for row in (3, 0, 5, 2):
        n = int(lengths[row])
        alone = model.log_likelihoods(texts[row : row + 1, :n], rng=SequenceRng(5, [row]))
        for name, estimate in whole.items():
            torch.testing.assert_close(alone[name].nats_B[0], estimate.nats_B[row], rtol=0, atol=1e-9, msg=name)
            assert alone[name].tokens_B[0] == estimate.tokens_B[row] == n
    other_padding = texts.clone()
    other_padding[torch.arange(L) >= lengths[:, None]] = V - 1
    again = model.log_likelihoods(other_padding, lengths=lengths, rng=SequenceRng(5, range(6)))
    for name, estimate in whole.items():
        torch.testing.assert_close(again[name].nats_B, estimate.nats_B, rtol=0, atol=0, msg=name)


def test_context_and_continuation_add_up(model):
    rng = SequenceRng(0, range(len(TEXTS)))
    whole = model.log_likelihood(TEXTS, rng=rng)
    if whole.kind != "exact":
        pytest.skip("only exact likelihoods obey the chain rule")
    head = model.log_likelihood(TEXTS, lengths=torch.full((len(TEXTS),), 2), rng=rng)
    tail = model.log_likelihood(TEXTS, context=2, rng=rng)
    torch.testing.assert_close(head.nats_B + tail.nats_B, whole.nats_B)


def test_only_computes_what_is_asked(model):
    rng = SequenceRng(0, range(4))
    everything = model.log_likelihoods(TEXTS[:4], rng=rng)
    for name, estimate in everything.items():
        one = model.log_likelihoods(TEXTS[:4], rng=rng, only=name)
        assert list(one) == [name]
        torch.testing.assert_close(one[name].nats_B, estimate.nats_B, rtol=0, atol=0)


def test_bad_input_is_refused(model):
    rng = SequenceRng(0, [0])
    with pytest.raises(ValueError, match=r"outside 0\.\.2"):
        model.log_likelihood(torch.tensor([[0, 1, V, 2]]), rng=rng)
    with pytest.raises(ValueError, match="context"):
        model.log_likelihood(TEXTS[:1], context=5, rng=rng)


def test_linear_latents_config_is_checked():
    decoder = LatentThoughtModel.miniature(4, 4).decoder
    with pytest.raises(ValueError, match="multiple of layers"):
        LTMConfig(decoder=decoder, latents=3)
