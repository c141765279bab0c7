"""Broken estimators are refuted, sound ones are not, and the document says which check sees which error."""

from __future__ import annotations

import functools
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from ltm.files import write_atomically
from tests.mutants import MUTANTS, matrix, specimens

SUBJECTS = (*specimens.FAMILIES, "tasks")
CHECKS = [*specimens.CHECKS, *matrix.task_checks.CHECKS]


def once(compute: Callable[[str], matrix.Row]) -> Callable[[str], matrix.Row]:
    """Compute each row once for all workers of a run, which share a directory; whoever comes second waits."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        return functools.cache(compute)
    folder = Path(tempfile.gettempdir()) / f"mutants-{run}"

    @functools.cache
    def row(name: str) -> matrix.Row:
        folder.mkdir(exist_ok=True)
        file = folder / f"{compute.__name__}-{name}.pickle"
        with FileLock(file.with_suffix(".lock")):
            if not file.exists():
                write_atomically(file, pickle.dumps(compute(name)))
            return pickle.loads(file.read_bytes())

    return row


@once
def mutated(name: str) -> matrix.Row:
    return matrix.mutated(next(m for m in MUTANTS if m.name == name))


@once
def sound(name: str) -> matrix.Row:
    return matrix.sound(name)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_sound_models_are_not_refuted(subject):
    assert not {name: found.detail for name, found in matrix.refutations(sound(subject)).items()}


@pytest.mark.parametrize("name", [m.name for m in matrix.CAUGHT])
def test_each_mutant_is_refuted(name):
    assert matrix.refutations(mutated(name))


@pytest.mark.parametrize("name", [m.name for m in matrix.ESCAPING])
def test_what_escapes_still_does(name):
    """When a check becomes sharp enough for it, it belongs among the others."""
    assert not matrix.refutations(mutated(name))


@pytest.mark.timeout(1200)
def test_the_document_says_what_the_checks_say():
    """Names of checks, not digits; verdicts that hang on a rounding are left out."""
    rows = {m.description: mutated(m.name) for m in matrix.CAUGHT}
    names = {title: name for name, title in matrix.TITLES.items()}
    block = matrix.tables(
        {subject: sound(subject) for subject in SUBJECTS}, {m.name: rows[m.description] for m in matrix.CAUGHT}
    )
    now, before = matrix.verdicts(block), matrix.verdicts(matrix.written())
    stale = [
        (mutant, check)
        for mutant, check in now.keys() | before.keys()
        if None not in (verdict := {each.get((mutant, check), "no row") for each in (now, before)})
        and len(verdict) > 1
        and not (mutant in rows and check in names and matrix.close(rows[mutant], names[check]))
    ]
    assert not stale, "python -m tests.mutants.matrix --write"


@pytest.mark.timeout(1200)
def test_every_check_catches_something():
    caught = {name for m in matrix.CAUGHT for name in matrix.refutations(mutated(m.name))}
    # Its trials are longer than a test: docs/validity.md.
    assert set(CHECKS) - caught <= {"known_source_64_steps"}
