"""Bounds of miniatures lie on their sides of log p(x) for all 81 texts; laws are exact; a stopped run goes on."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

from baselines.diffusion.bd3lm import BD3LM
from baselines.diffusion.md4 import MD4
from baselines.diffusion.mdlm import MDLM
from baselines.diffusion.sedd import SEDD
from benchmarks.two_sided import __main__ as command
from benchmarks.two_sided import coverage, miniatures
from ltm.errors import UserError
from ltm.rng import SequenceRng
from ltm.testing.miniatures import V, all_texts
from tests.baselines.diffusion.test_bd3lm import enumerated_law
from tests.baselines.diffusion.test_sedd import sampler_law
from tests.support.canvas_laws import trained
from tests.support.masked_laws import log_law
from tests.support.sampler_laws import first_hitting


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", miniatures.MADE)
def test_every_text_lies_between(name, seed):
    """In total by no more than four errors beyond a bound, and by no text far: of one, 64 skewed weights say little."""
    record = miniatures.measured(name, seed)
    assert record["mass"] == pytest.approx(1, abs=1e-6)
    claimed = [each for each in record["bounds"].values() if each.get("trusted", True)]
    assert claimed and all(each["in_all"] <= 4 and each["worst"] <= 5 for each in claimed)
    assert all(off < 1e-9 for off in record["off"].values())
    sides = {each["kind"] for each in record["bounds"].values()}
    latent = name in ("ltm", "vae", "ltm, inference=langevin")
    assert sides == ({"lower_bound", "upper_bound"} if latent else {"lower_bound"})


@pytest.mark.parametrize("length", [2, 4])
def test_laws_are_those_that_are_known_otherwise(length):
    """Orders written out where networks are told no time; a sampler of many steps or quadrature where they are."""
    texts = all_texts(V, length)
    block = trained(BD3LM)
    torch.testing.assert_close(log_law(block, texts), enumerated_law(block, texts).log(), rtol=0, atol=1e-9)
    for family in (MDLM, MD4, SEDD):
        log_p = log_law(trained(family), texts)
        assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-6)
    if length == 2:
        torch.testing.assert_close(
            log_law(trained(MDLM), texts), first_hitting(trained(MDLM), texts), rtol=0, atol=1e-9
        )
        # Twelve nodes hardly resolve how MD4's network varies over time: with forty it is within 2e-3.
        torch.testing.assert_close(log_law(trained(MD4), texts), first_hitting(trained(MD4), texts), rtol=0, atol=0.03)
        steps = trained(SEDD, sampling_steps=100)
        torch.testing.assert_close(log_law(steps, texts), sampler_law(steps, texts).log(), rtol=0, atol=0.04)


def test_an_upper_bound_below_the_truth_is_not_held():
    record = {"bounds": {"up": {"kind": "upper_bound", "worst": 3.6, "allowed": 3.5}}, "off": {}}
    assert not miniatures.held(record)
    assert not miniatures.held({"bounds": {}, "off": {"margin": 1e-3}}) and miniatures.held({"bounds": {}, "off": {}})


def test_the_linear_decoder_is_what_it_says():
    """log p by quadrature over one latent, coordinate by coordinate, and by many weights."""
    case = coverage.Linear(weights=(0.9,))
    nats_N, variance_N = case.reference()
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    normal = torch.distributions.Normal
    for x, nats in zip(case.x_ND[:, 0], nats_N, strict=True):
        joint = (normal(0.0, 1.0).log_prob(z) + normal(0.9 * z, 0.8).log_prob(x)).exp()
        assert float(torch.trapezoid(joint, z).log()) == pytest.approx(float(nats), abs=1e-9)
    assert not variance_N.any()
    lower, upper = case.bounds(SequenceRng(0, range(coverage.TEXTS)))
    for found in (lower, upper):
        assert abs(float((found.nats_B - nats_N).sum())) < 5 * math.sqrt(float(found.mc_var_B.sum())) + 0.1


def test_coverage_is_counted_and_goes_on(tmp_path, monkeypatch, capsys):
    arguments = ["two_sided", "--part", "coverage", "--only", "linear-Gaussian", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--seeds", "3"])
    command.main()
    first = (tmp_path / "coverage.jsonl").read_text().splitlines()
    monkeypatch.setattr(sys, "argv", [*arguments, "--seeds", "5"])
    command.main()
    lines = (tmp_path / "coverage.jsonl").read_text().splitlines()
    assert len(first) == 4 and len(lines) == 6 and lines[:4] == first
    assert json.loads(lines[-1])["seed"] == 4 and "linear-Gaussian" in capsys.readouterr().out


def test_names_and_numbers_that_are_none_are_refused(monkeypatch, tmp_path):
    for extra, said in ((["--only", "vea"], "did you mean"), (["--seeds", "0"], "at least 1")):
        arguments = ["two_sided", "--part", "miniatures", "--output", str(tmp_path), *extra]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(UserError, match=said):
            command.main()
