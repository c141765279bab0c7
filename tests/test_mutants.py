"""Broken estimators are refuted, sound ones are not, and the document says which check sees which error."""

from __future__ import annotations

import functools

import pytest

from tests.mutants import MUTANTS, matrix, specimens

SUBJECTS = (*specimens.FAMILIES, "tasks")
CHECKS = [*specimens.CHECKS, *matrix.task_checks.CHECKS]
mutated = functools.cache(lambda name: matrix.mutated(next(m for m in MUTANTS if m.name == name)))
sound = functools.cache(matrix.sound)


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
    rows = {m.says: mutated(m.name) for m in matrix.CAUGHT}
    names = {title: name for name, title in matrix.TITLES.items()}
    block = matrix.tables(
        {subject: sound(subject) for subject in SUBJECTS}, {m.name: rows[m.says] for m in matrix.CAUGHT}
    )
    now, before = matrix.verdicts(block), matrix.verdicts(matrix.written())
    stale = [
        (mutant, check)
        for mutant, check in now.keys() | before.keys()
        if now.get((mutant, check)) != before.get((mutant, check))
        and not (mutant in rows and check in names and matrix.close(rows[mutant], names[check]))
    ]
    assert not stale, "python -m tests.mutants.matrix --write"


@pytest.mark.timeout(1200)
def test_every_check_catches_something():
    caught = {name for m in matrix.CAUGHT for name in matrix.refutations(mutated(m.name))}
    # Its trials are longer than a test: docs/validity.md.
    assert set(CHECKS) - caught <= {"known_source_64_steps"}
