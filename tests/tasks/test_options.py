"""Options from Python: numbers given as text are numbers, and what is none is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltm.errors import UserError
from tasks.options import EvalOptions


def test_numbers_given_as_text_become_numbers():
    options = EvalOptions(
        draws="16", seed=2.0, batch_size="8", temperature="0.7", top_p=1, output="out", settings=["a=1"]
    )
    assert (options.draws, options.seed, options.batch_size) == (16, 2, 8) and type(options.seed) is int
    assert options.temperature == 0.7 and options.top_p == 1.0 and options.output == Path("out")
    assert options.settings == ("a=1",) and options == EvalOptions(
        draws=16, seed=2, batch_size=8, temperature=0.7, top_p=1.0, output=Path("out"), settings=("a=1",)
    )
    assert EvalOptions().batch_size == "auto" and EvalOptions().draws is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"draws": "many"}, "--draws=many: expected a whole number of at least 1"),
        ({"temperature": "warm"}, "--temperature: expected a number of at least 0, found 'warm'"),
        ({"temperature": -1}, "--temperature: expected a number of at least 0, found -1"),
        ({"top_p": float("nan")}, "--top-p: expected a number"),
        ({"headline_only": "false"}, "--headline-only: expected True or False, found 'false'"),
        ({"excerpt": 100}, "--excerpt=100: expected a whole number of at least 4096"),
        ({"settings": "posterior.steps=3"}, "--set: expected a list of field=value"),
    ],
)
def test_what_is_no_number_is_refused(given, words):
    with pytest.raises(UserError) as caught:
        EvalOptions(**given)
    assert words in str(caught.value)
