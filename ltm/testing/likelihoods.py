"""Tests of `log_likelihoods`: what is called a likelihood is one, and depends on nothing but text, weights and noise.

A number may call itself a likelihood only if, over all texts, its exponentials sum to at most 1.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import get_args

import pytest
import torch
from torch import Tensor

from ltm.api import Kind, LanguageModel, LikelihoodEstimate
from ltm.latent.base import LatentModel
from ltm.rng import SequenceRng
from ltm.testing.miniatures import FamilyTests, L, V, all_texts, structured_batch

TEXTS = all_texts()
ROWS = range(len(TEXTS))


def _masses_by_context(estimate: LikelihoodEstimate) -> Tensor:
    """Sum of exp(nats) over the continuations of each two tokens, (V^2,)."""
    return estimate.nats_B.exp().view(V**2, V**2).sum(1)


def with_fast_steps(model: LanguageModel, steps: int) -> LanguageModel:
    """The model with that many steps of fitting q, if it fits one: few steps hide a wrong estimator."""
    if not isinstance(model, LatentModel):
        return model
    other = type(model)(model.config.with_fast_steps(steps))
    other.double().load_state_dict(model.state_dict())
    return other.eval().requires_grad_(False)


def total_mass(estimate: LikelihoodEstimate) -> tuple[float, float]:
    """Sum of exp(nats) over all texts and its Monte Carlo standard error."""
    p_B = estimate.nats_B.exp()
    variance_B = torch.zeros_like(p_B) if estimate.mc_var_B is None else estimate.mc_var_B
    return float(p_B.sum()), float((p_B.square() * variance_B).sum().sqrt())


def same(a: Tensor, b: Tensor, name: str, tolerance: float = 0.0) -> None:
    """Assert that two tensors are equal, up to a tolerance."""
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance, msg=lambda detail: f"{name}: {detail}")


class LikelihoodTests(FamilyTests):
    """The contract of `LanguageModel.log_likelihoods` and `LikelihoodEstimate`."""

    @pytest.mark.parametrize("context", [0, 2])
    def test_estimates_have_the_fields_of_their_kind(self, model: LanguageModel, context: int) -> None:
        """The headline first; float64 nats and int64 tokens; no draws and no variance if exact; parts that add up."""
        found = model.log_likelihoods(TEXTS, context=context, rng=SequenceRng(2, ROWS))
        assert next(iter(found)) == model.headline(context)
        assert found[model.headline(context)].kind != "upper_bound", "models are not ranked by what they cannot exceed"
        for name, estimate in found.items():
            assert estimate.kind in get_args(Kind), name
            assert estimate.nats_B.dtype == torch.float64 and estimate.nats_B.shape == (len(TEXTS),), name
            assert bool(estimate.nats_B.isfinite().all()), name
            assert estimate.tokens_B.dtype == torch.int64 and estimate.tokens_B.tolist() == [L - context] * len(TEXTS)
            assert estimate.draws >= 0, name
            if estimate.kind == "exact":
                assert estimate.draws == 0 and estimate.mc_var_B is None and not estimate.averaged, name
            if estimate.mc_var_B is not None:
                assert estimate.mc_var_B.dtype == torch.float64 and estimate.mc_var_B.shape == (len(TEXTS),), name
                assert bool((estimate.mc_var_B >= 0).all() & estimate.mc_var_B.isfinite().all()), name
            if estimate.fast_steps_B is not None:
                assert estimate.fast_steps_B.dtype == torch.int64 and estimate.fast_steps_B.shape == (len(TEXTS),), name
            if estimate.terms:
                assert all(part.dtype == torch.float64 for part in estimate.terms.values()), name
                same(torch.stack(list(estimate.terms.values())).sum(0), estimate.nats_B, name, 1e-9)

    def test_total_mass(self, model: LanguageModel) -> None:
        """Over all texts, what is exact sums to 1, a bound to at most 1, and one from above to 1 or more."""
        model = with_fast_steps(model, 200)
        found = model.log_likelihoods(TEXTS, rng=SequenceRng(1, ROWS), draws=128)
        for name, estimate in found.items():
            mass, error = total_mass(estimate)
            if estimate.kind == "lower_bound" and error >= 0.05:
                more = model.log_likelihoods(TEXTS, rng=SequenceRng(1, ROWS), draws=512, only=name)
                mass, error = total_mass(more[name])
            if estimate.kind == "exact":
                assert mass == pytest.approx(1, abs=1e-6), name
            elif estimate.kind == "lower_bound":
                assert 0.05 < mass <= 1 + 3 * error + 1e-9, (name, mass, error)
                assert error < 0.05, f"{name} is too noisy with 512 draws for the sum to say anything"
            elif estimate.kind == "upper_bound":
                # Noise makes the exponential of an average higher, never lower.
                assert mass >= 1 - 3 * error - 1e-9, (name, mass, error)

    def test_conditional_mass(self, model: LanguageModel) -> None:
        """Given any first two tokens, the continuations share at most all probability.

        Noise is shared by the continuations of a context, so a proper predictive sums to exactly 1 under it.
        """
        model = with_fast_steps(model, 50)
        by_context = SequenceRng(1, [row // V**2 for row in ROWS])
        found = model.log_likelihoods(TEXTS, context=2, rng=by_context, draws=64)
        for name, estimate in found.items():
            masses = _masses_by_context(estimate)
            if estimate.kind == "exact" or name == "predictive_bound":
                same(masses, torch.ones_like(masses), name, 1e-7)
            elif estimate.kind == "lower_bound" and float(masses.max()) > 1.02:
                # Chance, or too much for it: more draws, and room for the error that they leave.
                more = model.log_likelihoods(TEXTS, context=2, rng=by_context, draws=1024, only=name)[name]
                assert more.mc_var_B is not None, name
                error = _masses_by_context(dataclasses.replace(more, nats_B=more.nats_B + more.mc_var_B.sqrt().log()))
                assert bool((_masses_by_context(more) <= 1 + 3 * error).all()) and float(error.max()) < 0.1, name

    def test_only_what_is_averaged_may_exceed_in_expectation(self, model: LanguageModel) -> None:
        """Mean over noises of exp(value), few draws each: over all texts at most 1, unless it says `averaged`."""
        times = 25
        texts, rows = TEXTS.repeat(times, 1), len(TEXTS) * times
        for name, estimate in model.log_likelihoods(texts, rng=SequenceRng(4, range(rows)), draws=1).items():
            if estimate.averaged:
                assert estimate.kind != "exact" and estimate.draws > 0, name
            elif estimate.kind != "estimate":
                masses = estimate.nats_B.exp().view(times, -1).sum(1)
                assert float(masses.mean()) <= 1 + 4 * float(masses.std()) / times**0.5 + 1e-9, name

    def test_the_draws_asked_for_are_made(self, model: LanguageModel) -> None:
        """`draws` is those of the headline, and one draw cannot state a variance."""
        for draws in (1, 6):
            headline = model.log_likelihood(TEXTS, rng=SequenceRng(2, ROWS), draws=draws)
            assert headline.draws == (0 if headline.kind == "exact" else draws)
            assert draws > 1 or headline.mc_var_B is None

    def test_batch_order_and_padding_change_nothing(self, model: LanguageModel) -> None:
        """A text has one likelihood, alone or with others, in any order, whatever stands after its end."""
        texts = structured_batch(torch.Generator().manual_seed(3), 6)
        lengths = torch.tensor([4, 1, 3, 2, 4, 3])
        whole = model.log_likelihoods(texts, lengths=lengths, rng=SequenceRng(5, range(6)))
        for row in (3, 0, 5, 2):
            n = int(lengths[row])
            alone = model.log_likelihoods(texts[row : row + 1, :n], rng=SequenceRng(5, [row]))
            for name, estimate in whole.items():
                same(alone[name].nats_B[0], estimate.nats_B[row], name, 1e-9)
                assert alone[name].tokens_B[0] == estimate.tokens_B[row] == n
        other_padding = texts.clone()
        other_padding[torch.arange(L) >= lengths[:, None]] = V - 1
        again = model.log_likelihoods(other_padding, lengths=lengths, rng=SequenceRng(5, range(6)))
        for name, estimate in whole.items():
            same(again[name].nats_B, estimate.nats_B, name)

    def test_each_row_may_have_a_context_of_its_own(self, model: LanguageModel) -> None:
        """As many tokens are scored as follow it; with none to score there is nothing to gain."""
        texts, context = TEXTS[40:44], torch.tensor([1, 3, 2, 4])
        found = model.log_likelihoods(texts, context=context, rng=SequenceRng(5, range(4)))
        assert next(iter(found)) == model.headline(context)
        for row in range(4):
            alone = model.log_likelihoods(
                texts[row : row + 1], context=context[row : row + 1], rng=SequenceRng(5, [row])
            )
            for name, estimate in found.items():
                same(alone[name].nats_B[0], estimate.nats_B[row], name, 1e-9)
                assert estimate.tokens_B[row] == L - context[row], name
                assert estimate.tokens_B[row] or float(estimate.nats_B[row]) <= 1e-9, name

    def test_context_and_continuation_add_up(self, model: LanguageModel) -> None:
        """The chain rule: log p(start) + log p(rest | start) = log p(text), so no token sees those after it."""
        rng = SequenceRng(0, ROWS)
        whole = model.log_likelihood(TEXTS, rng=rng)
        if whole.kind != "exact" or not model.chain_rule:
            pytest.skip("only exact likelihoods obey the chain rule, and not all of them")
        for start in range(1, L):
            head = model.log_likelihood(TEXTS, lengths=torch.full((len(TEXTS),), start), rng=rng)
            tail = model.log_likelihood(TEXTS, context=start, rng=rng)
            same(head.nats_B + tail.nats_B, whole.nats_B, f"after {start} tokens", 1e-9)

    def test_only_computes_what_is_asked(self, model: LanguageModel) -> None:
        """`only` gives the one likelihood that it names, at the same value."""
        rng = SequenceRng(0, range(4))
        for name, estimate in model.log_likelihoods(TEXTS[:4], rng=rng).items():
            one = model.log_likelihoods(TEXTS[:4], rng=rng, only=name)
            assert list(one) == [name]
            same(one[name].nats_B, estimate.nats_B, name)
        headline = model.log_likelihoods(TEXTS[:4], rng=rng)[model.headline()]
        same(model.log_likelihood(TEXTS[:4], rng=rng).nats_B, headline.nats_B, "log_likelihood")

    def test_noise_comes_from_rng_alone(self, model: LanguageModel) -> None:
        """The same under one seed, whatever the global generators hold; a torch.Generator will do as well."""
        texts = TEXTS[::7].clone()
        for source in ("ltm", "torch"):
            values = []
            with torch.random.fork_rng(devices=[]):
                for global_seed in (1, 2):
                    torch.manual_seed(global_seed)
                    rng = SequenceRng(3, range(len(texts))) if source == "ltm" else torch.Generator().manual_seed(3)
                    values.append(model.log_likelihoods(texts, rng=rng))
            for name, estimate in values[0].items():
                same(estimate.nats_B, values[1][name].nats_B, name)
        assert torch.equal(texts, TEXTS[::7]), "the caller's tokens were changed"

    @pytest.mark.parametrize("bad", [-1, V, V + 1, 1000])
    def test_ids_outside_the_vocabulary_are_refused(self, model: LanguageModel, bad: int) -> None:
        """ValueError that names the id: one that cannot be output, such as BOS, is no text."""
        for place, context in itertools.product((0, 3), (0, 2)):
            tokens = torch.tensor([[0, 1, 0, 2]])
            tokens[0, place] = bad
            with pytest.raises(ValueError, match=rf"(?<!\d){bad}(?!\d)"):
                model.log_likelihoods(tokens, context=context, rng=SequenceRng(0, [0]))

    @pytest.mark.parametrize(("context", "length"), [(L + 1, L), (-1, L), (0, L + 1), (3, 2)])
    def test_spans_that_no_text_has_are_refused(self, model: LanguageModel, context: int, length: int) -> None:
        """ValueError unless 0 <= context <= length <= L."""
        with pytest.raises(ValueError, match="context"):
            model.log_likelihoods(TEXTS[:1], context=context, lengths=torch.tensor([length]), rng=SequenceRng(0, [0]))
