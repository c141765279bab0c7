"""The tokens of a text on disk: shards that are mapped into memory, and the manifest that says what they hold.

A stream is a directory, named by its fingerprint, with `manifest.json`, shards `00000.tokens`, `00001.tokens`, ... of
unsigned little-endian tokens one after the other, and `verified.json`: the sizes, times and inodes that the shards had
when they last gave the digests of the manifest. Shards that still have them are not read again.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ltm.config import canonical_json
from ltm.errors import UserError
from ltm.files import Stamp, settled, sha256_file, stamp, write_atomically
from ltm.untrusted import json_text
from ltm.untrusted.display import printable, shown

MANIFEST = "manifest.json"
VERIFIED = "verified.json"


class TokenStream:
    """All tokens of a text in order, read-only; indexing by a slice gives an array.

    Attributes:
        fingerprint: of the stream: text, tokenizer and separators.
        directory: where it is.
        dtype: `<u2` or `<u4`.
    """

    def __init__(self, fingerprint: str, directory: Path, shards: Sequence[np.ndarray], dtype: np.dtype):
        self.fingerprint, self.directory, self.dtype = fingerprint, directory, dtype
        self._shards = [shard for shard in shards if len(shard)]
        self._starts = [0, *itertools.accumulate(map(len, self._shards))]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: slice) -> np.ndarray:
        start, stop, step = index.indices(len(self))
        if step != 1:
            raise ValueError("tokens are read in order")
        first, parts = bisect.bisect_right(self._starts, start) - 1, []
        for shard, begin in zip(self._shards[first:], self._starts[first:], strict=False):
            if begin >= stop:
                break
            parts.append(shard[max(0, start - begin) : stop - begin])
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def rows(self, starts: Sequence[int], length: int) -> np.ndarray:
        """Return the `length` tokens from each of the places `starts`, as int64 (R, length)."""
        return np.stack([self[start : start + length].astype(np.int64) for start in starts])


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"{number:05}.tokens"


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """Return the manifest of a stream, or of as much of it as there is; None if it is not begun.

    Raises:
        UserError: it is damaged.
    """
    file = directory / MANIFEST
    if not file.exists():
        return None
    try:
        found = json_text.table(json_text.read(file), where=str(file), fields=("complete", "shards"))
        if not isinstance(found["shards"], list):
            raise UserError(f"{file}: expected a list of shards, found {shown(found['shards'])}")
        for shard in found["shards"]:
            json_text.table(shard, where=str(file), fields=("sha256", "tokens"))
    except UserError as error:
        raise UserError(f"cannot read the tokens in {directory}: {error}; {_remedy(directory)}") from error
    return found


def verify(directory: Path, shards: Sequence[Mapping[str, Any]], itemsize: int) -> None:
    """Check that the shards hold what the manifest says. Digests are taken of what changed since they last were.

    Raises:
        UserError: a shard is not there, or damaged.
    """
    known, found = _verified(directory), {}
    for number, shard in enumerate(shards):
        file = directory / shard_name(number)
        try:
            now = stamp(file.stat())
            size, expected = now[0], shard["sha256"]
            trusted = known.get(file.name) == (expected, now)
            actual = expected if trusted else sha256_file(file)
        except (OSError, UserError) as error:
            raise UserError(f"cannot read the tokens {file}: {error}; {_remedy(directory)}") from error
        if actual != expected:
            raise UserError(
                f"the tokens {file} are damaged: expected sha256 {printable(str(expected))}, found {actual}; "
                f"{_remedy(directory)}"
            )
        if not isinstance(shard["tokens"], int) or shard["tokens"] * itemsize != size:
            raise UserError(
                f"the tokens {file} are damaged: expected {shown(shard['tokens'])} tokens, found {size // itemsize}; "
                f"{_remedy(directory)}"
            )
        if trusted or settled(now):
            found[file.name] = (expected, now)
    if found != known:
        # Without it, digests are taken again next time: nothing is lost but time.
        with suppress(UserError):
            write_atomically(directory / VERIFIED, canonical_json(found).encode() + b"\n")


def _verified(directory: Path) -> dict[str, tuple[str, Stamp]]:
    try:
        found = json_text.read(directory / VERIFIED)
        return {
            name: (sha256, (size, time, changed, inode))
            for name, (sha256, [size, time, changed, inode]) in found.items()
        }
    except (UserError, ValueError, TypeError, AttributeError):
        return {}


def opened(fingerprint: str, directory: Path, manifest: Mapping[str, Any], dtype: np.dtype) -> TokenStream:
    """Open a complete stream.

    Raises:
        UserError: a shard is not there, or damaged.
    """
    shards = manifest["shards"]
    verify(directory, shards, dtype.itemsize)
    maps = [
        np.memmap(directory / shard_name(number), dtype=dtype, mode="r", shape=(shard["tokens"],))
        for number, shard in enumerate(shards)
        if shard["tokens"]
    ]
    return TokenStream(fingerprint, directory, maps, dtype)


def _remedy(directory: Path) -> str:
    return f"remove {directory} to build it anew"
