"""Rows to score and prompts to continue, in the tokens of one model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ltm.api import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence for the model.

    Attributes:
        record: its name in the response cache.
        tokens: int32 ids, no more than a block.
        context: how many leading ones are given and not scored.
        index: which stream of noise it gets.
    """

    record: str
    tokens: np.ndarray
    context: int
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A text to be continued.

    Attributes:
        record: its name in the response cache.
        tokens: ids of the prompt; with `new_tokens` no more than a block.
        index: which stream of noise it gets.
        latents: which stream its latents get, where that is another: z held fixed while tokens are drawn anew.
    """

    record: str
    tokens: Sequence[int]
    new_tokens: int
    sampling: Sampling
    index: int
    latents: int | None = None


def padded(rows: Sequence[np.ndarray]) -> Tensor:
    """Stack rows of ids into one int64 batch (B, L), each filled up with zeros on the right."""
    return pad_sequence([torch.from_numpy(ids.astype(np.int64)) for ids in rows], batch_first=True)


def digest_of(*texts: str) -> str:
    """What texts go by in the names of records."""
    return hashlib.sha256(repr(texts).encode(errors="surrogatepass")).hexdigest()[:24]


def blocks(ids: np.ndarray, size: int, *, record: str, document: int, limit: int | None = None) -> list[Row]:
    """Rows of `size` tokens, the last one shorter, each to be scored given BOS alone; only the first `limit`.

    Block i of document d has noise of index d * 2**32 + i.
    """
    starts = range(0, len(ids), size)[:limit]
    return [
        Row(record=f"{record} block {i}", tokens=ids[start : start + size], context=0, index=(document << 32) + i)
        for i, start in enumerate(starts)
    ]


def joined(encode: Callable[[str], np.ndarray], context: str, text: str) -> tuple[np.ndarray, int]:
    """The ids of both texts, one after the other, and how many are the context's.

    Where a token would span the seam they are encoded apart, so that exactly the text after it can be scored.
    """
    given, whole = encode(context), encode(context + text)
    if not np.array_equal(whole[: len(given)], given):
        whole = np.concatenate([given, encode(text)])
    return whole, len(given)


def continuation(whole: np.ndarray, given: int, size: int, *, record: str, document: int) -> list[Row]:
    """What comes after the first `given` ids as one row, its context cut on the left where both are too long.

    More than `size` new ids are scored in blocks, without context; none give no row. All continuations of a document
    have the same noise, so that they differ by what they say alone.
    """
    new = len(whole) - given
    if new > size:
        return blocks(whole[given:], size, record=record, document=document)
    whole = whole[-size:]
    return [Row(record=record, tokens=whole, context=len(whole) - new, index=document << 32)] if new else []


def greedy(row: Row) -> Prompt:
    """What asks whether decoding gives just this row. A family need not decode the same start of longer texts."""
    return Prompt(
        record=f"greedy {row.record}",
        tokens=row.tokens[: row.context].tolist(),
        new_tokens=len(row.tokens) - row.context,
        sampling=Sampling(temperature=0),
        index=row.index,
    )
