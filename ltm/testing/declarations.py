"""Tests of what a family says of itself: its name, config, presets, twins, cost and features."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ltm import registry
from ltm.api import Cost, LanguageModel
from ltm.config import config_digest, from_dict, to_dict
from ltm.errors import UserError
from ltm.testing.miniatures import FamilyTests, L, V, all_texts
from ltm.training.config import TrainConfig


def built(family: type[LanguageModel], config: Any) -> LanguageModel:
    """A model without memory for its weights."""
    with torch.device("meta"):
        return family(config)


def parameters(model: LanguageModel) -> int:
    """How many there are, a tied one counted once."""
    return sum(p.numel() for p in model.parameters())


def check_cost(cost: Cost, model: LanguageModel) -> None:
    """Assert that a cost counts the model's parameters, and that nothing is free."""
    assert cost.parameters == parameters(model)
    for name, flops in dataclasses.asdict(cost).items():
        assert name == "parameters" or (math.isfinite(flops) and flops > 0), name


class DeclarationTests(FamilyTests):
    """The contract of the class attributes, of `miniature`, `twin_config`, `cost`, `features` and `check_source`."""

    def test_its_entry_point_leads_to_it(self) -> None:
        """In the group `ltm.models`, under its `family`; that is how its checkpoints are opened."""
        assert registry.model_family(self.family.family) is self.family

    def test_its_config_is_frozen_plain_data(self) -> None:
        """An instance of `config_class` that is the same after a journey through JSON, with one digest."""
        config = self.family.miniature(vocab_size=V + 1, block_length=L)
        config_class: Any = self.family.config_class
        assert isinstance(config, config_class)
        again = from_dict(config_class, json.loads(json.dumps(to_dict(config))))
        assert again == config and config_digest(again) == config_digest(config)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, dataclasses.fields(config)[0].name, None)

    @pytest.mark.parametrize(("vocab_size", "block_length"), [(V + 1, L), (258, 16)])
    def test_a_miniature_is_of_the_size_asked_for(self, vocab_size: int, block_length: int) -> None:
        """Or of a slightly longer block, where only some lengths can be; and it says what it costs."""
        model = self.family(self.family.miniature(vocab_size=vocab_size, block_length=block_length))
        assert model.vocab_size == vocab_size and block_length <= model.block_length <= 1.25 * block_length
        assert model.device.type == "cpu"
        for length in (1, block_length):
            check_cost(model.cost(length), model)

    def test_every_preset_builds(self) -> None:
        """At the tokenizer's vocabulary, without memory for weights; recipes have settings that there are."""
        for name, preset in self.family.presets.items():
            model = built(self.family, dataclasses.replace(preset.config, vocab_size=2049))
            assert type(preset.config) is self.family.config_class, name
            assert model.vocab_size == 2049 and model.block_length > 0, name
            check_cost(model.cost(model.block_length), model)
            from_dict(TrainConfig, preset.training, where=name)

    def test_every_preset_has_a_twin(self) -> None:
        """A small one, of about the block asked for, which the audit trains; a family with presets owes it."""
        for name, preset in self.family.presets.items():
            config = self.family.twin_config(preset.config, vocab_size=258, block_length=128)
            twin = built(self.family, config)
            assert twin.vocab_size == 258 and 96 <= twin.block_length <= 160, name
            model = built(self.family, dataclasses.replace(preset.config, vocab_size=2049))
            assert parameters(twin) <= parameters(model), name

    def test_features_depend_on_the_text_alone(self, model: LanguageModel) -> None:
        """One finite vector per text, whatever its batch and padding; or a UserError that there are none."""
        texts, lengths = all_texts()[5:50:9], torch.tensor([4, 1, 3, 2, 4])
        if not self.family.has_features():
            with pytest.raises(UserError):
                model.features(texts, lengths)
            return
        found = model.features(texts, lengths)
        assert found.ndim == 2 and len(found) == len(texts) and bool(found.isfinite().all())
        assert len(found.unique(dim=0)) == len(texts), "different texts have different features"
        padded = texts.masked_fill(torch.arange(L) >= lengths[:, None], V - 1)
        torch.testing.assert_close(model.features(padded, lengths), found, rtol=0, atol=1e-9)
        for row, length in enumerate(lengths.tolist()):
            alone = model.features(texts[row : row + 1, :length], lengths[row : row + 1])
            torch.testing.assert_close(alone[0], found[row], rtol=0, atol=1e-9)

    def test_a_source_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        """UserError, before any work."""
        for open_source in (self.family.check_source, self.family.from_source):
            with pytest.raises(UserError):
                open_source(str(tmp_path / "nowhere"))
