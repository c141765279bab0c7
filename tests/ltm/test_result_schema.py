"""The schema of results: each field has a type, a range and a length, and errors say which."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ltm.errors import UserError
from ltm.result import read_result, to_dict, write_result
from ltm.result_schema import check
from tests.support.mutated_results import edited
from tests.support.result_factory import make_result


@pytest.mark.parametrize(
    ("fields", "literal", "says"),
    [
        (("cost", "parameters"), "-1", "cost.parameters: expected a number from 0 to 9007199254740992, found -1"),
        (("training", "flops"), "-3e13", "training.flops: expected a number from 0 to 1e+100, found -3"),
        (("training", "recipe"), "5", "training.recipe: expected a table or null, found 5"),
        (("scoring", "block_length"), "0", "scoring.block_length: expected a number from 1 to"),
        (("scoring", "likelihoods"), "3", "scoring.likelihoods: expected a list, found 3"),
        (("scoring", "mine"), "1e99", None),
        (("scoring", "stop"), r'["\n\n"]', None),
        (("scoring", "stop"), r'["\u001b"]', "scoring.stop: expected printable characters, found '\\x1b'"),
        (("task", "version"), '"abc"', "task.version: expected a number, such as 1.0, found 'abc'"),
        (("model", "name"), '"' + "x" * 401 + '"', "model.name: expected at most 400 characters, found 401"),
        (
            ("model", "config"),
            json.dumps({"a": ["x" * 9_999] * 30}),
            "model: expected at most 200,000 characters of JSON",
        ),
        (("model", "config", "\u202e"), "1", "model.config: expected printable characters"),
        (("data", "source", "file"), r'"\u202etxt"', "data.source: expected printable characters"),
        (("provenance", "date"), '"2026-13-01"', "provenance.date: expected a date such as 2026-01-31T12:00:00+00:00"),
        (("metrics", 0, "value"), "0", "metrics[0].value: expected 'token_perplexity' from 1e-100 to 1e+100, found 0"),
        (("metrics", 0, "ci95", "low"), "-1", "metrics[0].ci95.low: expected 'token_perplexity' from"),
        (("metrics", 0, "stderr_data"), "-0.1", "metrics[0].stderr_data: expected a number from 0"),
        (("metrics", 2, "value"), "-0.5", None),
        (("metrics",), json.dumps([{}] * 1_001), "metrics: expected at most 1,000, found 1,001"),
    ],
)
def test_every_field_has_a_range_and_a_length(
    tmp_path: Path, fields: tuple[Any, ...], literal: str, says: str | None
) -> None:
    path = write_result(make_result(), tmp_path)
    edited(path, literal, *fields)
    if says is None:
        assert read_result(path)
    else:
        with pytest.raises(UserError) as caught:
            read_result(path)
        assert f"field {says}" in str(caught.value) and "delete it and run ltm-eval again" in str(caught.value)


def test_accuracies_are_shares(tmp_path: Path) -> None:
    data = to_dict(make_result())
    share = {**data["metrics"][-1], "name": "pass@5", "likelihood": None, "ci95": None}
    for name, value, fits in (
        ("pass@5", 1.0, True),
        ("pass@5", 1.1, False),
        ("accuracy", -0.1, False),
        ("chance_prior_pass@1_legacy_substring", 2.0, False),
        ("pass@5_above_best_chance", -0.2, True),
    ):
        data["metrics"] = [{**share, "name": name, "value": value}]
        if fits:
            check(data, "result")
        else:
            with pytest.raises(UserError, match=rf"metrics\[0\]\.value: expected '{re.escape(name)}' from 0 to 1"):
                check(data, "result")
