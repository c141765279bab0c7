"""What diagnostics say of posteriors that are known, and that every point of a curve is a bound."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

from baselines.vae import VAE
from leaderboard.content import task_results
from leaderboard.entries import load
from leaderboard.verify import recomputed, verify
from ltm import tokenizer
from ltm.config import with_settings
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import Posterior, PosteriorConfig
from ltm.result import read_records, read_result
from ltm.rng import SequenceRng
from ltm.testing.miniatures import L, V, all_texts, structured_batch
from ltm.training import checkpoint
from tasks import cli
from tasks.diagnostics import measures
from tests.support.harness_models import TRAINING, save_small
from tests.support.quadrature import evidence, two_dimensional

TEXTS = all_texts()
CPU = torch.device("cpu")


def gaussians(means, variance) -> Posterior:
    mean = torch.as_tensor(means, dtype=torch.float64).view(len(means), 1, 1, -1)
    return Posterior(mean=mean, log_variance=torch.full_like(mean, math.log(variance)))


def information(q: Posterior, draws: int = 8) -> torch.Tensor:
    return measures.mutual_information(q, SequenceRng(0, range(len(q.mean))), draws=draws)


def test_a_collapsed_posterior_says_nothing():
    q = Posterior.prior(20, (2, 3, 4), like=torch.zeros(1, dtype=torch.float64))
    assert float(information(q).abs().max()) < 1e-12
    assert measures.active_units(q.mean) == 0 and float(q.kl().abs().max()) == 0
    # Away from the prior, but the same for all texts: a KL is paid for nothing.
    moved = gaussians([[2.0, -1.0]] * 20, 0.3)
    assert float(information(moved).abs().max()) < 1e-12 and float(moved.kl().min()) > 1


def test_posteriors_far_apart_tell_which_text_it_is():
    q = gaussians([[0.0], [100.0], [200.0], [300.0]], 1.0)
    torch.testing.assert_close(information(q), torch.full((4,), math.log(4), dtype=torch.float64))


def test_information_of_a_linear_gaussian_channel():
    """x ~ N(0, 1), z|x ~ N(x, s^2): I = log(1 + 1 / s^2) / 2."""
    x = torch.randn(1500, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for variance in (0.25, 1.0):
        found = information(gaussians(x, variance), draws=2)
        assert float(found.mean()) == pytest.approx(0.5 * math.log(1 + 1 / variance), abs=0.05)


def test_information_is_what_kl_leaves_over_the_kl_of_the_aggregate():
    """E KL(q(z|x) || p) - KL(q(z) || p), the second by quadrature."""
    q = gaussians([[-1.0], [0.5], [2.0]], 0.4)
    z = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    each = torch.distributions.Normal(q.mean.flatten()[:, None], math.sqrt(0.4)).log_prob(z)
    log_q, log_p = each.logsumexp(0) - math.log(3), torch.distributions.Normal(0.0, 1.0).log_prob(z)
    aggregate = torch.trapezoid(log_q.exp() * (log_q - log_p), z)
    assert float(information(q, 3000).mean()) == pytest.approx(float(q.kl().mean() - aggregate), abs=0.02)


def test_active_units_are_those_whose_means_move():
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.0, 0.05, 0.2, 1.0])
    mean = torch.randn(500, 1, 1, 4, generator=generator) * scales + 5
    assert measures.active_units(mean) == 2
    with pytest.raises(ValueError, match="two"):
        measures.active_units(mean[:1])


@pytest.fixture(scope="module")
def model():
    """Two latent dimensions that matter, and so an evidence to compare with."""
    trained = two_dimensional(1, PosteriorConfig(steps=8, matmul="float32"), updates=30)
    with torch.no_grad():
        trained.decoder.blocks[0].cross_latents.weight.mul_(8)
        trained.decoder.blocks[0].cross_out.weight.mul_(8)
    return trained


def curve(model, by, settings, draws=64):
    return measures.curve(
        model, TEXTS, SequenceRng(0, range(len(TEXTS))), 32, settings, by=by, draws=draws, importance_draws=draws
    )


@pytest.mark.parametrize(("by", "settings"), [("steps", [0, 1, 4, 32]), ("latents", [0, 1])])
def test_every_point_of_a_curve_is_a_bound(model, by, settings):
    exact_N = evidence(model, TEXTS)
    for p in curve(model, by, settings):
        for nats_N in (p.elbo_N, p.importance_N):
            assert float(nats_N.exp().sum()) <= 1.01
            assert float((nats_N - exact_N).mean()) < 0.03  # of Monte Carlo error
        assert float((p.importance_N - p.elbo_N).mean()) > -0.01


def test_no_steps_and_no_latents_are_the_prior(model):
    (none,), (unused,) = curve(model, "steps", [0]), curve(model, "latents", [0])
    torch.testing.assert_close(none.elbo_N, unused.elbo_N)
    torch.testing.assert_close(none.importance_N, unused.importance_N)


def test_more_steps_come_closer_and_cost_more(model):
    points = curve(model, "steps", [0, 8, 64])
    means = [float(p.elbo_N.mean()) for p in points]
    assert means[0] < means[2]
    assert points[0].elbo_flops < points[1].elbo_flops < points[2].elbo_flops
    cost = model.cost(L).score_flops_per_token
    assert measures.flops_with_steps(model, 8, 8, L) == pytest.approx(cost)


def test_all_steps_and_latents_are_the_model_itself(model):
    rng = SequenceRng(0, range(len(TEXTS)))
    expected = model.log_likelihoods(TEXTS, rng=rng, draws=8, only="elbo")["elbo"].nats_B
    for by, setting in (("steps", model.config.posterior.steps), ("latents", model.config.latents)):
        (p,) = curve(model, by, [setting], draws=8)
        torch.testing.assert_close(p.elbo_N, expected)


@pytest.mark.parametrize("cls", [LatentThoughtModel, VAE])
def test_latents_left_out_stay_at_the_prior(cls):
    torch.manual_seed(0)
    settings = [] if cls is VAE else ["posterior=published_code"]
    model = cls(with_settings(cls.miniature(V + 1, L), settings)).double().requires_grad_(False)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.4)
        q = measures.with_latents(model, 3)(TEXTS[:5], SequenceRng(0, range(5)))
    used = torch.tensor([[True, True], [True, False]])  # in turn: layer 0, layer 1, layer 0
    assert float(q.kl()[:, ~used].abs().max()) == 0
    assert float(q.kl()[:, used].min()) > 0


def test_statistics_of_a_decoder_that_ignores_z_are_zero_even_of_a_fit():
    """Under one noise for all texts; with a noise of each text's own, chance would look like information."""
    torch.manual_seed(0)
    config = with_settings(LatentThoughtModel.miniature(V + 1, L), ["posterior.init_mean_std=0.5", "posterior.steps=2"])
    model = LatentThoughtModel(config).double()
    with torch.no_grad():
        for block in model.decoder.blocks:
            block.cross_out.weight.zero_()
    texts = structured_batch(torch.Generator().manual_seed(0), 12)
    q = measures.posterior(model, texts, SequenceRng(0, [0] * 12), 5)
    assert measures.active_units(q.mean) == 0 and float(information(q).abs().max()) < 1e-9
    own = measures.posterior(model, texts, SequenceRng(0, range(12)), 5)
    assert measures.active_units(own.mean) > 0


def test_an_interpolation_ends_at_its_ends(model):
    ends = torch.tensor([[-2.0, 1.0], [2.0, -1.0]], dtype=torch.float64).view(2, 1, 1, 2)
    texts = measures.interpolation(model, ends, points=3, tokens=4)
    assert len(texts) == 3 and all(len(text) == 4 for text in texts)
    for n, z in ((0, ends[0]), (2, ends[1])):
        (alone,) = measures.interpolation(model, torch.stack([z, z]), points=1, tokens=4)
        assert alone == texts[n]


def test_doublings():
    assert measures.doublings(6) == [0, 1, 2, 4, 6] and measures.doublings(1) == [0, 1]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A home with small models, and a corpus."""
    monkeypatch.setenv("LTM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "ptb").mkdir(parents=True)
    text = "".join(f"line {n} of a text that says {n * n} things\n" for n in range(40))
    (tmp_path / "data" / "ptb" / "validation.txt").write_text(text)
    return tmp_path


def save_vae(home) -> None:
    tokens = tokenizer.build("bytes")
    config = VAE.miniature(tokens.vocab_size, 32)
    torch.manual_seed(0)
    model = VAE(config)
    checkpoint.save(
        home / "models" / "vae-tiny",
        1,
        name="vae-tiny",
        model=model,
        tokenizer=tokens,
        weights=model.state_dict(),
        state={},
        training=TRAINING,
    )


def run(tasks: str, models: str, *more: str) -> int:
    return cli.main(["--model", models, "--tasks", tasks, "--data-dir", "data", *more])


def test_the_command_writes_a_cell_records_and_a_figure(place, capsys):
    pytest.importorskip("matplotlib")
    save_small(place, "ltm-tiny")
    save_vae(place)
    assert run("diagnostics_ptb", "ltm-tiny,vae-tiny", "--limit-blocks", "6") == 0
    printed = capsys.readouterr()
    assert "bounds by steps" in printed.err and "between the posterior means" in printed.err
    assert printed.err.count("Of the loss of") == 2 and printed.err.count("0 steps are the encoder's q") == 1
    gap_cell = re.compile(r"[≤~] -?\d\.\d{4} ")  # information is printed to three digits
    assert len(gap_cell.findall(printed.out)) == 2
    assert max(len(line) for line in printed.err.splitlines() if "≤" in line or "bounds by" in line) <= 100
    for name in ("ltm-tiny", "vae-tiny"):
        (path,) = (place / "results" / name / "ltm_diagnostics_ptb").glob("*.json")
        result = read_result(path)
        assert result.status == "partial" and result.scoring["blocks"] == 6
        metrics = {m.name: m for m in result.metrics}
        assert metrics["mutual_information"].kind == "estimate" and metrics["mutual_information"].value <= math.log(6)
        assert 0 <= metrics["active_units"].value <= metrics["units"].value
        records = read_records(path, result)
        posterior = [r for r in records if r["part"] == "posterior"]
        mean = sum(r["mutual_information"] for r in posterior) / 6
        assert mean == pytest.approx(metrics["mutual_information"].value)
        kl = sum(r["kl"] for r in posterior) / sum(r["tokens"] for r in posterior)
        assert kl == pytest.approx(metrics["kl_per_token"].value)
        assert sum(r["part"] == "interpolation" for r in records) == 5
        assert json.dumps(records) and path.with_suffix(".svg").read_text().startswith("<?xml")
        curve = [r for r in records if r["part"] == "bounds by steps"]
        assert [r["steps"] for r in curve] == ([0, 1, 2, 4, 8, 16, 32, 64] if name == "ltm-tiny" else [0, 1, 4, 16])
        assert all(len(r["tube_upper_bound"]) == len(r["tail"]) == len(r["effective"]) == 6 for r in curve)
        gaps = [m for n, m in metrics.items() if "_gap_" in n]
        assert len(gaps) == (2 if name == "ltm-tiny" else 3)
        assert all(recomputed(m, result, records) == pytest.approx(m.value, rel=1e-9, abs=1e-12) for m in gaps)
    assert verify(place / "results")[1] == []
    entries = load(place / "results")
    whole, by_steps, by_latents = task_results.parts(entries, "diagnostics")
    assert "inference_gap_nats_per_token ↓" in whole.table.header and len(whole.table.rows) == 2
    assert by_steps.table.header[4] == "From above, nats/token" and "From above" not in str(by_latents.table.header)
    assert {row[4][:2] for row in by_steps.table.rows} <= {"≥ ", "~ "}
    assert len(by_steps.figures[0].series) == 6 and len(by_latents.figures[0].series) == 4
    assert run("diagnostics_ptb", "ltm-tiny", "--limit-blocks", "6") == 0
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("ar-tiny", [], "has no latents"),
        ("ltm-tiny", ["--set", "inference=langevin"], "without a Gaussian"),
        ("ltm-tiny", ["--limit-blocks", "1"], "at least 2 full blocks"),
    ],
)
def test_what_has_no_diagnostics_says_so(place, capsys, model, more, message):
    save_small(place, model)
    assert run("diagnostics_ptb", model, *more) == 2
    assert message in capsys.readouterr().err


def test_lm_eval_is_told_to_leave_it_to_us():
    from lm_eval.tasks import TaskManager

    from tasks import catalog

    manager = TaskManager(include_path=str(catalog.DIRECTORY), include_defaults=False)
    with pytest.raises(Exception, match="run ltm-eval"):
        manager.load(["ltm_diagnostics"])
