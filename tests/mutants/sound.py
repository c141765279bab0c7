"""Sound models before every check, under many seeds: `python -m tests.mutants.sound --runs 100`.

Smaller than `specimens`, since false alarms are sought and not power, but with as many draws for a first look: a check
judges by errors that it measures itself, and from 8 draws they are too rough to judge by.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import numpy as np
import torch

from ltm import harness
from ltm.evaluation.rows import Row
from ltm.rng import SequenceRng, seed_of
from tasks.audit.checks import enumeration
from tasks.audit.checks.check import CheckResult
from tests.mutants import Patch, specimens
from tests.mutants.specimens import CHECKS, Specimen
from tests.support.sound_models import SOUND, HMMConfig

SIZES = {"UPDATES": 60, "FAST_STEPS": 20, "DRAWS": 64}
"""Sizes of `enumeration`, in place of those of `specimens`."""
UPDATES = 60
"""Updates of the model of the known source."""
STRIDES = "stride windows"
NAMES = (*specimens.FAMILIES, *SOUND, STRIDES)


def strides() -> Patch:
    """Whole texts in windows that overlap by half: the first half is context, and each token is scored once."""

    def windows(ids: np.ndarray, size: int, *, record: str, document: int, limit: int | None = None) -> list[Row]:
        half, rows = size // 2, []
        for i, start in enumerate([0, *range(size, len(ids), size - half)][:limit]):
            context = half if start else 0
            tokens = ids[start - context : start + size - context]
            index = (document << 32) + i
            rows.append(Row(record=f"{record} window {i}", tokens=tokens, context=context, index=index))
        return rows

    return mock.patch.object(harness, "blocks", windows)


def specimen(name: str, seed: int) -> Specimen:
    """A sound model, trained and scored under a seed."""
    if name in SOUND:
        cls, family = SOUND[name]
        return Specimen(name, cls, specimens.settings(family) if family else HMMConfig(), seed=seed)
    family = "ar" if name == STRIDES else name
    plain = specimens.sound(family)
    return Specimen(family, plain.cls, plain.config, seed=seed)


@contextlib.contextmanager
def _seeded(name: str, seed: int) -> Iterator[None]:
    """Small sizes, with other noise in the sums over all texts, which have a fixed one."""

    def reseeded(own: int, indices: Sequence[int]) -> SequenceRng:
        return SequenceRng(seed_of(own, seed), indices)

    family = SOUND[name][1] if name in SOUND else name
    with contextlib.ExitStack() as stack:
        stack.enter_context(specimens.apart(family))
        stack.enter_context(mock.patch.object(specimens, "UPDATES", UPDATES))
        stack.enter_context(mock.patch.object(enumeration, "SequenceRng", reseeded))
        for size, value in SIZES.items():
            stack.enter_context(mock.patch.object(enumeration, size, value))
        yield


def refuted(name: str, seed: int, checks: Sequence[str] = tuple(CHECKS)) -> list[CheckResult]:
    """The checks that refute a sound model under a seed."""
    patch: Callable[[], contextlib.AbstractContextManager] = strides if name == STRIDES else contextlib.nullcontext
    with _seeded(name, seed):
        s = specimen(name, seed)
        _ = s.model, specimens.sound("ngram").model
        with patch():
            return [found for check in checks for found in specimens.ask(check, s) if found.passed is False]


def _refuted(seed: int, name: str) -> list[CheckResult]:
    """`refuted`, in a process of its own: one thread, and no progress in the log."""
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        return refuted(name, seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print how often each check refutes each sound model; 1 if any does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="seeds FIRST, FIRST + 1, ...; default: 100")
    parser.add_argument("--first", type=int, default=0, help="the first seed; default: 0")
    parser.add_argument("--only", default="", help="models whose name has this in it; several with commas")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time; default: one per core")
    options = parser.parse_args(arguments)
    seeds, alarms = range(options.first, options.first + options.runs), 0
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for name in NAMES:
            if not any(part in name for part in options.only.split(",")):
                continue
            counts: Counter[str] = Counter()
            for seed, found in zip(seeds, pool.imap(functools.partial(_refuted, name=name), seeds), strict=True):
                counts.update({result.name for result in found})
                for result in found:
                    print(
                        f"  {name}, seed {seed}: {result.name} {result.likelihood or ''}: {result.detail}", flush=True
                    )
            alarms += counts.total()
            refuters = ", ".join(f"{check} {count}" for check, count in counts.items()) or "none"
            print(f"{name}: {options.runs} runs, refuted by: {refuters}", flush=True)
    return int(alarms > 0)


if __name__ == "__main__":
    raise SystemExit(main())
