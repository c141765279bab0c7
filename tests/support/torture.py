"""Break off training, evaluation and ranking, issue the same commands again, and compare with an undisturbed run.

Run as `python -m tests.support.torture --kills 120 --timed 80 --full 60`, in a process of its own: it forks. What it
breaks off is a journey of three commands, at one of their acts on files or at any time, by a kill or by a disk that is
full from there on. Every line it prints is JSON; the last one sums up, and the exit code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltm.files import home
from ltm.result import find_results, read_result
from ltm.training import checkpoint
from tests.support.kill_points import ACTS
from tests.support.miniature_runs import log, text

MODEL = "ltm-tiny"
SETTINGS = (
    *(f"decoder.{setting}" for setting in ("layers=1", "width=8", "heads=2", "hidden=16", "max_length=17", "window=4")),
    *("latents=4", "posterior.steps=2", "posterior.matmul=float32"),
    *("training.batch=4", "training.accumulation=1", "training.matmul=float32", "training.checkpoint_seconds=0"),
)
UPDATES = 3
STAGES = ("home/tokens", "home/models", "home/cache", "results", "LEADERBOARD")
"""Where the files of each stage are; disturbances are spread over all stages, and then over the acts of each."""
SLOWEST = 120.0
"""Seconds after which an attempt counts as one that hangs."""


def journey() -> int:
    """Train, evaluate and rank, in the current directory; the first exit code that is not 0."""
    from leaderboard import cli as ranking
    from ltm import train_cli as training
    from tasks import cli as evaluation

    settings = [argument for setting in SETTINGS for argument in ("--set", setting)]
    train = [
        "ltm-train",
        MODEL,
        "--corpus",
        "toy",
        "--data-dir",
        "data",
        "--tokenizer",
        "bytes",
        "--budget",
        f"tokens={UPDATES * 64}",
    ]
    score = [
        "ltm-eval",
        "--model",
        MODEL,
        "--tasks",
        "text:data/toy/validation.txt",
        "--batch-size",
        "2",
        "--draws",
        "2",
    ]
    rank = ["ltm-leaderboard", "build", "--results", "results", "--out", "LEADERBOARD.md"]
    for main, sys.argv in ((training.main, [*train, *settings]), (evaluation.main, score), (ranking.main, rank)):
        if code := main():
            return code
    return 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """How a journey ended.

    Attributes:
        code: the exit code; negative for the signal that ended it.
        acts: its acts on files, in order; the last one is that of the kill, if it was killed at one.
        said: standard output and standard error.
    """

    code: int
    acts: list[str]
    said: str


def kill(event: str, arguments: tuple[Any, ...]) -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def fill_up(event: str, arguments: tuple[Any, ...]) -> None:
    """No file can grow from now on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """No file or directory can be made or moved from now on."""
    flags = arguments[2] if event == "open" else os.O_CREAT
    if flags & os.O_CREAT and event in ("open", "os.mkdir", "os.rename"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))


Fault = Callable[[str, tuple[Any, ...]], None]


def attempt(place: Path, fault: Fault | None = None, *, at: int = 0, killed_after: float = SLOWEST) -> Attempt:
    """Make the journey in a child process that meets `fault` at act number `at` and all later ones."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.chdir(place)
        os.environ["LTM_HOME"] = str(place / "home")
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        number = 0

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal number
            if event in ACTS and (path := os.path.abspath(str(arguments[0]))).startswith(str(place)):
                number += 1
                os.write(writer, f"\n#{event} {os.path.relpath(path, place)}\n".encode())
                if fault and number >= at:
                    fault(event, arguments)

        sys.addaudithook(count)
        code = 1
        try:
            code = journey()
            sys.stdout.flush()
        except BaseException:
            import traceback

            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(writer)
    said, deadline = b"", time.monotonic() + killed_after
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGKILL)
            deadline = time.monotonic() + SLOWEST
        elif not (block := os.read(reader, 1 << 16)):
            break
        else:
            said += block
    os.close(reader)
    _, status = os.waitpid(child, 0)
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    acts = [line[1:] for line in lines if line.startswith("#")]
    return Attempt(os.waitstatus_to_exitcode(status), acts, "\n".join(line for line in lines if line[0] != "#"))


def outcome(place: Path) -> dict[str, Any]:
    """All that a journey must leave, and nothing that no two runs share; everything that it must not leave is named."""
    run = place / "home" / "models" / MODEL
    results = {str(path.relative_to(place)): read_result(path) for path in find_results(place / "results")}
    files = [path for path in place.rglob("*") if path.is_file()]
    return {
        "weights": checkpoint.weights_digest(checkpoint.load_weights(checkpoint.read_info(run)[0])),
        "steps": [path.name for path in checkpoint.steps(run)],
        "log": log(run),
        "results": {name: [result.key, *map(repr, result.metrics)] for name, result in results.items()},
        "records": {name: (result.records or {}).get("sha256") for name, result in results.items()},
        "cached": sorted(len(path.read_bytes().splitlines()) for path in (place / "home" / "cache").glob("*.jsonl")),
        "board": sorted(path.name for path in place.glob("LEADERBOARD*")),
        "left over": sorted(
            str(path.relative_to(place)) for path in files if path.name.startswith(".") and path.name != ".lock"
        )
        + sorted(str(path.relative_to(place)) for path in files if path.suffix == ".owner"),
    }


def fresh(place: Path) -> Path:
    """An empty place with a corpus."""
    shutil.rmtree(place, ignore_errors=True)
    (place / "data" / "toy").mkdir(parents=True)
    (place / "data" / "toy" / "train.txt").write_text("".join(text(30)))
    (place / "data" / "toy" / "validation.txt").write_text("".join(text(4, seed=1)))
    return place


def wrong(disturbed: Attempt, fault: Fault | None) -> str | None:
    """What is wrong with the end of a disturbed journey, if anything."""
    if "Traceback" in disturbed.said or "Exception ignored" in disturbed.said:
        return disturbed.said[-3000:]
    if fault in (fill_up, refuse) and disturbed.code != 0:
        # A full disk: a sentence that says what to do.
        if disturbed.code != 2 or "make room" not in disturbed.said:
            return f"exit code {disturbed.code}: {disturbed.said[-500:]}"
    elif disturbed.code not in (0, -signal.SIGKILL):
        return f"exit code {disturbed.code}: {disturbed.said[-500:]}"
    return None


def trials(place: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what happened in each trial, two disturbances of one journey that then ends."""
    choose = random.Random(options.seed)
    started = time.monotonic()
    reference = attempt(fresh(place))
    assert reference.code == 0, reference.said
    seconds, expected = time.monotonic() - started, outcome(place)
    assert not expected["left over"], expected
    yield {"acts": len(reference.acts), "seconds": round(seconds, 2)}
    of_stage = [[i for i, act in enumerate(reference.acts, 1) if stage in act] for stage in STAGES]

    def spread(number: int) -> list[int]:
        each = -(-number // len(STAGES))
        points = [acts[len(acts) * i // each] for i in range(each) for acts in of_stage]
        return points[:number]

    # Pairs: the first disturbance anywhere, the second while the first is being made good.
    plans: list[list[tuple[Fault | None, int, float]]] = []
    for at in spread(options.kills // 2):
        again = choose.randint(1, max(20, (len(reference.acts) - at) // 2))
        plans.append([(kill, at, SLOWEST), (kill, again, SLOWEST)])
    plans += [[(None, 0, choose.uniform(0, 0.9 * seconds))] for _ in range(options.timed)]
    plans += [[((fill_up, refuse)[i % 2], at, SLOWEST)] for i, at in enumerate(spread(options.full))]
    for plan in plans:
        fresh(place)
        done = [attempt(place, fault, at=at, killed_after=after) for fault, at, after in plan]
        faults = [fault for (how, _, _), one in zip(plan, done, strict=True) if (fault := wrong(one, how))]
        last = attempt(place)
        if last.code or "Traceback" in last.said:
            faults.append(f"again: exit code {last.code}: {last.said[-3000:]}")
        else:
            found = outcome(place)
            faults += [
                f"{part}: expected {value}, found {found[part]}"
                for part, value in expected.items()
                if found[part] != value
            ]
        yield {
            "at": [at and one.acts[min(at, len(one.acts)) - 1] for (_, at, _), one in zip(plan, done, strict=True)],
            "ended": [one.code for one in done],
            "full": any(fault in (fill_up, refuse) for fault, _, _ in plan),
            "faults": faults,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--kills", type=int, default=0, help="kills at acts on files, in pairs: the second as the first is made good"
    )
    parser.add_argument("--timed", type=int, default=0, help="kills at random times")
    parser.add_argument("--full", type=int, default=0, help="disks that are full from an act on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    started, kills, full, failures = time.monotonic(), 0, 0, 0
    # In memory where that can be: what is killed is a process, not the machine, so nothing has to reach a disk.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        # Once in this process, so that its children find everything imported.
        os.environ["LTM_HOME"] = str(fresh(Path(folder) / "warm") / "home")
        os.chdir(home().parent)
        assert journey() == 0
        for trial in trials(Path(folder) / "place", options):
            print(json.dumps(trial), flush=True)
            kills += trial.get("ended", []).count(-signal.SIGKILL)
            full += trial.get("full", False)
            failures += bool(trial.get("faults"))
    total = {"kills": kills, "full disks": full, "failures": failures, "seconds": round(time.monotonic() - started)}
    print(json.dumps(total))
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
