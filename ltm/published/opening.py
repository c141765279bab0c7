"""Models of `FAMILY:SOURCE` that others published: weights in a directory or a hub repository.

A family of published networks mixes `Published` in and says what its config is. Weights are read from safetensors
alone; pickled files go through `ltm-convert` first.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ltm import hub
from ltm.api import LoadedModel
from ltm.config import config_digest, to_dict, with_settings
from ltm.errors import UserError
from ltm.files import expanded
from ltm.published import dit_weights
from ltm.published.described import Described, describe, read_config
from ltm.published.known import PUBLIC, WEIGHTS
from ltm.tokenizer import FILE as TOKENIZER
from ltm.tokenizer import Tokenizer, build
from ltm.training.checkpoint import check_name, trained_elsewhere
from ltm.training.weights import check_finite, check_memory, read, sha256, weights_digest
from ltm.untrusted import tensor_file
from ltm.untrusted.display import bare

PICKLED = (".ckpt", ".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where the files of a model are, and the commit of a hub repository."""

    directory: Path
    commit: str | None = None


def find(family: str, source: str) -> Files:
    """Find the files that `FAMILY:SOURCE` names, in a directory, in the hub's cache, or on the hub.

    Raises:
        UserError: there are none, or they are pickled; with the command that helps.
    """
    name, path = f"{family}:{bare(source)}", expanded(source)
    if os.path.isdir(path):
        if (path / WEIGHTS).is_file():
            return Files(directory=path.resolve())
        if pickled := sorted(file for file in path.iterdir() if file.suffix in PICKLED):
            raise UserError(_pickled(name, pickled[0], family))
        raise UserError(f"{name}: {path} has no {WEIGHTS}, and no checkpoint of ltm-train or ltm-convert")
    if os.path.isfile(path):
        if path.suffix in PICKLED:
            raise UserError(_pickled(name, path, family))
        raise UserError(f"{name}: expected a directory with {WEIGHTS}, found a file")
    if source in hub.PUBLIC:
        raise UserError(f"{name}: {source} is a model of transformers; did you mean pretrained:{source}?")
    if not hub.is_repository(source):
        raise UserError(f"{name}: there is no such directory; expected one, or a hub repository OWNER/NAME")
    if found := hub.cached(source, "model", PUBLIC):
        return Files(directory=found.files[0].parent, commit=found.commit)
    if found := hub.cached(source, "model", ("pytorch_model.bin",)):
        raise UserError(_pickled(name, found.files[0], family))
    try:
        fetched = hub.fetch(source, "model", PUBLIC)
    except hub.HubError as error:
        raise UserError(
            f"{name}: no such directory here, and as a hub repository: {error}. Remedy: on a machine with a network "
            f"download {bare(source)}, put its config.json and {WEIGHTS} into a directory DIR and name it "
            f"{family}:DIR; of pickled files (pytorch_model.bin, *.ckpt) make one by ltm-convert FILE DIR "
            f"--family {family}"
        ) from error
    return Files(directory=fetched.files[0].parent, commit=fetched.commit)


def _pickled(name: str, file: Path, family: str) -> str:
    return (
        f"{name}: {file} is pickled, and scoring reads no pickles. Convert it, which executes nothing in it:\n"
        f"  ltm-convert {file} DIR --family {family}\nand name it {family}:DIR"
    )


def network_of(described: Described, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of a model from public tensors: all of them are its decoder's."""
    return {f"decoder.{name}": t for name, t in dit_weights.renamed(tensors, described.decoder.heads).items()}


class Published:
    """A family whose published weights can be opened."""

    family: ClassVar[str]

    @classmethod
    def of_published(cls, described: Described) -> Any:
        """Return the family's config for a published network. Raises UserError: it is not this family's."""
        raise NotImplementedError

    @classmethod
    def check_source(cls, source: str, settings: Sequence[str] = ()) -> None:
        """Find or download the files; check that weights, config, settings and tokenizer fit each other."""
        _sketched(cls, source, find(cls.family, source), settings)

    @classmethod
    def from_source(
        cls, source: str, *, settings: Sequence[str] = (), device: str = "cpu", dtype: str = "float32"
    ) -> LoadedModel:
        """Load published weights, in float32 whatever `dtype` is asked for later.

        Raises:
            UserError: see `find`; or the files are damaged or do not fit each other.
        """
        files = find(cls.family, source)
        described, model, tokenizer = _sketched(cls, source, files, settings)
        name = f"{cls.family}:{files.directory.name if os.path.isdir(expanded(source)) else source}"
        check_name(name, where=f"{cls.family}:{bare(source)}")
        weights = files.directory / WEIGHTS
        model.load_state_dict(network_of(described, read(weights)), assign=True)
        check_finite(model, where=name)
        model = model.to(device).eval().requires_grad_(False)
        origin = {"source": source, "commit": files.commit, "files": {WEIGHTS: sha256(weights)}}
        info = {
            "name": name,
            "family": cls.family,
            "config": to_dict(model.config),
            "config_digest": config_digest(model.config),
            "weights_digest": weights_digest(model.state_dict()),
            "tokenizer": {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint},
            "training": {**trained_elsewhere(), "origin": origin},
        }
        return LoadedModel(model=model, tokenizer=tokenizer, name=name, directory=files.directory, info=info)


def _sketched(cls: Any, source: str, files: Files, settings: Sequence[str]) -> tuple[Described, Any, Tokenizer]:
    """The shape, a model without memory for its weights, and the tokenizer of public files."""
    import torch

    where = f"{cls.family}:{bare(source)}"
    try:
        entries = tensor_file.entries(files.directory / WEIGHTS)
        config = files.directory / "config.json"
        described = describe(
            {name: entry.shape for name, entry in entries.items()}, read_config(config) if config.is_file() else None
        )
        with torch.device("meta"):
            model = cls(with_settings(cls.of_published(described), settings))
        check_memory(model, sum(entry.end - entry.start for entry in entries.values()))
        return described, model, tokenizer_of(files.directory, described.rows)
    except (UserError, ValueError) as error:
        raise UserError(f"{where}, in {files.directory}: {error}") from error


def tokenizer_of(directory: Path, rows: int) -> Tokenizer:
    """The tokenizer of public weights: a tokenizer.json of ours beside them, or GPT-2's, which all of them use.

    Raises:
        UserError: it has another number of ids than the network, or GPT-2's files are not to be found.
    """
    there = (directory / TOKENIZER).is_file()
    tokenizer = Tokenizer.load(directory) if there else build("gpt2")
    if tokenizer.vocab_size != rows:
        which = f"{TOKENIZER} there" if there else "GPT-2's tokenizer"
        raise UserError(
            f"the network has {rows:,} rows, {rows - 1:,} of them tokens, and {which} has {tokenizer.eos_id + 1:,} ids"
        )
    return tokenizer
