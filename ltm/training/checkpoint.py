"""The format of checkpoints: a directory that is either whole and verified or absent.

A run's directory holds `step-00000400/` folders, newest last, `-final` when complete, and its `log.jsonl`. A step
folder holds `model.json`, `tokenizer.json`, `weights.safetensors` (what is scored: the moving average where there is
one), for resuming `state.safetensors`, and `MANIFEST.json` with the sha256 of each.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltm.config import config_digest, digest, from_dict, to_dict, unsettled, with_settings
from ltm.errors import UserError
from ltm.files import check_held, sha256_file, sync
from ltm.registry import model_family
from ltm.training import weights as tensors
from ltm.training.weights import weights_digest
from ltm.untrusted import json_text, tensor_file
from ltm.untrusted.display import bare, shown

if TYPE_CHECKING:
    from torch import Tensor

    from ltm.api import LanguageModel, LoadedModel
    from ltm.tokenizer import Tokenizer

SCHEMA = 1
STEP = re.compile(r"step-[0-9]{8}(-final)?")
MANIFEST = "MANIFEST.json"
SCORED = ("model.json", "tokenizer.json", "weights.safetensors")
HUB_NAMES = dict(zip(SCORED, ("config.json", "tokenizer.json", "model.safetensors"), strict=True))
"""What the files of `SCORED` are called in a repository of the hub, in the names that its tools know."""
STATE = "state.safetensors"
"""A checkpoint has the files of `SCORED`; one that training can go on from also has `STATE`."""
LOCK = ".lock"
"""In a run's directory: whoever writes there holds it."""
LONGEST_NAME = 120
"""Most characters of a model's name, which becomes that of a folder of results."""
_SMALL = json_text.Limits(bytes=1 << 20)
_INFO: dict[str, type] = {
    **dict.fromkeys(("name", "family", "config_digest", "weights_digest"), str),
    **dict.fromkeys(("config", "tokenizer", "training"), dict),
}
_TOKENIZER = {"name": str, "fingerprint": str}
_TRAINING: dict[str, type] = {
    **dict.fromkeys(("corpus", "data_fingerprint", "device", "dtype"), str),
    **dict.fromkeys(("tokens", "steps", "seed"), int),
    **dict.fromkeys(("seconds", "flops", "paper_flops"), float),
    **dict.fromkeys(("recipe", "data_source"), dict),
    "complete": bool,
}
"""What `training` may hold, with these types, or null where it is unknown; and more."""


def trained_elsewhere() -> dict[str, Any]:
    """The `training` of weights from elsewhere: nothing is known."""
    return dict.fromkeys(name for name in _TRAINING if name not in ("recipe", "data_source"))


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
    check_name(name, where=f"the checkpoint in {directory}")
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
    if not os.path.isdir(directory):  # False, not an error, for names that no file can have
        name = bare(str(directory))
        raise UserError(f"there is no directory {name}: expected a run of ltm-train or one of its step folders")
    if STEP.fullmatch(directory.name) or (directory / MANIFEST).is_file():
        return directory
    folders = steps(directory)
    if not folders:
        raise UserError(f"{directory} holds no checkpoint: expected step-*/{MANIFEST} as ltm-train writes them")
    return folders[-1]


def read_info(directory: Path) -> tuple[Path, dict[str, Any]]:
    """Return the step folder and its `model.json`, after verifying every file of the manifest and the weights' digest.

    Raises:
        UserError: a file is missing or altered, the weights are not those recorded, or the schema is unknown.
    """
    folder = step_folder(directory)
    for name, expected in manifest(folder).items():
        path = folder / name
        try:
            # The header first: a file that says it is enormous is not read to its end.
            if path.suffix == ".safetensors":
                tensor_file.entries(path)
            actual = tensors.sha256(path, most=None if path.suffix == ".safetensors" else json_text.LIMITS.bytes)
        except UserError as error:
            raise _unreadable(folder, name, error) from error
        if actual != expected:
            raise _damaged(
                folder, f"{name} is altered or cut short: sha256 {actual[:12]}, {MANIFEST} expects {expected[:12]}"
            )
    info = _info(folder)
    if (actual := tensors.file_digest(place(folder, "weights.safetensors"))) != info["weights_digest"]:
        raise _other_weights(folder, actual, info["weights_digest"])
    return folder, info


def place(folder: Path, name: str) -> Path:
    """Where a file of `SCORED` is: under its own name, or under that of the hub."""
    path = folder / name
    return path if os.path.lexists(path) else folder / HUB_NAMES[name]


def manifest(folder: Path) -> dict[str, str]:
    """The sha256 of each file of a step folder, as recorded.

    Raises:
        UserError: it is missing, or names other files than a checkpoint has.
    """
    try:
        recorded = json_text.read(folder / MANIFEST, limits=_SMALL)
    except UserError as error:
        raise _unreadable(folder, MANIFEST, error) from error
    listed = set(recorded) if isinstance(recorded, dict) else set()
    whole = set(SCORED) <= listed <= {*SCORED, STATE} or listed == set(HUB_NAMES.values())
    if not whole or not all(isinstance(value, str) for value in recorded.values()):
        raise _damaged(folder, f"{MANIFEST} is altered or cut short")
    return recorded


def _info(folder: Path) -> dict[str, Any]:
    """Read `model.json`: every field that others rely on is there, in its type."""
    try:
        info = json_text.table(json_text.read(place(folder, "model.json"), limits=_SMALL), where="model.json")
        if type(schema := info.get("schema")) is int and schema == SCHEMA:
            _check_types(info, _INFO, "model.json")
            _check_types(info["tokenizer"], _TOKENIZER, "model.json, tokenizer")
            known = {name: kind for name, kind in _TRAINING.items() if info["training"].get(name) is not None}
            _check_types(info["training"], known, "model.json, training")
            check_name(info["name"], where="model.json")
            return info
    except UserError as error:
        raise _damaged(folder, str(error)) from error
    raise UserError(
        f"checkpoint {folder}: model.json has schema {shown(schema)}, this version reads {SCHEMA}; "
        "use the version that wrote it, or train again"
    )


def _check_types(table: dict[str, Any], types: Mapping[str, type], where: str) -> None:
    json_text.table(table, where=where, fields=types)
    for name, kind in types.items():
        value = table[name]
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"{where}: expected {name} to be a {kind.__name__}, found {shown(value)}")


def check_name(name: str, *, where: str) -> None:
    """Raise UserError unless this can be a model's name: it is printed, and becomes a folder of results."""
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise UserError(f"{where}: expected a name of 1 to {LONGEST_NAME} printable characters, found {shown(name)}")


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(f"checkpoint {folder}: {what}; delete the folder to use an earlier one, or train again")


def _unreadable(folder: Path, name: str, error: UserError) -> UserError:
    what = "altered or cut short" if os.path.lexists(folder / name) else "missing"
    return _damaged(folder, f"{name} is {what}: {error}")


def _other_weights(folder: Path, actual: str, recorded: str) -> UserError:
    what = "weights.safetensors does not hold the tensors that were saved"
    return _damaged(folder, f"{what}: their digest is {actual[:12]}, model.json records {shown(recorded[:12])}")


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
            f"{bare(info['config_digest'][:12])}; it was edited, or written by another version: train again"
        )
    config = with_settings(unsettled(trained), settings)
    where = f"checkpoint {folder}"
    tokenizer = Tokenizer.load(folder)
    if tokenizer.fingerprint != info["tokenizer"]["fingerprint"]:
        raise UserError(f"{where}: tokenizer.json is not the tokenizer it was trained with")
    model = tensors.build(cls, config, tensor_file.entries(place(folder, "weights.safetensors")), where=where)
    if tokenizer.vocab_size != model.vocab_size:
        raise UserError(f"{where}: its tokenizer has {tokenizer.vocab_size:,} ids, its network {model.vocab_size:,}")
    weights = load_weights(folder)
    # Again, on what will be used: between the two readings the file may have changed.
    if (actual := weights_digest(weights)) != info["weights_digest"]:
        raise _other_weights(folder, actual, info["weights_digest"])
    model.load_state_dict(weights)
    tensors.check_finite(model, where=where)
    info = {**info, "config": to_dict(config), "config_digest": config_digest(config)}
    return LoadedModel(
        model=model.to(device).eval(), tokenizer=tokenizer, name=info["name"], directory=folder, info=info
    )


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The scored weights of a step folder, verified by `read_info` before."""
    return tensors.read(place(folder, "weights.safetensors"))


def load_state(folder: Path) -> dict[str, Tensor]:
    """The training state of a step folder, verified by `read_info` before."""
    path = folder / STATE
    if not path.is_file():
        raise UserError(f"checkpoint {folder} holds weights only: nothing to resume from")
    return tensors.read(path)
