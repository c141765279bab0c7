"""Scoring as public code scores: its costs at its own noise, its cuts, its averages."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from baselines.ar import ARConfig, Autoregressive
from baselines.diffusion.bd3lm import BD3LM, BD3LMConfig
from baselines.diffusion.duo import Duo, DuoConfig
from baselines.diffusion.mdlm import MDLM, MDLMConfig
from baselines.diffusion.sedd import SEDD, SEDDConfig
from ltm.latent.posterior import Posterior, PosteriorConfig, fit
from ltm.published_protocol import EPSILON, PublishedProtocol, ScoresAsPublished, blocks_of, times
from ltm.rng import SequenceRng
from tests.ltm.latent import test_published_code as official
from tests.ltm.published.test_dit_weights import FOLDER, LOSSES, model


def test_the_loss_of_mdlm_at_its_noise():
    made, io, mask = model("mdlm", MDLM, MDLMConfig)
    found = made.published_costs(io["x0"], io["xt"] == mask - 1, io["t"][:, None])
    torch.testing.assert_close(found.float(), io["subs.loss_BL"], **LOSSES)


def test_the_loss_of_sedd_at_its_noise():
    made, io, mask = model("sedd", SEDD, SEDDConfig)
    found = made.published_costs(io["x0"], io["xt"] == mask - 1, io["t"][:, None])
    # Near time 0 a token costs 1e4 nats, and public code forms 1 - 0.999 t in float32.
    torch.testing.assert_close(found.sum(1).float(), io["loss_B"], rtol=5e-5, atol=1e-5)


def test_the_loss_of_bd3lm_at_its_noise():
    made, io, mask = model("bd3lm", BD3LM, BD3LMConfig, block_size=4)
    found = made.published_costs(io["x0"], (io["xt"] == mask - 1)[:, 1:], io["t"][:, 1:])
    torch.testing.assert_close(found.float(), io["loss_BL"][:, 1:], **LOSSES)


def test_the_loss_of_duo_at_its_noise():
    c = json.loads((FOLDER / "duo" / "config.json").read_text())
    made, io, _ = model("duo", Duo, DuoConfig, unused_states=1)
    assert made.outputs == c["vocab_size"]
    found = made.published_costs(io["x0"], io["xt"], io["t"][:, None])
    torch.testing.assert_close(found.float(), io["loss_BL"], **LOSSES)


def test_the_loss_of_the_autoregressive_control():
    made, io, _ = model("ar", Autoregressive, ARConfig)
    ids_BN = torch.cat([io["x"], io["y"][:, -1:]], 1)
    found = made.published_nats(ids_BN, SequenceRng(0, range(len(ids_BN))))
    torch.testing.assert_close(found.float(), io["nll"].sum(1), **LOSSES)


@pytest.mark.parametrize(("run", "steps"), [("eval16", 16), ("eval32", 32)])
def test_the_report_of_the_official_ltm(run, steps):
    """Fit and value by the model's own code, from the public start and noise; the report is the mean of exp."""
    own, io = official.MODEL, official.IO
    mean, log_variance = (io[f"{run}.{name}"].view(-1, *own.latent_shape) for name in ("mu0", "log_var0"))
    start = Posterior(mean=mean, log_variance=log_variance)
    config = dataclasses.replace(PosteriorConfig.NAMED["published_code"], steps=steps)
    gradient = own.likelihood_gradient(io["y"], None, matmul="float32", inputs_BL=io["x"])
    noise = official.Scripted(io[f"{run}.eps"])
    q = fit(gradient, own.latent_shape, config, noise, device=torch.device("cpu"), start=start)
    nats_B = own.published_value(io["y"], io["x"], q)
    torch.testing.assert_close(nats_B.float(), io[f"{run}.nll_B"] + io[f"{run}.kl_B"], rtol=1e-6, atol=1e-4)
    reported = float((nats_B / io["y"].shape[1]).exp().mean())
    assert reported == pytest.approx(float(io[f"{run}.ppl"]), rel=1e-5) and own.published_protocol().mean_of_exp


def protocol(**changes) -> PublishedProtocol:
    kept = {"source": "", "eos_after_rows": True, "wrapped": True, "given": 0, "mean_of_exp": False, "told": ""}
    return PublishedProtocol(**{**kept, **changes})


ROWS = [np.arange(1, 4), np.arange(4, 6), np.arange(6, 9)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [[0, 1, 2, 3, 0, 0], [0, 4, 5, 0, 6, 0]]),
        ({"eos_after_rows": False}, [[0, 1, 2, 3, 4, 0], [0, 5, 6, 7, 8, 0]]),
        ({"wrapped": False}, [[1, 2, 3, 0, 4, 5]]),
        ({"wrapped": False, "eos_after_rows": False}, [[1, 2, 3, 4, 5, 6]]),
    ],
)
def test_texts_are_cut_as_the_scripts_cut_them(changes, expected):
    found = blocks_of(ROWS, protocol(**changes), eos=0, positions=6)
    assert found.tolist() == expected and found.dtype == np.int64
    assert blocks_of([], protocol(**changes), eos=0, positions=6).shape == (0, 6)


def test_times_cover_their_interval_evenly():
    found = times(SequenceRng(3, range(400)))[:, 0]
    assert float(found.min()) >= EPSILON and float(found.max()) <= 1
    assert float(found.mean()) == pytest.approx((1 + EPSILON) / 2, abs=0.005)


@pytest.mark.parametrize(
    ("system", "cls", "config", "settings"),
    [
        ("mdlm", MDLM, MDLMConfig, {}),
        ("sedd", SEDD, SEDDConfig, {}),
        ("bd3lm", BD3LM, BD3LMConfig, {"block_size": 4}),
        ("duo", Duo, DuoConfig, {"unused_states": 1}),
        ("ar", Autoregressive, ARConfig, {}),
    ],
)
def test_a_block_is_scored_alike_in_any_batch(system, cls, config, settings):
    made, io, _ = model(system, cls, config, **settings)
    ids_BN = io["x0"] if "x0" in io else torch.cat([io["x"], io["y"][:, -1:]], 1)
    assert isinstance(made, ScoresAsPublished)
    together = made.published_nats(ids_BN, SequenceRng(0, range(3)))
    alone = torch.cat([made.published_nats(ids_BN[i : i + 1], SequenceRng(0, [i])) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert together.shape == (3,) and bool((together > 0).all())
