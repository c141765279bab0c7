r"""Texts cut into pieces that can be encoded on their own, where the cut changes no token.

GPT-2's pre-tokeniser, which our own BPE has too, takes a text apart into matches of

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

and merges join bytes within a match only. A match is white space; or, after at most one space, characters of one kind:
letters, numbers, others; or an apostrophe and letters. So no match holds a character that is no white space, followed
by white space, or followed by one of another kind unless the former is an apostrophe: between the two, one match ends
and the next begins. The expression looks ahead only from white space, and never back. Hence what is on one side of such
a place does not change the matches on the other, and the ids of both sides are those of the whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

K = TypeVar("K")

PIECE_CHARACTERS = 1 << 16
BATCH_CHARACTERS = 1 << 21

BEFORE_SPACE = re.compile(r"\S(?=[ \n])")
# For texts with few spaces. The kinds of these characters are the same in all versions of Unicode.
_LETTERS = "A-Za-z\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
_OTHERS = "!-&(-/:-@\\[-`{-~\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f"  # without the apostrophe
_BETWEEN_KINDS = re.compile(
    rf"[{_LETTERS}](?=[0-9{_OTHERS}'])|[0-9](?=[{_LETTERS}{_OTHERS}'])|[{_OTHERS}](?=[0-9{_LETTERS}])"
)


class Piece(NamedTuple):
    """A part of a text that can be encoded by itself; `first` if the text begins with it."""

    text: str
    first: bool


Cut = Callable[[str, int], "int | None"]
"""Where to cut a text, not before a place in it; None if nowhere."""


def between_matches(text: str, start: int) -> int | None:
    """The first place after `start` that precedes white space; the first between two kinds if the former is far."""
    if start >= len(text):
        return None
    found = BEFORE_SPACE.search(text, start, start + PIECE_CHARACTERS) or _BETWEEN_KINDS.search(text, start)
    return found.end() if found else None


def anywhere(text: str, start: int) -> int | None:
    """Any place, for tokens that are bytes."""
    return start if start < len(text) else None


def pieces(parts: Iterable[str], cut: Cut) -> Iterator[Piece]:
    """Cut a text that comes in parts, such as its documents; an empty text is an empty piece.

    A piece has some ten thousand characters, and more only where the text cannot be cut. Only a piece and a part are
    held at a time.
    """
    held: list[str] = []
    size, enough, first = 0, PIECE_CHARACTERS, True
    for part in parts:
        held.append(part)
        size += len(part)
        if size <= enough:
            continue
        text, start = "".join(held), 0
        while end := cut(text, start + PIECE_CHARACTERS):
            yield Piece(text[start:end], first)
            start, first = end, False
        held, size = [text[start:]], len(text) - start
        # What cannot be cut is looked at again once there is twice as much.
        enough = max(PIECE_CHARACTERS, 2 * size)
    if size or first:
        yield Piece("".join(held), first)


def in_batches(pieces: Iterable[tuple[K, Piece]]) -> Iterator[list[tuple[K, Piece]]]:
    """Pieces in groups of bounded size: the encoder keeps some hundred bytes per token until a group is done."""
    batch: list[tuple[K, Piece]] = []
    characters = 0
    for key, piece in pieces:
        batch.append((key, piece))
        characters += len(piece.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
