"""The last word of each text, given the rest: is it what greedy decoding gives, and how likely is it?"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltm.errors import UserError
from tasks import results
from tasks.kinds import Column, Measurement
from tasks.likelihood.last_word import cut

if TYPE_CHECKING:
    from ltm.data.split import Split
    from ltm.evaluation.likelihoods import LikelihoodFloat
    from ltm.harness import HarnessModel
    from ltm.result import Metric
    from tasks.catalog import TaskEntry

ITEMS = "texts"
COLUMNS = (
    Column(metric="accuracy", header="Accuracy [95%]", form=".4f", interval=True),
    Column(metric="last_word_perplexity", header="Word perplexity [95%]", form=".5g", interval=True, sign=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A split, and its texts cut before the last word: those asked for."""

    split: Split
    pairs: list[tuple[str, str]]


def prepare(entry: TaskEntry, options: argparse.Namespace) -> Prepared:
    """The split of the task, cut."""
    from ltm.data import corpora

    split = corpora.load(entry.corpus, entry.split, data_dir=options.data_dir)
    pairs = [cut(text) for text in split.iter_texts()][: options.limit_problems]
    for index, (_, word) in enumerate(pairs):
        if not word:
            raise UserError(f"{entry.name}: document {index} of {split.corpus}/{split.split} has no word")
    return Prepared(split=split, pairs=pairs)


def identity(entry: TaskEntry, prepared: Prepared, model: HarnessModel, options: argparse.Namespace) -> dict[str, Any]:
    """What a result's key is made of."""
    _, draws = next(iter(model.offered.values()))
    return results.identity(entry, prepared.split, model, blocks=len(prepared.pairs), draws=draws)


def measure(entry: TaskEntry, prepared: Prepared, model: HarnessModel, options: argparse.Namespace) -> Measurement:
    """Score the words as lm-eval has them scored."""
    from lm_eval.api.instance import Instance

    started = time.perf_counter()
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0, metadata=(entry.name, i, 1))
        for i, pair in enumerate(prepared.pairs)
    ]
    found, split = model.loglikelihood(requests), prepared.split
    records = [
        {"item": i, "word": word.strip(), "tokens": value.tokens, value.headline: float(value), "greedy": same}
        for i, ((_, word), (value, same)) in enumerate(zip(prepared.pairs, found, strict=True))
    ]
    return Measurement(
        metrics=_metrics([value for value, _ in found], [same for _, same in found]),
        records=records,
        data=results.data(split),
        # Greedy decoding is in no answer's own time.
        seconds=max(time.perf_counter() - started, sum(value.seconds for value, _ in found)),
        tokens=sum(value.tokens for value, _ in found),
        complete=len(found) == len(split.documents),
    )


def _metrics(values: list[LikelihoodFloat], greedy: list[bool]) -> tuple[Metric, ...]:
    from tasks import bootstrap, stats

    ones = [1] * len(values)
    variances = [value.mc_variance for value in values]
    cost = stats.nats_total([float(v) for v in values], ones, None if None in variances else variances)
    # A text without context would have the name, and perhaps the kind, of another likelihood: the weakest holds.
    order = ("exact", "lower_bound", "estimate")
    weakest = max(values, key=lambda value: order.index(value.kind))
    (accuracy,) = bootstrap.means([greedy], "texts")
    common: dict[str, Any] = {"headline": True, "unit": "text", "n": len(values)}
    likelihood = {"likelihood": weakest.headline, "kind": weakest.kind}
    return (
        results.metric("accuracy", accuracy, likelihood=None, kind="exact", direction="higher", **common),
        results.metric("last_word_perplexity", cost.perplexity(), **likelihood, **common),
    )
