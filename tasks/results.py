"""Build results: the parts that all kinds of task share, and a warning about numbers too good to be true."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltm.errors import UserError
from ltm.processes import is_lead
from ltm.result import Identity, Interval, Metric, Result, result_path
from ltm.untrusted.display import printable
from tasks.kinds import Measurement

if TYPE_CHECKING:
    from ltm.data.split import Split
    from ltm.harness import HarnessModel
    from ltm.statistics import Measured
    from tasks.catalog import TaskEntry

NO_FIGURE = "no figure without matplotlib: pip install 'latent-thought-bench[plots]', then delete the result and repeat"
SUSPICIOUS_NATS = 2.0
"""A likelihood below this many nats per GPT-2 token is too good to be true."""


def identity(entry: TaskEntry, split: Split, model: HarnessModel, **scoring: Any) -> Identity:
    """Make the identity of a result; `scoring` has `blocks`, `draws` and everything else that can change a number."""
    info = model.loaded.info
    return Identity(
        family=info["family"],
        config_digest=info["config_digest"],
        weights_digest=info["weights_digest"],
        task={"name": entry.name, "version": entry.version, "split": entry.split},
        data_fingerprint=split.fingerprint,
        tokenizer_fingerprint=model.loaded.tokenizer.fingerprint,
        scoring={
            "block_length": model.block_length,
            "tokens": 0,
            "eos_between_documents": False,
            "seed": model.runner.seed,
            "dtype": model.runner.dtype,
            **scoring,
        },
    )


def data(split: Split) -> dict[str, Any]:
    """Make the `data` table of a result on a split."""
    return {
        "corpus": split.corpus,
        "fingerprint": split.fingerprint,
        "bytes": split.bytes,
        "words": split.words,
        "documents": len(split.documents),
        "source": {name: printable(value) if isinstance(value, str) else value for name, value in split.source.items()},
    }


def metric(name: str, measured: Measured, **fields: Any) -> Metric:
    """Make a metric of a number with its errors; `fields` are the other fields of `ltm.result.Metric`."""
    return Metric(
        name=name,
        value=measured.value,
        stderr_mc=measured.stderr_mc,
        stderr_data=measured.stderr_data,
        ci95=measured.ci95 and Interval(low=measured.ci95[0], high=measured.ci95[1], method=measured.method),
        **fields,
    )


def build(identity: Identity, measurement: Measurement, model: HarnessModel, provenance: Mapping[str, Any]) -> Result:
    """Make the result of one model on one task.

    Raises:
        UserError: something else was measured than the identity says; there is no result then.
    """
    for what, measured in measurement.scored.items():
        if measured != (expected := identity.scoring[what]):
            raise UserError(f"{identity.task['name']}: expected {expected} {what}, found {measured}; no result")
    from ltm.evaluation.code import class_name, model_code

    info = model.loaded.info
    result = Result(
        status="complete" if measurement.complete else "partial",
        model={
            "name": model.loaded.name,
            **{field: info[field] for field in ("family", "config", "config_digest", "weights_digest")},
            "class": class_name(type(model.loaded.model)),
            "code": model_code(type(model.loaded.model)),
        },
        training=info["training"],
        task=identity.task,
        data=measurement.data,
        tokenizer=info["tokenizer"],
        scoring=identity.scoring,
        metrics=measurement.metrics,
        cost={**dataclasses.asdict(model.loaded.model.cost(model.block_length)), **measurement.cost},
        provenance=provenance,
    )
    assert result.key == identity.key
    return result


def too_good(result: Result) -> str | None:
    """Return a warning if a likelihood or bound is better than has ever been possible on text like this."""
    if result.tokenizer["name"] != "gpt2":
        return None
    for metric in result.metrics:
        if metric.name != "token_perplexity" or metric.kind in ("upper_bound", "estimate"):
            continue
        if (nats := math.log(metric.value)) < SUSPICIOUS_NATS:
            return (
                f"{result.model['name']} on {result.task['name']}: {nats:.2f} nats per GPT-2 token "
                f"({metric.likelihood}) is below {SUSPICIOUS_NATS}; re-check the estimator, and that the model has "
                "not seen this text"
            )
    return None


def write_figure(figure: Any, *, title: str, key: str, output: Path) -> str:
    """Write a matplotlib figure as SVG next to the result of that key; return a sentence that says where.

    Args:
        title: `MODEL on TASK`.
    """
    model, _, task = title.partition(" on ")
    path = result_path(output, model=model, task=task, key=key).with_suffix(".svg")
    if is_lead():
        from matplotlib import rc_context

        path.parent.mkdir(parents=True, exist_ok=True)
        # Text as text, which is a third of the size; and the same file for the same result.
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": key, "font.sans-serif": ["DejaVu Sans"]}):
            figure.savefig(path, metadata={"Date": None})
    return f"figure written to {path}"
