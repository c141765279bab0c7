"""Directories of public weights that are damaged, or made to do harm: a sentence each, and little memory."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from baselines.pretrained.model import Pretrained
from ltm.errors import UserError
from ltm.training.weights import weights_digest
from tests.support.small_gpt2 import save_gpt2

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the transformers package"
)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt2(tmp_path_factory.mktemp("models") / "tiny-gpt2")


def replaced(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def in_place(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


def edit(**values: Any) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | values))


def filled(value: float) -> Callable[[Path], object]:
    def fill(path: Path) -> None:
        tensors = {name: torch.full_like(tensor, value) for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})

    return fill


def merges(value: Any) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        data = json.loads(path.read_text())
        data["model"]["merges"] = value
        path.write_text(json.dumps(data))

    return change


NO_FILES = {
    "directory": in_place(Path.mkdir),
    "pipe": in_place(os.mkfifo),
    "device": in_place(lambda path: path.symlink_to("/dev/zero")),
    "itself": in_place(lambda path: path.symlink_to(path.name)),
}
NO_JSON = {
    text[:8]: (lambda path, text=text: path.write_text(text)) for text in ("", "null", "[" * 100_000, "NaN", "{}")
}
WAYS: list[tuple[str, str, Callable[[Path], object]]] = [
    *(
        (name, what, way)
        for name in ("config.json", "tokenizer.json", "model.safetensors")
        for what, way in NO_FILES.items()
    ),
    *((name, what, way) for name in ("config.json", "tokenizer.json") for what, way in NO_JSON.items()),
    ("config.json", "layers", edit(n_layer=10**9)),
    ("config.json", "many layers", edit(n_layer=50_000)),
    ("config.json", "vocabulary", edit(vocab_size=10**12)),
    ("config.json", "positions", edit(n_positions=10**7)),
    ("config.json", "width", edit(n_embd="wide")),
    ("config.json", "no heads", edit(n_head=0)),
    ("config.json", "end", edit(eos_token_id=10**9)),
    ("config.json", "types", edit(model_type=["gpt2"])),
    ("config.json", "listed layers", edit(model_type="qwen2", num_hidden_layers=10**9, hidden_size=16)),
    ("tokenizer.json", "merges", merges([["zz", "y"]])),
    ("tokenizer.json", "merges of numbers", merges([[1, 2]])),
    ("tokenizer.json", "no merges", merges(None)),
    ("tokenizer.json", "vocabulary", edit(model={"type": "BPE", "vocab": {"a": 10**9}, "merges": []})),
    ("tokenizer.json", "added", edit(added_tokens=[3])),
    ("model.safetensors", "pickle", lambda path: replaced(path, b"\x80\x04\x95" + bytes(100))),
    ("model.safetensors", "length", lambda path: replaced(path, (2**60).to_bytes(8, "little") + path.read_bytes()[8:])),
    ("model.safetensors", "cut", lambda path: os.truncate(path, 5000)),
    ("model.safetensors", "NaN", filled(torch.nan)),
    ("model.safetensors", "infinite", filled(torch.inf)),
]


@pytest.mark.parametrize(("name", "what", "way"), WAYS, ids=[f"{name}, {what}" for name, what, _ in WAYS])
def test_a_sentence_says_what_is_wrong(
    name: str, what: str, way: Callable[[Path], object], gpt2: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(gpt2, tmp_path / "model")
    way(copy / name)
    began = time.process_time()
    with pytest.raises(UserError) as error:
        Pretrained.from_source(str(copy))
    assert str(error.value).replace("\n", "").isprintable() and len(str(error.value)) < 2000
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": 3},
        {"weight_map": {"a": "../model.safetensors"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": ["model.safetensors"]}},
        {"weight_map": {"a": "nowhere.safetensors"}},
    ],
)
def test_an_index_names_files_next_to_it(index: dict[str, Any], gpt2: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(gpt2, tmp_path / "model")
    (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"the weights in .* cannot be read"):
        Pretrained.from_source(str(copy))


def test_weights_in_parts_are_the_weights_in_one_file(gpt2: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(gpt2, tmp_path / "model")
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, inside in parts.items():
        save_file({name: tensors[name] for name in inside}, copy / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    whole, parted = (Pretrained.from_source(str(place)) for place in (gpt2, copy))
    assert parted.info["weights_digest"] == whole.info["weights_digest"]
    assert whole.info["weights_digest"] == weights_digest(whole.model.state_dict())


def test_a_directory_whose_name_cannot_be_printed_is_refused(gpt2: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(gpt2, tmp_path / "a\x1b[31mb")
    with pytest.raises(UserError, match="printable characters"):
        Pretrained.from_source(str(copy))
