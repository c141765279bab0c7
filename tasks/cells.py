"""From what was measured to a result file's cell, and what is said about numbers too good to be true."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ltm.errors import UserError
from ltm.result import Cell, cell_key
from tasks.kinds import Measurement

if TYPE_CHECKING:
    from ltm.harness import HarnessModel

SUSPICIOUS_NATS = 2.0


def build(
    identity: Mapping[str, Any], measurement: Measurement, model: HarnessModel, provenance: Mapping[str, Any]
) -> Cell:
    """The cell of one model on one task.

    Raises:
        UserError: what was measured is not what was to be measured; there is no cell then.
    """
    for what, found in measurement.found.items():
        if found != (expected := identity["scoring"][what]):
            raise UserError(f"{identity['task']['name']}: expected {expected} {what}, found {found}; no result")
    info = model.loaded.info
    cell = Cell(
        status="complete" if measurement.complete else "partial",
        model={
            "name": model.loaded.name,
            **{field: info[field] for field in ("family", "config", "config_digest", "weights_digest")},
        },
        training=info["training"],
        task=identity["task"],
        data=measurement.data,
        tokenizer=info["tokenizer"],
        scoring=identity["scoring"],
        metrics=measurement.metrics,
        cost={**dataclasses.asdict(model.loaded.model.cost(model.block_length)), **measurement.cost},
        provenance=provenance,
    )
    assert cell.key == cell_key(**identity)
    return cell


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
