"""Langevin chains: the weights against their definition, the bound against evidence that is known exactly."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.distributions import Normal
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ltm.api import Sampling
from ltm.config import with_settings
from ltm.errors import UserError
from ltm.latent import bounds, langevin
from ltm.latent.langevin import LangevinConfig
from ltm.latent.model import LatentThoughtModel
from ltm.registry import preset
from ltm.rng import SequenceRng, Stream
from ltm.testing.miniatures import L, V, all_texts, structured_batch, train_briefly
from tests.support.quadrature import evidence, two_dimensional

B, Z = 4096, 4
CPU = torch.device("cpu")
TEXTS = all_texts()
RNG = SequenceRng(0, range(len(TEXTS)))


@pytest.fixture(scope="module")
def gaussian():
    """x = w * z + s * noise: log-likelihood, its gradient as fast learning takes it, and the evidence, in float64."""
    generator = torch.Generator().manual_seed(0)
    w, s = torch.linspace(0.3, 1.2, Z, dtype=torch.float64), 1.0
    total = w.square() + s * s
    x = torch.randn(B, Z, generator=generator, dtype=torch.float64) * total.sqrt()

    def log_likelihood(z_BYGD):
        return Normal(w * z_BYGD[:, 0, 0], s).log_prob(x).sum(1)

    def gradient(z_BYGD):
        return (-w * (x - w * z_BYGD[:, 0, 0]) / (s * s))[:, None, None]

    return log_likelihood, gradient, Normal(0.0, total.sqrt()).log_prob(x).sum(1)


class Noise(Stream):
    """One generator for a whole batch: quicker than a stream a row, where rows need not be told apart."""

    def normal(self, *shape, dtype=torch.float64, device="cpu"):
        return torch.randn(B, *shape, generator=self.generators[0], dtype=dtype)


def run(gradient, config: LangevinConfig, count: int, weigh: bool = True):
    return langevin.chains(
        gradient,
        (1, 1, Z),
        config,
        Noise([torch.Generator().manual_seed(1)]),
        count=count,
        device=CPU,
        dtype=torch.float64,
        weigh=weigh,
    )


@pytest.fixture(scope="module")
def model():
    """Two latent dimensions, trained by chains; then what the decoder reads of z is scaled up, so that z matters."""
    trained = two_dimensional(1, updates=60, inference="langevin", langevin=LangevinConfig(steps=4, step_size=0.5))
    with torch.no_grad():
        trained.decoder.blocks[0].cross_latents.weight.mul_(8)
        trained.decoder.blocks[0].cross_out.weight.mul_(8)
    return with_chains(trained, steps=32, step_size=0.2)


def with_chains(model, **langevin_settings):
    config = dataclasses.replace(model.config, langevin=LangevinConfig(**langevin_settings))
    other = type(model)(config).double()
    other.load_state_dict(model.state_dict())
    return other.eval().requires_grad_(False)


def test_weights_are_those_of_the_definition(gaussian):
    """p(z_T) prod F(z_{t-1} | z_t) / (p(z_0) prod F(z_t | z_{t-1})), density by density, along the very path."""
    _, gradient, _ = gaussian
    config = LangevinConfig(steps=5, step_size=0.3)
    path = []

    def recording(z):
        path.append(z)
        return gradient(z)

    ((end, ratio_B),) = run(recording, config, 1)
    assert len(path) == config.steps + 1 and torch.equal(end, path[-1])  # one gradient a point
    a = math.exp(-0.15)

    def kernel(t, z, moved):
        return Normal(a * z - (1 - a) * t / 5 * gradient(z), math.sqrt(1 - a * a)).log_prob(moved)

    steps = [kernel(t, path[t], path[t - 1]) - kernel(t, path[t - 1], path[t]) for t in range(1, 6)]
    expected = Normal(0, 1).log_prob(path[-1]) - Normal(0, 1).log_prob(path[0]) + sum(steps)
    torch.testing.assert_close(ratio_B, expected.flatten(1).sum(1))


def test_without_a_likelihood_the_chain_stays_in_the_prior():
    """However large the step: the prior's part is solved exactly, and costs nothing in the weights."""
    ends = list(run(torch.zeros_like, LangevinConfig(steps=20, step_size=3.0), 1))
    z = torch.stack([z for z, _ in ends])
    assert float(z.var()) == pytest.approx(1, abs=0.02)
    assert float(torch.stack([r for _, r in ends]).abs().max()) == 0


@pytest.mark.parametrize(("steps", "step_size"), [(1, 0.2), (8, 0.1), (8, 0.8)])
def test_mean_weight_is_the_evidence(gaussian, steps, step_size):
    """For few steps as for many, small as coarse: without Metropolis correction, and without bias."""
    log_likelihood, gradient, log_evidence = gaussian
    ends = run(gradient, LangevinConfig(steps=steps, step_size=step_size), 10)
    ratios = torch.stack([log_likelihood(z) + r - log_evidence for z, r in ends]).exp()
    error = ratios.std() / math.sqrt(ratios.numel())
    assert float(error) < 0.1
    assert abs(float(ratios.mean()) - 1) < 4 * float(error)


def test_a_wrong_gradient_costs_tightness_and_not_validity(gaussian):
    log_likelihood, gradient, log_evidence = gaussian
    ends = run(lambda z: 0.5 * gradient(z) + 0.3, LangevinConfig(steps=8, step_size=0.3), 10)
    ratios = torch.stack([log_likelihood(z) + r - log_evidence for z, r in ends]).exp()
    assert abs(float(ratios.mean()) - 1) < 4 * float(ratios.std()) / math.sqrt(ratios.numel())


def test_dropping_the_backward_kernels_is_caught(gaussian):
    """The mutant weight p(x|z_T), as if z_T came from the prior, has a mean far above the evidence."""
    log_likelihood, gradient, log_evidence = gaussian
    ends = run(gradient, LangevinConfig(steps=32, step_size=0.3), 2)
    ratios = torch.stack([log_likelihood(z) - log_evidence for z, _ in ends]).exp()
    assert float(ratios.mean()) - 1 > 10 * float(ratios.std()) / math.sqrt(ratios.numel())


def test_more_steps_are_tighter(gaussian):
    log_likelihood, gradient, log_evidence = gaussian
    gaps = []
    for steps in (1, 4, 16, 64):
        ends = run(gradient, LangevinConfig(steps=steps, step_size=0.2), 4)
        values_KB = torch.stack([log_likelihood(z) + r for z, r in ends])
        gaps.append(float((log_evidence - values_KB).mean()))
        assert gaps[-1] > 0  # a single weight is below in expectation
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 0.3 < gaps[0]
    bound = bounds.log_mean_exp(values_KB, torch.full((B,), Z))
    assert float(bound.nats_B.mean()) > float(values_KB.mean())


def test_the_chain_ends_in_the_posterior(gaussian):
    """Of a linear-Gaussian decoder: mean and spread of z_T are those of p(z|x), up to a small step's bias."""
    _, gradient, _ = gaussian
    z = torch.stack([z for z, _ in run(gradient, LangevinConfig(steps=200, step_size=0.1), 1, weigh=False)])
    # -g is linear in z: its slope at 0 is the likelihood's precision, and its zero the likelihood's mode.
    zero = torch.zeros(B, 1, 1, Z, dtype=torch.float64)
    slope = gradient(zero + 1) - gradient(zero)
    variance = 1 / (1 + slope)
    mean = -variance * gradient(zero)
    standard = ((z - mean) / variance.sqrt()).flatten(0, 3)
    assert float(standard.mean(0).abs().max()) < 0.1
    torch.testing.assert_close(standard.var(0), torch.ones(Z, dtype=torch.float64), rtol=0, atol=0.12)


def test_bound_of_the_model_against_its_integrated_evidence(model):
    log_p = evidence(model, TEXTS)
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-6)
    found = model.log_likelihoods(TEXTS, rng=RNG, draws=16)
    assert list(found) == ["ais_bound", "langevin_estimate"] and found["ais_bound"].kind == "lower_bound"
    gaps = []
    for steps in (1, 32):
        shorter, copies = with_chains(model, steps=steps, step_size=0.1), 12
        rng = SequenceRng(0, range(copies * len(TEXTS)))
        one = shorter.log_likelihood(TEXTS.repeat(copies, 1), rng=rng, draws=1).nats_B.view(copies, -1)
        ratio = (one - log_p).exp()
        assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(ratio.numel())
        gaps.append(float((log_p - one).mean()))
    assert 0 < gaps[1] < gaps[0]


def test_only_the_weighted_number_is_a_likelihood(model):
    """Over all texts the bound has at most all probability; the reconstruction at z_T claims a good deal more."""
    found = model.log_likelihoods(TEXTS, rng=RNG, draws=16)
    bound, estimate = found["ais_bound"], found["langevin_estimate"]
    p_B = bound.nats_B.exp()
    assert 0.9 < float(p_B.sum()) <= 1 + 3 * float((p_B.square() * bound.mc_var_B).sum().sqrt())
    assert estimate.kind == "estimate" and float(estimate.nats_B.exp().sum()) > 1.1
    for name in found:
        alone = model.log_likelihoods(TEXTS, rng=RNG, draws=16, only=name)
        assert list(alone) == [name] and torch.equal(alone[name].nats_B, found[name].nats_B)


def test_predictive_is_normalised_and_near_the_exact_conditional(model):
    exact = evidence(model, TEXTS) - evidence(model, TEXTS[:, :2])
    by_context = SequenceRng(0, [row // V**2 for row in range(len(TEXTS))])
    found = model.log_likelihoods(TEXTS, context=2, rng=by_context, draws=32)
    assert list(found) == ["predictive_bound"] == [model.headline(2)] and model.headline() == "ais_bound"
    nats_B = found["predictive_bound"].nats_B
    torch.testing.assert_close(nats_B.exp().view(9, 9).sum(1), torch.ones(9, dtype=torch.float64))
    divergence_of_context = (exact.exp() * (exact - nats_B)).view(9, 9).sum(1)
    assert float(divergence_of_context.min()) >= -1e-9 and float(divergence_of_context.mean()) < 0.05


def miniature(*settings: str) -> LatentThoughtModel:
    torch.manual_seed(0)
    config = with_settings(LatentThoughtModel.miniature(V + 1, L), ["inference=langevin", *settings])
    return LatentThoughtModel(config).double()


def test_training_learns_and_leaves_the_chain_out_of_the_gradient():
    model = miniature("langevin.steps=4")
    rng = SequenceRng(0, range(32))
    batch = structured_batch(torch.Generator().manual_seed(9), 32)
    loss = model.training_loss(batch, rng=rng)
    loss.value.backward()
    assert all(p.grad is not None for p in model.parameters())
    ((z, _),) = model.chains(batch, None, rng)
    model.zero_grad()
    h = model.hidden(model.decoder, model.prepare(model.decoder, batch), z)
    logits = (h @ model.decoder.head().T).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, batch.flatten())
    torch.testing.assert_close(loss.value, expected)
    train_briefly(model, 30)
    assert float((model.training_loss(batch, rng=rng).value - loss.value).detach()) < -0.1


def test_rows_are_independent_and_padding_is_invisible():
    model = miniature().eval().requires_grad_(False)
    lengths = torch.tensor([4, 1, 3])
    whole = model.log_likelihoods(TEXTS[40:43], lengths=lengths, rng=SequenceRng(5, range(3)))
    for row, n in enumerate(lengths.tolist()):
        alone = model.log_likelihoods(TEXTS[40 + row : 41 + row, :n], rng=SequenceRng(5, [row]))
        for name in whole:
            torch.testing.assert_close(alone[name].nats_B[0], whole[name].nats_B[row], rtol=0, atol=1e-9)


def test_generation_is_conditioned_by_a_chain():
    model = miniature().eval().requires_grad_(False)
    rows = SequenceRng(3, range(2))
    prior = model.draw_latents(torch.zeros(2, 0, dtype=torch.int64), rows, 0)
    torch.testing.assert_close(prior, rows.stream("z 0").normal(*model.latent_shape, dtype=torch.float64))
    ((end, _),) = model.chains(TEXTS[:2, :2], None, rows, purpose="chain 0")
    assert torch.equal(model.draw_latents(TEXTS[:2, :2], rows, 0), end)
    options = {"max_new_tokens": 2, "sampling": Sampling()}
    together = model.generate([[0, 1], []], rng=rows, **options)
    assert together == model.generate([[0, 1], []], rng=rows, **options)
    assert model.generate([[]], rng=SequenceRng(3, [1]), **options).tokens[0] == together.tokens[1]


def test_counted_operations():
    torch.manual_seed(0)
    cls, chosen = preset("ltm-tiny")
    config = with_settings(
        dataclasses.replace(chosen.config, vocab_size=513), ["inference=langevin", "langevin.steps=3"]
    )
    model = cls(config)
    rng, tokens = SequenceRng(0, range(2)), torch.randint(512, (2, model.block_length))
    cost = model.cost(model.block_length)
    assert model.inference_matmul in ("float32", "bfloat16")  # now, so that its measurement is not counted
    N, P = model.block_length + 1, cost.parameters
    assert cost.paper_train_flops_per_token == 4 * (6 * P + 6 * 3 * 128 * N)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        model.training_loss(tokens, rng=rng).value.backward()
    assert counted.get_total_flops() / tokens.numel() == pytest.approx(cost.train_flops_per_token, rel=0.02)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        model.log_likelihood(tokens, rng=rng)
    assert counted.get_total_flops() / tokens.numel() == pytest.approx(cost.score_flops_per_token, rel=0.02)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("langevin.steps=0", "steps must be at least 1, found 0"),
        ("langevin.step_size=-0.1", "step_size must be positive, found -0.1"),
        ("inference=langvin", "did you mean langevin"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(UserError, match=message):
        miniature(setting)


def test_no_chain_is_refused(model):
    with pytest.raises(ValueError, match="draws must be at least 1"):
        model.log_likelihoods(TEXTS[:1], rng=SequenceRng(0, [0]), draws=0)
