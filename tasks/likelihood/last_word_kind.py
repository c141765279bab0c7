"""The last word of each text given the rest: accuracy of greedy decoding, and perplexity."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ltm import statistics
from ltm.result import Identity
from tasks import results
from tasks.kinds import Column, Measurement, Task
from tasks.likelihood.perplexity_kind import read
from tasks.likelihood.yaml_functions import last_words

if TYPE_CHECKING:
    from ltm.evaluation.likelihoods import LikelihoodFloat
    from ltm.harness import HarnessModel
    from ltm.result import Metric
    from tasks.catalog import TaskEntry
    from tasks.options import EvalOptions


class LastWord(Task):
    """Predicting the last word of the texts of a split."""

    items = "texts"
    columns = (
        Column(metric="accuracy", header="Accuracy [95%]", form=".4f", interval=True),
        Column(metric="last_word_perplexity", header="Word perplexity [95%]", form=".5g", interval=True, sign=True),
    )

    def __init__(self, entry: TaskEntry, options: EvalOptions):
        """Read the split, and cut its texts before the last word."""
        super().__init__(entry, options)
        self.split = read(entry, options)
        self.pairs = last_words(self.split)[: options.limit_problems]

    def identity(self, model: HarnessModel) -> Identity:
        """Identify the result by the texts and the draws."""
        _, draws = next(iter(model.offered.values()))
        return results.identity(self.entry, self.split, model, blocks=len(self.pairs), draws=draws)

    def measure(self, model: HarnessModel, identity: Identity) -> Measurement:
        """Score the words as lm-eval would."""
        from lm_eval.api.instance import Instance

        started = time.perf_counter()
        requests = [
            Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0, metadata=(self.entry.name, i, 1))
            for i, pair in enumerate(self.pairs)
        ]
        answers = model.loglikelihood(requests)
        records = [
            {"item": i, "word": word.strip(), "tokens": value.tokens, value.headline: float(value), "greedy": same}
            for i, ((_, word), (value, same)) in enumerate(zip(self.pairs, answers, strict=True))
        ]
        return Measurement(
            metrics=_metrics([value for value, _ in answers], [same for _, same in answers]),
            records=records,
            data=results.data(self.split),
            # An answer's own time does not include greedy decoding.
            seconds=max(time.perf_counter() - started, sum(value.seconds for value, _ in answers)),
            tokens=sum(value.tokens for value, _ in answers),
            complete=len(answers) == len(self.split.documents),
        )


def _metrics(values: list[LikelihoodFloat], greedy: list[bool]) -> tuple[Metric, ...]:
    ones = [1] * len(values)
    variances = [value.mc_variance for value in values]
    total = statistics.nats_total([float(v) for v in values], ones, None if None in variances else variances)
    # A text without context may have a likelihood of another name and kind: the weakest kind holds for all.
    order = ("exact", "lower_bound", "estimate")
    weakest = max(values, key=lambda value: order.index(value.kind))
    (accuracy,) = statistics.means([greedy], "texts", rates=[0])
    common: dict[str, Any] = {"headline": True, "unit": "text", "n": len(values)}
    likelihood = {"likelihood": weakest.headline, "kind": weakest.kind}
    return (
        results.metric("accuracy", accuracy, likelihood=None, kind="exact", direction="higher", **common),
        results.metric("last_word_perplexity", total.perplexity(), **likelihood, **common),
    )
