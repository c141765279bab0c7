"""Measure whether likelihoods lie between their bounds, and as often as is stated.

`python -m benchmarks.two_sided --part miniatures` trains a miniature of every family under each of 20 seeds and
compares the bounds of all its texts with their likelihoods, which are known. `--part coverage` scores texts of `topics`
under 200 noises and counts how often the interval between the bounds holds what it should. Each finished part is a line
of a file in `--output`; the same command continues where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.latent_gain import kept
from benchmarks.two_sided import coverage, miniatures
from ltm.errors import UserError, did_you_mean, run_command
from ltm.progress import say
from ltm.training import log

SEEDS = {"miniatures": 20, "coverage": 200}


def main() -> None:
    """Measure what is missing, and print the table."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.two_sided", description=__doc__)
    p.add_argument("--part", required=True, choices=sorted(SEEDS))
    p.add_argument("--seeds", type=int, help="default: 20 of miniatures, 200 noises of coverage")
    p.add_argument("--only", metavar="NAME", help="one of the models, by the name that its row has")
    p.add_argument("--output", type=Path, default=Path("runs/two_sided"), help="default: runs/two_sided")
    options = p.parse_args()
    seeds = SEEDS[options.part] if options.seeds is None else options.seeds
    known = miniatures.MADE if options.part == "miniatures" else coverage.CASES
    names = list(known) if options.only is None else [options.only]
    if options.only is not None and options.only not in known:
        raise did_you_mean("model", options.only, known)
    if seeds < 1:
        raise UserError(f"--seeds: expected at least 1, found {seeds}")
    options.output.mkdir(parents=True, exist_ok=True)
    # Networks of this size gain nothing from a second thread.
    torch.set_num_threads(1)
    file = options.output / f"{options.part}.jsonl"
    if options.part == "miniatures":
        records = missing(file, ((f"{name} {seed}", name, seed) for seed in range(seeds) for name in names), measure)
        Console(width=120).print(miniatures.table(records))
    else:
        records = []
        for name in names:
            case = coverage.CASES[name](options.output / "models")
            wanted = ((f"{name} {seed}", name, seed) for seed in range(-1, seeds))
            records += missing(file, wanted, lambda name, seed, case=case: coverage.measured(case, name, seed))
        Console(width=120).print(coverage.table(records))


def measure(name: str, seed: int) -> dict[str, Any]:
    """Train and score one miniature, and say so."""
    record = miniatures.measured(name, seed)
    say(f"{name}, seed {seed}: {'held' if miniatures.held(record) else 'not held'}")
    return record


def missing(
    file: Path, wanted: Iterable[tuple[str, str, int]], make: Callable[[str, int], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the records of all keys, names and seeds; those that a file lacks are made and added to it."""
    done = kept(file)
    records = []
    for key, name, seed in wanted:
        if key not in done:
            done[key] = {"key": key, **make(name, seed)}
            log.append(file, done[key])
        records.append(done[key])
    return records


if __name__ == "__main__":
    raise SystemExit(run_command(main))
