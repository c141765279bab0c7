"""Kinds of task: every task is of one that can be imported and has what the command needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ltm.errors import UserError
from tasks import catalog
from tasks.kinds import Column, Task, kind


@pytest.mark.parametrize("name", catalog.names())
def test_every_task_is_of_a_kind_that_does_its_part(name):
    found = kind(catalog.read(name).kind)
    assert issubclass(found, Task) and not found.__abstractmethods__
    assert found.items and all(isinstance(column, Column) for column in found.columns)


def test_unknown_kinds_are_named():
    with pytest.raises(UserError, match=r"unknown kind of task 'perplexities'; did you mean perplexity\?"):
        kind("perplexities")


def test_kinds_are_imported_without_what_takes_long():
    names = sorted({catalog.read(name).kind for name in catalog.names()})
    code = (
        f"import sys; from tasks.kinds import kind; [kind(name) for name in {names}]\n"
        "print(sorted({'torch', 'lm_eval', 'datasets', 'transformers', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
