"""Mixtures of corpora, such as `novels+4*gsm8k/train_rest`: the documents of all parts, some of them several times."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ltm.data.documents import Documents
from ltm.data.split import Split
from ltm.errors import UserError

_PART = re.compile(r"(?:(?P<times>[1-9][0-9]{0,3})\*)?(?P<corpus>[^*/+]+)(?:/(?P<split>[^*/+]+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A corpus of a mixture: its name, the split that is named with it, if any, and how often its text occurs."""

    corpus: str
    split: str | None
    times: int


def is_mixture(corpus: str) -> bool:
    """Return whether a corpus's name is that of a mixture."""
    return "+" in corpus or "*" in corpus


def parse(mixture: str) -> list[Part]:
    """Return the parts of a mixture: `[TIMES*]CORPUS[/SPLIT]`, with `+` between them.

    Raises:
        UserError: a part is not of that form.
    """
    found = [_PART.fullmatch(part) for part in mixture.split("+")]
    if not all(found):
        raise UserError(
            f"mixture {mixture!r}: expected corpora with + between them, each perhaps several times or with a split of "
            "its own, as in novels+4*gsm8k/train_rest"
        )
    return [Part(corpus=m["corpus"], split=m["split"], times=int(m["times"] or 1)) for m in found if m]


def mixed(name: str, split: str, parts: Sequence[tuple[Part, Split]]) -> Split:
    """Return the documents of all parts as one split, detokenised, with the counts of what is repeated repeated.

    Its fingerprint is that of its parts and their numbers, in order. Training shuffles the blocks of the whole.

    Raises:
        UserError: documents of a part are lines or sequences, which are not separated like documents.
    """
    for part, text in parts:
        if text.unit != "document":
            raise UserError(f"mixture {name}: {part.corpus} consists of {text.unit}s; expected documents")
    repeated = [text for part, text in parts for _ in range(part.times)]
    texts = [texts for part, text in parts for texts in [text.texts()] * part.times]
    in_files = [part for part in texts if isinstance(part, Documents)]
    documents = Documents(lambda: itertools.chain.from_iterable(texts), of=in_files).counted(sum(map(len, texts)))
    content = repr(("mixture 1", [(part.times, text.fingerprint) for part, text in parts]))
    return Split(
        corpus=name,
        split=split,
        documents=documents,
        unit="document",
        bytes=sum(text.bytes for text in repeated),
        words=sum(text.words for text in repeated),
        detokenizer=None,
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
        source={
            "kind": "mixture",
            "parts": [
                {"corpus": text.corpus, "split": text.split, "times": part.times, "fingerprint": text.fingerprint}
                | {"source": dict(text.source)}
                for part, text in parts
            ],
        },
    )
