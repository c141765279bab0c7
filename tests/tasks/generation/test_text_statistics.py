"""Statistics of texts against cases counted by hand and against what must hold of any text."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tasks.generation import text_statistics as ts


def words(text: str) -> list[str]:
    return text.split()


@pytest.mark.parametrize(
    ("text", "nats"),
    [
        ("a", 0.0),
        ("a a a a", 0.0),
        ("a b", math.log(2)),
        ("a b c d", math.log(4)),
        ("a a b b", math.log(2)),
        ("a a a b", 0.75 * math.log(4 / 3) + 0.25 * math.log(4)),
    ],
)
def test_entropy_by_hand(text, nats):
    assert ts.unigram_entropy(words(text)) == pytest.approx(nats, abs=1e-15)
    assert ts.unigram_entropy(np.array([hash(w) for w in words(text)]).tolist()) == pytest.approx(nats, abs=1e-15)


def test_entropy_is_at_most_the_log_of_the_length_and_order_does_not_matter():
    rng = np.random.default_rng(0)
    for _ in range(50):
        text = rng.integers(0, 20, rng.integers(1, 60)).tolist()
        found = ts.unigram_entropy(text)
        assert 0 <= found <= math.log(len(text)) + 1e-12
        assert ts.unigram_entropy(sorted(text)) == pytest.approx(found, abs=1e-12)


def test_entropy_of_nothing_is_refused():
    with pytest.raises(ValueError, match="empty text"):
        ts.unigram_entropy([])


@pytest.mark.parametrize(
    ("text", "order", "share"),
    [
        ("a b c d e", 4, 0.0),
        ("a a a a a", 1, 0.8),
        ("a b a b", 2, 1 / 3),
        ("a b c a b c a b c", 4, 0.5),
        ("a b c d", 4, 0.0),
    ],
)
def test_repeated_ngrams_by_hand(text, order, share):
    assert ts.repeated_ngrams(words(text), order) == pytest.approx(share)


def test_a_text_without_an_ngram_has_no_share_of_them():
    with pytest.raises(ValueError, match="at least 4 tokens, found 3"):
        ts.repeated_ngrams(words("a b c"), 4)


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("a b c d a b c d", True),
        ("x y a b c a b c", True),
        ("a b c a b c x", False),  # the loop was left
        ("a b a b a b a b", True),  # a loop of two, found as one of four
        ("x a a a a a a", True),
        ("a b a b", False),  # two tokens said twice are no loop yet
        ("a b c d e f", False),
        ("a b c a b", False),
        ("", False),
    ],
)
def test_repetition_at_the_end(text, loops):
    assert ts.ends_in_repetition(words(text)) is loops


def test_distinct_by_hand():
    texts = [words("a b a"), words("b c")]
    assert ts.distinct(texts, 1).value == pytest.approx(3 / 5)
    assert ts.distinct(texts, 2).value == pytest.approx(3 / 3)
    assert ts.distinct(texts, 3).value == 1.0
    with pytest.raises(ValueError, match="no text of at least 4 tokens"):
        ts.distinct(texts, 4)


def test_the_jackknife_of_distinct_is_that_of_leaving_texts_out_one_by_one():
    rng = np.random.default_rng(1)
    texts = [rng.integers(0, 30, 12).tolist() for _ in range(15)]
    for order in (1, 2):
        without = np.array([ts.distinct(texts[:i] + texts[i + 1 :], order).value for i in range(len(texts))])
        expected = math.sqrt((len(texts) - 1) / len(texts) * ((without - without.mean()) ** 2).sum())
        assert ts.distinct(texts, order).stderr == pytest.approx(expected, rel=1e-12)
    assert ts.distinct(texts[:1], 1).stderr is None


def test_the_jackknife_is_no_smaller_than_the_spread_between_sets_and_of_its_size():
    rng = np.random.default_rng(2)
    found = [ts.distinct(rng.integers(0, 200, (30, 20)).tolist(), 1) for _ in range(200)]
    spread = np.std([f.value for f in found], ddof=1)
    assert 0.9 * spread < np.mean([f.stderr for f in found]) < 2.5 * spread


@pytest.mark.parametrize(
    ("hypothesis", "reference", "expected"),
    [
        ("a b c d e", "a b c d e", 1.0),
        ("a b c d", "w x y z", 0.0),
        ("", "a b", 0.0),
        # Precisions 3/4, (1 + 1)/(3 + 1), 1/3, 1/2; equal lengths.
        ("a b x c", "a b c d", (3 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25),
        # One token: order 1 alone, and the penalty exp(1 - 4 / 1).
        ("a", "a b c d", math.exp(-3)),
        # Clipping: of three a's one counts.
        ("a a a", "a b c", (1 / 3 * 1 / 3 * 1 / 2) ** (1 / 3)),
    ],
)
def test_bleu_by_hand(hypothesis, reference, expected):
    assert ts.bleu(words(hypothesis), words(reference)) == pytest.approx(expected, rel=1e-12)


def test_bleu_agrees_with_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu, which lm-eval brings, is not installed")
    judge = sacrebleu.BLEU(smooth_method="add-k", smooth_value=1, effective_order=True, tokenize="none")
    rng = np.random.default_rng(3)
    for _ in range(100):
        a, b = ([str(w) for w in rng.integers(0, 6, rng.integers(4, 25))] for _ in range(2))
        assert 100 * ts.bleu(a, b) == pytest.approx(judge.sentence_score(" ".join(a), [" ".join(b)]).score, abs=1e-9)


def test_self_bleu_is_the_mean_over_all_ordered_pairs_and_a_sample_of_them_estimates_it():
    rng = np.random.default_rng(4)
    texts = [rng.integers(0, 5, 15).tolist() for _ in range(25)]
    every = [ts.bleu(a, b) for i, a in enumerate(texts) for j, b in enumerate(texts) if i != j]
    assert ts.self_bleu(texts).value == pytest.approx(np.mean(every), rel=1e-12)
    sampled = ts.self_bleu(texts, most_pairs=200)
    assert sampled.value == pytest.approx(np.mean(every), abs=4 * np.std(every) / math.sqrt(200))
    assert sampled == ts.self_bleu(texts, most_pairs=200)


def test_self_bleu_of_one_text_said_again_and_again_is_one_and_of_strangers_zero():
    assert ts.self_bleu([words("a b c d e")] * 4).value == pytest.approx(1.0)
    assert ts.self_bleu([words("a b c d"), words("e f g h"), words("i j k l")]).value == 0.0
    with pytest.raises(ValueError, match="at least two texts"):
        ts.self_bleu([words("a")])


def test_the_error_of_self_bleu_has_the_size_of_the_spread_between_sets():
    rng = np.random.default_rng(5)

    def texts():
        # Texts differ in how narrow their vocabulary is, so pairs that share a text hang together.
        return [rng.integers(0, size, 10).tolist() for size in rng.integers(2, 12, 20)]

    found = [ts.self_bleu(texts()) for _ in range(60)]
    assert np.mean([f.stderr for f in found]) == pytest.approx(np.std([f.value for f in found]), rel=0.35)
