"""What a board says to the questions that were asked of it, in sentences made from its results."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from leaderboard import questions
from leaderboard.board import Column, Row, Section
from leaderboard.content.document import Answer, Part
from leaderboard.content.sections import perplexity, trained_on
from leaderboard.questions import Question
from leaderboard.verdicts import MEANING, VERDICTS, comparable, difference, seeds, verdict
from ltm.progress import count


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
        command = shlex.join(["ltm-leaderboard", "compare", second.label, first.label])
        said, evidence = _answer(first, second, shared)
        answered.append(Answer(question=question.text, verdict=said, evidence=evidence, command=command))
    if open_:
        answered.append(Answer(question="", verdict="Not measured yet", evidence=" ".join(open_), command=""))
    if not answered:
        return []
    how = (
        "Each answer is about two models, which its command names: their perplexities, and their difference in nats "
        f"per token with a 95% interval over the text and over training seeds. {MEANING} The commands need --results "
        "and the directory of these results."
    )
    return [Part(title="In short", text=(how,), answers=tuple(answered))]


def _answer(first: Row, second: Row, shared: Sequence[Column]) -> tuple[str, str]:
    """Return the verdict on the text that is most like the training text, and its numbers with all texts' verdicts."""
    main = next((column for column in shared if trained_on(first, column)), shared[0])
    compared = {column: comparable(first.entries[column], second.entries[column]) for column in shared}
    verdicts = {column: verdict(*sides) for column, sides in compared.items()}
    sides = compared[main]
    found = difference(*sides)
    interval = "" if found.ci95 is None else f" [{found.ci95[0]:+.3f}, {found.ci95[1]:+.3f}]"
    words = (
        f"On {main.title} {' against '.join(str(perplexity(side)) for side in sides)}, "
        f"{found.value:+.3f}{interval} nats per token ({seeds(*sides)})."
    )
    counts = Counter(verdicts.values())
    if len(counts) > 1:
        parts = [f"{said} on {counts[said]}" for said in VERDICTS if counts[said]]
        words += f" Of {count(len(shared), 'texts')}: {'; '.join(parts)}."
    elif len(shared) > 1:
        words += f" The same on {'both' if len(shared) == 2 else f'all {len(shared)}'} texts."
    return verdicts[main].capitalize(), words
