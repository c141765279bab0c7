"""Text to token ids and back, the same for every model: GPT-2's BPE, a byte-level BPE of the corpus, or bytes.

All three are one thing: a vocabulary over bytes with merges (none for `bytes`), EOS as its last entry, and BOS as
the id after it. So any text has ids, no id is special to the encoder, and ids give back the exact bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ltm import hub
from ltm.config import canonical_json
from ltm.errors import UserError, did_you_mean
from ltm.files import data_directory, write_atomically
from ltm.text import cutting
from ltm.text.cutting import BEFORE_SPACE, Piece, in_batches
from ltm.untrusted import json_text
from ltm.untrusted.display import shown
from ltm.untrusted.regular_files import read_bytes

EOS = "<|endoftext|>"
FILE = "tokenizer.json"
LIMITS = json_text.Limits(controls=True)
"""Of such files; the largest that are published have half a million merges."""

_GPT2_SHA256 = {
    "vocab.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
_GPT2_REPOSITORIES = ("openai-community/gpt2", "gpt2")
_GPT2_FINGERPRINT = "4a04d0f6e70072a9d11a0bd69f76f4b05db001f9ccc4e31a859907bb66f5058a"

_TRAINING_CHARACTERS = 10_000_000
_SAMPLED_CHARACTERS = 1 << 16


def _byte_symbols() -> list[str]:
    """The printable character that stands for each byte in byte-level vocabularies."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (chr(0x100 + n) for n in range(256))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


_SYMBOLS = _byte_symbols()
_BYTE_OF = {symbol: byte for byte, symbol in enumerate(_SYMBOLS)}


def token_bytes(token: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary spells. Raises KeyError for a character of no byte."""
    return bytes(_BYTE_OF[symbol] for symbol in token)


class Tokenizer:
    """Ids of text and bytes of ids. Get one from `build` or `Tokenizer.load`.

    Args:
        vocab: ids 0 .. n - 1 by token, tokens spelt in byte symbols; the last is EOS.
        merges: pairs of tokens in the order in which they are merged.
    """

    def __init__(self, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]):
        ids = sorted(vocab, key=vocab.__getitem__)
        if [vocab[token] for token in ids] != list(range(len(ids))) or not ids or ids[-1] != EOS:
            raise ValueError(f"token ids must be 0 .. {len(ids) - 1} and {EOS} the last of them")
        if not all(symbol in vocab for symbol in _SYMBOLS):
            raise ValueError("every byte must have a token")
        if odd := next((pair for pair in merges if not {*pair, "".join(pair)} <= vocab.keys()), None):
            raise ValueError(f"the merge {shown(' '.join(odd))} has parts or a result that are no tokens")
        self._vocab, self._merges = dict(vocab), list(merges)
        self._bytes = [token_bytes(token) for token in ids[:-1]] + [b"", b""]

    @cached_property
    def name(self) -> str:
        """`gpt2`, `bytes` or `bpe-N`."""
        if not self._merges:
            return "bytes"
        return "gpt2" if self.fingerprint == _GPT2_FINGERPRINT else f"bpe-{self.bos_id}"

    @property
    def eos_id(self) -> int:
        """The id that may separate documents; the encoder never produces it."""
        return len(self._bytes) - 2

    @property
    def bos_id(self) -> int:
        """The id that models put before a block; the encoder never produces it."""
        return len(self._bytes) - 1

    @property
    def vocab_size(self) -> int:
        """The number of ids, EOS and BOS included."""
        return len(self._bytes)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of what determines the ids, in hex."""
        content = ["byte-level BPE 1", self._vocab, [list(merge) for merge in self._merges]]
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()

    @cached_property
    def _encoder(self) -> Any:
        return _byte_level(self._vocab, self._merges)

    def encode(self, text: str) -> np.ndarray:
        """Ids of the text, int32; text that looks like a special token is ordinary text.

        Raises:
            UserError: half a surrogate pair, which is no character.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32; many at once are faster, and long texts take no more memory than their ids."""
        ids: list[list[np.ndarray]] = [[] for _ in texts]
        pieces = ((owner, piece) for owner, text in enumerate(texts) for piece in self.pieces([text]))
        for batch in in_batches(pieces):
            for (owner, _), own in zip(batch, self.encode_pieces([piece for _, piece in batch]), strict=True):
                ids[owner].append(own)
        return [np.concatenate(parts) if parts else np.empty(0, np.int32) for parts in ids]

    def pieces(self, parts: Iterable[str]) -> Iterator[Piece]:
        """Cut a text that comes in parts into pieces whose ids together are its ids; see `ltm.text.cutting`."""
        return cutting.pieces(parts, self._cut)

    def _cut(self, text: str, start: int) -> int | None:
        return cutting.between_matches(text, start) if self._merges else cutting.anywhere(text, start)

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """Ids of pieces of `self.pieces`, int32; all cores share the work.

        Raises:
            UserError: half a surrogate pair, which is no character.
        """
        if not self._merges:
            return [self._id_of_byte[np.frombuffer(_utf8(piece.text), np.uint8)] for piece in pieces]
        try:
            encodings = self._encoder.encode_batch_fast([piece.text for piece in pieces], add_special_tokens=False)
        except TypeError:
            # The error of the encoder does not say which text it is about.
            for piece in pieces:
                _utf8(piece.text)
            raise
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    @cached_property
    def _id_of_byte(self) -> np.ndarray:
        return np.array([self._vocab[symbol] for symbol in _SYMBOLS], np.int32)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes; EOS and BOS give none.

        Raises:
            UserError: an id outside the vocabulary.
        """
        wanted = [int(token) for token in ids] if not isinstance(ids, np.ndarray) else ids.tolist()
        if wanted and not 0 <= (least := min(wanted)) <= (most := max(wanted)) < self.vocab_size:
            odd = least if least < 0 else most
            raise UserError(f"token id {odd} is outside the vocabulary of {self.name}, 0 .. {self.bos_id}")
        return b"".join(map(self._bytes.__getitem__, wanted))

    def decode(self, ids: Iterable[int]) -> str:
        """The text; bytes that form no character become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def save(self, directory: Path) -> Path:
        """Write `tokenizer.json`, which the `tokenizers` package can open too."""
        data = self._encoder.to_str(pretty=True).encode()
        return write_atomically(Path(directory) / FILE, data)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read a tokenizer that `save` wrote.

        Raises:
            UserError: there is none, or the file is damaged.
        """
        file = Path(directory) / FILE
        try:
            content = read_bytes(file, most=LIMITS.bytes)
        except UserError as error:
            raise UserError(f"cannot read the tokenizer {file}: {error}") from error
        try:
            return cls(*vocabulary(json_text.parse(content, where=str(file), limits=LIMITS), where=str(file)))
        except (ValueError, KeyError, UserError) as error:
            raise UserError(f"{file} is not a tokenizer of ours ({error}); restore it from where it came") from error


def vocabulary(data: Any, *, where: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the tokens and merges in the content of a `tokenizer.json`.

    Raises:
        UserError: they are not what the format asks for.
    """
    model = json_text.table(
        json_text.table(data, where=where, fields=("model",))["model"], where=where, fields=("vocab", "merges")
    )
    vocab, merges = json_text.table(model["vocab"], where=where), model["merges"]
    if not all(type(id) is int for id in vocab.values()):
        raise UserError(f"{where}: expected a whole number as the id of each token")
    pairs = (
        [pair.split(" ") if isinstance(pair, str) else pair for pair in merges] if isinstance(merges, list) else [[]]
    )
    if not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs
    ):
        raise UserError(f"{where}: expected a list of pairs of tokens as merges")
    return vocab, [(left, right) for left, right in pairs]


def build(name: str, *, documents: Iterable[str] | None = None, data_dir: Path | None = None) -> Tokenizer:
    """Get the tokenizer of that name.

    Args:
        name: `gpt2`; `bytes`; or `bpe-N`, N ids with EOS, trained on `documents`.
        documents: training text, as models will see it. Of more than ten million characters an evenly spread part
            of that size is used, the same part every time.
        data_dir: where `tokenizers/gpt2` may be, $LTM_DATA_DIR when None; it may also hold the two files itself.

    Raises:
        UserError: unknown name, GPT-2's files not found or not the right ones, too little text for N.
    """
    if name == "gpt2":
        return _gpt2(data_dir)
    if name == "bytes":
        return Tokenizer({**{symbol: byte for byte, symbol in enumerate(_SYMBOLS)}, EOS: 256}, [])
    size = re.fullmatch(r"bpe-([1-9]\d*)", name)
    if not size:
        raise did_you_mean("tokenizer", name, ("gpt2", "bytes", "bpe-4096"))
    if documents is None:
        raise UserError(f"the tokenizer {name} is trained on the text of a corpus, and none was given")
    return _trained(int(size[1]), documents)


def _trained(size: int, documents: Iterable[str]) -> Tokenizer:
    import tokenizers

    if not 258 <= size <= 1_000_000:
        raise UserError(f"bpe-{size}: expected a size from 258 (256 bytes, one merge, EOS) to 1000000")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size - 1, min_frequency=2, initial_alphabet=_SYMBOLS, show_progress=False
    )
    trained = _byte_level({}, [])
    trained.train_from_iterator(_sample(documents), trainer)
    model = json.loads(trained.to_str())["model"]
    if len(model["vocab"]) < size - 1:
        raise UserError(
            f"bpe-{size}: the text repeats too little for that many tokens; at most bpe-{len(model['vocab']) + 1}"
        )
    return Tokenizer({**model["vocab"], EOS: size - 1}, [(left, right) for left, right in model["merges"]])


def _sample(documents: Iterable[str]) -> Iterator[str]:
    if iter(documents) is documents:
        documents = list(documents)
    total = sum(len(piece) for document in documents for piece in _pieces(document))
    share = min(1.0, _TRAINING_CHARACTERS / max(1, total))
    pieces = (piece for document in documents for piece in _pieces(document))
    return (piece for n, piece in enumerate(pieces) if int((n + 1) * share) > int(n * share))


def _gpt2(data_dir: Path | None) -> Tokenizer:
    directory = data_directory(data_dir)
    places = [directory, directory / "tokenizers" / "gpt2"] if directory else []
    for place in places:
        if any((place / name).is_file() for name in _GPT2_SHA256):
            return _read_gpt2([place / name for name in _GPT2_SHA256])
    names = tuple(_GPT2_SHA256)
    for repository in _GPT2_REPOSITORIES:
        if in_cache := hub.cached(repository, "model", names):
            return _read_gpt2(in_cache.files)
    try:
        return _read_gpt2(hub.fetch(_GPT2_REPOSITORIES[0], "model", names).files)
    except hub.HubError as error:
        looked = " and ".join(map(str, places)) or "no local directory (LTM_DATA_DIR is not set)"
        raise UserError(
            f"the gpt2 tokenizer needs {' and '.join(names)}: looked in {looked}, then for "
            f"{' or '.join(_GPT2_REPOSITORIES)} in {hub.cache_directory()}, then asked the hub: {error}. "
            "Remedy: put both files at DIR/tokenizers/gpt2/ and set LTM_DATA_DIR=DIR, or use bpe-4096 or bytes"
        ) from error


def _read_gpt2(files: Sequence[Path]) -> Tokenizer:
    content = {}
    for file in files:
        try:
            content[file.name] = read_bytes(file, most=16 << 20)
        except UserError as error:
            raise UserError(f"{error}; the gpt2 tokenizer needs it") from error
        if (actual := hashlib.sha256(content[file.name]).hexdigest()) != _GPT2_SHA256[file.name]:
            raise UserError(
                f"{file} is not GPT-2's: expected sha256 {_GPT2_SHA256[file.name]}, found {actual}; "
                "replace it by the original, or remove it to look elsewhere"
            )
    lines = content["merges.txt"].decode().split("\n")[1:]
    pairs = [line.split(" ") for line in lines if line]
    return Tokenizer(json.loads(content["vocab.json"]), [(left, right) for left, right in pairs])


def _byte_level(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Any:
    import tokenizers

    encoder = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=dict(vocab), merges=list(merges)))
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    encoder.decoder = tokenizers.decoders.ByteLevel()
    return encoder


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"text has half a surrogate pair at character {error.start}; it must be Unicode") from error


def _pieces(text: str) -> Iterator[str]:
    """What training samples; it stays as it is, since another sample would be another tokenizer."""
    start = 0
    while start < len(text):
        cut = BEFORE_SPACE.search(text, start + _SAMPLED_CHARACTERS)
        end = cut.end() if cut else len(text)
        yield text[start:end]
        start = end
