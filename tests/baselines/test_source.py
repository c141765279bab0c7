"""A known source as a model: what it says is the source's, and its bounds lie on their sides of it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from baselines.source import Source, SourceConfig
from ltm.errors import UserError
from ltm.known_sources.base import from_settings
from ltm.rng import SequenceRng
from ltm.testing.generation import GenerationTests
from ltm.testing.likelihoods import LikelihoodTests

SPECS = [
    "topics:length=12,words=6,topics=4,classes=2",
    "copy:length=8,characters=5,noise=0.2",
    "arith:length=15,digits=2",
]
NOISY = "arith:length=15,digits=2,noise=0.1"


class TestLikelihoods(LikelihoodTests):
    """The contract, whether or not the family's entry point is installed."""

    family = Source


class TestGeneration(GenerationTests):
    """The same of texts."""

    family = Source


def texts_of(spec: str, count: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts as bytes and their log-likelihoods."""
    source = from_settings(spec)
    symbols = source.sample(count, seed=3)
    return torch.tensor([list(text.encode()) for text in source.texts(symbols)]), source.log_likelihood(symbols)


@pytest.mark.parametrize("spec", [*SPECS, NOISY])
def test_texts_of_the_source_have_its_likelihood(spec):
    """But for the share that is elsewhere; and given any start the rest has what is left."""
    tokens, log_r = texts_of(spec)
    model, noise = Source(SourceConfig(spec=spec)), SequenceRng(0, range(len(tokens)))
    found = model.log_likelihoods(tokens, rng=noise)["exact"]
    torch.testing.assert_close(found.nats_B, log_r + math.log1p(-1e-6), rtol=0, atol=1e-6)
    half = tokens.shape[1] // 2
    start = model.log_likelihood(tokens[:, :half], rng=noise).nats_B
    rest = model.log_likelihood(tokens, context=half, rng=noise).nats_B
    torch.testing.assert_close(start + rest, found.nats_B, rtol=0, atol=1e-9)


@pytest.mark.parametrize("spec", [*SPECS, NOISY])
def test_after_any_start_the_next_symbols_share_what_it_has(spec):
    """Sums over the next symbol, of what the source says of beginnings, also of texts that it cannot have drawn."""
    source = from_settings(spec)
    symbols = torch.cat([source.sample(4, seed=5), torch.zeros(1, source.length, dtype=torch.int64)])
    log_r = source.log_beginnings(symbols).logsumexp(0)
    A = len(source.alphabet)
    for t in range(source.length):
        longer = torch.cat([symbols[:, :t].repeat_interleave(A, 0), torch.arange(A).repeat(len(symbols))[:, None]], 1)
        total = source.log_beginnings(longer)[:, :, -1].logsumexp(0).view(len(symbols), A).exp().sum(1)
        before = log_r[:, t - 1].exp() if t else torch.ones(len(symbols), dtype=torch.float64)
        torch.testing.assert_close(total, before, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(log_r[:, -1], source.log_likelihood(symbols), rtol=0, atol=1e-9)


def test_no_text_is_impossible():
    """What the source cannot have drawn has the uniform share, to the last digit."""
    model = Source(SourceConfig(spec=SPECS[2], elsewhere=0.01))
    tokens = torch.tensor([list(b"not a sum of 2!")])
    found = model.log_likelihood(tokens, rng=SequenceRng(0, [0])).nats_B
    # "n" is no symbol, so that nothing is left of the source after it.
    assert float(found) == pytest.approx(math.log(0.01) - 15 * math.log(257), abs=1e-9)


def test_bounds_are_on_their_sides_and_near():
    """On average over noises and texts: lower <= exact <= upper, and the mean weight is p(x)."""
    tokens, _ = texts_of(SPECS[0], 24)
    times = 400
    rows = tokens.repeat(times, 1)
    found = Source(SourceConfig(spec=SPECS[0])).log_likelihoods(rows, rng=SequenceRng(0, range(len(rows))), draws=1)
    exact_N = found["exact"].nats_B
    below = (exact_N - found["importance_bound"].nats_B).view(times, -1).mean(1)
    above = (found["tube_upper_bound"].nats_B - exact_N).view(times, -1).mean(1)
    for gaps in (below, above):
        assert 0 < float(gaps.mean()) < 0.2 and float(gaps.mean()) > 3 * float(gaps.std()) / math.sqrt(times)
    weights = (found["importance_bound"].nats_B - exact_N).exp()
    assert float(weights.mean()) == pytest.approx(1, abs=4 * float(weights.std()) / math.sqrt(len(weights)))


def test_only_what_hides_something_has_bounds():
    for spec, count in zip(SPECS, (3, 1, 1), strict=True):
        tokens, _ = texts_of(spec, 2)
        model = Source(SourceConfig(spec=spec))
        assert len(model.log_likelihoods(tokens, rng=SequenceRng(0, range(2)))) == count
        assert list(model.log_likelihoods(tokens, context=1, rng=SequenceRng(0, range(2)))) == ["exact"]


def test_it_is_opened_by_the_source_s_name():
    loaded = Source.from_source("topics:length=12", settings=["elsewhere=0.001"])
    assert loaded.model.block_length == 12 and loaded.model.config.elsewhere == 0.001
    assert loaded.info["training"]["data_source"]["spec"] == loaded.model.config.spec == "topics:length=12"
    assert loaded.tokenizer.vocab_size == loaded.model.vocab_size
    twin = Source.twin_config(loaded.model.config, vocab_size=4, block_length=5, width=16)
    assert twin.elsewhere == 0.001 and Source(twin).block_length == 5


def test_what_is_no_source_is_refused():
    for wrong in ("pydocs", "topics:length=0", "topics:length"):
        with pytest.raises(UserError):
            Source.check_source(wrong)
    with pytest.raises(ValueError, match="elsewhere must be between 0 and 1, found 1"):
        SourceConfig(elsewhere=1.0)
    with pytest.raises(ValueError, match="takes 64 outputs and a BOS, found vocab_size 4"):
        SourceConfig(vocab_size=4, spelt=False)
    assert dataclasses.replace(SourceConfig(), vocab_size=65, spelt=False).vocab_size == 65
