"""Two models, or two commits, on the same text: differences with 95% intervals, paired where possible."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from leaderboard.board import Board
from leaderboard.content import notation
from leaderboard.content.document import NOTHING, Table
from leaderboard.entries import PERPLEXITY, Entry
from leaderboard.ranking import all_blocks, beyond_doubt, blocks, headline, judged_by, other_side
from leaderboard.render.terminal import print_table
from ltm.config import canonical_json
from ltm.errors import UserError, did_you_mean
from ltm.result import Metric, Result
from ltm.statistics import difference_over_seeds, paired_difference

if TYPE_CHECKING:
    from rich.console import Console

SHORTEST_COMMIT = 4
"""The fewest characters that are taken for a commit."""


def compare(board: Board, a: str, b: str, console: Console) -> None:
    """Print how B differs from A on every task for which both have a result.

    Perplexities are compared in nats per token, everything else in the metric's own unit.

    Raises:
        UserError: A or B is neither a model nor a commit of the board, or stands for several results; they have
            nothing in common; or the records of a result do not give its perplexity.
    """
    by_commit, side_a, side_b = _sides(board, a, b)
    first, second = _by_key(a, side_a, by_commit), _by_key(b, side_b, by_commit)
    shared = sorted(first.keys() & second.keys())
    rows = [_row(first[key], second[key], by_commit) for key in shared]
    if not by_commit:
        # The training seed comes last in a key.
        for _, keys in itertools.groupby(shared, key=lambda key: key[:-1]):
            seeds = [*keys]
            rows += _over_seeds([first[key] for key in seeds], [second[key] for key in seeds])
    unmatched = len(first.keys() ^ second.keys())
    if not rows:
        raise UserError(
            f"{a} and {b} have no task, text, tokenizer and training seed in common, so there is nothing to compare; "
            "score both with: ltm-eval --model A,B --tasks ..."
        )
    header = ("Task", *(["Model"] if by_commit else []), a[:20], b[:20], "B − A", "95% interval", "Verdict")
    print_table(Table(header=header, rows=tuple(rows)), f"{b} against {a}", console)
    if unmatched:
        console.print(f"Results without a counterpart on the other side: {unmatched}.")
    console.print(
        "Differences of perplexities are in nats per token, paired over the same blocks where both have records. "
        "A bound is compared as it stands: the true value behind it may be better, unless the verdict is beyond doubt: "
        "then the least that the perplexity can be (≥) is above the most that the other one can be."
    )


def _by_key(name: str, side: Sequence[Entry], by_commit: bool) -> dict[tuple[str, ...], Entry]:
    by_key: dict[tuple[str, ...], Entry] = {}
    for entry in side:
        if entry.result.status != "complete":  # a short audit
            continue
        other = by_key.setdefault(_key(entry, by_commit), entry)
        if other is not entry:
            raise UserError(
                f"{name} stands for several results, such as {other.name} and {entry.name}; give the label of a row "
                "of the board instead, in quotes"
            )
    return by_key


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
    """Entries by the label of their row, and those that are in no row by the name of their model."""
    by_name: dict[str, list[Entry]] = {}
    for section in board.sections:
        for row in section.rows:
            by_name.setdefault(row.label, []).extend(entry for entries in row.entries.values() for entry in entries)
    in_rows = {id(entry) for entries in by_name.values() for entry in entries}
    for entry in board.entries:
        name = entry.result.model["name"]
        if name not in by_name:
            by_name[name] = [e for e in board.entries if e.result.model["name"] == name]
        elif id(entry) not in in_rows:
            by_name[name].append(entry)
    return by_name


def _made_at(entry: Entry, commit: str) -> bool:
    return len(commit) >= SHORTEST_COMMIT and (entry.result.provenance["commit"] or "").startswith(commit.lower())


def _key(entry: Entry, by_commit: bool) -> tuple[str, ...]:
    """The fields in which two results must agree to be compared."""
    result = entry.result
    task, scoring = result.task, result.scoring
    text = (task["name"], str(task["version"]), task["split"], result.data["fingerprint"])
    protocol = (result.tokenizer["fingerprint"], str(scoring["block_length"]), str(scoring["seed"]))
    model = (result.model["name"], canonical_json(dict(scoring))) if by_commit else ()
    return (*text, *protocol, str(scoring["eos_between_documents"]), str(result.training["seed"]), *model)


def _row(a: Entry, b: Entry, by_commit: bool) -> tuple[str, ...]:
    first, second = (_metric(entry.result) for entry in (a, b))
    seed = a.result.training["seed"]
    task = a.result.task["name"].removeprefix("ltm_")
    task += "" if first.name == PERPLEXITY else f", {first.name}"
    task += f", seed {seed}" if seed else ""
    values = [notation.value([metric]) for metric in (first, second)]
    if first.name == PERPLEXITY == second.name:
        values = [_from_both_sides([(a, first)]), _from_both_sides([(b, second)])]
    difference, interval, verdict = _difference(a, b, first, second)
    verdict = _worse_beyond_doubt([a], [b]) or verdict
    return (task, *([a.result.model["name"]] if by_commit else []), *values, difference, interval, verdict)


def _over_seeds(a: Sequence[Entry], b: Sequence[Entry]) -> Iterator[tuple[str, ...]]:
    """Yield how the means of two rows over several seeds differ on a text; nothing where that cannot be told."""
    sides = [[(entry, metric) for entry in side if (metric := headline(entry)) is not None] for side in (a, b)]
    of_a, of_b = (all_blocks(side) for side in sides)
    if len(a) < 2 or not (len(a) == len(of_a) == len(of_b)):
        return
    difference = difference_over_seeds(of_b, of_a)
    estimate = any(metric.kind == "estimate" for side in sides for _, metric in side)
    low, high = difference.ci95 or (-math.inf, math.inf)
    interval, verdict = _interval_and_verdict(low, high, "lower", estimate, "paired, over seeds")
    task, values = a[0].result.task["name"].removeprefix("ltm_"), map(_from_both_sides, sides)
    verdict = _worse_beyond_doubt(a, b) or verdict
    yield f"{task}, {len(a)} seeds", *values, f"{difference.value:+.4f}", interval, verdict


def _from_both_sides(side: Sequence[tuple[Entry, Metric]]) -> str:
    """Format the mean perplexity over seeds, after the least that it can be where that is known."""
    least = [metric for entry, _ in side if (metric := other_side(entry)) is not None]
    return ", ".join(notation.value(part) for part in (least, [metric for _, metric in side]) if part)


def _worse_beyond_doubt(a: Sequence[Entry], b: Sequence[Entry]) -> str | None:
    """Say which of two models is worse beyond doubt, if either is; each has a result for every seed."""
    for name, worse, better in (("B", b, a), ("A", a, b)):
        # Of an exact value the verdict on the difference says so as it is.
        if other_side(worse[0]) is not None and beyond_doubt(worse, better):
            return f"{name} worse beyond doubt"
    return None


def _metric(result: Result) -> Metric:
    return result.metric(PERPLEXITY) or judged_by(result)


def _difference(a: Entry, b: Entry, first: Metric, second: Metric) -> tuple[str, str, str]:
    if first.name != second.name:
        return f"{first.name} and {second.name}", NOTHING, NOTHING
    estimate = "estimate" in (first.kind, second.kind)
    if first.name == PERPLEXITY:
        value = math.log(second.value / first.value)
        blocks_a, blocks_b = blocks(a, first), blocks(b, second)
        if blocks_a is not None and blocks_b is not None:
            low, high = paired_difference(blocks_a, blocks_b).ci95 or (-math.inf, math.inf)
            # 0 - x instead of -x: -0.0 would be printed with its sign.
            return f"{value:+.4f}", *_interval_and_verdict(0 - high, 0 - low, first.direction, estimate, "paired")
        ends = [math.log(m.ci95.high / m.ci95.low) / 2 for m in (first, second) if m.ci95]
    else:
        value = second.value - first.value
        ends = [(m.ci95.high - m.ci95.low) / 2 for m in (first, second) if m.ci95]
    if len(ends) < 2:
        return f"{value:+.4g}", "none", "undecided (no intervals)"
    # The interval for independent texts; for results on one text it is too wide rather than too narrow.
    half = math.hypot(*ends)
    return f"{value:+.4f}", *_interval_and_verdict(value - half, value + half, first.direction, estimate, "not paired")


def _interval_and_verdict(low: float, high: float, direction: str, estimate: bool, how: str) -> tuple[str, str]:
    better = high < 0 if direction == "lower" else low > 0
    verdict = "no difference" if low <= 0 <= high else "B better" if better else "B worse"
    return f"[{low:+.4f}, {high:+.4f}]", f"~ undecided ({how})" if estimate else f"{verdict} ({how})"
