"""The amortised models: what the encoder sees, the Gaussian's bounds by quadrature, the codes' by summing over them."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from scipy.stats import chisquare

from baselines.vae import VAE
from ltm.api import Sampling
from ltm.config import with_settings
from ltm.errors import UserError
from ltm.registry import preset
from ltm.rng import SequenceRng
from ltm.testing.miniatures import L, V, all_texts, structured_batch, train_briefly
from tests.support.quadrature import evidence, two_dimensional

TEXTS = all_texts()
RNG = SequenceRng(0, range(len(TEXTS)))
CODES, LATENTS = 3, 2


def miniature(*settings: str, seed: int = 0) -> VAE:
    torch.manual_seed(seed)
    return VAE(with_settings(VAE.miniature(V + 1, L), settings)).double()


def loud(model: VAE) -> VAE:
    """A model far from initialisation, so that every part of it matters."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p * 8 if p.ndim > 1 and float(p.detach().abs().max()) > 0 else p + 0.3 * torch.randn_like(p))
    return model.eval().requires_grad_(False)


@functools.cache
def quantised() -> VAE:
    """A trained model with two latents of three codes, so only nine combinations."""
    model = miniature("bottleneck=vq", f"vq.codes={CODES}", f"latents={LATENTS}", "vq.prior_width=8", "vq.spread=1")
    train_briefly(model, 120)
    return model.eval().requires_grad_(False)


def evidence_of_codes(model: VAE, texts: torch.Tensor) -> torch.Tensor:
    """log p(x), summed over all codes."""
    every = all_texts(CODES, LATENTS)
    log_likelihood = model.scoring_batch(
        texts.repeat_interleave(len(every), 0), 0, None, torch.Generator()
    ).log_likelihood
    joint = log_likelihood(model.code_vectors(every.repeat(len(texts), 1))) + model.codebook.log_prior(every).repeat(
        len(texts)
    )
    return joint.view(len(texts), -1).logsumexp(1)


def test_q_starts_at_the_prior():
    q = miniature().infer(TEXTS, RNG)
    assert float(q.mean.detach().abs().max()) == 0 == float(q.log_variance.detach().abs().max())
    assert q.mean.shape == (len(TEXTS), 2, 2, 8)


def test_queries_see_all_visible_tokens_and_no_other():
    model, text = loud(miniature()), torch.tensor([[0, 1, 2, 0]])
    base = model.encode(text, torch.tensor([[True, True, True, False]]))
    torch.testing.assert_close(base, model.encode(text[:, :3]))  # hidden is as good as not there
    for position in range(L):
        other = text.clone()
        other[0, position] = (text[0, position] + 1) % V
        changed = (model.encode(other, torch.tensor([[True, True, True, False]])) - base).abs().amin(-1)
        assert bool((changed > 0).all()) == (position < 3) and bool((changed > 0).any()) == (position < 3)


def test_the_embedding_is_shared_and_stored_once():
    model = miniature("latents=6")
    state = model.state_dict()
    assert len({t.data_ptr() for t in state.values()}) == len(state)
    assert [name for name, t in state.items() if len(t) == V + 1] == ["decoder.embedding"]
    with torch.no_grad():
        model.to_posterior.weight.add_(0.1)
    model.infer(TEXTS, RNG).mean.square().sum().backward()
    gradients = {name for name, p in model.named_parameters() if p.grad is not None}
    assert "decoder.embedding" in gradients and "decoder.norm.weight" not in gradients


def test_the_training_loss_is_the_negative_elbo():
    """In expectation, at full weight and without free bits; both from the same q."""
    model = loud(miniature())
    copies = 60
    texts, rng = TEXTS.repeat(copies, 1), SequenceRng(0, range(copies * len(TEXTS)))
    loss = model.training_loss(texts, rng=rng)
    elbo = model.log_likelihood(TEXTS, rng=RNG, draws=copies)
    expected = -float(elbo.nats_B.sum()) / TEXTS.numel()
    error = float(elbo.mc_var_B.sum().sqrt()) / TEXTS.numel()
    assert elbo.terms["-kl"].max() < -0.1
    assert abs(float(loss.value) - expected) < 4 * 2**0.5 * error
    assert loss.metrics["nelbo"] == pytest.approx(float(loss.value))


def test_annealing_and_free_bits():
    model = loud(miniature("kl_warmup=0.5", "kl_weight_start=0.1"))
    start, half, full = (model.training_loss(TEXTS, rng=RNG, progress=p) for p in (0.0, 0.25, 1.0))
    kl = full.metrics["kl_per_token"]
    assert float(full.value - start.value) == pytest.approx(0.9 * kl)
    assert float(full.value - half.value) == pytest.approx(0.45 * kl)
    q = model.infer(TEXTS, RNG)
    floor = float(q.kl().median())
    model.config = dataclasses.replace(model.config, free_bits=floor)
    floored = model.training_loss(TEXTS, rng=RNG)
    more = float((floor - q.kl()).clamp(min=0).sum()) / TEXTS.numel()
    assert more > 0 and float(floored.value - full.value) == pytest.approx(more)


def test_gaussian_bounds_stay_below_the_integrated_evidence():
    model = two_dimensional(0, cls=VAE)
    with torch.no_grad():
        model.decoder.blocks[0].cross_latents.weight.mul_(5)
    log_p = evidence(model, TEXTS)
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-6)
    found = model.log_likelihoods(TEXTS, rng=RNG, draws=64)
    assert list(found) == ["elbo", "importance_bound", "tube_upper_bound"]
    for estimate in found.values():
        side = -1 if estimate.kind == "upper_bound" else 1
        gap = side * float((log_p.exp() * (log_p - estimate.nats_B)).sum())
        assert estimate.kind in ("lower_bound", "upper_bound")
        assert gap > -4 * float((log_p.exp().square() * estimate.mc_var_B).sum().sqrt())
    ratio = (found["importance_bound"].nats_B - log_p).exp()
    assert float(ratio.mean()) == pytest.approx(1, abs=0.02)


def test_gaussian_samples_follow_the_integrated_evidence():
    model = two_dimensional(0, cls=VAE)
    count, texts = 2000, all_texts(V, 2)
    drawn = model.generate([[]] * count, max_new_tokens=2, sampling=Sampling(), rng=SequenceRng(1, range(count))).tokens
    frequency = torch.bincount(torch.tensor([a * V + b for a, b in drawn]), minlength=V * V)
    assert chisquare(frequency.numpy(), (evidence(model, texts).exp() * count).numpy()).pvalue > 0.001


def test_codes_have_a_normalised_prior_and_evidence():
    model = quantised()
    assert float(model.codebook.log_prior(all_texts(CODES, LATENTS)).exp().sum()) == pytest.approx(1)
    assert float(evidence_of_codes(model, TEXTS).exp().sum()) == pytest.approx(1)


def test_the_bound_of_codes_is_one_term_of_the_evidence():
    model = quantised()
    found = model.log_likelihoods(TEXTS, rng=RNG)
    assert list(found) == ["elbo"]
    elbo = found["elbo"]
    assert (elbo.kind, elbo.draws, elbo.mc_var_B) == ("lower_bound", 0, None)
    assert bool((elbo.nats_B <= evidence_of_codes(model, TEXTS) + 1e-9).all())
    torch.testing.assert_close(elbo.terms["-kl"], model.codebook.log_prior(model.codes(TEXTS)))
    torch.testing.assert_close(elbo.terms["reconstruction"] + elbo.terms["-kl"], elbo.nats_B)
    assert len(model.codes(TEXTS).unique(dim=0)) > 1  # texts differ in their codes, or nothing was tested
    predictive = model.log_likelihoods(TEXTS, context=2, rng=RNG)["predictive_bound"].nats_B
    torch.testing.assert_close(predictive.exp().view(9, 9).sum(1), torch.ones(9, dtype=torch.float64))


def test_codes_ignore_padding_and_what_is_not_given():
    model, other = quantised(), TEXTS.clone()
    other[:, 2:] = (other[:, 2:] + 1) % V
    seen = (torch.arange(L) < 2).expand(len(TEXTS), L)
    assert torch.equal(model.codes(TEXTS, seen), model.codes(other, seen))
    lengths = torch.full((len(TEXTS),), 2)
    whole, short = (
        model.log_likelihood(TEXTS, lengths=lengths, rng=RNG),
        model.log_likelihood(TEXTS[:, :2], rng=RNG),
    )
    torch.testing.assert_close(whole.nats_B, short.nats_B, rtol=0, atol=1e-9)


def test_samples_of_codes_follow_the_summed_evidence():
    model, count, texts = quantised(), 2000, all_texts(V, 2)
    rng = SequenceRng(3, range(count))
    codes = model.codebook.sample(LATENTS, rng, "codes")
    frequency = torch.bincount(codes @ torch.tensor([CODES, 1]), minlength=CODES**LATENTS).double()
    expected = model.codebook.log_prior(all_texts(CODES, LATENTS)).exp() * count
    frequent = expected > 5
    counts = [
        torch.cat([x[frequent], x[~frequent].sum()[None]])[: int(frequent.sum()) + 1] for x in (frequency, expected)
    ]
    assert chisquare(counts[0].numpy(), counts[1].numpy()).pvalue > 0.001
    drawn = model.generate([[]] * count, max_new_tokens=2, sampling=Sampling(), rng=rng).tokens
    frequency = torch.bincount(torch.tensor([a * V + b for a, b in drawn]), minlength=V * V)
    assert chisquare(frequency.numpy(), (evidence_of_codes(model, texts).exp() * count).numpy()).pvalue > 0.001
    alone = model.generate([[]], max_new_tokens=2, sampling=Sampling(), rng=SequenceRng(3, [7])).tokens[0]
    assert alone == drawn[7]


def test_nearest_codes_and_the_straight_through_gradient():
    """The encoder sees the commitment of the distance to its codes, the codes all of it: one distance, two ways."""
    book = miniature("bottleneck=vq", "vq.codes=5", "vq.spread=0", "vq.commitment=0.3").codebook
    h = torch.randn(6, 4, 8, dtype=torch.float64)
    outputs = torch.nn.functional.normalize(book.to_code(h, h.dtype), dim=-1) * 8**0.5
    vectors = torch.nn.functional.normalize(book.vectors, dim=-1) * 8**0.5
    codes, z, loss = book.quantise(h)
    assert torch.equal(codes, torch.cdist(outputs.detach(), vectors.detach()).argmin(-1))
    torch.testing.assert_close(z, book.latents(codes))
    direction = torch.randn_like(z)
    (through,) = torch.autograd.grad((z * direction).sum(), book.to_code.weight, retain_graph=True)
    as_if = (book.from_code(outputs, h.dtype) * direction).sum()
    torch.testing.assert_close(through, torch.autograd.grad(as_if, book.to_code.weight, retain_graph=True)[0])
    distance = (outputs - vectors[codes]).square().mean()
    for weight, share in ((book.to_code.weight, 0.3), (book.vectors, 1.0)):
        (found,) = torch.autograd.grad(loss, weight, retain_graph=True)
        torch.testing.assert_close(found, share * torch.autograd.grad(distance, weight, retain_graph=True)[0])


def test_the_prior_learns_without_moving_the_codes():
    model = miniature("bottleneck=vq", "vq.codes=5")
    model.codebook.prior_loss(model.codes(TEXTS)).backward()
    moved = {
        name.split(".")[0] + "." + name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None
    }
    assert moved == {"codebook.prior"}


def test_spread_keeps_texts_apart():
    """Without it outputs and codes attract each other until every text has one code; with it codes stay in use."""
    batch = structured_batch(torch.Generator().manual_seed(5), 64)
    used = []
    for spread in (0.0, 1.0):
        model = miniature("bottleneck=vq", "vq.codes=16", f"vq.spread={spread}")
        train_briefly(model, 60)
        used.append(len(model.codes(batch).unique(dim=0)))
    assert used[1] > 2 * used[0]


@pytest.mark.parametrize(
    ("name", "size", "vocab_size"),
    [
        ("vae-tiny", "tiny", 2049),
        ("vae-vq-tiny", "tiny", 2049),
        ("vae-small", "small", 50258),
        ("vae-medium", "medium", 50258),
        ("vae-large", "large", 50258),
    ],
)
def test_presets_are_as_large_as_the_latent_thought_models(name, size, vocab_size):
    def parameters(preset_name):
        cls, chosen = preset(preset_name)
        with torch.device("meta"):
            return cls(dataclasses.replace(chosen.config, vocab_size=vocab_size)).cost(8).parameters

    assert parameters(name) == pytest.approx(parameters(f"ltm-{size}"), rel=0.005)
    assert preset(name)[1].config.latents == preset(f"ltm-{size}")[1].config.latents


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("bottleneck=qv", "did you mean vq"),
        ("vq.codes=1", "codes must be at least 2, found 1"),
        ("vq.commitment=0", "commitment must be positive"),
        ("vq.code_width=1", "code_width must be at least 2, found 1"),
        ("vq.prior_heads=3", "must be an even number of channels"),
        ("encoder_layers=0", "must be at least 1"),
        ("latents=3", "multiple of layers"),
        ("free_bits=-1", "free_bits at least 0"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(UserError, match=message):
        miniature(setting)
