"""MD4's schedules and ends, GenMD4's costs and gradients, and the bounds and samplers of both by enumeration."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import pytest
import torch

from baselines.diffusion.learned_schedule import LearnedSchedule, Noised, leave_one_out
from baselines.diffusion.md4 import MD4
from baselines.diffusion.mdlm import MDLM
from baselines.diffusion.schedules import OFFSET, MaskSchedule, grid
from ltm.api import Sampling
from ltm.config import with_settings
from ltm.errors import UserError
from ltm.rng import SequenceRng
from ltm.testing.miniatures import L, V, all_texts
from tests.support.canvas_laws import MASK, canvases, carry, nodes, p_value, trained

SCHEDULES = [("linear", 2.0), ("cosine", 2.0), ("polynomial", 2.0), ("polynomial", 0.5)]
LEARNED = {"schedule": "learned", "sampler": "ancestral", "sampling_steps": 4}


@functools.cache
def learned() -> Any:
    """A model trained with a learned schedule, its speeds then pulled further apart."""
    source = trained(MD4, **LEARNED)
    model: Any = MD4(source.config).double()
    model.load_state_dict(source.state_dict())
    with torch.no_grad():
        model.learned.raw += torch.tensor([-0.7, 0.0, 1.0])
    return model.eval().requires_grad_(False)


def log_p(model: Any, tokens: torch.Tensor, time: float) -> torch.Tensor:
    """Log probabilities of every position of canvases (C, length) at a time, (C, length, V); no code of the bound."""
    bos = torch.full((len(tokens), 1), V)
    condition = model.time_embedding(torch.full((len(tokens),), time, dtype=torch.float64))
    h = model.decoder(torch.cat([bos, tokens], 1), condition_BE=condition)[:, 1:]
    return (h @ model.decoder.embedding[:V].T).log_softmax(-1)


def enumerated(model: Any, length: int, points: int = 80) -> torch.Tensor:
    """The bound of every text, (V^length,): all masks, and quadrature over the mask rate, or the time if learned."""
    texts, masks = all_texts(V, length), canvases(length, (0, 1)).bool()[1:]
    masked_MTL = texts.masked_fill(masks[:, None], MASK)
    rows_MT = (masked_MTL.clamp(max=V) * (V + 1) ** torch.arange(length - 1, -1, -1)).sum(-1)
    targets_MTL = texts.expand(len(masks), -1, -1)
    speeds_V = torch.ones(V).double() if model.learned is None else torch.nn.functional.softplus(model.learned.raw)
    w_MTL = speeds_V[targets_MTL]
    total = torch.zeros(len(texts), dtype=torch.float64)
    for root, weight in nodes(math.sqrt(OFFSET), 1.0, points):  # where speeds are below 1 the integrand is steep at 0
        x, weight = root**2, weight * 2 * root
        time = x if model.learned is not None else float(model.fixed.time(torch.tensor(x, dtype=torch.float64)))
        log_p_CLV = log_p(model, canvases(length, (0, 1, 2, MASK)), time)
        own_MTL = log_p_CLV[rows_MT].gather(3, targets_MTL[..., None])[..., 0]
        cost_MTL = (log_p_CLV.exp() @ speeds_V)[rows_MT] - w_MTL - w_MTL * own_MTL
        rate_MTL = x**w_MTL
        chance_MT = torch.where(masks[:, None], rate_MTL, 1 - rate_MTL).prod(2)
        total -= weight / x * (chance_MT * (cost_MTL * masks[:, None]).sum(2)).sum(0)
    return total - (OFFSET ** speeds_V[texts]).sum(1) * math.log(V)


@pytest.mark.parametrize(("name", "power"), SCHEDULES)
def test_schedules(name, power):
    schedule = MaskSchedule(name=name, power=power)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    rate = schedule.rate(t)
    assert float(rate[-1]) == 1.0 and float(rate[0]) == pytest.approx(OFFSET, rel=1e-9)
    assert (rate.diff() > 0).all()
    torch.testing.assert_close(schedule.time(rate), t, rtol=0, atol=1e-6)
    assert float(schedule.time(torch.tensor(OFFSET / 2, dtype=torch.float64))) == 0
    kept = {"linear": 0.5, "cosine": 1 - math.cos(math.pi / 4), "polynomial": 1 - 0.5**power}[name]
    assert float(schedule.rate(torch.tensor(0.5))) == pytest.approx(1 - (1 - OFFSET) * kept, rel=1e-6)


@pytest.mark.parametrize("name", ["uniform", "cosine"])
def test_grids_fall_from_one_to_zero(name):
    times = grid(name, 7)
    assert times[0] == 1 and times[-1] == 0 and len(times) == 8 and (times.diff() < 0).all()


def test_linear_is_mdlm_up_to_its_offset():
    """Shared weights, no time conditioning, the same masks: the diffusion term is MDLM's bound, the rest n e log V."""
    model = trained(MD4, time_conditioning=False)
    mdlm = MDLM(MDLM.miniature(V + 1, L)).double()
    mdlm.load_state_dict(model.state_dict())
    texts, rng = all_texts(), SequenceRng(0, range(V**L))
    ours, theirs = model.log_likelihood(texts, rng=rng, draws=8), mdlm.log_likelihood(texts, rng=rng, draws=8)
    # Less what the rates below e, one draw in ten thousand, would have added.
    assert (ours.terms["diffusion"] >= theirs.nats_B - 1e-12).all()
    same = (ours.terms["diffusion"] - theirs.nats_B).abs() < 1e-12
    assert same.sum() >= len(texts) - 2
    torch.testing.assert_close(
        ours.nats_B - ours.terms["diffusion"], torch.full((81,), -L * 1e-4 * math.log(V)).double()
    )


@pytest.mark.parametrize(
    "settings",
    [{"schedule": "cosine"}, {"schedule": "polynomial", "power": 3.0}, LEARNED],
    ids=["cosine", "cubic", "learned"],
)
def test_bound_is_the_enumerated_one_and_keeps_to_all_mass(settings):
    model = learned() if settings is LEARNED else trained(MD4, **settings)
    exact = enumerated(model, L)
    assert 0.3 < float(exact.exp().sum()) <= 1 + 1e-9
    repeats = 40
    texts = all_texts().repeat(repeats, 1)
    found = model.log_likelihood(texts, rng=SequenceRng(0, range(len(texts))), draws=8).nats_B.view(repeats, -1)
    error = found.std(0) / math.sqrt(repeats)
    z = (found.mean(0) - exact) / error
    assert float(z.abs().max()) < 5 and float(z.square().mean()) < 1.6


def test_quadrature_has_converged():
    torch.testing.assert_close(enumerated(learned(), 2, 80), enumerated(learned(), 2, 120), rtol=0, atol=1e-4)


def test_learned_cost_at_speed_one_is_mdlms():
    schedule = LearnedSchedule(5).double()
    torch.testing.assert_close(schedule.speeds(), torch.ones(5, dtype=torch.float64))
    logits, targets = torch.randn(7, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(schedule.cost(logits, targets), nll)
    texts = torch.tensor([[0, 3, 2]])
    torch.testing.assert_close(schedule.data_end(texts, texts >= 0), torch.tensor([3e-4 * math.log(5)]).double())


def test_learned_cost_is_least_at_the_truth():
    """A divergence of jump rates: at least 0 in expectation over the token, and 0 only for its own probabilities."""
    torch.manual_seed(0)
    schedule = LearnedSchedule(4).double()
    with torch.no_grad():
        schedule.raw += torch.randn(4)
    truth = torch.randn(4, dtype=torch.float64)

    def expected(logits):
        costs = torch.stack([schedule.cost(logits[None], torch.tensor([v]))[0] for v in range(4)])
        return float((truth.softmax(0) * costs).sum().detach())

    least = expected(truth)
    assert all(expected(truth + 0.3 * torch.randn(4)) > least for _ in range(20))


def test_gradient_of_the_speeds_is_that_of_the_enumerated_loss():
    """Two tokens; every pair of draws of k masks, weighted by its density: leave-one-out is unbiased."""
    model = learned()
    text, scored = torch.tensor([0, 2]), torch.ones(1, 2, dtype=torch.bool)
    schedule = LearnedSchedule(V).double()
    schedule.load_state_dict(model.learned.state_dict())
    # Times before OFFSET cost nothing, but their draws are baselines of others.
    before = [(s**8, 8 * s**7 * weight) for s, weight in nodes(0.0, OFFSET**0.125, 12)]
    grid_of_times = before + [(s**3, 3 * s**2 * weight) for s, weight in nodes(OFFSET ** (1 / 3), 1.0, 48)]
    masks = canvases(2, (0, 1)).bool()[1:]
    log_p_TMLV = [
        torch.stack([log_p(model, text.masked_fill(m, MASK)[None], t)[0] for m in masks]) for t, _ in grid_of_times
    ]

    def expected_cost():
        """The integral over t of the mean over masks of the costs, by its definition."""
        w, total = schedule.speeds()[text], 0.0
        for (t, weight), log_p_MLV in zip(grid_of_times, log_p_TMLV, strict=True):
            for mask, log_p_LV in zip(masks, log_p_MLV, strict=True):
                if t < OFFSET:
                    continue
                chance = torch.where(mask, t**w, 1 - t**w).prod()
                total = total + weight / t * chance * schedule.cost(log_p_LV[mask], text[mask]).sum()
        return total

    (expected,) = torch.autograd.grad(expected_cost(), schedule.raw)
    with torch.no_grad():  # and autograd's is that of finite differences
        step, values = 1e-5, []
        for sign in (1, -1):
            schedule.raw[2] += sign * step
            values.append(float(expected_cost()))
            schedule.raw[2] -= sign * step
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(expected[2]), rel=1e-6)

    found = torch.zeros_like(expected)
    for k in (1, 2):
        costs, densities, chances = [], [], []
        for (t, weight), log_p_MLV in zip(grid_of_times, log_p_TMLV, strict=True):
            for mask, log_p_LV in zip(masks, log_p_MLV, strict=True):
                if mask.sum() == k:
                    noised = Noised(mask[None], torch.tensor([t]).double())
                    cost = schedule.cost(log_p_LV[mask], text[mask]).sum()
                    costs.append(schedule.weights(text[None], scored, noised) * cost)
                    densities.append(schedule.log_density(text[None], scored, noised))
                    chances.append(weight * densities[-1].detach().exp() / t)
        C, D, p = torch.cat(costs), torch.cat(densities), torch.cat(chances)
        assert float(p.sum()) == pytest.approx(1, abs=1e-3)
        first, second = torch.cartesian_prod(torch.arange(len(p)), torch.arange(len(p))).T
        loss_P = leave_one_out(torch.stack([C[first], C[second]]), torch.stack([D[first], D[second]]))
        torch.testing.assert_close(loss_P.detach(), (C[first] + C[second]).detach() / 2)
        found += torch.autograd.grad((p[first] * p[second] * loss_P).sum() / 2, schedule.raw)[0]
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.003)


def test_learned_at_speed_one_is_the_linear_schedule():
    """The same masks under the same rng, and so the same number; the data end too."""
    linear = trained(MD4, time_conditioning=False)
    model = MD4(dataclasses.replace(linear.config, schedule="learned", sampler="ancestral")).double()
    model.load_state_dict(linear.state_dict(), strict=False)
    texts, lengths = all_texts()[::5], torch.tensor([4, 2, 3] * 5 + [4, 1])
    rng = SequenceRng(0, range(len(texts)))
    ours, theirs = (m.log_likelihood(texts, lengths=lengths, rng=rng) for m in (model, linear))
    torch.testing.assert_close(ours.nats_B, theirs.nats_B, rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"schedule": "learned", "sampler": "ancestral"}], ids=["linear", "learned"])
def test_training_loss_is_the_bound_and_moves_everything(settings):
    torch.manual_seed(0)
    model = MD4(dataclasses.replace(MD4.miniature(V + 1, L), **settings)).double()
    torch.nn.init.normal_(model.decoder.blocks[0].modulation.weight, std=0.1)
    texts = all_texts()
    losses = [model.training_loss(texts, rng=SequenceRng(s, range(81))).value.item() for s in range(50)]
    found = model.log_likelihood(texts, rng=SequenceRng(99, range(81)), draws=400).nats_B.mean() / L
    error = torch.tensor(losses).std().item() / math.sqrt(len(losses))
    assert abs(sum(losses) / len(losses) + float(found)) < 5 * error
    model.training_loss(texts, rng=SequenceRng(0, range(81))).value.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_training_learns_speeds():
    assert float(trained(MD4, **LEARNED).learned.speeds().sub(1).abs().max()) > 0.05


@pytest.mark.parametrize("prompt", [[], [1]])
@pytest.mark.parametrize(("kind", "name"), [("cosine", "uniform"), ("cosine", "cosine"), ("learned", "uniform")])
def test_samples_follow_the_exact_law(kind, name, prompt):
    """V=3, three tokens, four steps: distributions over all 4^3 canvases, with the network conditioned on the time."""
    source = learned() if kind == "learned" else trained(MD4, schedule="cosine")
    config = dataclasses.replace(source.config, sampler="ancestral", sampling_steps=4, grid=name)
    model = MD4(config).double()
    model.load_state_dict(source.state_dict())
    model = model.eval().requires_grad_(False)
    steps, length, states = 4, 3, (0, 1, 2, MASK)
    times = [1 - j / steps for j in range(steps + 1)]
    if name == "cosine":
        times = [math.cos(math.pi / 2 * j / steps) for j in range(steps)] + [0.0]
    law = torch.zeros(4**length, dtype=torch.float64)
    law[(canvases(length, states) == torch.tensor(prompt + [MASK] * (length - len(prompt)))).all(1)] = 1.0
    for time, later in itertools.pairwise(times):

        def moves(tokens, time=time, later=later):
            p = log_p(model, tokens, time).exp()
            if kind == "learned":
                stay = (later / time) ** torch.nn.functional.softplus(model.learned.raw)
            else:
                rates = [1 - (1 - OFFSET) * (1 - math.sin(math.pi / 2 * t)) for t in (time, later)]
                stay = torch.full((V,), 0.0 if later == 0 else rates[1] / rates[0], dtype=torch.float64)
            next_law = torch.cat([p * (1 - stay), (p * stay).sum(-1, keepdim=True)], -1)
            kept = torch.nn.functional.one_hot(tokens.clamp(max=V), V + 1).double()
            return torch.where((tokens == MASK)[..., None], next_law, kept)

        law = carry(law, length, states, moves)
    texts = law[(canvases(length, states) < V).all(1)]
    assert float(texts.sum()) == pytest.approx(1, abs=1e-12)
    count = 4000
    made = model.generate(
        [prompt] * count, max_new_tokens=3 - len(prompt), sampling=Sampling(), rng=SequenceRng(2, range(count))
    )
    assert p_value([prompt + new for new in made.tokens], texts) > 0.001


def test_first_hitting_tells_the_network_the_time_of_the_rate():
    told = []
    model = MD4(dataclasses.replace(MD4.miniature(V + 1, L), schedule="cosine")).double()
    original = model.time_embedding.forward
    model.time_embedding.forward = lambda t: told.append(t) or original(t)
    model.generate([[]] * 500, max_new_tokens=1, sampling=Sampling(), rng=SequenceRng(0, range(500)))
    # One mask is hit at a uniform rate, so the time has the law of the schedule's inverse: median (2 / pi) asin(1 / 2).
    assert float(told[0].median()) == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("settings", [{"schedule": "cosine"}, LEARNED], ids=["cosine", "learned"])
def test_context_and_padding(settings):
    """Noise and numbers of a row do not depend on padding; given tokens are seen, not scored."""
    model = trained(MD4, **settings)
    texts, lengths = all_texts()[::7], torch.tensor([4, 3, 2, 4, 3, 2, 4, 3, 2, 4, 3, 2])
    context = torch.tensor([0, 1, 2] * 4)
    rows = SequenceRng(1, range(len(texts)))
    found = model.log_likelihoods(texts, lengths=lengths, context=context, rng=rows)["elbo"]
    assert (found.tokens_B == lengths - context).all()
    assert (found.nats_B[found.tokens_B == 0] == 0).all()
    torch.testing.assert_close(sum(found.terms.values()), found.nats_B)
    for row in (1, 4, 6):
        alone = model.log_likelihood(
            texts[row : row + 1, : lengths[row]], context=int(context[row]), rng=SequenceRng(1, [row])
        )
        torch.testing.assert_close(alone.nats_B[0], found.nats_B[row], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("schedule=cosin", "did you mean cosine"),
        ("power=-1", "power must be above 0, found -1"),
        ("sampling_steps=0", "sampling_steps must be at least 1, found 0"),
        ("sampling_steps=-3", "sampling_steps must be at least 1, found -3"),
        ("condition_width=5", "condition_width must be even"),
        ("decoder.window=8", "window=none"),
        ("grid=cosines", "did you mean cosine"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(UserError, match=message):
        with_settings(MD4.presets["md4-tiny"].config, [setting])


def test_learned_schedules_have_no_first_hitting():
    with pytest.raises(UserError, match="sampler=ancestral"):
        with_settings(MD4.presets["md4-tiny"].config, ["schedule=learned", "sampler=first_hitting"])


def test_bad_draws():
    for model in (trained(MD4, schedule="cosine"), learned()):
        with pytest.raises(ValueError, match="draws must be at least 1"):
            model.log_likelihood(all_texts()[:1], rng=SequenceRng(0, [0]), draws=0)
