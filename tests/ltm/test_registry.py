"""Names to models and corpora, and the sizes that the names promise."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import torch

from ltm import registry
from ltm.api import LanguageModel
from ltm.data import pydocs
from ltm.errors import UserError

PARAMETERS = {
    "ltm-small": 38_369_280,
    "ltm-medium": 51_005_952,
    "ltm-large": 76_279_296,
    "ar-small": 38_385_152,
    "ar-medium": 51_037_696,
    "ar-large": 76_342_784,
}


def build(name: str, vocab_size: int) -> LanguageModel:
    """A preset's model without memory for its weights."""
    cls, preset = registry.preset(name)
    with torch.device("meta"):
        return cls(dataclasses.replace(preset.config, vocab_size=vocab_size))


def parameters(name: str, vocab_size: int) -> int:
    return sum(p.numel() for p in build(name, vocab_size).parameters())


@pytest.mark.parametrize("name", registry.preset_names())
def test_every_preset_builds(name: str) -> None:
    cls, preset = registry.preset(name)
    model = build(name, 2049)
    assert isinstance(preset.config, cls.config_class) and name.startswith(f"{cls.family}-")
    assert model.vocab_size == 2049 and model.block_length > 0
    cost = model.cost(model.block_length)
    assert cost.parameters == parameters(name, 2049)
    assert min(cost.train_flops_per_token, cost.score_flops_per_token, cost.generate_flops_per_token) > 0


def test_only_some_families_have_features() -> None:
    families = {cls.family: cls.has_features() for cls, _ in map(registry.preset, registry.preset_names())}
    assert [family for family, has in families.items() if has] == ["ar"]


@pytest.mark.parametrize(("name", "expected"), PARAMETERS.items())
def test_published_sizes(name: str, expected: int) -> None:
    assert parameters(name, 50258) == expected


@pytest.mark.parametrize("family", ["ar", "bd3lm", "md4", "mdlm", "sedd", "vae"])
@pytest.mark.parametrize(
    ("size", "vocab_size"), [("tiny", 2049), ("small", 50258), ("medium", 50258), ("large", 50258)]
)
def test_every_baseline_is_as_large_as_the_model(family: str, size: str, vocab_size: int) -> None:
    """All parameters, time embeddings, modulations, mask rows and encoders among them; a tied embedding once."""
    assert parameters(f"{family}-{size}", vocab_size) == pytest.approx(parameters(f"ltm-{size}", vocab_size), rel=0.01)


@pytest.mark.parametrize(
    ("name", "offered"),
    [("ltm-tinny", "ltm-tiny"), ("LTM-small", "ltm-small"), ("ar-smal", "ar-small"), ("ltm", "ltm-tiny")],
)
def test_unknown_models(name: str, offered: str) -> None:
    with pytest.raises(UserError) as error:
        registry.preset(name)
    assert f"unknown model {name!r}; did you mean" in str(error.value) and offered in str(error.value)


def test_unknown_families_and_corpora() -> None:
    with pytest.raises(UserError, match=r"unknown model family 'lmt'; did you mean ltm"):
        registry.model_family("lmt")
    with pytest.raises(UserError, match=r"unknown corpus 'pydoc'; did you mean pydocs"):
        registry.corpus_factory("pydoc")


def test_corpora_are_found() -> None:
    assert registry.corpus_factory("pydocs") is pydocs.pydocs


def offer(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    """Pretend that installed packages offer these model families."""
    found = [EntryPoint(name, value, registry.MODELS) for name, value in points]
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == registry.MODELS else [])


def test_two_packages_for_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, ("ltm", "ltm.latent.model:LatentThoughtModel"), ("ltm", "other:Model"))
    with pytest.raises(
        UserError, match=r"two packages offer 'ltm' .*ltm\.latent\.model:LatentThoughtModel, other:Model"
    ):
        registry.preset("ltm-tiny")


def test_one_package_found_twice_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, *[("ltm", "ltm.latent.model:LatentThoughtModel")] * 2)
    assert registry.preset("ltm-tiny")[0].family == "ltm"


def test_a_broken_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, ("gone", "no_such_module:Model"), ("empty", "ltm.latent.model:Missing"))
    with pytest.raises(UserError, match=r"model family 'gone' cannot be imported from no_such_module:Model"):
        registry.preset("gone-tiny")
    with pytest.raises(UserError, match=r"'empty' cannot be imported from ltm\.latent\.model:Missing"):
        registry.preset("empty-tiny")


def test_preset_names_may_have_any_number_of_dashes(monkeypatch: pytest.MonkeyPatch) -> None:
    from baselines.ar import Autoregressive

    tiny = Autoregressive.presets["ar-tiny"]
    monkeypatch.setattr(Autoregressive, "presets", {"my-ar-b4-tiny": tiny})
    offer(monkeypatch, ("my", "ltm.latent.model:LatentThoughtModel"), ("my-ar", "baselines.ar:Autoregressive"))
    assert registry.preset("my-ar-b4-tiny") == (Autoregressive, tiny)


def test_names_cost_no_heavy_import() -> None:
    code = (
        "import sys, ltm.registry as r; r.names(r.MODELS); raise SystemExit(bool({'torch', 'numpy'} & {*sys.modules}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
