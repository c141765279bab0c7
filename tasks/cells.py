"""From a log-likelihood that came out of lm-eval to a result file, or to the reason why there is none."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ltm.errors import UserError
from ltm.result import Cell, Interval, Metric, cell_key
from tasks import stats
from tasks.catalog import TaskEntry

if TYPE_CHECKING:
    from ltm.corpus import Split
    from ltm.harness import HarnessModel
    from ltm.likelihood_float import BlockLikelihoods, LikelihoodFloat

SUSPICIOUS_NATS = 2.0


def identity(entry: TaskEntry, text: Split, model: HarnessModel) -> dict[str, Any]:
    """What a cell's key is made of, known before anything is scored; `model.limit_blocks` is part of it."""
    tokens = len(model.loaded.tokenizer.encode("".join(text.iter_texts())))
    blocks = math.ceil(tokens / model.block_length)
    if model.limit_blocks is not None and model.limit_blocks < blocks:
        blocks, tokens = model.limit_blocks, model.limit_blocks * model.block_length
    _, draws = next(iter(model.offered.values()))
    info = model.loaded.info
    return {
        "config_digest": info["config_digest"],
        "weights_digest": info["weights_digest"],
        "task": {"name": entry.name, "version": entry.version, "split": entry.split},
        "data_fingerprint": text.fingerprint,
        "tokenizer_fingerprint": model.loaded.tokenizer.fingerprint,
        "scoring": {
            "block_length": model.block_length,
            "blocks": blocks,
            "tokens": tokens,
            "eos_between_documents": False,
            "seed": model.answers.seed,
            "draws": draws,
            "likelihoods": sorted(model.offered),
            "dtype": model.answers.dtype,
        },
    }


def build(
    identity: Mapping[str, Any],
    text: Split,
    model: HarnessModel,
    value: LikelihoodFloat,
    provenance: Mapping[str, Any],
) -> tuple[Cell, list[dict[str, Any]]]:
    """The cell of one model on one task, and its per-block records.

    Raises:
        UserError: what was scored is not what was to be scored; there is no cell then.
    """
    scoring = identity["scoring"]
    found = {"blocks": len(value.blocks.nats_N), "tokens": value.tokens, "draws": value.draws}
    for what, number in found.items():
        if number != scoring[what]:
            raise UserError(f"{identity['task']['name']}: expected {scoring[what]} {what}, found {number}; no result")
    info, cost = model.loaded.info, model.loaded.model.cost(model.block_length)
    try:
        metrics = [m for name in value.likelihoods for m in _metrics(name, value, text)]
    except ValueError as error:
        raise UserError(f"{model.loaded.name} on {identity['task']['name']}: {error}") from error
    cell = Cell(
        status="complete" if value.complete else "partial",
        model={
            "name": model.loaded.name,
            **{field: info[field] for field in ("family", "config", "config_digest", "weights_digest")},
        },
        training=info["training"],
        task=identity["task"],
        data={
            "corpus": text.corpus,
            "fingerprint": text.fingerprint,
            "bytes": text.bytes,
            "words": text.words,
            "documents": len(text.documents),
            "source": dict(text.source),
        },
        tokenizer=info["tokenizer"],
        scoring=scoring,
        metrics=tuple(metrics),
        cost=dataclasses.asdict(cost),
        provenance=provenance,
    )
    assert cell.key == cell_key(**identity)
    return cell, _records(value)


def _metrics(name: str, value: LikelihoodFloat, text: Split) -> list[Metric]:
    part = value.likelihoods[name]
    cost = stats.cost(part.nats_N, part.tokens_N, part.mc_var_N)
    common: dict[str, Any] = {
        "likelihood": name,
        "headline": name == value.headline,
        "kind": part.kind,
        "n": len(part.nats_N),
    }
    found = [_metric("token_perplexity", "token", cost.perplexity(), common)]
    # The text's bytes and words are those of all of it.
    if value.complete:
        found.append(_metric("word_perplexity", "word", cost.perplexity(units=text.words), common))
        found.append(_metric("bits_per_byte", "byte", cost.bits_per_byte(text.bytes), common))
    if name == value.headline:
        found += [_term(term, part, common) for term in part.terms]
    return found


def _metric(name: str, unit: str, measured: stats.Measured, common: Mapping[str, Any]) -> Metric:
    interval = measured.ci95 and Interval(low=measured.ci95[0], high=measured.ci95[1], method=measured.method)
    return Metric(
        name=name,
        unit=unit,
        value=measured.value,
        stderr_mc=measured.stderr_mc,
        stderr_data=measured.stderr_data,
        ci95=interval,
        **common,
    )


def _term(term: str, part: BlockLikelihoods, common: Mapping[str, Any]) -> Metric:
    # A part of a bound bounds nothing by itself.
    value = stats.term_per_token(part.terms[term], part.tokens_N)
    return Metric(name=f"{term.lstrip('-')}_per_token", unit="token", value=value, **{**common, "kind": "estimate"})


def _records(value: LikelihoodFloat) -> list[dict[str, Any]]:
    return [
        {
            "block": block,
            "tokens": int(tokens),
            **{name: float(part.nats_N[block]) for name, part in value.likelihoods.items()},
        }
        for block, tokens in enumerate(value.blocks.tokens_N)
    ]


def too_good(cell: Cell) -> str | None:
    """A warning when what claims to be a likelihood or a bound is lower than text like this has ever allowed."""
    if cell.tokenizer["name"] != "gpt2":
        return None
    for metric in cell.metrics:
        if metric.name != "token_perplexity" or metric.kind == "estimate":
            continue
        if (nats := math.log(metric.value)) < SUSPICIOUS_NATS:
            return (
                f"{cell.model['name']} on {cell.task['name']}: {nats:.2f} nats a GPT-2 token ({metric.likelihood}) is "
                f"below {SUSPICIOUS_NATS}; re-check the estimator, and that the model has not seen this text"
            )
    return None
