"""The contract tests can fail: each catches a family that breaks the promise it is about, and a sound one passes."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, ClassVar

import pytest
import torch

from baselines.ngram import NGram, NGramConfig
from ltm import registry
from ltm.api import Loss, Preset, Sampling
from ltm.errors import UserError
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import PosteriorConfig
from ltm.rng import SequenceRng
from ltm.testing import ltm_contract_tests
from ltm.testing.likelihoods import ROWS, TEXTS, total_mass, with_fast_steps
from ltm.testing.miniatures import L, V, train_briefly, trained
from ltm.training import checkpoint

BREAKS: dict[str, type] = {}
"""A broken family for each test, by the test's name without `test_`."""


def breaks(*tests: str):
    """Enter a family into `BREAKS`."""

    def enter(family):
        BREAKS.update(dict.fromkeys(tests, family))
        return family

    return enter


def changed(estimates, **values):
    """The same estimates with other values of fields."""
    return {name: dataclasses.replace(estimate, **values) for name, estimate in estimates.items()}


@breaks("its_entry_point_leads_to_it")
class Unregistered(NGram):
    pass


@dataclasses.dataclass(kw_only=True)
class Thawed:
    vocab_size: int = 0
    order: int = 3
    max_length: int = 5


@breaks("its_config_is_frozen_plain_data")
class NotFrozen(NGram):
    config_class: ClassVar[Any] = Thawed

    @classmethod
    def miniature(cls, vocab_size, block_length):
        return Thawed(vocab_size=vocab_size, max_length=block_length + 1)


@breaks("a_miniature_is_of_the_size_asked_for")
class OneTooShort(NGram):
    @classmethod
    def miniature(cls, vocab_size, block_length):
        return super().miniature(vocab_size, block_length - 1)


@breaks("every_preset_builds")
class RecipeOfAnother(NGram):
    presets: ClassVar = {"ngram-tiny": Preset(config=NGramConfig(), tokenizer="bytes", training={"epochs": 3})}


@breaks("every_preset_has_a_twin")
class TwinOfFullLength(NGram):
    @classmethod
    def twin_config(cls, config, *, vocab_size, block_length, **shape):
        return dataclasses.replace(config, vocab_size=vocab_size, max_length=1024)


@breaks("features_depend_on_the_text_alone")
class FeaturesOfPadding(NGram):
    def features(self, tokens_BL, lengths):
        return tokens_BL.double()


@breaks("a_source_that_is_not_there_is_refused")
class OpensNothing(NGram):
    @classmethod
    def check_source(cls, source, settings=()):
        return None


@breaks("the_loss_is_a_finite_scalar_with_gradients")
class LossPerText(NGram):
    def training_loss(self, tokens_BL, *, rng, progress=1.0):
        return Loss(value=-self.token_nats(tokens_BL).mean(1))


@breaks("noise_of_training_comes_from_rng_alone")
class LossOfGlobalNoise(NGram):
    def training_loss(self, tokens_BL, *, rng, progress=1.0):
        return Loss(value=-self.token_nats(tokens_BL).mean() + torch.rand(()))


@breaks("training_lowers_the_loss")
class Forgetful(NGram):
    def finish(self):
        self._texts = []


@breaks("a_checkpoint_scores_as_the_model_did")
class KeepsNoTables(NGram):
    def allocate(self, shapes):
        pass


@breaks("estimates_have_the_fields_of_their_kind")
class SinglePrecision(NGram):
    def log_likelihoods(self, tokens_BL, **options):
        found = super().log_likelihoods(tokens_BL, **options)
        return changed(found, nats_B=found["exact"].nats_B.float())


@breaks("total_mass", "only_what_is_averaged_may_exceed_in_expectation")
class Boastful(NGram):
    def log_likelihoods(self, tokens_BL, **options):
        found = super().log_likelihoods(tokens_BL, **options)
        return changed(found, nats_B=found["exact"].nats_B / 2, kind="lower_bound")


@breaks("conditional_mass")
class BoastfulAfterContext(Boastful):
    def log_likelihoods(self, tokens_BL, **options):
        return (super() if options.get("context") else super(Boastful, self)).log_likelihoods(tokens_BL, **options)


class Noisy(NGram):
    """A sound bound: the likelihood less a little noise that is never negative."""

    def noise(self, rng, rows, draws):
        return torch.stack([torch.rand(draws, generator=g).mean() for g in rng.generators("draws")]).double()

    def log_likelihoods(self, tokens_BL, *, draws=None, rng, **options):
        draws, rng = draws or 4, SequenceRng.of(rng, len(tokens_BL))
        found = super().log_likelihoods(tokens_BL, rng=rng, **options)["exact"]
        nats_B = found.nats_B - self.noise(rng, len(tokens_BL), draws)
        return {"exact": dataclasses.replace(found, nats_B=nats_B, kind="lower_bound", draws=draws)}


@breaks("the_draws_asked_for_are_made")
class AlwaysFourDraws(Noisy):
    def log_likelihoods(self, tokens_BL, *, draws=None, **options):
        return super().log_likelihoods(tokens_BL, **options)


@breaks("noise_comes_from_rng_alone")
class GlobalNoise(Noisy):
    def noise(self, rng, rows, draws):
        return torch.rand(rows, draws).mean(1).double()


@breaks("batch_order_and_padding_change_nothing")
class NoiseByPlace(Noisy):
    def noise(self, rng, rows, draws):
        return torch.arange(rows) / 10


@breaks("each_row_may_have_a_context_of_its_own")
class OneContextForAll(NGram):
    def log_likelihoods(self, tokens_BL, *, context=0, **options):
        context = int(torch.as_tensor(context).flatten()[0])
        return super().log_likelihoods(tokens_BL, context=context, **options)


@breaks("context_and_continuation_add_up")
class SeesTheLastToken(NGram):
    def token_nats(self, tokens_BL):
        return super().token_nats(tokens_BL) - 0.1 * tokens_BL[:, -1:] * (tokens_BL[:, -1:] == tokens_BL)


@breaks("only_computes_what_is_asked")
class AlwaysBoth(NGram):
    def log_likelihoods(self, tokens_BL, **options):
        found = super().log_likelihoods(tokens_BL, **options)
        return found | changed({"worse": found["exact"]}, kind="estimate")


@breaks("ids_outside_the_vocabulary_are_refused")
class Clips(NGram):
    def log_likelihoods(self, tokens_BL, **options):
        return super().log_likelihoods(tokens_BL.clamp(0, self.vocab_size - 2), **options)


@breaks("spans_that_no_text_has_are_refused")
class ClipsSpans(NGram):
    def log_likelihoods(self, tokens_BL, *, context=0, lengths=None, **options):
        lengths = None if lengths is None else lengths.clamp(max=tokens_BL.shape[1])
        return super().log_likelihoods(tokens_BL, context=context, lengths=lengths, **options)


class Writer(NGram):
    """Writes as an n-gram model does, after `prepared` and before `finished`."""

    def prepared(self, prompts, options):
        return prompts

    def finished(self, found):
        return found

    def generate(self, prompts, **options):
        return self.finished(super().generate(self.prepared(prompts, options), **options))


@breaks("repeats_under_a_seed_whatever_the_batch")
class NoiseOfTheBatch(Writer):
    def prepared(self, prompts, options):
        options["rng"] = SequenceRng(options["rng"].seed, range(len(prompts)))
        return prompts


@breaks("noise_of_generation_comes_from_rng_alone")
class WritesByGlobalNoise(Writer):
    def prepared(self, prompts, options):
        options["rng"] = torch.Generator().manual_seed(int(torch.randint(1000, ())))
        return prompts


@breaks("stops_at_stop_ids")
class DropsTheStop(Writer):
    def prepared(self, prompts, options):
        self.stop_ids = options["sampling"].stop_ids
        return prompts

    def finished(self, found):
        return dataclasses.replace(found, tokens=[[i for i in t if i not in self.stop_ids] for t in found.tokens])


@breaks("prompts_longer_than_a_block_are_refused")
class CutsPrompts(Writer):
    def prepared(self, prompts, options):
        return [prompt[-self.block_length + 1 :] for prompt in prompts]


@breaks("a_prompt_that_fills_the_block_is_continued_or_refused")
class SaysNothing(Writer):
    def prepared(self, prompts, options):
        if any(len(prompt) == self.block_length for prompt in prompts):
            raise ValueError("no")
        return prompts


@breaks("prompts_outside_the_vocabulary_are_refused")
class ClipsPrompts(Writer):
    def prepared(self, prompts, options):
        return [[min(max(0, token), self.vocab_size - 2) for token in prompt] for prompt in prompts]


@breaks("no_new_tokens_are_refused")
class AtLeastOneToken(Writer):
    def prepared(self, prompts, options):
        options["max_new_tokens"] = max(1, options["max_new_tokens"])
        return prompts


@breaks("refitting_is_done_or_refused")
class IgnoresRefitting(Writer):
    def prepared(self, prompts, options):
        options["sampling"] = dataclasses.replace(options["sampling"], reinfer_every=None)
        return prompts


@breaks("greedy_text_is_the_most_likely")
class NeverGreedy(Writer):
    def prepared(self, prompts, options):
        options["sampling"] = Sampling()
        return prompts


@breaks("frequencies_match_the_likelihood")
class IgnoresPrompts(Writer):
    def prepared(self, prompts, options):
        return [[]] * len(prompts)


def run(family, name, **given) -> None:
    """Run the contract test of that name, with every set of its parameters."""
    test = getattr(ltm_contract_tests(family)(), f"test_{name}")
    wanted = inspect.signature(test).parameters
    if "model" in wanted:
        given["model"] = trained(family)
    sets: list[dict[str, Any]] = [{}]
    for mark in getattr(test, "pytestmark", []):
        names = (mark.args[0],) if isinstance(mark.args[0], str) else mark.args[0]
        sets = [dict(zip(names, v if len(names) > 1 else (v,), strict=True)) for v in mark.args[1]]
    for values in sets:
        test(**{key: value for key, value in {**given, **values}.items() if key in wanted})


@pytest.mark.parametrize("name", sorted(BREAKS))
def test_a_broken_family_is_caught_and_a_sound_one_passes(name, monkeypatch, tmp_path):
    family = BREAKS[name]
    with monkeypatch.context() as offered:
        if family is not Unregistered:
            offered.setattr(registry, "model_family", lambda asked: family)
        offered.setattr(checkpoint, "model_family", lambda asked: family)
        with pytest.raises((AssertionError, pytest.fail.Exception, UserError)):
            run(family, name, monkeypatch=offered, tmp_path=tmp_path)
    run(NGram, name, monkeypatch=monkeypatch, tmp_path=tmp_path / "sound")


def test_every_contract_test_is_known_to_catch_something():
    tests = {name.removeprefix("test_") for name in dir(ltm_contract_tests(NGram)) if name.startswith("test_")}
    assert tests == set(BREAKS)


def test_reused_noise_is_not_a_likelihood():
    """Trained and scored at the noise it was fitted to, the estimate claims more than all probability."""
    torch.manual_seed(0)
    config = LatentThoughtModel.miniature(V + 1, L)
    config = dataclasses.replace(config, posterior=PosteriorConfig(steps=8, noise="reused"))
    model = LatentThoughtModel(config).double()
    train_briefly(model, 200)
    model = with_fast_steps(model.eval().requires_grad_(False), 200)
    found = model.log_likelihoods(TEXTS, rng=SequenceRng(1, ROWS), draws=64)
    mass, _ = total_mass(found["reused_noise_estimate"])
    assert mass > 1.5, mass
    for name in ("elbo", "importance_bound"):
        valid, error = total_mass(found[name])
        assert valid <= 1 + 3 * error, (name, valid, error)
    assert found["reused_noise_estimate"].kind == "estimate"


def test_averages_do_exceed_in_expectation():
    """So that the field is needed: a diffusion bound from one draw, its exponential averaged over noises."""
    model, times = trained(registry.model_family("mdlm")), 200
    texts = TEXTS.repeat(times, 1)
    (estimate,) = model.log_likelihoods(texts, rng=SequenceRng(4, range(len(texts))), draws=1).values()
    masses = estimate.nats_B.exp().view(times, -1).sum(1)
    assert estimate.averaged and float(masses.mean()) > 1 + 4 * float(masses.std()) / times**0.5
