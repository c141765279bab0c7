"""What is to be known of a text before it is used: bytes, words and fingerprint, counted in one pass and kept.

A text in files is counted once. The tally is kept in `$LTM_HOME/corpora` under the files' names, sizes, times and
inodes (`ltm.files.stamps`) and under all that changes what is read from them; while these are the same, no later start
reads the text again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltm.config import canonical_json, digest
from ltm.data.detokenize import detokenizer as detokenizer_named
from ltm.errors import UserError
from ltm.files import Stamp, home, in_turn, settled, write_atomically
from ltm.progress import say
from ltm.untrusted import json_text

_FORMAT = 1
_KEPT_FROM_BYTES = 1 << 20
"""Less is counted sooner than looked up."""
_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counts of a text.

    Attributes:
        documents: their number.
        bytes, words: UTF-8 bytes, and runs of anything but white space within a document.
        fingerprint: sha256, in hex, of content, document boundaries, detokeniser and edition.
        rows: rows or lines that were read.
        with_returns: how many of these have carriage returns.
    """

    documents: int
    bytes: int
    words: int
    fingerprint: str
    rows: int
    with_returns: int


def counted(
    rows: Iterable[str],
    *,
    detokenizer: str | None,
    edition: str = "",
    made: Callable[[str], Iterable[str]] | None = None,
) -> Tally:
    """Count the documents that `made` gives for each row; rows are documents if it is None."""
    rules = f"{detokenizer} {detokenizer_named(detokenizer).version}" if detokenizer else ""
    content = hashlib.sha256(repr(("split 1", rules, edition)).encode())
    documents = total = words = read = with_returns = 0
    for row in rows:
        read += 1
        with_returns += "\r" in row
        for document in (row,) if made is None else made(row):
            encoded = document.encode()
            content.update(len(encoded).to_bytes(8, "little") + encoded)
            documents += 1
            total += len(encoded)
            words += len(document.split())
    return Tally(
        documents=documents,
        bytes=total,
        words=words,
        fingerprint=content.hexdigest(),
        rows=read,
        with_returns=with_returns,
    )


def of_files(
    files: Sequence[Path], stamps: Sequence[Stamp], settings: Mapping[str, Any], count: Callable[[], Tally]
) -> Tally:
    """Return the tally of these files if it was kept, or count, and keep it unless a file was just written.

    Args:
        stamps: of the files, from before they are read.
        settings: plain data; everything else that the tally depends on.
    """
    if sum(size for size, *_ in stamps) < _KEPT_FROM_BYTES:
        return count()
    named = [[str(file.resolve()), *stamp] for file, stamp in zip(files, stamps, strict=True)]
    return kept({"files": named, **settings}, count, keep=all(map(settled, stamps)))


def kept(key: Mapping[str, Any], count: Callable[[], Tally], *, keep: bool = True) -> Tally:
    """Return the tally of that key if it was kept, or count, and `keep` it."""
    key = {"format": _FORMAT, **key}
    place = home() / "corpora" / f"{digest(key)[:32]}.json"
    if found := _read(place):
        return found
    if not keep:
        return count()
    with in_turn(place.with_suffix(".lock"), work="reading the same text"):
        if found := _read(place):
            return found
        made = count()
        # Without it, the text is read again next time: nothing is lost but time.
        with suppress(UserError):
            write_atomically(place, canonical_json({**key, "tally": dataclasses.asdict(made)}).encode() + b"\n")
    return made


def _read(place: Path) -> Tally | None:
    """The tally in a file; None if there is none, or a damaged one, which is then made anew."""
    try:
        found = json_text.table(json_text.read(place), where=str(place), fields=("tally",))["tally"]
        tally = Tally(**found)
    except (UserError, TypeError):
        return None
    numbers = (tally.documents, tally.bytes, tally.words, tally.rows, tally.with_returns)
    sound = all(type(number) is int for number in numbers) and isinstance(tally.fingerprint, str)
    return tally if sound else None


def said(texts: Iterable[str], title: str) -> Iterator[str]:
    """Yield the texts; on a long pass say every few seconds how much was read."""
    began = shown = time.monotonic()
    characters = 0
    for number, text in enumerate(texts):
        characters += len(text)
        if number % 1024 == 0 and (now := time.monotonic()) - shown > _SECONDS_BETWEEN_LINES:
            shown = now
            say(f"{title}: {characters:,} characters, {characters / (now - began) / 1e6:.0f} million a second")
        yield text
