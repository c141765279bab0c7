"""The benchmark of training: the plain network and its update are the same mathematics as the library's."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest
import torch

from baselines.ar import ARConfig, Autoregressive
from benchmarks import training_step
from benchmarks.plain_gpt import PlainGPT
from ltm.errors import UserError
from ltm.nn.transformer import TransformerConfig
from ltm.rng import SequenceRng
from ltm.training.config import TrainConfig

V, B = 12, 3


def model_of(window: int | None) -> Autoregressive:
    torch.manual_seed(0)
    decoder = TransformerConfig(layers=2, width=16, heads=2, hidden=24, max_length=10, window=window)
    model = Autoregressive(ARConfig(vocab_size=V, decoder=decoder)).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.parametrize("window", [1, 3, 9, None])
def test_the_plain_network_has_the_same_loss_and_gradients(window):
    model, tokens_BL = model_of(window), torch.randint(V - 1, (B, 9))
    plain = PlainGPT(model.config.decoder, V, torch.float64)
    plain.load_state_dict(model.decoder.state_dict())
    ours = model.training_loss(tokens_BL, rng=SequenceRng(0, range(B))).value
    theirs = plain(tokens_BL)
    torch.testing.assert_close(theirs, ours)
    ours.backward()
    theirs.backward()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(p.grad, model.decoder.get_parameter(name).grad)


@pytest.mark.parametrize("window", [3, None])
def test_both_loops_take_the_same_steps(window):
    """Ours without a moving average: after five updates the weights are the same, in all three loops if no window."""
    model, tokens_BL = model_of(window), torch.randint(V - 1, (B, 9))
    recipe = TrainConfig(batch=B, lr=1e-2, clip=0.5, ema=0.0, weight_decay=0.3)
    before = model.decoder.embedding.detach().clone()
    losses = {}
    for name, loop in training_step.loops(model, recipe, tokens_BL, torch.float64).items():
        found = [loop() for _ in range(5)]
        losses[name] = [each["loss"] if isinstance(each, dict) else each for each in found]
    ours = losses.pop(training_step.OURS)
    assert ours[-1] < ours[0] and not torch.equal(model.decoder.embedding, before)
    for name, theirs in losses.items():
        assert (theirs == pytest.approx(ours, rel=1e-9)) == (window is None or "window" in name)


def test_each_loop_has_its_turn(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(training_step, "now", lambda device: clock[0])

    def loop(name, seconds):
        def work():
            order.append(name)
            clock[0] += seconds.pop(0) if len(seconds) > 1 else seconds[0]

        return work

    loops = {"slow": loop("slow", [50.0, 3.0, 9.0, 4.0]), "fast": loop("fast", [50.0, 1.0])}
    found = training_step.measured(loops, torch.device("cpu"), seconds=10.0)
    assert found == {"slow": 4.0, "fast": 1.0}  # medians without the first round
    assert order == ["slow", "fast"] * 4


def test_the_command(tmp_path, monkeypatch, capsys):
    cls, (name, preset) = Autoregressive, ("ar-tiny", Autoregressive.presets["ar-tiny"])
    small = dataclasses.replace(preset.config.decoder, layers=1, width=16, heads=2, hidden=16, max_length=9, window=4)
    monkeypatch.setitem(cls.presets, name, dataclasses.replace(preset, config=ARConfig(decoder=small)))
    file = tmp_path / "training.json"
    monkeypatch.setattr(sys, "argv", ["training_step", *f"--batch 2 --seconds 0 --json {file}".split()])
    training_step.main()
    shown, results = capsys.readouterr().out, json.loads(file.read_text())
    assert [row["loop"] for row in results["rows"]] == ["plain, window 4", "plain, whole past", training_step.OURS]
    assert all(row["tokens_per_second"] == pytest.approx(2 * 8 / row["seconds"]) for row in results["rows"])
    assert results["settings"]["tokens"] == 16 and results["machine"]["processor"]
    assert all(row["loop"] in shown for row in results["rows"])
    monkeypatch.setattr(sys, "argv", ["training_step", "--preset", "ltm-tiny"])
    with pytest.raises(UserError, match="ltm-tiny"):
        training_step.main()
