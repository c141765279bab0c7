"""Score whole texts of any length, some rows at a time, so that memory does not grow with what a row takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter

from ltm.data.separated_text import SeparatedText
from ltm.data.tokens.text import CorpusText
from ltm.evaluation.likelihoods import LikelihoodFloat, gather, together
from ltm.evaluation.rows import Row, digest_of
from ltm.evaluation.runner import Runner

Text = str | CorpusText
ROWS_AT_A_TIME = 1 << 14


def name_of(text: Text) -> str:
    """Return what tells the answers on a text from those on others."""
    if isinstance(text, CorpusText):
        return f"corpus {text.split.fingerprint}{' separated' * text.separated}"
    parts = text.documents if isinstance(text, SeparatedText) else (text,)
    return f"{type(text).__name__} {digest_of(*parts)}"


def score_texts(
    runner: Runner, task: str, texts: Sequence[tuple[Iterable[Row], int]], *, companions: bool
) -> list[LikelihoodFloat]:
    """Return the likelihoods of texts, each given by its rows and the number of tokens of the whole of it.

    Rows are made as they are needed. For each of them a few numbers remain, and its answer on disk, in a file for
    every `ROWS_AT_A_TIME`.
    """
    headline = runner.scorer.model.headline()
    found: list[list[LikelihoodFloat]] = [[] for _ in texts]
    rows = ((number, row) for number, (own, _) in enumerate(texts) for row in own)
    for part, some in enumerate(_portions(rows)):
        answers = iter(runner.score(task, [row for _, row in some], companions=companions, part=part))
        for number, own in itertools.groupby(some, key=itemgetter(0)):
            records = [next(answers) for _ in own]
            found[number].append(gather(records, stream_tokens=0, headline=headline))
    nothing = gather([], stream_tokens=0, headline=headline)
    return [together(parts or [nothing], stream_tokens=tokens) for parts, (_, tokens) in zip(found, texts, strict=True)]


def _portions(rows: Iterator[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    while some := list(itertools.islice(rows, ROWS_AT_A_TIME)):
        yield some
