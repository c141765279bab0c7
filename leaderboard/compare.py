"""Two models, or two commits, on the same text: differences with 95% intervals, paired where possible."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from leaderboard.board import Board, column_key
from leaderboard.content import notation
from leaderboard.content.document import FAILED, NOTHING, Table
from leaderboard.content.generation_views import metric_title
from leaderboard.entries import Entry
from leaderboard.ranking import headline, judged_by, other_side
from leaderboard.render.terminal import print_table
from leaderboard.verdicts import ESTIMATED, LEVEL, MEANING, NOT_PAIRED, comparable, difference, seeds, verdict
from ltm.config import canonical_json
from ltm.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

SHORTEST_COMMIT = 4
"""The fewest characters that are taken for a commit."""
NOTE = (
    "B − A is in nats per token for perplexities, over text and training seeds and paired over the same blocks where "
    f"both have records; in the metric's own unit otherwise. {MEANING}"
)

Key = tuple[str, ...]
Cells = tuple[str, ...]


def compare(board: Board, a: str, b: str, console: Console) -> None:
    """Print how B differs from A on every task for which both have a result.

    Perplexities are compared in nats per token, over all training seeds; everything else seed by seed, in the metric's
    own unit.

    Raises:
        UserError: A or B is neither a model nor a commit of the board, or stands for several results; they have
            nothing in common; or the records of a result do not give its perplexity.
    """
    by_commit, side_a, side_b = _sides(board, a, b)
    varied = _varied([*side_a, *side_b])
    first, second = _by_key(a, side_a, by_commit, varied), _by_key(b, side_b, by_commit, varied)
    shared = sorted(first.keys() & second.keys())
    rows = [row for key in shared for row in _rows(first[key], second[key], by_commit, varied)]
    if not rows:
        raise UserError(
            f"{a} and {b} have no task, text and tokenizer in common, so there is nothing to compare; "
            "score both with: ltm-eval --model A,B --tasks ..."
        )
    header = ("Task", *(["Model"] if by_commit else []), "A", "B", "B − A", "95% interval", "Verdict on B")
    table = Table(header=header, rows=tuple(rows), words=(len(header) - 1,))
    print_table(table, f"A: {a}\nB: {b}", console)
    if unmatched := len(first.keys() ^ second.keys()):
        console.print(f"Tasks of one side alone: {unmatched}.")
    console.print(NOTE)


def _varied(entries: Sequence[Entry]) -> dict[Key, set[str]]:
    """The settings in which a model's results of one task, if it is not perplexity, differ: `shots`, say."""
    groups: dict[tuple[Key, Key], list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        if headline(entry) is None:
            groups[_model(entry), _key(entry)].append(entry.result.scoring)
    varied: dict[Key, set[str]] = defaultdict(set)
    for (_, key), scorings in groups.items():
        for field in {field for scoring in scorings for field in scoring}:
            if len({canonical_json(scoring.get(field)) for scoring in scorings}) > 1:
                varied[key].add(field)
    return varied


def _settings(entry: Entry, varied: Mapping[Key, set[str]]) -> list[str]:
    return [f"{field} {entry.result.scoring.get(field)}" for field in sorted(varied.get(_key(entry), ()))]


def _by_key(
    name: str, side: Sequence[Entry], by_commit: bool, varied: Mapping[Key, set[str]]
) -> dict[Key, list[Entry]]:
    """Group the results that are compared as one: those of all training seeds, or a single one of a commit."""
    groups: dict[Key, dict[str, Entry]] = defaultdict(dict)
    for entry in side:
        if entry.result.status != "complete":  # a short audit
            continue
        result = entry.result
        seed = str(result.training["seed"])
        model = (result.model["name"], canonical_json(dict(result.scoring)), seed) if by_commit else ()
        key = (*_key(entry), *_settings(entry, varied), *model)
        other = groups[key].setdefault(seed, entry)
        if other is not entry:
            raise UserError(
                f"{name} stands for several results, such as {other.name} and {entry.name}; give the label of a row "
                "of the board instead, in quotes"
            )
    return {key: [by_seed[seed] for seed in sorted(by_seed)] for key, by_seed in groups.items()}


def _sides(board: Board, a: str, b: str) -> tuple[bool, list[Entry], list[Entry]]:
    """Whether `a` and `b` are commits rather than models, and the entries of each."""
    by_name = _by_name(board)
    if a in by_name and b in by_name:
        return False, by_name[a], by_name[b]
    at_a, at_b = ([entry for entry in board.entries if _made_at(entry, commit)] for commit in (a, b))
    if at_a and at_b:
        return True, at_a, at_b
    commits = {entry.result.provenance["commit"] or "" for entry in board.entries} - {""}
    unknown = a if a not in by_name and not at_a else b
    raise did_you_mean("model or commit", unknown, [*by_name, *(commit[:12] for commit in commits)])


def _by_name(board: Board) -> dict[str, list[Entry]]:
    """Entries by the label of their row, and by the name of their model unless it is the label of a row.

    A model that is in several sections goes by its label in the first. What is in no row, such as an audit, belongs to
    the row of the same weights and settings, or to the only one of its model's name.
    """
    by_name: dict[str, list[Entry]] = defaultdict(list)
    labels: dict[str, set[str]] = defaultdict(set)
    owners = dict[Key, str]()
    for section in board.sections:
        before = dict(owners)
        for row in section.rows:
            for entry in chain.from_iterable(row.entries.values()):
                label = before.get(_model(entry), row.label)
                by_name[label].append(entry)
                labels[entry.result.model["name"]].add(label)
                owners.setdefault(_model(entry), label)
    in_rows = {id(entry) for entries in by_name.values() for entry in entries}
    for entry in board.entries:
        namesakes = labels[entry.result.model["name"]]
        only = next(iter(namesakes)) if len(namesakes) == 1 else None
        owner = owners.get(_model(entry), only)
        if owner is not None and id(entry) not in in_rows:
            by_name[owner].append(entry)
    names = {entry.result.model["name"] for entry in board.entries}
    for name in sorted(names - by_name.keys()):
        by_name[name] = [entry for entry in board.entries if entry.result.model["name"] == name]
    return dict(by_name)


def _model(entry: Entry) -> Key:
    model = entry.result.model
    return model["name"], model["weights_digest"], model["config_digest"]


def _made_at(entry: Entry, commit: str) -> bool:
    return len(commit) >= SHORTEST_COMMIT and (entry.result.provenance["commit"] or "").startswith(commit.lower())


def _key(entry: Entry) -> Key:
    """The fields in which two results must agree to be compared."""
    result, scoring = entry.result, entry.result.scoring
    protocol = (result.tokenizer["fingerprint"], str(scoring["block_length"]), str(scoring["seed"]))
    return (*column_key(result), *protocol, str(scoring["eos_between_documents"]))


def _rows(a: Sequence[Entry], b: Sequence[Entry], by_commit: bool, varied: Mapping[Key, set[str]]) -> list[Cells]:
    """Return a row over all seeds for perplexities, otherwise one for each training seed that both have."""
    if all(headline(entry) is not None for entry in (*a, *b)):
        a, b = comparable(a, b)
        found, of = difference(b, a), [seeds(a, b)] if max(len(a), len(b)) > 1 else []
        said = verdict(b, a) + (f" ({NOT_PAIRED})" if found.method == NOT_PAIRED else "")
        cells = (*map(_from_both_sides, (a, b)), f"{found.value:+.4f}", _interval(found.ci95), said)
        return [(*_task(a[0], of, by_commit), *cells)]
    by_seed = {entry.result.training["seed"]: entry for entry in b}
    return [
        _of_one_seed(each, by_seed[seed], by_commit, _settings(each, varied))
        for each in a
        if (seed := each.result.training["seed"]) in by_seed
    ]


def _of_one_seed(a: Entry, b: Entry, by_commit: bool, settings: Sequence[str]) -> Cells:
    """Return a row about the metric that a task without perplexity is judged by."""
    first, second = (judged_by(entry.result) for entry in (a, b))
    if first.name == second.name == "audit_passed":  # which is no quantity
        verdicts = (notation.PASSED if metric.value == 1 else FAILED for metric in (first, second))
        return (*_task(a, [], by_commit), *verdicts, NOTHING, NOTHING, NOTHING)
    task = _task(a, [metric_title(first.name, judge=False), *settings], by_commit)
    values = [notation.value([metric]) for metric in (first, second)]
    if first.name != second.name:
        return (*task, *values, f"{first.name} and {second.name}", NOTHING, NOTHING)
    value = second.value - first.value
    if first.ci95 is None or second.ci95 is None:
        return (*task, *values, f"{value:+.3g}", NOTHING, "undecided, without intervals")
    # The interval for independent texts; for results on one text it is too wide rather than too narrow.
    half = math.hypot(*((metric.ci95.high - metric.ci95.low) / 2 for metric in (first, second) if metric.ci95))
    ci95 = (value - half, value + half)
    said = LEVEL if ci95[0] <= 0 <= ci95[1] else "better" if (value < 0) == (first.direction == "lower") else "worse"
    if "estimate" in (first.kind, second.kind):
        said = ESTIMATED
    return (*task, *values, f"{value:+.4f}", _interval(ci95), f"{said} ({NOT_PAIRED})")


def _task(entry: Entry, of: Sequence[str], by_commit: bool) -> Cells:
    """Return the task, with what else is said of it and a training seed that is not the first, and a commit's model."""
    result = entry.result
    seed = result.training["seed"]
    words = [result.task["name"].removeprefix("ltm_"), *of, *([f"seed {seed}"] if seed else [])]
    return (", ".join(words), *([result.model["name"]] if by_commit else []))


def _interval(ci95: tuple[float, float] | None) -> str:
    return NOTHING if ci95 is None else f"[{ci95[0]:+.4f}, {ci95[1]:+.4f}]"


def _from_both_sides(side: Sequence[Entry]) -> str:
    """Format the mean perplexity over seeds, after the least that it can be where that is known."""
    least = [metric for entry in side if (metric := other_side(entry)) is not None]
    return ", ".join(notation.value(part) for part in (least, [headline(entry) for entry in side]) if part)
