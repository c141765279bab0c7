"""How long work takes, as people read it."""

from __future__ import annotations

import math

import pytest

from ltm.progress import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0 s"), (8.4, "8 s"), (60, "1 min"), (320, "5 min 20 s"), (3 * 3600 + 605, "3 h 10 min")),
        *((100 * 3600, "4 d 4 h"), (400 * 86400, "1 y 35 d"), (2e12, "63,419 y 213 d"), (math.inf, "unknown time")),
    ],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
