"""Weights that others published, as known_weights.json lists them: where, their licence, and what is said of them.

Nothing here has been opened by this project yet: formats are those that their authors describe, and reported numbers
are of their protocols, which docs/reported.md sets beside ours.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltm import hub
from ltm.untrusted import json_text

WEIGHTS = "model.safetensors"
PUBLIC = ("config.json", WEIGHTS)
"""The files of public weights that can be opened."""
FILE = Path(__file__).with_name("known_weights.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """Perplexities that someone reports, by task, as printed."""

    source: str
    perplexity: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownWeights:
    """A set of public weights.

    Attributes:
        id: a repository of the hub, or the name of a file to be converted.
        family: which of ours opens it.
        files: their format.
        weights: as trained, or their moving average.
        positions: the length of all sequences that the network saw in training.
        paper, independent: what its authors' side and others measured; None where nothing is known.
        note: what else to know.
    """

    id: str
    family: str
    licence: str
    files: str
    weights: str
    positions: int
    parameters: int
    paper: Reported | None = None
    independent: Reported | None = None
    note: str = field(default="")

    @property
    def name(self) -> str:
        """What `--model` takes."""
        return f"{self.family}:{self.id}"

    @property
    def here(self) -> bool:
        """Whether the hub's cache on this machine has its files."""
        return "/" in self.id and hub.cached(self.id, "model", PUBLIC) is not None


@functools.cache
def known() -> tuple[KnownWeights, ...]:
    """All known weights."""
    return tuple(_entry(table) for table in json_text.read(FILE))


def _entry(table: Mapping[str, Any]) -> KnownWeights:
    reported = {name: Reported(**table[name]) for name in ("paper", "independent") if name in table}
    return KnownWeights(**{**table, **reported})


def reported(name: str, task: str) -> list[tuple[str, str]]:
    """What others report for a model as `--model` names it, on a task: perplexity as printed, and its source."""
    found = next((each for each in known() if each.name == name), None)
    both = (found.paper, found.independent) if found else ()
    return [(each.perplexity[task], each.source) for each in both if each is not None and task in each.perplexity]
