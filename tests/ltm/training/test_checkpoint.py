"""Checkpoints: what is saved is what is loaded, damage is named, sudden death leaves a whole one, and names find it."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ltm import files, model_store
from ltm.config import config_digest, digest, to_dict
from ltm.errors import UserError
from ltm.files import sha256_file
from ltm.training import checkpoint
from ltm.training.weights import weights_digest
from tests.support.miniature_runs import dataset, model, save, tokenizer

ROOT = Path(__file__).parents[3]
FILES = ("MANIFEST.json", "model.json", "state.safetensors", "tokenizer.json", "weights.safetensors")


def rewrite(folder: Path, changes: dict[str, Any]) -> None:
    """Change top-level fields of model.json and bring the manifest up to date, as an editor with intent would."""
    info = json.loads((folder / "model.json").read_text()) | changes
    (folder / "model.json").write_text(json.dumps(info))
    manifest = {path.name: sha256_file(path) for path in folder.iterdir() if path.name != "MANIFEST.json"}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("family", ["ltm", "ar"])
def test_what_is_saved_is_what_is_loaded(family: str, tmp_path: Path) -> None:
    trained = model(family, seed=3)
    folder = save(
        tmp_path / "run", 7, complete=True, model=trained, weights=trained.state_dict(), name=f"{family}-mini"
    )
    assert folder == tmp_path / "run" / "step-00000007-final"
    tokens_BL, _ = dataset(tmp_path).batch(0, 3, seed=0)
    with torch.no_grad():
        expected = trained.log_likelihood(tokens_BL, rng=torch.Generator().manual_seed(0)).nats_B
    for place in (tmp_path / "run", folder):
        loaded = checkpoint.load(place)
        assert loaded.model.config == trained.config and not loaded.model.training
        assert (loaded.name, loaded.directory) == (f"{family}-mini", folder)
        for name, value in trained.state_dict().items():
            assert torch.equal(loaded.model.state_dict()[name], value)
        found = loaded.model.log_likelihood(tokens_BL, rng=torch.Generator().manual_seed(0)).nats_B
        assert torch.equal(found, expected)
        assert loaded.tokenizer.fingerprint == tokenizer().fingerprint


def test_info_says_what_was_saved(tmp_path: Path) -> None:
    trained = model("ltm")
    save(tmp_path, 7, model=trained, weights=trained.state_dict())
    info = checkpoint.load(tmp_path).info
    assert info["family"] == "ltm" and info["config"]["latents"] == trained.config.latents
    assert info["config_digest"] == config_digest(trained.config)
    assert info["weights_digest"] == weights_digest(trained.state_dict())
    assert info["tokenizer"] == {"name": "bytes", "fingerprint": tokenizer().fingerprint}
    assert info["training"] == {"complete": False, "corpus": "toy", "steps": 7}


def test_weights_digest_knows_names_shapes_types_and_values() -> None:
    base = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(())}
    others = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"].view(3, 2), "b": base["b"]},
        {"a": base["a"].double(), "b": base["b"]},
        {"a": base["a"].clone().index_fill_(1, torch.tensor(2), 5.5), "b": base["b"]},
        {"a": base["a"]},
        {"a": base["b"], "b": base["a"]},
    ]
    digests = [weights_digest(weights) for weights in (base, *others)]
    assert len(set(digests)) == len(digests)
    turned = {"b": base["b"], "a": base["a"].t().contiguous().t()}
    assert weights_digest(turned) == digests[0]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_named_and_nothing_older_is_taken_instead(
    name: str, harm: Callable[[Path], None], tmp_path: Path
) -> None:
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    harm(folder / name)
    for place in (tmp_path, folder):
        with pytest.raises(UserError) as error:
            checkpoint.load(place)
        message = str(error.value)
        assert str(folder) in message and name in message and "delete the folder to use an earlier one" in message
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert checkpoint.load(tmp_path).info["training"]["steps"] == 1


@pytest.mark.parametrize("text", ["{}", "[]", "null", "3", '{"model.json": "0"}', ""])
def test_a_manifest_that_lists_too_little_is_refused(text: str, tmp_path: Path) -> None:
    folder = save(tmp_path, 2)
    (folder / "MANIFEST.json").write_text(text)
    with pytest.raises(UserError, match=r"MANIFEST\.json is altered or cut short"):
        checkpoint.load(tmp_path)


def test_every_byte_of_the_manifest_counts(tmp_path: Path) -> None:
    folder = save(tmp_path, 2)
    good = (folder / "MANIFEST.json").read_bytes()
    for at in range(0, len(good), 7):
        bad = bytearray(good)
        bad[at] ^= 1
        (folder / "MANIFEST.json").write_bytes(bad)
        if json.loads(good) == _parsed(bytes(bad)):
            continue  # one kind of white space for another
        with pytest.raises(UserError, match="MANIFEST"):
            checkpoint.read_info(folder)


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def test_an_edited_config_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 2)
    config = json.loads((folder / "model.json").read_text())["config"]
    config["decoder"]["window"] = 3
    rewrite(folder, {"config": config})
    with pytest.raises(UserError, match=r"the config in model\.json has digest \w{12}, recorded is \w{12}"):
        checkpoint.load(folder)
    config["decoder"]["windows"] = 3
    rewrite(folder, {"config": config})
    with pytest.raises(UserError, match=r"model\.json\.decoder 'windows'; did you mean window"):
        checkpoint.load(folder)


@pytest.mark.parametrize("schema", [0, 2, None, "1"])
def test_an_unknown_schema_is_refused(schema: object, tmp_path: Path) -> None:
    folder = save(tmp_path, 2)
    rewrite(folder, {"schema": schema})
    with pytest.raises(UserError, match=rf"model\.json has schema {schema!r}, this version reads 1"):
        checkpoint.load(folder)


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 2)
    rewrite(folder, {"family": "lmt"})
    with pytest.raises(UserError, match="unknown model family 'lmt'; did you mean ltm"):
        checkpoint.load(folder)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 2)
    rewrite(folder, {"tokenizer": {"name": "bytes", "fingerprint": "0" * 64}})
    with pytest.raises(UserError, match=r"tokenizer\.json is not the tokenizer it was trained with"):
        checkpoint.load(folder)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    weights = dict(model("ar").state_dict())
    weights["decoder.embedding"] = torch.zeros(258, 9)
    with pytest.raises(UserError, match=r"decoder\.embedding expected \(258, 8\), found \(258, 9\)"):
        checkpoint.load(save(tmp_path, 2, weights=weights))
    del weights["decoder.embedding"]
    with pytest.raises(UserError, match=r"decoder\.embedding expected \(258, 8\), found None"):
        checkpoint.load(save(tmp_path, 3, weights=weights))


def test_settings_change_how_a_model_is_used_and_what_it_is_called(tmp_path: Path) -> None:
    trained = model("ltm")
    save(tmp_path, 1, model=trained, weights=trained.state_dict())
    plain, changed = checkpoint.load(tmp_path), checkpoint.load(tmp_path, settings=["posterior.steps=3"])
    assert changed.model.config.posterior.steps == 3 and changed.info["config"]["posterior"]["steps"] == 3
    assert changed.info["config_digest"] == config_digest(changed.model.config) != plain.info["config_digest"]
    assert changed.info["weights_digest"] == plain.info["weights_digest"]
    with pytest.raises(UserError, match=r"did you mean posterior\.steps"):
        checkpoint.load(tmp_path, settings=["posterior.step=3"])
    with pytest.raises(UserError, match="does not fit its config"):
        checkpoint.load(tmp_path, settings=["vocab_size=300"])


def test_what_a_machine_chose_is_chosen_anew_and_is_no_identity(tmp_path: Path) -> None:
    base = model("ltm")
    info = []
    for step, dtype in enumerate(("bfloat16", "float32", "auto"), 1):
        posterior = dataclasses.replace(base.config.posterior, matmul=dtype)
        trained = model("ltm", posterior=posterior)
        folder = save(tmp_path / dtype, step, model=trained, weights=base.state_dict())
        assert json.loads((folder / "model.json").read_text())["config"]["posterior"]["matmul"] == dtype
        loaded = checkpoint.load(folder)
        assert loaded.model.config.posterior.matmul == "auto"
        chosen = checkpoint.load(folder, settings=["posterior.matmul=float32"])
        assert chosen.model.config.posterior.matmul == "float32" == chosen.model.inference_matmul
        info += [loaded.info, chosen.info]
    assert len({each["config_digest"] for each in info}) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_digests_from_before_machines_chose_are_taken(dtype: str, tmp_path: Path) -> None:
    """They were of the whole config, the dtype of the fit included."""
    trained = model("ltm", posterior=dataclasses.replace(model("ltm").config.posterior, matmul=dtype))
    folder = save(tmp_path, 1, model=trained, weights=trained.state_dict())
    info = json.loads((folder / "model.json").read_text())
    info["config_digest"] = digest(to_dict(trained.config))
    (folder / "model.json").write_text(json.dumps(info, indent=1, sort_keys=True) + "\n")
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    manifest["model.json"] = sha256_file(folder / "model.json")
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    assert checkpoint.load(tmp_path).info["config_digest"] == config_digest(trained.config)


def test_old_steps_go_and_a_finished_run_keeps_one(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, step)
    assert [p.name for p in checkpoint.steps(tmp_path)] == ["step-00000002", "step-00000010"]
    assert checkpoint.step_folder(tmp_path).name == "step-00000010"
    save(tmp_path, 10, complete=True, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010-final"]
    with pytest.raises(UserError, match="holds weights only: nothing to resume from"):
        checkpoint.load_state(checkpoint.step_folder(tmp_path))
    checkpoint.drop(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_checkpoints_are_for_whom_the_umask_says(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        folder = save(tmp_path, 1)
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        (*checkpoint.SCORED, checkpoint.STATE, checkpoint.MANIFEST), 0o666 & ~mask
    )


def test_an_old_step_that_cannot_be_deleted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(UserError, match=r"cannot delete the checkpoint .*step-00000001: No space left on device"):
        checkpoint.drop(tmp_path)


def test_saving_a_step_twice_leaves_the_first(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert save(tmp_path, 1) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_state_for_resuming_comes_back(tmp_path: Path) -> None:
    state = {"run": torch.tensor([3.0, 1.5]), "adam.step.x": torch.tensor(3.0), "weights.x": torch.arange(3)}
    found = checkpoint.load_state(save(tmp_path, 3, state=state))
    assert found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


def test_a_kill_at_any_instant_leaves_the_old_checkpoint_or_the_new_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.kill_points", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    trials = [json.loads(line) for line in output.splitlines()]
    assert len(trials) > 20 and trials[-1]["act"] is None
    found = [trial["found"] for trial in trials]
    assert found == sorted(found) and set(found) == {4, 6}
    for trial in trials:
        assert trial["weights"] == [trial["found"]], trial
        assert trial["steps"] == [f"step-{trial['found']:08d}", "step-00000008"], trial
        assert trial["hidden"] == [], trial


@pytest.mark.parametrize("limit", [100, 4_000, 10_000])
def test_a_full_disk_leaves_what_was_there(limit: int, tmp_path: Path) -> None:
    save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match="cannot write") as error:
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "make room there" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.load(tmp_path).info["training"]["steps"] == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the checkpoint .*file/run/step-00000001: Not a directory"):
        save(tmp_path / "file" / "run", 1)


def test_find_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "runs" / "first", 2)
    monkeypatch.chdir(tmp_path)
    for name in (
        "runs/first",
        "./runs/first",
        str(tmp_path / "runs" / "first"),
        str(folder),
        f"runs/first/{folder.name}",
    ):
        assert model_store.find(name) == folder
        assert model_store.find("ltm-large", checkpoint=name) == folder
    monkeypatch.chdir(tmp_path / "runs")
    assert model_store.find("first") == folder


@pytest.mark.parametrize("name", ["ltm-tiny", "mine"])
def test_find_in_the_store(name: str) -> None:
    folder = save(files.home() / "models" / name, 2)
    assert model_store.find(name) == folder


def test_home_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LTM_HOME", str(tmp_path))
    assert files.home() == tmp_path
    monkeypatch.setenv("LTM_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.home() == tmp_path / ".ltm"


def test_a_preset_without_weights_comes_with_the_command_and_its_cost() -> None:
    with pytest.raises(UserError) as error:
        model_store.find("ltm-large")
    message = str(error.value)
    assert "ltm-large has no weights in" in message and "--checkpoint" in message
    assert (
        "ltm-train ltm-large --corpus openwebtext --data-dir DIR --budget tokens=0.9B" in message and "FLOPs" in message
    )
    with pytest.raises(UserError, match="ltm-train ltm-tiny --corpus pydocs --budget tokens=400k"):
        model_store.find("ltm-tiny")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ltm-tinny", "unknown model 'ltm-tinny'; did you mean ltm-tiny"),
        ("", "unknown model ''; known: "),
        ("./nowhere/at/all", "there is no directory ./nowhere/at/all"),
        ("/nowhere", "there is no directory /nowhere"),
        ("someone/model", "model someone/model: no such directory here, and as a hub repository: "),
    ],
)
def test_names_of_nothing(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UserError) as error:
        model_store.find(name)
    assert message in str(error.value)


def test_places_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no directory .*missing"):
        model_store.find("ltm-tiny", checkpoint=str(tmp_path / "missing"))
    with pytest.raises(UserError, match="holds no checkpoint: expected step-"):
        model_store.find("ltm-tiny", checkpoint=str(tmp_path))
    with pytest.raises(UserError, match="holds no checkpoint: expected step-"):
        checkpoint.load(tmp_path)


def test_find_in_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    repository, commit = tmp_path / "hub" / "models--someone--ltm-mini", "0" * 40
    saved = save(tmp_path / "run", 9, complete=True)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    saved.rename(repository / "snapshots" / commit)
    found = model_store.find("someone/ltm-mini")
    assert checkpoint.load(found).info["training"]["steps"] == 9


def test_a_model_made_in_python_with_whole_numbers_comes_back(tmp_path: Path) -> None:
    plain = model("ltm")
    changed = model("ltm", posterior=dataclasses.replace(plain.config.posterior, lr=1), free_bits=0)
    save(tmp_path, 1, model=changed, weights=changed.state_dict())
    assert checkpoint.load(tmp_path).model.config == changed.config
