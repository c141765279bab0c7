"""Duo: its ratios, its bound by enumeration, the law of its sampler; parity with public code: tests/ltm/published.

Miniatures have three tokens and one state that no text has.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from baselines.diffusion import score_entropy
from baselines.diffusion.duo import Duo
from baselines.diffusion.schedules import SIGMA_HIGH, SIGMA_LOW
from ltm.api import Sampling
from ltm.rng import SequenceRng
from ltm.testing.miniatures import V, all_texts, trained
from tests.support.canvas_laws import canvases, carry, nodes, p_value

STATES = V + 1
Q = torch.full((STATES, STATES), 1 / STATES, dtype=torch.float64) - torch.eye(STATES, dtype=torch.float64)


def predicted(model: Duo, canvas_CL: torch.Tensor, sigma: float) -> torch.Tensor:
    """The network's law of each original token, (C, L, states)."""
    bos = torch.full((len(canvas_CL), 1), STATES)
    condition = model.condition_of(torch.full((len(canvas_CL),), sigma, dtype=torch.float64))
    h = model.decoder(torch.cat([bos, canvas_CL], 1), condition_BE=condition)[:, 1:]
    return (h @ model.decoder.embedding[:STATES].T).softmax(-1)


def ratios(model: Duo, canvas_CL: torch.Tensor, sigma: float) -> torch.Tensor:
    """p(y) / p(present) of each state if the original has the predicted law, (C, L, states)."""
    at_sigma = predicted(model, canvas_CL, sigma) @ torch.linalg.matrix_exp(sigma * Q)
    return at_sigma / at_sigma.gather(2, canvas_CL[..., None])


def enumerated(model: Duo, length: int, points: int = 40) -> torch.Tensor:
    """The bound of every text: all replacements, quadrature over log sigma, both ends by their definitions."""
    texts, states = all_texts(V, length), canvases(length, tuple(range(STATES)))
    total = torch.zeros(len(texts), dtype=torch.float64)
    for log_sigma, weight in nodes(math.log(SIGMA_LOW), math.log(SIGMA_HIGH), points):
        sigma = math.exp(log_sigma)
        forward, s = torch.linalg.matrix_exp(sigma * Q), ratios(model, states, sigma)
        for row, text in enumerate(texts):
            present = forward[text.expand(len(states), -1), states]
            r = forward[text] / present[..., None]
            cost = (s - r * s.log() + r * (r.log() - 1)).sum(-1) / STATES  # 0 of the present state: s = r = 1
            total[row] -= weight * sigma * (present.prod(1) * cost.sum(1)).sum()
    first, last = (torch.linalg.matrix_exp(sigma * Q)[0] for sigma in (SIGMA_LOW, SIGMA_HIGH))
    return total - length * float(-(first * first.log()).sum() + (last * (last * STATES).log()).sum())


def test_the_ratios_are_those_of_the_predicted_law():
    torch.manual_seed(0)
    logits, now = torch.randn(STATES, STATES).double() * 2, torch.arange(STATES)
    for sigma in (1e-4, 0.3, 5.0):
        at_sigma = logits.softmax(1) @ torch.linalg.matrix_exp(sigma * Q)
        expected = at_sigma / at_sigma.gather(1, now[:, None])
        found = score_entropy.duo_log_scores(logits, now, torch.tensor(sigma, dtype=torch.float64)).exp()
        torch.testing.assert_close(found, expected)


def test_a_perfect_prediction_costs_nothing():
    """If the law is one original, the ratios are the true ones, whatever has become of the token."""
    logits = 60 * torch.eye(STATES).double()
    targets, now = (each.flatten() for each in torch.meshgrid(*[torch.arange(STATES)] * 2, indexing="ij"))
    sigma = torch.full((len(targets),), 0.7).double()
    cost = score_entropy.uniform_cost(logits[targets], targets, now, sigma, scores=score_entropy.duo_log_scores)
    torch.testing.assert_close(cost, torch.zeros_like(cost), rtol=0, atol=1e-12)
    other = score_entropy.uniform_cost(logits[targets - 1], targets, now, sigma, scores=score_entropy.duo_log_scores)
    assert bool((other > 1e-3).all())


def test_the_bound_is_the_enumerated_one_and_holds():
    model = trained(Duo)
    exact, repeats = enumerated(model, 2), 60
    texts = all_texts(V, 2).repeat(repeats, 1)
    found = model.log_likelihood(texts, rng=SequenceRng(0, range(len(texts))), draws=8).nats_B.view(repeats, -1)
    z = (found.mean(0) - exact) / (found.std(0) / math.sqrt(repeats))
    assert float(z.abs().max()) < 4.5 and float(z.square().mean()) < 1.8
    assert 0.3 < float(exact.exp().sum()) < 1


def sampler_law(model: Duo, texts: torch.Tensor) -> torch.Tensor:
    """The probability of each text (B, length) under the sampler: a law over all canvases through all steps."""
    length, steps = texts.shape[1], model.config.sampling_steps
    every = canvases(length, tuple(range(STATES)))
    law = torch.full((len(every),), 1 / len(every), dtype=torch.float64)
    sigmas = model.noise.sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64)).tolist()
    for step, sigma in enumerate(sigmas):
        last = step == steps
        earlier = 0.0 if last else sigmas[step + 1]

        def moves(canvas_CL, sigma=sigma, earlier=earlier, last=last):
            # The posterior of a token at `earlier`: for each original that is predicted, by Bayes' rule.
            p = predicted(model, canvas_CL, sigma) @ torch.linalg.matrix_exp(earlier * Q)
            weights = p * torch.linalg.matrix_exp((sigma - earlier) * Q).T[canvas_CL]
            if last:
                weights[..., V:] = 0
            return weights / weights.sum(-1, keepdim=True)

        law = carry(law, length, tuple(range(STATES)), moves)
    return law[(texts * STATES ** torch.arange(length - 1, -1, -1)).sum(1)]


def test_samples_follow_the_posterior_of_the_predicted_law():
    source, count = trained(Duo), 4000
    model = Duo(dataclasses.replace(source.config, sampling_steps=4)).double()
    model.load_state_dict(source.state_dict())
    model = model.eval().requires_grad_(False)
    law = sampler_law(model, all_texts(V, 2))
    assert float(law.sum()) == pytest.approx(1)
    made = model.generate([[]] * count, max_new_tokens=2, sampling=Sampling(), rng=SequenceRng(2, range(count)))
    assert p_value(made.tokens, law) > 0.001


def test_states_without_a_text_are_never_the_end():
    model = trained(Duo)
    made = model.generate([[0]] * 50, max_new_tokens=3, sampling=Sampling(), rng=SequenceRng(0, range(50)))
    assert max(token for tokens in made.tokens for token in tokens) < V
    with pytest.raises(ValueError, match="unused_states must be at least 0"):
        dataclasses.replace(model.config, unused_states=-1)
