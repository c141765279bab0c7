"""The benchmarks of latents on real text: their variants are what they say, and a stopped study goes on."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

import pytest
import torch

from benchmarks import inference_steps, latent_use, latent_variants
from benchmarks.latent_variants import GROUPS, Annealed, Delayed, Gated, Run, configured, control_of
from benchmarks.posterior_methods import METHODS, Natural, OfLibrary, mean_start
from ltm.errors import UserError
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import Posterior, PosteriorConfig, fit
from ltm.rng import SequenceRng

SOURCE = "topics:length=12,words=8,topics=2,classes=2"
SHAPE = (2, 1, 3)
ARGUMENTS = f"--corpus {SOURCE} --tokenizer bytes --length 12 --width 8 --window 4 --tokens 200 --blocks 4"
OPTIONS = argparse.Namespace(width=8, window=4, length=12, tokens="200", batch=4, lr=1e-3)


def linear(curvature: float, target: float):
    """The gradient of curvature / 2 (z - target)^2, whose exact posterior is Gaussian."""
    return lambda z: curvature * (z - target)


def run(method, gradient, steps: int) -> Posterior:
    return method(gradient, Posterior.prior(5, SHAPE, like=torch.zeros((), dtype=torch.float64)), SHAPE, rng(), steps)


def rng() -> SequenceRng:
    return SequenceRng(0, range(5))


@pytest.mark.parametrize("name", [name for name in METHODS if "Fisher" not in name])
def test_every_method_ends_near_the_exact_posterior_of_a_quadratic(name):
    q = run(METHODS[name], linear(4.0, 1.0), 400)
    # KL to N(0.8, 1 / 5), per coordinate; the prior's is 2.8, and noise of constant steps stays.
    ratio = 5 * q.log_variance.exp()
    kl = 0.5 * (ratio - 1 - ratio.log() + 5 * (q.mean - 0.8).square())
    assert kl.mean() < (0.3 if "constant" in name or name == "closed form, 0.3" else 0.1)


@pytest.mark.parametrize("curvature", ["antithetic", "difference"])
def test_two_gradients_give_the_curvature_of_a_quadratic_along_the_noise(curvature):
    method = Natural(curvature=curvature, precision_lr=1.0, lr=1e-6)
    q = run(method, linear(4.0, 1.0), 1)
    epsilon = rng().stream("fit").normal(*SHAPE).double()
    # Signs give it exactly; normal noise with its square.
    expected = 4.0 * torch.ones_like(epsilon) if curvature == "difference" else 4.0 * epsilon.square()
    torch.testing.assert_close((-q.log_variance).exp(), 1 + expected)


def test_the_plain_variant_is_the_library_s():
    config = PosteriorConfig(optimizer="natural", steps=6, lr=0.3, lr_schedule="linear", precision_lr=0.1)
    gradient = linear(3.0, -1.0)
    own = run(Natural(), gradient, 6)
    library = fit(gradient, SHAPE, config, rng(), device=torch.device("cpu"), dtype=torch.float64)
    torch.testing.assert_close(own.mean, library.mean)
    torch.testing.assert_close(own.log_variance, library.log_variance)


def test_a_fit_from_the_mean_of_what_it_would_find_stays_there():
    method, gradient = OfLibrary(config=PosteriorConfig(optimizer="natural", lr=1e-9, precision_lr=1e-9)), linear(4, 1)
    found = Posterior(
        mean=torch.full((7, *SHAPE), 0.8).double(), log_variance=-torch.full((7, *SHAPE), 5.0).log().double()
    )
    q = method(gradient, mean_start(found)(5), SHAPE, rng(), 3)
    torch.testing.assert_close(q.mean, found.mean[:5], atol=1e-6, rtol=0)
    torch.testing.assert_close(q.log_variance, found.log_variance[:5], atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", [name for group in GROUPS.values() for name in group])
def test_every_variant_is_a_model_and_has_a_control_with_its_decoder(variant):
    cls, config, recipe = configured(Run(variant=variant, seed=3), OPTIONS)
    _, control, _ = configured(Run(variant=control_of(variant), seed=3), OPTIONS)
    assert config.decoder == control.decoder and recipe.seed == 3
    assert issubclass(cls, torch.nn.Module)


@pytest.mark.parametrize("cls", [Annealed, Delayed, Gated])
def test_quiet_models_begin_as_one_without_latents(cls):
    config = latent_variants.base_config(OPTIONS)
    config = dataclasses.replace(config, vocab_size=9, cross_start="zero")
    torch.manual_seed(0)
    model = cls(config)
    tokens_BL, noise = torch.arange(8).view(2, 4), SequenceRng(0, range(2))
    loss = model.training_loss(tokens_BL, rng=noise, progress=0.0)
    loss.value.backward()
    with torch.no_grad():
        batch = model.scoring_batch(tokens_BL, 0, None, noise)
        values = [batch.log_likelihood(torch.full((2, *model.latent_shape), z)) for z in (0.0, 3.0)]
    torch.testing.assert_close(*values)
    assert float(loss.value.detach()) * 8 == pytest.approx(-float(values[0].sum()), rel=1e-5)
    if cls is Gated:  # moves as soon as z helps
        torch.nn.init.normal_(model.decoder.blocks[0].cross_out.weight)
        model.zero_grad()
        model.training_loss(tokens_BL, rng=noise, progress=0.0).value.backward()
        assert model.gates.grad is not None and float(model.gates.grad[0]) != 0


def test_a_stopped_study_goes_on_and_its_models_serve_the_study_of_steps(tmp_path, monkeypatch, capsys):
    arguments = [*f"{ARGUMENTS} --output {tmp_path} --only".split(), "natural gradient, T = 4"]
    monkeypatch.setattr(sys, "argv", ["latent_use", *arguments])
    latent_use.main()
    shown, file = capsys.readouterr().out, tmp_path / "results.jsonl"
    first = file.read_text()
    records = [json.loads(line) for line in first.splitlines()]
    assert [r["variant"] for r in records] == ["AR", "natural gradient, T = 4"]
    file.write_text(first[:-30])
    latent_use.main()
    again = [json.loads(line) for line in file.read_text().splitlines()]
    assert [r["nats"] for r in again] == [r["nats"] for r in records]
    monkeypatch.setattr(latent_use, "measured", lambda *_: pytest.fail("finished runs are not repeated"))
    capsys.readouterr()
    latent_use.main()
    assert capsys.readouterr().out == shown

    (model,) = (tmp_path / "models").glob("natural*")
    monkeypatch.setattr(inference_steps, "STEPS", (1, 2))
    monkeypatch.setattr(inference_steps, "REFERENCE_STEPS", 3)
    monkeypatch.setattr(inference_steps, "GRID", ((0.3, 0.1), (0.5, 0.1)))
    chosen = {name: METHODS[name] for name in (inference_steps.REFERENCE, "natural, 0.3", "natural, antithetic")}
    monkeypatch.setattr(inference_steps, "METHODS", chosen)
    study = [str(model), "--corpus", SOURCE, "--blocks", "4", "--output", str(tmp_path / "steps")]
    inference_steps.main(study)
    records = [json.loads(line) for line in (tmp_path / "steps" / "results.jsonl").read_text().splitlines()]
    by_fit = {(r["method"], r["steps"]): r for r in records}
    assert len(by_fit) == 1 + 2 * 5
    # Twice the gradients, twice the cost of the steps.
    plain, paired = (by_fit[name, 2]["flops_per_token"] for name in ("natural, 0.3", "natural, antithetic"))
    one = by_fit["natural, 0.3", 1]["flops_per_token"]
    assert paired - plain == pytest.approx(2 * (plain - one))
    capsys.readouterr()
    inference_steps.main([str(model), *study, "--methods", "antithetic|no such"])
    said = capsys.readouterr().out
    assert "2 models" in said and "natural, antithetic" in said and "natural, 0.3" not in said
    assert len((tmp_path / "steps" / "results.jsonl").read_text().splitlines()) == len(records)
    for wrong, reason in (("[", "no regular expression"), ("no such", "found in no name")):
        with pytest.raises(UserError, match=reason):
            inference_steps.main([*study, "--methods", wrong])


def test_what_is_no_group_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["latent_use", "--groups", "lags", "--output", str(tmp_path)])
    with pytest.raises(UserError, match="lag"):
        latent_use.main()
    monkeypatch.setattr(sys, "argv", ["latent_use", "--only", "nothing", "--output", str(tmp_path)])
    with pytest.raises(UserError, match="no variant"):
        latent_use.main()
    assert issubclass(Gated, LatentThoughtModel)
