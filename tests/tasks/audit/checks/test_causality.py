"""Pretrained models are audited without a twin: each way of breaking one that gets past the probe is refuted."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.pretrained.model import Pretrained
from ltm.api import LikelihoodEstimate
from ltm.harness import HarnessModel
from ltm.known_sources.topics import Topics
from ltm.nn.spans import prepare_batch
from tasks.audit.checks import bookkeeping, causality
from tasks.audit.run import audit
from tests.support.harness_models import Bigram, BigramConfig, NoisyBigram, loaded
from tests.support.miniature_runs import text
from tests.support.small_gpt2 import save_gpt2

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the transformers package"
)

TEXT = "".join(text(40))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt2(tmp_path_factory.mktemp("models") / "tiny-gpt2")


class Bidirectional(Pretrained):
    """Each prediction also sees the token after the one before it, which it predicts."""

    def nats_after(self, inputs_BL: Tensor, tokens_BL: Tensor) -> Tensor:
        ahead_BL = inputs_BL.roll(-1, 1)
        ahead_BL[:, -1] = self.bos_input
        return super().nats_after(ahead_BL, tokens_BL)


class OtherContinuations(Pretrained):
    """A continuation is scored without its context; a whole text as it should be."""

    def log_likelihoods(self, tokens_BL: Tensor, **options: Any) -> dict[str, LikelihoodEstimate]:
        _, given_BL, _ = prepare_batch(tokens_BL, options.get("context", 0), options.get("lengths"), self.vocab_size)
        return super().log_likelihoods(tokens_BL.masked_fill(given_BL.to(tokens_BL.device), 7), **options)


class CountsLess(Pretrained):
    """The last token of each text is not counted."""

    def log_likelihoods(self, tokens_BL: Tensor, **options: Any) -> dict[str, LikelihoodEstimate]:
        found = super().log_likelihoods(tokens_BL, **options)["exact"]
        return {"exact": dataclasses.replace(found, tokens_B=found.tokens_B - 1)}


class ScoresLess(Pretrained):
    """The last token of each text is counted and costs nothing."""

    def token_nats(self, tokens_BL: Tensor) -> Tensor:
        nats_BL = super().token_nats(tokens_BL).clone()
        nats_BL[:, -1] = 0
        return nats_BL


def broken(directory: Path, kind: type[Pretrained]) -> HarnessModel:
    """The model of that directory under another class, past the check that is made when it is loaded."""
    found = Pretrained.from_source(str(directory))
    model = kind(found.model.config)
    model.network = found.model.network
    return HarnessModel(pretrained=dataclasses.replace(found, model=model), device="cpu")


def refuted(model: HarnessModel) -> set[str]:
    tokens = model.loaded.tokenizer.encode(TEXT)[:110].tolist()
    piece = model.loaded.tokenizer.decode(tokens)
    results = [*causality.future_leak(model, tokens), *bookkeeping.accounting(model, piece)]
    assert all(result.passed is not None for result in results)
    return {result.name for result in results if not result.passed}


@pytest.mark.parametrize(
    ("kind", "checks"),
    [
        (Pretrained, set()),
        (Bidirectional, {"future_leak", "accounting"}),
        (OtherContinuations, {"future_leak", "accounting"}),
        (CountsLess, {"accounting"}),
        (ScoresLess, {"future_leak", "accounting"}),
    ],
)
def test_what_is_broken_is_refuted(kind: type[Pretrained], checks: set[str], directory: Path) -> None:
    assert refuted(broken(directory, kind)) == checks


def test_a_network_that_sees_both_ways_fails_its_audit(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTM_HOME", str(tmp_path))
    proposal = broken(directory, Pretrained)
    found = audit(broken(directory, Bidirectional), Topics(length=16), TEXT, proposal=proposal, texts=4)
    failed = {check.name for check in found.refutations("exact")}
    assert "future_leak" in failed and not found.passed("exact") and found.twin is None


def test_sound_models_of_any_family_pass_and_bounds_are_not_asked() -> None:
    tokens = list(b"some forty bytes of text, and a few more")
    exact = HarnessModel(pretrained=loaded(Bigram(BigramConfig())), device="cpu")
    (result,) = causality.future_leak(exact, tokens)
    assert result.passed and result.value < 1e-6
    noisy = HarnessModel(pretrained=loaded(NoisyBigram(BigramConfig()), "noisy"), device="cpu")
    assert all(result.likelihood != "bound" for result in causality.future_leak(noisy, tokens))
    assert causality.future_leak(exact, tokens[:1]) == []


def test_an_odd_batch_size_covers_all_places(directory: Path) -> None:
    model = broken(directory, Pretrained)
    model.runner.scorer.batch_size = 3
    tokens = model.loaded.tokenizer.encode(TEXT)[:40].tolist()
    (result,) = causality.future_leak(model, tokens)
    assert result.passed and torch.isfinite(torch.tensor(result.value))
