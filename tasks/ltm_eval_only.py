"""The loader of tasks that only `ltm-eval` can run; lm-eval loads this file by its path."""

from __future__ import annotations

from typing import Any

from ltm.errors import UserError


def load(**kwargs: Any) -> Any:
    """Raise, instead of loading data, an error that says what to run, before anything is scored."""
    raise UserError("this task needs more from a model than lm-eval asks for; run ltm-eval --tasks with the same name")
