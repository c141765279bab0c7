"""Texts read as lm-eval's `hf` backend reads them: nothing precedes a text but what its tokenizer puts there.

The suite's own protocol scores every text after a BOS. Other tools give a network the text alone where its tokenizer
adds no BOS, and where it does add one, they put another before a whole text and score the first. Their numbers are
repeated here, token by token, so that the two can be compared. Each row begins with a token that is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ltm.api import Generations, LikelihoodEstimate, Rng, Sampling
from ltm.data.separated_text import SeparatedText
from ltm.errors import UserError
from ltm.evaluation.rows import Row


class Unprefixed(Protocol):
    """A network that reads rows as they are; the methods are those of `ltm.api.LanguageModel`."""

    prefix_id: int
    """What precedes a text that would otherwise have nothing before it."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    def block_length(self) -> int:
        """The most tokens of a row; the network never reads the last one."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of a text, with those that the tokenizer puts before it if `special`."""

    def headline(self, context: int | Tensor = 0) -> str:
        """Return the name of the likelihood."""

    def log_likelihoods(
        self,
        tokens_BL: Tensor,
        *,
        context: int | Tensor = 0,
        lengths: Tensor | None = None,
        draws: int | None = None,
        rng: Rng,
        only: str | None = None,
    ) -> dict[str, LikelihoodEstimate]:
        """Score rows whose first token is given: every context is at least 1."""

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, sampling: Sampling, rng: Rng
    ) -> Generations:
        """Continue prompts of at least one token."""


def streams(reader: Unprefixed, texts: Sequence[str]) -> list[np.ndarray]:
    """Return the tokens of each text that scoring covers, int32.

    Raises:
        UserError: a text with separators between its documents.
    """
    if any(isinstance(text, SeparatedText) for text in texts):
        raise UserError("prefix=none puts nothing between documents; leave eos_between_documents out")
    return [np.array(reader.encode(text), np.int32) for text in texts]


def windows(
    reader: Unprefixed, ids: Sequence[int], *, record: str, document: int, limit: int | None = None
) -> list[Row]:
    """Cut a whole text into rows, each token scored once, and keep the first `limit`.

    The first row begins with the prefix, others with the token before them; the last one is filled up with context.
    """
    size = reader.block_length - 1
    rows: list[Row] = []
    for start in range(0, len(ids), size)[:limit]:
        end = min(start + size, len(ids))
        tokens = [reader.prefix_id, *ids[:end]] if start == 0 else ids[end - size - 1 : end]
        rows.append(_row(tokens, end - start, f"{record} window {len(rows)}", document))
    return rows


def pair(
    reader: Unprefixed, context: str, text: str, *, record: str, document: int, shortened: Counter[str]
) -> list[Row]:
    """Make the row of a text given its context, cut on the left if both are too long, which `shortened` counts.

    The tokens of the two together are cut where those of the context alone end, even if a token spans the boundary.
    A text that is too long by itself is scored in windows.
    """
    if context:
        ids = reader.encode(context)
        given = len(ids)
        ids += reader.encode(context + text)[given:]
    else:
        ids, given = [reader.prefix_id, *reader.encode(text, special=False)], 1
        # A text that begins with the prefix itself is not given it twice.
        ids = ids[1:] if ids[1:2] == ids[:1] else ids
    shortened["contexts"] += len(ids) > reader.block_length
    if (new := len(ids) - given) >= reader.block_length:
        return windows(reader, ids[given:], record=record, document=document)
    return [_row(ids[-reader.block_length :], new, record, document)] if new > 0 else []


def _row(tokens: Sequence[int], new: int, record: str, document: int) -> Row:
    return Row(record=record, tokens=np.array(tokens, np.int32), context=len(tokens) - new, index=document << 32)
