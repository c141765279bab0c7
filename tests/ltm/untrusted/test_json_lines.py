"""Compressed lines of strangers: what is read, and the limits on what a small file may unpack to."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc

import pytest

from ltm.errors import UserError
from ltm.untrusted.json_lines import LINE, parse_gzip

ROWS = [{"block": i, "text": "é\n\x1b" * (i % 7), "nats": -1.5 * i} for i in range(3_000)]


def test_rows_are_read_as_they_were_written() -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    assert parse_gzip(gzip.compress(text.encode()), where="here") == ROWS
    assert parse_gzip(gzip.compress(text.removesuffix("\n").encode(), 0), where="here") == ROWS
    # Larger than the pieces in which it is unpacked and split.
    wide = [{"text": "x" * 900_000, "row": i} for i in range(5)]
    assert parse_gzip(gzip.compress("\n".join(map(json.dumps, wide)).encode()), where="here") == wide
    assert parse_gzip(gzip.compress(b""), where="here") == []


def test_a_bomb_takes_no_more_memory_than_the_limit() -> None:
    spaces = gzip.compress(b" " * (100 << 20), 9)
    rows = gzip.compress(b'{"block": 0}\n' * 1_000_000, 9)
    assert len(spaces) < 200_000 and len(rows) < 200_000
    tracemalloc.start()
    with pytest.raises(UserError, match=f"here: expected lines of at most {LINE.bytes:,} bytes"):
        parse_gzip(spaces, where="here")
    with pytest.raises(UserError, match="here: expected a file that unpacks to at most 1,000 bytes"):
        parse_gzip(rows, where="here", unpacked=1_000)
    with pytest.raises(UserError, match="here: expected at most 50 lines, found more"):
        parse_gzip(rows, where="here", lines=50)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 << 20


def test_damage_of_any_kind_is_a_user_error() -> None:
    rng, whole = random.Random(2), gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS[:50]).encode())
    refused = 0
    for _ in range(500):
        data = bytearray(whole)
        if rng.random() < 0.3:
            data = data[: rng.randrange(len(data))]
        else:
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            parse_gzip(bytes(data), where="here")
        except UserError as error:
            assert str(error).startswith("here") and str(error).isprintable() and len(str(error)) < 400
            refused += 1
    assert refused > 400  # the header's date and flags may change
