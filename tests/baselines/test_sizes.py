"""Presets of one size are matched: in total parameters, tokenizer, recipe and block length."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ltm import registry
from ltm.api import LanguageModel

BY_COUNTING = ("ngram",)


def presets(size: str) -> dict[str, LanguageModel]:
    """Every preset of a size but those that count, without memory for its weights."""
    found = {}
    for name in registry.preset_names():
        if name.endswith(f"-{size}") and not name.startswith(BY_COUNTING):
            cls, preset = registry.preset(name)
            rows = int(preset.tokenizer.removeprefix("bpe-")) + 1
            with torch.device("meta"):
                found[name] = cls(dataclasses.replace(preset.config, vocab_size=rows))
    return found


@pytest.mark.parametrize(("size", "models"), [("tiny", 10), ("mini", 8)])
def test_are_matched(size: str, models: int) -> None:
    found = presets(size)
    assert len(found) >= models
    target = found[f"ltm-{size}"].cost(found[f"ltm-{size}"].block_length).parameters
    for name, model in found.items():
        assert model.cost(model.block_length).parameters == pytest.approx(target, rel=0.01), name
    shared = {name: registry.preset(name)[1] for name in found}
    assert len({preset.tokenizer for preset in shared.values()}) == 1
    assert len({tuple(sorted(preset.training.items())) for preset in shared.values()}) == 1
    assert len({model.block_length for model in found.values()}) == 1
