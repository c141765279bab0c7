"""The corpus `proverbs`, which this package carries: a few sentences, over and over, each time with another number."""

from __future__ import annotations

from ltm import Split, UserError

SAYINGS = ("a stitch in time saves {}\n", "{} swallows make no summer\n", "count {} times, cut once\n")
SIZES = {"train": 400, "validation": 40}


def proverbs(split: str) -> Split:
    """A split by name."""
    if split not in SIZES:
        raise UserError(f"proverbs has no split {split!r}; expected {' or '.join(SIZES)}")
    documents = [saying.format(n) for n in range(SIZES[split]) for saying in SAYINGS]
    return Split.of("proverbs", split, documents, unit="line", source={"kind": "embedded", "package": __name__})
