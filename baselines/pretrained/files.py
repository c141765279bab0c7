"""Files of a pretrained model: in a directory, in the cache of the Hugging Face hub, or on the hub itself."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ltm import hub
from ltm.errors import UserError
from ltm.files import expanded
from ltm.untrusted import json_text, tensor_file
from ltm.untrusted.display import bare, shown
from ltm.untrusted.regular_files import opened

FAMILY = "pretrained"
_DESCRIBED = ("config.json", "tokenizer.json")
_HUB_FILES = (
    (*_DESCRIBED, "model.safetensors"),
    (*_DESCRIBED, "model.safetensors.index.json", "model-*-of-*.safetensors"),
    (*_DESCRIBED, "pytorch_model.bin"),
)
_PICKLED_TENSORS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the files of weights in a directory hold.

    Attributes:
        tensors, elements: how many; of pickled files, whose content nothing reads before transformers does, at most.
        bytes: their size.
        dtypes: those of the tensors, as torch names them; None of pickled files.
    """

    tensors: int
    elements: int
    bytes: int
    dtypes: frozenset[str] | None


def find(source: str) -> Path:
    """Return the directory with config, tokenizer and weights: `source` itself, in the hub's cache, or downloaded now.

    Raises:
        UserError: there is no such directory or repository, it lacks files, or the hub cannot be reached.
    """
    name, directory = f"{FAMILY}:{bare(source)}", expanded(source)
    wanted = "expected config.json, tokenizer.json and model.safetensors, as save_pretrained writes them"
    if os.path.isdir(directory):
        absent = [] if (directory / "config.json").is_file() else ["config.json"]
        if not (directory / "tokenizer.json").is_file() and not (directory / "merges.txt").is_file():
            absent.append("tokenizer.json")
        if not any(directory.glob("*.safetensors")) and not any(directory.glob("pytorch_model*.bin")):
            absent.append("model.safetensors")
        if absent:
            raise UserError(f"{name}: {directory} has no {' and no '.join(absent)}; {wanted}")
        return directory.resolve()
    if not re.fullmatch(r"\w[\w.-]{,95}(/\w[\w.-]{,95})?", source):
        where = bare(str(directory))
        raise UserError(f"{name}: there is no directory {where}; {wanted}, or the name of a hub repository")
    repository = hub.PUBLIC.get(source, source)
    for where in dict.fromkeys((repository, source)):
        for files in _HUB_FILES:
            if found := hub.cached(where, "model", files):
                return found.files[0].parent
    errors = []
    for files in _HUB_FILES:
        try:
            return hub.fetch(repository, "model", files).files[0].parent
        except hub.HubError as error:
            errors.append(error)
    raise UserError(
        f"{name}: no such directory here, and as a hub repository: {errors[0]}. Remedy: on a machine with a network "
        f"download {repository}, put its config.json, tokenizer.json and model.safetensors into a directory DIR and "
        f"name it {FAMILY}:DIR"
    )


def stored(directory: Path) -> Stored:
    """Read how much the weights in a directory are, so that no network is built that is larger.

    Raises:
        UserError: a file of weights, or the index of several, is damaged, or is no regular file.
    """
    safe, pickled = "model.safetensors", "pytorch_model.bin"
    for name in (safe, f"{safe}.index.json", pickled, f"{pickled}.index.json"):
        if os.path.lexists(directory / name):
            files = [directory / part for part in (_listed(directory / name) if name.endswith(".json") else [name])]
            break
    else:
        files = sorted(directory.glob("*.safetensors")) or sorted(directory.glob("pytorch_model*.bin"))
    tensors = elements = size = 0
    dtypes: set[str] = set()
    for file in files:
        with opened(file) as content:
            size += (bytes_of_file := os.fstat(content.fileno()).st_size)
        if file.suffix == ".bin":
            tensors, elements = tensors + _PICKLED_TENSORS, elements + bytes_of_file
        else:
            entries = tensor_file.entries(file).values()
            tensors += len(entries)
            dtypes |= {entry.dtype for entry in entries}
            elements += sum(math.prod(entry.shape) for entry in entries)
    known = None if any(file.suffix == ".bin" for file in files) else frozenset(dtypes)
    return Stored(tensors=tensors, elements=elements, bytes=size, dtypes=known)


def _listed(index: Path) -> list[str]:
    """Return the files that an index of weights names, each in the index's own directory."""
    table = json_text.table(json_text.read(index), where=str(index), fields=("weight_map",))
    names = json_text.table(table["weight_map"], where=f"{index}, weight_map").values()
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*\.(safetensors|bin)", name):
            raise UserError(f"{index}: expected names of files of weights next to it, found {shown(name)}")
    return sorted(set(names))
