"""Estimators and pipelines that are broken on purpose, each by one patch to a sound tree.

A mutant says what it is broken in and which specimen shows it. Most are patched when trained models are scored; what
a network has to learn to make use of, such as a leak, is patched while it is trained too. `matrix.py` shows all of them
to the audit; the tests show a sample to the same checks at the sizes of `specimens.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest import mock

Patch = AbstractContextManager[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One error.

    Attributes:
        subject: a family of `specimens`, or `tasks` for what is no likelihood.
        description: what is wrong.
        patch: makes it so until it is left.
        caught_by: the check that must refute it at the sizes of `specimens`; others may too. Empty if it escapes.
        while_trained: the specimen is trained under the patch.
        escapes: why no check sees it, at any size; empty where one must.
    """

    name: str
    subject: str
    description: str
    patch: Callable[[], Patch]
    caught_by: str = ""
    while_trained: bool = False
    escapes: str = ""


MUTANTS: list[Mutant] = []


def mutant(subject: str, description: str, **options: Any) -> Callable[[Callable[[], Patch]], Callable[[], Patch]]:
    def note(patch: Callable[[], Patch]) -> Callable[[], Patch]:
        MUTANTS.append(Mutant(name=patch.__name__, subject=subject, description=description, patch=patch, **options))
        return patch

    return note


def instead(owner: Any, name: str, make: Callable[[Any], Any]) -> Patch:
    """Something that is made of what is there, in its place."""
    return mock.patch.object(owner, name, make(getattr(owner, name)))


def changed(owner: Any, name: str, change: Callable[[Any], Any]) -> Patch:
    """What a function returns, changed."""
    return instead(owner, name, lambda sound: lambda *given, **named: change(sound(*given, **named)))
