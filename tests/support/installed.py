"""Projects installed from their source into a directory of their own, and commands that see them there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def install(project: Path, target: Path) -> None:
    """Build a project's wheel, with what is installed here and no network, and put it into `target`.

    The test is skipped where the build backend is not installed.
    """
    for needed in ("pip", "hatchling"):
        pytest.importorskip(needed, reason=f"{needed}, which builds wheels here, is not installed")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *options, "--target", str(target), str(project)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=target.parent)
    assert done.returncode == 0, done.stderr


def run(
    *command: str | Path, path: list[Path], cwd: Path, home: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """What Python makes of a command line, with `path` in front of all that it imports."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "LTM_HOME": str(home or cwd / "home")}
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, cwd=cwd, env=env)
