"""The weights of Lightning checkpoints, as trained and averaged: the right tensor under each name, or a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ltm.errors import UserError
from ltm.published.lightning import ema_weights, raw_weights
from ltm.untrusted.pickled_tensors import Checkpoint, read


class Rotary(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_freq", torch.rand(4))


class Backbone(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vocab_embed = torch.nn.Embedding(7, 4)
        self.rotary_emb = Rotary()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))


class Noise(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.empty = torch.nn.Parameter(torch.tensor(0.0))


class Trained(torch.nn.Module):
    """As the public trainers: a network, a noise schedule, and buffers of the sampler."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sampling_eps_min", torch.tensor(0.1))
        self.noise = Noise()
        self.backbone = Backbone()


def content(model: Trained) -> dict[str, Any]:
    averaged = [*model.backbone.parameters(), *model.noise.parameters()]
    shadow = [torch.full_like(p, float(i)) for i, p in enumerate(averaged)]
    return {
        "state_dict": model.state_dict(),
        "ema": {"decay": 0.9999, "num_updates": 10, "shadow_params": shadow},
        "hyper_parameters": {"config": Path("a")},
    }


def saved(value: Any, path: Path) -> Checkpoint:
    torch.save(value, path)
    return read(path)


@pytest.fixture
def model() -> Trained:
    torch.manual_seed(0)
    return Trained()


def test_the_average_has_the_name_of_the_parameter_that_it_is_of(model: Trained, tmp_path: Path) -> None:
    checkpoint = saved(content(model), tmp_path / "a.ckpt")
    raw, ema = raw_weights(checkpoint), ema_weights(checkpoint)
    assert list(raw) == list(ema) == list(model.state_dict())
    assert all(torch.equal(raw[name], tensor) for name, tensor in model.state_dict().items())
    names = [f"backbone.{name}" for name, _ in model.backbone.named_parameters()] + ["noise.empty"]
    for i, name in enumerate(names):
        assert torch.equal(ema[name], torch.full_like(raw[name], float(i)))
    for name in ("sampling_eps_min", "backbone.rotary_emb.inv_freq"):
        assert torch.equal(ema[name], raw[name])


def test_names_of_a_compiled_network_are_those_of_the_network(model: Trained, tmp_path: Path) -> None:
    plain = content(model)
    state = {
        name.replace("backbone.", "backbone._orig_mod.").replace("blocks.0.", "blocks.0._orig_mod."): tensor
        for name, tensor in plain["state_dict"].items()
    }
    compiled = saved(plain | {"state_dict": state}, tmp_path / "a.ckpt")
    other = saved(plain, tmp_path / "b.ckpt")
    for weights in (raw_weights, ema_weights):
        found, expected = weights(compiled), weights(other)
        assert list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in found)


def without(*keys: str) -> Callable[[dict[str, Any]], Any]:
    return lambda whole: [whole.pop(key) for key in keys]


def averages(change: Callable[[list[Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda whole: change(whole["ema"]["shadow_params"])


def ema(value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda whole: whole.update(ema=value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("ema"), "has no moving average"),
        (ema(None), "has no moving average"),
        (ema({"decay": 0.9}), "ema: expected 'shadow_params', found only 'decay'"),
        (ema([]), "ema: expected a dict with 'shadow_params'"),
        (ema({"shadow_params": {}}), "expected a list of tensors"),
        (ema(Path("a")), "found an object of pathlib"),
        (without("state_dict"), "expected 'state_dict', found only 'ema'"),
        (averages(lambda values: values.pop()), "expected 6 tensors, .*, found 5"),
        (averages(lambda values: values.append(torch.ones(2))), "expected 6 tensors, .*, found 7"),
        (averages(lambda values: values.reverse()), r"at 0, as 'backbone.vocab_embed.weight', found \[\]"),
        (averages(lambda values: values.__setitem__(1, values[1].double())), "at 1, .* found .* torch.float64"),
        (averages(lambda values: values.__setitem__(1, Path("a"))), "a tensor at 1, found an object of pathlib"),
        (lambda whole: whole["state_dict"].update(extra=Path("a")), "a tensor 'extra', found an object of pathlib"),
        (
            lambda whole: whole["state_dict"].update({"backbone._orig_mod.vocab_embed.weight": torch.ones(1)}),
            "'backbone.vocab_embed.weight' once, found it compiled and not",
        ),
    ],
)
def test_a_sentence_says_what_does_not_fit(
    change: Callable[[dict[str, Any]], Any], says: str, model: Trained, tmp_path: Path
) -> None:
    whole = content(model)
    change(whole)
    with pytest.raises(UserError, match=says):
        ema_weights(saved(whole, tmp_path / "a.ckpt"))


def test_a_file_that_is_no_dict(tmp_path: Path) -> None:
    checkpoint = saved([torch.ones(2)], tmp_path / "a.ckpt")
    for weights in (raw_weights, ema_weights):
        with pytest.raises(UserError, match="expected a dict with 'state_dict', found a list of 1"):
            weights(checkpoint)
