"""Names to models and corpora, and the sizes that the names promise."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.ar import Autoregressive
from ltm import registry
from ltm.api import LanguageModel
from ltm.data import pydocs
from ltm.errors import UserError
from ltm.nn.left_to_right import ExactModel

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
        UserError, match=r"two packages offer 'ltm' .*ltm\.latent\.model:LatentThoughtModel, other:Model; uninstall one"
    ):
        registry.preset("ltm-tiny")


def test_one_package_found_twice_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, *[("ltm", "ltm.latent.model:LatentThoughtModel")] * 2)
    assert registry.preset("ltm-tiny")[0].family == "ltm"


def test_a_broken_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ltm_test_unwritten.py").write_text("class Model(\n")
    monkeypatch.syspath_prepend(tmp_path)
    places = ("no_such_module:Model", "ltm.latent.model:Missing", "ltm_test_unwritten:Model")
    offer(monkeypatch, *zip(("gone", "empty", "unwritten"), places, strict=True))
    with pytest.raises(UserError, match=r"model family 'gone' cannot be imported from no_such_module:Model"):
        registry.preset("gone-tiny")
    with pytest.raises(UserError, match=r"'empty' cannot be imported from ltm\.latent\.model:Missing"):
        registry.preset("empty-tiny")
    with pytest.raises(UserError, match=r"cannot be imported from ltm_test_unwritten:Model: SyntaxError"):
        registry.preset("unwritten-tiny")


TINY = Autoregressive.presets["ar-tiny"]


def families(monkeypatch: pytest.MonkeyPatch, **presets: object) -> None:
    """Pretend that a package `ltm_test_brought` offers families with these presets, `_` in their names for `-`."""
    brought: dict[str, Any] = {
        name: type("Model", (Autoregressive,), {"family": name.replace("_", "-"), "presets": found})
        for name, found in presets.items()
    }
    monkeypatch.setitem(sys.modules, "ltm_test_brought", types.SimpleNamespace(**brought))
    offer(monkeypatch, *[(name.replace("_", "-"), f"ltm_test_brought:{name}") for name in brought])


def test_preset_names_may_have_any_number_of_dashes(monkeypatch: pytest.MonkeyPatch) -> None:
    families(monkeypatch, my={"my-tiny": TINY}, my_ar={"my-ar-b4-tiny": TINY, "my-ar-1.5B_v2": TINY})
    assert registry.preset("my-ar-b4-tiny") == (registry.model_family("my-ar"), TINY)
    assert set(registry.preset_names()) == {"my-tiny", "my-ar-b4-tiny", "my-ar-1.5B_v2"}


@pytest.mark.parametrize(
    "name",
    [
        *(
            "tiny",
            "ar-tiny",
            "mine",
            "mine-",
            "mine-a,b",
            "mine-a b",
            "mine-../x",
            "mine-a:b",
            "mine-\x1b[2J",
            "mine--x",
        ),
        *("mine-é", "mine-x\n", "Mine-tiny", "mine-" + "x" * 200, 7),
    ],
)
def test_preset_names_that_no_command_line_could_hold_are_refused(monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    families(monkeypatch, mine={"mine-tiny": TINY, name: TINY})
    with pytest.raises(UserError, match=r"family 'mine' from ltm_test_brought:mine cannot be used: preset .*expected"):
        registry.preset("mine-tiny")


def test_a_preset_of_two_families_is_refused_whichever_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    families(monkeypatch, my={"my-ar-tiny": TINY}, my_ar={"my-ar-tiny": TINY})
    for ask in (registry.model_family, lambda _: registry.preset("my-ar-tiny"), lambda _: registry.preset_names()):
        with pytest.raises(UserError, match=r"'my-ar-tiny' is also one of the family 'my-ar' from .*:my_ar; rename"):
            ask("my")


@pytest.mark.parametrize("presets", [[], None, {"mine-tiny": {}}, {"mine-tiny": None}])
def test_presets_are_a_table_of_presets(monkeypatch: pytest.MonkeyPatch, presets: object) -> None:
    families(monkeypatch, mine=presets)
    with pytest.raises(UserError, match="must be a table of names and Presets"):
        registry.model_family("mine")


def test_what_is_no_family_of_that_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    value, partial = "baselines.ar:Autoregressive", "ltm.nn.left_to_right:ExactModel"
    offer(
        monkeypatch, ("a", value), ("my", value), ("class", "ltm.api:Cost"), ("module", "ltm.api"), ("partial", partial)
    )
    for name, why in (
        ("a", "at least two letters"),
        ("my", r"Autoregressive.family is 'ar', but the entry point is called 'my'"),
        ("class", "expected a subclass of ltm.LanguageModel"),
        ("module", "expected a subclass of ltm.LanguageModel"),
        ("partial", "ExactModel does not define family, config_class, presets"),
    ):
        with pytest.raises(UserError, match=why):
            registry.model_family(name)
    named = {"family": "partial", "config_class": Autoregressive.config_class, "presets": {}}
    brought = types.SimpleNamespace(Model=type("Model", (ExactModel,), named))
    monkeypatch.setitem(sys.modules, "ltm_test_brought", brought)
    offer(monkeypatch, ("partial", "ltm_test_brought:Model"))
    with pytest.raises(UserError, match="Model does not implement cost, miniature, token_nats, training_loss"):
        registry.model_family("partial")


def test_the_package_at_fault_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As `pip uninstall` knows it."""
    (tmp_path / "ltm_test_brought.py").write_text("Model = 3\n")
    info = tmp_path / "brought_by_others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brought-by-others\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ltm.models]\nbrought = ltm_test_brought:Model\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"from ltm_test_brought:Model \(package brought-by-others\) cannot be used"):
        registry.model_family("brought")


def test_names_cost_no_heavy_import() -> None:
    code = (
        "import sys, ltm.registry as r; r.names(r.MODELS); raise SystemExit(bool({'torch', 'numpy'} & {*sys.modules}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
