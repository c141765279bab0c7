"""Kneser-Ney against numbers worked out by hand and against a slow implementation with dictionaries."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import random
from collections import defaultdict
from fractions import Fraction

import pytest
import torch
from scipy.stats import chisquare

from baselines.ngram import NGram, NGramConfig
from ltm import registry, train_cli
from ltm.api import Sampling
from ltm.errors import UserError
from ltm.result import find_results, read_result
from ltm.rng import SequenceRng
from ltm.testing.miniatures import all_texts
from ltm.training import checkpoint
from ltm.training.counting import train_by_counting
from tasks import cli
from tests.support.miniature_runs import RECIPE, dataset, text, tokenizer

A, B = 0, 1
TEXTS = [[A, A, B], [A, A, B], [A, B, A]]


def counted(texts, *, order: int, vocab_size: int, max_length: int = 128) -> NGram:
    model = NGram(NGramConfig(vocab_size=vocab_size, order=order, max_length=max_length))
    for tokens in texts:
        model.count(torch.tensor([tokens]))
    model.finish()
    return model


def conditional(model: NGram, before: list[int]) -> torch.Tensor:
    """p of every token after these, from scoring."""
    texts = torch.tensor([[*before, token] for token in range(model.vocab_size - 1)])
    rng = SequenceRng(0, range(len(texts)))
    return model.log_likelihood(texts, context=len(before), rng=rng).nats_B.exp()


def by_decoding(model: NGram, before: list[int]) -> torch.Tensor:
    """The same, from decoding."""
    text = torch.tensor([[model.vocab_size - 1, *before]])
    return model.decode(text, 0, None, None)[0][0].exp()


def expect(model: NGram, before: list[int], *p: Fraction) -> None:
    expected = torch.tensor([float(x) for x in p], dtype=torch.float64)
    for found in (conditional(model, before), by_decoding(model, before)):
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


def test_bigrams_by_hand():
    # BOS a a b, twice, and BOS a b a.
    # Bigrams: BOS a 3, a a 2, a b 3, b a 1. One is seen once, one twice: d = 1 / (1 + 2) = 1/3.
    # Unigrams: a follows BOS, a and b, so 3; b follows a alone, so 1. None is seen twice, so d = 1/2.
    #   p(a) = 5/2 / 4 + 1/2 * 2/4 * 1/2 = 3/4, p(b) = 1/2 / 4 + 1/8 = 1/4.
    model = counted(TEXTS, order=2, vocab_size=3)
    F = Fraction
    #   p(a | BOS) = 8/3 / 3 + 1/3 * 1/3 * 3/4
    expect(model, [], F(35, 36), F(1, 36))
    #   p(a | a) = 5/3 / 5 + 1/3 * 2/5 * 3/4, p(b | a) = 8/3 / 5 + 2/15 * 1/4
    expect(model, [A], F(13, 30), F(17, 30))
    #   p(a | b) = 2/3 / 1 + 1/3 * 1/1 * 3/4
    expect(model, [A, B], F(11, 12), F(1, 12))


def test_trigrams_by_hand():
    # Trigrams: BOS a a 2, BOS a b 1, a a b 2, a b a 1: d = 2 / (2 + 4) = 1/3.
    # Bigrams: BOS a keeps its 3; a a follows BOS, 1; a b follows BOS and a, 2; b a follows a, 1: d = 2 / (2 + 2) = 1/2.
    # Unigrams as above.
    model = counted(TEXTS, order=3, vocab_size=3)
    F = Fraction
    #   p(a | BOS) = 5/2 / 3 + 1/2 * 1/3 * 3/4: there is no longer context
    expect(model, [], F(23, 24), F(1, 24))
    #   p(a | a) = 1/2 / 3 + 1/2 * 2/3 * 3/4 = 5/12, p(b | a) = 3/2 / 3 + 1/3 * 1/4 = 7/12
    #   p(a | BOS a) = 5/3 / 3 + 1/3 * 2/3 * 5/12, p(b | BOS a) = 2/3 / 3 + 2/9 * 7/12
    expect(model, [A], F(35, 54), F(19, 54))
    #   p(b | a a) = 5/3 / 2 + 1/3 * 1/2 * 7/12
    expect(model, [A, A], F(5, 72), F(67, 72))
    #   p(a | b) = 1/2 / 1 + 1/2 * 3/4 = 7/8, p(a | a b) = 2/3 / 1 + 1/3 * 7/8
    expect(model, [A, B], F(23, 24), F(1, 24))
    #   Nothing follows b a: p(. | a)
    expect(model, [A, B, A], F(5, 12), F(7, 12))


def test_uniform_and_unigrams_in_closed_form():
    texts = [[0, 0, 0, 1], [2, 2, 0, 3]]
    uniform = counted(texts, order=0, vocab_size=7)
    torch.testing.assert_close(conditional(uniform, [0, 5]), torch.full((6,), 1 / 6, dtype=torch.float64))
    # Counts 4 1 2 1 0 0: d = 2 / (2 + 2).
    unigram = counted(texts, order=1, vocab_size=7)
    expected = torch.tensor([3.5, 0.5, 1.5, 0.5, 0, 0], dtype=torch.float64) / 8 + 0.5 * 4 / 8 / 6
    for before in ([], [3, 3]):
        torch.testing.assert_close(conditional(unigram, before), expected)
        torch.testing.assert_close(by_decoding(unigram, before), expected)


def slow_kneser_ney(texts: list[list[int]], order: int, outputs: int):
    """p(w, h) from dictionaries, h a tuple that begins with "BOS" or is as long as the order allows."""
    streams = [("BOS", *tokens) for tokens in texts]
    raw: dict[tuple, int] = defaultdict(int)
    for stream in streams:
        for end in range(1, len(stream)):
            for start in range(max(0, end - order + 1), end + 1):
                raw[stream[start : end + 1]] += 1
    before = defaultdict(set)
    for stream in streams:
        for end in range(1, len(stream)):
            for start in range(1, end + 1):
                before[stream[start : end + 1]].add(stream[start - 1])
    count = {
        gram: times if len(gram) == order or gram[0] == "BOS" else len(before[gram]) for gram, times in raw.items()
    }
    discount = {}
    for n in range(1, order + 1):
        ones, twos = (sum(c == k for gram, c in count.items() if len(gram) == n) for k in (1, 2))
        discount[n] = ones / (ones + 2 * twos) if ones and twos else 0.5

    @functools.cache
    def p(word: int, context: tuple) -> float:
        lower = p(word, context[1:]) if context else 1 / outputs
        followers = {gram: c for gram, c in count.items() if len(gram) == len(context) + 1 and gram[:-1] == context}
        total = sum(followers.values())
        if not total:
            return lower
        d = discount[len(context) + 1]
        own = max(followers.get((*context, word), 0) - d, 0)
        return (own + d * len(followers) * lower) / total

    return lambda word, history: p(word, ("BOS", *history)[-(order - 1) :])


@pytest.mark.parametrize("order", [2, 4])
def test_agrees_with_dictionaries(order):
    choose = random.Random(order)
    texts = [choose.choices(range(5), weights=(9, 4, 2, 1, 1), k=12) for _ in range(6)]
    model, slow = counted(texts, order=order, vocab_size=7), slow_kneser_ney(texts, order, 6)
    unseen = [choose.choices(range(6), k=12) for _ in range(4)]
    rng = SequenceRng(0, range(10))
    found = model.log_likelihood(torch.tensor(texts + unseen), rng=rng).nats_B
    for tokens, nats in zip(texts + unseen, found.tolist(), strict=True):
        expected = math.fsum(math.log(slow(tokens[i], tuple(tokens[:i]))) for i in range(len(tokens)))
        assert nats == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("order", range(6))
def test_probabilities_sum_to_one(order):
    texts = torch.randint(9, (20, 15), generator=torch.Generator().manual_seed(order)).tolist()
    model = counted(texts, order=order, vocab_size=12)
    # Seen contexts, and with tokens 9 and 10 unseen ones.
    for before in ([], texts[0][:1], texts[3][:7], [9], [10, 0, 9, 9, 10], [texts[1][0], 9]):
        p_V, decoded_V = conditional(model, before), by_decoding(model, before)
        assert float(p_V.sum()) == pytest.approx(1, abs=1e-12) and float(p_V.min()) > 0
        torch.testing.assert_close(decoded_V, p_V, rtol=1e-12, atol=0)
    small = counted([[t % 3 for t in tokens[:4]] for tokens in texts], order=order, vocab_size=4)
    every = all_texts(3, 4)
    mass = small.log_likelihood(every, rng=SequenceRng(0, range(len(every)))).nats_B.exp().sum()
    assert float(mass) == pytest.approx(1, abs=1e-12)


def test_no_dtype_changes_a_score_and_untrained_is_uniform():
    texts = torch.randint(9, (20, 15), generator=torch.Generator().manual_seed(0))
    rng = SequenceRng(0, range(20))
    untrained = NGram(NGramConfig(vocab_size=12, order=3))
    assert float(untrained.log_likelihood(texts, rng=rng).nats_B[0]) == pytest.approx(-15 * math.log(11))
    model = counted(texts.tolist(), order=3, vocab_size=12)
    nats = model.log_likelihood(texts, rng=rng).nats_B
    torch.testing.assert_close(model.bfloat16().log_likelihood(texts, rng=rng).nats_B, nats, rtol=0, atol=0)


def test_blocks_shorter_than_the_order():
    model = counted([[0], [0], [1]], order=5, vocab_size=4)
    assert float(conditional(model, []).sum()) == pytest.approx(1)
    assert float(conditional(model, [0, 1, 2, 0, 1, 2]).sum()) == pytest.approx(1)


def test_samples_follow_the_scores_and_greedy_takes_the_largest():
    generator = torch.Generator().manual_seed(0)
    model = counted(torch.randint(3, (10, 4), generator=generator).tolist(), order=3, vocab_size=4)
    texts, count = all_texts(3, 3), 4000
    p = model.log_likelihood(texts, rng=SequenceRng(0, range(len(texts)))).nats_B.exp()
    drawn = model.generate([[]] * count, max_new_tokens=3, sampling=Sampling(), rng=SequenceRng(1, range(count)))
    found = torch.bincount(torch.tensor(drawn.tokens) @ torch.tensor([9, 3, 1]), minlength=27)
    assert chisquare(found.numpy(), (p * count).numpy()).pvalue > 0.001
    greedy = model.generate([[1]], max_new_tokens=2, sampling=Sampling(temperature=0), rng=SequenceRng(0, [0]))
    first = int(conditional(model, [1]).argmax())
    assert greedy.tokens == [[first, int(conditional(model, [1, first]).argmax())]]
    with pytest.raises(ValueError, match="reinfer_every"):
        model.generate([[]], max_new_tokens=1, sampling=Sampling(reinfer_every=1), rng=SequenceRng(0, [0]))


@pytest.mark.parametrize(("order", "length"), [(0, 8), (1, 8), (4, 8), (4, 2)])
def test_checkpoints_keep_every_bit(order, length, tmp_path):
    texts = torch.randint(250, (6, length), generator=torch.Generator().manual_seed(0))
    model = counted(texts.tolist(), order=order, vocab_size=258)
    folder = checkpoint.save(
        tmp_path, 1, name="ngram-mini", model=model, tokenizer=tokenizer(), weights=model.state_dict(), state={},
        training={"complete": True},
    )  # fmt: skip
    again = checkpoint.load(folder).model
    rng = SequenceRng(0, range(6))
    torch.testing.assert_close(
        again.log_likelihood(texts, rng=rng).nats_B, model.log_likelihood(texts, rng=rng).nats_B, rtol=0, atol=0
    )
    assert again.cost(length) == model.cost(length)
    if order == 4:
        with pytest.raises(UserError, match="does not fit its config"):
            checkpoint.load(folder, settings=["order=3"])


def test_bad_settings():
    for settings in ({"order": -1}, {"max_length": 1}):
        with pytest.raises(ValueError, match="must be at least"):
            NGramConfig(**settings)
    model = NGram(NGramConfig(vocab_size=4, order=2))
    with pytest.raises(ValueError, match="nothing was counted"):
        model.finish()
    with pytest.raises(ValueError, match=r"outside 0\.\.2"):
        model.count(torch.tensor([[3]]))


def test_counts_the_batches_that_training_would_see(tmp_path):
    data = dataset(tmp_path)
    arguments = {"provenance": {"corpus": "toy"}}

    def run(place, config):
        model = NGram(NGramConfig(vocab_size=258, order=2, max_length=data.block_length + 1))
        folder = train_by_counting("ngram-mini", model, data, tokenizer(), config, tmp_path / place, **arguments)
        return checkpoint.load(folder)

    # Two updates of two batches of four blocks; the budget of RECIPE would go through the text more than once.
    short = dataclasses.replace(RECIPE, budget=f"tokens={2 * 8 * data.block_length}")
    found = run("short", short)
    blocks, _ = data.batch(0, 16, seed=0)
    expected = counted(blocks.tolist(), order=2, vocab_size=258, max_length=data.block_length + 1)
    assert all(torch.equal(v, expected.state_dict()[k]) for k, v in found.model.state_dict().items())
    training = found.info["training"]
    assert (training["steps"], training["tokens"]) == (2, 16 * data.block_length) and training["complete"]
    whole = run("whole", dataclasses.replace(RECIPE, budget="tokens=1M")).info["training"]
    assert whole["tokens"] == data.blocks * data.block_length and whole["flops"] == 2 * whole["tokens"]
    assert run("timed", dataclasses.replace(RECIPE, budget="seconds=1e-9")).info["training"]["steps"] == 1
    with pytest.raises(UserError, match="holds another run: its batch is 4"):
        run("short", dataclasses.replace(short, batch=2))


def test_ctrl_c_says_that_nothing_is_kept(tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    model = NGram(NGramConfig(vocab_size=258, order=2, max_length=9))
    with pytest.raises(KeyboardInterrupt, match="starts over"):
        train_by_counting(
            "n", model, dataset(tmp_path), tokenizer(), RECIPE, tmp_path / "n", provenance={}, report=stop
        )
    assert not checkpoint.steps(tmp_path / "n")


def test_from_training_to_a_result(tmp_path, monkeypatch, capsys):
    for name, seed in (("train", 0), ("validation", 1)):
        (tmp_path / "data" / "ptb").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "ptb" / f"{name}.txt").write_text("".join(text(60, seed=seed)))
    monkeypatch.setenv("LTM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LTM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    perplexity = {}
    for order in (0, 1, 4):
        place = str(tmp_path / f"order{order}")
        train = ["ngram-tiny", "--corpus", "ptb", "--tokenizer", "bytes", "--output", place]
        assert train_cli.main([*train, "--set", f"order={order}"]) == 0
        assert train_cli.main([*train, "--set", f"order={order}"]) == 0  # there is nothing left to do
        assert (
            cli.main(["--model", "ngram-tiny", "--tasks", "ptb", "--checkpoint", place, "--output", f"r{order}"]) == 0
        )
        (path,) = find_results(tmp_path / f"r{order}")
        result = read_result(path)
        metric = result.metric("token_perplexity")
        assert metric.kind == "exact" and result.model["family"] == "ngram" and result.status == "complete"
        assert json.loads(path.read_text())["cost"]["train_flops_per_token"] == max(1, order)
        perplexity[order] = metric.value
    assert perplexity[0] == pytest.approx(257)
    assert 6 < perplexity[1] < 24 and perplexity[4] < perplexity[1] / 2
    assert "loss" not in capsys.readouterr().err


def test_presets():
    for name, order in (("tiny", 5), ("unigram-tiny", 1), ("uniform-tiny", 0), ("small", 5)):
        cls, preset = registry.preset(f"ngram-{name}")
        assert cls is NGram and preset.config.order == order
