"""Known sources: probabilities sum to one and are those of the texts drawn, entropies agree, names read back."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from ltm.data import corpora
from ltm.data.corpora import SIZES
from ltm.errors import UserError
from ltm.known_sources.base import EDITION, KnownSource, from_settings, recorded
from ltm.known_sources.copying import Copy
from ltm.known_sources.sums import Arith
from ltm.known_sources.topics import Topics, parameters

TINY = [
    Topics(length=4, words=3, topics=3, classes=2),
    Topics(length=3, words=4, topics=1, classes=1),
    Topics(length=1, words=5, topics=2, classes=3),
    Copy(length=6, characters=3, noise=0.2),
    Copy(length=4, characters=4, noise=0.0),
    Copy(length=2, characters=2, noise=0.9, chain_scale=0.0),
]
SUMS = [Arith(length=8, digits=1, noise=0.3), Arith(length=7, digits=1)]
FINGERPRINTS = {"topics": "ce79935fde3b4af2", "copy": "ed70085eb52474fb", "arith": "44d892b07f432965"}
DEFAULTS = [Topics(), Copy(), Arith()]


def spec(source: KnownSource) -> str:
    return source.spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Coins(KnownSource):
    """A source of a user's own, which says no more than it must: independent coins."""

    name: ClassVar[str] = "coins"
    length: int = 4
    heads: float = 0.3

    @property
    def alphabet(self) -> str:
        return "HT"

    @property
    def numbers(self) -> int:
        return self.length

    def draw(self, uniforms: Tensor) -> Tensor:
        return (uniforms >= self.heads).long()

    def log_mass(self, symbols_NL: Tensor) -> Tensor:
        return torch.tensor([self.heads, 1 - self.heads], dtype=torch.float64).log()[symbols_NL].sum(1)


@pytest.mark.parametrize("source", TINY, ids=spec)
def test_all_texts_together_have_mass_one(source: KnownSource) -> None:
    texts = source.every_text()
    assert len(texts) == len(source.alphabet) ** source.length
    assert float(source.log_likelihood(texts).exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("source", SUMS, ids=spec)
def test_all_sums_together_have_mass_one(source: Arith) -> None:
    # 13 symbols are too many for all texts: those with the signs in place, since others have no mass (below).
    texts = [f"{a}+{b}={c:02d};".ljust(source.length, ";") for a in range(10) for b in range(10) for c in range(100)]
    log_r = source.log_likelihood(source.symbols(texts))
    assert float(log_r.exp().sum()) == pytest.approx(1, abs=1e-12)
    if not source.noise:
        right = [(n // 1000 + n // 100 % 10) == n % 100 for n in range(10_000)]
        assert (log_r > -math.inf).tolist() == right


@pytest.mark.parametrize("source", [*TINY, *SUMS], ids=spec)
def test_texts_come_as_often_as_their_likelihood_says(source: KnownSource) -> None:
    drawn = source.sample(20_000, seed=5)
    texts, counts = drawn.unique(dim=0, return_counts=True)
    expected = source.log_likelihood(texts).exp() * len(drawn)
    assert (expected > 0).all()
    # Rare texts, and those that never came, are one bin.
    often = expected >= 20
    rest = [len(drawn) - float(counts[often].sum())], [len(drawn) - float(expected[often].sum())]
    observed, wanted = counts[often].tolist() + rest[0], expected[often].tolist() + rest[1]
    if wanted[-1] < 1e-6:
        assert observed.pop() == 0
        wanted.pop()
    assert len(wanted) > 1 and chisquare(observed, wanted, sum_check=False).pvalue > 0.001


@pytest.mark.parametrize("source", TINY, ids=spec)
def test_computed_entropy_is_that_of_all_texts(source: KnownSource) -> None:
    p = source.log_likelihood(source.every_text()).exp()
    assert source.entropy().stderr == 0
    assert source.entropy().nats_per_text == pytest.approx(float(torch.special.entr(p).sum()), abs=1e-12)


@pytest.mark.parametrize("source", [*DEFAULTS, Arith(noise=0.1), Copy(noise=0.3, chain_scale=0)], ids=spec)
def test_entropy_of_large_sources_is_that_of_their_texts(source: KnownSource) -> None:
    nats = -source.log_likelihood(source.sample(1_000, seed=8))
    entropy = source.entropy()
    spread = math.hypot(float(nats.std()) / math.sqrt(len(nats)), entropy.stderr)
    assert abs(float(nats.mean()) - entropy.nats_per_text) < 4 * spread + 1e-9
    assert entropy.stderr < 0.002 * source.length


def test_a_source_that_says_no_entropy_has_it_enumerated_or_estimated() -> None:
    one = -0.3 * math.log(0.3) - 0.7 * math.log(0.7)
    exact, estimate = Coins().entropy(), Coins(length=64).entropy()
    assert exact.nats_per_text == pytest.approx(4 * one) and exact.stderr == 0
    assert 0 < estimate.stderr < 0.1
    assert abs(estimate.nats_per_text - 64 * one) < 4 * estimate.stderr


def test_estimated_entropy_of_topics_agrees_with_enumeration() -> None:
    # One word too long to be enumerated by itself: 2^17 texts.
    source = Topics(length=17, words=2, topics=3, classes=2, topic_scale=2.0)
    log_r = source.log_likelihood(source.every_text())
    entropy = source.entropy()
    assert float(log_r.exp().sum()) == pytest.approx(1, abs=1e-11)
    assert 0 < entropy.stderr < 0.05
    assert abs(entropy.nats_per_text + float((log_r.exp() * log_r).sum())) < 4 * entropy.stderr


def test_forward_recursion_is_the_sum_over_hidden_paths() -> None:
    source = Topics(length=4, words=3, topics=3, classes=2)
    words_ZCW, chain_ZCC, first_ZC = (table.tolist() for table in parameters(source)[:3])
    for text, log_r in zip(source.every_text().tolist(), source.log_likelihood(source.every_text()), strict=True):
        total = 0.0
        for z, path in itertools.product(range(3), itertools.product(range(2), repeat=4)):
            mass = first_ZC[z][path[0]] / 3 * words_ZCW[z][path[0]][text[0]]
            for step in range(1, 4):
                mass *= chain_ZCC[z][path[step - 1]][path[step]] * words_ZCW[z][path[step]][text[step]]
            total += mass
        assert math.log(total) == pytest.approx(float(log_r), abs=1e-12)


def test_topics_are_stationary_and_their_classes_matter() -> None:
    source = Topics(length=4, words=3, topics=3, classes=2)
    p = source.log_likelihood(source.every_text()).exp().view(3, 3, 3, 3)
    pairs = [p.sum((2, 3)), p.sum((0, 3)), p.sum((0, 1))]
    for pair in pairs[1:]:
        torch.testing.assert_close(pair, pairs[0], rtol=0, atol=1e-12)
    assert (pairs[0] - pairs[0].sum(0) * pairs[0].sum(1, keepdim=True)).abs().max() > 0.01


def test_entropies_of_topics_for_less_and_more_knowledge() -> None:
    source = Topics(length=5, words=3, topics=3, classes=2)
    p = source.log_likelihood(source.every_text()).exp()
    begun = [0.0] + [float(torch.special.entr(p.view(3**n, -1).sum(1)).sum()) for n in range(1, 6)]
    step = [after - before for before, after in itertools.pairwise(begun)]
    for context in (1, 2, 3):
        windowed = source.windowed_entropy(context)
        exact = sum(step[min(position, context)] for position in range(5))
        assert abs(windowed.nats_per_text - exact) < 4 * windowed.stderr < 0.1
    assert source.windowed_entropy(4) == source.windowed_entropy(9) == source.entropy()
    given = source.entropy_given_topic()
    each = source.log_prefixes(source.every_text())[:, :, -1].exp()
    assert abs(given.nats_per_text - float(torch.special.entr(each).sum() / 3)) < 4 * given.stderr < 0.1


def test_what_a_copy_is_worth() -> None:
    # Uniform and free of noise, the copy is all that tells the second half, and worth log C for each symbol.
    source = Copy(length=8, characters=5, noise=0.0, chain_scale=0.0)
    assert source.entropy().nats_per_text == pytest.approx(4 * math.log(5))
    assert source.uncopied_entropy().nats_per_text == pytest.approx(8 * math.log(5))
    # Noise that leaves nothing of the first half makes the copy worthless.
    lost = Copy(length=8, characters=5, noise=0.8)
    assert lost.uncopied_entropy().nats_per_text == pytest.approx(lost.entropy().nats_per_text)


def test_sums_are_right_unless_noise_says_otherwise() -> None:
    for source in (Arith(), Arith(length=30, digits=2)):
        for text in source.texts(source.sample(50, seed=1)):
            sums = text.rstrip(";").split(";")
            assert len(sums) == source.sums
            for written in sums:
                operands, _, result = written.partition("=")
                assert sum(map(int, operands.split("+"))) == int(result) and len(result) == source.digits + 1
    noisy = Arith(length=1600, noise=0.2)
    wrong = [
        digit != right
        for text in noisy.texts(noisy.sample(20, seed=1))
        for operands, _, result in (written.partition("=") for written in text.rstrip(";").split(";"))
        for digit, right in zip(result, f"{sum(map(int, operands.split('+'))):05d}", strict=True)
    ]
    assert sum(wrong) / len(wrong) == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / len(wrong)))


@pytest.mark.parametrize("source", [*DEFAULTS, Arith(noise=0.1)], ids=spec)
def test_no_likelihood_outside_the_support(source: KnownSource) -> None:
    (text,) = source.texts(source.sample(1, seed=0))
    other = source.symbols([f" {text[1:]}", f"{text[:-1]}é", text])
    assert (other[0, 0], other[1, -1]) == (-1, -1)
    log_r = source.log_likelihood(other)
    assert log_r[:2].tolist() == [-math.inf] * 2 and math.isfinite(log_r[2])
    beyond = other[2:].clone()
    beyond[0, 5] = len(source.alphabet)
    assert source.log_likelihood(beyond).tolist() == [-math.inf]


@pytest.mark.parametrize(
    "text", ["1+1=02;;;", "1+1=03;;", "1+1=2;;;", "1+1;02;;", "11+1=12;", "1=1+02;;", "1+1=02;+", "+;+;=+=;"]
)
def test_no_likelihood_of_what_is_no_sum(text: str) -> None:
    source = Arith(length=len(text), digits=1)
    assert float(source.log_likelihood(source.symbols([text]))) == (
        -math.inf if text != "1+1=02;;;" else pytest.approx(-2 * math.log(10))
    )


def test_no_likelihood_of_a_changed_copy_without_noise() -> None:
    source = Copy(length=4, characters=3, noise=0.0)
    changed = source.log_likelihood(source.symbols(["abab", "abac"]))
    assert math.isfinite(changed[0]) and changed[1] == -math.inf


def test_symbols_are_bytes_and_shapes_are_checked() -> None:
    for source in DEFAULTS:
        assert source.alphabet.isascii() and source.alphabet.isprintable() and " " not in source.alphabet
        drawn = source.sample(30, seed=3)
        assert drawn.dtype == torch.int64 and drawn.shape == (30, source.length)
        assert torch.equal(source.symbols(source.texts(drawn)), drawn)
        with pytest.raises(UserError, match=f"{source.name}: its texts have 128 symbols, found one of 127"):
            source.symbols(["a" * 127])
        with pytest.raises(ValueError, match="has 128 symbols, found shape"):
            source.log_likelihood(drawn[:, 1:])


@pytest.mark.parametrize("source", DEFAULTS, ids=spec)
def test_a_text_depends_on_seed_purpose_and_index_only(source: KnownSource) -> None:
    many = source.sample(600, seed=2, purpose="audit")
    assert torch.equal(source.sample(300, seed=2, purpose="audit"), many[:300])
    assert torch.equal(torch.cat(list(map(source.draw, source.uniforms(600, seed=2, purpose="audit", rows=7)))), many)
    others = [source.sample(600, seed=3, purpose="audit"), source.sample(600, seed=2, purpose="train")]
    for other in others:
        assert not (other == many).all(1).any()


@pytest.mark.parametrize("source", DEFAULTS, ids=spec)
def test_splits_are_corpora(source: KnownSource) -> None:
    name = f"{source.name}:length=64"
    short = from_settings(name)
    splits = {split: corpora.load(name, split) for split in SIZES}
    for split, found in splits.items():
        assert len(found.documents) == SIZES[split] and found.bytes == 64 * SIZES[split]
        assert (found.corpus, found.split, found.unit) == (name, split, "sequence")
        assert list(found.documents[:5]) == short.texts(short.sample(5, seed=0, purpose=split))
        assert recorded(found.source) == short
    texts = [set(found.documents) for found in splits.values()]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    assert corpora.load(f"{source.name}:length=66", "test").fingerprint != splits["test"].fingerprint
    with pytest.raises(UserError, match=f"unknown split of {source.name} 'tset'; did you mean test"):
        corpora.load(name, "tset")


def test_texts_are_the_same_everywhere() -> None:
    # Or results would not compare; other texts need another EDITION.
    found = {source.name: corpora.split_of(source, "test").fingerprint[:16] for source in DEFAULTS}
    assert found == FINGERPRINTS


def test_every_setting_is_part_of_the_fingerprint() -> None:
    # Noise that is too rare to strike changes no text.
    one, other = (corpora.load(f"arith:digits=1,length=7{noise}", "test") for noise in ("", ",noise=1e-12"))
    assert one.documents == other.documents and one.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("topics", Topics()),
        ("topics:length=64,words=32", Topics(length=64, words=32)),
        ("topics:class_scale=2,seed=7", Topics(class_scale=2.0, seed=7)),
        ("topics:length=128", Topics()),
        ("copy:noise=1e-05,chain_scale=0", Copy(noise=1e-5, chain_scale=0.0)),
        ("arith:length=7,digits=1", Arith(length=7, digits=1)),
    ],
)
def test_names_with_settings_read_back(text: str, source: KnownSource) -> None:
    found = from_settings(text)
    assert found == source and from_settings(found.spec) == source
    assert from_settings(found.spec).spec == found.spec


def test_only_what_differs_is_named() -> None:
    assert [source.spec for source in DEFAULTS] == ["topics", "copy", "arith"]
    assert from_settings("topics:length=128,words=32").spec == "topics:words=32"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topisc", "unknown source 'topisc'; did you mean topics"),
        ("pydocs", "unknown source 'pydocs'; did you mean topics"),
        ("topics:lenght=3", "unknown setting in topics 'lenght'; did you mean length"),
        ("topics:length=ten", "topics.length: expected int, found 'ten'"),
        ("topics:length", "expected field=value after the colon, as in topics:length=64, found 'length'"),
        ("topics:words=95", "topics: words must be from 2 to 94"),
        ("topics:topics=0", "topics and classes must be at least 1, and their product at most 4096"),
        ("topics:length=4097", "topics: length must be from 1 to 4096, found 4097"),
        ("topics:chain_scale=nan", "expected a finite number"),
        ("topics:chain_scale=6", "must be from 0 to 5"),
        ("copy:length=5", "copy: length must be even"),
        ("copy:characters=1", "copy: characters must be from 2"),
        ("copy:noise=1", r"copy: noise must be in \[0, 1\), found 1.0"),
        ("arith:digits=0", "arith: digits must be from 1"),
        ("arith:digits=2,length=9", "arith: length must be from 10, that of one sum, to 4096, found 9"),
    ],
)
def test_mistakes_in_names_are_said(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_settings(text)


def test_corpora_of_fixed_text_take_no_settings() -> None:
    with pytest.raises(UserError, match="corpus pydocs has no settings, found 'length=3'; give its name alone"):
        corpora.load("pydocs:length=3", "train")
    with pytest.raises(UserError, match="unknown corpus 'nothing'"):
        corpora.load("nothing:length=3", "train")


def test_a_source_of_another_edition_is_refused() -> None:
    record = dict(corpora.load("topics:length=3", "test").source)
    assert record["edition"] == EDITION and recorded({"kind": "embedded"}) is None
    with pytest.raises(UserError, match=r"--corpus topics:length=3 --fresh"):
        recorded(record | {"edition": "0"})


def test_the_defaults_leave_a_latent_model_something_to_gain() -> None:
    source = Topics()
    rate, given = source.entropy().nats_per_text / 128, source.entropy_given_topic().nats_per_text / 128
    seven = source.windowed_entropy(7).nats_per_text / 128
    assert 2.60 < rate < 2.72 and 0 < rate - given < math.log(64) / 128 + 1e-9
    assert seven - rate > 0.15
    assert Copy().uncopied_entropy().nats_per_text - Copy().entropy().nats_per_text > 64
