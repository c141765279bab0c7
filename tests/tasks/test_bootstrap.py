"""Means over items: what is known of their errors."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.bootstrap import means


def test_the_error_of_a_mean_is_what_theory_says():
    values = np.random.default_rng(0).random((2, 400)) < [[0.2], [0.5]]
    for found, row in zip(means(values, "problems"), values, strict=True):
        expected = row.std() / 20
        assert found.value == row.mean() and found.stderr_data == pytest.approx(expected, rel=0.03)
        assert found.ci95[0] == pytest.approx(found.value - 1.96 * expected, abs=0.1 * expected + 0.0026)
        assert found.ci95[1] == pytest.approx(found.value + 1.96 * expected, abs=0.1 * expected + 0.0026)
        assert "400 problems" in found.method


def test_rows_are_resampled_together():
    a = np.arange(50.0) % 7
    first, second, difference = means([a + 3, a, (a + 3) - a], "problems")
    assert difference.ci95 == (3.0, 3.0) and difference.stderr_data == pytest.approx(0, abs=1e-12)
    assert first.ci95[0] - second.ci95[0] == pytest.approx(3)


def test_one_item_has_no_interval_and_none_is_an_error():
    (found,) = means([[1.0]], "problems")
    assert found.value == 1 and found.ci95 is None and found.stderr_data is None
    with pytest.raises(ValueError, match="at least one item"):
        means([[]], "problems")
