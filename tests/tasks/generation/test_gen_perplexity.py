"""Gen PPL by hand: the scorer's own tokens, each scored once, a continuation given its prompt."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ltm import tokenizer
from ltm.errors import UserError
from ltm.harness import HarnessModel
from tasks.generation import gen_perplexity
from tasks.generation.gen_perplexity import gen_ppl_metrics as gen_ppl
from tests.support.harness_models import Bigram, BigramConfig, NoisyBigram, loaded


def harness(model, **options) -> HarnessModel:
    return HarnessModel(pretrained=loaded(model), dtype="float64", headline_only=True, **options)


def nats(model: Bigram, text: str, before: str = "") -> float:
    """log p(text | before), token by token; BOS stands before all."""
    ids = torch.tensor([list((before + text).encode())])
    return float(model.nats_BL(ids)[0, len(before.encode()) :].sum().detach())


def test_texts_are_scored_in_blocks_given_bos_and_every_token_once():
    model = Bigram(BigramConfig(block=16)).double()
    texts = ["a short one", "x" * 16, "one that is longer than a block of sixteen bytes", "", "é"]
    found = gen_perplexity.score(harness(model), "task", texts, [""] * len(texts))
    expected = [sum(nats(model, text[start : start + 16]) for start in range(0, len(text), 16)) for text in texts]
    assert found.nats_N == pytest.approx(expected, rel=1e-12)
    assert found.tokens_N.tolist() == [len(text.encode()) for text in texts]
    assert (found.likelihood, found.kind, found.mc_var_N) == ("exact", "exact", None)


def test_a_continuation_is_scored_given_its_prompt_alone():
    model = Bigram(BigramConfig(block=16)).double()
    pairs = [("abc", "def"), ("a prompt too long for the block", "1234"), ("prompt", "new text longer than a block")]
    found = gen_perplexity.score(harness(model), "task", [new for _, new in pairs], [prompt for prompt, _ in pairs])
    # The second prompt is cut on the left; a bigram sees one token of it anyway. The third text is scored without.
    expected = [nats(model, "def", "abc"), nats(model, "1234", pairs[1][0])]
    expected += [nats(model, pairs[2][1][:16]) + nats(model, pairs[2][1][16:])]
    assert found.nats_N == pytest.approx(expected, rel=1e-12)
    assert found.tokens_N.tolist() == [len(new) for _, new in pairs]


def test_tokens_are_the_scorers_and_one_that_spans_the_seam_is_not_used():
    tokens = tokenizer.build("bpe-260", documents=["th th th th th in in in in"])
    model = Bigram(BigramConfig(vocab_size=tokens.vocab_size)).double()
    import dataclasses

    source = dataclasses.replace(loaded(model), tokenizer=tokens)
    scorer = HarnessModel(pretrained=source, dtype="float64", headline_only=True)
    assert len(tokens.encode("th")) == 1 and len(tokens.encode("t")) == 1
    found = gen_perplexity.score(scorer, "task", ["th", "h"], ["", "t"])
    assert found.tokens_N.tolist() == [1, 1]
    ids = torch.tensor([[*tokens.encode("t"), *tokens.encode("h")]])
    assert found.nats_N[1] == pytest.approx(float(model.nats_BL(ids)[0, 1].detach()), rel=1e-12)


def test_the_corpus_level_number_is_exp_of_totals_and_the_legacy_one_a_mean_of_exps():
    scored = gen_perplexity.ScoredTexts(
        likelihood="exact",
        kind="exact",
        nats_N=np.array([-10.0, -2.0, 0.0]),
        tokens_N=np.array([5, 2, 0]),
        mc_var_N=None,
    )
    headline, legacy = gen_ppl(scored, "ar-tiny")
    assert headline.name == "gen_ppl[ar-tiny]" and headline.value == pytest.approx(math.exp(12 / 7))
    assert headline.kind == "exact" and headline.ci95.low <= headline.value <= headline.ci95.high
    assert headline.n == 2 and "samples" in headline.ci95.method and headline.likelihood is None
    assert legacy.name == "gen_ppl_mean_of_exp[ar-tiny]" and legacy.kind == "estimate"
    assert legacy.value == pytest.approx((math.exp(2) + math.exp(1)) / 2)
    assert not (headline.headline or legacy.headline)


def test_numbers_beyond_all_floats_are_refused_and_no_text_has_no_number():
    empty = np.zeros(2)
    common = {"likelihood": "exact", "kind": "exact", "mc_var_N": None}
    wild = gen_perplexity.ScoredTexts(nats_N=np.array([-1e4, -1.0]), tokens_N=np.array([1, 1]), **common)
    with pytest.raises(UserError, match="no Gen PPL by x: perplexity exp"):
        gen_ppl(wild, "x")
    silent = gen_perplexity.ScoredTexts(nats_N=empty, tokens_N=empty.astype(int), **common)
    assert gen_ppl(silent, "x") == []


def test_a_scorer_with_a_bound_is_marked_and_has_monte_carlo_error():
    scorer = harness(NoisyBigram(BigramConfig(block=16)).double())
    found = gen_perplexity.score(scorer, "task", ["some text", "more text of it"], ["", ""])
    assert (found.likelihood, found.kind) == ("elbo", "lower_bound") and (found.mc_var_N > 0).all()
    metric = gen_ppl(found, "noisy")[0]
    assert metric.kind == "lower_bound" and metric.stderr_mc > 0
    # Answers are kept: the same again, without the model.
    calls = scorer.loaded.model.calls
    again = gen_perplexity.score(scorer, "task", ["some text", "more text of it"], ["", ""])
    assert scorer.loaded.model.calls == calls and (again.nats_N == found.nats_N).all()


def test_a_models_own_samples_cost_it_what_their_entropy_says():
    """-E log p of a model's own samples is its entropy, exactly computable for a bigram by its powers."""
    from ltm.api import Sampling
    from ltm.rng import SequenceRng

    model = Bigram(BigramConfig(block=16)).double()
    p_VV = model.logits.detach().softmax(1)
    own_V = -(p_VV * p_VV.log()).sum(1)
    state_V, entropy = torch.eye(258, dtype=torch.float64)[257], 0.0
    for _ in range(8):
        entropy += float(state_V @ own_V)
        state_V = torch.cat([state_V @ p_VV, torch.zeros(1, dtype=torch.float64)])
    # As ids: bytes of samples need not be characters.
    rng = SequenceRng(0, range(400))
    drawn = model.generate([[]] * 400, max_new_tokens=8, sampling=Sampling(), rng=rng).tokens
    nats_N = model.nats_BL(torch.tensor(drawn)).sum(1).detach()
    assert float(-nats_N.mean()) == pytest.approx(entropy, abs=4 * float(nats_N.std()) / 20)
