"""Read JSON that anyone may have written: its size, depth, numbers and strings are bounded before anything uses them.

Results, manifests, checkpoints, tokenizers and rows of corpora are all read here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltm.errors import UserError
from ltm.untrusted.display import shown
from ltm.untrusted.regular_files import read_bytes


@dataclass(frozen=True, slots=True)
class Limits:
    """What a piece of JSON may hold.

    Attributes:
        bytes: its size.
        depth: how deep lists and objects may be nested.
        string: characters of a string or key.
        values: numbers, strings, lists and objects in total.
        controls: whether strings may have control characters, as texts and vocabularies do; names may not.
    """

    bytes: int = 64 << 20
    depth: int = 32
    string: int = 100_000
    values: int = 5_000_000
    controls: bool = False


LIMITS = Limits()
DIGITS = 20
"""Most characters of an integer: enough for 64 bits and a sign."""
LARGEST = 1e100
"""Numbers are at most this large: no count or cost comes near, and a product of two is still a float."""


def read(path: Path, *, limits: Limits = LIMITS) -> Any:
    """Read a file of JSON.

    Raises:
        UserError: it cannot be read, is no regular file, or is not JSON within the limits.
    """
    return parse(read_bytes(path, most=limits.bytes), where=str(path), limits=limits)


def parse(data: bytes | str, *, where: str, limits: Limits = LIMITS) -> Any:
    """Parse JSON.

    Args:
        where: the file, and the line if it has several, for messages.

    Raises:
        UserError: it is not JSON, has a key twice, NaN or Infinity, or exceeds a limit.
    """
    if len(data) > limits.bytes:
        raise _wrong(where, f"at most {limits.bytes:,} bytes", f"{len(data):,}")
    if isinstance(data, bytes):
        try:
            data = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _wrong(where, "UTF-8", f"byte 0x{data[error.start]:02x} at {error.start}") from None
    try:
        value = _DECODER.decode(data.removeprefix("\ufeff"))
    except RecursionError:
        raise _wrong(where, f"at most {limits.depth} levels of lists and objects", "many more") from None
    except json.JSONDecodeError as error:
        raise _wrong(where, "JSON", f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    _check(value, where, limits)
    return value


def _wrong(where: str, expected: str, found: str) -> UserError:
    return UserError(f"{where}: expected {expected}, found {found}")


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"expected integers of at most {DIGITS} digits, found one of {len(text):,}")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or abs(value) > LARGEST:
        raise ValueError(f"expected numbers of at most {LARGEST:g}, found {shown(text, most=40)}")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"expected finite numbers, found {text}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"expected each key once, found {shown(twice)} twice")
    return table


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_real, parse_constant=_constant, object_pairs_hook=_object)


def _check(value: Any, where: str, limits: Limits) -> None:
    """Check depth, strings and count without recursion."""
    level: list[Any] = [value]
    count = 0
    for depth in range(limits.depth + 2):
        below: list[Any] = []
        count += len(level)
        if count > limits.values:
            raise _wrong(where, f"at most {limits.values:,} values", "more")
        for item in level:
            if isinstance(item, str):
                _check_string(item, where, limits)
            elif isinstance(item, dict):
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if depth >= limits.depth and any(isinstance(item, dict | list) for item in level):
            raise _wrong(where, f"at most {limits.depth} levels of lists and objects", "more")
        if not below:
            return
        level = below


def _check_string(text: str, where: str, limits: Limits) -> None:
    if len(text) > limits.string:
        raise _wrong(where, f"strings of at most {limits.string:,} characters", f"one of {len(text):,}")
    if text.isascii() and text.isprintable():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _wrong(where, "whole characters", f"half a surrogate pair at character {error.start}") from None
    if not limits.controls and any(not c.isprintable() for c in text):
        raise _wrong(where, "printable characters in strings", shown(text))


def table(value: Any, *, where: str, fields: Iterable[str] = ()) -> dict[str, Any]:
    """Return an object that has all of these fields.

    Raises:
        UserError: it is something else, or lacks one.
    """
    if not isinstance(value, dict):
        raise _wrong(where, "an object", shown(value))
    for name in fields:
        if name not in value:
            raise _wrong(where, f"the field {name!r}", f"only {', '.join(map(shown, list(value)[:20])) or 'none'}")
    return value
