"""Configurations: the way to JSON and back, `--set`, and a digest that knows every field."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from ltm import registry
from ltm.api import Preset
from ltm.config import (
    LATER_SETTINGS,
    canonical_json,
    config_digest,
    digest,
    from_dict,
    setting_names,
    to_dict,
    with_settings,
)
from ltm.errors import UserError
from ltm.latent.model import LTMConfig
from ltm.latent.posterior import PosteriorConfig
from ltm.training.config import TrainConfig

TINY: LTMConfig = registry.preset("ltm-tiny")[1].config


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """Field types that the models' own configs may not have."""

    on: bool = False
    ratio: float | None = None
    name: str = "x"


@pytest.fixture(params=registry.preset_names())
def preset(request: pytest.FixtureRequest) -> Preset:
    return registry.preset(request.param)[1]


def leaves(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def test_presets_survive_json(preset: Preset) -> None:
    for config in (preset.config, from_dict(TrainConfig, preset.training)):
        text = json.dumps(to_dict(config))
        again = from_dict(type(config), json.loads(text))
        assert again == config and config_digest(again) == config_digest(config)


def test_names_of_settings_are_all_paths(preset: Preset) -> None:
    names = setting_names(preset.config)
    assert set(leaves(to_dict(preset.config))) <= set(names) and len(names) == len(set(names))
    assert setting_names(TrainConfig(), "training.")[0] == "training.budget"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"stesp": 3}, "unknown setting in posterior 'stesp'; did you mean steps"),
        ({"steps": "many"}, "posterior.steps: expected int, found 'many'"),
        ({"steps": 2.5}, "posterior.steps: expected int, found 2.5"),
        ({"steps": True}, "posterior.steps: expected int, found True"),
        ({"steps": None}, "posterior.steps: expected int, found None"),
        ({"schedule_steps": "x"}, "posterior.schedule_steps: expected int or none, found 'x'"),
        ({"leak_gradients": 1}, "posterior.leak_gradients: expected bool, found 1"),
        ({"lr": "fast"}, "posterior.lr: expected float, found 'fast'"),
        ({"lr": float("nan")}, "posterior.lr: expected a finite number, found nan"),
        ({"lr": float("inf")}, "posterior.lr: expected a finite number, found inf"),
        ({"noise": "frehs"}, "unknown value for posterior.noise 'frehs'; did you mean fresh"),
        ({"lr": -1.0}, "posterior: lr must be positive, found -1.0"),
        ([3], "posterior: expected a table of settings, found [3]"),
    ],
)
def test_bad_data_is_refused_by_field(data: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        from_dict(PosteriorConfig, data, where="posterior")
    assert message in str(error.value)


def test_errors_deep_inside_say_where() -> None:
    data = to_dict(TINY)
    data["decoder"]["heads"] = "four"
    with pytest.raises(UserError, match=r"config\.decoder\.heads: expected int, found 'four'"):
        from_dict(LTMConfig, data)
    del data["decoder"]["heads"]
    with pytest.raises(UserError, match=r"config\.decoder: the setting heads is missing"):
        from_dict(LTMConfig, data)
    with pytest.raises(UserError, match=r"config\.decoder: expected a table of settings, found 3"):
        from_dict(LTMConfig, {**data, "decoder": 3})


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("posterior.steps=32", ("posterior", "steps"), 32),
        ("posterior.steps=1e3", ("posterior", "steps"), 1000),
        ("posterior.lr=1", ("posterior", "lr"), 1.0),
        ("posterior.noise=reused", ("posterior", "noise"), "reused"),
        ("posterior.leak_gradients=true", ("posterior", "leak_gradients"), True),
        ("posterior.leak_gradients=True", ("posterior", "leak_gradients"), True),
        ("posterior.leak_gradients=false", ("posterior", "leak_gradients"), False),
        ("posterior.schedule_steps=none", ("posterior", "schedule_steps"), None),
        ("decoder.window=None", ("decoder", "window"), None),
        ("decoder.window=null", ("decoder", "window"), None),
        ("decoder.window=7", ("decoder", "window"), 7),
        ("kl_warmup=0.5", ("kl_warmup",), 0.5),
    ],
)
def test_one_setting_changes_one_field(setting: str, path: tuple[str, ...], value: object) -> None:
    changed = with_settings(TINY, [setting])
    found: Any = changed
    for name in path:
        found = getattr(found, name)
    assert found == value and type(found) is type(value)
    before, after = leaves(to_dict(TINY)), leaves(to_dict(changed))
    assert {k for k in before if before[k] != after[k]} <= {".".join(path)}


def test_text_fields_take_text_as_it_stands() -> None:
    assert with_settings(Flags(), ["name=12", "on=true", "ratio=3"]) == Flags(name="12", on=True, ratio=3.0)
    assert with_settings(Flags(), ["name=a=b"]).name == "a=b"
    assert with_settings(TrainConfig(), ["training.budget=seconds=5"], prefix="training.").budget == "seconds=5"


def test_named_values_stand_for_a_whole_group() -> None:
    assert with_settings(TINY, ["posterior=published_code"]).posterior == PosteriorConfig.NAMED["published_code"]
    both = with_settings(TINY, ["posterior=published_code", "posterior.steps=3"]).posterior
    assert both == dataclasses.replace(PosteriorConfig.NAMED["published_code"], steps=3)
    assert with_settings(TINY, ["posterior.steps=3", "posterior=published_code"]).posterior.steps != 3


def test_settings_that_fit_only_together_come_in_any_order() -> None:
    settings = ["decoder.layers=4", "latents=8", "decoder.heads=3", "decoder.width=24"]
    expected = with_settings(TINY, settings)
    assert (expected.decoder.layers, expected.latents, expected.decoder.width) == (4, 8, 24)
    assert with_settings(TINY, reversed(settings)) == expected


def test_the_later_of_two_settings_wins() -> None:
    assert with_settings(TINY, ["latents=9", "latents=12"]).latents == 12


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("posterior.stesp=3", "unknown setting 'posterior.stesp'; did you mean posterior.steps"),
        ("posteriro.steps=3", "did you mean posterior.steps"),
        ("steps=3", "did you mean langevin.steps or posterior.steps"),
        ("STEPS=3", "did you mean langevin.steps or posterior.steps"),
        ("latents.count=3", "unknown setting 'latents.count'"),
        ("decoder.window.size=3", "did you mean decoder.window"),
        ("lr=3", "did you mean posterior.lr or training.lr"),
        ("latents", "--set 'latents': expected field=value"),
        ("=3", "expected field=value"),
        ("latents=many", "setting latents: expected int, found 'many'"),
        ("posterior.lr=1e999", "setting posterior.lr: expected a finite number, found inf"),
        ("posterior.lr=NaN", "expected a finite number, found nan"),
        ("posterior.noise=frsh", "unknown value for setting posterior.noise 'frsh'; did you mean fresh"),
        ("posterior=publshed_code", "unknown value for posterior 'publshed_code'; did you mean published_code"),
        ("decoder=large", "setting decoder is a group; set what is in it: decoder.layers"),
        ("posterior.steps=-1", "settings.posterior: steps must be at least 0, found -1"),
        ("decoder.heads=5", "settings.decoder: width 128 must be"),
        ("latents=7", "settings: latents 7 must be a positive multiple of layers 3"),
    ],
)
def test_bad_settings_are_refused(setting: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        with_settings(TINY, [setting], others=setting_names(TrainConfig(), "training."))
    assert message in str(error.value)


def another(hint: Any, value: Any) -> Any:
    """A value of a field's type that is not the one it has."""
    if typing.get_origin(hint) is typing.Literal:
        return next(choice for choice in typing.get_args(hint) if choice != value)
    if value is None:
        return 5
    return not value if isinstance(value, bool) else value + (0.015625 if isinstance(value, float) else 2)


def changed_in_one_place(config: Any) -> Iterator[tuple[str, Any]]:
    """Every config that differs from `config` in one leaf, with its path; the model's own rules are not asked."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            inner = [(f"{field.name}.{path}", changed) for path, changed in changed_in_one_place(value)]
        else:
            inner = [(field.name, another(hints[field.name], value))]
        for path, changed in inner:
            copied = copy.copy(config)
            object.__setattr__(copied, field.name, changed)
            yield path, copied


def test_every_field_changes_the_digest_but_what_a_machine_chooses() -> None:
    digests = {"": config_digest(TINY)}
    for path, changed in changed_in_one_place(TINY):
        digests[path] = config_digest(dataclasses.asdict(changed))
    assert digests.keys() - {""} == leaves(to_dict(TINY)).keys()
    chosen = {path for path in digests if path.endswith("matmul")}
    assert len(chosen) == 2 and {digests.pop(path) for path in chosen} == {digests[""]}
    assert len(digests) > 20 and len(set(digests.values())) == len(digests)


def test_digest_depends_on_content_alone() -> None:
    data = to_dict(TINY)
    turned = {key: dict(reversed(v.items())) if isinstance(v, dict) else v for key, v in reversed(data.items())}
    assert config_digest(turned) == config_digest(data) == config_digest(TINY)
    # A whole number in a float field is the number that comes back from JSON.
    assert config_digest(PosteriorConfig(lr=1)) == config_digest(PosteriorConfig(lr=1.0))
    assert to_dict(PosteriorConfig(lr=1)) == to_dict(from_dict(PosteriorConfig, to_dict(PosteriorConfig(lr=1))))


def test_settings_that_came_later_leave_older_digests_alone() -> None:
    small = registry.preset("ltm-small")[1].config
    older = to_dict(small)
    for table, names in (
        (older, ("cross_start", "cross_rate", "importance_proposals")),
        (older["posterior"], ("optimizer", "precision_lr", "tolerance")),
        (older["decoder"], ("bos_output",)),
    ):
        for name in names:
            assert table.pop(name) == LATER_SETTINGS[name]
    assert from_dict(type(small), older) == small
    for preset in ("mdlm-small", "md4-small", "sedd-small", "bd3lm-small"):
        masked = registry.preset(preset)[1].config
        before = {k: v for k, v in to_dict(masked).items() if not k.startswith(("unmasking", "orders"))}
        assert config_digest(before) == config_digest(to_dict(masked))
    for group in ("posterior", "langevin"):
        older[group]["matmul"] = "bfloat16"
    assert digest(older) == config_digest(small)


def test_digest_is_the_same_in_another_process() -> None:
    code = "from ltm import registry, config; print(config.config_digest(registry.preset('ltm-tiny')[1].config))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == config_digest(TINY)


def test_canonical_json_has_one_spelling() -> None:
    assert canonical_json({"b": 1.0, "a": ["é", None, True]}) == '{"a":["é",null,true],"b":1.0}'
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical_json([number])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": "50M"}, "budget '50M': expected tokens=50M"),
        ({"batch": 0}, "at least 1"),
        ({"accumulation": 0}, "at least 1"),
        ({"lr": 0.0}, "positive"),
        ({"clip": 0.0}, "positive"),
        ({"warmup": 1.0}, "in [0, 1)"),
        ({"ema": 1.0}, "in [0, 1)"),
        ({"beta1": 1.0}, "in [0, 1)"),
        ({"beta2": -0.1}, "in [0, 1)"),
        ({"final_lr": 1.5}, "final_lr must be in [0, 1]"),
        ({"weight_decay": -0.1}, "at least 0"),
        ({"checkpoint_seconds": -1.0}, "at least 0"),
        ({"seed": -1}, "seed must be in [0, 2^63)"),
        ({"seed": 2**63}, "seed must be in [0, 2^63)"),
        ({"matmul": "float16"}, "unknown value for config.matmul 'float16'"),
    ],
)
def test_bad_recipes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        from_dict(TrainConfig, changes)
    assert message in str(error.value)
