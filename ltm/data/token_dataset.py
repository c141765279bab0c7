"""A split as tokens on disk, and as blocks in an order that depends only on seed and index.

Shapes: B sequences of a batch, L tokens of a block.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltm.config import canonical_json, digest
from ltm.data.split import Split
from ltm.errors import UserError
from ltm.files import replacing, sha256_file, sweep, write_atomically
from ltm.progress import count
from ltm.rng import seed_of
from ltm.tokenizer import Tokenizer
from ltm.untrusted import json_text
from ltm.untrusted.display import printable, shown

_BATCH_CHARACTERS = 1 << 21
_SHOW_PROGRESS_FROM_BYTES = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDataset:
    """The tokens of a split, cut into blocks. Get one from `TokenDataset.build`.

    Blocks are consecutive and do not overlap; the last partial block is not among them, since a batch has full
    blocks only (`remainder` says how many tokens that leaves out, `stream` has them all).

    Attributes:
        stream: every token in order, unsigned, memory-mapped and read-only.
        block_length: tokens per block, L.
        fingerprint: of the stream: text, tokenizer and separators.
        file: where the stream is.
    """

    stream: np.ndarray
    block_length: int
    fingerprint: str
    file: Path

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

        Any number of processes may build the same stream in one `cache_dir` at once.

        Args:
            split: its documents are encoded one by one, detokenised.
            tokenizer: gives the ids.
            block_length: tokens per block; the file does not depend on it.
            eos_between_documents: put EOS between any two documents; none before the first or after the last.
            cache_dir: made if needed; holds `<fingerprint>.tokens` and its description, `.json`.

        Raises:
            UserError: fewer tokens than one block, a damaged or unwritable cache, ids outside the vocabulary.
        """
        if block_length < 1:
            raise ValueError(f"block_length must be at least 1, found {block_length}")
        dtype = np.dtype("<u2" if tokenizer.vocab_size <= 65535 else "<u4")
        identity = {
            "format": 1,
            "data": split.fingerprint,
            "tokenizer": tokenizer.fingerprint,
            "eos_between_documents": eos_between_documents,
            "dtype": dtype.str,
        }
        fingerprint = digest(identity)
        file = Path(cache_dir) / f"{fingerprint}.tokens"
        description = file.with_suffix(".json")
        sweep(file.parent)
        if not (description.exists() and file.exists()):
            parts = _encode(split, tokenizer, eos_between_documents)
            written = _write(file, (part.astype(dtype) for part in parts))
            write_atomically(description, canonical_json({**identity, **written}).encode() + b"\n")
        dataset = cls(
            stream=_open(file, description, dtype),
            block_length=block_length,
            fingerprint=fingerprint,
            file=file,
        )
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
        blocks = self.stream[: self.blocks * self.block_length].reshape(self.blocks, self.block_length)
        return torch.from_numpy(blocks[rows].astype(np.int64)), indices


@functools.lru_cache(maxsize=4)
def _permutation(blocks: int, seed: int, epoch: int) -> np.ndarray:
    # Sorted raw bits of a counter-based generator: unlike shuffle functions, guaranteed never to change.
    keys = np.random.Philox(key=seed_of("order of data", seed, epoch)).random_raw(blocks)
    return np.argsort(keys, kind="stable")


def _encode(split: Split, tokenizer: Tokenizer, eos_between_documents: bool) -> Iterator[np.ndarray]:
    """Yield the stream in parts of a few documents each."""
    separator = np.array([tokenizer.eos_id] if eos_between_documents else [], np.int64)
    first = True
    for texts in _groups(_with_progress(split)):
        parts: list[np.ndarray] = []
        for ids in tokenizer.encode_batch(texts):
            if ids.size and not 0 <= ids.min() <= ids.max() < tokenizer.eos_id:
                raise UserError(
                    f"{split.corpus}/{split.split}: {tokenizer.name} gave token ids {ids.min()} .. {ids.max()}, "
                    f"but those of text are 0 .. {tokenizer.eos_id - 1}"
                )
            parts += [ids] if first else [separator, ids]
            first = False
        yield np.concatenate(parts)


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    group: list[str] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _with_progress(split: Split) -> Iterator[str]:
    if split.bytes < _SHOW_PROGRESS_FROM_BYTES or not sys.stderr.isatty():
        yield from split.iter_texts()
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(
        split.iter_texts(),
        f"encoding {split.corpus}/{split.split}",
        total=len(split.documents),
        console=Console(stderr=True),
        transient=True,
    )


def _write(file: Path, parts: Iterable[np.ndarray]) -> dict[str, Any]:
    """Stream the parts to `file`, which appears whole or not at all; return the number of tokens and the sha256."""
    sha256, tokens = hashlib.sha256(), 0
    try:
        with replacing(file) as out:
            for part in parts:
                data = part.tobytes()
                out.write(data)
                sha256.update(data)
                tokens += len(part)
    except OSError as error:
        raise UserError(
            f"cannot write the token cache {file}: {error.strerror or error}; make room there or name another directory"
        ) from error
    return {"tokens": tokens, "sha256": sha256.hexdigest()}


def _open(file: Path, description: Path, dtype: np.dtype) -> np.ndarray:
    try:
        written = json_text.table(json_text.read(description), where=str(description), fields=("sha256", "tokens"))
        actual, size = sha256_file(file), file.stat().st_size
        expected, tokens = written["sha256"], written["tokens"]
    except (OSError, UserError) as error:
        raise UserError(
            f"cannot read the token cache {file}: {error}; remove {description} to build it anew"
        ) from error
    if actual != expected:
        raise UserError(
            f"the token cache {file} is damaged: expected sha256 {printable(str(expected))}, found {actual}; "
            f"remove {description} to build it anew"
        )
    if not isinstance(tokens, int) or tokens * dtype.itemsize != size:
        raise UserError(
            f"the token cache {file} is damaged: expected {shown(tokens)} tokens, found {size // dtype.itemsize}; "
            f"remove {description} to build it anew"
        )
    if not tokens:
        return np.empty(0, dtype)
    return np.memmap(file, dtype=dtype, mode="r", shape=(tokens,))
