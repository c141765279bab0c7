"""Checkpoints whose manifest vouches for what is not true: other weights are refused, and nothing crashes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltm import model_store, registry
from ltm.config import digest, to_dict
from ltm.errors import UserError
from ltm.files import sha256_file
from ltm.result import find_results, read_result
from ltm.training import checkpoint, weights
from ltm.training.state import Run
from ltm.untrusted import tensor_file
from tasks import cli
from tests.support.harness_models import save_small
from tests.support.miniature_runs import RECIPE, model, run, save

ROOT = Path(__file__).parents[3]
OTHER = "does not hold the tensors that were saved"


def rehash(folder: Path) -> None:
    """Bring the manifest up to date."""
    manifest = {path.name: sha256_file(path) for path in folder.iterdir() if path.name != checkpoint.MANIFEST}
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], *, digested: bool = False) -> None:
    """Change the weights, and with `digested` the recorded digest too."""
    path = folder / "weights.safetensors"
    changed = change(load_file(path))
    save_file(changed, path)
    if digested:
        info = json.loads((folder / "model.json").read_text())
        info["weights_digest"] = weights.weights_digest(changed)
        (folder / "model.json").write_text(json.dumps(info))
    rehash(folder)


def set_config(folder: Path, **values: Any) -> None:
    info = json.loads((folder / "model.json").read_text())
    for name, value in values.items():
        table = info["config"]
        *path, last = name.split("__")
        for part in path:
            table = table[part]
        table[last] = value
    info["config_digest"] = digest(info["config"])
    (folder / "model.json").write_text(json.dumps(info))
    rehash(folder)


def each(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: change(value).contiguous() for name, value in tensors.items()}


def one_bit(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    first = sorted(tensors)[0]
    tensors[first].view(torch.int32).view(-1)[0] ^= 1
    return tensors


CHANGES = {
    "zeroed": each(torch.zeros_like),
    "float16": each(Tensor.half),
    "int64": each(Tensor.long),
    "scaled": each(lambda value: value * 1e30),
    "one bit": one_bit,
    "renamed": lambda tensors: {f"{name}_": value for name, value in tensors.items()},
    "reshaped": each(lambda value: value[None]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_other_weights_are_refused_with_and_without_a_result(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LTM_HOME", str(tmp_path / "home"))
    (tmp_path / "file.txt").write_text("the thought of a model is latent and so on\n" * 4)
    folder = save_small(tmp_path / "home", "ar-tiny")
    command = ["--model", "ar-tiny", "--tasks", f"text:{tmp_path / 'file.txt'}", "--output"]
    assert cli.main([*command, str(tmp_path / "old")]) == 0
    (before,) = map(read_result, find_results(tmp_path / "old"))
    rewrite(folder, CHANGES[what])
    capsys.readouterr()
    for output in ("old", "new"):
        assert cli.main([*command, str(tmp_path / output)]) == 2
        said = capsys.readouterr()
        assert OTHER in said.err and "train again" in said.err and "nothing to do" not in said.err + said.out
        # lm-eval's way in, and Python's.
        with pytest.raises(UserError, match=OTHER):
            model_store.load("ar-tiny", None, (), "cpu")
        with pytest.raises(UserError, match=OTHER):
            checkpoint.read_info(folder)
    assert [read_result(path) for path in find_results(tmp_path / "old")] == [before]
    assert not list(find_results(tmp_path / "new"))


def test_the_weights_that_were_saved_are_taken_wherever_the_file_has_them(tmp_path: Path) -> None:
    """The digest is of tensors, not of the file: another order of them is the same model."""
    folder = save(tmp_path, 1)
    before = checkpoint.load(folder)
    path = folder / "weights.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "by": "another writer"})
    rehash(folder)
    after = checkpoint.load(folder)
    assert after.info == before.info and weights.file_digest(path) == before.info["weights_digest"]


def test_a_run_does_not_go_on_from_other_weights(tmp_path: Path) -> None:
    def stop(step: int, *_: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    often = dataclasses.replace(RECIPE, checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        run("ar", tmp_path / "run", tmp_path / "cache", often, report=stop)
    folder = checkpoint.step_folder(tmp_path / "run")
    rewrite(folder, CHANGES["zeroed"])
    with pytest.raises(UserError, match=OTHER):
        run("ar", tmp_path / "run", tmp_path / "cache", often)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("run"),
        lambda state: state.update(run=torch.tensor([1.0, torch.nan], dtype=torch.float64)),
        lambda state: state.update(run=torch.zeros(3, dtype=torch.float64)),
        lambda state: state.update({"adam.exp_avg.decoder.embedding": torch.zeros(2)}),
        lambda state: state.update({"adam.exp_avg.nowhere": torch.zeros(2)}),
        lambda state: state.update({"adam.x": torch.zeros(2)}),
        lambda state: state.pop("weights.decoder.embedding"),
    ],
)
def test_a_state_of_no_such_run_is_refused(change: Callable[[dict[str, Tensor]], object]) -> None:
    run = Run.new(model("ar"), RECIPE)
    state = dict(run.state())
    Run.new(model("ar"), RECIPE).restore(run.scored(), state)
    change(state)
    with pytest.raises(UserError, match=r"expected|the step and seconds"):
        Run.new(model("ar"), RECIPE).restore(run.scored(), state)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    rewrite(folder, each(lambda tensor: torch.full_like(tensor, value)), digested=True)
    with pytest.raises(UserError, match="NaN or infinite"):
        checkpoint.load(folder)


@pytest.mark.parametrize("what", ["float16", "int64"])
def test_weights_of_another_dtype_are_refused_under_a_digest_of_their_own(what: str, tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    rewrite(folder, CHANGES[what], digested=True)
    with pytest.raises(UserError, match=rf"expected torch\.float32, found torch\.{what}"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"decoder__layers": 10**9}, "must be at most"),
        ({"decoder__layers": 10**6}, r"the network has over [\d,]+ parts"),
        ({"decoder__width": 10**7}, "expected"),
        ({"vocab_size": 10**7}, "expected"),
        ({"vocab_size": 10**19}, "must be at most"),
        ({"decoder__max_length": 10**7}, "blocks have at most"),
        ({"decoder__layers": 2.5}, "expected int"),
        ({"decoder": None}, "expected a table"),
    ],
)
def test_a_config_costs_no_more_than_its_weights(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    set_config(folder, **config)
    with pytest.raises(UserError, match=words):
        checkpoint.load(folder)


@pytest.mark.parametrize("family", sorted(registry.names(registry.MODELS)))
def test_every_family_can_be_built_without_memory(family: str) -> None:
    if family == "pretrained":
        pytest.importorskip("transformers")
    built = model(family)
    with torch.device("meta"):
        sketch = type(built)(built.config)
        sketch.allocate({name: tuple(value.shape) for name, value in built.state_dict().items()})
    shapes = {name: (value.shape, value.dtype) for name, value in built.state_dict().items()}
    assert {name: (value.shape, value.dtype) for name, value in sketch.state_dict().items()} == shapes
    assert to_dict(sketch.config) == to_dict(built.config)


@pytest.mark.parametrize("name", ["", "a" * 5000, "a\x1b[2Jb", "a\u202eb", "a\nb", None, 3, ["a"]])
def test_a_name_that_cannot_be_printed_is_refused(name: object, tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    info = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**info, "name": name}))
    rehash(folder)
    with pytest.raises(UserError) as error:
        checkpoint.load(folder)
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_names_that_no_file_can_have_are_said_to_be_missing() -> None:
    for name in ("a" * 5000, "a/" + "b" * 5000, "/" + "c" * 5000, "~nobody-here/x", "a\x00b/c", "\x1b[2J/x"):
        for place in (None, name):
            with pytest.raises(UserError) as error:
                model_store.locate(name if place is None else "ltm-tiny", place, ())
            assert str(error.value).replace("\n", "").isprintable()


def test_folders_that_are_no_steps_are_passed_over(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    for name in ("step-99999999x", "step-٠٠٠٠٠٠٠٩", "step-99999999\n", "step-999999999", "step-99999999-FINAL"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-99999999").write_text("no folder")
    assert checkpoint.steps(tmp_path) == [folder]


@pytest.mark.parametrize("length", [0, 1, 7, 2**31, 2**60, 2**64 - 1])
def test_a_header_longer_than_the_file_is_refused(length: int, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}" * 20)
    with pytest.raises(UserError):
        tensor_file.entries(tmp_path / "w.safetensors")


def test_five_hundred_mutants_end_in_a_sentence(tmp_path: Path) -> None:
    """Each under two seconds and a gigabyte; what is said is printable and short."""
    command = [sys.executable, "-m", "tests.support.checkpoint_mutants", "500", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    *wrong, counts = map(json.loads, done.stdout.splitlines())
    assert wrong == []
    assert counts["refused"] > 350 and counts["loaded"] > 20 and sum(counts.values()) == 500
    assert not re.search("Traceback|Warning", done.stderr)
