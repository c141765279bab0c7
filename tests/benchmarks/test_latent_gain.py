"""The benchmark of latents: its best possible model, and that a stopped sweep continues where it was."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from baselines.ar import ARConfig, Autoregressive
from benchmarks import latent_gain
from benchmarks.gain_report import best_within, reach
from ltm.errors import UserError
from ltm.known_sources.base import from_settings
from ltm.nn.transformer import TransformerConfig


@pytest.mark.parametrize(("layers", "window"), [(1, 1), (2, 1), (1, 3), (2, 3), (3, 2), (2, None)])
def test_reach_is_how_many_symbols_can_change_a_prediction(layers, window):
    L = 12
    decoder = TransformerConfig(layers=layers, width=8, heads=2, hidden=8, max_length=L + 1, window=window)
    torch.manual_seed(0)
    model = Autoregressive(ARConfig(vocab_size=6, decoder=decoder)).double()
    tokens_1L = torch.arange(L)[None] % 5
    last = model.token_nats(tokens_1L)[0, -1]
    changed = []
    for position in range(L - 1):
        other_1L = tokens_1L.clone()
        other_1L[0, position] = (other_1L[0, position] + 1) % 5
        changed.append(bool(model.token_nats(other_1L)[0, -1] != last))
    assert changed == [position >= L - 1 - reach(layers, window, L) for position in range(L - 1)]


def test_a_stopped_sweep_goes_on_and_finished_runs_are_not_repeated(tmp_path, monkeypatch, capsys):
    source = "topics:length=12,words=8,topics=2,classes=2"
    arguments = f"--source {source} --tokens 200 --texts 4 --seeds 1 --only latents --output {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["latent_gain", *arguments.split()])
    monkeypatch.setitem(latent_gain.FACTORS, "latents", ("2",))
    latent_gain.main()
    shown, file = capsys.readouterr().out, tmp_path / "results.jsonl"
    first = file.read_text()
    records = [json.loads(line) for line in first.splitlines()]
    assert [(r["model"], r["change"]) for r in records] == [("ar", ""), ("ltm", ""), ("ltm", "latents=2")]
    assert all(len(nats) == 4 for r in records for nats in r["nats"].values())

    # Torn within its last line: that run alone is scored again, from the weights that it left.
    file.write_text(first[:-30])
    latent_gain.main()
    assert file.read_text() == first
    monkeypatch.setattr(latent_gain, "measured", lambda *_: pytest.fail("finished runs are not repeated"))
    capsys.readouterr()
    latent_gain.main()
    assert file.read_text() == first and capsys.readouterr().out == shown


def test_an_unknown_setting_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["latent_gain", "--only", "latent", "--output", str(tmp_path)])
    with pytest.raises(UserError, match="latents"):
        latent_gain.main()


def test_the_best_within_a_window_is_what_the_source_says_given_it():
    source = from_settings("topics:length=5,words=2,topics=3,classes=2")
    every = source.every_text()
    r_N = source.log_likelihood(every).exp().numpy()
    # All of the past: the source itself. Two symbols: by enumeration, p(x_t | x_{t-2}, x_{t-1}) at every place.
    np.testing.assert_allclose(best_within(source, every, 4), np.log(r_N), atol=1e-12)
    joint = r_N.reshape((2,) * 5)
    expected = np.zeros_like(joint)
    for t in range(5):
        window = tuple(range(max(0, t - 2), t + 1))
        with_last = joint.sum(tuple(set(range(5)) - set(window)), keepdims=True)
        expected = expected + np.log(with_last / with_last.sum(t, keepdims=True))
    found = best_within(source, every, 2)
    np.testing.assert_allclose(found, expected.ravel(), atol=1e-12)
    # A distribution over texts, and never better than the source on its own texts.
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-12) and (r_N * found).sum() < (r_N * np.log(r_N)).sum()
