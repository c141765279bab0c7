"""Sound models before every check, under many seeds: `python -m tests.mutants.sound --runs 100`."""

from __future__ import annotations

import argparse
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import numpy as np

from ltm import harness
from ltm.evaluation.rows import Row
from ltm.rng import SequenceRng, seed_of
from tasks.audit.checks import enumeration
from tasks.audit.checks.check import CheckResult
from tests.mutants import Patch, specimens
from tests.mutants.specimens import CHECKS, Specimen
from tests.support.sound_models import SOUND, HMMConfig

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
    return Specimen(family, plain.cls, specimens.settings(family), seed=seed)


@contextlib.contextmanager
def _seeded(name: str, seed: int) -> Iterator[None]:
    """Small sizes, with other noise in the sums over all texts, which have a fixed one."""

    def reseeded(own: int, indices: Sequence[int]) -> SequenceRng:
        return SequenceRng(seed_of(own, seed), indices)

    family = SOUND[name][1] if name in SOUND else name
    with specimens.apart(family), mock.patch.object(enumeration, "SequenceRng", reseeded):
        yield


def refuted(name: str, seed: int, checks: Sequence[str] = tuple(CHECKS)) -> list[CheckResult]:
    """The checks that refute a sound model under a seed."""
    patch: Callable[[], contextlib.AbstractContextManager] = strides if name == STRIDES else contextlib.nullcontext
    with _seeded(name, seed):
        s = specimen(name, seed)
        _ = s.model, specimens.sound("ngram").model
        with patch():
            return [found for check in checks for found in specimens.ask(check, s) if found.passed is False]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print how often each check refutes each sound model; 1 if any does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="seeds 0, 1, ...; default: 100")
    parser.add_argument("--only", default="", help="models whose name has this in it")
    options = parser.parse_args(arguments)
    alarms = 0
    for name in NAMES:
        if options.only not in name:
            continue
        counts: Counter[str] = Counter()
        for seed in range(options.runs):
            found = refuted(name, seed)
            counts.update({result.name for result in found})
            for result in found:
                print(f"  {name}, seed {seed}: {result.name} {result.likelihood or ''}: {result.detail}", flush=True)
        alarms += counts.total()
        refuters = ", ".join(f"{check} {count}" for check, count in counts.items()) or "none"
        print(f"{name}: {options.runs} runs, refuted by: {refuters}", flush=True)
    return int(alarms > 0)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    raise SystemExit(main())
