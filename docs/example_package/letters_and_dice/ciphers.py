"""The kind of task `cipher`: does a model find text more likely than the same text with every letter moved by 13?"""

from __future__ import annotations

import codecs
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ltm.data import corpora
from ltm.result import Identity, Metric, Result
from ltm.statistics import means
from tasks import results
from tasks.kinds import Column, Measurement, ReferenceRow, Task


def accuracy(metric: Metric, result: Result, records: Sequence[Mapping[str, Any]]) -> float:
    """The share of texts that are more likely as they are."""
    return sum(record["plain"] > record["moved"] for record in records) / len(records)


class Cipher(Task):
    """Telling text from its cipher."""

    items = "texts"
    columns: ClassVar = (Column(metric="cipher_accuracy", header="Told apart [95%]", form=".1%", interval=True),)
    formulas: ClassVar = {"cipher_accuracy": accuracy}

    def __init__(self, entry: Any, options: Any):
        super().__init__(entry, options)
        self.split = corpora.load(entry.corpus, entry.split, data_dir=options.data_dir)

    def identity(self, model: Any) -> Identity:
        """All texts of the split."""
        return results.identity(self.entry, self.split, model, blocks=len(self.split.documents), draws=0)

    def measure(self, model: Any, identity: Identity) -> Measurement:
        """Score each text, and its cipher."""
        from lm_eval.api.instance import Instance

        started, texts = time.perf_counter(), self.split.texts()
        pairs = [text for plain in texts for text in (plain, codecs.encode(plain, "rot13"))]
        requests = [
            Instance("loglikelihood_rolling", {}, (text,), i, metadata=(self.entry.name, i, 1))
            for i, text in enumerate(pairs)
        ]
        nats = [float(value) for value in model.loglikelihood_rolling(requests)]
        records = [{"text": i, "plain": nats[2 * i], "moved": nats[2 * i + 1]} for i in range(len(texts))]
        (measured,) = means([[record["plain"] > record["moved"] for record in records]], "texts")
        common: dict[str, Any] = {"unit": "text", "kind": "exact", "likelihood": None, "direction": "higher"}
        return Measurement(
            metrics=(results.metric("cipher_accuracy", measured, headline=True, n=len(records), **common),),
            records=records,
            data=results.data(self.split),
            seconds=time.perf_counter() - started,
            tokens=sum(map(len, pairs)),
        )

    @classmethod
    def reference_rows(cls, result: Result) -> Sequence[ReferenceRow]:
        """None: half of the texts are right by chance, as every reader knows."""
        return ()
