"""Book-keeping: sound pipelines agree with their totals, and errors that leave the likelihoods alone are named."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch

from ltm import statistics
from ltm.api import LikelihoodEstimate
from ltm.evaluation.runner import Runner
from ltm.harness import HarnessModel
from tasks.audit.checks import bookkeeping
from tasks.audit.checks.check import SAYS_NOTHING
from tests.support.harness_models import Bigram, BigramConfig, NoisyBigram, loaded

TEXT = "Some forty bytes of text, and a few more."  # two blocks and a half


def harness(family=Bigram, name: str = "toy", seed: int = 0, **options) -> HarnessModel:
    return HarnessModel(pretrained=loaded(family(BigramConfig(table_seed=seed)), name), device="cpu", **options)


def faults(results) -> str:
    return "; ".join(result.detail for result in results if result.passed is False)


def test_sound_books_pass():
    for family in (Bigram, NoisyBigram):
        results = bookkeeping.accounting(harness(family, family.family), TEXT)
        assert not faults(results) and len(results) == (1 if family is Bigram else 3)
        assert results[0].detail == "41 tokens in 3 blocks, each scored once; sums agree"
        assert 0 <= results[0].value < 1e-9


class Tampered(Bigram):
    """A bigram whose estimate is changed by `change`."""

    change = staticmethod(lambda found, tokens_BL, lengths: found)

    def log_likelihoods(self, tokens_BL, *, lengths=None, **options):
        """Changed."""
        found = super().log_likelihoods(tokens_BL, lengths=lengths, **options)["exact"]
        return {"exact": type(self).change(found, tokens_BL, lengths)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found, tokens, lengths: dataclasses.replace(found, tokens_B=found.tokens_B + 1), "covers .* tokens"),
        (lambda found, tokens, lengths: dataclasses.replace(found, nats_B=-found.nats_B), "above certainty"),
        (
            lambda found, tokens, lengths: dataclasses.replace(found, terms={"part": found.nats_B / 2}),
            "parts do not add up",
        ),
        (
            lambda found, tokens, lengths: dataclasses.replace(found, nats_B=found.nats_B * len(tokens)),
            "depends on its batch",
        ),
        (
            lambda found, tokens, lengths: dataclasses.replace(found, nats_B=found.nats_B.roll(1)),
            "depends on its batch",
        ),
        (
            lambda found, tokens, lengths: dataclasses.replace(found, nats_B=found.nats_B - found.tokens_B.square()),
            r"log p\(rest \| start\)",
        ),
    ],
)
def test_estimates_that_do_not_keep_their_books_are_named(monkeypatch, change, message):
    import re

    monkeypatch.setattr(Tampered, "change", staticmethod(change))
    assert re.search(message, faults(bookkeeping.accounting(harness(Tampered), TEXT)))


@pytest.mark.parametrize(("rounding", "passed"), [(0.5, True), (3.0, False)])
def test_an_upper_bound_may_be_off_by_what_its_weights_are_off_by(monkeypatch, rounding, passed):
    """Weights 55 times psi, and log weights off by a part of what rounding may do, or by more, outside a batch."""
    model = harness(Tampered)
    off = rounding * bookkeeping.rounding(model)

    def tangent(found, tokens, lengths):
        log_psi_B = found.nats_B - 4
        log_w_B = found.nats_B + off * log_psi_B.abs() * (len(tokens) == 1)
        nats_B = log_psi_B + (log_w_B - log_psi_B).exp() - 1
        terms = {"log_psi": log_psi_B, "above": nats_B - log_psi_B}
        return dataclasses.replace(found, nats_B=nats_B, kind="upper_bound", terms=terms)

    monkeypatch.setattr(Tampered, "change", staticmethod(tangent))
    assert ("depends on its batch" not in faults(bookkeeping.accounting(model, TEXT))) == passed


def test_a_perplexity_that_is_no_exponential_of_totals_is_named(monkeypatch):
    sound = statistics.NatsTotal.perplexity
    monkeypatch.setattr(
        statistics.NatsTotal,
        "perplexity",
        lambda self, **units: sound(self, **units)._replace(value=self.nats / self.tokens),
    )
    assert "token_perplexity is reported as" in faults(bookkeeping.accounting(harness(), TEXT))


def test_bytes_that_are_not_the_texts_are_named(monkeypatch):
    sound = statistics.NatsTotal.bits_per_byte
    monkeypatch.setattr(statistics.NatsTotal, "bits_per_byte", lambda self, count: sound(self, count + 1))
    assert "bits_per_byte is reported as" in faults(bookkeeping.accounting(harness(), TEXT))


def test_a_block_left_out_is_named(monkeypatch):
    sound = HarnessModel._blocks
    monkeypatch.setattr(HarnessModel, "_blocks", lambda self, *arguments: list(sound(self, *arguments))[:-1])
    assert "tokens scored of" in faults(bookkeeping.accounting(harness(), TEXT))


def test_answers_are_a_models_own():
    (found,) = bookkeeping.depends_on_weights(harness(), TEXT)
    assert found.passed and found.value <= found.limit and "other weights move it by 1.4" in found.detail


def test_answers_kept_without_regard_to_the_model_are_named(monkeypatch):
    sound = Runner.circumstances
    monkeypatch.setattr(
        Runner, "circumstances", lambda self, task: {k: v for k, v in sound(self, task).items() if k != "weights"}
    )
    assert "another model's name" in faults(bookkeeping.depends_on_weights(harness(), TEXT))


def test_answers_that_another_model_left_behind_are_named(monkeypatch):
    """Both were asked before, and only the second question finds an answer that is not its own."""
    sound = Runner.circumstances
    kept = ("weights", "config")
    monkeypatch.setattr(
        Runner, "circumstances", lambda self, task: {k: v for k, v in sound(self, task).items() if k not in kept}
    )
    bookkeeping._nats(harness(seed=1), TEXT)
    assert faults(bookkeeping.depends_on_weights(harness(), TEXT))


def test_a_shaken_model_has_another_digest_and_leaves_the_first_alone():
    first = loaded(Bigram(BigramConfig()))
    before = first.model.logits.detach().clone()
    second = bookkeeping.shake(first)
    assert second.info["weights_digest"] != first.info["weights_digest"]
    assert torch.equal(first.model.logits, before) and not torch.equal(second.model.logits, before)


def test_what_is_scored_without_weights_is_not_called_checked():
    class Uniform(Bigram):
        """Nothing to learn."""

        def __init__(self, config):
            super().__init__(config)
            del self.logits
            self.register_buffer("nothing", torch.zeros(1))

        def log_likelihoods(self, tokens_BL, *, lengths=None, context=0, **options):
            """Uniform."""
            tokens_B = torch.full((len(tokens_BL),), tokens_BL.shape[1]) if lengths is None else lengths
            tokens_B = tokens_B - context
            nats_B = -tokens_B * torch.log(torch.tensor(257.0, dtype=torch.float64))
            return {"exact": LikelihoodEstimate(nats_B=nats_B, tokens_B=tokens_B, kind="exact")}

    (found,) = bookkeeping.depends_on_weights(harness(Uniform), TEXT)
    assert found.passed is None and "no weights to change" in found.detail


def test_an_upper_bound_above_0_is_not_judged_and_anything_else_is():
    class Far(Bigram):
        """Beside its exact likelihood it has an upper bound that is the same for all weights."""

        kind: ClassVar = "upper_bound"

        def log_likelihoods(self, tokens_BL, **options):
            """Both."""
            found = super().log_likelihoods(tokens_BL, **options)
            far = dataclasses.replace(found["exact"], nats_B=found["exact"].nats_B * 0 + 1e30, kind=self.kind)
            return {**found, "far": far}

    class Wrong(Far):
        """It calls that an estimate, which is held against it."""

        kind = "estimate"

    exact, far = bookkeeping.depends_on_weights(harness(Far), TEXT)
    assert exact.passed and far.passed is None and far.detail == SAYS_NOTHING
    assert "other weights give the same answer" in faults(bookkeeping.depends_on_weights(harness(Wrong), TEXT))
