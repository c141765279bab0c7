"""What a board says to the questions that were asked of it, in sentences made from its results."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Sequence

from leaderboard import questions
from leaderboard.board import Column, Row, Section
from leaderboard.content.document import Answer, Part
from leaderboard.content.sections import perplexity, trained_on
from leaderboard.questions import Question
from leaderboard.ranking import beyond_doubt, claim, separated
from ltm.progress import count
from ltm.statistics import difference_over_seeds

BETTER, WORSE = "better beyond doubt", "worse beyond doubt"
LOWER, HIGHER = "ahead by the bounds alone", "behind by the bounds alone"
LEVEL = "not told apart"


def parts(sections: Sequence[Section], asked: Sequence[Question]) -> list[Part]:
    """Return a part with an answer to each question whose rows are there, then the others as not measured yet.

    Raises:
        UserError: a question fits several rows, or the records of a result do not give its perplexity.
    """
    answered, open_ = list[Answer](), list[str]()
    for question in asked:
        found = questions.rows(question, sections)
        shared = found and [column for column in found[0].columns if all(column in row.entries for row in found[1:])]
        if not found or not shared:
            open_.append(question.text)
            continue
        _, first, second = found
        command = shlex.join(["ltm-leaderboard", "compare", first.label, second.label])
        said, evidence = _answer(first, second, shared)
        answered.append(Answer(question=question.text, verdict=said, evidence=evidence, command=command))
    if open_:
        answered.append(Answer(question="", verdict="Not measured yet", evidence=" ".join(open_), command=""))
    if not answered:
        return []
    how = (
        "Each answer is about two models, which its command names: their perplexities, and their difference in nats "
        "per token with a 95% interval over the text and over training seeds. Beyond doubt: whatever is behind the "
        "bounds; by the bounds alone: what is behind them may be the other way round. The commands need --results and "
        "the directory of these results."
    )
    return [Part(title="In short", text=(how,), answers=tuple(answered))]


def _answer(first: Row, second: Row, shared: Sequence[Column]) -> tuple[str, str]:
    """Return the verdict on the text that is most like the training text, and its numbers with all texts' verdicts."""
    main = next((column for column in shared if trained_on(first, column)), shared[0])
    verdicts = {column: verdict(first, second, column) for column in shared}
    seeds = " and ".join(dict.fromkeys(str(len(row.entries[main])) for row in (first, second)))
    words = (
        f"On {main.title} {perplexity(first.entries[main])} against "
        f"{perplexity(second.entries[main])}, {_difference(first, second, main)} "
        f"({seeds} {'seed' if seeds == '1' else 'seeds'})."
    )
    if len(shared) == 1:
        return verdicts[main].capitalize(), words
    counts = Counter(verdicts.values())
    parts = [f"{said} on {counts[said]}" for said in (BETTER, LOWER, LEVEL, HIGHER, WORSE) if counts[said]]
    return verdicts[main].capitalize(), f"{words} Of {count(len(shared), 'texts')}: {'; '.join(parts)}."


def verdict(first: Row, second: Row, column: Column) -> str:
    """Say how the first row stands to the second on a text."""
    own, other = first.entries[column], second.entries[column]
    if beyond_doubt(other, own):
        return BETTER
    if beyond_doubt(own, other):
        return WORSE
    claims = claim(own), claim(other)
    if claims[0] is not None and claims[1] is not None:
        if separated(claims[0], claims[1]):
            return LOWER
        if separated(claims[1], claims[0]):
            return HIGHER
    return LEVEL


def _difference(first: Row, second: Row, column: Column) -> str:
    """How many more nats per token the first row costs, with its interval where the blocks of both are at hand."""
    own, other = claim(first.entries[column]), claim(second.entries[column])
    if own is None or other is None:
        return "and an estimate cannot be compared"
    if not (own.seeds and other.seeds):
        return f"{math.log(own.value / other.value):+.3f} nats per token"
    found = difference_over_seeds(own.seeds, other.seeds)
    interval = "" if found.ci95 is None else f" [{found.ci95[0]:+.3f}, {found.ci95[1]:+.3f}]"
    return f"{found.value:+.3f}{interval} nats per token"
