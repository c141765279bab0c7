"""The format of checkpoints: a directory that is either whole and verified or absent.

A run's directory holds `step-00000400/` folders, newest last, `-final` when complete, and its `log.jsonl`. A step
folder holds `model.json`, `tokenizer.json`, `weights.safetensors` (what is scored: the moving average where there is
one), for resuming `state.safetensors`, and `MANIFEST.json` with the sha256 of each.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltm.config import canonical_json, config_digest, digest, from_dict, to_dict, unsettled, with_settings
from ltm.errors import UserError
from ltm.files import check_held, sha256_file, sync
from ltm.registry import model_family

if TYPE_CHECKING:
    from torch import Tensor

    from ltm.api import LanguageModel, LoadedModel
    from ltm.tokenizer import Tokenizer

SCHEMA = 1
STEP = re.compile(r"step-\d{8}(-final)?")
MANIFEST = "MANIFEST.json"
SCORED = ("model.json", "tokenizer.json", "weights.safetensors")
STATE = "state.safetensors"
"""A checkpoint has the files of `SCORED`; one that training can go on from also has `STATE`."""
LOCK = ".lock"
"""In a run's directory: whoever writes there holds it."""


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names, shapes, dtypes and bytes of the tensors, in the order of their names."""
    import torch

    state = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        state.update(canonical_json([name, list(tensor.shape), str(tensor.dtype)]).encode())
        state.update(tensor.flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()


def save(
    directory: Path,
    step: int,
    *,
    name: str,
    model: LanguageModel,
    tokenizer: Tokenizer,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    training: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write `directory/step-N` (`step-N-final` when training is complete) atomically, then drop all but `keep` steps.

    Everything is written and synced under a temporary name and renamed last, so a kill at any instant leaves the
    previous checkpoint or the new one.

    Raises:
        UserError: it cannot be written, such as on a full disk, or another process has taken the run over; what was
            there before stays.
    """
    from safetensors import SafetensorError

    check_held(directory / LOCK)

    final = directory / f"step-{step:08d}{'-final' if training.get('complete') else ''}"
    if final.is_dir():
        return final  # the same update of the same run, saved before
    weights = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
    info = {
        "schema": SCHEMA,
        "name": name,
        "family": type(model).family,
        "config": to_dict(model.config),
        "config_digest": config_digest(model.config),
        "weights_digest": weights_digest(weights),
        "tokenizer": {"name": tokenizer.name, "fingerprint": tokenizer.fingerprint},
        "training": dict(training),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _clear(directory)
        try:
            partial = _write(directory / f".{final.name}", info, weights, state, tokenizer)
            os.rename(partial, final)
            sync(directory)
        finally:
            _clear(directory)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot write the checkpoint {final}: {reason}; earlier ones are kept: make room there, then issue the "
            "same command again to go on"
        ) from error
    drop(directory, keep=keep)
    return final


def _write(
    partial: Path,
    info: Mapping[str, Any],
    weights: dict[str, Tensor],
    state: Mapping[str, Tensor],
    tokenizer: Tokenizer,
) -> Path:
    from safetensors.torch import save_file

    partial.mkdir()
    save_file(weights, partial / "weights.safetensors")
    if state:
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, partial / STATE)
    tokenizer.save(partial)
    (partial / "model.json").write_text(json.dumps(info, indent=1, sort_keys=True) + "\n")
    manifest = {p.name: sha256_file(p) for p in sorted(partial.iterdir())}
    for weights_file in partial.glob("*.safetensors"):  # made by a library for its user's eyes only
        shutil.copymode(partial / "model.json", weights_file)
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    for path in [*partial.iterdir(), partial]:
        sync(path)
    return partial


def _clear(directory: Path) -> None:
    """Remove what killed or failed writers and deleters left behind."""
    for stale in directory.glob(".step-*"):
        shutil.rmtree(stale, ignore_errors=True)


def drop(directory: Path, *, keep: int = 0) -> None:
    """Delete all but the newest `keep` step folders; each disappears at once, never by halves.

    Raises:
        UserError: one cannot be deleted.
    """
    _clear(directory)
    for old in steps(directory)[: -keep or None]:
        hidden = old.with_name(f".{old.name}")
        try:
            os.rename(old, hidden)
        except OSError as error:
            raise UserError(
                f"cannot delete the checkpoint {old}: {error.strerror or error}; delete it by hand"
            ) from error
        shutil.rmtree(hidden, ignore_errors=True)


def steps(directory: Path) -> list[Path]:
    """Step folders of a run, oldest first."""
    return sorted(p for p in directory.glob("step-*") if STEP.fullmatch(p.name) and p.is_dir())


def step_folder(directory: Path) -> Path:
    """Return `directory` if it is a step folder, or the newest one inside it.

    Raises:
        UserError: there is none.
    """
    if not directory.is_dir():
        raise UserError(f"there is no directory {directory}: expected a run of ltm-train or one of its step folders")
    if STEP.fullmatch(directory.name) or (directory / MANIFEST).is_file():
        return directory
    folders = steps(directory)
    if not folders:
        raise UserError(f"{directory} holds no checkpoint: expected step-*/{MANIFEST} as ltm-train writes them")
    return folders[-1]


def read_info(directory: Path) -> tuple[Path, dict[str, Any]]:
    """Return the step folder and its `model.json`, after verifying every file of the manifest.

    Raises:
        UserError: a file is missing or altered, or the schema is unknown.
    """
    folder = step_folder(directory)
    for name, expected in _manifest(folder).items():
        path = folder / name
        if not path.is_file():
            raise _damaged(folder, f"{name} is missing")
        if (actual := sha256_file(path)) != expected:
            raise _damaged(
                folder, f"{name} is altered or cut short: sha256 {actual[:12]}, {MANIFEST} expects {expected[:12]}"
            )
    info = json.loads((folder / "model.json").read_text())
    if info.get("schema") != SCHEMA:
        raise UserError(
            f"checkpoint {folder}: model.json has schema {info.get('schema')!r}, this version reads {SCHEMA}; "
            "use the version that wrote it, or train again"
        )
    return folder, info


def _manifest(folder: Path) -> dict[str, str]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise _damaged(folder, f"{MANIFEST} is missing") from None
    except ValueError:
        manifest = None
    listed = set(manifest) if isinstance(manifest, dict) else set()
    if not set(SCORED) <= listed <= {*SCORED, STATE}:
        raise _damaged(folder, f"{MANIFEST} is altered or cut short")
    return manifest


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(f"checkpoint {folder}: {what}; delete the folder to use an earlier one, or train again")


def load(directory: Path, *, device: str = "cpu", settings: Iterable[str] = ()) -> LoadedModel:
    """Load and verify a checkpoint, in float32 and evaluation mode.

    Args:
        directory: a run's directory or one step folder.
        settings: `field=value` overrides that do not change the weights, such as posterior.steps=32. What the machine
            that trained the model chose for itself, such as posterior.matmul, is chosen anew here.
    """
    from ltm.api import LoadedModel
    from ltm.tokenizer import Tokenizer

    folder, info = read_info(Path(directory))
    cls = model_family(info["family"])
    trained: Any = from_dict(cls.config_class, info["config"], where=f"{folder}/model.json")
    # The second form dates from before machines could choose.
    if info["config_digest"] not in (config_digest(trained), digest(to_dict(trained))):
        raise UserError(
            f"checkpoint {folder}: the config in model.json has digest {config_digest(trained)[:12]}, recorded is "
            f"{str(info['config_digest'])[:12]}; it was edited, or written by another version: train again"
        )
    config = with_settings(unsettled(trained), settings)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.fingerprint != info["tokenizer"]["fingerprint"]:
        raise UserError(f"checkpoint {folder}: tokenizer.json is not the tokenizer it was trained with")
    model: LanguageModel = cls(config)
    weights = load_weights(folder)
    model.allocate({k: tuple(v.shape) for k, v in weights.items()})
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    actual = {k: tuple(v.shape) for k, v in weights.items()}
    if expected != actual:
        odd = sorted(k for k in expected.keys() | actual.keys() if expected.get(k) != actual.get(k))
        raise UserError(
            f"checkpoint {folder} does not fit its config: {odd[0]} expected {expected.get(odd[0])}, "
            f"found {actual.get(odd[0])}"
        )
    model.load_state_dict(weights)
    info = {**info, "config": to_dict(config), "config_digest": config_digest(config)}
    return LoadedModel(
        model=model.to(device).eval(), tokenizer=tokenizer, name=info["name"], directory=folder, info=info
    )


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The scored weights of a step folder, verified by `read_info` before."""
    from safetensors.torch import load_file

    return load_file(folder / "weights.safetensors")


def load_state(folder: Path) -> dict[str, Tensor]:
    """The training state of a step folder, verified by `read_info` before."""
    from safetensors.torch import load_file

    path = folder / STATE
    if not path.is_file():
        raise UserError(f"checkpoint {folder} holds weights only: nothing to resume from")
    return load_file(path)
