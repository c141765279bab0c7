"""`ltm-convert`: pickled weights become checkpoints of ours that score the same, and nothing else is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ltm import model_store
from ltm.errors import UserError
from ltm.published import convert, dit_weights
from ltm.rng import SequenceRng
from ltm.tokenizer import build
from tests.ltm.latent import test_published_code as official
from tests.support.published import CONFIGS, ROWS, tensors, write

GOLDEN = Path(__file__).parents[2] / "golden" / "published"
TEXTS = torch.randint(ROWS - 1, (2, 12), generator=torch.Generator().manual_seed(0))


class Strange:
    """A class of someone's project, pickled along."""

    def __init__(self):
        self.path = "nowhere"


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for the order of sums."""
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.fixture
def place(tmp_path):
    """A folder with a tokenizer of bytes."""
    build("bytes").save(tmp_path)
    return tmp_path


def lightning(place: Path, family: str) -> Path:
    """A checkpoint of Lightning whose average differs from its raw weights."""
    raw = tensors(family)
    averages = [2 * t for name, t in raw.items() if not name.endswith("inv_freq")]
    file = place / "last.ckpt"
    content = {"state_dict": raw, "ema": {"decay": 0.9999, "shadow_params": averages}, "hyper_parameters": Strange()}
    torch.save(content, file)
    (place / "config.json").write_text(json.dumps(CONFIGS[family]))
    return file


def scored(source: str) -> torch.Tensor:
    """Log-likelihoods of the texts under a model by name."""
    loaded = model_store.load(source, None, [], "cpu")
    return loaded.model.log_likelihood(TEXTS, rng=SequenceRng(0, range(2))).nats_B


@pytest.mark.parametrize("family", ["mdlm", "bd3lm", "duo", "ar"])
def test_the_average_of_lightning_is_converted(family, place, capsys):
    file = lightning(place, family)
    assert convert.main([str(file), str(place / "made"), "--family", family]) == 0
    said = capsys.readouterr().out
    assert f"ltm-eval --model {family}:{place / 'made'} --tasks" in said
    found = scored(f"{family}:{place / 'made'}")
    # As published in safetensors.
    twice = {name: t if name.endswith("inv_freq") else 2 * t for name, t in tensors(family).items()}
    folder = write(place / "public", family)
    from safetensors.torch import save_file

    save_file(twice, folder / "model.safetensors")
    close(found, scored(f"{family}:{folder}"))
    raw = convert.convert(file, place / "raw", family=family, weights="raw")
    info = json.loads((raw / "model.json").read_text())
    assert info["training"]["origin"]["weights"] == "raw" and info["training"]["tokens"] is None
    close(scored(f"{family}:{place / 'raw'}"), scored(f"{family}:{write(place / 'p', family)}"))


def test_a_bare_state_dict_is_converted(place):
    file = place / "pytorch_model.bin"
    torch.save(tensors("sedd"), file)
    (place / "config.json").write_text(json.dumps(CONFIGS["sedd"]))
    convert.convert(file, place / "made", family="sedd")
    close(scored(f"sedd:{place / 'made'}"), scored(f"sedd:{write(place / 'p', 'sedd')}"))


def test_the_official_ltm_is_converted(place, monkeypatch):
    """Of the fixture, whose 66 ids no tokenizer has."""
    weights, file = load_file(GOLDEN / "ltm" / "weights.safetensors"), place / "latest.pt"
    torch.save({"model": weights, "model_args": official.WRITTEN["model_args"], "optimizer": {"lr": 1e-3}}, file)

    tokenizer = build("bytes")
    monkeypatch.setattr("ltm.published.opening.tokenizer_of", lambda *_: tokenizer)
    folder = convert.convert(file, place / "made", family="ltm", settings=["posterior=published_code"])
    info = json.loads((folder / "model.json").read_text())
    assert info["config"]["posterior"]["noise"] == "reused" and info["config"]["decoder"]["bos_output"]
    held = load_file(folder / "weights.safetensors")
    assert held.keys() == official.MODEL.state_dict().keys()
    assert all(torch.equal(held[name], t) for name, t in official.MODEL.state_dict().items())


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lambda c: c.pop("ema"), {}, "no moving average"),
        (lambda c: c["ema"]["shadow_params"].pop(), {}, "expected .* tensors, one for each entry"),
        (lambda c: c["state_dict"].pop("backbone.blocks.0.norm1.weight"), {"weights": "raw"}, "lack blocks.0.norm1"),
        (lambda c: c["state_dict"].update(extra=torch.ones(1)), {"weights": "raw"}, "extra is no tensor"),
        (lambda c: None, {"family": "sedd"}, "unlike those of sedd"),
        (lambda c: None, {"family": "ltm"}, "expected 'model'|expected 'model_args'|no checkpoint of the LTM"),
        (lambda c: None, {"family": "mdml"}, "unknown family 'mdml'; did you mean mdlm"),
        (lambda c: None, {"settings": ["decoder.window=3"]}, "unknown setting"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(change, options, said, place):
    file = lightning(place, "mdlm")
    content = torch.load(file, weights_only=False)
    change(content)
    torch.save(content, file)
    with pytest.raises(UserError, match=said):
        convert.convert(file, place / "made", **{"family": "mdlm", **options})
    assert not (place / "made").exists()


def test_a_hostile_file_is_refused_and_executes_nothing(place):
    class Hostile:
        def __reduce__(self):
            import os

            return os.system, (f"touch {place / 'canary'}",)

    torch.save({"state_dict": {**tensors("mdlm"), "x": Hostile()}}, place / "a.ckpt")
    with pytest.raises(UserError, match="system"):
        convert.convert(place / "a.ckpt", place / "made", family="mdlm")
    assert not (place / "canary").exists() and not (place / "made").exists()


def test_a_checkpoint_is_not_overwritten(place):
    file = lightning(place, "mdlm")
    convert.convert(file, place / "made", family="mdlm")
    with pytest.raises(UserError, match="has a checkpoint already"):
        convert.convert(file, place / "made", family="mdlm")


def test_a_checkpoint_of_another_family_is_not_taken_for_this_one(place):
    convert.convert(lightning(place, "mdlm"), place / "made", family="mdlm")
    with pytest.raises(UserError, match=r"holds a model of the family mdlm; name it mdlm:"):
        model_store.load(f"sedd:{place / 'made'}", None, [], "cpu")


def test_the_command_reports_a_mistake_in_one_line(tmp_path, capsys):
    assert convert.main([str(tmp_path / "absent.ckpt"), str(tmp_path / "made"), "--family", "mdlm"]) == 2
    said = capsys.readouterr().err
    assert "absent.ckpt" in said and "Traceback" not in said


def test_the_order_of_averages_is_that_of_the_fixture():
    order = json.loads((GOLDEN / "mdlm" / "ema_order.json").read_text())
    names = load_file(GOLDEN / "mdlm" / "weights.safetensors")
    assert {dit_weights.own_name(name) for name in order} == {
        own for name in names if (own := dit_weights.own_name(name))
    }
