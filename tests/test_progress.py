"""How long work takes, as people read it."""

from __future__ import annotations

import math

import pytest

from ltm.progress import count, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0 s"), (8.4, "8 s"), (60, "1 min"), (320, "5 min 20 s"), (3 * 3600 + 605, "3 h 10 min")),
        *((100 * 3600, "4 d 4 h"), (400 * 86400, "1 y 35 d"), (2e12, "63,419 y 213 d"), (math.inf, "unknown time")),
    ],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "things", "text"),
    [
        *((1, "tokens", "1 token"), (0, "blocks", "0 blocks"), (2, "minutes", "2 minutes"), (1, "minutes", "1 minute")),
        *((1, "processes", "1 process"), (1, "fresh texts", "1 fresh text"), (1_234_567, "bytes", "1,234,567 bytes")),
        *((1, "bytes", "1 byte"), (1, "passages", "1 passage"), (1, "chances", "1 chance"), (1, "GPUs", "1 GPU")),
    ],
)
def test_counts_agree_in_number(number: int, things: str, text: str) -> None:
    assert count(number, things) == text
