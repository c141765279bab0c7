"""The log of a run for TensorBoard or Weights & Biases too, through their own packages."""

from __future__ import annotations

import importlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ltm.errors import UserError, did_you_mean
from ltm.files import write_atomically

Track = Callable[[Mapping[str, float]], None]
"""Called with each line of the log; `step` and `tokens` are among its numbers."""

PACKAGES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}
RUN_ID = ".wandb-id"
"""Names the run of a directory to Weights & Biases, so that a resumed one goes on there too."""


def package(name: str) -> Any:
    """The package of a tracker.

    Raises:
        UserError: the tracker is unknown, or its package is not installed.
    """
    if name not in PACKAGES:
        raise did_you_mean("tracker", name, PACKAGES)
    try:
        return importlib.import_module(PACKAGES[name])
    except ImportError as error:
        raise UserError(
            f"--log {name} needs the package {name} ({error}): pip install {name}, or leave it out: log.jsonl has the "
            "same numbers"
        ) from error


def forget(directory: Path) -> None:
    """Delete what trackers keep of a run in its directory."""
    (directory / RUN_ID).unlink(missing_ok=True)
    for name in PACKAGES:
        shutil.rmtree(directory / name, ignore_errors=True)


@contextmanager
def tracked(
    names: Sequence[str], directory: Path, *, run: str, step: int, settings: Mapping[str, Any]
) -> Iterator[Track]:
    """Hand each line of the log to the trackers while the block runs.

    Args:
        directory: of the run.
        run: its name.
        step: the last one of those that were done before, after which it goes on.
        settings: model and recipe.
    """
    with ExitStack() as stack:
        tracks = [stack.enter_context(_OPEN[name](package(name), directory, run, step, settings)) for name in names]

        def track(line: Mapping[str, float]) -> None:
            for each in tracks:
                each(line)

        yield track


@contextmanager
def _tensorboard(found: Any, directory: Path, run: str, step: int, settings: Mapping[str, Any]) -> Iterator[Track]:
    # Steps that were lost with a crash are logged again, and shown once.
    with found.SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1) as writer:
        writer.add_text("settings", "\n".join(f"    {name}: {value}" for name, value in settings.items()), step)

        def track(line: Mapping[str, float]) -> None:
            for name, value in line.items():
                if name != "step":
                    writer.add_scalar(name, value, int(line["step"]))

        yield track


@contextmanager
def _wandb(found: Any, directory: Path, run: str, step: int, settings: Mapping[str, Any]) -> Iterator[Track]:
    known = directory / RUN_ID
    if not known.is_file():
        write_atomically(known, secrets.token_hex(8).encode())
    # The project comes from WANDB_PROJECT, as all else of theirs from their own variables.
    begun = found.init(id=known.read_text(), name=run, dir=str(directory), resume="allow", config=dict(settings))
    try:
        yield lambda line: begun.log({k: v for k, v in line.items() if k != "step"}, step=int(line["step"]))
    finally:
        begun.finish()


_OPEN = {"tensorboard": _tensorboard, "wandb": _wandb}
