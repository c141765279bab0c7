"""A sample of broken estimators is refuted, each by the check that is there for it, and sound ones are not.

At the sizes of `specimens`. `make mutants` shows all of them to the audit at its own sizes, which takes longer than a
test may.
"""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, matrix, specimens, task_checks

CHECKS = {**specimens.CHECKS, **task_checks.CHECKS}


def not_refuted(subject: str) -> list[str]:
    """Which mutants of a subject the check that is there for them does not refute."""
    own = (m for m in matrix.sample() if m.subject == subject)
    return [m.name for m in own if all(found.passed is not False for found in specimens.mutated(m))]


@pytest.mark.parametrize("family", specimens.FAMILIES)
def test_a_sound_family_is_not_refuted_and_its_mutants_are(family):
    with specimens.apart(family):
        results = [found for name in specimens.CHECKS for found in specimens.ask(name, specimens.sound(family))]
    assert not [found for found in results if found.passed is False]
    assert not not_refuted(family)


def test_sound_tasks_are_not_refuted_and_their_mutants_are():
    assert all(found.passed for check in task_checks.CHECKS.values() for found in check())
    assert not not_refuted("tasks")


def test_every_check_must_catch_something():
    assert set(CHECKS) == {specimens.MADE_BY.get(m.caught_by, m.caught_by) for m in matrix.CAUGHT}


def test_every_mutant_is_caught_or_escapes_for_a_reason():
    assert all(bool(m.caught_by) != bool(m.escapes) for m in MUTANTS)


def test_the_document_lists_all_mutants():
    rows = (line.strip("| ").split(" | ") for line in matrix.written().splitlines() if line.startswith("| "))
    listed = {tuple(row[:2]) for row in rows if row[1] in matrix.SUBJECTS}
    assert listed == {(m.description, m.subject) for m in MUTANTS}, "python -m tests.mutants.matrix --write"
