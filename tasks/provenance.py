"""The provenance of a number: commit, versions, device, command, date."""

from __future__ import annotations

import datetime
import platform
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ltm.devices import device_name
from ltm.result_schema import LONGEST
from ltm.untrusted.display import printable

PACKAGES = ("latent-thought-bench", "torch", "numpy", "scipy", "tokenizers", "lm-eval", "datasets")
"""Packages whose versions are recorded, of those that are installed: a machine that scores may have no `datasets`."""
WHERE_USED = ("transformers",)
"""Packages whose versions are recorded only if they were imported."""


def provenance(command: str, device: str, *, seconds: float, tokens: int, matmul: str | None = None) -> dict[str, Any]:
    """Make the `provenance` table of a result file.

    Args:
        command: what the user typed; names of files in it may have characters that no result may have.
        device: `cpu` or `cuda`.
        seconds: time spent computing, over all runs that contributed.
        tokens: tokens scored or generated in that time.
        matmul: dtype of matrix products in inference per text, if the model infers anything.
    """
    commit, dirty = repository_state()
    packages = [*PACKAGES, *(package for package in WHERE_USED if package in sys.modules)]
    return {
        "commit": commit,
        "dirty": dirty,
        "command": printable(command)[:LONGEST],
        "versions": {"python": platform.python_version(), **_versions(packages)},
        "device": device_name(device),
        **({} if matmul is None else {"matmul": matmul}),
        "wall_seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 3) if tokens and seconds > 0 else None,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed, by name."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def repository_state() -> tuple[str | None, bool | None]:
    """Return the commit of the suite's checkout and whether it has changes; (None, None) outside a checkout."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        # An installed copy may be inside another repository.
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None
