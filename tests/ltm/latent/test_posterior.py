"""Fast learning against an optimiser that torch wrote, and the published settings against their own arithmetic."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from ltm.config import with_settings
from ltm.latent.model import LatentThoughtModel, LTMConfig
from ltm.latent.posterior import Posterior, PosteriorConfig
from ltm.rng import SequenceRng
from ltm.testing.miniatures import L, V, structured_batch

TEXTS = structured_batch(torch.Generator().manual_seed(0), 5)
RNG = SequenceRng(3, range(5))


def new_model(**posterior) -> LatentThoughtModel:
    torch.manual_seed(0)
    config = LatentThoughtModel.miniature(V + 1, L)
    model = LatentThoughtModel(dataclasses.replace(config, posterior=PosteriorConfig(steps=6, **posterior))).double()
    with torch.no_grad():
        for p in model.parameters():  # far from initialisation, so that z matters
            p.mul_(8 if p.ndim > 1 else 1)
    return model


def plain_fit(model: LatentThoughtModel, config: PosteriorConfig) -> Posterior:
    """Algorithm 1 as one would write it first: torch's AdamW, whole forward passes, whole logits."""
    stream = RNG.stream("fit")
    shape = model.latent_shape
    double = torch.float64
    mean = torch.zeros(5, *shape, dtype=double)
    if config.init_mean_std:
        mean = config.init_mean_std * stream.normal(*shape, dtype=double)
    log_variance = torch.full_like(mean, config.init_log_variance)
    if config.init_log_variance_std:
        log_variance += config.init_log_variance_std * stream.normal(*shape, dtype=double)
    mean.requires_grad_(), log_variance.requires_grad_()
    adam = torch.optim.AdamW([mean, log_variance], weight_decay=config.weight_decay)
    epsilon = None
    for step in range(config.steps):
        if epsilon is None or config.noise == "fresh":
            epsilon = stream.normal(*shape, dtype=torch.float64)
        z = mean + (0.5 * log_variance).exp() * epsilon
        h = model.decoder(model.decoder.with_bos(TEXTS), model.latent_keys_values(model.decoder, z))
        nll = F.cross_entropy((h @ model.decoder.embedding[:-1].T).flatten(0, 1), TEXTS.flatten(), reduction="sum")
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
        adam.param_groups[0]["lr"] = config.lr_at(step)
        adam.zero_grad()
        (nll + kl).backward()
        adam.step()
    return Posterior(mean=mean.detach(), log_variance=log_variance.detach(), fitted_noise=epsilon)


@pytest.mark.parametrize("name", ["algorithm_1", "published_code"])
def test_agrees_with_a_plain_loop(name):
    model = new_model()
    config = dataclasses.replace(PosteriorConfig.NAMED[name], steps=6)
    ours, plain = model.infer(TEXTS, RNG, config=config), plain_fit(model, config)
    for field in ("mean", "log_variance", "fitted_noise"):
        torch.testing.assert_close(getattr(ours, field), getattr(plain, field), rtol=1e-9, atol=1e-9)


def test_weights_get_no_gradient():
    model = new_model()
    model.infer(TEXTS, RNG)
    assert all(p.grad is None for p in model.parameters())
    model.training_loss(TEXTS, rng=RNG).value.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_leaked_gradients_are_the_sum_over_fast_steps():
    """The setting puts into `.grad` what a plain loop's backward passes leave there."""
    model = new_model()
    config = dataclasses.replace(PosteriorConfig(steps=6), noise="fresh")
    model.infer(TEXTS, RNG, config=config, leak_gradients=True)
    leaked = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    plain_fit(model, config)
    for name, p in model.named_parameters():
        torch.testing.assert_close(leaked[name], p.grad, rtol=1e-7, atol=1e-9, msg=name)


@torch.no_grad()
def test_slow_step_noise_is_fresh_or_reused():
    """Algorithm 1 trains at a z that the fit never saw; the published code at the z it was fitted to."""
    fresh, reused = new_model(), new_model(noise="reused")
    q = reused.infer(TEXTS, RNG)
    h = reused.hidden(reused.decoder, reused.prepare(reused.decoder, TEXTS), q.at(q.fitted_noise))
    logits = (h @ reused.decoder.embedding[:-1].T).flatten(0, 1)
    expected = float(F.cross_entropy(logits, TEXTS.flatten()))
    assert float(reused.training_loss(TEXTS, rng=RNG).value) == pytest.approx(expected, rel=1e-9)
    q = fresh.infer(TEXTS, RNG)
    at_fitted = fresh.hidden(fresh.decoder, fresh.prepare(fresh.decoder, TEXTS), q.at(q.fitted_noise))
    other = float(F.cross_entropy((at_fitted @ fresh.decoder.embedding[:-1].T).flatten(0, 1), TEXTS.flatten()))
    assert abs(float(fresh.training_loss(TEXTS, rng=RNG).value) - other) > 1e-4


def test_published_schedule():
    """Reference figures of the public code: the rates of 16 steps sum to 3.145 and end at 0.0369."""
    config = dataclasses.replace(PosteriorConfig.NAMED["published_code"], steps=16)
    rates = [config.lr_at(s) for s in range(16)]
    assert sum(rates) == pytest.approx(3.145, abs=1e-3)
    assert rates[0] == pytest.approx(0.34) and rates[-1] == pytest.approx(0.0369, abs=1e-4)
    assert dataclasses.replace(config, steps=24, schedule_steps=16).lr_at(20) == pytest.approx(0.034)


def test_kl_floor_of_the_published_start():
    """From log sigma^2 = -5, 16 published steps cannot bring the KL below 0.43 nats a dimension (0.468 measured)."""
    config = dataclasses.replace(PosteriorConfig.NAMED["published_code"], steps=16)
    from ltm.latent.posterior import fit

    q = fit(torch.zeros_like, (1, 1, 4000), config, SequenceRng(0, [0]), device=torch.device("cpu"))
    assert float(q.kl().sum()) / 4000 == pytest.approx(0.468, abs=0.01)


def test_free_bits_keep_the_kl_from_falling_further():
    """With no likelihood, q goes to the prior; with free bits it stops near the floor instead."""
    from ltm.latent.posterior import fit

    config = PosteriorConfig(steps=800, lr=0.01, lr_schedule="constant", init_log_variance=-5.0)
    shape, rng, device = (1, 3, 8), SequenceRng(0, [0]), torch.device("cpu")
    bare = fit(torch.zeros_like, shape, config, rng, device=device)
    assert float(bare.kl().max()) < 0.01
    floored = fit(torch.zeros_like, shape, config, rng, device=device, free_bits=2.0)
    assert 1.5 < float(floored.kl().min()) and float(floored.kl().max()) <= 2.0 + 1e-3


def test_kl_weight_rises_linearly():
    config = with_settings(LatentThoughtModel.miniature(4, 4), ["kl_warmup=0.4", "kl_weight_start=0.1"])
    assert isinstance(config, LTMConfig)
    assert [round(config.kl_weight(p), 6) for p in (0.0, 0.2, 0.4, 1.0)] == [0.1, 0.55, 1.0, 1.0]


def test_bfloat16_fit_is_close_and_bounds_stay_valid():
    """Rounding in the fit moves q a little; the scored number is computed in float32 all the same."""
    model = new_model().float()
    coarse = model.infer(TEXTS, RNG, config=PosteriorConfig(steps=6, lr=0.05, matmul="bfloat16"))
    fine = model.infer(TEXTS, RNG, config=PosteriorConfig(steps=6, lr=0.05, matmul="float32"))
    assert float((coarse.mean - fine.mean).abs().mean()) < 0.05
    assert not torch.equal(coarse.mean, fine.mean)
    assert model.decoder.dtype == torch.float32


def test_kl_and_ratio_are_those_of_torch():
    torch.manual_seed(0)
    q = Posterior(mean=torch.randn(2, 1, 3, 4).double(), log_variance=torch.randn(2, 1, 3, 4).double())
    theirs = torch.distributions.Normal(q.mean, (0.5 * q.log_variance).exp())
    prior = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(q.kl(), torch.distributions.kl_divergence(theirs, prior).sum(-1).double())
    noise = torch.randn_like(q.mean)
    z = q.at(noise)
    torch.testing.assert_close(q.log_ratio(noise), (prior.log_prob(z) - theirs.log_prob(z)).flatten(1).sum(1))


def test_bad_settings():
    for bad in ({"steps": -1}, {"lr": 0.0}, {"schedule_steps": 0}):
        with pytest.raises(ValueError):
            PosteriorConfig(**bad)
    assert math.isclose(PosteriorConfig(lr=0.2, lr_schedule="constant").lr_at(100), 0.2)
