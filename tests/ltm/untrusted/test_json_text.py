"""JSON of strangers: everything within the limits is read as `json` reads it, all else is a UserError."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltm.errors import UserError
from ltm.untrusted.display import printable, shown
from ltm.untrusted.json_text import LARGEST, Limits, parse, read, table
from ltm.untrusted.regular_files import read_bytes

NAMES = st.text(st.characters(categories=("L", "N", "P", "S")), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.floats(-1e99, 1e99) | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_within_the_limits_is_read_as_it_was_written(value: object) -> None:
    assert parse(json.dumps(value).encode(), where="here") == value
    assert parse(json.dumps(value, ensure_ascii=False), where="here") == value


@given(st.binary(max_size=60) | st.text('[]{}",:0123456789eE+-.\\undftrlsaINi ', max_size=60))
def test_anything_else_is_a_user_error(data: bytes | str) -> None:
    try:
        parse(data, where="here")
    except UserError as error:
        assert str(error).startswith("here: ") and str(error).isprintable()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("[" * 100_000, "at most 32 levels"),
        ("[" * 33 + "]" * 33, "at most 32 levels"),
        ('{"a":' * 40 + "1" + "}" * 40, "at most 32 levels"),
        ("1" * 50_000, "integers of at most 20 digits, found one of 50,000"),
        ("-1e308", "numbers of at most 1e+100, found '-1e308'"),
        ("1e999", "numbers of at most"),
        ("0." + "1" * 10 + "e" + "9" * 5_000, "numbers of at most"),
        ("[NaN]", "finite numbers, found NaN"),
        ("-Infinity", "finite numbers, found -Infinity"),
        (r'"\ud800"', "half a surrogate pair at character 0"),
        (r'{"\udfff": 1}', "half a surrogate pair"),
        ('"' + "x" * 100_001 + '"', "strings of at most 100,000 characters"),
        (r'"\u001b[31m"', r"printable characters in strings, found '\x1b[31m'"),
        (r'"\u202eabc"', "printable characters"),
        ('{"value": 1, "value": 2}', "each key once, found 'value' twice"),
        ("{'a': 1}", "JSON"),
        ("", "JSON"),
        (b"\xff\xfe", "UTF-8, found byte 0xff at 0"),
    ],
)
def test_each_limit_says_what_was_expected(data: bytes | str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(data, where="here")
    assert says in str(caught.value) and len(str(caught.value)) < 300


def test_limits_are_the_last_values_that_pass() -> None:
    assert parse("[" * 32 + "]" * 32, where="here")
    assert parse("9" * 20, where="here") == int("9" * 20)
    assert parse(f"{LARGEST!r}", where="here") == LARGEST
    assert math.isfinite(LARGEST * LARGEST)
    assert parse(r'"\u001b\n"', where="here", limits=Limits(controls=True)) == "\x1b\n"
    with pytest.raises(UserError, match="at most 4 values"):
        parse("[1, 2, 3, 4]", where="here", limits=Limits(values=4))
    with pytest.raises(UserError, match="at most 3 bytes"):
        parse("[1, 2]", where="here", limits=Limits(bytes=3))


def test_a_byte_order_mark_is_no_part_of_json() -> None:
    assert parse(b"\xef\xbb\xbf[1]", where="here") == [1]


def test_a_table_names_the_field_that_is_missing() -> None:
    assert table({"a": 1}, where="here", fields=["a"]) == {"a": 1}
    with pytest.raises(UserError, match="here: expected an object, found a list of 2"):
        table([1, 2], where="here")
    with pytest.raises(UserError, match="expected the field 'b', found only 'a'"):
        table({"a": 1}, where="here", fields=["b"])


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"[1]")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read(tmp_path / "link") == [1]
    with pytest.raises(UserError, match="at most 2 bytes, found 3"):
        read_bytes(tmp_path / "file", most=2)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name, says in [("pipe", "a pipe"), ("device", "a device"), (".", "a directory")]:
        with pytest.raises(UserError, match=f"expected a file, found {says}"):
            read(tmp_path / name)
    for name in ("none", "x" * 5_000, "nul\0"):
        with pytest.raises(UserError):
            read(tmp_path / name)


def test_what_is_shown_prints_and_is_short() -> None:
    assert printable("a\x1b[0m\u202eb\nc") == "a\N{REPLACEMENT CHARACTER}[0m\N{REPLACEMENT CHARACTER}b\nc"
    assert shown("\x1b") == r"'\x1b'"
    assert len(shown("x" * 10**6)) == 200
    assert shown(10**5000) == "an integer of more than 77 digits"
