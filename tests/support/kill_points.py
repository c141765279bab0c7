"""Kill a process that saves a checkpoint at each of its acts on files, one after the other; print what was left.

Run as `python -m tests.support.kill_points DIRECTORY`, in a process of its own: it forks. Every line it prints is JSON:
{"act", "found": the step that loads afterwards, "weights": their value, "steps", "hidden": what the next save leaves}.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch

from ltm.training import checkpoint
from tests.support.miniature_runs import save

ACTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.listdir", "os.scandir"}


def saved_or_killed(directory: Path, at: int) -> str | None:
    """Save step 6 in a child that is killed at its act number `at`; which act that was, None when it had finished."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        acts = 0

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal acts
            if event in ACTS and str(directory) in str(arguments[0]):
                acts += 1
                if acts == at:
                    os.write(writer, f"{event} {Path(str(arguments[0])).name}".encode())
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        save(directory, 6)
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        act = pipe.read()
    os.waitpid(child, 0)
    return act or None


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    before, trial = directory / "before", directory / "trial"
    for step in (2, 4):
        save(before, step)
    for at in itertools.count(1):
        shutil.copytree(before, trial)
        act = saved_or_killed(trial, at)
        loaded = checkpoint.load(trial)
        weights = {float(value) for p in loaded.model.parameters() for value in p.detach().unique()}
        save(trial, 8)
        left = {
            "act": act,
            "found": loaded.info["training"]["steps"],
            "weights": sorted(weights),
            "steps": [path.name for path in checkpoint.steps(trial)],
            "hidden": sorted(path.name for path in trial.iterdir() if path.name.startswith(".")),
        }
        print(json.dumps(left))
        shutil.rmtree(trial)
        if act is None:
            break


if __name__ == "__main__":
    main(Path(sys.argv[1]))
