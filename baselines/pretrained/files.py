"""Files of a pretrained model: in a directory, in the cache of the Hugging Face hub, or on the hub itself."""

from __future__ import annotations

import re
from pathlib import Path

from ltm import hub
from ltm.errors import UserError

FAMILY = "pretrained"
_DESCRIBED = ("config.json", "tokenizer.json")
_HUB_FILES = (
    (*_DESCRIBED, "model.safetensors"),
    (*_DESCRIBED, "model.safetensors.index.json", "model-*-of-*.safetensors"),
    (*_DESCRIBED, "pytorch_model.bin"),
)


def find(source: str) -> Path:
    """Return the directory with config, tokenizer and weights: `source` itself, in the hub's cache, or downloaded now.

    Raises:
        UserError: there is no such directory or repository, it lacks files, or the hub cannot be reached.
    """
    name, directory = f"{FAMILY}:{source}", Path(source).expanduser()
    wanted = "expected config.json, tokenizer.json and model.safetensors, as save_pretrained writes them"
    if directory.is_dir():
        absent = [] if (directory / "config.json").is_file() else ["config.json"]
        if not (directory / "tokenizer.json").is_file() and not (directory / "merges.txt").is_file():
            absent.append("tokenizer.json")
        if not any(directory.glob("*.safetensors")) and not any(directory.glob("pytorch_model*.bin")):
            absent.append("model.safetensors")
        if absent:
            raise UserError(f"{name}: {directory} has no {' and no '.join(absent)}; {wanted}")
        return directory.resolve()
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source):
        raise UserError(f"{name}: there is no directory {directory}; {wanted}, or the name of a hub repository")
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
