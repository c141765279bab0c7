"""The last documents of train held out, for corpora whose other splits are not at hand."""

from __future__ import annotations

from ltm.data.split import Split
from ltm.errors import UserError

HOLDOUT, REST = "train_holdout", "train_rest"
"""Splits of any corpus: the last documents of its train split, and those before them."""
DOCUMENTS = 1000
"""How many are held out."""


def part(train: Split, name: str) -> Split:
    """Return `HOLDOUT` or `REST` of a train split.

    Raises:
        UserError: train has less than twice as many documents as are held out.
    """
    if len(train.documents) < 2 * DOCUMENTS:
        raise UserError(
            f"{train.corpus}/{name}: {HOLDOUT} is the last {DOCUMENTS} documents of train, which has "
            f"{len(train.documents)}; expected at least {2 * DOCUMENTS}"
        )
    documents = train.documents[-DOCUMENTS:] if name == HOLDOUT else train.documents[:-DOCUMENTS]
    return Split.of(train.corpus, name, documents, unit=train.unit, detokenizer=train.detokenizer, source=train.source)
