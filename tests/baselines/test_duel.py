"""Exact likelihoods under rules of order, against brute force, and the sampler of the same rule."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import pytest
import torch
from scipy import stats

from baselines import duel
from baselines.diffusion.bd3lm import BD3LM
from baselines.diffusion.md4 import MD4
from baselines.diffusion.mdlm import MDLM
from baselines.diffusion.sedd import SEDD
from ltm.api import Sampling
from ltm.rng import SequenceRng
from ltm.testing.miniatures import L, V, all_texts, train_briefly, untrained

RULES = ("left_to_right", "confidence", "margin", "block_confidence")
FAMILIES = (MDLM, MD4, SEDD)
TEXTS = all_texts()


@functools.cache
def trained(family):
    model = untrained(family)
    train_briefly(model, 60)
    return model.eval().requires_grad_(False)


def under(family, rule, **settings):
    """The trained miniature as the model of a rule, with blocks of two."""
    model = trained(family)
    other = family(dataclasses.replace(model.config, unmasking=rule, **settings)).double()
    other.load_state_dict(model.state_dict())
    return other.eval().requires_grad_(False)


def blocks_of_two(family):
    return {} if family is BD3LM else {"unmasking_block": 2}


CASES = [(family, rule) for family in FAMILIES for rule in RULES] + [(BD3LM, rule) for rule in RULES[:3]]


@pytest.mark.parametrize(("family", "rule"), CASES)
def test_probabilities_are_exact(family, rule):
    """They sum to 1 over all texts of a block and of part of one, and given any start; batches change nothing."""
    model = under(family, rule, **blocks_of_two(family))
    noise = SequenceRng(0, range(len(TEXTS)))
    found = model.log_likelihoods(TEXTS, rng=noise)
    (name,) = found
    assert name == model.headline() == f"duel_{rule}" and found[name].kind == "exact" and not model.chain_rule
    assert float(found[name].nats_B.exp().sum()) == pytest.approx(1, abs=1e-9)
    given = model.log_likelihoods(TEXTS, context=2, rng=noise)[name].nats_B.exp().view(V**2, V**2).sum(1)
    torch.testing.assert_close(given, torch.ones_like(given), rtol=0, atol=1e-9)
    short = model.log_likelihoods(TEXTS[:: V**2], lengths=torch.full((V**2,), L - 2), rng=SequenceRng(0, range(V**2)))
    assert float(short[name].nats_B.exp().sum()) == pytest.approx(1, abs=1e-9)
    mixed = model.log_likelihoods(TEXTS[:4], lengths=torch.tensor([4, 2, 3, 1]), rng=SequenceRng(0, range(4)))[name]
    alone = model.log_likelihoods(TEXTS[1:2, :2], rng=SequenceRng(0, [0]))[name]
    assert float(mixed.nats_B[1]) == pytest.approx(float(alone.nats_B[0]), abs=1e-9)


def by_hand(model, text, rule):
    """One text, position by position, with the rule written out."""
    canvas, total, n = [model.mask_id] * len(text), 0.0, len(text)
    for _ in text:
        masked = [i for i in range(n) if canvas[i] == model.mask_id]
        wanted = torch.tensor([[i in masked for i in range(n)]])
        rate = torch.tensor([len(masked) / n], dtype=torch.float64)
        p = model.predict(torch.tensor([canvas]), rate, wanted).double().softmax(1)
        best = {i: sorted(p[k].tolist(), reverse=True) for k, i in enumerate(masked)}
        if rule == "left_to_right":
            chosen = masked[0]
        elif rule == "block_confidence":
            chosen = max((i for i in masked if i // 2 == masked[0] // 2), key=lambda i: (best[i][0], -i))
        else:
            chosen = max(masked, key=lambda i: (best[i][0] - (best[i][1] if rule == "margin" else 0), -i))
        total += float(p[masked.index(chosen), text[chosen]].log())
        canvas[chosen] = int(text[chosen])
    return total


@pytest.mark.parametrize(("family", "rule"), list(itertools.product(FAMILIES, RULES)))
def test_the_value_is_that_of_the_rule_written_out(family, rule):
    model = under(family, rule, unmasking_block=2)
    found = model.log_likelihood(TEXTS[5::16], rng=SequenceRng(0, range(5))).nats_B
    expected = [by_hand(model, text.tolist(), rule) for text in TEXTS[5::16]]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("family", "rule"), CASES)
def test_samples_follow_the_likelihood(family, rule):
    """Chi-square over all 27 texts of three tokens."""
    model, count = under(family, rule, **blocks_of_two(family)), 2_000
    texts = all_texts(V, 3)
    p = model.log_likelihood(texts, rng=SequenceRng(0, range(len(texts)))).nats_B.exp().numpy()
    made = model.generate([[]] * count, max_new_tokens=3, sampling=Sampling(), rng=SequenceRng(1, range(count)))
    assert set(made.network_evaluations) == {3}
    number = (torch.tensor(made.tokens) * torch.tensor([V**2, V, 1])).sum(1)
    seen = torch.bincount(number, minlength=V**3).numpy()
    often = p * count >= 3
    observed, expected = [*seen[often], seen[~often].sum()], [*(p[often] * count), max(p[~often].sum() * count, 1e-9)]
    kept = [i for i, value in enumerate(expected) if value > 1]
    statistic = sum((observed[i] - expected[i]) ** 2 / expected[i] for i in kept)
    assert stats.chi2.sf(statistic, len(kept) - 1) > 1e-3


def test_an_order_that_the_text_chooses_is_no_likelihood():
    """The oracle order, likeliest true token first, gives more than 1 in all."""
    model = under(MDLM, "confidence")
    total = 0.0
    for text in TEXTS.tolist():
        canvas, nats = [model.mask_id] * L, 0.0
        for _ in range(L):
            masked = [i for i in range(L) if canvas[i] == model.mask_id]
            wanted = torch.tensor([[i in masked for i in range(L)]])
            log_p = model.predict(torch.tensor([canvas]), torch.ones(1), wanted).double().log_softmax(1)
            gains = {i: float(log_p[k, text[i]]) for k, i in enumerate(masked)}
            chosen = max(gains, key=lambda i: gains[i])
            canvas[chosen], nats = text[chosen], nats + gains[chosen]
        total += float(torch.tensor(nats, dtype=torch.float64).exp())
    assert total > 1.01


def test_rules_that_a_model_cannot_follow_are_refused():
    config = SEDD.miniature(V + 1, L)
    with pytest.raises(ValueError, match="unmasking=margin: the uniform graph has no masks; possible: any_order"):
        dataclasses.replace(config, graph="uniform", unmasking="margin")
    with pytest.raises(ValueError, match="unmasking_block must be at least 1, found 0"):
        dataclasses.replace(config, unmasking="block_confidence", unmasking_block=0)
    with pytest.raises(ValueError, match="unmasking=block_confidence: it has blocks of its own"):
        dataclasses.replace(BD3LM.miniature(V + 1, L), unmasking="block_confidence")
    with pytest.raises(ValueError, match="a learned schedule"):
        dataclasses.replace(MD4.miniature(V + 1, L), schedule="learned", sampler="ancestral", unmasking="confidence")


@pytest.mark.parametrize("family", [*FAMILIES, BD3LM])
def test_the_cost_is_that_of_a_pass_per_token(family):
    bound, ruled = trained(family).cost(L), under(family, "margin").cost(L)
    assert ruled.train_flops_per_token == bound.train_flops_per_token
    passes = ruled.score_flops_per_token / bound.score_flops_per_token
    assert 0.2 < passes <= 1.0  # of four tokens, or two of a block, against the bound's four draws


def test_of_equals_the_first_is_shown():
    logits_NV = torch.zeros(4, V)
    candidate_BL = torch.tensor([[False, True, True], [True, False, True]])
    assert duel.choose("confidence", logits_NV, candidate_BL).tolist() == [0, 2]
    assert duel.choose("margin", logits_NV, candidate_BL).tolist() == [0, 2]
