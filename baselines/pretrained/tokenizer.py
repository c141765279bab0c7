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
from ltm.tokenizer import EOS, FILE, LIMITS, Tokenizer, token_bytes, vocabulary
from ltm.untrusted import json_text
from ltm.untrusted.display import bare
from ltm.untrusted.regular_files import read_bytes


class PretrainedTokenizer(Tokenizer):
    """A `tokenizers` file with the methods of `Tokenizer`, encoding as the model was trained.

    Many put a space before a text, which is then part of its tokens but not of its bytes; some compose characters
    (NFC). Apart from that, encoded text decodes to the same bytes; each text is checked.

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
        special = {
            token["id"]: b"" if token["special"] else token["content"].encode() for token in data["added_tokens"]
        }
        spell = _spelling(data, name)
        self._bytes = [
            special[id] if id in special else b"" if (token := self._own.id_to_token(id)) is None else spell(token)
            for id in range(outputs)
        ] + [b""]

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

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text, int32.

        Raises:
            UserError: a text does not decode to itself, or is not Unicode.
        """
        try:
            wanted = [text.encode() for text in texts]
        except UnicodeEncodeError as error:
            raise UserError(f"text has half a surrogate pair at character {error.start}; it must be Unicode") from error
        try:
            encodings = self._own.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # bare ones
            raise UserError(f"the tokenizer of {self._name} cannot encode a text: {error}") from error
        ids_of_texts = [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]
        for text, expected, ids in zip(texts, wanted, ids_of_texts, strict=True):
            spelt = self.decode_bytes(ids)
            if spelt not in (expected, b" " + expected):
                composed = unicodedata.normalize("NFC", text).encode()
                if spelt not in (composed, b" " + composed):
                    raise _lossy(self._name, composed, spelt)
        return ids_of_texts

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
