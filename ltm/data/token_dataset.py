"""A split as tokens on disk, and as blocks in an order that depends only on seed and index.

Shapes: B sequences of a batch, L tokens of a block.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ltm.data.split import Split
from ltm.data.tokens.building import token_stream
from ltm.data.tokens.stream import TokenStream
from ltm.errors import UserError
from ltm.progress import count
from ltm.rng import seed_of
from ltm.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDataset:
    """The tokens of a split, cut into blocks. Get one from `TokenDataset.build`.

    Blocks are consecutive and do not overlap; the last partial block is not among them, since a batch has full
    blocks only (`remainder` says how many tokens that leaves out, `stream` has them all).

    Attributes:
        stream: every token in order, on disk.
        block_length: tokens per block, L.
    """

    stream: TokenStream
    block_length: int

    @property
    def fingerprint(self) -> str:
        """Of the stream: text, tokenizer and separators."""
        return self.stream.fingerprint

    @property
    def tokens(self) -> int:
        """Tokens of the stream, separators included."""
        return len(self.stream)

    @property
    def blocks(self) -> int:
        """Full blocks of the stream."""
        return len(self.stream) // self.block_length

    @property
    def remainder(self) -> int:
        """Tokens at the end of the stream that fill no block."""
        return len(self.stream) % self.block_length

    @classmethod
    def build(
        cls, split: Split, tokenizer: Tokenizer, *, block_length: int, eos_between_documents: bool, cache_dir: Path
    ) -> TokenDataset:
        """Encode the split, or open its tokens if it was encoded before.

        Args:
            split: its documents are encoded one by one, detokenised.
            tokenizer: gives the ids.
            block_length: tokens per block; what is on disk does not depend on it.
            eos_between_documents: put EOS between any two documents; none before the first or after the last.
            cache_dir: holds the stream; see `ltm.data.tokens.building.token_stream`.

        Raises:
            UserError: fewer tokens than one block, and as `token_stream`.
        """
        if block_length < 1:
            raise ValueError(f"block_length must be at least 1, found {block_length}")
        stream = token_stream(split, tokenizer, separated=eos_between_documents, cache_dir=cache_dir)
        dataset = cls(stream=stream, block_length=block_length)
        if not dataset.blocks:
            raise UserError(
                f"{split.corpus}/{split.split} has {count(dataset.tokens, 'tokens')} under {tokenizer.name}, "
                f"fewer than the {block_length} of one block; use more text, shorter blocks or the tokenizer bytes"
            )
        return dataset

    def batch(self, first: int, count: int, *, seed: int) -> tuple[Tensor, list[int]]:
        """Return sequences `first` .. `first` + `count` - 1 of the endless stream of shuffled epochs.

        Sequence i is block `permutation(seed, i // blocks)[i % blocks]`, whatever was asked for before.

        Returns:
            tokens_BL: int64, B = `count`.
            indices: the B global sequence indices, also for `ltm.rng.SequenceRng`.
        """
        if first < 0 or count < 1:
            raise ValueError(f"a batch starts at 0 or later and has at least 1 sequence, found {first} and {count}")
        indices = list(range(first, first + count))
        rows = [int(_permutation(self.blocks, seed, i // self.blocks)[i % self.blocks]) for i in indices]
        starts = [row * self.block_length for row in rows]
        return torch.from_numpy(self.stream.rows(starts, self.block_length)), indices


@functools.lru_cache(maxsize=4)
def _permutation(blocks: int, seed: int, epoch: int) -> np.ndarray:
    # Sorted raw bits of a counter-based generator: unlike shuffle functions, guaranteed never to change.
    keys = np.random.Philox(key=seed_of("order of data", seed, epoch)).random_raw(blocks)
    return np.argsort(keys, kind="stable")
