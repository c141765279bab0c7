"""`FAMILY:SOURCE`: what is opened, what is refused, and that nothing is said of weights that is not known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltm import registry
from ltm.errors import UserError
from ltm.published import opening
from ltm.rng import SequenceRng
from tests.support.published import CONFIGS, ROWS, SHAPE, tensors, write

FAMILIES = sorted(CONFIGS)
TEXTS = torch.randint(ROWS - 1, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


def opened(family: str, source: Path | str, **options):
    return registry.model_family(family).from_source(str(source), **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_directory_opens_and_scores(family, tmp_path):
    loaded = opened(family, write(tmp_path / "net", family))
    assert loaded.name == f"{family}:net" and loaded.info["training"]["tokens"] is None
    assert loaded.info["training"]["origin"]["files"].keys() == {"model.safetensors"}
    assert loaded.model.vocab_size == loaded.tokenizer.vocab_size == ROWS and loaded.model.block_length == 31
    found = loaded.model.log_likelihood(TEXTS, rng=SequenceRng(0, range(3)))
    assert bool(found.nats_B.isfinite().all()) and float(found.nats_B.max()) < 0
    registry.model_family(family).check_source(str(tmp_path / "net"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_of_the_hub_is_read(family, hub_cache):
    commit = "0" * 40
    write(hub_cache / "models--someone--net" / "snapshots" / commit, family)
    loaded = opened(family, "someone/net")
    assert loaded.name == f"{family}:someone/net" and loaded.info["training"]["origin"]["commit"] == commit


def test_other_weights_are_other_models(tmp_path):
    first, second = (opened("mdlm", write(tmp_path / name, "mdlm")) for name in "ab")
    assert first.info["weights_digest"] == second.info["weights_digest"]
    save_file(tensors("mdlm", seed=1), tmp_path / "b" / "model.safetensors")
    assert opened("mdlm", tmp_path / "b").info["weights_digest"] != first.info["weights_digest"]


def test_without_a_config_the_weights_say_what_they_are(tmp_path):
    folder = write(tmp_path / "net", "mdlm", model_length=1024)
    expected = opened("mdlm", folder).info
    (folder / "config.json").unlink()
    assert opened("mdlm", folder).info["config"] == expected["config"]


@pytest.mark.parametrize(
    ("written", "asked", "changes", "said"),
    [
        ("mdlm", "sedd", {}, "without time_conditioning, unlike those of sedd"),
        ("duo", "mdlm", {}, "with time_conditioning, unlike those of mdlm"),
        ("bd3lm", "mdlm", {}, "blocks of 4: block diffusion; name it bd3lm"),
        ("sedd", "duo", {}, "has a graph, absorb: score entropy; name it sedd"),
        ("sedd", "sedd", {"graph": {"type": "uniform"}}, "only weights of absorb"),
        ("sedd", "sedd", {"scale_by_sigma": False, "model": SHAPE}, "scale_by_sigma false"),
        ("ar", "mdlm", {}, "no noise level as an input, unlike those of mdlm"),
        ("mdlm", "ar", {}, "the noise level as an input, unlike those of ar"),
        ("bd3lm", "bd3lm", {"block_size": None}, "no block_size"),
        ("bd3lm", "bd3lm", {"block_size": 5}, "must divide the 32 positions"),
        ("mdlm", "mdlm", {"model_type": "bd3lm"}, "says that it is bd3lm; name it bd3lm:SOURCE"),
        ("mdlm", "mdlm", {"n_blocks": 3}, "says n_blocks 3, and the weights have 2"),
        ("mdlm", "mdlm", {"hidden_dim": 32}, "says hidden_dim 32, and the weights have 16"),
        ("mdlm", "mdlm", {"n_heads": 4}, "says n_heads 4, and the weights have 2"),
        ("mdlm", "mdlm", {"vocab_size": 300}, "says vocab_size 300, and the weights have 258"),
        ("mdlm", "mdlm", {"cond_dim": 129}, "says cond_dim 129, and the weights have 8"),
        ("mdlm", "mdlm", {"n_heads": "two"}, "expected a whole number"),
        ("mdlm", "mdlm", {"model_length": 1}, "max_length must be at least 2"),
    ],
)
def test_a_config_that_contradicts_weights_or_family_is_refused(written, asked, changes, said, tmp_path):
    folder = write(tmp_path / "net", written, **changes)
    with pytest.raises(UserError, match=said):
        registry.model_family(asked).check_source(str(folder))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("backbone.blocks.1.mlp.0.bias"), r"the weights lack blocks\.1\.mlp\.0\.bias"),
        (lambda t: t.pop("backbone.vocab_embed.embedding"), r"the weights lack vocab_embed\.embedding"),
        (lambda t: t.update({"backbone.blocks.0.more": torch.ones(1)}), r"blocks\.0\.more is no tensor"),
        (
            lambda t: t.update({"backbone.blocks.0.norm1.weight": torch.ones(5)}),
            r"expected \(16,\), found",
        ),
        (lambda t: t.update({"backbone.blocks.0.norm1.weight": torch.full((16,), torch.nan)}), "NaN or infinite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, said, tmp_path):
    folder = write(tmp_path / "net", "mdlm")
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors")
    with pytest.raises(UserError, match=said):
        opened("mdlm", folder)


def test_a_damaged_file_is_refused(tmp_path):
    folder = write(tmp_path / "net", "mdlm")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="mdlm:"):
        opened("mdlm", folder)
    shutil.copy(folder / "config.json", folder / "model.safetensors")
    with pytest.raises(UserError, match="mdlm:"):
        opened("mdlm", folder)


def test_pickled_files_are_not_read(tmp_path, hub_cache):
    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "canary",)

    folder = tmp_path / "net"
    folder.mkdir()
    torch.save({"a": Hostile()}, folder / "pytorch_model.bin")
    for source in (folder, folder / "pytorch_model.bin"):
        with pytest.raises(UserError, match=r"scoring reads no pickles.*\n  ltm-convert .*pytorch_model\.bin DIR"):
            opened("mdlm", source)
    cached = hub_cache / "models--someone--net" / "snapshots" / ("0" * 40)
    cached.mkdir(parents=True)
    shutil.copy(folder / "pytorch_model.bin", cached)
    with pytest.raises(UserError, match="scoring reads no pickles"):
        opened("mdlm", "someone/net")
    assert not (tmp_path / "canary").exists()


def test_what_does_not_exist_is_said_with_a_remedy(tmp_path, hub_cache):
    for source, said in (
        ("someone/nothing", "no such directory here, and as a hub repository.*Remedy"),
        (str(tmp_path / "nothing"), "no such directory; expected one, or a hub repository OWNER/NAME"),
        ("../..", "no model.safetensors|no such directory"),
    ):
        with pytest.raises(UserError, match=said):
            opened("mdlm", source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no model\.safetensors, and no checkpoint"):
        opened("mdlm", tmp_path / "empty")
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(UserError, match="found a file"):
        opened("mdlm", tmp_path / "file.txt")


def test_another_tokenizer_is_refused(tmp_path, monkeypatch):
    folder = write(tmp_path / "net", "mdlm")
    (folder / "tokenizer.json").unlink()
    monkeypatch.setattr(opening, "build", lambda name: pytest.fail(name))
    with pytest.raises(pytest.fail.Exception, match="gpt2"):
        opened("mdlm", folder)
    other = opening.Tokenizer.load(write(tmp_path / "other", "mdlm"))
    monkeypatch.setattr(opening, "build", lambda name: other)
    assert opened("mdlm", folder).tokenizer is other
    held = load_file(folder / "model.safetensors")
    for name in ("vocab_embed.embedding", "output_layer.linear.weight", "output_layer.linear.bias"):
        held[f"backbone.{name}"] = held[f"backbone.{name}"][:-1].contiguous()
    save_file(held, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIGS["mdlm"], "vocab_size": ROWS - 1}))
    with pytest.raises(UserError, match="257 rows, 256 of them tokens, and GPT-2's tokenizer has 257 ids"):
        opened("mdlm", folder)


def test_settings_reach_the_model(tmp_path):
    folder = write(tmp_path / "net", "mdlm")
    loaded = opened("mdlm", folder, settings=["decoder.max_length=16", "sampling_steps=7"])
    assert loaded.model.block_length == 15 and loaded.model.config.sampling_steps == 7
    with pytest.raises(UserError, match="unknown setting"):
        registry.model_family("mdlm").check_source(str(folder), ["decoder.window=4"])
