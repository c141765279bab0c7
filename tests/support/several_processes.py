"""Run a function of a test module in several processes, as torchrun starts them:

`python -m tests.support.several_processes MODULE FUNCTION ARGUMENT...`, in each.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def torchrun(
    processes: int,
    *command: str,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    timeout: float = 240,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m COMMAND` in so many processes; `options` are of torchrun itself."""
    return subprocess.run(
        [sys.executable, *TORCHRUN, str(processes), *options, "-m", *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(environment or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def started(processes: int, *command: str) -> list[subprocess.Popen[str]]:
    """Start `python -m COMMAND` in so many processes, as a scheduler without torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def called(processes: int, function: str, *arguments: str) -> None:
    """Call MODULE:FUNCTION with the arguments in so many processes; raises if one of them fails."""
    run = torchrun(processes, __spec__.name, *function.split(":"), *arguments)
    assert run.returncode == 0, run.stderr[-5000:]


if __name__ == "__main__":
    getattr(import_module(sys.argv[1]), sys.argv[2])(*sys.argv[3:])
