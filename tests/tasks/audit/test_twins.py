"""Twins: the settings of a model with a small network, trained once on a known source by the one trainer."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ltm import files, registry
from ltm.config import to_dict
from ltm.errors import UserError
from ltm.known_sources.base import recorded
from ltm.known_sources.topics import Topics
from ltm.training import checkpoint
from ltm.training.run import train_preset
from tasks.audit import twins
from tests.support.harness_models import save_small

SHAPE = {
    "vocab_size", "decoder", "latents", "encoder_layers", "encoder_hidden", "max_length", "stride", "block_size",
    "cross_start", "cross_rate",  # a twin hears its latents
}  # fmt: skip
SOURCE = Topics(length=16, words=6, topics=2, classes=2)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(twins, "RECIPE", {**twins.RECIPE, "budget": "tokens=512", "batch": 4})


@pytest.mark.parametrize("name", registry.preset_names())
def test_a_twin_differs_from_its_model_by_its_shape_alone(name):
    cls, preset = registry.preset(name)
    config = cls.twin_config(preset.config, vocab_size=258, block_length=128)
    ours, theirs = to_dict(config), to_dict(preset.config)
    assert {key for key in ours if ours[key] != theirs[key]} <= SHAPE
    with torch.device("meta"):
        model = cls(config)
    assert model.block_length in (127, 128) and model.vocab_size == 258
    if hasattr(config, "decoder"):
        assert (config.decoder.width, config.decoder.layers) == (64, 2)
    if hasattr(config, "latents"):
        per_layer = preset.config.latents / preset.config.decoder.layers
        assert config.latents == 2 * per_layer
    if hasattr(config, "block_size"):
        assert config.block_size == preset.config.block_size and config.decoder.max_length % config.block_size == 0
    tiny = cls.twin_config(preset.config, vocab_size=4, block_length=4, width=16)
    assert cls(tiny).block_length in (4, 5)


def test_block_diffusion_in_one_block_stays_in_one_block():
    cls, preset = registry.preset("bd3lm-tiny")
    whole = dataclasses.replace(preset.config, block_size=preset.config.decoder.max_length)
    config = cls.twin_config(whole, vocab_size=258, block_length=50)
    assert config.block_size == config.decoder.max_length == 51
    exact = cls.twin_config(dataclasses.replace(preset.config, block_size=1), vocab_size=258, block_length=50)
    assert exact.block_size == 1 and exact.decoder.max_length == 51


def test_twins_are_trained_once_and_scored_by_the_settings_of_now(tmp_path, quick):
    folder = save_small(tmp_path, "ltm-tiny")
    model = checkpoint.load(folder)
    first = twins.twin(model, SOURCE)
    when = first.directory.stat().st_mtime_ns
    assert first.directory.parent.parent == files.home() / "models" and first.name.startswith("audit-ltm-")
    assert recorded(first.info["training"]["data_source"]) == SOURCE
    # Other settings of scoring find the same weights, even while another audit holds their directory.
    with files.locked(twins.place(model, SOURCE) / checkpoint.LOCK, work="another audit"):
        again = twins.twin(checkpoint.load(folder, settings=["posterior.steps=5"]), SOURCE)
    assert again.directory == first.directory and again.directory.stat().st_mtime_ns == when
    assert (first.model.config.posterior.steps, again.model.config.posterior.steps) == (2, 5)
    assert again.info["config_digest"] != first.info["config_digest"]
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    more, steps = twins.with_more_steps(again)
    assert steps == more.model.config.posterior.steps == 256
    assert twins.twin(model, Topics(length=16, words=5)).directory != first.directory


def test_a_model_of_blocks_gets_texts_that_fill_them(tmp_path, quick):
    cls, preset = registry.preset("bd3lm-tiny")
    loaded = checkpoint.load(save_small(tmp_path, "ar-tiny"))
    model = cls(dataclasses.replace(preset.config, vocab_size=258))
    blocks = dataclasses.replace(loaded, model=model, directory=tmp_path / "nowhere")
    assert twins.source_for(blocks, Topics()) == Topics(length=127)
    assert twins.source_for(loaded, Topics()) == Topics()
    assert twins.with_more_steps(blocks) is None


def test_a_model_that_knows_a_source_is_held_against_that_one(tmp_path):
    settings = ["decoder.max_length=17", "decoder.width=16", "decoder.hidden=24", "decoder.layers=1"]
    folder = train_preset(
        "ar-tiny",
        corpus=SOURCE.spec,
        tokenizer_name="bytes",
        settings=settings,
        budget="tokens=256",
        output=tmp_path / "run",
    )
    model = checkpoint.load(folder)
    assert twins.trained_on(model) == SOURCE == twins.source_for(model, Topics())


def test_what_can_have_no_twin_says_why(tmp_path):
    """It is said of a model that was made elsewhere; a family that is trained here owes a twin."""
    cls = registry.model_family("pretrained")
    loaded = checkpoint.load(save_small(tmp_path, "ar-tiny"))
    stranger = dataclasses.replace(loaded, model=cls(cls.miniature(258, 16)), name="pretrained:stranger")
    with pytest.raises(UserError, match=r"pretrained:stranger cannot be audited: .* its training is unknown"):
        twins.source_for(stranger, SOURCE)
    info = {**stranger.info, "training": dict.fromkeys(stranger.info["training"])}
    elsewhere = dataclasses.replace(stranger, info=info)
    assert "its training is unknown" in str(twins.obstacle(elsewhere)) and twins.source_for(elsewhere, SOURCE) is None
    assert twins.obstacle(loaded) is None
