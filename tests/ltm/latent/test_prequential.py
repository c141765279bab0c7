"""Texts read in chunks: a distribution over texts under any noise, and nothing that a chunk should not have seen."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from baselines.vae import VAE
from ltm import registry, tokenizer
from ltm.config import with_settings
from ltm.errors import UserError
from ltm.harness import HarnessModel
from ltm.latent import bounds
from ltm.latent.base import LatentModel
from ltm.latent.langevin import LangevinConfig, chains
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import Posterior, PosteriorConfig, fit
from ltm.latent.prequential import Prequential, chunk_noise, first_position, prequential_bound
from ltm.registry import preset
from ltm.result import read_result
from ltm.rng import SequenceRng, seed_of
from ltm.testing.miniatures import L, V, all_texts, structured_batch
from ltm.training import checkpoint
from tasks import catalog, cli
from tests.support.harness_models import TRAINING, save_small

TEXTS = all_texts()
MODELS = {
    "ltm": (LatentThoughtModel, ("posterior.matmul=float32", "posterior.steps=8")),
    "published": (LatentThoughtModel, ("posterior=published_code", "posterior.matmul=float32", "posterior.steps=8")),
    "langevin": (LatentThoughtModel, ("inference=langevin", "langevin.matmul=float32", "langevin.steps=3")),
    "vae": (VAE, ()),
    "vq": (VAE, ("bottleneck=vq", "vq.codes=4")),
}


@functools.cache
def large(name: str, length: int = L) -> LatentModel:
    """A miniature with weights so large that its decoder minds tokens and z, in float64; shared between tests."""
    cls, settings = MODELS[name]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = cls(with_settings(cls.miniature(V + 1, length), settings)).double()
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.4)
    return model.eval().requires_grad_(False)


@pytest.fixture(params=sorted(MODELS))
def model(request):
    """One way of inferring z after the other."""
    return large(request.param)


def bound(model, texts, chunk, draws=4, rng=None, **options):
    rng = SequenceRng(3, range(len(texts))) if rng is None else rng
    return prequential_bound(model, texts, chunk=chunk, draws=draws, rng=rng, **options)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4])
def test_under_one_noise_it_is_a_distribution_over_texts(model, chunk):
    """Every factor sums to 1 over its chunk when its noise is the same whatever the text: none has seen its chunk."""
    found = bound(model, TEXTS, chunk, rng=SequenceRng(0, [5] * len(TEXTS)))
    assert float(found.nats_B.exp().sum()) == pytest.approx(1, abs=1e-9)
    assert found.kind == "lower_bound" and (found.tokens_B == L).all() and found.draws == 4


def test_with_noise_of_their_own_texts_share_at_most_all_probability(model):
    found = bound(model, TEXTS, 2, draws=64)
    p_B = found.nats_B.exp()
    error = float((p_B.square() * found.mc_var_B).sum().sqrt())
    assert error < 0.1 and float(p_B.sum()) <= 1 + 3 * error


def test_z_matters_to_these_models(model):
    """Otherwise the tests above would show nothing."""
    rng = SequenceRng(0, [5] * len(TEXTS))
    spread = bound(model, TEXTS, 4, rng=rng).nats_B - bound(model, TEXTS, 1, rng=rng).nats_B
    assert float(spread.abs().max()) > 0.02


def test_the_last_chunk_is_the_predictive_bound(model):
    """Two chunks: the first is scored under the prior, the second is a continuation of the first."""
    rng, count = SequenceRng(4, range(len(TEXTS))), 16
    whole = bound(model, TEXTS, 2, draws=count, rng=rng)
    first = bound(model, TEXTS[:, :2], 2, draws=count, rng=rng)
    chains_or_q = count if getattr(model.config, "inference", "") == "langevin" else count // 8
    rest = model.log_likelihoods(TEXTS, context=2, draws=chains_or_q, rng=chunk_noise(rng, 1))
    torch.testing.assert_close(whole.nats_B - first.nats_B, rest["predictive_bound"].nats_B)


def test_one_chunk_is_the_mean_over_the_prior():
    model = large("ltm")
    rng = SequenceRng(4, range(len(TEXTS)))
    q = Posterior.prior(len(TEXTS), model.latent_shape, like=model.decoder.embedding)
    batch = model.scoring_batch(TEXTS, 0, None, rng)
    expected = bounds.predictive_bound(batch.log_likelihood, q, batch.tokens_B, draws=32, rng=chunk_noise(rng, 0))
    found = bound(model, TEXTS, L, draws=32, rng=rng)
    torch.testing.assert_close(found.nats_B, expected.nats_B)
    torch.testing.assert_close(found.mc_var_B, expected.mc_var_B)


def test_without_a_say_of_z_it_is_the_likelihood_of_the_decoder():
    """Whatever the chunks and draws, as of an autoregressive model."""
    model = LatentThoughtModel(LatentThoughtModel.miniature(V + 1, L)).double()
    with torch.no_grad():
        for block in model.decoder.blocks:
            block.cross_out.weight.zero_()
    model.eval().requires_grad_(False)
    batch = model.scoring_batch(TEXTS, 0, None, SequenceRng(0, range(len(TEXTS))))
    exact = batch.log_likelihood(torch.zeros(len(TEXTS), *model.latent_shape, dtype=torch.float64))
    for chunk, draws in [(1, 1), (2, 3), (4, 2)]:
        torch.testing.assert_close(bound(model, TEXTS, chunk, draws).nats_B, exact)
    assert bound(model, TEXTS, 1, draws=1).mc_var_B is None


def test_batch_order_and_padding_change_nothing(model):
    texts = structured_batch(torch.Generator().manual_seed(3), 6)
    lengths = torch.tensor([4, 1, 3, 2, 4, 3])
    whole = bound(model, texts, 2, lengths=lengths)
    other = texts.clone()
    other[torch.arange(L) >= lengths[:, None]] = V - 1
    torch.testing.assert_close(bound(model, other, 2, lengths=lengths).nats_B, whole.nats_B, rtol=0, atol=0)
    for row in (3, 0, 5, 2):
        alone = bound(model, texts[row : row + 1, : lengths[row]], 2, rng=SequenceRng(3, [row]))
        torch.testing.assert_close(alone.nats_B[0], whole.nats_B[row], rtol=0, atol=1e-9)
        assert alone.tokens_B[0] == whole.tokens_B[row] == lengths[row]


@pytest.mark.parametrize("name", ["ltm", "vae"])
def test_positions_left_out_are_those_that_do_not_matter(name):
    """A window of 2 in two layers: of long texts only the last positions before a chunk are gone through again."""
    model = large(name, 24)
    assert first_position(model.config.decoder, 20) == 19
    texts = torch.randint(V, (5, 24), generator=torch.Generator().manual_seed(0))
    rng = SequenceRng(3, range(5))
    batch, expected, before = model.scoring_batch(texts, 0, None, rng), torch.zeros(5, dtype=torch.float64), None
    for number, start in enumerate(range(0, 24, 5)):
        seen = torch.ones(5, start, dtype=torch.bool)
        zs, before = model.latents_after(
            texts[:, :start], chunk_noise(rng, number), weights_BL=seen, draws=3, before=before
        )
        upto = [
            [
                model.scoring_batch(texts[:, :end], 0, None, rng).log_likelihood(z) if end else torch.zeros(5).double()
                for end in (start, min(start + 5, 24))
            ]
            for z in zs
        ]
        expected += bounds.log_mean_exp(torch.stack([b - a for a, b in upto]), batch.tokens_B).nats_B
    torch.testing.assert_close(bound(model, texts, 5, draws=3, rng=rng).nats_B, expected)


def test_a_fit_goes_on_from_where_it_is_told_to():
    rng, shape = SequenceRng(0, range(2)), (1, 1, 3)
    start = Posterior(mean=torch.full((2, *shape), 2.0), log_variance=torch.full((2, *shape), -1.0))
    options = {"device": torch.device("cpu"), "start": start}
    kept = fit(torch.zeros_like, shape, PosteriorConfig(steps=0), rng, **options)
    assert torch.equal(kept.mean, start.mean) and torch.equal(kept.log_variance, start.log_variance)
    moved = fit(torch.zeros_like, shape, PosteriorConfig(steps=1, lr=0.1), rng, **options)
    torch.testing.assert_close(moved.mean, start.mean - 0.1)  # the KL alone pulls it to 0


def test_chains_go_on_towards_the_posterior_itself():
    """x ~ N(z, 1): from the prior in long steps, then on from there; z|x is N(x / 2, 1 / 2)."""
    count, x = 4000, 1.0
    config, stream = LangevinConfig(steps=30, step_size=0.2), SequenceRng(0, range(count))
    options = {"device": torch.device("cpu"), "dtype": torch.float64, "count": 1, "weigh": False}
    starts = [torch.full((count, 1, 1, 1), 3.0, dtype=torch.float64)]
    ((z, ratio_B),) = chains(lambda z: z - x, (1, 1, 1), config, stream.stream("a"), starts=starts, **options)
    assert float(z.mean()) == pytest.approx(x / 2, abs=0.05) and float(z.var()) == pytest.approx(0.5, abs=0.06)
    assert float(ratio_B.abs().max()) == 0
    with pytest.raises(ValueError, match="no weights"):
        next(chains(lambda z: z, (1, 1, 1), config, stream.stream("a"), starts=starts, **{**options, "weigh": True}))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ltm-tiny", ["posterior.steps=2"]),
        ("ltm-tiny", ["inference=langevin", "langevin.steps=2"]),
        ("vae-tiny", []),
        ("vae-vq-tiny", []),
    ],
)
def test_counted_operations(name, settings):
    torch.manual_seed(0)
    cls, chosen = preset(name)
    config = dataclasses.replace(chosen.config, vocab_size=513)
    reader = Prequential(cls(with_settings(config, settings)), 48)
    tokens, rng = torch.randint(512, (2, reader.block_length)), SequenceRng(0, range(2))
    _ = reader.model.inference_matmul  # now, so that its measurement is not counted
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        reader.log_likelihoods(tokens, draws=4, rng=rng)
    expected = reader.score_flops_per_token(reader.block_length, 4)
    assert counted.get_total_flops() / tokens.numel() == pytest.approx(expected, rel=0.03)


def test_continuations_are_the_models_own():
    model, rng = large("vae"), SequenceRng(0, range(len(TEXTS)))
    reader = Prequential(model, 2)
    assert (reader.headline(), reader.headline(torch.tensor([1]))) == ("prequential_bound", "predictive_bound")
    found = reader.log_likelihoods(TEXTS, context=2, rng=rng)
    expected = model.log_likelihoods(TEXTS, context=2, rng=rng)
    assert torch.equal(found["predictive_bound"].nats_B, expected["predictive_bound"].nats_B)


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="1 to 4 tokens, found 5"):
        Prequential(large("vae"), 5)
    with pytest.raises(UserError, match="has none"):
        Prequential(torch.nn.Linear(1, 1), 2)
    with pytest.raises(ValueError, match="at least 1"):
        bound(large("vae"), TEXTS, 0)


LINES = "".join(f"line {n} of a text that says {n * n} things\n" for n in range(12))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A home with small models, and a corpus."""
    monkeypatch.setenv("LTM_HOME", str(tmp_path))
    monkeypatch.setenv("LTM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "ptb").mkdir(parents=True)
    (tmp_path / "data" / "ptb" / "validation.txt").write_text(LINES)
    save_small(tmp_path, "ltm-tiny")
    save_small(tmp_path, "ar-tiny")
    return tmp_path


def test_whole_texts_behind_lm_eval(place):
    harness = HarnessModel(pretrained="ltm-tiny", prequential=8, draws=2)
    assert harness.offered == {"prequential_bound": ("lower_bound", 2)}
    assert harness.get_model_info()["prequential_chunk"] == 8
    text = LINES[:70]
    (value,) = harness.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0, metadata=("t", 0, 1))])
    expected = []
    for n, start in enumerate(range(0, 70, 32)):
        block = torch.tensor([list(text[start : start + 32].encode())])
        rng = SequenceRng(seed_of(0, "t"), [n])
        found = prequential_bound(harness.loaded.model, block, chunk=8, draws=2, rng=rng)
        expected.append(float(found.nats_B))
    # The fit's products are in bfloat16, whose rounding depends on the batch.
    assert value.blocks.nats_N.tolist() == pytest.approx(expected, rel=1e-3)
    assert (value.headline, value.kind, value.tokens) == ("prequential_bound", "lower_bound", 70)
    request = Instance("loglikelihood", {}, ("line", " 3"), 0, metadata=("t", 0, 1))
    ((continuation, _),) = harness.loglikelihood([request])
    assert continuation.headline == "predictive_bound"


def test_other_chunks_are_other_answers(place):
    def value(chunk):
        harness = HarnessModel(pretrained="ltm-tiny", prequential=chunk, draws=2)
        request = Instance("loglikelihood_rolling", {}, (LINES,), 0, metadata=("t", 0, 1))
        return float(harness.loglikelihood_rolling([request])[0])

    assert value(8) == value(8) != value(16)


def test_the_command_and_lm_eval_agree_on_the_task(place, capsys):
    arguments = ["--tasks", "prequential_ptb", "--draws", "2", "--chunk", "8"]
    assert cli.main(["--model", "ltm-tiny,ar-tiny", *arguments]) == 0
    results = {}
    for name in ("ltm-tiny", "ar-tiny"):
        (path,) = (place / "results" / name / "ltm_prequential_ptb").glob("*.json")
        results[name] = read_result(path)
    result, exact = results["ltm-tiny"], results["ar-tiny"]
    metric = result.metric("token_perplexity")
    assert (metric.likelihood, metric.kind) == ("prequential_bound", "lower_bound")
    assert (result.scoring["chunk"], result.scoring["draws"], exact.scoring["chunk"]) == (8, 2, None)
    model = HarnessModel(pretrained="ltm-tiny").loaded.model
    expected = Prequential(model, 8).score_flops_per_token(32, 2)
    assert result.cost["score_flops_per_token"] == pytest.approx(expected)
    assert exact.metric("token_perplexity").likelihood == "exact"

    harness = HarnessModel(pretrained="ltm-tiny", prequential=8, draws=2)
    manager = TaskManager(include_path=str(catalog.DIRECTORY), include_defaults=False)
    theirs = evaluate(harness, manager.load(["ltm_prequential_ptb"]), bootstrap_iters=0)["results"]
    assert theirs["ltm_prequential_ptb"]["token_perplexity,none"] == metric.value
    with pytest.raises(UserError, match="prequential=16"):
        evaluate(
            HarnessModel(pretrained="ltm-tiny", headline_only=True, draws=1),
            manager.load(["ltm_prequential_ptb"]),
            bootstrap_iters=0,
        )
    assert cli.main(["--model", "ltm-tiny", *arguments]) == 0
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("mdlm-tiny", [], "no prequential bound: its elbo bounds a whole text"),
        ("ltm-tiny", ["--chunk", "33"], "1 to 32 tokens, found 33"),
        ("ltm-tiny", ["--chunk", "0"], "--chunk=0: expected a whole number of at least 1"),
    ],
)
def test_what_cannot_be_read_in_chunks_says_so(place, capsys, model, more, message):
    if model == "mdlm-tiny":
        mdlm = registry.model_family("mdlm")
        tokens = tokenizer.build("bytes")
        diffusion = mdlm(mdlm.miniature(tokens.vocab_size, 32))
        checkpoint.save(
            place / "models" / model,
            1,
            name=model,
            model=diffusion,
            tokenizer=tokens,
            weights=diffusion.state_dict(),
            state={},
            training=TRAINING,
        )
    assert cli.main(["--model", model, "--tasks", "prequential_ptb", *more]) == 2
    assert message in capsys.readouterr().err
