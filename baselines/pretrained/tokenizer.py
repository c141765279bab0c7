"""The tokenizer of a pretrained model, with the methods of `ltm.tokenizer.Tokenizer`.

A tokenizer like GPT-2's, byte-level BPE with EOS last, becomes a `Tokenizer` itself. Others that can encode every text
keep their own encoder. A tokenizer that drops or replaces characters is refused: the likelihood of its tokens
would not be that of the text.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ltm.config import digest
from ltm.errors import UserError
from ltm.files import write_atomically
from ltm.text.cutting import Piece
from ltm.tokenizer import EOS, FILE, LIMITS, Tokenizer, token_bytes, vocabulary
from ltm.untrusted import json_text
from ltm.untrusted.display import bare
from ltm.untrusted.regular_files import read_bytes

_LOOK_AROUND = 64
_LETTER_AND_SPACE = re.compile(r"[0-9A-Za-z](?= [0-9A-Za-z])")


class PretrainedTokenizer(Tokenizer):
    """A `tokenizers` file with the methods of `Tokenizer`, encoding as the model was trained.

    Many put a space before a text, which is then part of its tokens but not of its bytes; some compose characters
    (NFC). Apart from that, encoded text decodes to the same bytes; each text is checked. Long texts are encoded in
    pieces, cut where no token can lie across the cut, so that they take little more memory than their ids.

    Args:
        content: the content of tokenizer.json.
        name: shown in tables.
        outputs: number of ids that the model can output; BOS is the id after them, as in all models of the suite.
        eos_id: the id that ends a text; None if the model has none.

    Raises:
        UserError: it cannot encode every text, or has ids that the model lacks.
    """

    def __init__(self, content: str, *, name: str, outputs: int, eos_id: int | None):
        import tokenizers

        self._content, self._name = content, name
        self._eos_id = outputs if eos_id is None else eos_id
        data = json.loads(content)
        self._own = tokenizers.Tokenizer.from_str(content)
        self._own.no_truncation()
        self._own.no_padding()
        # Text that looks like a special token is encoded as ordinary text.
        self._own.encode_special_tokens = True
        if (size := 1 + max(self._own.get_vocab().values(), default=-1)) > outputs:
            raise UserError(f"the tokenizer of {name} has {size} ids, the model only {outputs}: they do not match")
        spell = _spelling(data, name)
        # Added tokens stand for text as it is, not in byte symbols, but where a space has a sign of its own (Gemma's
        # runs of spaces) it has it there too.
        added = _piece_bytes if spell is _piece_bytes else str.encode
        special = {token["id"]: b"" if token["special"] else added(token["content"]) for token in data["added_tokens"]}
        self._bytes = [
            special[id] if id in special else b"" if (token := self._own.id_to_token(id)) is None else spell(token)
            for id in range(outputs)
        ] + [b""]
        # What stands before a space in some token: a text cannot be cut there.
        self._joined = {before for spelt in self._bytes for before in re.findall(rb"(.)(?= )", spelt, re.DOTALL)}
        self._drop_space = self._space_put_before(b" a")

    @property
    def name(self) -> str:
        """The name given."""
        return self._name

    @property
    def eos_id(self) -> int:
        """The model's EOS id; the encoder never produces it."""
        return self._eos_id

    @cached_property
    def fingerprint(self) -> str:
        """sha256, in hex, of everything that determines the ids."""
        data = json.loads(self._content)
        return digest(
            ["tokenizers 1", {k: v for k, v in data.items() if k not in ("version", "truncation", "padding")}]
        )

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """Return the ids of pieces of `self.pieces`, int32.

        Raises:
            UserError: a piece does not decode to itself, or is not Unicode.
        """
        try:
            wanted = [piece.text.encode() for piece in pieces]
        except UnicodeEncodeError as error:
            before = error.object[max(0, error.start - 20) : error.start]
            raise UserError(f"text has half a surrogate pair after {before!r}; it must be Unicode") from error
        encoded = self._encoded([self._as_given(piece.text, first=piece.first) for piece in pieces])
        for piece, expected, own in zip(pieces, wanted, encoded, strict=True):
            self._check(piece.text, expected, own, first=piece.first)
        return encoded

    def _as_given(self, piece: str, *, first: bool) -> str:
        """Return what is encoded for a piece: where a space is put before every text, a later piece has it already."""
        return piece[1:] if self._drop_space and not first else piece

    def _encoded(self, texts: Sequence[str]) -> list[np.ndarray]:
        try:
            encodings = self._own.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # bare ones
            raise UserError(f"the tokenizer of {self._name} cannot encode a text: {error}") from error
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def _check(self, text: str, expected: bytes, ids: np.ndarray, *, first: bool) -> None:
        """Raise UserError unless the ids spell the text, or its composed characters, perhaps after a space."""
        spelt = self.decode_bytes(ids)
        spaces = (b"", b" ") if first else (b"",)
        if spelt not in [space + expected for space in spaces]:
            composed = unicodedata.normalize("NFC", text).encode()
            if spelt not in [space + composed for space in spaces]:
                raise _lossy(self._name, composed, spelt)

    def _space_put_before(self, text: bytes) -> bool | None:
        """True if a space is put before this text, False if none is; None if it comes back as something else."""
        spelt = self.decode_bytes(self._encoded([text.decode()])[0])
        return {b" " + text: True, text: False}.get(spelt)

    def _cut(self, text: str, start: int) -> int | None:
        """Cut between a word and a space, where no token has both and words are told apart."""
        while self._drop_space is not None and (found := _LETTER_AND_SPACE.search(text, start)):
            start = found.end()
            if text[start - 1].encode() not in self._joined and self._splits(text, start):
                return start
        return None

    def _splits(self, text: str, cut: int) -> bool:
        """True if the parts that are merged into tokens are the same on both sides of a cut as in the whole."""
        before, after = text[max(0, cut - _LOOK_AROUND) : cut], text[cut : cut + _LOOK_AROUND]
        whole, left = self._parts(before + after), self._parts(before)
        right = self._parts(self._as_given(after, first=False))
        return whole in (left + right, [*left[:-1], left[-1] + right[0], *right[1:]])

    def _parts(self, text: str) -> list[str]:
        normalizer, splitter = self._own.normalizer, self._own.pre_tokenizer
        text = text if normalizer is None else normalizer.normalize_str(text)
        return [text] if splitter is None else [part for part, _ in splitter.pre_tokenize_str(text)]

    def save(self, directory: Path) -> Path:
        """Write `tokenizer.json` unchanged."""
        return write_atomically(Path(directory) / FILE, self._content.encode())


def read_tokenizer(directory: Path, *, name: str, outputs: int, eos_id: int | None) -> Tokenizer:
    """Read the tokenizer in a model's directory: tokenizer.json, or GPT-2's older vocab.json and merges.txt.

    Raises:
        UserError: neither is there, the file is damaged, or its kind is not supported.
    """
    file = directory / FILE
    try:
        if not os.path.lexists(file):
            return _older(directory, outputs)
        content = read_bytes(file, most=LIMITS.bytes).decode()
        data = json_text.parse(content, where=str(file), limits=LIMITS)
        if tokenizer := _byte_level(data, outputs):
            return tokenizer
        return PretrainedTokenizer(content, name=name, outputs=outputs, eos_id=eos_id)
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the tokenizers package raises bare exceptions, and panics that are no `Exception`
        raise UserError(
            f"the tokenizer of {name} in {directory} is damaged or of an unknown format: {bare(str(error))}"
        ) from error


def _older(directory: Path, outputs: int) -> Tokenizer:
    vocab = json_text.read(directory / "vocab.json", limits=LIMITS)
    lines = read_bytes(directory / "merges.txt", most=LIMITS.bytes).decode().replace("\r\n", "\n").split("\n")
    merges = [line for line in lines if line and not line.startswith("#version")]
    tokenizer = Tokenizer(*vocabulary({"model": {"vocab": vocab, "merges": merges}}, where=str(directory)))
    if tokenizer.vocab_size != outputs + 1:
        raise UserError(f"{directory / 'vocab.json'} has {len(vocab)} tokens, the model {outputs}")
    return tokenizer


def _byte_level(data: dict[str, Any], outputs: int) -> Tokenizer | None:
    """Return a `Tokenizer` if this is a byte-level BPE with exactly the model's outputs, else None."""
    model, split = data["model"], data.get("pre_tokenizer") or {}
    ours = (
        model.get("type", "BPE") == "BPE"
        and not any(model.get(field) for field in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"))
        and not model.get("ignore_merges")
        and data.get("normalizer") is None
        and split.get("type") == "ByteLevel"
        and not split.get("add_prefix_space")
        and split.get("use_regex", True)
        and [token["content"] for token in data.get("added_tokens", [])] in ([], [EOS])
        and len(model["vocab"]) == outputs
    )
    if not ours:
        return None
    try:
        return Tokenizer(*vocabulary(data, where=FILE))
    except (ValueError, KeyError, UserError):
        return None


def _spelling(data: dict[str, Any], name: str) -> Any:
    """Return the map from tokens to bytes. Raises UserError if the vocabulary cannot encode every text."""
    decoder = data.get("decoder") or {}
    kinds = {part.get("type") for part in (decoder, *decoder.get("decoders", []))}
    if "ByteLevel" in kinds:
        return token_bytes
    if data["model"].get("byte_fallback"):
        return _piece_bytes
    raise UserError(
        f"the tokenizer of {name} ({data['model'].get('type')}) cannot encode every text, so that its likelihoods are "
        "not those of texts; expected a byte-level one, or one that falls back to bytes"
    )


def _piece_bytes(piece: str) -> bytes:
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ").encode()


def _lossy(name: str, expected: bytes, spelt: bytes) -> UserError:
    at = next((i for i, (a, b) in enumerate(zip(expected, spelt)) if a != b), min(len(expected), len(spelt)))  # noqa: B905
    before, after = (part[max(0, at - 10) : at + 10].decode(errors="replace") for part in (expected, spelt))
    return UserError(
        f"the tokenizer of {name} does not keep this text: {before!r} comes back as {after!r}; its likelihoods would "
        "be those of another text"
    )
