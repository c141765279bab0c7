"""A checkpoint from elsewhere, such as the hub, as the beginning of a run here."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from ltm.errors import UserError
from ltm.files import sync
from ltm.training import checkpoint
from ltm.training.checkpoint import MANIFEST, SCORED, STATE


def adopt(source: Path, directory: Path) -> None:
    """Copy a verified step folder into the directory of a run, whole or not at all, unless that has begun already.

    Args:
        source: a run's directory, a step folder, or what was fetched of a repository.

    Raises:
        UserError: it is damaged, does not say how it was trained, or is unfinished without its training state; or it
            cannot be written here.
    """
    if checkpoint.steps(directory):
        return
    folder, info = checkpoint.read_info(source)
    training = info["training"]
    if training.get("steps") is None or training.get("recipe") is None:
        raise UserError(f"{source} does not say how it was trained, so training cannot go on from it")
    recorded = checkpoint.manifest(folder)
    if not training.get("complete") and STATE not in recorded:
        raise UserError(
            f"{source} holds the weights of an unfinished run without its training state, as the hub does: copy the "
            "directory that it was trained in, and name that"
        )
    final = directory / f"step-{training['steps']:08d}{'-final' if training.get('complete') else ''}"
    partial = directory / f".{final.name}"
    files = {name: checkpoint.place(folder, name) for name in SCORED}
    if STATE in recorded:
        files[STATE] = folder / STATE
    manifest = {name: recorded[path.name] for name, path in files.items()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, path in files.items():
            shutil.copyfile(path, partial / name)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        for path in [*partial.iterdir(), partial]:
            sync(path)
        os.rename(partial, final)
        sync(directory)
    except OSError as error:
        raise UserError(f"cannot write {final}: {error.strerror or error}; make room there") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
