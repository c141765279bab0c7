"""Results arranged as a board: sections of comparable results, with a row per model and a column per task."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaderboard.entries import PERPLEXITY, Entry, audited, is_audit
from leaderboard.labels import readable_identity, row_identity
from ltm.config import canonical_json
from ltm.evaluation.labels import tell_apart
from ltm.result import Result

TRACKS = {"tiny": 1e13, "mini": 1e16, "small": 1e20}
"""Training FLOPs (as counted) below which a model belongs to the track; above, or if unknown, it is `reference`."""
COUNTED = 1e10
"""Training FLOPs below which a model, such as n-grams, was counted, and belongs to the track that it stands beside."""

CORPORA = {
    **{"ltm_ptb": "PTB", "ltm_wikitext": "WikiText", "ltm_lm1b": "LM1B", "ltm_lambada": "LAMBADA"},
    **{"ltm_ag_news": "AG News", "ltm_pubmed": "PubMed", "ltm_arxiv": "Arxiv"},
}
"""The tasks of the papers' tables, in the papers' order, with their names there; other columns follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One task on one text; another text or another version of the task makes another column."""

    title: str
    task: str
    version: Any
    split: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One model, trained in one way. `entries` has one entry per training seed for each column, ordered by seed."""

    label: str
    entries: Mapping[Column, tuple[Entry, ...]]

    @property
    def first(self) -> Result:
        """One of the results, to read fields from that are the same in all of them."""
        return next(iter(self.entries.values()))[0].result


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Section:
    """Results that may be compared: same track, tokenizer, block length and separator, in one reading or in chunks."""

    track: str
    tokenizer: str
    tokenizer_fingerprint: str
    block_length: int
    eos_between_documents: bool
    in_chunks: bool
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Board:
    """All sections, the results of all other tasks, and how many results no table shows.

    Attributes:
        others: the results of each task that does not measure perplexity, on one text.
        audits: the results of each audit, whatever the length of the source's texts; short ones too.
        entries: all complete results and short audits, ordered by file.
        files: the number of result files.
        not_shown: the number of results that no table shows, by reason.
    """

    sections: tuple[Section, ...]
    others: tuple[tuple[Entry, ...], ...]
    audits: tuple[tuple[Entry, ...], ...]
    entries: tuple[Entry, ...]
    files: int
    not_shown: Mapping[str, int]


def board(entries: Iterable[Entry]) -> Board:
    """Arrange results, of which complete ones and short audits are placed. The order of `entries` does not matter."""
    entries = sorted(entries, key=lambda entry: entry.path)
    placed = audited([entry for entry in entries if _is_placed(entry.result)])
    not_shown: Counter[str] = Counter(entry.result.status for entry in entries if not _is_placed(entry.result))
    groups: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
    others: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
    audits: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
    track_of, order = tracks(placed), [*TRACKS, "reference"]
    for entry in placed:
        if entry.result.metric(PERPLEXITY):
            key = (order.index(track_of[entry]), *_protocol(entry.result))
            groups[key].append(entry)
        else:
            key = column_key(entry.result)
            (audits[key[:3]] if is_audit(entry.result) else others[key]).append(entry)
    return Board(
        sections=tuple(_section(key, groups[key], not_shown) for key in sorted(groups)),
        others=tuple(tuple(others[key]) for key in sorted(others)),
        audits=tuple(tuple(audits[key]) for key in sorted(audits)),
        entries=tuple(placed),
        files=len(entries),
        not_shown=dict(sorted(not_shown.items())),
    )


def _is_placed(result: Result) -> bool:
    return result.status == "complete" or (result.status == "partial" and is_audit(result))


def tracks(entries: Iterable[Entry]) -> dict[Entry, str]:
    """Return the track of each result, `tiny`, `mini`, `small` or `reference`, by the FLOPs of training.

    Counted models take the lowest track of the others under the same protocol.
    """
    entries, order = [*entries], [*TRACKS, "reference"]
    by_flops = {entry: _track(entry.result.training["flops"]) for entry in entries}
    counted = {entry for entry in entries if by_flops[entry] == "counted"}
    beside: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for entry in by_flops.keys() - counted:
        beside[_protocol(entry.result)].append(by_flops[entry])
    lowest = {protocol: min(found, key=order.index) for protocol, found in beside.items()}
    return by_flops | {entry: lowest.get(_protocol(entry.result), order[0]) for entry in counted}


def _track(flops: float | None) -> str:
    if flops is not None and flops < COUNTED:
        return "counted"
    return next((name for name, limit in TRACKS.items() if flops is not None and flops < limit), "reference")


def _protocol(result: Result) -> tuple[Any, ...]:
    """What results of one section agree in, apart from the track."""
    scoring, tokenizer = result.scoring, result.tokenizer
    text = tokenizer["name"], tokenizer["fingerprint"], scoring["block_length"], scoring["eos_between_documents"]
    return *text, "chunk" in scoring


def _section(key: tuple[Any, ...], entries: list[Entry], not_shown: Counter[str]) -> Section:
    columns = _columns(entries)
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[canonical_json(row_identity(entry.result))].append(entry)
    trainings = [training for group in groups.values() for training in _one_training_per_seed(group)]
    names = [members[0].result.model["name"] for members, _ in trainings]
    labels = tell_apart(names, [{**readable_identity(members[0].result), **weights} for members, weights in trainings])
    rows = []
    for label, (members, _) in zip(labels, trainings, strict=True):
        scorings: dict[Column, list[Entry]] = defaultdict(list)
        for entry in members:
            scorings[columns[column_key(entry.result)]].append(entry)
        shown = {c: _one_scoring_per_training(scorings[c], not_shown) for c in columns.values() if c in scorings}
        rows.append(Row(label=label, entries=shown))
    return Section(
        track=[*TRACKS, "reference"][key[0]],
        tokenizer=key[1],
        tokenizer_fingerprint=key[2],
        block_length=key[3],
        eos_between_documents=key[4],
        in_chunks=key[5],
        columns=tuple(columns.values()),
        rows=tuple(sorted(rows, key=lambda row: row.label)),
    )


def column_key(result: Result) -> tuple[Any, ...]:
    """Return the task on one text that a result belongs to."""
    return result.task["name"], str(result.task["version"]), result.task["split"], result.data["fingerprint"]


def _columns(entries: list[Entry]) -> dict[tuple[Any, ...], Column]:
    results = {column_key(entry.result): entry.result for entry in entries}
    order = [*CORPORA]
    keys = sorted(results, key=lambda key: (order.index(key[0]) if key[0] in CORPORA else len(order), key))
    titles = tell_apart(
        [key[0].removeprefix("ltm_") for key in keys],
        [{"version": key[1], "split": key[2], "text": key[3][:8]} for key in keys],
    )
    return {
        key: Column(title=title, task=key[0], version=results[key].task["version"], split=key[2], fingerprint=key[3])
        for key, title in zip(keys, titles, strict=True)
    }


def _one_training_per_seed(group: list[Entry]) -> list[tuple[list[Entry], dict[str, str]]]:
    """Split a group by weights where one training seed has led to several; otherwise return it whole.

    Each part comes with the fields that its label needs.
    """
    weights: dict[Any, set[str]] = defaultdict(set)
    for entry in group:
        weights[entry.result.training["seed"]].add(entry.result.model["weights_digest"])
    if all(len(digests) == 1 for digests in weights.values()):
        return [(group, {})]
    return [
        ([entry for entry in group if entry.result.model["weights_digest"] == digest], {"weights": digest[:8]})
        for digest in sorted(set().union(*weights.values()))
    ]


def _one_scoring_per_training(entries: list[Entry], not_shown: Counter[str]) -> tuple[Entry, ...]:
    """Keep, for each set of weights, the scoring with the lowest seed, and of those the one with the most likelihoods.

    The others are counted in `not_shown`, not averaged in.
    """

    def order(entry: Entry) -> tuple[int, int, int, Path]:
        scoring = entry.result.scoring
        return entry.result.training["seed"] or 0, scoring["seed"], -len(scoring.get("likelihoods", ())), entry.path

    kept: dict[str, Entry] = {}
    for entry in sorted(entries, key=order):
        shown = kept.setdefault(entry.result.model["weights_digest"], entry)
        if shown is not entry:
            same = shown.result.scoring["seed"] == entry.result.scoring["seed"]
            not_shown["scored again by fewer likelihoods" if same else "scored again with another seed"] += 1
    return tuple(kept.values())
