"""Encode a text into a stream of tokens on disk: on all cores, in bounded memory, from where a killed run stopped."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ltm.config import canonical_json, digest
from ltm.data.split import Split
from ltm.data.tokens import stream
from ltm.data.tokens.stream import TokenStream
from ltm.errors import UserError
from ltm.files import in_turn, replacing, sweep, write_atomically
from ltm.progress import Show, count, display, say
from ltm.text.cutting import PIECE_CHARACTERS, Piece, in_batches
from ltm.tokenizer import Tokenizer

SHARD_CHARACTERS = 1 << 26
"""Characters of text in a shard: a minute's work of one core, at most that of which is lost when a run is killed."""
_CUTS = 1
"""Raised when pieces or shards are cut elsewhere: what is left of a run that cut them otherwise cannot be continued."""
_AHEAD = 3
"""Batches that are encoded or wait for it: while one is being encoded, the next is read and the last one written."""
_SHOW_PROGRESS_FROM_BYTES = 16_000_000


def token_stream(
    split: Split, tokenizer: Tokenizer, *, separated: bool, cache_dir: Path, joined: bool = False
) -> TokenStream:
    """Encode a split, or open its tokens if it was encoded before.

    Any number of processes may ask for the same stream at once: one builds it, the others wait. A run that was killed
    is continued after its last whole shard, and gives the same stream as an unbroken one.

    Args:
        split: its documents are encoded one by one, detokenised.
        separated: put EOS between any two documents; none before the first or after the last.
        cache_dir: made if needed; a folder named by the stream's fingerprint is put there.
        joined: encode the documents as the one text that they are together; not with `separated`.

    Raises:
        UserError: damaged or unwritable files, ids outside the vocabulary, a text that its tokens do not give back.
    """
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 65535 else "<u4")
    identity = {
        "format": 1,
        "data": split.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        "eos_between_documents": separated,
        "dtype": dtype.str,
        **({"joined": True} if joined else {}),
    }
    fingerprint = digest(identity)
    directory = Path(cache_dir) / fingerprint
    sweep(directory)
    manifest = stream.read_manifest(directory)
    if not (manifest and manifest["complete"]):
        title = f"encoding {split.corpus}/{split.split} with {tokenizer.name}"
        with in_turn(directory / "lock", work=title):
            manifest = stream.read_manifest(directory)
            if not (manifest and manifest["complete"]):
                identity = {**identity, "cuts": [_CUTS, SHARD_CHARACTERS, PIECE_CHARACTERS]}
                shards = _kept(directory, manifest, identity, dtype)
                encoder = _Encoder(split, tokenizer, separated, dtype)
                pieces = enumerate(_pieces(split, tokenizer, joined=joined))
                manifest = _build(directory, identity, shards, encoder, pieces, title)
    return stream.opened(fingerprint, directory, manifest, dtype)


def _pieces(split: Split, tokenizer: Tokenizer, *, joined: bool) -> Iterator[Piece]:
    if joined:
        return tokenizer.pieces(split.iter_texts())
    return itertools.chain.from_iterable(tokenizer.pieces([text]) for text in split.iter_texts())


def _kept(
    directory: Path, manifest: dict[str, Any] | None, identity: dict[str, Any], dtype: np.dtype
) -> list[dict[str, Any]]:
    """The shards that an earlier run wrote, verified; none if it cut the text elsewhere."""
    if not manifest or any(manifest.get(name) != value for name, value in identity.items()):
        return []
    try:
        stream.verify(directory, manifest["shards"], dtype.itemsize)
    except UserError as error:
        say(f"{error}: begun anew")
        return []
    return list(manifest["shards"])


class _Encoder:
    """Encodes pieces and checks that their ids are those of text, and give the text back."""

    def __init__(self, split: Split, tokenizer: Tokenizer, separated: bool, dtype: np.dtype):
        self._split, self._tokenizer, self.dtype = split, tokenizer, dtype
        self._separator = [np.array([tokenizer.eos_id], np.int32)] if separated else []

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of the raw text."""
        return self._split.bytes

    def __call__(self, batch: Sequence[tuple[int, Piece]]) -> np.ndarray:
        """The tokens of consecutive pieces, with EOS before each that begins a document but the first."""
        parts: list[np.ndarray] = []
        for (number, piece), ids in zip(batch, self._tokenizer.encode_pieces([one for _, one in batch]), strict=True):
            self._check(piece, ids)
            parts += [*self._separator, ids] if piece.first and number else [ids]
        return np.concatenate(parts).astype(self.dtype)

    def _check(self, piece: Piece, ids: np.ndarray) -> None:
        where, eos, name = f"{self._split.corpus}/{self._split.split}", self._tokenizer.eos_id, self._tokenizer.name
        largest = self._tokenizer.vocab_size - 2  # the last id is BOS
        if ids.size and not 0 <= ids.min() <= ids.max() <= largest:
            raise UserError(
                f"{where}: {name} gave token ids {ids.min()} .. {ids.max()}, but those of text are 0 .. {largest}"
            )
        if self._separator and (ids == eos).any():
            raise UserError(f"{where}: {name} gave {eos}, the token that ends a document, in the middle of one")
        decoded, text = self._tokenizer.decode_bytes(ids), piece.text.encode()
        # SentencePiece puts a space before a text, which loses nothing.
        if decoded != text and not (piece.first and decoded == b" " + text):
            at = next((n for n, (a, b) in enumerate(zip(text, decoded, strict=False)) if a != b), len(text))
            expected, found = (one[at : at + 20].decode(errors="replace") for one in (text, decoded))
            raise UserError(
                f"{where}: the tokenizer {name} does not give the text back: expected {expected!r}, found {found!r}; a "
                "perplexity would leave out what it drops"
            )


def _build(
    directory: Path,
    identity: Mapping[str, Any],
    shards: list[dict[str, Any]],
    encoder: _Encoder,
    pieces: Iterator[tuple[int, Piece]],
    title: str,
) -> dict[str, Any]:
    """Write the shards that are missing, and return the manifest."""
    done = _Counts()
    before = sum(shard["pieces"] for shard in shards)
    done.characters = sum(len(piece.text) for _, piece in itertools.islice(pieces, before))
    if shards:
        say(f"{title}: going on after {count(sum(shard['tokens'] for shard in shards), 'tokens')}")
    quiet = encoder.bytes < _SHOW_PROGRESS_FROM_BYTES
    with nullcontext() if quiet else display(title, transient=True) as show, ThreadPoolExecutor(2) as threads:
        while True:
            began = done.pieces
            parts = _in_order(threads, encoder, in_batches(done.of_shard(pieces)))
            if (first := next(parts, None)) is None:
                break
            parts = done.of_tokens(itertools.chain([first], parts), encoder.bytes, show)
            written = _write(directory / stream.shard_name(len(shards)), parts)
            shards.append({**written, "pieces": done.pieces - began})
            _save(directory, {**identity, "complete": False, "shards": shards})
    return _save(directory, {**identity, "complete": True, "shards": shards})


class _Counts:
    """What has passed so far."""

    pieces = characters = tokens = 0

    def __init__(self) -> None:
        self._began = time.monotonic()

    def of_shard(self, pieces: Iterator[tuple[int, Piece]]) -> Iterator[tuple[int, Piece]]:
        """Yield the pieces of the next shard."""
        end = (self.characters // SHARD_CHARACTERS + 1) * SHARD_CHARACTERS
        for number, piece in pieces:
            self.pieces += 1
            self.characters += len(piece.text)
            yield number, piece
            if self.characters >= end:
                return

    def of_tokens(self, parts: Iterable[np.ndarray], total: int, show: Show | None) -> Iterator[np.ndarray]:
        """Yield the parts, and show how far they are."""
        for part in parts:
            self.tokens += len(part)
            if show is not None:
                rate = self.tokens / (time.monotonic() - self._began)
                show(min(1.0, self.characters / total), f"{count(self.tokens, 'tokens')}, {rate:,.0f} tokens/s")
            yield part


def _in_order(
    threads: ThreadPoolExecutor, encoder: _Encoder, batches: Iterable[list[tuple[int, Piece]]]
) -> Iterator[np.ndarray]:
    """Encode batches ahead of whoever takes them. A batch is spread over all cores by the `tokenizers` package."""
    waiting: deque[Future[np.ndarray]] = deque()
    for batch in batches:
        waiting.append(threads.submit(encoder, batch))
        if len(waiting) >= _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _write(file: Path, parts: Iterable[np.ndarray]) -> dict[str, Any]:
    """Write a shard, which appears whole or not at all; return its number of tokens and its sha256."""
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
            f"cannot write the tokens {file}: {error.strerror or error}; make room there or name another directory"
        ) from error
    return {"tokens": tokens, "sha256": sha256.hexdigest()}


def _save(directory: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    write_atomically(directory / stream.MANIFEST, canonical_json(manifest).encode() + b"\n")
    return manifest
