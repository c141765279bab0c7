"""Rows to score and prompts to continue, in the tokens of one model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ltm.api import Sampling
from ltm.data.tokens.stream import TokenStream
from ltm.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence to score.

    Attributes:
        record: its name in the response cache.
        tokens: ids, integers of any width, no more than a block.
        context: how many leading ones are given and not scored.
        index: index of its stream of noise.
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
        index: index of its stream of noise.
        latents: index for its latents if they have another one, so that z is held fixed as tokens are drawn anew.
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
    """A digest of texts, for the names of records."""
    return hashlib.sha256(repr(texts).encode(errors="surrogatepass")).hexdigest()[:24]


def blocks(
    ids: TokenStream | np.ndarray, size: int, *, record: str, document: int, limit: int | None = None
) -> Iterator[Row]:
    """Cut ids into rows of `size` tokens, the last one shorter, each scored given BOS alone; only the first `limit`.

    Block i of document d has noise index d * 2**32 + i.
    """
    for i, start in enumerate(range(0, len(ids), size)[:limit]):
        yield Row(record=f"{record} block {i}", tokens=ids[start : start + size], context=0, index=(document << 32) + i)


def joined(encode: Callable[[str], np.ndarray], context: str, text: str) -> tuple[np.ndarray, int]:
    """Encode context and text together; return the ids, and how many of them are the context's.

    If a token would span the boundary, the two are encoded separately, so that exactly the text can be scored.
    """
    given, whole = encode(context), encode(context + text)
    if not np.array_equal(whole[: len(given)], given):
        whole = np.concatenate([given, encode(text)])
    return whole, len(given)


def continuation(whole: np.ndarray, given: int, size: int, *, record: str, document: int) -> list[Row]:
    """Make one row of what follows the first `given` ids, with its context cut on the left if both are too long.

    More than `size` new ids are scored in blocks, without context; none give no row. All continuations of a document
    have the same noise, so that only their text makes their scores differ.
    """
    new = len(whole) - given
    if new > size:
        return list(blocks(whole[given:], size, record=record, document=document))
    whole = whole[-size:]
    return [Row(record=record, tokens=whole, context=len(whole) - new, index=document << 32)] if new else []


def greedy(row: Row) -> Prompt:
    """The greedy prompt for exactly as many tokens as a row scores: a family may begin longer answers differently."""
    return Prompt(
        record=f"greedy {row.record}",
        tokens=row.tokens[: row.context].tolist(),
        new_tokens=len(row.tokens) - row.context,
        sampling=Sampling(temperature=0),
        index=row.index,
    )


def decoded(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> tuple[str, str]:
    """Decode a prompt and the new text; a character that spans both goes to the new text where possible."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *new])
    return before, whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)
