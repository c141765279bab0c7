"""Score entropy: identities, brute-force path measures, and bounds and sampler laws by enumeration."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from baselines.diffusion import score_entropy
from baselines.diffusion.mdlm import MDLM
from baselines.diffusion.replacing import draw_replaced
from baselines.diffusion.schedules import SIGMA_HIGH, SIGMA_LOW, Noise, normalised_log_sigma
from baselines.diffusion.sedd import SEDD
from ltm.api import Sampling
from ltm.config import with_settings
from ltm.errors import UserError
from ltm.rng import SequenceRng
from ltm.testing.miniatures import L, V, all_texts
from tests.support.canvas_laws import MASK, canvases, carry, nodes, p_value, trained

UNIFORM = {"graph": "uniform", "noise": "geometric"}
ABSORBING_Q = torch.tensor([[-1.0, 0, 0, 1], [0, -1, 0, 1], [0, 0, -1, 1], [0, 0, 0, 0]], dtype=torch.float64)
UNIFORM_Q = torch.full((V, V), 1 / V, dtype=torch.float64) - torch.eye(V, dtype=torch.float64)


def scores(model: SEDD, tokens: torch.Tensor, sigma: float) -> torch.Tensor:
    """Scores of every state at every position of canvases (C, length), (C, length, states), 1 for the present state.

    From the network's logits by the parametrisations' definitions; no code of the bound or the samplers.
    """
    bos = torch.full((len(tokens), 1), V)
    level = torch.tensor([math.log(sigma / SIGMA_LOW) / math.log(SIGMA_HIGH / SIGMA_LOW)]).double().clamp(0, 1)
    assert model.time_embedding is not None
    condition = model.time_embedding(level.expand(len(tokens)))
    h = model.decoder(torch.cat([bos, tokens], 1), condition_BE=condition)[:, 1:]
    logits = h @ model.decoder.embedding[:V].T
    if model.config.graph == "absorb":
        s = torch.nn.functional.pad(logits.exp() / V / math.expm1(sigma), (0, 1), value=1.0)
        return torch.where((tokens == MASK)[..., None], s, 1.0)  # what a token that is no mask says is never used
    depth = math.log(1 + (V - 1) * math.exp(-sigma))
    return (depth * (logits / math.log(V) - 1)).exp().scatter(2, tokens[..., None], 1.0)


def published_entropy(s: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """Sum over states of s - r log s + r (log r - 1), (...); r log r is 0 at 0."""
    return (s - ratio * s.log() + torch.where(ratio > 0, ratio * (ratio.clamp(min=1e-300).log() - 1), 0.0)).sum(-1)


def absorb_enumerated(model: SEDD, length: int, sigmas: list[tuple[float, float]], form: str) -> torch.Tensor:
    """The diffusion integral of every text over all masks and the noise levels of a quadrature, (sigma, weight)."""
    texts, masks = all_texts(V, length), canvases(length, (0, 1)).bool()[1:]
    rows_MT = (texts.masked_fill(masks[:, None], V) * (V + 1) ** torch.arange(length - 1, -1, -1)).sum(-1)
    targets_MTL = texts.expand(len(masks), -1, -1)
    total, k_M = torch.zeros(len(texts), dtype=torch.float64), masks.sum(1)
    for sigma, weight in sigmas:
        rate, ratio = -math.expm1(-sigma), 1 / math.expm1(sigma)
        s = scores(model, canvases(length, (0, 1, 2, MASK)), sigma)[rows_MT][..., :V]
        if form == "rate":  # the density in m, times dm / d sigma
            logits = (s / ratio * V).log()
            cost = score_entropy.absorb_cost(logits.flatten(0, 2), targets_MTL.flatten()).view(targets_MTL.shape)
            cost = cost / rate * (1 - rate)
        else:
            cost = published_entropy(s, ratio * torch.nn.functional.one_hot(targets_MTL, V))
        chance_M1 = (rate**k_M * (1 - rate) ** (length - k_M))[:, None]
        total -= weight * (chance_M1 * (cost * masks[:, None]).sum(2)).sum(0)
    return total


def over_time(name: Any, points: int) -> list[tuple[float, float]]:
    """A quadrature over time as one over noise levels."""
    noise, found = Noise(name=name), []
    for x, weight in nodes(0.0, 1.0, points):
        t = torch.tensor(x, dtype=torch.float64)
        found.append((float(noise.sigma(t)), weight * float(noise.slope(t))))
    return found


def over_rates(low: float, high: float, points: int) -> list[tuple[float, float]]:
    """A quadrature over mask rates as one over noise levels."""
    return [(-math.log1p(-m), weight / (1 - m)) for m, weight in nodes(low, high, points)]


def uniform_enumerated(model: SEDD, length: int, points: int = 40) -> torch.Tensor:
    """The bound of every text: all replacements, quadrature over log sigma, both ends by their definitions."""
    texts, states = all_texts(V, length), canvases(length, (0, 1, 2))
    total = torch.zeros(len(texts), dtype=torch.float64)
    for log_sigma, weight in nodes(math.log(SIGMA_LOW), math.log(SIGMA_HIGH), points):
        sigma = math.exp(log_sigma)
        forward, s = torch.linalg.matrix_exp(sigma * UNIFORM_Q), scores(model, states, sigma)
        for row, text in enumerate(texts):
            present = forward[text.expand(len(states), -1), states]
            cost = published_entropy(s, forward[text] / present[..., None]) / V  # 0 of the present state: s = r = 1
            total[row] -= weight * sigma * (present.prod(1) * cost.sum(1)).sum()
    first, last = (torch.linalg.matrix_exp(sigma * UNIFORM_Q)[0] for sigma in (SIGMA_LOW, SIGMA_HIGH))
    return total - length * float(-(first * first.log()).sum() + (last * (last * V).log()).sum())


def drawn_agrees(model: SEDD, exact: torch.Tensor, length: int, repeats: int = 60) -> bool:
    """True if Monte Carlo means of the texts lie around their exact values as their standard errors predict."""
    texts = all_texts(V, length).repeat(repeats, 1)
    found = model.log_likelihood(texts, rng=SequenceRng(0, range(len(texts))), draws=8).nats_B.view(repeats, -1)
    z = (found.mean(0) - exact) / (found.std(0) / math.sqrt(repeats))
    return float(z.abs().max()) < 4.5 and float(z.square().mean()) < 1.8


def test_absorb_with_normalised_scores_is_mdlm(monkeypatch):
    """s = r p: each masked token costs -log p, and the same masks give MDLM's bound on shared weights."""
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 7, dtype=torch.float64) * 3, torch.randint(7, (50,))
    log_p = logits.log_softmax(1)
    nll = -log_p.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(score_entropy.absorb_cost(log_p + math.log(7), targets), nll)
    assert (score_entropy.absorb_cost(log_p + math.log(7) + torch.randn(50, 1), targets) >= nll).all()

    sedd, mdlm = SEDD(SEDD.miniature(V + 1, L)).double(), MDLM(MDLM.miniature(V + 1, L)).double()
    mdlm.load_state_dict({k: v for k, v in sedd.state_dict().items() if "modulation" not in k and "time" not in k})
    cost = score_entropy.absorb_cost
    monkeypatch.setattr(
        score_entropy, "absorb_cost", lambda logits, targets: cost(logits.log_softmax(1) + math.log(V), targets)
    )
    texts, rng = all_texts(), SequenceRng(0, range(81))
    ours, theirs = (m.log_likelihood(texts, rng=rng).nats_B for m in (sedd, mdlm))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_absorb_over_time_is_absorb_over_mask_rates():
    """The published integrand, sigma'(t) H over t, against (1 / m) (Z - 1 - log g) over m between the same ends."""
    model, low, high = trained(SEDD), -math.expm1(-SIGMA_LOW), -math.expm1(-SIGMA_HIGH)
    cuts = [low, 1e-3, 1e-2, 0.1, 0.5, 0.95, high]  # log sigma, which the network is told, moves fast at the ends
    by_rate = [pair for a, b in itertools.pairwise(cuts) for pair in over_rates(a, b, 16)]
    rates = absorb_enumerated(model, 3, by_rate, "rate")
    torch.testing.assert_close(
        absorb_enumerated(model, 3, over_time("geometric", 80), "published"), rates, atol=1e-4, rtol=0
    )
    # Slow to converge: at its start little time passes over much of what the network is told.
    torch.testing.assert_close(
        absorb_enumerated(model, 3, over_time("loglinear", 120), "published"), rates, atol=5e-3, rtol=0
    )


def test_absorb_bound_is_the_enumerated_one_and_keeps_to_all_mass():
    model, ends = trained(SEDD), [-math.expm1(-sigma) for sigma in (SIGMA_LOW, SIGMA_HIGH)]
    beyond = over_rates(0.0, ends[0], 4) + over_rates(ends[1], 1.0, 4)  # the bound has no ends
    exact = absorb_enumerated(model, 3, over_time("geometric", 80) + beyond, "published")
    assert 0.3 < float(exact.exp().sum()) <= 1 + 1e-9
    assert drawn_agrees(model, exact, 3)


def test_uniform_bound_is_the_enumerated_one_and_keeps_to_all_mass():
    model = trained(SEDD, **UNIFORM)
    exact = uniform_enumerated(model, 3)
    torch.testing.assert_close(exact, uniform_enumerated(model, 3, 50), rtol=0, atol=5e-3)
    assert 0.2 < float(exact.exp().sum()) <= 1 + 1e-9
    assert drawn_agrees(model, exact, 3)


def test_uniform_cost_is_its_definition():
    torch.manual_seed(0)
    outputs, sigmas = 5, torch.tensor([1e-3, 0.1, 1.0, 5.0]).double()
    Q = torch.full((outputs, outputs), 1 / outputs, dtype=torch.float64) - torch.eye(outputs, dtype=torch.float64)
    logits, targets = torch.randn(4, outputs, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    for now in (targets, (targets + 1) % outputs):
        found = score_entropy.uniform_cost(logits, targets, now, sigmas)
        s = score_entropy.uniform_log_scores(logits, sigmas[:, None]).exp()
        for n in range(4):
            forward = torch.linalg.matrix_exp(sigmas[n] * Q)[targets[n]]
            ratio, others = forward / forward[now[n]], torch.arange(outputs) != now[n]
            expected = published_entropy(s[n, others], ratio[others]) / outputs
            torch.testing.assert_close(found[n], expected)
            assert float(expected) >= 0


def test_uniform_integral_is_the_divergence_of_path_measures():
    """One token: KL between the forward process given x0, run back, and the learned one, in many small steps."""
    generator = torch.Generator().manual_seed(0)
    table, x0, steps = torch.randn(V, V, generator=generator, dtype=torch.float64), 1, 2000
    grid = torch.logspace(math.log10(SIGMA_LOW), math.log10(SIGMA_HIGH), steps + 1, dtype=torch.float64)
    states = torch.arange(V)
    path, integral = 0.0, 0.0
    for low, high in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        step, middle = high - low, math.sqrt(low * high)
        at_low, at_high = (torch.linalg.matrix_exp(sigma * UNIFORM_Q)[x0] for sigma in (low, high))
        between = torch.linalg.matrix_exp(step * UNIFORM_Q)
        posterior = at_low * between.T / at_high[:, None]  # q(x_low | x_high, x0), rows by x_high
        sigma_N = torch.full((V,), middle, dtype=torch.float64)
        rates = score_entropy.uniform_log_scores(table, sigma_N[:, None]).exp() / V
        rates = rates.masked_fill(torch.eye(V).bool(), 0.0)
        model = torch.linalg.matrix_exp(step * (rates - torch.diag(rates.sum(1))))
        path += float((at_high * (posterior * (posterior / model).log()).sum(1)).sum())
        cost = score_entropy.uniform_cost(table, torch.full((V,), x0), states, sigma_N)
        integral += step * float((torch.linalg.matrix_exp(middle * UNIFORM_Q)[x0] * cost).sum())
    assert integral == pytest.approx(path, rel=2e-3) and integral > 0.1


def test_ends_of_the_uniform_graph():
    for outputs in (3, 50):
        for sigma in (1e-4, 0.5, 7.0):
            other = -math.expm1(-sigma) / outputs
            law = torch.tensor([1 - (outputs - 1) * other] + [other] * (outputs - 1), dtype=torch.float64)
            assert score_entropy.noise_end(sigma, outputs) == pytest.approx(
                float((law * (law * outputs).log()).sum()), rel=1e-9, abs=1e-12
            )
            assert score_entropy.data_end(sigma, outputs) == pytest.approx(float(-(law * law.log()).sum()), rel=1e-9)


def test_replacements_weigh_what_they_should():
    """A function of sigma and the number of replaced tokens, integrated exactly; replacements are uniform."""
    outputs, n, rows = 4, 3, 40000
    texts = torch.zeros(rows, n, dtype=torch.int64)
    (drawn,) = draw_replaced(texts, texts == 0, SequenceRng(0, range(rows)), draws=1, outputs=outputs, block_length=5)
    changed = (drawn.now_BL != 0).sum(1).double()
    values = drawn.weight_B * (1 + changed) * torch.exp(-2 * drawn.sigma_B)
    exact = sum(  # (1 - m) E[1 + changed] = (1 - m) (1 + 3 / 4 n m), over m
        w * (1 - m) * (1 + n * m * (outputs - 1) / outputs)
        for m, w in nodes(-math.expm1(-SIGMA_LOW), -math.expm1(-SIGMA_HIGH), 10)
    )
    assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / math.sqrt(rows)
    counts = torch.bincount(drawn.now_BL[drawn.now_BL != 0], minlength=outputs)[1:].double()
    assert float((counts / counts.mean() - 1).abs().max()) < 0.03
    assert ((drawn.sigma_B >= SIGMA_LOW) & (drawn.sigma_B <= SIGMA_HIGH * (1 + 1e-12))).all()


@pytest.mark.parametrize("name", ["loglinear", "geometric"])
def test_noise(name):
    noise, t = Noise(name=name), torch.linspace(0, 1, 41, dtype=torch.float64)
    sigma = noise.sigma(t)
    assert float(sigma[0]) == pytest.approx(SIGMA_LOW) and float(sigma[-1]) == pytest.approx(SIGMA_HIGH)
    assert (sigma.diff() > 0).all()
    h, inside = 1e-6, t[1:-1]
    torch.testing.assert_close(
        noise.slope(inside), (noise.sigma(inside + h) - noise.sigma(inside - h)) / (2 * h), rtol=1e-5, atol=0
    )
    assert normalised_log_sigma(torch.tensor([0.0, SIGMA_LOW, SIGMA_HIGH, math.inf])).tolist() == pytest.approx(
        [0, 0, 1, 1]
    )


@pytest.mark.parametrize("length", [0.01, 0.5, 1.3])
def test_analytic_step_is_exact_for_exact_scores(length):
    """One token of a known law: a step from its law at sigma gives its law at sigma - length, on both graphs."""
    data, sigma = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64), 1.3
    for Q, law in ((ABSORBING_Q, torch.cat([data, torch.zeros(1)])), (UNIFORM_Q, data)):
        at, earlier = law @ torch.linalg.matrix_exp(sigma * Q), law @ torch.linalg.matrix_exp((sigma - length) * Q)
        if len(law) > V:
            share = math.expm1(length) / math.expm1(sigma)
            weights = score_entropy.absorb_weights((data * V).log()[None], share, Sampling())
            found = at.clone()
            found[V] = 0
            found += at[V] * weights[0]
        else:
            depth = math.log(1 + (V - 1) * math.exp(-sigma))
            logits = ((at[None] / at[:, None]).log() / depth + 1) * math.log(V)
            weights = score_entropy.uniform_analytic_weights(logits, torch.arange(V), sigma, length, Sampling())
            found = at @ weights
        torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)).double())
        torch.testing.assert_close(found, earlier)


def transition(model: SEDD, tokens: torch.Tensor, sigma: float, length: float, euler: bool) -> torch.Tensor:
    """Law of each position's next state by the published formulas, with matrices, cut at 0."""
    Q = ABSORBING_Q if model.config.graph == "absorb" else UNIFORM_Q
    states = tokens.clamp(max=V)
    s = scores(model, tokens, sigma)
    if euler:
        reverse = Q.T[states] * s
        reverse.scatter_(2, states[..., None], 0.0)
        stay = torch.nn.functional.one_hot(states, len(Q))
        weights = stay + length * (reverse - stay * reverse.sum(-1, keepdim=True))
    else:
        weights = (s @ torch.linalg.matrix_exp(-length * Q)) * torch.linalg.matrix_exp(length * Q).T[states]
    weights = weights.clamp(min=0)
    if model.config.graph == "absorb":
        kept = torch.nn.functional.one_hot(states, len(Q)).double()
        weights = torch.where((tokens == MASK)[..., None], weights, kept)
    return weights / weights.sum(-1, keepdim=True)


def sampler_law(model: SEDD, texts: torch.Tensor, prompt: tuple[int, ...] = ()) -> torch.Tensor:
    """Exact probability of each text (B, length) under the model's sampler, given the prompt.

    A distribution over all canvases, carried through all steps and the last, which takes the noise away.
    """
    config, length, given = model.config, texts.shape[1], len(prompt)
    absorb, steps, noise = config.graph == "absorb", config.sampling_steps, Noise(name=config.noise)
    states = (0, 1, 2, MASK) if absorb else (0, 1, 2)
    every = canvases(length, states)
    law = (every[:, :given] == torch.tensor(prompt, dtype=torch.int64)).all(1)
    law = (law & (every[:, given:] == MASK).all(1) if absorb else law).double()
    law /= law.sum()
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    sigmas, slopes = noise.sigma(times).tolist(), noise.slope(times).tolist()
    for j, sigma in enumerate(sigmas):
        last, euler = j == steps, config.sampler == "euler" and j < steps
        step = slopes[j] / steps if euler else sigma if last else sigma - sigmas[j + 1]

        def moves(tokens, sigma=sigma, step=step, euler=euler, last=last):
            weights = transition(model, tokens, sigma, step, euler)
            if absorb and last:
                weights[..., V] = 0
                weights /= weights.sum(-1, keepdim=True)
            kept = torch.nn.functional.one_hot(tokens[:, :given].clamp(max=V), len(states)).double()
            return torch.cat([kept, weights[:, given:]], 1)

        law = carry(law, length, states, moves)
    assert float(law[(every < V).all(1)].sum()) == pytest.approx(1, abs=1e-9)
    rows = (texts * len(states) ** torch.arange(length - 1, -1, -1)).sum(1)
    return law[rows]


@pytest.mark.parametrize("graph", ["absorb", "uniform"])
@pytest.mark.parametrize(
    ("sampler", "noise"), [("analytic", "loglinear"), ("euler", "geometric"), ("euler", "loglinear")]
)
def test_samples_follow_the_exact_law(graph, sampler, noise):
    """V=3, three tokens, one given, four steps."""
    source, steps, prompt = trained(SEDD, **({} if graph == "absorb" else UNIFORM)), 4, [1]
    model = SEDD(dataclasses.replace(source.config, noise=noise, sampler=sampler, sampling_steps=steps)).double()
    model.load_state_dict(source.state_dict())
    model = model.eval().requires_grad_(False)
    count = 4000
    made = model.generate([prompt] * count, max_new_tokens=2, sampling=Sampling(), rng=SequenceRng(2, range(count)))
    law = sampler_law(model, all_texts(V, 3), tuple(prompt))
    assert p_value([prompt + new for new in made.tokens], law) > 0.001
    assert max(made.network_evaluations) <= steps + 1
    if graph == "uniform":
        assert set(made.network_evaluations) == {steps + 1}


@pytest.mark.parametrize("settings", [{}, UNIFORM], ids=["absorb", "uniform"])
def test_generation_repeats_row_by_row_and_past_a_block(settings):
    model = trained(SEDD, **settings)
    prompts = [[], [1], [], [0, 2, 1]]
    options = {"max_new_tokens": 9, "sampling": Sampling(temperature=0.7, top_k=2)}
    together = model.generate(prompts, rng=SequenceRng(5, range(4)), **options)
    assert all(len(t) == 9 and all(0 <= i < V for i in t) for t in together.tokens)
    for row in (0, 3):
        alone = model.generate([prompts[row]], rng=SequenceRng(5, [row]), **options)
        assert alone.tokens[0] == together.tokens[row]
    with pytest.raises(ValueError, match="exceed"):
        model.generate([[0] * (L + 1)], rng=SequenceRng(0, [0]), **options)


def test_sampling_settings_shape_the_token_and_not_the_rate():
    logits = torch.tensor([[1.0, 0.5, -1.0, 0.0]])
    plain, greedy = (score_entropy.absorb_weights(logits, 0.3, Sampling(temperature=t)) for t in (1.0, 0.0))
    torch.testing.assert_close(plain[:, -1], greedy[:, -1])
    assert greedy[0, :-1].count_nonzero() == 1 and greedy[0].argmax() in (0, 4)
    now = torch.tensor([0])
    plain, greedy = (
        score_entropy.uniform_euler_weights(logits, now, 1.0, 0.3, Sampling(temperature=t)) for t in (1.0, 0.0)
    )
    torch.testing.assert_close(plain[:, 0], greedy[:, 0])
    assert greedy[0].nonzero()[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize("settings", [{}, UNIFORM], ids=["absorb", "uniform"])
def test_training_loss_is_the_bound_and_moves_everything(settings):
    torch.manual_seed(0)
    model = SEDD(dataclasses.replace(SEDD.miniature(V + 1, L), **settings)).double()
    torch.nn.init.normal_(model.decoder.blocks[0].modulation.weight, std=0.1)
    texts = all_texts()
    losses = [model.training_loss(texts, rng=SequenceRng(s, range(81))).value.item() for s in range(40)]
    found = float(model.log_likelihoods(texts, rng=SequenceRng(99, range(81)), draws=300)["elbo"].nats_B.mean()) / L
    error = torch.tensor(losses).std().item() / math.sqrt(len(losses))
    assert abs(sum(losses) / len(losses) + found) < 5 * error
    model.training_loss(texts, rng=SequenceRng(0, range(81))).value.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


@pytest.mark.parametrize("settings", [{}, UNIFORM], ids=["absorb", "uniform"])
def test_context_and_padding(settings):
    model = trained(SEDD, **settings)
    texts, lengths, context = all_texts()[::7], torch.tensor([4, 3, 2] * 4), torch.tensor([0, 1, 2] * 4)
    found = model.log_likelihoods(texts, lengths=lengths, context=context, rng=SequenceRng(1, range(12)))["elbo"]
    assert (found.tokens_B == lengths - context).all() and (found.nats_B[found.tokens_B == 0] == 0).all()
    assert bool(found.terms) == bool(settings)
    if found.terms:
        torch.testing.assert_close(sum(found.terms.values()), found.nats_B)
    for row in (1, 4, 6):
        alone = model.log_likelihood(
            texts[row : row + 1, : lengths[row]], context=int(context[row]), rng=SequenceRng(1, [row])
        )
        torch.testing.assert_close(alone.nats_B[0], found.nats_B[row], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="draws must be at least 1"):
        model.log_likelihood(texts, rng=SequenceRng(0, range(12)), draws=0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("graph=unifrom", "did you mean uniform"),
        ("noise=log-linear", "did you mean loglinear"),
        ("sampler=tweedie", "unknown value"),
        ("sampling_steps=0", "sampling_steps must be at least 1, found 0"),
        ("sampling_steps=-1", "sampling_steps must be at least 1, found -1"),
        ("condition_width=1", "condition_width must be even"),
        ("decoder.window=8", "window=none"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(UserError, match=message):
        with_settings(SEDD.presets["sedd-tiny"].config, [setting])
