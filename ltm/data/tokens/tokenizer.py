"""The tokenizer of a corpus, trained once: its training reads all of the text, twice."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from ltm.config import digest
from ltm.data.split import Split
from ltm.errors import UserError
from ltm.files import home, in_turn
from ltm.tokenizer import Tokenizer, build

_KEPT_FROM_BYTES = 16 << 20
"""Of less, training takes a few seconds."""


def tokenizer_for(split: Split, name: str, *, data_dir: Path | None = None) -> Tokenizer:
    """Return the tokenizer of that name, trained on the split if it is `bpe-N`; see `ltm.tokenizer.build`.

    What was trained on much text is kept in `$LTM_HOME/tokenizers` and used again for the same text.
    """
    if not name.startswith("bpe-") or split.bytes < _KEPT_FROM_BYTES:
        return build(name, documents=split.texts(), data_dir=data_dir)
    key = {"format": 1, "data": split.fingerprint, "name": name, "tokenizers": version("tokenizers")}
    place = home() / "tokenizers" / digest(key)[:32]
    with in_turn(place / "lock", work=f"training {name} on {split.corpus}/{split.split}"):
        try:
            return Tokenizer.load(place)
        except UserError:  # there is none, or a damaged one
            made = build(name, documents=split.texts(), data_dir=data_dir)
            made.save(place)
            return made
